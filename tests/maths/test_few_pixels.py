"""Convolutions on a few pixels as products, against torch's own kernels in float64: values and derivatives of any kind.

python -m pytest tests/maths/test_few_pixels.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.testing import assert_close

from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.point import Point
from influence_cli.maths import few_pixels
from influence_cli.maths.few_pixels import FewPixels, where_it_helps

PIXELS, KERNELS = ((1, 1), (2, 2), (1, 2), (2, 1), (3, 2)), ((3, 3), (5, 5), (7, 7), (1, 3), (3, 5))
SETTINGS = list(itertools.product((1, 2, (2, 1)), (0, 1, (2, 1), 3), (1, 2)))  # stride, padding, dilation


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def by_product(*args: Any, **kwargs: Any) -> tuple[Tensor, bool]:
    """What F.conv2d gives within, and whether it was a product."""
    with FewPixels(), mock.patch.object(few_pixels, "_as_product", side_effect=few_pixels._as_product) as made:
        found = F.conv2d(*args, **kwargs)
    assert made.call_count == 1
    return found, few_pixels._as_product(*args, **kwargs) is not None


@pytest.mark.parametrize("kernel", KERNELS)
def test_values_and_gradients_are_those_of_the_kernels(kernel: tuple[int, int]) -> None:
    products = 0
    for pixels, (stride, padding, dilation) in itertools.product(PIXELS, SETTINGS):
        x, w, b = (drawn(*s).requires_grad_() for s in ((3, 4, *pixels), (5, 4, *kernel), (5,)))
        how = {"stride": stride, "padding": padding, "dilation": dilation}
        try:
            expected = F.conv2d(x, w, b, **how)
        except RuntimeError:
            with FewPixels(), pytest.raises(RuntimeError):
                F.conv2d(x, w, b, **how)
            continue
        found, made = by_product(x, w, b, **how)
        products += made
        assert_close(found, expected, rtol=1e-12, atol=1e-12)
        cotangent = drawn(*expected.shape, seed=1)
        pulled = (torch.autograd.grad(z, (x, w, b), cotangent) for z in (found, expected))
        for mine, plain in zip(*pulled, strict=True):
            assert_close(mine, plain, rtol=1e-12, atol=1e-12)
    assert products > 5


def network(inplace: bool = False, norm: bool = False) -> nn.Sequential:
    """Convolutions from 4x4 pixels to 2x2 and to one."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in ((2, 3), (3, 4), (4, 4), (4, 3)):
        layers += [nn.Conv2d(*channels, 3, stride=1 + (channels[0] != channels[1]), padding=1)]
        layers += [nn.BatchNorm2d(channels[1])] if norm else []
        layers += [nn.ReLU(inplace=True) if inplace else nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)).double().eval()


def derivatives(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Of every kind that is taken anywhere: forwards, row by row, twice."""
    p = {n: v.detach() for n, v in model.named_parameters()}
    u = {n: drawn(*v.shape, seed=3) for n, v in p.items()}
    bias, rest = {"6.bias": p["6.bias"]}, {n: v for n, v in p.items() if n != "6.bias"}

    def loss(own: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, own, (row[None],)).square().sum()

    return {
        "tangents": jvp(lambda own: functional_call(model, own, (x,)), (p,), (u,)),
        "by row": vmap(grad(loss), (None, 0))(p, x),
        "hessian": hessian(lambda b: functional_call(model, {**rest, **b}, (x,)).square().sum())(bias),
    }


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func's own doing
def test_derivatives_of_every_kind_are_those_of_the_kernels() -> None:
    model, x = network(), drawn(5, 2, 4, 4, seed=2)
    model(x)
    with FewPixels():
        found = derivatives(model, x)
    assert_close(found, derivatives(model, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_by_layer_stand_where_a_layer_works_in_place(norm: bool) -> None:
    """A hook notes where a convolution's output stands; a ReLU that overwrites it must not take it from there."""
    model, x = network(inplace=True, norm=norm), drawn(5, 2, 4, 4, seed=2)
    model(x)

    def of_rows() -> list[Tensor]:
        point = Point(model, "all", None, "fp64", torch.device("cpu"))
        _, blocks = Layers(point, x).of_rows(x, lambda z: z)
        return [block.squared_norms() for block in blocks]

    found = of_rows()
    with mock.patch.object(few_pixels, "_as_product", return_value=None):
        expected = of_rows()
    assert len(found) == len(expected) > 4
    assert_close(found, expected, rtol=1e-10, atol=1e-12)
    own: dict[str, Tensor] = dict(model.named_parameters())

    def half_square(p: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, p, (row[None],)).square().sum() / 2

    rows = [grad(half_square)(own, row) for row in x]
    whole = torch.stack([sum(g.detach().square().sum() for g in row.values()) for row in rows])  # type: ignore[misc]
    assert_close(torch.stack(found).sum(0), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.conv2d(x, w, padding="same"),
        lambda x, w: F.conv2d(x.repeat(1, 2, 1, 1), w, padding=1, groups=2),
        lambda x, w: F.conv2d(x[0], w, padding=1),
        lambda x, w: F.conv2d(x.repeat(1, 1, 3, 3), w, padding=1),
    ],
)
def test_whatever_is_no_product_is_left_to_torch(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, w = drawn(2, 3, 1, 1), drawn(4, 3, 3, 3)
    expected = call(x, w)
    with FewPixels():
        assert torch.equal(call(x, w), expected)


def test_models_without_convolutions_are_not_watched() -> None:
    assert where_it_helps(network()) is FewPixels
    assert where_it_helps(nn.Sequential(nn.Linear(2, 2))) is not FewPixels
