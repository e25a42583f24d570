"""Random projections of row gradients (methods.md 4.17): unbiased inner products with the variance of their formula.

Reference: SplitMix64 by big integers for the signs, matrices multiplied out, one backward pass a row, and averages over
seeds against the fourth moments of signs.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from influence_cli.errors import UsageError
from influence_cli.maths.sketch import (
    buckets,
    factor_shape,
    factor_sketch,
    factor_variance,
    hash_key,
    plain_sketch,
    plain_variance,
    shared_widths,
    signs,
)
from influence_cli.model.forward import Point
from influence_cli.model.layers import Block
from influence_cli.model.losses import CROSS_ENTROPY
from influence_cli.model.row_gradients import RowGradients
from influence_cli.model.row_values import RowValues
from influence_cli.model.sketch import LayerColumns, Projection, laid_out
from tests.oracle import relative_error, row_gradients, splitmix64_stream
from tests.test_engine import CPU
from tests.test_layers import EVERY, construct

SEEDS = 200


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the numbers -----------------------------------------------------------------------------------------------------


def test_signs_and_buckets_are_bits_of_splitmix64() -> None:
    key = int.from_bytes(
        hashlib.blake2b(b"3:sign:fc.weight", digest_size=8, person=b"influence.sign").digest(), "little"
    )
    assert hash_key(3, "fc.weight", "sign") == key
    stream = [z >> 32 for z in splitmix64_stream(key, 30)]
    assert signs(key, (5, 6), CPU).flatten().tolist() == [1 - 2 * (z & 1) for z in stream]
    assert buckets(key, 30, 7, CPU).tolist() == [z * 7 // 2**32 for z in stream]


def test_another_seed_name_or_purpose_is_another_stream() -> None:
    keys = {hash_key(s, n, w) for s in (0, 1) for n in ("a", "b") for w in ("in", "out")}
    assert len(keys) == 8


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=30), st.integers(1, 5000))
def test_layers_share_what_there_is(sizes: list[int], total: int) -> None:
    if total < len(sizes):
        with pytest.raises(ValueError, match="layers"):
            shared_widths(sizes, total)
        return
    widths = shared_widths(sizes, total)
    assert all(1 <= w <= size for w, size in zip(widths, sizes, strict=True))
    assert sum(widths) <= total
    assert sum(widths) == sum(sizes) or sum(widths) > total - len(sizes)  # what is lost is lost by rounding down
    by_size = [w for _, w in sorted(zip(sizes, widths, strict=True))]
    assert by_size == sorted(by_size)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000))
def test_factors_fit_and_cost_no_more_than_the_layer(inputs: int, outputs: int, width: int) -> None:
    width = min(width, inputs * outputs)
    m, s_in, s_out = factor_shape(inputs, outputs, width)
    assert 1 <= s_in <= inputs
    assert 1 <= s_out <= outputs
    assert m * s_in * s_out <= width
    assert m == 1 or s_in == s_out
    as_small_as_can_be = s_in == min(inputs, outputs) or s_in == math.isqrt(width)
    assert m == 1 or as_small_as_can_be or m * s_in * (inputs + outputs) <= inputs * outputs


def test_the_factorised_sketch_is_that_of_the_matrix() -> None:
    a, d = drawn(0, 3, 4, 5), drawn(1, 3, 4, 6)
    r_in, r_out = drawn(2, 2 * 3, 5), drawn(3, 2 * 3, 6)
    g = torch.einsum("rto,rti->roi", d, a)
    expected = [r_out[3 * k : 3 * k + 3] @ g @ r_in[3 * k : 3 * k + 3].T for k in range(2)]
    found = factor_sketch(a, d, r_in, r_out, 2)
    assert relative_error(found.numpy(), torch.stack(expected, 1).flatten(1).numpy()) < 1e-12
    assert relative_error(factor_sketch(a, d, None, None, 1).numpy(), g.flatten(1).numpy()) < 1e-12


def spread(dots: list[float], expected: float, variance: float) -> None:
    """The mean is ``expected`` to four standard errors, and the standard deviation that of the formula to 10 %."""
    mean, deviation = float(np.mean(dots)), math.sqrt(float(np.mean((np.array(dots) - expected) ** 2)))
    assert abs(mean - expected) < 4.0 * math.sqrt(variance / len(dots))
    assert deviation == pytest.approx(math.sqrt(variance), rel=0.1)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_plain_sketch_is_unbiased_with_the_variance_of_dense_signs(k: int) -> None:
    g, h = drawn(1, 60), 0.5 * drawn(1, 60) + drawn(2, 60)
    dots: list[float] = []
    dense: list[float] = []
    for seed in range(1000):
        sign = signs(hash_key(seed, "w", "sign"), (60,), CPU)
        a, b = plain_sketch(torch.stack([g, h]), sign, buckets(hash_key(seed, "w", "bucket"), 60, k, CPU), k)
        dots.append(float(a @ b))
        r = signs(hash_key(seed, "w", "dense"), (k, 60), CPU).double() / math.sqrt(k)
        dense.append(float((r @ g) @ (r @ h)))
    spread(dots, float(g @ h), plain_variance(g, h, k))
    spread(dense, float(g @ h), plain_variance(g, h, k))


@pytest.mark.parametrize(
    ("groups", "s_in", "s_out"), [(1, 1, 1), (1, 3, 3), (5, 1, 1), (4, 2, 2), (1, 4, None), (1, None, 3)]
)
@pytest.mark.parametrize("rank", [1, 4])
def test_the_factorised_sketch_is_unbiased_with_its_variance(
    groups: int, s_in: int | None, s_out: int | None, rank: int
) -> None:
    """Rank one is a row at a single position; G and H share some of their positions."""
    inputs, outputs = 9, 7
    a, d = drawn(1, 1, rank, inputs), drawn(2, 1, rank, outputs)
    b, e = 0.6 * a + drawn(3, 1, rank, inputs), 0.6 * d + drawn(4, 1, rank, outputs)
    g, h = (torch.einsum("rto,rti->oi", y, x) for x, y in ((a, d), (b, e)))
    dots: list[float] = []
    for seed in range(2000):
        r_in, r_out = (
            None if s is None else signs(hash_key(seed, "w", side), (groups * s, wide), CPU).double() / math.sqrt(s)
            for side, s, wide in (("in", s_in, inputs), ("out", s_out, outputs))
        )
        x, y = (factor_sketch(i, o, r_in, r_out, groups)[0] / math.sqrt(groups) for i, o in ((a, d), (b, e)))
        dots.append(float(x @ y))
    spread(dots, float((g * h).sum()), factor_variance(g, h, groups, s_in, s_out))


# -- every shape of layer --------------------------------------------------------------------------------------------


def blocks_of(name: str) -> tuple[list[Block], nn.Module, Tensor, Tensor]:
    """The blocks of a construct's batch in float64."""
    model, x, y = construct(name)
    values = RowValues(Point(model, "all", None, "fp64", CPU), CROSS_ENTROPY, ())
    assert values.ready(x)
    return values.blocks(x, y)[1], model, x, y


