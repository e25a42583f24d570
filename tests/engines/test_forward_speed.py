"""The forward engine's one pass on duals (methods.md T01, T03, T04; design.md section 5).

Reference: the float64 per-row autograd loop of ``tests.oracle``, and torch's own forward mode along one direction at a
time.  Behavioural: what is folded, what has no tangents, how often the model runs, what the engine does where it cannot
follow a model, and memory that runs out.

    python -m pytest tests/engines/test_forward_speed.py
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from influence_cli.engines.batch_size import Parts, out_of_memory
from influence_cli.engines.dual import folding
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ModelError
from influence_cli.model.dropout import Dropout
from influence_cli.model.parameters import select_parameters
from tests.oracle import dot, relative_error, row_gradients, shake

CPU = torch.device("cpu")
Direction = dict[str, Tensor]
TIMM = {
    "resnet18": {"channels": (16, 24, 32, 48)},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 32},
    "efficientnet_lite0": {},
}


class Loose(nn.Module):
    """Parameters outside layers, used in sums, products and by index."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.table = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(3, 6))
        self.parts = nn.ParameterList([nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(3))])

    def forward(self, x: Tensor) -> Tensor:
        y = (x * self.scale - self.table[1]) / (1 + self.table[0] ** 2)
        return torch.einsum("ni,ij->nj", y.exp().log1p(), self.parts[0]) + self.parts[1]


class Before(nn.Module):
    """BatchNorm before the convolution, and one whose convolution has another consumer: nothing to fold safely."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.second, self.b = (
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 5, 3),
            nn.BatchNorm2d(5),
            nn.Linear(5, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.first(x).relu())
        return self.b((self.second(y).relu() + y).mean((2, 3)))


class Written(nn.Module):
    """Writes into what a convolution is yet to read, and into a view: the values of the call must be used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).tanh()
        z = self.b(y)
        y.mul_(2.0).relu_()
        w = self.norm(z) + y
        w[:, :2].sigmoid_()
        return self.head(w.mean((2, 3)))


class Shared(nn.Module):
    """One convolution before two BatchNorms, and one BatchNorm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1)
        self.n, self.m = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n(self.a(x)).relu()
        return self.head((self.m(self.a(y)) + self.n(self.b(y))).mean((2, 3)))


class Joined(nn.Module):
    """Joins what has a tangent with what has none: a constant, the input, a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(15, 3)
        self.register_buffer("c", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.c.expand(len(x), 3), self.a(x), x, self.c - self.a(x)], dim=1)
        return torch.stack([self.b(y), self.c.expand(len(x), 3)]).sum(0)


class Buffered(nn.Module):
    """Writes into a plain tensor, which duals cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.a(x).new_zeros(len(x), 3)
        return out.copy_(self.a(x)).tanh()


def _linear_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU6(), nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3))


CONSTRUCTS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mixer": (lambda: MlpMixer(4, img_size=64, patch_size=32, num_blocks=2, embed_dim=32), (3, 64, 64)),
    "parameters outside layers": (Loose, (6,)),
    "norm before": (Before, (4, 6, 6)),
    "written in place": (Written, (4, 5, 5)),
    "joined": (Joined, (6,)),
    "shared": (Shared, (4, 5, 5)),
    "writes into a buffer": (Buffered, (6,)),
    "linear and norm": (_linear_norm, (6,)),
    "padded and dilated": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.SiLU(inplace=True),
            nn.MaxPool2d(2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        ), (4, 9, 8),
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.Hardswish(), nn.ConvTranspose1d(6, 4, 3), nn.BatchNorm1d(4),
            nn.GELU("tanh"), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(3), nn.LogSoftmax(1),
        ), (4, 7),
    ),
}  # fmt: skip


def _made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    if name in TIMM:
        size = TIMM[name].get("img_size", 32)
        model, x = timm.create_model(name, num_classes=4, **TIMM[name]), torch.randn(3, 3, size, size)
    else:
        make, shape = CONSTRUCTS[name]
        model, x = make(), torch.randn(3, *shape)
    model.eval()(x)
    shake(model, x, 4)
    return model.double().eval(), x.double()


def _directions(point: Point, count: int) -> list[Direction]:
    generator = torch.Generator().manual_seed(7)
    return [
        {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) * (p.std() if p.numel() > 1 else 1)
         for n, p in point.selected.items()}
        for _ in range(count)
    ]  # fmt: skip


def _reference(point: Point, x: Tensor, us: list[Direction]) -> tuple[Tensor, list[Tensor]]:
    """Torch's forward mode on the model itself, one direction at a time."""
    with torch.no_grad(), differentiable_kernels(point.recurrent):
        return point.one_by_one(x, us)


