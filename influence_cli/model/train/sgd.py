"""Training by hand: weighted cross-entropy, SGD or AdamW, a schedule, light augmentation, and paired randomness.

Or, for the linear model, to the exact optimum (``train.convex``).

Everything random about a row in an epoch (its place in the order, its augmentation) is a hash of (seed, epoch, id),
so taking a row out moves no other row in the order and changes no other row's augmentation.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from influence_cli.data.label_kinds import NUMBERS
from influence_cli.errors import ModelError
from influence_cli.maths.few_pixels import where_it_helps
from influence_cli.model.examples import Examples, to_input
from influence_cli.model.lean_imports import compiler_put_off
from influence_cli.model.losses import RowLoss, loss_of
from influence_cli.model.named_tensors import as_argument
from influence_cli.model.seeded import seed_draws
from influence_cli.model.train.among import Among, normalises_batches
from influence_cli.model.train.convex import train_convex
from influence_cli.model.train.epoch_values import EpochValues
from influence_cli.model.train.recipe import LBFGS, Recipe
from influence_cli.processes.group import Group

PREDICTED_ROWS, PREDICTED_TOKENS = 512, 8192  # at a time


def row_hashes(ids: Sequence[str], seed: int, epoch: int) -> NDArray[np.uint64]:
    """A 64-bit hash of (seed, epoch, id) for every row [n]."""
    salt = f"{seed}:{epoch}".encode()
    digests = [hashlib.blake2b(i.encode(), digest_size=8, key=salt).digest() for i in ids]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def epoch_order(ids: Sequence[str], seed: int, epoch: int) -> NDArray[np.int64]:
    """Order of the rows in an epoch: by hash, so that the order of any subset is that of the whole."""
    return np.lexsort((np.array(ids), row_hashes(ids, seed, epoch))).astype(np.int64)


def augment(pixels: Any, draws: NDArray[np.uint64], how: str) -> Any:
    """Pixels u8 [b, C, H, W] shifted by up to an eighth of the size (edges zero) and flipped, by each row's draw."""
    if how == "none" or not isinstance(pixels, Tensor) or pixels.ndim != 4:
        return pixels
    b, _, height, width = pixels.shape
    reach_y, reach_x = max(1, height // 8), max(1, width // 8)
    bits = draws.astype(np.uint64)
    dy = torch.from_numpy((bits >> np.uint64(8)).astype(np.int64) % (2 * reach_y + 1))
    dx = torch.from_numpy((bits >> np.uint64(24)).astype(np.int64) % (2 * reach_x + 1))
    padded = F.pad(pixels, (reach_x, reach_x, reach_y, reach_y))
    ys = dy[:, None] + torch.arange(height)
    xs = dx[:, None] + torch.arange(width)
    if how == "flip-shift":
        flipped = torch.from_numpy((bits & np.uint64(1)).astype(bool))
        xs = torch.where(flipped[:, None], xs.flip(1), xs)
    return padded[torch.arange(b)[:, None, None, None], torch.arange(pixels.shape[1])[None, :, None, None],
                  ys[:, None, :, None], xs[:, None, None, :]]  # fmt: skip


def _train_batches(
    data: Examples, keep: NDArray[np.int64], recipe: Recipe, seed: int, epoch: int, among: Among | None, last: int
) -> Iterator[Any]:
    """The batches of an epoch, of ``last`` of its rows in order."""
    ids = [data.ids[i] for i in keep.tolist()]
    draws = row_hashes(ids, seed, epoch)
    order = epoch_order(ids, seed, epoch)[:last]
    for first in range(0, len(order), recipe.batch_size):
        chosen = order[first : first + recipe.batch_size]
        every = keep[chosen]
        own = chosen if among is None else among.own(chosen)
        rows = keep[own]
        pixels = augment(data.at(rows), draws[own], recipe.augment)
        y, w = torch.from_numpy(data.labels[rows]), torch.from_numpy(data.weights[rows]).float()
        yield rows, pixels, y, w, (len(every), float(data.weights[every].sum()))


def train(
    model: nn.Module,
    data: Examples,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[int, int, float], None],
    seen: EpochValues | None = None,
    on_start: Callable[[torch.optim.Optimizer], None] | None = None,
    group: Group | None = None,
) -> int:
    """Train in place; returns the number of steps.  ``on_epoch(epoch, step, rate)`` is called after every epoch.

    ``seen`` is told the logits of every row in every epoch, and ``on_start`` the optimizer; they change nothing.  Every
    process of a ``group`` has its share of each batch.  The loss of a batch is sum w l / sum w; rows of weight 0 are
    left out.  With ``amp`` bf16 the forward and backward passes are torch's automatic mixed precision; weights, their
    updates and the loss stay in float32.

    Raises:
        ModelError: the loss stopped being finite, ``lbfgs`` did not reach the optimum, or there is nothing to train.
    """
    _check_trainable(model)
    if recipe.optimizer == LBFGS:
        steps = train_convex(model, data, recipe)
        on_epoch(0, steps, recipe.peak_lr)
        return steps
    keep, row_loss, few_pixels = np.flatnonzero(data.weights > 0), loss_of(data.spec), where_it_helps(model)
    model.to(device).train()
    among = _among(group, model, data, keep[:2], device)
    network, optimizer = model if among is None else among.model, _optimizer(model, recipe)
    if on_start is not None:
        on_start(optimizer)
    last = len(keep) - passes_over_one(model, recipe, len(keep))
    steps, step, mixed = math.ceil(last / recipe.batch_size) * recipe.epochs, 0, recipe.amp == "bf16"
    for epoch in range(recipe.epochs):
        seed_draws(seed * 100_003 + epoch + (0 if among is None else among.apart))  # dropout inside the model
        rate = 0.0
        for rows, values, y, w, whole in _train_batches(data, keep, recipe, seed, epoch, among, last):
            rate = recipe.rate(step, steps)
            _set_rate(optimizer, rate)
            alike = contextlib.nullcontext() if among is None else among.batch(whole[0])
            with few_pixels(), alike, torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                logits = network(as_argument(to_input(values.to(device), data.spec, torch.float32)))
            y, w = y.to(device), w.to(device)
            losses = row_loss.rows(logits.float() if mixed else logits, y)
            loss, of_batch = _mean_loss(losses, w) if among is None else among.loss(losses, w, *whole)
            _check_finite(of_batch, step, row_loss)
            _step(loss, optimizer)
            step += 1
            if seen is not None:
                seen.batch(rows, logits, losses)
        if seen is not None:
            seen.epoch()
        on_epoch(epoch, step, rate)
    if seen is not None:
        seen.flush()
    model.eval()
    return step


