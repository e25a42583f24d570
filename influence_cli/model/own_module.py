"""Modules as people bring them: copied whatever they keep beside parameters, and without wrappers that hide them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from influence_cli.errors import ModelError

# by class: what is in the way, and what to give in its place
WRAPPERS = {
    "DataParallel": ("spreads every batch over devices", "give its .module"),
    "DistributedDataParallel": ("belongs to several processes", "give its .module"),
    "FullyShardedDataParallel": (
        "holds parts of its parameters alone",
        "load its full state dict into the plain module",
    ),
    "OptimizedModule": ("was made by torch.compile, which traces another use of it", "give its ._orig_mod"),
    "ScriptModule": ("is TorchScript, which does not run on tensors that carry derivatives", ""),
}
_SCRIPTED = "give the Python module that torch.jit made it from, with its state dict"


def refuse_wrappers(model: nn.Module) -> None:
    """Refuse a module that is, or holds, a wrapper in which its own modules cannot be told or run.

    Raises:
        ModelError: names it, and what to give in its place.
    """
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__]
        found = next((WRAPPERS[kind] for kind in kinds if kind in WRAPPERS), None)
        if found is not None:
            which = f"the model's module {name}" if name else "the model"
            what = f"{which} is a {type(module).__name__}, which {found[0]}"
            raise ModelError(what, fix=found[1] or _SCRIPTED)
    _refuse_without_values(model)


def _refuse_without_values(model: nn.Module) -> None:
    """Refuse a module whose parameters are not there, or are no tensors (ModelError)."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            what = f"the model's {name} is uninitialised: a lazy module has no shape before its first call"
            raise ModelError(what, fix="call the module once on a batch of rows, then give it")
        if value.device.type == "meta":
            what = f"the model's {name} is on the device meta, which holds no values"
            raise ModelError(what, fix="make the module on the cpu, and load its weights")
    for name, module in model.named_modules():
        if "quantized" in type(module).__module__.split("."):
            what = f"the model's module {name or 'itself'} is quantised: its weights are integers without gradients"
            raise ModelError(what, fix="give the model of floats that was quantised")


def copied(model: nn.Module) -> nn.Module:
    """A copy of a module, with its own parameters and buffers.

    torch copies no tensor that was computed from others and kept beside the parameters: such a one is copied by value.
    The weight that old-style weight norm and spectral norm compute before every call is one.

    Raises:
        ModelError: the module cannot be copied.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        anew = {getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()}
        for name, value in vars(module).items():
            if not isinstance(value, Tensor):
                continue
            if name in anew:  # computed before it is used
                memo[id(value)] = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
            elif not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        what = f"the model cannot be copied ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        raise ModelError(what, fix="give a function that makes the module, in place of the module") from error


def plain_module(model: nn.Module) -> nn.Module:
    """The module, which may be changed, without what ``Module.compile`` put in the place of its forward.

    Raises:
        ModelError: it is a wrapper (see ``refuse_wrappers``).
    """
    refuse_wrappers(model)
    for module in model.modules():
        module._compiled_call_impl = None
    return model
