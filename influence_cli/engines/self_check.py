"""How far an engine's tangents are from the loop: one backward pass a row, the same rows twice, and two batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from influence_cli.engines.point import SINGLE, Point, agree, differentiable_kernels

AGREES = {torch.float64: 1e-9, torch.float32: 1e-4}  # with the loop, relative to a row's size; of bf16 0.2
REPEATS = {torch.float64: 1e-10, torch.float32: 1e-5}  # with itself
ROW = 4096  # products that are summed before they are added up in float64
CANNOT = (RuntimeError, NotImplementedError, TypeError, AttributeError)  # an operator without the rule an engine needs

Outputs = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows to logits [b, C] and their tangent along one direction


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

    def is_rounding(self) -> bool:
        """Whether all that an engine is off by is as small as float32's rounding."""
        whole = self.coverage is None or self.coverage == 1.0
        return whole and all(off is None or off < SINGLE for off in (self.loop, self.repeated, self.halved))

    def failure(self, dtype: torch.dtype) -> str | None:
        """What is wrong with an engine that ran in this precision; None where nothing is."""
        if self.coverage is not None and self.coverage < 1.0:
            return f"reaches {self.coverage:.1%} of the parameters (not those of {', '.join(self.uncovered)})"
        agrees, repeats = AGREES.get(dtype, 0.2), REPEATS.get(dtype, 0.2)
        for off, bound, against in (
            (self.loop, agrees, "the per-row loop"),
            (self.repeated, repeats, "itself on the same batch"),
            (self.halved, repeats, "itself in another batch size"),
        ):
            if off is not None and not off <= bound:
                return f"is off from {against} by {off:.1e} of a row's size (at most {bound:.0e})"
        return None


def compare(found: Checked, point: Point, outputs: Outputs, x: Tensor, u: dict[str, Tensor]) -> None:
    """Note in ``found`` how far ``outputs`` of rows x along u are from the loop and from themselves."""
    z, t = outputs(x)
    v = torch.randn(t.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(t.device)
    expected, logits = loop(point, x, v, u)
    most = torch.finfo(point.dtype).max
    # where the loop is not finite nothing is known, and near overflow no two ways agree; an engine that gives no
    # finite number where the loop does is wrong
    known = expected.abs() < most**0.5
    found.rows = int(known.sum())
    if found.rows == 0:
        return
    t = t.double()
    s, sizes = (v * t).sum(1), (v * t).abs().sum(1)
    sizes = torch.maximum(sizes, expected.abs())[known]
    scale = sizes.clamp(min=float(sizes.median())).clamp(min=torch.finfo(torch.float64).tiny)

    def off(other: Tensor) -> float:
        return float(((s - other)[known].abs() / scale).max())

    agrees = AGREES.get(point.dtype, 0.2)
    if not agree(z.double(), logits, agrees, most):
        found.loop = float("inf")
        return
    found.repeated = off((v * outputs(x)[1].double()).sum(1))
    cut = -(-len(x) // 2)
    halves = torch.cat([(w * outputs(part)[1].double()).sum(1) for part, w in _halves(x, v, cut)])
    # rounding, which depends on the batch size, may take a row over the kink of a ReLU: there it is held against
    # the derivative at the values that it had
    places = known.nonzero().flatten()
    odd = places[((s - expected)[known].abs() / scale) > agrees]
    expected = _at_kinks(point, x, v, u, s, expected, odd)
    odd = places[((s - halves)[known].abs() / scale) > REPEATS.get(point.dtype, 0.2)]
    if len(odd):
        apart = torch.cat([_within(point, part, w, u) for part, w in _halves(x, v, cut)])
        right = (halves - apart)[odd].abs() / scale[torch.searchsorted(places, odd)] <= agrees
        halves[odd[right]] = s[odd[right]]
    found.halved, found.loop = off(halves), off(expected)


def _halves(x: Tensor, v: Tensor, cut: int) -> list[tuple[Tensor, Tensor]]:
    return [(part, w) for part, w in ((x[:cut], v[:cut]), (x[cut:], v[cut:])) if len(part)]


def _at_kinks(
    point: Point, x: Tensor, v: Tensor, u: dict[str, Tensor], s: Tensor, expected: Tensor, rows: Tensor
) -> Tensor:
    """What is expected [b], with the derivatives inside the batch in those of ``rows`` where they are nearer."""
    if not len(rows):
        return expected
    found, inside = expected.clone(), _within(point, x, v, u)
    nearer = rows[(s - inside)[rows].abs() < (s - expected)[rows].abs()]
    found[nearer] = inside[nearer]
    return found


def _within(point: Point, x: Tensor, v: Tensor, u: dict[str, Tensor]) -> Tensor:
    """As ``loop``, with the forward pass of the whole batch: < grad <v_i, z_i>, u > of every row, float64 [b]."""
    own = point.leaves()
    found: list[Tensor] = []
    with torch.enable_grad(), differentiable_kernels(point.recurrent):
        z, parameters = point.logits(x, own), list(own.values())
        for row, weights in zip(z, v.to(z), strict=True):
            gradients = torch.autograd.grad((row * weights).sum(), parameters, allow_unused=True, retain_graph=True)
            terms = [_dot(g, u[n]) for n, g in zip(own, gradients, strict=True) if g is not None]
            found.append(torch.stack(terms).sum() if terms else v.new_zeros(()))
    return torch.stack(found).detach()


def loop(point: Point, x: Tensor, v: Tensor, u: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """< grad <v_i, z_i>, u > for every row, one backward pass each, float64 [b]; and the logits [b, C].

    Raises:
        RuntimeError: no row's logits depend on any selected parameter.
    """
    own = point.leaves()
    found: list[Tensor] = []
    logits: list[Tensor] = []
    reached = False
    with torch.enable_grad(), differentiable_kernels(point.recurrent):
        for row, weights in zip(x.split(1), v.to(point.dtype).split(1), strict=True):
            z = point.logits(row, own)
            value, parameters = (z * weights).sum(), list(own.values())
            gradients = torch.autograd.grad(value, parameters, allow_unused=True) if z.requires_grad else ()
            terms = [_dot(g, u[n]) for n, g in zip(own, gradients) if g is not None]  # noqa: B905
            found.append(torch.stack(terms).sum() if terms else v.new_zeros(()))
            logits.append(z.detach().double())
            reached |= bool(terms)
    if not reached:
        raise RuntimeError("no logit depends on any selected parameter")
    return torch.stack(found), torch.cat(logits)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two tensors, summed in float64 [].

    Products of float32 are summed by rows of at most 4,096 in float32 first: copies in float64 would take longer than
    the backward pass that they check, and what is checked is allowed a thousand times the difference.
    """
    a, b = a.flatten(), b.flatten()
    if a.dtype != torch.float32 or len(a) <= ROW:
        return a.double() @ b.double()
    whole = len(a) - len(a) % ROW
    rows = torch.linalg.vecdot(a[:whole].view(-1, ROW), b[:whole].view(-1, ROW))
    return rows.double().sum() + a[whole:].double() @ b[whole:].double()
