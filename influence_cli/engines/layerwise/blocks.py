"""A block's part of the row gradients of a batch: its dot products, norms and sums.

A **block** is a module's own parameters.  Modules that share a parameter are one block, and all calls of a block are
summed before anything is squared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from influence_cli.engines.layerwise.affine import Affine
from influence_cli.engines.layerwise.own_forward import Call, OwnForward
from influence_cli.engines.layerwise.protocol import Named, Rule, total
from influence_cli.engines.layerwise.rules import Embedding

MATERIALISED = 1 << 24  # most values of row gradients that are made at once for a norm
POSITIONS = 1 << 25  # most values of inputs by position that are made at once


@dataclass(frozen=True)
class Site:
    """Some parameters of one module, and the rule for their row gradients."""

    module_name: str
    names: dict[str, str]  # local name -> the parameter's name
    rule: Rule | OwnForward

    def dots(self, call: Call, u: Named) -> Tensor:
        """<g_i, u> [b] of one call, u by the parameters' names."""
        local = {own: u[name] for own, name in self.names.items()}
        if isinstance(self.rule, OwnForward):
            return self.rule.dots(call, local)
        return self.rule.dots(call.a, call.d, call.b, local)

    def gradients(self, call: Call) -> Named:
        """g_i of one call by the parameters' names, [b, *shape]."""
        if isinstance(self.rule, OwnForward):
            return self._named(self.rule.gradients(call))
        return self._named(self.rule.gradients(call.a, call.d, call.b, tuple(self.names)))

    def weighted(self, call: Call, c: Tensor) -> Named:
        """sum_i c_i g_i of one call by the parameters' names."""
        if isinstance(self.rule, OwnForward):
            return self._named(self.rule.weighted(call, c))
        return self._named(self.rule.weighted(call.a, call.d, c, tuple(self.names)))

    def _named(self, local: Named) -> Named:
        return {self.names[own]: value for own, value in local.items()}


@dataclass(frozen=True)
class BlockLayout:
    """A block: its name, its parameters in model order, and where they are used."""

    name: str
    shapes: dict[str, torch.Size]
    sites: tuple[Site, ...]

    @property
    def size(self) -> int:
        """Its number of parameters, d_block."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def affine(self) -> Affine | None:
        """The rule of a block that is one linear layer or convolution without groups; else None."""
        rule = self.sites[0].rule if len(self.sites) == 1 else None
        whole = isinstance(rule, Affine) and "weight" in self.sites[0].names
        return rule if isinstance(rule, Affine) and whole and rule.groups == 1 else None

    @property
    def embedding(self) -> Embedding | None:
        """The rule of a block that is one embedding; else None."""
        rule = self.sites[0].rule if len(self.sites) == 1 else None
        return rule if isinstance(rule, Embedding) else None


@dataclass(frozen=True)
class Block:
    """A block's part of the row gradients of one batch of b rows."""

    layout: BlockLayout
    calls: tuple[tuple[Site, Call], ...]
    b: int
    like: Tensor = field(repr=False)  # for device and dtype

    @property
    def name(self) -> str:
        """The module's name; several joined by +."""
        return self.layout.name

    def dots(self, u: Named) -> Tensor:
        """<g_i, u> for every row, float64 [b]; u by parameter name."""
        found = torch.zeros(self.b, dtype=torch.float64, device=self.like.device)
        for site, call in self.calls:
            found += site.dots(call, u)
        return found

    def gradients(self, rows: slice = slice(None)) -> Named:
        """g_i by parameter name, [b, *shape]; some rows only where asked."""
        found: Named = {}
        for site, call in self.calls:
            for name, g in site.gradients(call.rows(rows)).items():
                found[name] = found[name] + g if name in found else g
        b = len(range(*rows.indices(self.b)))
        return {n: found[n] if n in found else self.like.new_zeros(b, *s) for n, s in self.layout.shapes.items()}

    def row_gradients(self, rows: slice = slice(None)) -> Tensor:
        """g_i flat in the order of the block's parameters, [b, d_block]."""
        return torch.cat([g.reshape(len(g), -1) for g in self.gradients(rows).values()], 1)

    def squared_norms(self) -> Tensor:
        """|g_i|^2 for every row, float64 [b]; all calls summed before squaring."""
        found, site = None, self.layout.sites[0]
        if self.calls and len(self.layout.sites) == 1 and not isinstance(site.rule, OwnForward):
            found = site.rule.norms([(call.a, call.d) for _, call in self.calls], self.b, tuple(site.names))
        if found is not None:
            return found
        step = max(1, MATERIALISED // max(1, self.layout.size))
        parts = [total(self.row_gradients(slice(k, k + step)).square()) for k in range(0, self.b, step)]
        return torch.cat(parts)

    def weighted_sum(self, c: Tensor) -> Named:
        """sum_i c_i g_i by parameter name, for c [b]."""
        found = {n: self.like.new_zeros(s) for n, s in self.layout.shapes.items()}
        for site, call in self.calls:
            for name, g in site.weighted(call, c).items():
                found[name] = found[name] + g
        return found

    def homogeneous(self) -> tuple[Tensor, Tensor] | None:
        """(a~ [b, T, in (+1)], d [b, T, out]) of a linear layer or a convolution without groups, else None.

        The weight's row gradient is sum_t d_t a_t^T; where the bias is taken too, a~ = [a; 1] and its gradient is the
        last column of sum_t d_t a~_t^T.  Several calls are further positions.
        """
        rule = self.layout.affine
        if rule is None:
            return None
        parts = [rule.positions(call.a, call.d, call.b) for _, call in self.calls]
        if not parts:
            wide = rule.shape[1:].numel() + ("bias" in self.layout.sites[0].names)
            return self.like.new_zeros(self.b, 0, wide), self.like.new_zeros(self.b, 0, rule.shape[0])
        a, d = (torch.cat(some, 1).squeeze(2) for some in zip(*parts, strict=True))
        if "bias" in self.layout.sites[0].names:
            a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], 2)
        return a, d

    def tokens(self) -> tuple[Tensor, Tensor] | None:
        """(tokens [b, T], d [b, T, width]) of an embedding, else None: d_t is added to the gradient of token t's row.

        Several calls are further positions.
        """
        rule = self.layout.embedding
        if rule is None:
            return None
        parts = [rule.positions(call.a, call.d, call.b) for _, call in self.calls]
        if not parts:
            nothing = torch.zeros(self.b, 0, dtype=torch.int64, device=self.like.device)
            return nothing, self.like.new_zeros(self.b, 0, rule.shape[1])
        at, d = (torch.cat(some, 1) for some in zip(*parts, strict=True))
        return at, d

    def positions(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, a~ [r, T, I], d [r, T, O]) of an affine block, as many rows at a time as memory holds."""
        assert self.layout.affine is not None
        tall = self.layout.affine.shape[0]
        places = sum(call.d.numel() for _, call in self.calls) // max(1, self.b * tall)
        step = max(1, POSITIONS // max(1, places * (self.layout.size // tall)))
        for first in range(0, self.b, step):
            some = slice(first, min(first + step, self.b))
            part = self
            if step < self.b:
                calls = tuple((site, call.rows(some)) for site, call in self.calls)
                part = dataclasses.replace(self, calls=calls, b=some.stop - some.start)
            found = part.homogeneous()
            assert found is not None
            yield some, *found
