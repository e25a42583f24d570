"""Numbers with several tangents: a tensor, and its derivative along each of m directions, carried through a model.

Every operation that a model runs, whatever its module or language, reaches ``Dual.__torch_dispatch__``.  There it is
done once on the values and once on each tangent, so m directions cost 1 + 2m forward passes and not 3m, and what no
selected parameter has touched yet has no tangents and costs what inference does.  ``rules`` and ``folding``
hold the rules of operations worth their own; operations that are linear run on the tangents as they are; of all others
torch's forward mode gives the derivative, one direction at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch

from influence_cli.maths.forward_mode import FORWARD_MODE

aten = torch.ops.aten
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}

# Linear in all their tensors together: the derivative is the same operation on the tangents.
LINEAR = {
    getattr(getattr(aten, name), overload)
    for name, overloads in {
        "view": ("default",), "_unsafe_view": ("default",), "t": ("default",), "transpose": ("int",),
        "permute": ("default",), "expand": ("default",), "clone": ("default",), "unbind": ("int",),
        "select": ("int",), "slice": ("Tensor",), "unsqueeze": ("default",), "squeeze": ("default", "dim", "dims"),
        "mean": ("default", "dim"), "sum": ("default", "dim_IntList"), "neg": ("default",), "cat": ("default",),
        "stack": ("default",), "split": ("Tensor",), "split_with_sizes": ("default",), "unsafe_split": ("Tensor",),
        "avg_pool2d": ("default",), "_adaptive_avg_pool2d": ("default",),
        "flip": ("default",), "roll": ("default",), "alias": ("default",), "_to_copy": ("default",),
        "mul": ("Scalar",), "div": ("Scalar",), "pixel_shuffle": ("default",), "diagonal": ("default",),
        "upsample_bilinear2d": ("default",), "upsample_nearest2d": ("default",),
    }.items()
    for overload in overloads
    if overload in getattr(aten, name).overloads()
}  # fmt: skip
# What they give decides which way the model's code goes: no derivative is known there.
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
# A constant from here on.
CUTS = {aten.detach.default}


class NotShared(Exception):
    """The model does something that tensors with tangents cannot follow; torch's own forward mode may."""


class Dual(Tensor):
    """A tensor [..] with m tangents of its shape, or none where no selected parameter has a part in it.

    ``pending`` makes both on first use: the output of a convolution that may never be needed (``folding``).
    """

    _value: Tensor | None
    _tangents: tuple[Tensor, ...]
    pending: Any  # None once it is computed
    overwritable: bool  # nothing else holds these tangents, so they may be overwritten
    aliases: list[weakref.ref[Dual]]  # those that look at the same memory
    dependents: list[weakref.ref[Dual]]  # those that will be computed from this one
    from_outside: bool  # a parameter or an input; a parameter is the same object in the next batch
    folded: dict[Any, Any]  # weights with a BatchNorm folded in, made once and used in every batch

    @staticmethod
    def __new__(
        cls, value: Tensor, tangents: tuple[Tensor, ...] = (), overwritable: bool = False, pending: Any = None
    ) -> Dual:
        """With ``pending``, ``value`` is a tensor of the meta device that only tells shape and strides."""
        device = pending.device if pending is not None else value.device
        made = Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
            device=device, requires_grad=False,
        )  # fmt: skip
        made._value = None if pending is not None else value
        made._tangents, made.overwritable, made.pending, made.folded = tangents, overwritable, pending, {}
        made.aliases, made.dependents = [weakref.ref(made)], []
        made.from_outside = False
        return made

    def __init__(
        self, value: Tensor, tangents: tuple[Tensor, ...] = (), overwritable: bool = False, pending: Any = None
    ) -> None:
        """All is done in ``__new__``, as torch's tensors want it."""

    @property
    def value(self) -> Tensor:
        """The value as a plain tensor."""
        self.compute()
        assert self._value is not None
        return self._value

    @property
    def tangents(self) -> tuple[Tensor, ...]:
        """A tangent for each direction, or ()."""
        self.compute()
        return self._tangents

    def compute(self) -> None:
        """Compute the value and the tangents, where that was put off."""
        if self.pending is not None:
            self.assign(*self.pending.compute())

    def assign(self, value: Tensor, tangents: tuple[Tensor, ...], overwritable: bool = False) -> None:
        """Hold other numbers from now on: what an operation in place does."""
        if value.stride() != self.stride():
            value = torch.empty_strided(self.shape, self.stride(), dtype=value.dtype, device=value.device).copy_(value)
        self._value, self._tangents, self.overwritable, self.pending = value, tangents, overwritable, None

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Shape and number of tangents."""
        return f"Dual({tuple(self.shape)}, tangents={len(self._tangents)})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """The operation on values and tangents."""
        return apply(func, args, kwargs or {})


def compute_before_writes(pending: Dual, source: Any) -> Dual:
    """Have ``pending`` computed before anything is written into what it will be computed from."""
    if isinstance(source, Dual):
        source.dependents.append(weakref.ref(pending))
    return pending


def leaf(value: Tensor, tangents: tuple[Tensor, ...] = ()) -> Dual:
    """A parameter or an input: others hold it too, so nothing writes into it."""
    made = Dual(value, tangents)
    made.aliases.append(made.aliases[0])
    made.from_outside = True
    return made


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Register how operations run on duals; a rule may return NotImplemented to leave a case to torch."""

    def add(function: Rule) -> Rule:
        for operation in operations:
            RULES[operation] = function
        return function

    return add


def value_of(x: Any) -> Any:
    """The plain value of a dual, and anything else as it is."""
    return x.value if isinstance(x, Dual) else x


