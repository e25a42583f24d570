"""Which parameters gradients are taken in: all, linear, last, or a glob over their names; vectors of them; precision.

Frozen parameters (``requires_grad`` is off) are in none of these: training does not move them.  Where it is off for
all, the model is as people keep it for inference, and none counts as frozen.  A parameter that no output depends on has
gradient zero.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from influence_cli.errors import UsageError
from influence_cli.model.logit_layer import HEAD
from influence_cli.model.next_token import NextTokenLoss


def select_parameters(model: nn.Module, selection: str) -> dict[str, Tensor]:
    """Detached parameters by name, in model order; a tied tensor is listed once, under its first name.

    ``last`` is the layer that was seen to make the logits, the classifier as timm names it, or the last linear layer;
    ``linear`` is every nn.Linear.  Frozen parameters are left out of each.

    Raises:
        UsageError: the selection is empty.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if selection == "all":
        chosen = set(named)
    elif selection == "linear":
        chosen = {f"{m}.{p}" for m, layer in _linears(model) for p, _ in layer.named_parameters(recurse=False)}
    elif selection == "last":
        prefix = classifier_of(model)
        chosen = {n for n in named if n.startswith(prefix + ".")}
    else:
        chosen = {n for n in named if fnmatch.fnmatchcase(n, selection)}
    tensors = {id(named[n]) for n in chosen}  # a tied tensor is chosen by any of its names
    turned = [n for n in sorted(chosen) if named[n].is_complex() and named[n].requires_grad]
    if turned:
        fix = "select others; or hold it as real numbers, with torch.view_as_complex in the model's forward"
        raise UsageError(f"--params {selection!r} selects parameter {turned[0]!r}, which is complex", fix=fix)
    found = {n: p for n, p in model.named_parameters() if id(p) in tensors and p.is_floating_point()}
    frozen = set(frozen_parameters(model))
    out = {n: p.detach() for n, p in found.items() if n not in frozen and p.numel()}  # nothing to take a gradient in
    if found and not out:
        some = ", ".join(list(found)[:3]) + (" and others" if len(found) > 3 else "")
        what = f"every parameter that --params {selection!r} selects is frozen (requires_grad is off): {some}"
        raise UsageError(what, fix="select others, or call requires_grad_(True) on those that were trained")
    if not out:
        fix = f"names look like {next(iter(named))!r}" if named else "the model has no parameters"
        raise UsageError(f"--params {selection!r} selects no parameter", fix=fix)
    return out


def frozen_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that training does not move, in model order."""
    off = [n for n, p in model.named_parameters() if not p.requires_grad]
    return off if any(p.requires_grad for p in model.parameters()) else []


def pulled(
    outputs: Sequence[Tensor], own: Sequence[Tensor], cotangents: Sequence[Tensor | None], keep: bool = False
) -> list[Tensor]:
    """The gradient of the sum of <output, cotangent> (None: of a scalar itself) in each of ``own``.

    Zeros where nothing depends on it, which torch makes an error where no output depends on any.  With ``keep`` the
    graph is kept for another pass.
    """
    some = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not some:
        return [torch.zeros_like(p) for p in own]
    ends, along = [o for o, _ in some], [c for _, c in some]
    return list(torch.autograd.grad(ends, list(own), along, retain_graph=keep, materialize_grads=True))


def named_views(vector: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Views of a vector [d] by parameter name, in the order of ``shapes``."""
    parts = vector.split([shape.numel() for shape in shapes.values()])
    return {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}


def _linears(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Linear layers, that of a language model's output among them."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | NextTokenLoss)]


def classifier_of(model: nn.Module) -> str:
    """The name of the layer that ``last`` means.  Raises UsageError: there is none."""
    found = getattr(model, HEAD, None)  # of a model of the user's own, which has been run
    if found:
        return found
    linears = [name for name, _ in _linears(model)]
    if not linears:
        raise UsageError("--params last: the model has no linear layer", fix="pass a glob over parameter names")
    if found is not None:
        what = f"--params last: the logits are not made by one linear layer (there are {', '.join(linears[:5])})"
        raise UsageError(what, fix=f"name the parameters, such as --params '{linears[-1]}.*'")
    output = next((name for name, module in model.named_modules() if isinstance(module, NextTokenLoss)), None)
    if output is not None:
        return output
    get = getattr(model, "get_classifier", None)
    wanted = get() if callable(get) else None
    for name, module in model.named_modules():
        if module is wanted:
            return name
    return linears[-1]


def in_precision(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model, in place, with its real numbers in ``dtype`` and its complex ones in pairs of float64 or float32.

    ``Module.to`` would cast complex numbers to real ones, and drop the imaginary part.
    """
    if dtype is None:
        return model
    complex_ = torch.complex128 if dtype == torch.float64 else torch.complex64
    return model._apply(lambda t: t.to(dtype if t.is_floating_point() else complex_ if t.is_complex() else t.dtype))
