"""The forward engine: logits and logit tangents of a batch by forward-mode differentiation.

One pass of the model on dual numbers (``dual``) gives z = f(theta, x) [n, C] and t = (d/de) f(theta + e u, x) [n, C]
exactly, for every row of the batch and every direction u, with the memory of a forward pass.  BatchNorm must be in
evaluation mode (in training mode the rows of a batch depend on each other and one row's loss is not defined).
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from influence_cli.engines.batch_size import out_of_memory
from influence_cli.engines.dual.dual import NotShared, leaf, tangents_of, value_of
from influence_cli.engines.dual.folding import folds
from influence_cli.engines.dual.packed import available
from influence_cli.engines.freed_memory import keep_freed_memory
from influence_cli.errors import ModelError
from influence_cli.maths.few_pixels import where_it_helps
from influence_cli.maths.forward_mode import FORWARD_MODE
from influence_cli.maths.hashed_draws import drop
from influence_cli.model.dropout import Dropout
from influence_cli.model.lean_imports import look_up_dtensor
from influence_cli.model.named_tensors import as_argument, mapped
from influence_cli.model.parameters import in_precision, pulled, select_parameters

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
SINGLE = 1e-5  # of a derivative in float64 that differs by less, and yet differs: what computes has been in float32
CHECKED = {torch.float32: 1e-2, torch.float64: 1e-8, torch.bfloat16: 0.3}  # two ways to one tangent, of its largest


_within: list[bool] = []  # of each ``differentiable_kernels`` that is entered, whether it is about recurrent layers too


@contextlib.contextmanager
def differentiable_kernels(recurrent: bool = False) -> Iterator[None]:
    """Kernels that have a forward-mode rule: fused attention and fused RNNs have none.

    Within another such block nothing is left to do, and it costs next to nothing.
    """
    if _within and (_within[-1] or not recurrent):
        yield
        return
    _within.append(recurrent)
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # no TF32 when scoring
    cudnn_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    # in bf16 the math kernel would run attention in float32: four times as long, for tangents that are no nearer
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())  # about torch's own doings, here and on leaving
            warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
            warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet")
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn_tf32
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
        _within.pop()


def is_recurrent(model: nn.Module) -> bool:
    """Whether a model has recurrent layers."""
    return any(isinstance(m, nn.RNNBase) for m in model.modules())


def check_evaluation_mode(model: nn.Module) -> None:
    """Refuse a model of which a part is in training mode.

    Raises:
        ModelError: there is one; names it.
    """
    for name, module in model.named_modules():
        if module.training:
            raise ModelError(f"module {name or 'model'} is in training mode", fix="call model.eval()")


def as_logits(out: Any, rows: int) -> Tensor:
    """A model's output, which has to be logits [n, C] of so many rows.

    Raises:
        ModelError: it is something else.
    """
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != rows:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ModelError(f"the model's output is {shape}, not logits [n, C]", fix="give a classifier")
    return out


def agree(found: Tensor, expected: Tensor, bound: float, largest: float) -> bool:
    """Whether values [n, C] are those expected, each row to a share ``bound`` of its own size or the middle row's.

    A value that is not finite where a finite one is expected is wrong; where what is expected is not finite, or so near
    the ``largest`` number that no two ways agree, nothing is known.
    """
    known = expected.isfinite() & (expected.abs() < largest**0.5)
    sizes = torch.where(known, expected, 0.0).abs().amax(1)
    some = sizes[known.any(1)]
    if len(some) == 0:
        return True
    off = torch.where(known, (found - expected).abs(), 0.0).amax(1)
    return bool((off <= bound * sizes.clamp(min=float(some.median())) + 1e-30).all())


def only_float32(name: str) -> ModelError:
    """What is wrong where derivatives in float64 have the rounding of float32."""
    return ModelError(
        f"the model computes in float32 inside, so that it has no derivatives in float64 ({name})",
        fix="leave out --precision fp64; for a method with curvature pass --set METHOD.precision=fp32",
    )


class Point:
    """A model at one member's parameters: where logits, tangents and gradients are taken."""

    def __init__(
        self,
        model: nn.Module,
        params: str,
        dropout: Dropout | None,
        precision: str,
        device: torch.device,
        selected: dict[str, Tensor] | None = None,
    ) -> None:
        """Move the model, in place, to ``device`` and ``precision``; dropped parameters are copies, its own stay.

        With ``selected``, these parameters are taken as they are, whatever ``params`` and dropout say.
        """
        check_evaluation_mode(model)
        keep_freed_memory()
        look_up_dtensor()
        self.device, self.dtype = device, DTYPES[precision]
        self.model = in_precision(model.to(device=device), self.dtype)
        self.recurrent = is_recurrent(model)
        self._convolved = where_it_helps(self.model)
        self.selected = select_parameters(self.model, params) if selected is None else selected
        self.few: Tensor | None = None  # inputs of rows from all over the data, on which whatever is tried is checked
        self.fallback: str | None = None  # why directions do not share a pass, where they do not
        self._checked = -1  # 0 once logits have been compared, 1 once tangents have
        self._prepared: tuple[list[dict[str, Tensor]], dict[str, Tensor]] | None = None
        if dropout is not None and selected is None:
            self.selected = {
                n: drop(n, p, dropout.seed, dropout.member, dropout.rate, dropout.rescale)
                if dropout.scope == "all" or p.ndim > 1
                else p
                for n, p in self.selected.items()
            }

    def less(self, names: Collection[str]) -> Point:
        """The same point, in whose selection these parameters are not."""
        if not names:
            return self
        other = copy.copy(self)
        other.selected, other._prepared = {n: p for n, p in self.selected.items() if n not in names}, None
        return other

    def anew(self) -> Point:
        """The same point, of which nothing has been checked: for a model that is asked for other outputs."""
        other = copy.copy(self)
        other._checked, other._prepared, other.fallback = -1, None, None
        return other

    def leaves(self) -> dict[str, Tensor]:
        """The selected parameters as leaves of a graph, to take gradients in."""
        return {n: p.detach().requires_grad_() for n, p in self.selected.items()}

    def logits(self, x: Tensor, selected: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [n, C] of inputs [n, ...].

        Raises:
            ModelError: the output is not [n, C].
        """
        with self._convolved():
            out = functional_call(self.model, self.selected if selected is None else selected, (as_argument(x),))
        return as_logits(out, len(x))

    def outputs(self, x: Tensor, directions: list[dict[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """Logits [n, C], and for each direction the logits' tangent [n, C]; those of bf16 in float32.

        All directions share one pass on duals.  Before the first batch, and before the first along any direction, a few
        rows are also run by torch's own forward mode; a model whose logits or tangents differ there (code with a
        derivative of its own), or that duals cannot follow, is run by that from then on.
        """
        with torch.no_grad(), differentiable_kernels(self.recurrent):
            if self.fallback is None and len(directions[:1]) > self._checked:
                self._check(x[:2] if self.few is None else self.few, directions)
            made = None
            if self.fallback is None:
                try:
                    made = self._shared(x, directions)
                except (NotShared, RuntimeError, TypeError, AttributeError, ValueError, IndexError) as error:
                    if out_of_memory(error):
                        raise
                    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                    made = self.one_by_one(x, directions)  # what fails there too is the model's own error
                    self.fallback = reason
            z, tangents = made or self.one_by_one(x, directions)
            kind = torch.float64 if self.dtype == torch.float64 else torch.float32
            return z.to(kind), [t.to(kind) for t in tangents]

    def packs_convolutions(self) -> bool:
        """Whether ``packed_logits`` is faster than ``logits``, as where most layers with weights are convolutions.

        Attention in steps of its own, which duals take it in, is slower than torch's in one.
        """
        kinds = [type(m) for m in self.model.modules()]
        return kinds.count(nn.Conv2d) > kinds.count(nn.Linear) and self.device.type == "cpu" and available(self.dtype)

    def packed_logits(self, x: Tensor) -> Tensor:
        """Logits, and what hooks see, as duals without tangents: weights are laid out, and BatchNorms folded, once."""
        return self.logits(mapped(leaf, x), self._duals([]))

    def how(self) -> str:
        """What the engine does, for ``-v``."""
        if self.fallback is not None:
            return f"forward engine: a pass for each direction ({self.fallback})"
        norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        done = folds(self._prepared[1].values()) if self._prepared else 0
        fold = f"; {done} of {norms} BatchNorms folded" if norms else ""
        return f"forward engine: one pass for all directions{fold}"

    def _check(self, x: Tensor, directions: list[dict[str, Tensor]]) -> None:
        """Compare a few rows with torch's forward mode."""
        expected = self.one_by_one(mapped(torch.clone, x), directions)
        try:
            found = self._shared(x, directions)
        except Exception:  # what it means is told apart on the whole batch
            return
        for k, (a, b) in enumerate(zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True)):
            if not agree(a.double(), b.double(), CHECKED[self.dtype], torch.finfo(self.dtype).max):
                self.fallback = f"its {'tangents' if k else 'logits'} differ from those of torch's own forward mode"
        self._checked = len(directions[:1])

    def _shared(self, x: Tensor, directions: list[dict[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """By one pass on duals."""
        z = self.logits(mapped(leaf, x), self._duals(directions))
        value, tangents = value_of(z), list(tangents_of(z)) or [torch.zeros_like(value_of(z)) for _ in directions]
        return value, tangents

    def one_by_one(self, x: Tensor, directions: list[dict[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        """By torch's own forward mode, a pass for each direction: what duals are compared with."""
        if not directions:
            return self.logits(x), []
        z, tangents = None, []
        for u in directions:
            with FORWARD_MODE:
                z, t = jvp(lambda p: self.logits(x, p), (self.selected,), (u,))[:2]
            tangents.append(t)
        assert z is not None
        return z, tangents

    def _duals(self, directions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Every parameter with its tangents, kept for the next batch along the same directions."""
        if self._prepared is None or [id(u) for u in self._prepared[0]] != [id(u) for u in directions]:
            every = dict(self.model.named_parameters()) | self.selected
            duals: dict[str, Tensor] = {
                n: leaf(p.detach(), tuple(u[n] for u in directions if n in u)) for n, p in every.items()
            }
            self._prepared = directions, duals
            return duals
        return self._prepared[1]


def usable_rows(point: Point, x: Tensor) -> Tensor:
    """Which rows [b] have finite logits, and derivatives in the point's selected parameters that are no overflow.

    A row's derivatives are J^T v, with one v [C] for all rows; their squared norm has to be finite in the point's
    precision, or tangents along any direction may not be.  The loss gradient is no measure: it is 0 for a row that is
    predicted with certainty, however large J is.  Rows are summed, with weights that let none hide another, and are
    looked at one by one only where the sum is too large.  Of a model that cannot be differentiated backwards (there are
    other ways) the logits alone are looked at.
    """
    usable = torch.ones(len(x), dtype=torch.bool, device=x.device)
    own = point.leaves()
    most = torch.finfo(point.dtype).max
    waiting = [torch.arange(len(x), device=x.device)]
    while waiting:
        some = waiting.pop()
        with torch.enable_grad(), differentiable_kernels(point.recurrent):
            logits = point.logits(x[some], own)
            finite = torch.isfinite(logits.detach()).all(1)
            if not bool(finite.all()):
                usable[some[~finite]] = False
                waiting += [some[finite]] if bool(finite.any()) else []
                continue
            generator = torch.Generator().manual_seed(0)
            v = torch.randn(logits.shape[1], generator=generator)
            weights = 0.5 + torch.rand(len(some), generator=generator) if len(some) > 1 else torch.ones(1)
            try:
                gradients = pulled([logits], list(own.values()), [(weights[:, None] * v).to(logits)])
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                continue
        if sum(float(g.double().square().sum()) for g in gradients) < (most if len(some) == 1 else most / 16):
            continue
        if len(some) == 1:
            usable[some] = False
        else:
            waiting += list(some.tensor_split(2))
    return usable


def unreached(point: Point, x: Tensor) -> set[str]:
    """Names of the selected parameters that logits of ``x`` do not depend on; none where nothing can be known."""
    own = point.leaves()
    with torch.enable_grad(), differentiable_kernels(point.recurrent):
        try:
            z = point.logits(x, own)
            found = torch.autograd.grad(z.sum(), list(own.values()), allow_unused=True) if z.requires_grad else ()
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            return set()
    return {n for n, g in zip(own, found, strict=False) if g is None}


def comparable(point: Point, x: Tensor) -> Tensor:
    """The point's own few rows, or else those of ``x``, less those that nothing can be compared on."""
    for some in (point.few, x):
        usable = None if some is None else usable_rows(point, some)
        if some is not None and usable is not None and bool(usable.any()):
            return some[usable]
    return x