def tangents_of(x: Any) -> tuple[Tensor, ...]:
    """The tangents of a dual; () for anything else."""
    return x.tangents if isinstance(x, Dual) else ()


def apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation on duals, by its rule, by linearity, or by torch's forward mode.

    Raises:
        NotShared: it writes where others read, or into a tensor without tangents.
    """
    if func._schema.is_mutable:
        return _in_place(func, args, kwargs)
    known = RULES.get(func)
    if known is not None and not any(isinstance(a, Tensor) and a.is_complex() for a in args):
        # rules are for real numbers
        out = known(*args, **kwargs)
        if out is not NotImplemented:
            return out
    duals = _duals_in((*args, *kwargs.values()))
    values = map_each(value_of, args), map_named(value_of, kwargs)
    active = [d for d in duals if d.tangents]
    if not active:
        return _wrap(func, duals, func(*values[0], **values[1]), None)
    if func in READS:
        raise NotShared(f"{func} reads a number that has a derivative")
    if func in CUTS:
        return _wrap(func, duals, func(*values[0], **values[1]), None)
    if func in LINEAR:
        return _linear(func, args, kwargs, active)
    return _by_torch(func, args, kwargs, active)


def map_each(change: Callable[[Any], Any], xs: Any) -> Any:
    """``change`` of every argument, in lists and tuples too (torch's own tree_map takes as long as an operation)."""
    if isinstance(xs, tuple | list):
        return [map_each(change, x) for x in xs] if isinstance(xs, list) else tuple(map_each(change, x) for x in xs)
    return change(xs)


def map_named(change: Callable[[Any], Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same of every named argument."""
    return {n: map_each(change, x) for n, x in kwargs.items()} if kwargs else kwargs


def _duals_in(xs: Any) -> list[Dual]:
    found: list[Dual] = []
    for x in xs:
        if isinstance(x, Dual):
            found.append(x)
        elif isinstance(x, tuple | list):
            found.extend(_duals_in(x))
    return found


def _wrap(func: Any, duals: list[Dual], out: Any, tangents: list[Any] | None) -> Any:
    """The outputs of an operation as duals; ``tangents`` holds one result a direction, of the same form."""
    if isinstance(out, list | tuple):
        along = [None if tangents is None else [t[k] for t in tangents] for k in range(len(out))]
        parts = [_wrap(func, duals, o, t) for o, t in zip(out, along, strict=True)]
        return parts if isinstance(out, list) else tuple(parts)
    if not isinstance(out, Tensor) or not (out.is_floating_point() or out.is_complex()):
        return out
    along = () if tangents is None or tangents[0] is None else tuple(tangents)
    made = Dual(out, along)
    if any(a.alias_info is not None for a in func._schema.returns):
        for d in duals:
            d.overwritable = False
            made.aliases = d.aliases
        made.aliases.append(weakref.ref(made))
    return made


def _linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], active: list[Dual]) -> Any:
    """An operation that is linear in all its tensors together: the same operation on each tangent."""

    def at(k: int) -> Any:
        def pick(a: Any) -> Any:
            if isinstance(a, Dual) and a.tangents:
                return a.tangents[k]
            return torch.zeros_like(value_of(a)) if isinstance(a, Tensor) else a

        mapped, named = map_each(pick, args), map_named(pick, kwargs)
        if func in (aten.view.default, aten._unsafe_view.default):
            return mapped[0].reshape(mapped[1])  # a tangent's strides need not be those of its value
        return func(*mapped, **named)

    out = func(*map_each(value_of, args), **map_named(value_of, kwargs))
    return _wrap(func, active, out, [at(k) for k in range(len(active[0].tangents))])


def _by_torch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], active: list[Dual]) -> Any:
    """The derivative as torch's forward mode knows it, one direction after the other."""
    out: Any = None
    tangents: list[Any] = []
    with enable_reentrant_dispatch():
        for k in range(len(active[0].tangents)):
            with FORWARD_MODE, forward.dual_level():

                def pick(a: Any, k: int = k) -> Any:
                    if not isinstance(a, Dual):
                        return a
                    return forward.make_dual(a.value, a.tangents[k]) if a.tangents else a.value

                made = func(*map_each(pick, args), **map_named(pick, kwargs))
                out = map_each(lambda o: forward.unpack_dual(o).primal if isinstance(o, Tensor) else o, made)
                tangents.append(
                    map_each(lambda o: forward.unpack_dual(o).tangent if isinstance(o, Tensor) else o, made)
                )
    return _wrap(func, active, out, tangents)


def _in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``x.f_(...)``: the result of ``x.f(...)``, held by x from now on; nothing else may look at x's memory."""
    name = func._schema.name.removeprefix("aten::")
    written = [a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    self = args[0] if args else None
    if not name.endswith("_") or written != [func._schema.arguments[0]]:
        raise NotShared(f"{func} writes into its arguments")
    if not isinstance(self, Dual):
        raise NotShared(f"{func} writes a number with a derivative into a tensor without")
    if sum(r() is not None for r in self.aliases) > 1:
        raise NotShared(f"{func} writes into memory that another tensor looks at")
    for dependent in self.dependents:
        if (pending := dependent()) is not None:
            pending.compute()
    self.dependents = []
    known = RULES.get(func)
    out = NotImplemented if known is None else known(*args, **kwargs)
    if out is not NotImplemented:
        return out
    functional = getattr(getattr(aten, name[:-1]), func._overloadname)
    out = apply(functional, args, kwargs)
    self.assign(value_of(out), tangents_of(out), isinstance(out, Dual) and out.overwritable)
    return self
