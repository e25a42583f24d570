"""The linear layer that makes a model's logits, found by running it: the order of definition says nothing of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

HEAD = "influence_head"  # attribute of a module: the name that was found, "" where no layer makes the logits


def logit_layer(model: nn.Module, x: Any) -> str | None:
    """The name of the last linear layer through which alone all parameters act on the logits of ``x``; None if none.

    A layer is it where the logits depend on no parameter once its output counts as given.
    """
    called: list[str] = []
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name)) for name, module in linears.items()
    ]
    real = {n: p.detach() for n, p in model.named_parameters() if p.is_floating_point()}
    try:
        with torch.no_grad():
            functional_call(model, real, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    own = {n: p.requires_grad_() for n, p in real.items()}
    for name in dict.fromkeys(reversed(called)):
        hook = linears[name].register_forward_hook(lambda _, __, out: out.detach())
        try:
            with torch.enable_grad():
                z = functional_call(model, own, (x,))
        finally:
            hook.remove()
        if isinstance(z, Tensor) and not z.requires_grad:
            return name
    return None
