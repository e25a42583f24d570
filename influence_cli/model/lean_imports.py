"""What torch and torchvision would import for nobody's sake, left out of the start of a command.

Of the time that imports took in a command that scores a model of timm, a third went into two that nothing asks for:

- torch's compiler: torchvision's ``roi_align`` imports it for one function, which it calls on CUDA when algorithms have
  to be deterministic, and timm to say of a function that it is not to be compiled, as torch itself says of those of
  an optimizer.  Here it is imported when it is called.  ``torch.func`` imports it with the first gradient, to switch
  off what only it can have switched on.
- With the first operation on a tensor that dispatches by itself (``engines.dual``) torch looks up the class
  ``DTensor``, to see whether the tensor is one.  That imports sympy and every rule of ``torch.distributed.tensor``.
  Here it is shown a class that no tensor is of.

Where either has been imported before, it stays as it is; so does a program that is no command and calls us.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
from collections.abc import Callable, Generator, MutableSequence
from typing import Any

import torch

from influence_cli.memory import in_a_command

COMPILER, SHARDED = "torch._dynamo", "torch.distributed.tensor"
SHOWN = (COMPILER, f"{COMPILER}.utils")


def import_timm() -> Any:
    """The module ``timm``; torch's compiler, which it and torchvision would import, is put off."""
    with compiler_put_off():
        import timm

        return timm


def look_up_dtensor() -> None:
    """Have torch look up the class of sharded tensors now, and find one that no tensor is of."""
    if not in_a_command() or SHARDED in sys.modules:
        return
    shown = types.ModuleType(SHARDED)
    shown.__dict__["DTensor"] = type("DTensor", (), {})
    sys.modules[SHARDED] = shown
    try:
        torch.add(_Dispatching(torch.zeros(1)), 1)
    finally:
        if sys.modules.get(SHARDED) is shown:
            del sys.modules[SHARDED]


class _Dispatching(torch.Tensor):
    """The least tensor that dispatches by itself: it gives back a plain one."""

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> _Dispatching:
        return torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return torch.zeros(1)


@contextlib.contextmanager
def compiler_put_off() -> Generator[None]:
    """While something is imported or first called: torch's compiler, which it would import, comes when it is needed."""
    if not in_a_command() or COMPILER in sys.modules:
        yield
        return
    shown = {name: _Later(name) for name in SHOWN}
    shown[COMPILER].__dict__.update(
        disable=_left_uncompiled,
        graph_break=_nothing_is_compiled,
        compiled_autograd=types.SimpleNamespace(_disable=contextlib.nullcontext),  # nobody has enabled it
    )
    sys.modules.update(shown)
    try:
        yield
    finally:
        _take_back()


def _take_back() -> None:
    """Have modules that stand for others make room for these."""
    for name in SHOWN:
        if isinstance(sys.modules.get(name), _Later):
            del sys.modules[name]


def _left_uncompiled(function: Callable[..., Any] | None = None, *how: Any, **named: Any) -> Callable[..., Any]:
    """``torch.compiler.disable``: without the compiler a function runs as it is, and with it as it is told."""
    if function is None:
        return lambda decorated: _left_uncompiled(decorated, *how, **named)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        compiler = sys.modules.get(COMPILER)
        disable = None if isinstance(compiler, _Later) else getattr(compiler, "disable", None)
        if disable is None:  # or another thread is importing it
            return function(*args, **kwargs)
        return disable(function, *how, **named)(*args, **kwargs)

    return run


def _nothing_is_compiled(*_: Any, **__: Any) -> None:
    """``torch._dynamo.graph_break``, which an optimizer calls at every step: without the compiler it does nothing."""


class _Later(types.ModuleType):
    """A module whose functions are imported when they are called."""

    __path__: MutableSequence[str] = []  # noqa: RUF012  # it is a package, so that modules below it are looked for

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        home = self.__name__

        def imported_when_called(*args: Any, **kwargs: Any) -> Any:
            _take_back()
            return getattr(importlib.import_module(home), name)(*args, **kwargs)

        return imported_when_called
