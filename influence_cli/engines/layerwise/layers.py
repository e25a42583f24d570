"""Layerwise capture: row gradients by layer from one forward and one backward for output gradients only.

Every module that owns selected parameters is watched: its input and the gradient of its output are enough for dot
products, norms and sums of row gradients, and none is ever made for the whole model (see ``layer_rules``).  Rows are of
any scalar of the logits: ``pull`` takes its gradient in them, a cotangent [b, C], as often as asked for one forward.

A **block** is a module's own parameters; modules that share a parameter are one block, and all calls of a block are
summed before anything is squared.  Parameters that a module hands to a function, or that are used outside of their
module, are found by comparing with reverse mode, and move to the smallest enclosing module whose own forward, run
again, gives their gradient; what no module gives is not covered, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from influence_cli.engines.batch_size import out_of_memory
from influence_cli.engines.finite import comparable
from influence_cli.engines.layerwise.own_forward import Call, OwnForward
from influence_cli.engines.layerwise.rules import Affine, Named, Rule, total
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ModelError, NoDerivative

MATERIALISED = 1 << 24  # most values of row gradients that are made at once for a norm


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
        return torch.cat([g.flatten(1) for g in self.gradients(rows).values()], 1)

    def squared_norms(self) -> Tensor:
        """|g_i|^2 for every row, float64 [b]; all calls summed before squaring."""
        found, site = None, self.layout.sites[0]
        if self.calls and len(self.layout.sites) == 1 and not isinstance(site.rule, OwnForward):
            pairs, names = [(call.a, call.d) for _, call in self.calls], tuple(site.names)
            if isinstance(site.rule, Affine):
                found = site.rule.gram(pairs, self.b, names)
            elif len(pairs) == 1:
                found = site.rule.norms(*pairs[0], self.b, names)
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


# -- one forward, and backwards ------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """A watched call as the forward pass left it."""

    module_name: str
    leaves: tuple[Any, ...]
    versions: tuple[int, ...]
    spec: TreeSpec
    edges: list[Tensor | GradientEdge | None]  # of every tensor that it returned


def _watch(name: str, seen: list[_Seen]) -> Callable[..., Any]:
    """A forward hook that notes inputs and the edge of every output in the graph; the first ones begin it."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        leaves = tuple(t.detach() if isinstance(t, Tensor) else t for t in leaves)
        versions = tuple(t._version for t in leaves if isinstance(t, Tensor))
        out, out_spec = tree_flatten(output)
        edges: list[Tensor | GradientEdge | None] = []
        for k, t in enumerate(out):
            if not isinstance(t, Tensor):
                continue
            if not t.is_floating_point():
                edges.append(None)
            elif t.requires_grad and t.grad_fn is not None:
                edges.append(get_gradient_edge(t))  # of the value now, whatever is done to it in place later
            else:
                start = t.detach().requires_grad_()
                edges.append(start)
                out[k] = start.clone()
        seen.append(_Seen(name, leaves, versions, spec, edges))
        return tree_unflatten(out, out_spec)

    return hook


class Tape:
    """One forward pass of b rows; every ``pull`` is one backward pass for output gradients."""

    def __init__(self, layers: Layers, logits: Tensor, seen: list[_Seen]) -> None:
        self.layers, self.b, self._graph, self._seen = layers, len(logits), logits, seen
        self.logits = logits.detach()
        self.changed: set[str] = set()  # modules whose input was changed in place after they had used it

    def calls(self, cotangent: Tensor, keep: bool = False) -> list[tuple[str, Call]]:
        """Every watched call with its output gradients for the rows' scalars <cotangent_i, z_i>, by module name."""
        edges = [e for s in self._seen for e in s.edges if e is not None]
        with differentiable_kernels(self.layers.point.recurrent):
            gradients = iter(_gradients(self._graph, edges, cotangent, keep))
        found: list[tuple[str, Call]] = []
        for s in self._seen:
            if s.versions != tuple(t._version for t in s.leaves if isinstance(t, Tensor)):
                self.changed.add(s.module_name)
            own = tuple(None if e is None else next(gradients) for e in s.edges)
            batched = self.layers.batched.get(s.module_name, ())
            batched = batched if len(batched) == len(s.leaves) else tuple(False for _ in s.leaves)
            found.append((s.module_name, Call(s.leaves, s.spec, batched, own, self.b)))
        return found

    def sizes(self) -> Iterator[tuple[str, list[int]]]:
        """The leading dimensions of every watched call's arguments, of those that have rows there, by module name."""
        for s in self._seen:
            batched = self.layers.batched.get(s.module_name, ())
            if len(batched) == len(s.leaves):
                yield s.module_name, [len(t) for t, rows in zip(s.leaves, batched, strict=True) if rows]

    def pull(self, cotangent: Tensor, keep: bool = False) -> list[Block]:
        """The blocks' part of the gradients of the rows' scalars; ``keep`` where more follow from this forward.

        Raises:
            ModelError: an input was changed in place after its module had used it, and was not so when planned.
        """
        calls = [(name, call) for name, call in self.calls(cotangent, keep) if call.used]
        if self.changed:
            raise ModelError(f"the input of module {min(self.changed)} is changed in place after it was used")
        blocks = []
        for layout in self.layers.blocks:
            own = tuple((s, call) for s in layout.sites for name, call in calls if s.module_name == name)
            blocks.append(Block(layout, own, self.b, self.logits))
        return blocks