def passes_over_one(model: nn.Module, recipe: Recipe, rows: int) -> bool:
    """Whether each epoch over so many rows passes over one: a single last row, which BatchNorm cannot normalise.

    The model is in training mode.
    """
    return recipe.leaves_one(rows) and normalises_batches(model)


def _among(
    group: Group | None, model: nn.Module, data: Examples, few: NDArray[np.int64], device: torch.device
) -> Among | None:
    """The place of this process among those that train together; None where it is alone."""
    if group is None:
        return None
    return Among(group, model, device, as_argument(to_input(data.at(few).to(device), data.spec, torch.float32)))


def _mean_loss(losses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The loss that gradients are taken of, and that of the batch: the same."""
    loss = (weights * losses).sum() / weights.sum()
    return loss, loss


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _check_finite(loss: Tensor, step: int, of: RowLoss) -> None:
    """Refuse (ModelError) a loss that is not finite."""
    if torch.isfinite(loss):
        return
    scale = ", or scale the labels: numbers of mean 0 and sd 1 are easiest to learn" if of.holds == NUMBERS else ""
    raise ModelError(f"the training loss is not finite at step {step}", fix="lower --lr" + scale)


def _step(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    with compiler_put_off():
        optimizer.step()


def _check_trainable(model: nn.Module) -> None:
    """Refuse (ModelError) a model that training would leave as it is."""
    if not any(p.requires_grad for p in model.parameters()):
        what = "no parameter of the model is to be trained: requires_grad is off for all"
        raise ModelError(what, fix="call requires_grad_(True) on those that training is to move")


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    with compiler_put_off():  # what training calls of it is said to be not for the compiler when it is first called
        optimizer = _optimizer_of(model, recipe)
        optimizer.zero_grad()
    return optimizer


def _optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    arguments: dict[str, Any] = {"lr": recipe.peak_lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, **arguments)
    # one pass over the weights in place of a dozen, which takes as long as the backward pass of a small encoder
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in model.parameters())
    return torch.optim.AdamW(model.parameters(), fused=fused, **arguments)


def predict(model: nn.Module, data: Examples, device: torch.device) -> NDArray[np.float64]:
    """Logits [n, C] in evaluation mode, in the precision of the model's weights."""
    tokens = PREDICTED_TOKENS if data.spec.is_language else None
    model.to(device).eval()
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    places, out = list(data.batches(PREDICTED_ROWS, tokens)), list[NDArray[np.float64]]()
    with torch.no_grad(), where_it_helps(model)():
        for at in places:
            values = to_input(data.at(at).to(device), data.spec, dtype)
            out.append(model(as_argument(values)).double().cpu().numpy())
    found, order = np.concatenate(out), np.concatenate(places)
    logits = np.empty_like(found)
    logits[order] = found
    return logits
