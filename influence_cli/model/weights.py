"""Weights out of files and into a model: nested keys, wrapper prefixes, and errors that name tensors and shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from influence_cli.errors import DamagedModel, ModelError
from influence_cli.model.checkpoints import Checkpoint

# where training scripts put the state dict, best first; EMA weights only where there is nothing else
NESTED = ("state_dict", "model_state_dict", "model", "net", "params", "state_dict_ema", "model_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "classifier.", "ema.")
SHOWN = 5


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The state dict in a checkpoint; torch files are read as data only, never unpickled into code.

    Raises:
        ModelError: it holds no state dict, or needs code to be read.
    """
    if checkpoint.files[0].suffix == ".safetensors":
        try:
            return {name: value for file in checkpoint.files for name, value in load_file(file).items()}
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            what = f"the checkpoint cannot be read ({error})"
            raise DamagedModel(what, where=checkpoint.locator, fix="copy it again") from error
    try:
        loaded = torch.load(checkpoint.files[0], map_location="cpu", weights_only=True)
    except Exception as error:
        fix = "save model.state_dict() with torch.save, or as safetensors; pickled code is never run"
        raise ModelError("the checkpoint cannot be read as data", where=checkpoint.locator, fix=fix) from error
    found = _state_dict(loaded)
    if found is None:
        held = f"it holds {', '.join(map(str, list(loaded)[:SHOWN]))}" if isinstance(loaded, dict) else "it is no dict"
        what = f"no state dict in the checkpoint: {held}"
        raise ModelError(what, where=checkpoint.locator, fix="save model.state_dict()")
    return found


def _state_dict(loaded: Any, depth: int = 0) -> dict[str, Tensor] | None:
    """The first dict of tensors by name, at the top or under one of the usual keys, up to three deep."""
    if not isinstance(loaded, dict) or depth > 3:
        return None
    if loaded and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        return loaded
    inner = (_state_dict(loaded.get(key), depth + 1) for key in NESTED)
    return next((found for found in inner if found is not None), None)


def without_prefix(weights: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The weights under the names that the model uses: wrapper prefixes are taken off while that fits more names.

    Names outside a prefix that is taken off (a loss or a metric beside the model) are left out.
    """
    wanted, best, frontier = set(expected), weights, [weights]
    while frontier and not wanted <= best.keys():
        current = frontier.pop()
        for prefix in PREFIXES:
            inner = {k.removeprefix(prefix): v for k, v in current.items() if k.startswith(prefix)}
            frontier += [inner] if inner else []
            best = max(best, inner, key=lambda named: len(wanted & named.keys()))  # the first of two as good
    return best


def load_weights(model: nn.Module, checkpoint: Checkpoint, name: str) -> nn.Module:
    """The model with a checkpoint's weights, in evaluation mode.

    Raises:
        ModelError: the checkpoint does not fit; names tensors, expected and found shapes.
    """
    expected = model.state_dict()
    weights = without_prefix(read_weights(checkpoint), expected)
    misfit = _misfit(expected, weights, checkpoint, name)
    if misfit is not None:
        raise misfit
    _refuse_not_finite(model, weights, checkpoint)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _refuse_not_finite(model: nn.Module, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """No parameter is infinite or NaN, and no buffer NaN (masks may hold infinities): every score would be NaN."""
    parameters = {name for name, _ in model.named_parameters()}
    for name, value in weights.items():
        if not value.is_floating_point():
            continue
        bad = ~torch.isfinite(value) if name in parameters else torch.isnan(value)
        if bool(bad.any()):
            what = f"{int(bad.sum())} of the {value.numel()} values of {name} are not finite"
            fix = "copy it again, or train again with a lower --lr"
            why = "the training diverged, or the file is damaged"
            raise ModelError(f"{what}: {why}", where=checkpoint.locator, fix=fix)


def _misfit(
    expected: dict[str, Tensor], weights: dict[str, Tensor], checkpoint: Checkpoint, name: str
) -> ModelError | None:
    """Why weights do not fit a model; None where they do."""
    # BatchNorm's batch counter is not used in evaluation mode, and old files lack it
    missing = [k for k in expected if k not in weights and not k.endswith("num_batches_tracked")]
    strange = [k for k in weights if k not in expected]
    other = [k for k in expected if k in weights and expected[k].shape != weights[k].shape]
    if not (missing or strange or other):
        return None
    if other and not missing and not strange and _only_head(expected, weights, other):
        found, wanted = weights[other[0]].shape[0], expected[other[0]].shape[0]
        what = f"the checkpoint's classifier has {found} outputs, the model is built for {wanted} classes"
        fix = f"pass --num-classes {found}, or train a classifier for {wanted} classes"
        fix += ": influence retrain --init CHECKPOINT --num-classes ..."
        return ModelError(what, where=f"{checkpoint.locator}, {other[0]}", fix=fix)
    lines = [f"{k} expected but missing" for k in missing] + [f"{k} found but not expected" for k in strange]
    lines += [f"{k}: expected {tuple(expected[k].shape)}, found {tuple(weights[k].shape)}" for k in other]
    shown = "; ".join(lines[:SHOWN]) + (f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
    fix = "pass the architecture that was trained (--model, --num-classes, --input-size)"
    return ModelError(f"the checkpoint does not fit {name}: {shown}", where=checkpoint.locator, fix=fix)


def _only_head(expected: dict[str, Tensor], weights: dict[str, Tensor], other: list[str]) -> bool:
    """Whether the tensors of other shape differ in their first dimension alone, all in the same way, in one module."""
    same = {(expected[k].shape[0], weights[k].shape[0]) for k in other}
    inner = all(expected[k].shape[1:] == weights[k].shape[1:] for k in other)
    return inner and len(same) == 1 and len({k.rpartition(".")[0] for k in other}) == 1
