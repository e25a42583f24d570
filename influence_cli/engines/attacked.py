"""Attacked inputs: x' near x that a model gets wrong.  x' is a constant: no gradient runs through how it was made.

With z(x) the logits, k the predicted class, and w_k - w_c the slope of z_k - z_c in x,

    linear  x' = x - kappa (z_k - z_c) / |w_k - w_c|^2 (w_k - w_c),  c the class whose boundary is nearest
    fgsm    x' = clip(x + eps sign(grad_x l))                                       (Goodfellow et al., 1412.6572)
    pgd     d <- clip(d + step sign(grad_x l(x + d)), -eps, eps), x' = clip(x + d)  (Madry et al., 1706.06083)

``linear`` makes the margin z_k - z_c of a linear model (1 - kappa) times what it was, so that above 1 it flips the
prediction, whether that was right or wrong (Chhabra et al. 2024); with two classes it is their rule.  Images are
attacked as they were decoded, in [0, 1], before mean and sd, and are clipped to that range; features in the model's
own units; texts by their embeddings (``attacked_texts``).  What a row becomes depends on it, its label, the model and
the seed, never on the rows beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from influence_cli.data.kinds.protocol import ANY_NUMBER
from influence_cli.data.kinds.text import CHANGE
from influence_cli.engines.attacked_texts import attack_texts
from influence_cli.engines.attacks import Attack
from influence_cli.engines.point import as_logits, check_evaluation_mode, differentiable_kernels, is_recurrent
from influence_cli.errors import ModelError, UsageError
from influence_cli.maths.hashed_draws import hashed_uniform, stream_key
from influence_cli.model.losses import CROSS_ENTROPY, RowLoss
from influence_cli.model.named_tensors import Inputs, NamedTensors, as_argument, as_rows
from influence_cli.model.spec import ModelSpec
from influence_cli.store.keys import Keys

AFFINE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest logit: rounding, and no curvature
Logits = Callable[[Tensor], Tensor]


def attack(
    model: nn.Module,
    spec: ModelSpec,
    how: Attack,
    decoded: Inputs,
    labels: Tensor,
    keys: Keys,
    *,
    seed: int = 0,
    loss: RowLoss = CROSS_ENTROPY,
    names: Sequence[str] | None = None,
) -> Any:
    """Attacked rows x' [n, ...], as decoded, in the model's precision; ``attacked_input`` makes the model's input.

    Of texts they are the rows with the change of their embeddings.

    ``model`` is in evaluation mode; ``keys`` [n, 16] are the rows' keys, from which pgd draws its starts; ``names``
    are for messages.

    Raises:
        ModelError: the inputs are integers, the output is not logits, ``linear`` on a model that is not, or a row
            that is not finite.
        UsageError: a row leaves the valid range.
    """
    kind, facts = how.kind(spec), how.describe(spec, seed)
    check_evaluation_mode(model)
    if spec.payload_kind.ragged:
        changed = attack_texts(model, spec, facts, decoded, labels, keys, loss)
        _check(changed.tensors[CHANGE], kind, ANY_NUMBER, names)
        return changed
    x = _plain(model, spec, decoded)
    low, high = spec.payload_kind.bounds
    slope = functools.partial(_slope, model, spec, labels=labels, loss=loss)
    with differentiable_kernels(is_recurrent(model)):  # the kernels that score rows have a backward pass
        if kind == "linear":
            logits = functools.partial(_logits, model, spec)
            moved = _over_the_boundary(logits, x, labels, how.kappa, how.label_aware, spec.name)
        elif kind == "fgsm":
            moved = (x + facts["eps"] * slope(x).sign()).clamp(low, high)
        else:
            moved, eps = x, facts["eps"]
            if facts["start"] is not None:
                moved = (x + _starts(keys, x, facts["start"], eps)).clamp(low, high)
            for _ in range(facts["steps"]):
                moved = (x + ((moved - x) + facts["step"] * slope(moved).sign()).clamp(-eps, eps)).clamp(low, high)
    _check(moved, kind, (low, high), names)
    return moved.detach()


def attacked_input(attacked: Any, spec: ModelSpec) -> Any:
    """The model's input of what ``attack`` gives: images less the mean, by the sd, as ``to_input`` makes them."""
    return as_rows(spec.payload_kind.of_attacked(as_argument(attacked), spec))