def _worst(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> float:
    pairs = zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True)
    return max(relative_error(a.double().numpy(), b.double().numpy()) for a, b in pairs)


class Counted:
    """How many convolutions and linear maps are computed, and how many norms by themselves."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.maps = self.norms = 0
        run, norm = folding.Pending._apply, folding._by_channel

        def counted_map(pending: folding.Pending, *args: Any, **how: Any) -> Tensor:
            self.maps += pending.settings is not None
            return run(pending, *args, **how)

        def counted_norm(*args: Any) -> Any:
            self.norms += 1
            return norm(*args)

        patch.setattr(folding.Pending, "_apply", counted_map)
        patch.setattr(folding, "_by_channel", counted_norm)


# -- exact ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CONSTRUCTS, *TIMM])
def test_tangents_equal_the_loop(name: str) -> None:
    """The loss gradient in the logits, dotted with the logits' tangent, is the loop's <grad l_i, u>."""
    model, x = _made(name)
    y = torch.arange(3)
    point = Point(model, "all", None, "fp64", CPU)
    us = _directions(point, 2)
    z, tangents = point.outputs(x, us)
    residual = z.softmax(dim=1) - F.one_hot(y, z.shape[1])
    # autograd refuses to run back through what is written in place; forward mode has nothing to keep
    gradients = [] if name == "written in place" else list(row_gradients(model, x, y))
    for u, t in zip(us if gradients else [], tangents if gradients else [], strict=True):
        expected = np.array([dot(g, u) for g in gradients])
        assert relative_error((residual * t).sum(dim=1).numpy(), expected) < 1e-12
    assert _worst((z, tangents), _reference(point, x, us)) < 1e-12
    assert (point.fallback is None) == (name not in ("writes into a buffer", "written in place"))


@pytest.mark.parametrize("name", [*CONSTRUCTS, *TIMM])
def test_float32_equals_float64(name: str) -> None:
    model, x = _made(name)
    exact = Point(model, "all", None, "fp64", CPU)
    us = _directions(exact, 1)
    expected = exact.outputs(x, us)
    point = Point(model, "all", None, "fp32", CPU)
    found = point.outputs(x.float(), [{n: v.float() for n, v in u.items()} for u in us])
    assert found[0].dtype == found[1][0].dtype == torch.float32
    assert _worst(found, expected) < 1e-5


# -- folding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", ["all", "*bn*", "*conv*", "*.weight", "*bias", "last", "layer3.*"])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_folding_is_exact_whatever_is_selected(name: str, selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name != "resnet18" and selection == "layer3.*":
        pytest.skip("a name of ResNet's")
    model, x = _made(name)
    point = Point(model, selection, None, "fp64", CPU)
    us = _directions(point, 1)
    counted = Counted(monkeypatch)
    found = point.outputs(x, us)
    assert point.fallback is None
    assert counted.norms == 0
    assert counted.maps > 0
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert f"{norms} of {norms} BatchNorms folded" in point.how()
    assert _worst(found, _reference(point, x, us)) < 1e-12


@pytest.mark.parametrize("rescale", [True, False])
def test_dropped_parameters_are_folded_as_dropped(rescale: bool) -> None:
    model, x = _made("resnet18")
    point = Point(model, "all", Dropout(1, 2, 0.05, rescale, "all"), "fp64", CPU)
    us = _directions(point, 1)
    found = point.outputs(x, us)
    assert point.fallback is None
    assert _worst(found, _reference(point, x, us)) < 1e-12
    plain = Point(model, "all", None, "fp64", CPU)
    assert _worst(plain.outputs(x, us), found) > 1e-3


def test_logits_alone_are_those_of_the_model() -> None:
    model, x = _made("resnet18")
    with torch.no_grad():
        expected = model(x)
    found, none = Point(model, "all", None, "fp64", CPU).outputs(x, [])
    assert none == []
    assert relative_error(found.numpy(), expected.numpy()) < 1e-12


def test_a_hook_sees_the_convolution_itself() -> None:
    model, x = _made("linear and norm")
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda m, i, o: seen.append(o + 0))
    point = Point(model, "all", None, "fp64", CPU)
    us = _directions(point, 1)
    found = point.outputs(x, us)
    assert seen[-1].shape == (3, 5)
    assert _worst(found, _reference(point, x, us)) < 1e-12


# -- cost, in operations -------------------------------------------------------------------------------------------


def _convolutions(patch: pytest.MonkeyPatch, point: Point, x: Tensor, us: list[Direction]) -> int:
    point.outputs(x, us)  # the check of the first batch, and the folding
    with patch.context() as during:
        counted = Counted(during)
        point.outputs(x, us)
    return counted.maps


def test_directions_share_the_primal(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 + 2m convolutions a layer, less the m of the first layer's input, which has no tangent."""
    model, x = _made("resnet18")
    layers = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    for m in (0, 1, 3):
        point = Point(model, "all", None, "fp64", CPU)
        assert _convolutions(monkeypatch, point, x, _directions(point, m)) == layers * (1 + 2 * m) - m


