"""Convolutions whose weights are laid out once: the numbers of plain convolutions, whatever their form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from influence_cli.engines.dual import folding, packed
from influence_cli.engines.dual.packed import available, convolve, in_channels_last
from influence_cli.engines.point import Point

needs_kernels = pytest.mark.skipif(not available(torch.float32), reason="this processor has no such kernels")
SETTINGS = {
    "plain": ([1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    "strided": ([2, 3], [1, 0], [1, 1], False, [0, 0], 1),
    "dilated": ([1, 1], [2, 2], [2, 2], False, [0, 0], 1),
    "grouped": ([1, 1], [1, 1], [1, 1], False, [0, 0], 2),
    "depthwise": ([2, 2], [1, 1], [1, 1], False, [0, 0], 8),
}


def last(x: Tensor) -> Tensor:
    """In channels-last order."""
    return x.to(memory_format=torch.channels_last)


@needs_kernels
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_convolution_gives_what_a_plain_one_gives(name: str, kind: torch.dtype) -> None:
    """Alone and added to another, with a bias and without, at two batch sizes."""
    if not available(kind):
        pytest.skip("this processor has no bf16 units")
    settings, torch_seed = SETTINGS[name], 0
    torch.manual_seed(torch_seed)
    weight, bias = torch.randn(16, 8 // settings[5], 3, 3).to(kind), torch.randn(16).to(kind)
    for rows in (1, 5):
        x = last(torch.randn(rows, 8, 9, 9).to(kind))
        for b in (bias, None):
            plain = torch.ops.aten.convolution(x, weight, b, *settings)
            found = convolve(x, weight, b, settings)
            tolerance = (1e-5 if kind == torch.float32 else 2e-2) * float(plain.abs().max())
            torch.testing.assert_close(found, plain, rtol=0, atol=tolerance)
            for onto in (last(plain.clone()), plain.contiguous()):  # in either order of memory
                other = onto.clone()
                made = convolve(x, weight, b, settings, onto=onto)
                assert made.data_ptr() == onto.data_ptr()
                torch.testing.assert_close(made, other + plain, rtol=0, atol=2 * tolerance)


SMALL = {
    "one pixel": ((1, 1), (3, 3), ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
    "2x2": ((2, 2), (3, 3), ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
    "2x2 to one": ((2, 2), (3, 3), ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)),
    "dilated": ((3, 2), (5, 5), ([1, 2], [4, 3], [2, 1], False, [0, 0], 1)),
    "no padding": ((1, 1), (1, 2), ([1, 1], [0, 1], [1, 1], False, [0, 0], 1)),
    "wide padding": ((1, 2), (3, 3), ([2, 1], [2, 2], [1, 1], False, [0, 0], 1)),
}


@needs_kernels
@pytest.mark.parametrize("name", SMALL)
def test_on_a_few_pixels_it_is_a_matrix_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, with a bias and without, added or not, at two batch sizes, and in channels-last order."""
    pixels, kernel, settings = SMALL[name]
    products: list[int] = []
    real = packed._multiplied
    monkeypatch.setattr(packed, "_multiplied", lambda *given: (products.append(1), real(*given))[1])
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 6, *kernel), torch.randn(5)
    for rows in (1, 7):
        x = last(torch.randn(rows, 6, *pixels))
        for b in (bias, None):
            plain = torch.ops.aten.convolution(x, weight, b, *settings)
            found = convolve(x, weight, b, settings)
            assert found.shape == plain.shape
            assert found.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
            onto = last(torch.randn(plain.shape))
            other = onto.clone()
            made = convolve(x, weight, b, settings, onto=onto)
            assert made.data_ptr() == onto.data_ptr()
            torch.testing.assert_close(made, other + plain, rtol=1e-5, atol=1e-5)
    assert len(products) == 8


@needs_kernels
def test_a_weight_that_was_written_into_is_laid_out_again() -> None:
    """The layout is of the numbers, not of the object."""
    x, weight = last(torch.randn(2, 8, 5, 5)), torch.randn(4, 8, 3, 3)
    settings = SETTINGS["plain"]
    before = convolve(x, weight, None, settings)
    weight.mul_(2)
    torch.testing.assert_close(convolve(x, weight, None, settings), 2 * before, rtol=1e-5, atol=1e-5)


def test_what_it_does_not_take_is_left_to_torch() -> None:
    """Another order of memory, transposed convolutions, one dimension, float64."""
    x = torch.randn(2, 8, 5, 5)
    assert not in_channels_last(x, [5, 5], SETTINGS["plain"])  # so that code that calls view() sees what it expects
    transposed = ([1, 1], [1, 1], [1, 1], True, [0, 0], 1)
    assert not in_channels_last(last(x), [5, 5], transposed)
    assert not in_channels_last(torch.randn(2, 8, 5), [5], SETTINGS["plain"])
    assert not in_channels_last(last(x.double()), [5, 5], SETTINGS["plain"])


def residual() -> nn.Module:
    """Convolutions with and without BatchNorm, pooling, a residual sum, an image that shrinks to one pixel."""
    torch.manual_seed(0)

    class Block(nn.Module):
        """A sum of two ways."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            """The sum."""
            return torch.relu(self.norm(self.a(x)) + self.b(x))

    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        Block(), nn.Conv2d(8, 8, 3, stride=3, groups=4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 16, 16))
    return model.eval()


def test_tangents_are_the_same_with_such_kernels_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and tangents of a network, its input in either order of memory, agree with plain convolutions."""
    x = torch.randn(7, 3, 16, 16)

    def outputs(values: Tensor) -> list[Tensor]:
        point = Point(residual(), "all", None, "fp32", torch.device("cpu"))
        along = [{n: torch.sin(torch.arange(p.numel()) + k).view(p.shape) for n, p in point.selected.items()}
                 for k in range(2)]  # fmt: skip
        z, tangents = point.outputs(values, along)
        assert point.fallback is None
        return [z, *tangents]

    found = [outputs(last(x)), outputs(x)]
    monkeypatch.setattr(folding, "in_channels_last", lambda *_: False)
    plain = outputs(last(x))
    for each in found:
        for a, b in zip(each, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


@needs_kernels
def test_a_network_in_channels_last_order_runs_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution of the network above, for the values and for each part of the tangents."""
    calls: list[bool] = []
    real = packed.convolve

    def counting(
        x: Tensor, weight: Tensor, bias: Tensor | None, settings: object, onto: Tensor | None = None
    ) -> Tensor:
        calls.append(onto is not None)
        return real(x, weight, bias, settings, onto)  # type: ignore[arg-type]

    monkeypatch.setattr(folding, "convolve", counting)
    point = Point(residual(), "all", None, "fp32", torch.device("cpu"))
    point._checked = True
    point.outputs(last(torch.randn(7, 3, 16, 16)), [{n: torch.ones_like(p) for n, p in point.selected.items()}])
    assert len(calls) == 2 + 3 * 3  # the first convolution's input has no tangent
    assert sum(calls) == 3
