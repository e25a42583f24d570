"""Which parameters gradients are taken in: all, linear, last, or a glob over their names; and vectors of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from influence_cli.errors import UsageError


def select_parameters(model: nn.Module, selection: str) -> dict[str, Tensor]:
    """Detached parameters by name, in model order; a tied tensor is listed once, under its first name.

    ``last`` is the classifier as timm names it, otherwise the last linear layer; ``linear`` is every nn.Linear.

    Raises:
        UsageError: the selection is empty.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if selection == "all":
        chosen = set(named)
    elif selection == "linear":
        chosen = {f"{m}.{p}" for m, layer in _linears(model) for p, _ in layer.named_parameters(recurse=False)}
    elif selection == "last":
        prefix = _classifier(model)
        chosen = {n for n in named if n.startswith(prefix + ".")}
    else:
        chosen = {n for n in named if fnmatch.fnmatchcase(n, selection)}
    tensors = {id(named[n]) for n in chosen}  # a tied tensor is chosen by any of its names
    out = {n: p.detach() for n, p in model.named_parameters() if id(p) in tensors and p.is_floating_point()}
    if not out:
        fix = f"names look like {next(iter(named))!r}" if named else "the model has no parameters"
        raise UsageError(f"--params {selection!r} selects no parameter", fix=fix)
    return out


def named_views(vector: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Views of a vector [d] by parameter name, in the order of ``shapes``."""
    parts = vector.split([shape.numel() for shape in shapes.values()])
    return {n: part.view(shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}


def _linears(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _classifier(model: nn.Module) -> str:
    get = getattr(model, "get_classifier", None)
    wanted = get() if callable(get) else None
    for name, module in model.named_modules():
        if module is wanted:
            return name
    linears = _linears(model)
    if not linears:
        raise UsageError("--params last: the model has no linear layer", fix="pass a glob over parameter names")
    return linears[-1][0]
