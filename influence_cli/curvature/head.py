"""What of a model lies behind the inputs of its selected parameters: many passes over the same rows need no more.

Where all selected parameters belong to one module that is called once, on one tensor, and whose output is the model's
(``--params last`` of most classifiers), the logits are a function of the parameters and of that tensor alone.  Each
row's is then computed once and takes the row's place.  Whether a model is so is seen by running it, and checked: its
logits and tangents on a few rows must be those of the whole model.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence_cli.engines.dual.dual import value_of
from influence_cli.engines.point import Point, agree, differentiable_kernels
from influence_cli.engines.self_check import AGREES, CANNOT
from influence_cli.model.decoded import Batches
from influence_cli.model.named_tensors import mapped
from influence_cli.model.own_module import copied
from influence_cli.store.keys import Keys

ROWS = 4  # that it is tried on


class ModuleAlone(nn.Module):
    """A model that is one module of another, under the same name, so that its parameters have theirs."""

    def __init__(self, path: str, module: nn.Module) -> None:
        """``path`` is the module's name in the other model."""
        super().__init__()
        self.path = path
        parent: nn.Module = self
        *outer, last = path.split(".")
        for name in outer:
            parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, module)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The module's output."""
        return self.get_submodule(self.path)(x)


class Head:
    """The module that holds all selected parameters, and its inputs."""

    def __init__(self, point: Point, path: str) -> None:
        """``path`` is its name in the model of ``point``."""
        self.whole, self.path = point, path
        self.packed = point.packs_convolutions()  # whether what lies before it is run on weights laid out once
        self.module = point.model.get_submodule(path)
        precision = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}[point.dtype]
        self.point = Point(ModuleAlone(path, self.module), "all", None, precision, point.device, point.selected)

    def moved(self, selected: dict[str, Tensor]) -> Head:
        """The same module with other values of the parameters that lie behind its inputs."""
        other = copy.copy(self)
        other.point = self.point.anew()
        other.point.selected = selected
        return other

    def on(self, device: torch.device, dtype: torch.dtype) -> Head | None:
        """The same module in a precision, on inputs that the rest of the model gives in its own; None: there is none.

        In float64 what is computed from rounded inputs is exact for these; scores are taken along the same inputs.
        """
        if self.point.device != device:
            return None
        if self.point.dtype == dtype:
            return self
        return self._in_double if (self.point.dtype, dtype) == (torch.float32, torch.float64) else None

    @functools.cached_property
    def _in_double(self) -> Head:
        other = copy.copy(self)
        other.module = copied(self.module).requires_grad_(False)
        selected = {n: p.double() for n, p in self.point.selected.items()}
        other.point = Point(ModuleAlone(self.path, other.module), "all", None, "fp64", self.point.device, selected)
        other.point.few = None if self.point.few is None else _to(self.point.few, torch.float64)
        return other

    def inputs(self, x: Tensor) -> Tensor:
        """What the module is given, in its precision, for inputs [b, ...] of the model in any."""
        return _to(self._input_and_logits(_to(x, self.whole.dtype))[0], self.point.dtype)

    def _input_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The module's only input and the logits.

        Raises:
            RuntimeError: the module has another part in the model.
        """
        calls: list[tuple[Any, Any, Any]] = []
        hook = self.whole.model.get_submodule(self.path).register_forward_hook(
            lambda _, args, kw, out: calls.append((args, kw, out)), with_kwargs=True
        )
        try:
            with torch.no_grad(), differentiable_kernels(self.whole.recurrent):
                z = self.whole.packed_logits(x) if self.packed else self.whole.logits(x)
        finally:
            hook.remove()
        if len(calls) != 1 or calls[0][2] is not z or calls[0][1] or len(calls[0][0]) != 1:
            raise RuntimeError(f"{self.path} is not called once, last, on one tensor")
        (h,) = calls[0][0]
        if not isinstance(h, Tensor) or len(h) != len(x):
            raise RuntimeError(f"{self.path} is not called on a tensor with a row for each of the model's")
        return value_of(h), value_of(z)

    def agrees(self, x: Tensor, inputs: Tensor) -> bool:
        """Whether the module on its inputs gives the model's logits and tangents of a few rows, some of them finite."""
        generator = torch.Generator().manual_seed(0)
        u = {n: torch.randn(p.shape, generator=generator).to(p) for n, p in self.whole.selected.items()}
        with torch.no_grad(), differentiable_kernels(self.whole.recurrent):
            expected = self.whole.one_by_one(x, [u])
        found = self.point.outputs(inputs, [u])
        if not bool(expected[0].isfinite().all(1).any()):
            return False
        bound, most = AGREES.get(self.whole.dtype, 0.2), torch.finfo(self.whole.dtype).max
        pairs = zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True)
        return all(agree(a.double(), b.double(), bound, most) for a, b in pairs)


@dataclass(eq=False)
class HeadInputs:
    """Inputs of a head that a pass over rows has kept: by payload key the batch that a row was in, and its place."""

    head: Head
    rows: dict[bytes, tuple[Tensor, int]]

    @staticmethod
    def of(head: Head | None, batches: Batches, payload_keys: Keys) -> HeadInputs | None:
        """Those of batches of a manifest with these keys; None without a head, or of texts of several lengths."""
        if head is None or len({h.shape[1:] for _, h in batches}) != 1:
            return None
        rows = {payload_keys[row].tobytes(): (h, k) for index, h in batches for k, row in enumerate(index.tolist())}
        return HeadInputs(head, rows)

    def of_all(self, keys: Keys) -> bool:
        """Whether there is one for each of these payload keys [n, 16]."""
        return all(key.tobytes() in self.rows for key in keys)

    def take(self, keys: Keys) -> Tensor:
        """Those of payload keys [b, 16], all of which there are."""
        found = [self.rows[key.tobytes()] for key in keys]
        return torch.stack([batch[place] for batch, place in found])


def _to(x: Any, dtype: torch.dtype) -> Any:
    """Inputs whose real numbers are in a precision; integers are looked up, and stay."""
    return mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, x)


def head_of(point: Point, x: Tensor, pack: bool = False) -> Head | None:
    """The one module behind whose inputs all selected parameters lie, as inputs ``x`` show it; None where none is.

    A module that has all parameters of the model is one only where it is a linear layer, whose curvature has a closed
    form: otherwise nothing is saved by it.  With ``pack`` weights of convolutions are laid out for it.
    """
    owners = [name.split(".")[:-1] for name in point.selected]
    shared = 0
    while all(len(o) > shared and o[shared] == owners[0][shared] for o in owners):
        shared += 1
    path = ".".join(owners[0][:shared])
    alone = all(name.startswith(path + ".") for name, _ in point.model.named_parameters())
    if not path or (alone and type(point.model.get_submodule(path)) is not nn.Linear):
        return None  # nothing that is worth doing once comes before it
    head = Head(point, path)
    few = x[:ROWS] if point.few is None else point.few
    for packed in (True, False) if head.packed and pack else (False,):
        head.packed = packed
        try:
            inputs = head.inputs(few)
            if head.agrees(few[:ROWS], inputs[:ROWS]):
                head.point.few = None if point.few is None else inputs
                return head
        except torch.OutOfMemoryError:
            raise
        except CANNOT:
            continue
    return None