def variance_of(layer: LayerColumns, block: Block, g: Tensor, h: Tensor) -> float:
    if layer.how == "whole":
        return 0.0
    if layer.how == "plain":
        return plain_variance(g, h, layer.width)
    assert block.layout.affine is not None
    outputs = block.layout.affine.shape[0]
    wide = block.layout.size // outputs
    s_in = None if layer.groups == 1 and layer.s_in == wide else layer.s_in
    s_out = None if layer.groups == 1 and layer.s_out == outputs else layer.s_out

    def matrix(v: Tensor) -> Tensor:  # the bias is the last column
        weight, bias = v[: outputs * (wide - 1)], v[outputs * (wide - 1) :]
        has_bias = len(block.layout.shapes) == 2
        return torch.cat([weight.view(outputs, -1), bias[:, None]], 1) if has_bias else v.view(outputs, wide)

    return factor_variance(matrix(g), matrix(h), layer.groups, s_in, s_out)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("values_a_layer", [3, 9])
def test_inner_products_of_every_shape_of_layer_are_unbiased_over_seeds(name: str, values_a_layer: int) -> None:
    """By layer over 200 seeds: means of all pairs of rows, and the deviation over pairs to 10 % of the formula's."""
    blocks, *_ = blocks_of(name)
    layers = laid_out(tuple(b.layout for b in blocks), values_a_layer * len(blocks))
    assert sum(layer.width for layer in layers) <= values_a_layer * len(blocks)
    empirical = formula = 0.0
    for layer, block in zip(layers, blocks, strict=True):
        g = block.row_gradients()
        exact = (g @ g.T).numpy()
        expected = np.array([[variance_of(layer, block, a, b) for b in g] for a in g])
        assert expected.any() == (layer.how != "whole" and bool(g.any()))
        total, squares = np.zeros(exact.shape), np.zeros(exact.shape)
        for seed in range(SEEDS):
            value, norms = Projection(layer, seed).of(block)
            dots = (value @ value.T).numpy()
            total += dots
            squares += (dots - exact) ** 2
        assert relative_error(norms.numpy(), exact.diagonal()) < 1e-12
        floor = 1e-12 * np.abs(exact).max() + 1e-30
        assert np.all(np.abs(total / SEEDS - exact) <= 5.0 * np.sqrt(np.maximum(expected, 0.0) / SEEDS) + floor)
        size = expected.sum()
        if size > 0:
            empirical, formula = empirical + squares.sum() / SEEDS / size, formula + 1.0
    assert formula > 0
    assert math.sqrt(empirical / formula) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5)])
