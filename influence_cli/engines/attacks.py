"""Attacked inputs: x' near x that a model gets wrong.  x' is a constant: no gradient runs through how it was made.

With z(x) the logits, k the predicted class, and w_k - w_c the slope of z_k - z_c in x,

    linear  x' = x - kappa (z_k - z_c) / |w_k - w_c|^2 (w_k - w_c),  c the class whose boundary is nearest
    fgsm    x' = clip(x + eps sign(grad_x l))                                       (Goodfellow et al., 1412.6572)
    pgd     d <- clip(d + step sign(grad_x l(x + d)), -eps, eps), x' = clip(x + d)  (Madry et al., 1706.06083)

``linear`` makes the margin z_k - z_c of a linear model (1 - kappa) times what it was, so that above 1 it flips the
prediction, whether that was right or wrong (Chhabra et al. 2024); with two classes it is their rule.  Images are
attacked as they were decoded, in [0, 1], before mean and sd, and are clipped to that range; features in the model's
own units.  What a row becomes depends on it, its label, the model and the seed, never on the rows beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from influence_cli.data.kinds.protocol import ANY_NUMBER
from influence_cli.errors import ModelError, UsageError
from influence_cli.model.losses import CROSS_ENTROPY, RowLoss
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import setting
from influence_cli.store.keys import Keys

if TYPE_CHECKING:
    from torch import Tensor, nn

ATTACKS = ("auto", "linear", "fgsm", "pgd")


@dataclass(frozen=True)
class Attack:
    """How inputs are attacked; ``auto`` is ``linear`` for a linear model of features, otherwise ``pgd``."""

    attack: str = setting("auto", "auto, linear, fgsm or pgd")
    kappa: float = setting(1.3, "linear: 1 lands on the boundary, more flips the prediction")
    label_aware: bool = setting(False, "linear: leave alone what is predicted wrong already")
    eps: float | None = setting(
        None, "largest change of a value; without one 8/255 for images (in [0, 1]), 0.1 for features"
    )
    steps: int = setting(10, "pgd: number of steps")
    step: float | None = setting(None, "pgd: length of a step; without one 2.5 eps / steps")
    random_start: bool = setting(True, "pgd: start at a random point of the box")

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise ValueError(f"attack {self.attack!r} is unknown: one of {', '.join(ATTACKS)}")
        for name, value in (("kappa", self.kappa), ("eps", self.eps), ("step", self.step), ("steps", self.steps)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value:g} and must be positive")

    def kind(self, spec: ModelSpec) -> str:
        """The attack on such a model, with ``auto`` decided."""
        if self.attack != "auto":
            return self.attack
        return "linear" if spec.name == "linear" and spec.payload_kind.bounds == ANY_NUMBER else "pgd"

    def box(self, spec: ModelSpec) -> float:
        """The largest change of a value."""
        return spec.payload_kind.largest_change if self.eps is None else self.eps

    def describe(self, spec: ModelSpec, seed: int) -> dict[str, Any]:
        """What of it decides x' for such a model: what goes into a fingerprint."""
        kind = self.kind(spec)
        if kind == "linear":
            return {"attack": kind, "kappa": self.kappa, "label_aware": self.label_aware}
        eps = self.box(spec)
        if kind == "fgsm":
            return {"attack": kind, "eps": eps}
        step = 2.5 * eps / self.steps if self.step is None else self.step
        start = seed if self.random_start else None
        return {"attack": kind, "eps": eps, "steps": self.steps, "step": step, "start": start}


