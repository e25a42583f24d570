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

import torch
from torch import Tensor

from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.layerwise.own_forward import double_reverse
from influence_cli.engines.point import Point, differentiable_kernels, only_float32
from influence_cli.engines.self_check import CANNOT, Checked, compare, loop
from influence_cli.errors import ModelError
from influence_cli.events import SILENT, Listener
from influence_cli.model.named_tensors import joined
from influence_cli.settings import ENGINES

CHECKED = 16  # rows of the self-check at most
FEW_CLASSES = 16  # up to so many, layerwise is asked before double reverse
Directions = list[dict[str, Tensor]]


class Engine:
    """A point's outputs by the engine asked for, or with ``auto`` by the first that can and agrees with the loop."""

    def __init__(self, point: Point, asked: str = "auto", listener: Listener = SILENT) -> None:
        """``asked`` is one of ``settings.ENGINES``; nothing is run yet."""
        assert asked in ENGINES
        self.point, self.requested, self.listener = point, asked, listener
        self.checked: Checked | None = None
        self._layers: Layers | None = None
        self._doubted_rows_left = CHECKED

    def how(self) -> str:
        """What was run, for ``-v``."""
        if self.checked is None or self.checked.engine == "forward":
            return self.point.how()
        cost = {"layerwise": "a backward pass for each output", "double-reverse": "two backward passes a direction"}
        return f"{self.checked.engine} engine: {cost[self.checked.engine]}"

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
        lost = self._rows_without_tangents(x, z, tangents, directions) if self._doubted_rows_left else None
        if lost is None:
            return z, tangents
        self.point.few = lost if self.point.few is None else joined([lost, self.point.few])
        self.checked = self._pick(x, directions)  # which now sees these rows too
        return self._run(self.checked.engine, x, directions)

    def _rows_without_tangents(
        self, x: Tensor, z: Tensor, tangents: list[Tensor], directions: Directions
    ) -> Tensor | None:
        """Rows that the engine gives no finite tangents and one backward pass each does; None where none is found.

        So many rows as in the self-check are looked at in all: where tangents overflow, there may be many.
        """
        for t, u in zip(tangents, directions, strict=True):
            if bool(torch.isfinite(t).all()):
                continue
            odd = torch.nonzero(torch.isfinite(z).all(1) & ~torch.isfinite(t).all(1)).flatten()[
                : self._doubted_rows_left
            ]
            if len(odd) == 0:
                continue
            self._doubted_rows_left -= len(odd)
            expected = loop(self.point, x[odd], torch.ones_like(t[odd], dtype=torch.float64), u)[0]
            known = expected.abs() < torch.finfo(self.point.dtype).max ** 0.5
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
        if self.requested != "auto":
            return (self.requested,)
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
        reasons, rounded = list[str](), list[bool]()
        for name in self._order(logits.shape[1]):
            why = "; ".join(reasons) or ("asked for" if self.requested != "auto" else "the cheapest")
            try:
                found = self._check(name, some, directions[0], why)
            except torch.OutOfMemoryError:
                raise
            except CANNOT as error:
                reasons.append(f"{name} cannot run it ({_short(error)})")
                continue
            if failure := found.failure(self.point.dtype):
                reasons.append(f"{name} {failure}")
                rounded.append(found.is_rounding())
                continue
            if reasons:
                self.listener.warn(f"engine {name}: {why}")
            return found
        if self.point.dtype == torch.float64 and any(rounded):
            raise only_float32("; ".join(reasons))
        fix = "pass --engine auto, which takes the first that works"
        if self.requested == "auto":
            fix = "leave out the parameters at fault with --params"
        raise ModelError(f"no exact derivative of the model's logits: {'; '.join(reasons)}", fix=fix)

    def _finite(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Up to 16 rows less those without finite logits, and the logits of all; a model that fails fails of itself."""
        with torch.no_grad(), differentiable_kernels(self.point.recurrent):
            logits = self.point.logits(x[:CHECKED])
        return x[:CHECKED][torch.isfinite(logits).all(1)], logits

    def _check(self, name: str, x: Tensor, u: dict[str, Tensor], why: str) -> Checked:
        """How far an engine is from the loop, along a direction."""
        found = Checked(name, why, len(x))
        if len(x) == 0:
            return found

        def outputs(rows: Tensor) -> tuple[Tensor, Tensor]:
            z, (t,) = self._run(name, rows, [u])
            return z, t

        compare(found, self.point, outputs, x, u)
        if name == "layerwise" and self._layers is not None:
            coverage = self._layers.coverage
            found.coverage = coverage.share
            found.uncovered = {m: list(names) for m, names in coverage.missing.items()}
        return found


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."
