"""A device that is none: tensors that say they are on it, and that refuse what tensors of a real one refuse.

Values are computed by the processor, so numbers can be held against the processor's own.  What an accelerator refuses
is an error here too: an operation on tensors of both places, ``numpy`` of a tensor that was not brought back, and a
generator of the processor where numbers are drawn on the device.  Copies without waiting are put off for as long as
they may be: to the host until an event is waited for, from pinned memory until something on the device asks for them.

torch can register one such device in a process and never gives it back, so whoever uses it has a process of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretended"
CPU = torch.device("cpu")
BETWEEN = {"aten::copy_", "aten::_to_copy"}  # what brings numbers from one place to the other
LOOKED_UP = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}  # by numbers of either
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
late: list[tuple[Tensor, Tensor]] = []  # copies to the host that have not arrived: where to, what
ahead: list[tuple[Tensor, Tensor]] = []  # copies from pinned memory that have not begun
pinned: set[int] = set()  # where pinned memory is


class Pretended(Tensor):
    """A tensor on the device; ``elem`` holds its numbers."""

    elem: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, elem: Tensor) -> Pretended:
        """A tensor on the device with the numbers of ``elem``."""
        made = Tensor._make_wrapper_subclass(
            cls, elem.shape, strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip
        made.elem = elem
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """The operation on the numbers."""
        return computed(func, args, kwargs or {})

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refused, as of a real device."""
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        """Plain numbers, for which a device is waited for."""
        begin()
        return self.elem.tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Shape and type."""
        return f"Pretended({tuple(self.shape)}, {self.dtype})"


class OnDevice(TorchDispatchMode):
    """Tensors made on the device are ours."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """The operation, where all that have a say in it are plain tensors or ours."""
        if not all(issubclass(kind, Pretended) or kind in (Tensor, torch.nn.Parameter) for kind in types):
            return NotImplemented
        return computed(func, args, kwargs or {})


def begin() -> None:
    """Have the copies from pinned memory done."""
    while ahead:
        into, source = ahead.pop(0)
        into.copy_(source)


def arrive(*_: Any) -> None:
    """Have the copies to the host done."""
    begin()
    while late:
        into, source = late.pop(0)
        into.copy_(source)


def _leaves(given: Any, into: list[Any]) -> list[Any]:
    """What an operation is given, out of its lists (torch's own trees take ten times as long)."""
    for x in given:
        if isinstance(x, (tuple, list)):
            _leaves(x, into)
        else:
            into.append(x)
    return into


def _each(change: Callable[[Any], Any], given: Any) -> Any:
    """The same with every leaf changed."""
    return type(given)([_each(change, x) for x in given]) if isinstance(given, (tuple, list)) else change(given)


def _check(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Refuse what a device refuses; whether a tensor of the device is among what is given.

    Raises:
        RuntimeError: tensors of both places, or a generator of the processor.
    """
    name, every = func._schema.name, _leaves((*args, *kwargs.values()), [])
    ours = any(isinstance(x, Pretended) for x in every)
    for x in every:
        if ours and name not in BETWEEN and isinstance(x, Tensor) and not isinstance(x, Pretended) and x.ndim:
            if name in LOOKED_UP and not x.is_floating_point():
                continue
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        if isinstance(x, torch.Generator) and (ours or _on_device(kwargs.get("device"))):
            raise RuntimeError(f"{name}: expected a {NAME!r} generator but found 'cpu'")
    return ours


def _on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, by the processor, of tensors of either place."""
    ours = _check(func, args, kwargs)
    name, device = func._schema.name, kwargs.get("device")
    if name == "aten::_pin_memory":
        found = args[0].clone()
        pinned.add(found.untyped_storage().data_ptr())
        return found
    if kwargs.get("pin_memory"):
        found = func(*args, **{**kwargs, "pin_memory": False})
        found.fill_(torch.nan if found.is_floating_point() else -1)  # nothing has arrived in it
        pinned.add(found.untyped_storage().data_ptr())
        return found
    if name == "aten::copy_" and not isinstance(args[0], Pretended) and ours:
        return _sent_back(args, kwargs)
    given = {**kwargs, "device": CPU} if _on_device(device) else kwargs
    if ours:
        begin()
    if name == "aten::_to_copy" and not ours and _on_device(device):
        return _sent(args[0], given)
    if name == "aten::_efficientzerotensor":
        func = torch.ops.aten.zeros.default  # without numbers, the processor would have nothing to compute on
    found = func(*_each(_plain, args), **{name: _each(_plain, x) for name, x in given.items()})
    if func._schema.is_mutable and args and isinstance(args[0], Tensor) and isinstance(found, Tensor):
        written = args[0].elem if isinstance(args[0], Pretended) else args[0]
        return args[0] if found is written else _wrapped(found)
    return _wrapped(found) if _on_device(device) or (ours and device is None) else found


def _plain(x: Any) -> Any:
    return x.elem if isinstance(x, Pretended) else x


def _wrapped(found: Any) -> Any:
    return _each(lambda x: Pretended(x) if isinstance(x, Tensor) and not isinstance(x, Pretended) else x, found)


def _sent(source: Tensor, given: dict[str, Any]) -> Tensor:
    """A copy on the device; from pinned memory and without waiting it is made when it is asked for."""
    if not (given.get("non_blocking") and source.untyped_storage().data_ptr() in pinned):
        return Pretended(torch.ops.aten._to_copy.default(source, **given))
    found = torch.empty_like(source, dtype=given.get("dtype") or source.dtype)
    ahead.append((found, source))
    return Pretended(found)


def _sent_back(args: Any, kwargs: dict[str, Any]) -> Tensor:
    """A copy to the host; without waiting it is made when an event is waited for."""
    into, source = args[0], args[1].elem.clone()
    late.append((into, source))
    if not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)):
        arrive()
    return into


class Event:
    """Waiting for it brings everything that is under way."""

    record = mock.Mock()
    synchronize = arrive
    query = mock.Mock(return_value=False)


class _Module:
    """What torch asks a device."""

    def is_initialized(self) -> bool:
        """Nothing has to be set up."""
        return True

    def is_available(self) -> bool:
        """It is there."""
        return True

    def device_count(self) -> int:
        """There is one."""
        return 1

    def current_device(self) -> int:
        """The only one."""
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing is drawn on it."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """As CUDA."""
        return [torch.float16, torch.bfloat16]


@contextlib.contextmanager
def pretended() -> Iterator[torch.device]:
    """The device, for as long as the context lasts; it is treated as the package treats CUDA."""
    if not hasattr(torch, NAME):
        backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device=..) makes its tensor here, then moves it
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters become ours, tied ones stay tied
    one_thread = torch.autograd.set_multithreading_enabled(False)  # no thread of autograd's knows the device
    with one_thread, mock.patch("torch.cuda.Event", Event), OnDevice():
        yield torch.device(NAME)