def attack(
    model: nn.Module,
    spec: ModelSpec,
    how: Attack,
    decoded: Tensor,
    labels: Tensor,
    keys: Keys,
    *,
    seed: int = 0,
    loss: RowLoss = CROSS_ENTROPY,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Attacked rows x' [n, ...], as decoded, in the model's precision; ``attacked_input`` makes the model's input.

    ``model`` is in evaluation mode; ``keys`` [n, 16] are the rows' keys, from which pgd draws its starts; ``names``
    are for messages.

    Raises:
        ModelError: the inputs are integers, the output is not logits, ``linear`` on a model that is not, or a row
            that is not finite.
        UsageError: a row leaves the valid range.
    """
    import torch

    from influence_cli.engines.linear_attack import over_the_boundary

    x = _plain(model, spec, decoded)
    kind, facts = how.kind(spec), how.describe(spec, seed)
    low, high = spec.payload_kind.bounds
    slope = functools.partial(_slope, model, spec, labels=labels, loss=loss)
    with _kernels(model):
        if kind == "linear":
            logits = functools.partial(_logits, model, spec)
            moved = over_the_boundary(logits, x, labels, how.kappa, how.label_aware, spec.name)
        elif kind == "fgsm":
            moved = (x + facts["eps"] * slope(x).sign()).clamp(low, high)
        else:
            start = x
            if facts["start"] is not None:
                start = (x + _starts(keys, x, facts["start"], facts["eps"])).clamp(low, high)
            moved = _pgd(slope, x, start, facts, low, high)
    finite, inside = moved.isfinite().flatten(1).all(1), ((moved >= low) & (moved <= high)).flatten(1).all(1)
    if not bool((finite & inside).all()):
        worst = int(torch.nonzero(~(finite & inside))[0])
        raise _refused(bool(finite[worst]), kind, f"row {worst} of the batch" if names is None else names[worst])
    return moved.detach()


def attacked_input(attacked: Tensor, spec: ModelSpec) -> Tensor:
    """The model's input of what ``attack`` gives: images less the mean, by the sd, as ``to_input`` makes them."""
    return spec.payload_kind.normalised(attacked, spec)


def _plain(model: nn.Module, spec: ModelSpec, decoded: Tensor) -> Tensor:
    """Rows in the model's precision: pixels in [0, 1], or features."""
    from influence_cli.model.named_tensors import NamedTensors

    for name, module in model.named_modules():
        if module.training:
            raise ModelError(f"module {name or 'model'} is in training mode", fix="call model.eval()")
    fix = "attack images or features, or leave the objective robustness out"
    if isinstance(decoded, NamedTensors):
        raise ModelError("inputs of several tensors cannot be attacked by small steps", fix=fix)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), decoded.dtype)
    values = spec.payload_kind.as_numbers(decoded, dtype)
    if not values.is_floating_point():
        raise ModelError(f"inputs of {decoded.dtype} cannot be attacked by small steps", fix=fix)
    return values


def _kernels(model: nn.Module) -> Any:
    """Kernels that score rows too: attention and recurrent layers in evaluation mode have a backward pass there."""
    from torch import nn

    from influence_cli.engines.point import differentiable_kernels

    return differentiable_kernels(any(isinstance(m, nn.RNNBase) for m in model.modules()))


def _logits(model: nn.Module, spec: ModelSpec, x: Tensor) -> Tensor:
    """Logits [n, C] of rows as they were decoded."""
    from torch import Tensor

    out = model(attacked_input(x, spec))
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(x):
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ModelError(f"the model's output is {shape}, not logits [n, C]", fix="give a classifier")
    return out


def _slope(model: nn.Module, spec: ModelSpec, x: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
    """The gradient of every row's loss in x [n, ...]."""
    import torch

    with torch.enable_grad():
        at = x.detach().requires_grad_()
        total = loss.rows(_logits(model, spec, at), labels).sum()
        (slope,) = torch.autograd.grad(total, at, materialize_grads=True)
    return slope


def _pgd(
    slope: Callable[[Tensor], Tensor], x: Tensor, start: Tensor, facts: dict[str, Any], low: float, high: float
) -> Tensor:
    """Steps along the sign of the slope, each projected into the box around x and into the valid range."""
    eps, now = facts["eps"], start
    for _ in range(facts["steps"]):
        now = (x + ((now - x) + facts["step"] * slope(now).sign()).clamp(-eps, eps)).clamp(low, high)
    return now


def _starts(keys: Keys, x: Tensor, seed: int, eps: float) -> Tensor:
    """A point of the box [-eps, eps] for every row, drawn by its key: the same bits on every device."""
    import torch

    from influence_cli.maths.hashed_draws import hashed_uniform, stream_key

    rows: list[Tensor] = []
    for key in keys:
        number = stream_key(f"{seed}:".encode() + key.tobytes(), "start")
        bits = hashed_uniform(number, x[0].numel(), x.device)
        rows.append(((bits.double() + 0.5) * 2.0**-31 - 1.0).view(x.shape[1:]))
    return (eps * torch.stack(rows)).to(x.dtype)


def _refused(finite: bool, kind: str, name: str) -> Exception:
    """What is wrong with an attacked row."""
    if not finite:
        return ModelError(f"the attacked input of {name} is not finite", fix="see that the checkpoint's logits are")
    return UsageError(
        f"the attack {kind} takes {name} out of the range of an image, [0, 1]",
        fix="pass --set robustness.attack=pgd (or fgsm), which stay inside",
    )