def _check(moved: Tensor, kind: str, bounds: tuple[float, float], names: Sequence[str] | None) -> None:
    """Raises ModelError: a row is not finite; UsageError: it is out of its bounds."""
    low, high = bounds
    finite, inside = moved.isfinite().flatten(1).all(1), ((moved >= low) & (moved <= high)).flatten(1).all(1)
    if not bool((finite & inside).all()):
        worst = int(torch.nonzero(~(finite & inside))[0])
        raise _refused(bool(finite[worst]), kind, f"row {worst} of the batch" if names is None else names[worst])


def _plain(model: nn.Module, spec: ModelSpec, decoded: Inputs) -> Tensor:
    """Rows in the model's precision: pixels in [0, 1], or features."""
    fix = "attack images, features or texts, or leave the objective robustness out"
    if isinstance(decoded, NamedTensors):
        raise ModelError("inputs of several tensors cannot be attacked by small steps", fix=fix)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), decoded.dtype)
    values = spec.payload_kind.to_attack(decoded, spec, dtype)
    if not values.is_floating_point():
        raise ModelError(f"inputs of {decoded.dtype} cannot be attacked by small steps", fix=fix)
    return values


def _logits(model: nn.Module, spec: ModelSpec, x: Tensor) -> Tensor:
    """Logits [n, C] of rows as they were decoded."""
    return as_logits(model(attacked_input(x, spec)), len(x))


def _slope(model: nn.Module, spec: ModelSpec, x: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
    """The gradient of every row's loss in x [n, ...]."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        total = loss.rows(_logits(model, spec, at), labels).sum()
        (slope,) = torch.autograd.grad(total, at, materialize_grads=True)
    return slope


def _starts(keys: Keys, x: Tensor, seed: int, eps: float) -> Tensor:
    """A point of the box [-eps, eps] for every row, drawn by its key: the same bits on every device."""
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


# -- a linear model: logits are z = W x + b --------------------------------------------------------------------------


def _over_the_boundary(logits: Logits, x: Tensor, labels: Tensor, kappa: float, label_aware: bool, name: str) -> Tensor:
    """Rows x - kappa (z_k - z_c) / |w_k - w_c|^2 (w_k - w_c), k the predicted class and c that of the nearest boundary.

    ``label_aware`` leaves alone rows that are predicted wrong; ``name`` is the model's, for messages.

    Raises:
        ModelError: the model is not linear, or its logits do not depend on the input.
    """
    weight = _weight(logits, x, name)
    with torch.no_grad():
        z = logits(x)
        k = z.argmax(1)
        slopes = weight.flatten(1)
        distance = torch.stack([(own - slopes).norm(dim=1) for own in slopes])  # |w_k - w_c| [C, C]
        margin = z.gather(1, k[:, None]) - z
        away = margin / distance[k]
        away[distance[k] == 0] = float("inf")  # the class itself, and one with the same slope: no boundary with it
        c = away.argmin(1)
        rows = torch.arange(len(x), device=x.device)
        if not bool(away[rows, c].isfinite().all()):
            raise ModelError("the logits do not depend on the input", fix="give a trained checkpoint")
        size = kappa * margin[rows, c] / distance[k, c] ** 2
        if label_aware:
            size = size * (k == labels)
        return x - (size[:, None] * (slopes[k] - slopes[c])).view(x.shape)


def _weight(logits: Logits, x: Tensor, name: str) -> Tensor:
    """W [C, ...], after seeing on these rows and on random ones that the logits are W x + b."""
    with torch.enable_grad():
        origin = torch.zeros_like(x[:1]).requires_grad_()
        bias = logits(origin)[0]
        weight = torch.stack([torch.autograd.grad(b, origin, retain_graph=True)[0][0] for b in bias])
    with torch.no_grad():
        draws = hashed_uniform(0, 8 * x[0].numel(), x.device).to(x.dtype) * 2.0**-31 - 1.0
        probes = torch.cat([x, draws.view(8, *x.shape[1:]) * x.abs().max().clamp(min=1.0)])
        z = logits(probes)
        off = (z - bias - probes.flatten(1) @ weight.flatten(1).T).abs().max()
        if not bool(off <= AFFINE.get(x.dtype, 1e-2) * z.abs().max()):
            raise ModelError(
                f"the attack linear needs a linear model, and {name} is not",
                fix="pass --set robustness.attack=pgd (or fgsm)",
            )
    return weight.detach()