def test_whole_gradients_of_every_construct_equal_the_loop(name: str, precision: str, tolerance: float) -> None:
    model, x, y = construct(name)
    expected = list(row_gradients(model, x, y))
    found = RowGradients(Point(model, "all", None, precision, CPU), CROSS_ENTROPY)
    x = x.to(found.point.dtype) if x.is_floating_point() else x
    assert found.ready(x)
    values, norms, _ = found.of(x, y)
    assert found.layers is not None
    assert values.shape[1] == found.dim == found.layout()["dim"]
    for k, g in enumerate(expected):
        flat = torch.cat([g[n].flatten() for layer in found.layers for n in layer.parameters])
        assert relative_error(values[k].double().numpy(), flat.numpy()) < tolerance
        by_layer = [sum(float(g[n].square().sum()) for n in layer.parameters) for layer in found.layers]
        assert relative_error(norms[k].numpy(), np.array(by_layer)) < 10 * tolerance


@pytest.mark.parametrize(
    "name", ["attention", "tied", "grouped conv", "batch norm", "called twice", "padding and mask"]
)
def test_a_sketch_is_the_same_in_every_batch_and_its_norms_are_exact(name: str) -> None:
    model, x, y = construct(name)
    layers = len(blocks_of(name)[0])

    def sketched(step: int, seed: int = 4) -> tuple[Tensor, Tensor]:
        found = RowGradients(Point(model, "all", None, "fp64", CPU), CROSS_ENTROPY, 5 * layers, seed)
        assert found.ready(x)
        made = [found.of(x[k : k + step], y[k : k + step]) for k in range(0, len(x), step)]
        return torch.cat([v for v, _, _ in made]), torch.cat([n for _, n, _ in made])

    whole, norms = sketched(len(x))
    for step in (1, 4):
        again, same = sketched(step)
        assert relative_error(again.numpy(), whole.numpy()) < 1e-12
        assert relative_error(same.numpy(), norms.numpy()) < 1e-12
    exact = [sum(float(g.square().sum()) for g in row.values()) for row in row_gradients(model, x, y)]
    assert relative_error(norms.sum(1).numpy(), np.array(exact)) < 1e-12
    assert relative_error(sketched(len(x), seed=5)[0].numpy(), whole.numpy()) > 0.1


def test_few_values_for_many_layers_are_refused_with_a_way_out() -> None:
    model, x, _ = construct("attention")
    found = RowGradients(Point(model, "all", None, "fp64", CPU), CROSS_ENTROPY, 1)
    with pytest.raises(UsageError, match="layers") as error:
        found.ready(x)
    assert "--sketch-dim" in str(error.value.fix)


def test_enough_values_are_the_gradient_itself() -> None:
    model, x, y = construct("grouped conv")
    point = Point(model, "all", None, "fp64", CPU)
    made = []
    for dim in (None, 10**6):
        found = RowGradients(point, CROSS_ENTROPY, dim)
        assert found.ready(x)
        made.append(found.of(x, y)[0])
    assert torch.equal(*made)