def test_no_tangents_before_the_first_selected_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _made("resnet18")
    layers = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    last = Point(model, "last", None, "fp64", CPU)
    assert _convolutions(monkeypatch, last, x, _directions(last, 1)) == layers
    late = Point(model, "layer4.1.conv2.*", None, "fp64", CPU)
    assert _convolutions(monkeypatch, late, x, _directions(late, 1)) == layers + 1
    assert list(select_parameters(model, "layer4.1.conv2.*")) == ["layer4.1.conv2.weight"]


# -- what cannot be followed ---------------------------------------------------------------------------------------


class Straight(torch.autograd.Function):
    """Rounds; its derivative is said to be 1, which no rule of the operations inside would give."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()


def test_a_derivative_of_the_models_own_is_respected() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Straight.apply(self.a(x)))

    torch.manual_seed(0)
    point = Point(Rounded().eval(), "all", None, "fp64", CPU)
    x, us = torch.randn(4, 6).double(), _directions(point, 2)
    assert _worst(point.outputs(x, us), _reference(point, x, us)) < 1e-12
    assert "a pass for each direction" in point.how()


def test_an_error_of_the_models_own_is_told_as_it_is() -> None:
    point = Point(nn.Sequential(nn.Linear(6, 3)).eval(), "all", None, "fp64", CPU)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        point.outputs(torch.randn(2, 5).double(), [])


def test_directions_may_change_between_batches() -> None:
    model, x = _made("linear and norm")
    point = Point(model, "all", None, "fp64", CPU)
    u, v = _directions(point, 2)
    one, other = point.outputs(x, [u])[1][0], point.outputs(x, [v])[1][0]
    both = point.outputs(x, [u, v])[1]
    assert torch.allclose(one, both[0], rtol=1e-12)
    assert torch.allclose(other, both[1], rtol=1e-12)
    assert not torch.allclose(one, other)


def test_threads_do_not_end_each_others_forward_mode() -> None:
    """Torch keeps the level of its forward mode in a global, which every thread of a process shares."""

    def passes(_: int) -> tuple[float, str | None]:
        model, x = _made("writes into a buffer")
        point = Point(model, "all", None, "fp64", CPU)
        us = _directions(point, 2)
        return max(_worst(point.outputs(x, us), point.one_by_one(x, us)) for _ in range(60)), point.fallback

    alone = passes(0)
    with ThreadPoolExecutor(6) as pool:
        for worst, fallback in pool.map(passes, range(6)):
            assert worst < 1e-12
            assert fallback == alone[1]


# -- memory --------------------------------------------------------------------------------------------------------

MESSAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", MESSAGES, ids=["cuda", "cpu", "python"])
def test_batches_are_halved_when_memory_runs_out(error: Exception) -> None:
    said: list[str] = []
    sizes: list[int] = []

    def outputs(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        sizes.append(len(x))
        if len(x) > 3:
            raise error
        return 2 * x, [3 * x]

    parts, x = Parts(said.append), torch.arange(20.0).reshape(10, 2)
    for _ in range(2):
        z, (t,) = parts.run(outputs, x)
        assert torch.equal(z, 2 * x)
        assert torch.equal(t, 3 * x)
    assert sizes == [10, 5, 2, 2, 2, 2, 2] + [2] * 5
    assert len(said) == 1
    assert "10 rows" in said[0]


def test_a_row_that_does_not_fit_is_an_error_and_other_errors_stay() -> None:
    def too_large(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        raise RuntimeError("size mismatch")

    with pytest.raises(ModelError, match="single row"):
        Parts(lambda _: None).run(too_large, torch.zeros(4, 2))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Parts(lambda _: None).run(wrong, torch.zeros(4, 2))
    assert not out_of_memory(RuntimeError("size mismatch"))


def test_the_engine_does_not_take_lack_of_memory_for_a_model_it_cannot_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _made("linear and norm")
    point = Point(model, "all", None, "fp64", CPU)
    us = _directions(point, 1)
    point.outputs(x, us)

    def fail(*_: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with monkeypatch.context() as patch:
        patch.setattr(point, "_shared", fail)
        with pytest.raises(RuntimeError, match="can't allocate"):
            point.outputs(x, us)
    assert point.fallback is None
    assert "one pass" in point.how()
