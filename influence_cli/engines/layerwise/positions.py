"""Scores of rows split by position: at which token of a row the gradient enters, summed over layers (methods.md 2.6 B).

    s_it = sum over layers of  d_it . (U_W a_it + U_b),  d_it . U[token_it],  or  d_it . (tangent of the output)_it

It is the sum that a row's score is made of, put in order by position: sum_t s_it = < grad l_i, u >.  It needs modules
whose parameters act on each position by itself.  Where one does not, as attention would that owns its parameters, its
part belongs to no position, and the model is refused with the module's name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from influence_cli.engines.layerwise.blocks import Block, Site
from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.layerwise.own_forward import Call, OwnForward
from influence_cli.engines.layerwise.protocol import Named
from influence_cli.engines.point import Point
from influence_cli.errors import ModelError
from influence_cli.model.losses import RowLoss

APART = {torch.float64: 1e-9, torch.float32: 1e-4}  # a change of other positions moves a tangent by less, of its size
FIX = "pass --decomposition loss, which every model has, or leave the parameters at fault out with --params"


class Positions:
    """The split by position at a point, whose layers are planned on the first batch."""

    def __init__(self, point: Point, loss: RowLoss) -> None:
        """Nothing is run yet; ``loss`` is that of the rows."""
        self.point, self.loss = point, loss
        self._layers: Layers | None = None
        self._apart: set[int] = set()  # sites that are known to act on every position by itself

    def of(self, x: Tensor, labels: Tensor, steps: int, directions: list[Named]) -> list[Tensor]:
        """For each direction the parts [b, steps] of the scores of rows, inputs of ``steps`` positions; float64.

        Raises:
            ModelError: a parameter is in no module that acts on positions one by one; names it.
        """
        if self._layers is None:
            self._layers = self._planned(x)
        logits, blocks = self._layers.of_rows(x, lambda z: self.loss.slopes(z, labels).to(z.dtype))
        found = [torch.zeros(len(x), steps, dtype=torch.float64, device=logits.device) for _ in directions]
        for total, u in zip(found, directions, strict=True):
            for block in blocks:
                for site, calls in _by_site(block):
                    total += _joined(site, [self._of_call(site, call, u, steps) for call in calls], steps)
        return found

    def _planned(self, x: Tensor) -> Layers:
        layers = Layers(self.point, x)
        if layers.coverage.missing:
            named = ", ".join(sorted(n for names in layers.coverage.missing.values() for n in names)[:3])
            raise ModelError(f"no layer gives the gradient of {named}, so it has no parts by position", fix=FIX)
        return layers

    def _of_call(self, site: Site, call: Call, u: Named, steps: int) -> Tensor:
        """One call's summands by position, float64 [b, P]."""
        local = {own: u[name] for own, name in site.names.items()}
        if not isinstance(site.rule, OwnForward):
            return site.rule.dots_by_position(call.a, call.d, call.b, local)
        tangents = site.rule.tangents(call, local)
        if id(site) not in self._apart and _check_apart(site, call, local, tangents, steps):
            self._apart.add(id(site))
        pairs = zip(tangents, [d for d in call.gradients if d is not None], strict=True)
        return torch.stack([_over_features(t * d, call.b) for t, d in pairs]).sum(0)


def _by_site(block: Block) -> list[tuple[Site, list[Call]]]:
    """The calls of each module of a block, in their order."""
    found: dict[int, tuple[Site, list[Call]]] = {}
    for site, call in block.calls:
        found.setdefault(id(site), (site, []))[1].append(call)
    return list(found.values())


def _joined(site: Site, parts: list[Tensor], steps: int) -> Tensor:
    """A module's part of the scores [b, steps]: calls on all positions are added, calls on some follow each other."""
    widths = [part.shape[1] for part in parts]
    if all(width in (steps, steps - 1) for width in widths):
        return torch.stack([_filled(part, steps) for part in parts]).sum(0)
    if sum(widths) in (steps, steps - 1):
        return _filled(torch.cat(parts, 1), steps)
    raise _refused(site, f"is called on {', '.join(map(str, widths[:3]))} positions of {steps}")


def _filled(part: Tensor, steps: int) -> Tensor:
    """With 0 for the last position where there is none: it predicts nothing."""
    return torch.nn.functional.pad(part, (0, steps - part.shape[1]))


def _over_features(values: Tensor, b: int) -> Tensor:
    """Sums over all but rows and positions: values [b, P, ...], or [b P, ...], to float64 [b, P]."""
    if len(values) == b:
        return values.reshape(b, values.shape[1] if values.ndim > 1 else 1, -1).sum(2, dtype=torch.float64)
    return values.reshape(b, len(values) // b, -1).sum(2, dtype=torch.float64)


def _check_apart(site: Site, call: Call, u: Named, tangents: tuple[Tensor, ...], steps: int) -> bool:
    """Whether each position of a module's output is seen to depend on that position of its inputs alone.

    Half of the positions get what stands at the first of them, and the tangents of the other half must stay; then the
    other way round.  False where there are too few positions to see it.

    Raises:
        ModelError: it depends on others, or the module is not called on positions.
    """
    assert isinstance(site.rule, OwnForward)
    widths = {_width(leaf, call.b) for leaf, rows in zip(call.leaves, call.batched, strict=True) if rows}
    width = next((w for w in (steps, steps - 1) if w in widths), max(widths, default=1))
    half = width // 2
    for changed, kept in ((slice(0, half), slice(half, width)), (slice(half, width), slice(0, half))):
        leaves = tuple(
            _overwritten(leaf, changed, call.b, width) if rows else leaf
            for leaf, rows in zip(call.leaves, call.batched, strict=True)
        )
        for before, after in zip(tangents, site.rule.tangents(call, u, leaves), strict=True):
            if before.numel() // call.b < width:
                raise _refused(site, "is not called on positions")
            a, b = (_positions(t, call.b)[:, kept] for t in (before, after))
            bound = APART.get(before.dtype, 0.05) * float(before.abs().max())
            if a.numel() and not float((a - b).abs().max()) <= bound:
                raise _refused(site, "joins positions")
    return half > 1


def _width(leaf: Any, b: int) -> int:
    """Positions of a row in a tensor [b, P, ...] or [b P, ...]; 1 where there are none."""
    if len(leaf) != b:
        return len(leaf) // b
    return leaf.shape[1] if leaf.ndim > 1 else 1


def _positions(t: Tensor, b: int) -> Tensor:
    """Values [b, P, ...] of a tensor that has them, or that has rows and positions in one dimension."""
    return t if len(t) == b else t.unflatten(0, (b, -1))


def _overwritten(leaf: Any, some: slice, b: int, width: int) -> Any:
    """A tensor whose values at some positions are those at the first of them; as it is where it has no positions."""
    if _width(leaf, b) != width or some.start == some.stop:
        return leaf
    values = _positions(leaf, b).clone()
    values[:, some] = values[:, some.start : some.start + 1]
    return values.reshape(leaf.shape)


def _refused(site: Site, why: str) -> ModelError:
    named = ", ".join(list(site.names.values())[:3])
    what = f"module {site.module_name or 'model'} (with {named}) {why}, so its part of a score has no position"
    return ModelError(what, fix=FIX)
