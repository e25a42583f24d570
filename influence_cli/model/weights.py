"""Weights out of files and into a model: nested keys, wrapper prefixes, and errors that name tensors and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from influence_cli.errors import DamagedModel, ModelError
from influence_cli.events import SILENT, Listener
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.plain_data import plain_data
from influence_cli.model.torch_files import NESTED, find_state_dict, refused_code

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "classifier.", "ema.")
PROFILERS = ("total_ops", "total_params")  # last parts of names that thop leaves in a model that it has counted
SHOWN = 5
PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # whose least and greatest torch finds


def read_weights(checkpoint: Checkpoint, listener: Listener = SILENT) -> dict[str, Tensor]:
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
    with torch.serialization.safe_globals(plain_data()):
        try:
            loaded = torch.load(checkpoint.files[0], map_location="cpu", weights_only=True)
        except Exception as error:
            raise _unreadable(checkpoint, error) from error
    found = find_state_dict(loaded, Tensor)
    if found is None:
        held = f"it holds {', '.join(map(str, list(loaded)[:SHOWN]))}" if isinstance(loaded, dict) else "it is no dict"
        what = f"no state dict in the checkpoint: {held}"
        raise ModelError(what, where=checkpoint.locator, fix="save model.state_dict()")
    taken = found[1][:1]
    beside = [k for k in NESTED if taken and k != taken[0] and find_state_dict(loaded.get(k), Tensor) is not None]
    if beside:
        listener.note(
            f"the checkpoint holds several weights: {taken[0]} is taken, not {', '.join(beside)} (to take that: "
            f"torch.save(torch.load({checkpoint.files[0].name!r})[{beside[0]!r}], 'weights.pt'))"
        )
    return found[0]


def _unreadable(checkpoint: Checkpoint, error: Exception) -> ModelError:
    """Why torch does not read a file; of one of before torch 1.6 only torch says which code it asks for."""
    file, where = checkpoint.files[0], checkpoint.locator
    named = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if named:
        found = refused_code(named[:1], None, file.name, where)
        found.fix = "where you trust the file, load it with weights_only=False and save its state dict alone"
        return found
    said = re.search(r"WeightsUnpickler error: (.+)", str(error))
    why = said[1][:200] if said else "it is damaged, or no file that torch.save wrote"
    why = str(error.strerror) if isinstance(error, OSError) else why
    fix = "save model.state_dict() with torch.save, or as safetensors; pickled code is never run"
    return ModelError(f"the checkpoint cannot be read as data ({why})", where=where, fix=fix)


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


def without_counts(weights: dict[str, Tensor], expected: Iterable[str]) -> tuple[dict[str, Tensor], int]:
    """The weights without what a profiler left among them, and how many those are."""
    wanted = set(expected)
    left = {k for k in weights if k.rpartition(".")[2] in PROFILERS and k not in wanted}
    return {k: v for k, v in weights.items() if k not in left}, len(left)


def with_weight_norm(weights: dict[str, Tensor], expected: Iterable[str]) -> tuple[dict[str, Tensor], int]:
    """The weights with each pair (g, v) of weight norm as the model holds it, and how many were made one weight.

    torch has two forms of it, ``weight_g`` with ``weight_v`` and a parametrization; a model without weight norm has
    the product w = g v / |v|, which is the same function.
    """
    wanted, found, folded = set(expected), dict(weights), 0
    for g, v, old, new, plain in list(_pairs(weights)):
        held = next((pair for pair in (old, new) if pair[0] in wanted), None)
        if g in wanted or (held is None and plain not in wanted):
            continue
        scale, direction = found.pop(g), found.pop(v)
        if held is not None:
            found |= dict(zip(held, (scale, direction), strict=True))
        else:
            own = {k for k, many in enumerate(scale.shape) if many > 1}
            over = [k for k in range(direction.ndim) if k not in own]
            size = torch.linalg.vector_norm(direction, dim=over or None, keepdim=scale.ndim > 0)
            found[plain] = direction * (scale / size)
            folded += 1
    return found, folded


def _pairs(weights: dict[str, Tensor]) -> Iterable[tuple[str, str, tuple[str, str], tuple[str, str], str]]:
    """(g, v) as a file names them, and what the old form, the new form and the plain weight are called."""
    for name in weights:
        before, dot, last = name.rpartition(".")
        if last.endswith("_g"):
            plain, other = last[:-2], f"{before}{dot}{last[:-2]}_v"
        elif last == "original0":
            before, _, plain = before.rpartition(".")
            before = before.removesuffix("parametrizations").removesuffix(".")
            dot, other = "." if before else "", name[:-1] + "1"
        else:
            continue
        if other in weights:
            start = f"{before}{dot}"
            new = (f"{start}parametrizations.{plain}.original0", f"{start}parametrizations.{plain}.original1")
            yield name, other, (f"{start}{plain}_g", f"{start}{plain}_v"), new, f"{start}{plain}"


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, name: str, listener: Listener = SILENT, without: str | None = None
) -> nn.Module:
    """The model with a checkpoint's weights, in evaluation mode; what is left out or made of others is said.

    Tensors whose names begin with ``without`` stay as the model has them.

    Raises:
        ModelError: the checkpoint does not fit; names tensors, expected and found shapes.
    """
    expected = model.state_dict()
    weights, counts = without_counts(without_prefix(read_weights(checkpoint, listener), expected), expected)
    weights, folded = with_weight_norm(weights, expected)
    if without is not None:
        kept = {k: v for k, v in expected.items() if k.startswith(without)}
        weights = {k: v for k, v in weights.items() if not k.startswith(without)} | kept
    refuse_other_numbers(expected, weights, checkpoint)
    misfit = _misfit(expected, weights, checkpoint, name)
    if misfit is not None:
        if without is not None:
            misfit.fix = "name the model that the weights are of: --features NAME"
        raise misfit
    refuse_not_finite(model, weights, checkpoint)
    model.load_state_dict(weights, strict=False)
    if counts:
        listener.note(f"{counts} values that a profiler left ({', '.join(PROFILERS)}) are no part of the weights")
    if folded:
        listener.note(f"weight norm of the checkpoint is multiplied out, as the model has none: {folded} weights")
    return model.eval()


def refuse_other_numbers(expected: dict[str, Tensor], weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Refuse weights that are quantised, sparse or not there, and integers or complex numbers for real ones."""
    for name, value in weights.items():
        wanted = expected.get(name)
        real = wanted is not None and wanted.is_floating_point() and not value.is_floating_point()
        if value.is_quantized:
            held, fix = "is quantised", "give the weights before they were quantised"
        elif value.device.type == "meta":
            held, fix = "is on the device meta, which holds no values", "save the model after it is loaded"
        elif value.layout != torch.strided:
            held, fix = f"is {str(value.layout).removeprefix('torch.')}", "save it dense: tensor.to_dense()"
        elif real:
            kind = str(value.dtype).removeprefix("torch.")
            held, fix = f"is {kind}, where the model has real numbers", "give the weights before they were converted"
        else:
            continue
        raise ModelError(f"{name} {held}", where=checkpoint.locator, fix=fix)


