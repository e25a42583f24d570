"""Logits and logit tangents by the engine that a model can take, checked against the loop before it is believed.

    forward          one pass of forward mode: 1 + 2m forward passes' cost for m directions
    layerwise        one forward and C backwards for output gradients, then every layer along u: 1 + 2C + m C
    double-reverse   t = (d/dv) < J^T v, u >: a forward, a backward, and a backward through it for every direction

All are exact and mean the same: z [b, C] and t = J u [b, C].  Finite differences are never taken.  Whichever is picked
first meets up to 16 rows from all over the data: against one backward pass a row (the loop), the same rows twice, and
in two batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.layerwise.own_forward import double_reverse
from influence_cli.engines.point import Point, agree, differentiable_kernels
from influence_cli.errors import ModelError
from influence_cli.events import SILENT, Listener
from influence_cli.model.named_tensors import joined
from influence_cli.settings import ENGINES

CHECKED = 16  # rows of the self-check at most
FEW_CLASSES = 16  # up to so many, layerwise is asked before double reverse
AGREES = {torch.float64: 1e-9, torch.float32: 1e-4}  # with the loop, relative to a row's size; of bf16 0.2
REPEATS = {torch.float64: 1e-10, torch.float32: 1e-5}  # with itself
CANNOT = (RuntimeError, NotImplementedError, TypeError, AttributeError)  # an operator without the rule an engine needs
Directions = list[dict[str, Tensor]]


@dataclass
class Checked:
    """What is known of the engine that a member's rows were run by, for the provenance."""

    engine: str
    why: str
    rows: int
    loop: float | None = None  # largest differences of a row, relative to its tangent or the middle row's
    repeated: float | None = None
    halved: float | None = None
    coverage: float | None = None  # share of parameters that the layers reach
    uncovered: dict[str, list[str]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        about = {"engine": self.engine, "why": self.why, "rows_checked": self.rows}
        errors = {"loop": self.loop, "repeated": self.repeated, "halved": self.halved}
        return {**about, **errors, "coverage": self.coverage, "uncovered": self.uncovered}


class Engine:
    """A point's outputs by the engine asked for, or with ``auto`` by the first that can and agrees with the loop."""

    def __init__(self, point: Point, asked: str = "auto", listener: Listener = SILENT) -> None:
        """``asked`` is one of ``settings.ENGINES``; nothing is run yet."""
        assert asked in ENGINES
        self.point, self.asked, self.listener = point, asked, listener
        self.checked: Checked | None = None
        self._layers: Layers | None = None
        self._doubts = CHECKED

    def outputs(self, x: Tensor, directions: Directions) -> tuple[Tensor, list[Tensor]]:
        """Logits [b, C], and for each direction the logits' tangent [b, C].

        Raises:
            ModelError: no engine can, or the one asked for cannot, or is not exact.
        """
        if not directions:
            return self.point.outputs(x, [])
        if self.checked is None:
            self.checked = self._pick(x, directions)
        z, tangents = self._run(self.checked.engine, x, directions)
        lost = self._lost(x, z, tangents, directions) if self._doubts else None
        if lost is None:
            return z, tangents
        self.point.few = lost if self.point.few is None else joined([lost, self.point.few])
        self.checked = self._pick(x, directions)  # which now sees these rows too
        return self._run(self.checked.engine, x, directions)

    def _lost(self, x: Tensor, z: Tensor, tangents: list[Tensor], directions: Directions) -> Tensor | None:
        """Rows that the engine gives no finite tangents and one backward pass each does; None where none is found.

        So many rows as in the self-check are looked at in all: where tangents overflow, there may be many.
        """
        for t, u in zip(tangents, directions, strict=True):
            odd = torch.nonzero(torch.isfinite(z).all(1) & ~torch.isfinite(t).all(1)).flatten()[: self._doubts]
            if len(odd) == 0:
                continue
            self._doubts -= len(odd)
            loop = self._loop(x[odd], torch.ones_like(t[odd], dtype=torch.float64), u)[0]
            known = loop.abs() < torch.finfo(self.point.dtype).max ** 0.5
            if bool(known.any()):
                return x[odd[known]]
        return None

    def _run(self, name: str, x: Tensor, directions: Directions) -> tuple[Tensor, list[Tensor]]:
        if name == "forward":
            return self.point.outputs(x, directions)
        if name == "layerwise":
            return self._layerwise(x, directions)
        return self._double_reverse(x, directions)

    def _layerwise(self, x: Tensor, directions: Directions) -> tuple[Tensor, list[Tensor]]:
        """One backward for each logit; <d z_c / d theta, u> by layers."""
        if self._layers is None:
            self._layers = Layers(self.point, x)
        tape = self._layers.forward(x)
        classes = tape.logits.shape[1]
        tangents = [torch.zeros_like(tape.logits) for _ in directions]
        for c in range(classes):
            one = torch.zeros_like(tape.logits)
            one[:, c] = 1.0
            for block in tape.pull(one, keep=c + 1 < classes):
                for t, u in zip(tangents, directions, strict=True):
                    t[:, c] += block.dots(u).to(t.dtype)
        return tape.logits, tangents

    def _double_reverse(self, x: Tensor, directions: Directions) -> tuple[Tensor, list[Tensor]]:
        with differentiable_kernels(self.point.recurrent):
            function = lambda own: (self.point.logits(x, own),)  # noqa: E731
            tangents = [double_reverse(function, self.point.selected, u)[0] for u in directions]
            with torch.no_grad():
                return self.point.logits(x), tangents

    # -- which one -------------------------------------------------------------------------------------------------

    def _order(self, classes: int) -> Iterable[str]:
        if self.asked != "auto":
            return (self.asked,)
        if classes <= FEW_CLASSES:
            return ("forward", "layerwise", "double-reverse")
        return ("forward", "double-reverse", "layerwise")

    def _pick(self, x: Tensor, directions: Directions) -> Checked:
        """The first engine in order that agrees with the loop on the point's own few rows, or on some of these.

        Rows without a finite logit have nothing to compare.
        """
        some, logits = self._finite(x if self.point.few is None else self.point.few)
        if len(some) == 0:
            some, logits = self._finite(x)
        reasons: list[str] = []
        for name in self._order(logits.shape[1]):
            why = "; ".join(reasons) or ("asked for" if self.asked != "auto" else "the cheapest")
            try:
                found = self._check(name, some, directions[:1], why)
            except torch.OutOfMemoryError:
                raise
            except CANNOT as error:
                reasons.append(f"{name} cannot run it ({_short(error)})")
                continue
            failure = self._failure(found)
            if failure is None:
                if reasons:
                    self.listener.warn(f"engine {name}: {why}")
                return found
            reasons.append(f"{name} {failure}")
        raise ModelError(
            f"no exact derivative of the model's logits: {'; '.join(reasons)}",
            fix="leave out the parameters at fault with --params"
            if self.asked == "auto"
            else "pass --engine auto, which takes the first that works",
        )

    def _finite(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Up to 16 rows less those without finite logits, and the logits of all; a model that fails fails of itself."""
        with torch.no_grad(), differentiable_kernels(self.point.recurrent):
            logits = self.point.logits(x[:CHECKED])
        return x[:CHECKED][torch.isfinite(logits).all(1)], logits

    def _check(self, name: str, x: Tensor, directions: Directions, why: str) -> Checked:
        found = Checked(name, why, len(x))
        if len(x) == 0:
            return found
        z, along_u = self._run(name, x, directions)
        t = along_u[0].double()
        if name == "layerwise" and self._layers is not None:
            coverage = self._layers.coverage
            found.coverage = coverage.share
            found.uncovered = {m: list(names) for m, names in coverage.missing.items()}
        v = torch.randn(t.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(t.device)
        loop, logits = self._loop(x, v, directions[0])
        most = torch.finfo(self.point.dtype).max
        # where the loop is not finite nothing is known, and near overflow no two ways agree; an engine that gives no
        # finite number where the loop does is wrong
        known = loop.abs() < most**0.5
        found.rows = int(known.sum())
        if found.rows == 0:
            return found
        s, sizes = (v * t).sum(1), (v * t).abs().sum(1)
        sizes = torch.maximum(sizes, loop.abs())[known]
        scale = sizes.clamp(min=float(sizes.median())).clamp(min=torch.finfo(torch.float64).tiny)
        apart = lambda other: float(((s - other)[known].abs() / scale).max())  # noqa: E731
        if not agree(z.double(), logits, AGREES.get(self.point.dtype, 0.2), most):
            found.loop = float("inf")
            return found
        along = lambda other: apart((v * other.double()).sum(1))  # noqa: E731
        found.repeated = along(self._run(name, x, directions)[1][0])
        cut = -(-len(x) // 2)
        parts = [self._run(name, part, directions)[1][0] for part in (x[:cut], x[cut:]) if len(part)]
        found.halved = along(torch.cat(parts))
        found.loop = apart(loop)
        return found

    def _loop(self, x: Tensor, v: Tensor, u: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """< grad <v_i, z_i>, u > for every row, one backward pass each, float64 [b]; and the logits [b, C].

        Raises:
            RuntimeError: no row's logits depend on any selected parameter.
        """
        own = {n: p.detach().requires_grad_() for n, p in self.point.selected.items()}
        along = {n: u[n].flatten().double() for n in own}
        found: list[Tensor] = []
        logits: list[Tensor] = []
        reached = False
        with torch.enable_grad(), differentiable_kernels(self.point.recurrent):
            for row, weights in zip(x.split(1), v.to(self.point.dtype).split(1), strict=True):
                z = self.point.logits(row, own)
                value, parameters = (z * weights).sum(), list(own.values())
                gradients = torch.autograd.grad(value, parameters, allow_unused=True) if z.requires_grad else ()
                terms = [g.flatten().double() @ along[n] for n, g in zip(own, gradients) if g is not None]  # noqa: B905
                found.append(torch.stack(terms).sum() if terms else v.new_zeros(()))
                logits.append(z.detach().double())
                reached |= bool(terms)
        if not reached:
            raise RuntimeError("no logit depends on any selected parameter")
        return torch.stack(found), torch.cat(logits)

    def _failure(self, found: Checked) -> str | None:
        """What is wrong with an engine that ran; None where nothing is."""
        if found.coverage is not None and found.coverage < 1.0:
            return f"reaches {found.coverage:.1%} of the parameters (not those of {', '.join(found.uncovered)})"
        agrees, repeats = AGREES.get(self.point.dtype, 0.2), REPEATS.get(self.point.dtype, 0.2)
        for off, bound, against in (
            (found.loop, agrees, "the per-row loop"),
            (found.repeated, repeats, "itself on the same batch"),
            (found.halved, repeats, "itself in another batch size"),
        ):
            if off is not None and not off <= bound:
                return f"is off from {against} by {off:.1e} of a row's size (at most {bound:.0e})"
        return None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