def _gradients(logits: Tensor, edges: list[Any], cotangent: Tensor, keep: bool) -> list[Tensor | None]:
    if not logits.requires_grad or not edges:
        return [None] * len(edges)
    try:
        return list(torch.autograd.grad(logits, edges, cotangent, retain_graph=keep, allow_unused=True))
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise NoDerivative(
            f"the model cannot be differentiated layer by layer ({' '.join(str(error).split())[:200]})",
            fix="turn off what interferes, such as activation checkpointing, or use ip or loss",
        ) from error


# -- which module gives which parameter -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """How many selected parameters the blocks reach, and those that they do not, by module."""

    parameters: int
    covered: int
    missing: dict[str, tuple[str, ...]]  # module -> parameters

    @property
    def share(self) -> float:
        """The share of parameters covered."""
        return self.covered / self.parameters


class Layers:
    """The blocks of a model at a point, planned and verified on some of its inputs."""

    def __init__(self, point: Point, x: Tensor) -> None:
        """``x`` [n, ...] are a batch of inputs, as large as those that follow.

        A few rows, the point's own where it has them, are run to see where rows are, and that nothing is missed; the
        batch, whether a module is called on some of its rows at a time: such a module gives no block.
        """
        from influence_cli.engines.layerwise.plan import plan_sites

        self.point = point
        self.modules = dict(point.model.named_modules())
        self.batched: dict[str, tuple[bool, ...]] = {}  # by module: which leaves of its arguments have rows in front
        self.watched: tuple[str, ...] = tuple(self.modules)
        self.blocks: tuple[BlockLayout, ...] = ()
        self.parted: set[str] = set()  # modules that are called on some rows at a time
        few = comparable(point, x)
        self.coverage = plan_sites(self, few)
        while found := self.called_on_parts(self.run(x)):
            self.parted |= found
            self.coverage = plan_sites(self, few)

    def run(self, x: Tensor) -> Tape:
        """One forward pass that notes the inputs of every watched module."""
        seen: list[_Seen] = []
        with self._hooks(seen), torch.enable_grad(), differentiable_kernels(self.point.recurrent):
            logits = self.point.logits(x)
        return Tape(self, logits, seen)

    def forward(self, x: Tensor) -> Tape:
        """The same, for blocks.

        Raises:
            ModelError: a module that was planned to see whole batches is called on some of the rows.
        """
        tape = self.run(x)
        if found := self.called_on_parts(tape):
            raise ModelError(
                f"module {min(found)} is called on some rows of a batch at a time, as no batch before was",
                fix="pass another --batch-size, or select other parameters with --params",
            )
        return tape

    def called_on_parts(self, tape: Tape) -> set[str]:
        """Watched modules of which a call in that pass was not for all rows."""
        return {name for name, sizes in tape.sizes() if any(size % tape.b for size in sizes)}

    def of_rows(self, x: Tensor, slope: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Block]]:
        """Logits [b, C], and the blocks for rows' scalars whose gradient in the logits is ``slope(logits)`` [b, C]."""
        tape = self.forward(x)
        return tape.logits, tape.pull(slope(tape.logits))

    @contextmanager
    def _hooks(self, seen: list[_Seen]) -> Iterator[None]:
        with ExitStack() as stack:
            for name in self.watched:
                handle = self.modules[name].register_forward_hook(_watch(name, seen), with_kwargs=True)
                stack.callback(handle.remove)
            yield


def loss_slope(rows: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """From logits [b, C] to the gradient in them of every row's own scalar, such as its loss [b]."""

    def slope(logits: Tensor) -> Tensor:
        z = logits.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(rows(z).sum(), z)[0]

    return slope