def refuse_not_finite(model: nn.Module, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """No parameter is infinite or NaN, and no buffer NaN (masks may hold infinities): every score would be NaN."""
    parameters = {name for name, _ in model.named_parameters()}
    for name, value in weights.items():
        if not value.is_floating_point() or value.numel() == 0:
            continue
        plain = value if value.dtype in PLAIN else value.float()
        ends = torch.stack(torch.aminmax(plain))  # one look at each value: NaN is both least and greatest
        if bool((torch.isfinite(ends) if name in parameters else ~torch.isnan(ends)).all()):
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
    if name == "linear" and sorted(k.rpartition(".")[2] for k in weights) == ["bias", "weight"]:
        fix = "call its weights as the model does: head.weight and head.bias"
    return ModelError(f"the checkpoint does not fit {name}: {shown}", where=checkpoint.locator, fix=fix)


def _only_head(expected: dict[str, Tensor], weights: dict[str, Tensor], other: list[str]) -> bool:
    """Whether the tensors of other shape differ in their first dimension alone, all in the same way, in one module."""
    same = {(expected[k].shape[0], weights[k].shape[0]) for k in other}
    inner = all(expected[k].shape[1:] == weights[k].shape[1:] for k in other)
    return inner and len(same) == 1 and len({k.rpartition(".")[0] for k in other}) == 1
