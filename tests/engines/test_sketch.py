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

from influence_cli.engines.layerwise.blocks import Block
from influence_cli.engines.point import Point
from influence_cli.engines.row_gradients import LayerColumns, Projection, RowGradients, laid_out
from influence_cli.engines.row_values import RowValues
from influence_cli.maths.sketch import add_folded, factor_bound, factor_shape, factor_sketch, hash_key, shifts, signs
from influence_cli.model.losses import CROSS_ENTROPY
from tests.engines.test_engine import CPU
from tests.engines.test_layers import EVERY, construct
from tests.oracle import relative_error, row_gradients, splitmix64_stream

SEEDS = 200


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- the numbers -----------------------------------------------------------------------------------------------------


def test_signs_and_shifts_are_bits_of_splitmix64() -> None:
    key = int.from_bytes(
        hashlib.blake2b(b"3:sign:fc.weight", digest_size=8, person=b"influence.sign").digest(), "little"
    )
    assert hash_key(3, "fc.weight", "sign") == key
    stream = [z >> 32 for z in splitmix64_stream(key, 30)]
    assert signs(key, (5, 6), CPU).flatten().tolist() == [1 - 2 * (z & 1) for z in stream]
    assert shifts(key, 30, 7) == [z * 7 // 2**32 for z in stream]


def test_another_seed_name_or_purpose_is_another_stream() -> None:
    keys = {hash_key(s, n, w) for s in (0, 1) for n in ("a", "b") for w in ("in", "out")}
    assert len(keys) == 8


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


def folded(seed: int, rows: Tensor, k: int, name: str = "w") -> Tensor:
    p = rows.shape[1]
    total = rows.new_zeros(len(rows), k)
    sign = signs(hash_key(seed, name, "sign"), (p,), CPU)
    add_folded(total, rows, sign, shifts(hash_key(seed, name, "shift"), -(-p // k), k))
    return total


def test_folding_is_a_sum_of_signed_entries_at_their_places() -> None:
    rows, k = drawn(0, 2, 11), 4
    sign, shift = signs(5, (11,), CPU), [3, 0, 2]
    total = torch.ones(2, k, dtype=torch.float64)
    add_folded(total, rows, sign, shift)
    expected = torch.ones(2, k, dtype=torch.float64)
    for j in range(11):
        expected[:, (j + shift[j // k]) % k] += int(sign[j]) * rows[:, j]
    assert relative_error(total.numpy(), expected.numpy()) < 1e-12


def folded_variance(g: Tensor, h: Tensor, k: int) -> float:
    """Variance of the folded <Sg, Sh> for vectors g and h: of pairs in two blocks of k alone."""

    def blocks(v: Tensor) -> Tensor:
        padded: Tensor = torch.nn.functional.pad(v, (0, -len(v) % k))
        return padded.reshape(-1, k).sum(1)

    g2, h2, gh = blocks(g.square()), blocks(h.square()), blocks(g * h)
    return float(g2.sum() * h2.sum() - g2 @ h2 + gh.sum() ** 2 - gh.square().sum()) / k


def factor_variance(g: Tensor, h: Tensor, groups: int, s_in: int | None, s_out: int | None) -> float:
    """Variance of the factorised <Sg, Sh> for matrices g and h [out, in]; None: that factor is the identity.

    W = |G|^2 |H|^2 + <G^T G, H^T H> + <G G^T, H H^T> + <G, H>^2 - 2 sum_k |G_.k|^2 |H_.k|^2 - 2 sum_i |G_i.|^2 |H_i.|^2
    - 2 sum_k <G_.k, H_.k>^2 - 2 sum_i <G_i., H_i.>^2 + 4 sum_ik G_ik^2 H_ik^2, from the fourth moments of signs.
    """

    def v(m: Tensor) -> float:
        return float(m.square().sum() + (m * m.T).sum() - 2.0 * m.diagonal().square().sum())

    g2, h2, gh = g.square(), h.square(), g * h
    w = g2.sum() * h2.sum() + ((g.T @ g) * (h.T @ h)).sum() + ((g @ g.T) * (h @ h.T)).sum() + gh.sum() ** 2
    w = w - 2.0 * (g2.sum(0) @ h2.sum(0) + g2.sum(1) @ h2.sum(1) + gh.sum(0).square().sum() + gh.sum(1).square().sum())
    w = float(w + 4.0 * gh.square().sum())
    found = 0.0 if s_in is None else v(g.T @ h) / s_in
    found += 0.0 if s_out is None else v(g @ h.T) / s_out
    found += 0.0 if s_in is None or s_out is None else w / (s_in * s_out)
    return found / groups


@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_folded_sketch_is_unbiased_with_the_variance_of_dense_signs_at_most(k: int) -> None:
    g, h = drawn(1, 60), 0.5 * drawn(1, 60) + drawn(2, 60)
    dots: list[float] = []
    dense: list[float] = []
    for seed in range(1000):
        a, b = folded(seed, torch.stack([g, h]), k)
        dots.append(float(a @ b))
        r = signs(hash_key(seed, "w", "dense"), (k, 60), CPU).double() / math.sqrt(k)
        dense.append(float((r @ g) @ (r @ h)))
    of_dense = (float(g @ g) * float(h @ h) + float(g @ h) ** 2 - 2.0 * float((g * h).square().sum())) / k
    spread(dense, float(g @ h), of_dense)
    spread(dots, float(g @ h), folded_variance(g, h, k))
    assert folded_variance(g, h, k) <= of_dense * (1.0 + 1e-12)
    if k == 1:
        assert folded_variance(g, h, k) == pytest.approx(of_dense)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 10**6))
def test_no_pair_of_matrices_exceeds_the_bound(inputs: int, outputs: int, width: int, seed: int) -> None:
    shape = factor_shape(inputs, outputs, min(width, inputs * outputs))
    m, s_in, s_out = shape
    kept = [None if m == 1 and s == wide else s for s, wide in ((s_in, inputs), (s_out, outputs))]
    bound = factor_bound(inputs, outputs, *shape)
    g = drawn(seed, outputs, inputs) * (drawn(seed + 1, outputs, inputs) > 0.5)
    d, a = drawn(seed + 2, outputs, 1), drawn(seed + 3, 1, inputs)
    for x, y in ((g, g), (d @ a, d @ a), (g, d @ a)):
        most = bound * float(x.square().sum() * y.square().sum())
        assert factor_variance(x, y, m, *kept) <= most * (1 + 1e-9) + 1e-12


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
    if layer.how == "folded":
        return folded_variance(g, h, layer.width)
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
@pytest.mark.parametrize(("most_folded", "k"), [(0, 12), (1 << 17, 11)], ids=["factors", "folded"])
def test_inner_products_of_every_shape_of_layer_are_unbiased_over_seeds(
    name: str, most_folded: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By layer over 200 seeds: means of all pairs of rows, and the deviation over pairs to 10 % of the formula's.

    The sum over layers has the variance of its layers, and of every two of them that share columns.
    """
    monkeypatch.setattr("influence_cli.engines.row_gradients.FOLDED", most_folded)
    blocks, *_ = blocks_of(name)
    layers = laid_out(tuple(b.layout for b in blocks), k)
    for layer, block in zip(layers, blocks, strict=True):
        small = block.layout.affine is None or block.layout.size <= most_folded
        assert layer.how == ("folded" if small else "factors")
    gradients = [block.row_gradients() for block in blocks]
    exact = torch.stack([g @ g.T for g in gradients]).numpy()  # [L, b, b]
    every = zip(layers, blocks, gradients, strict=True)
    expected = np.array([[[variance_of(layer, block, a, b) for b in g] for a in g] for layer, block, g in every])
    total, squares, all_squares = np.zeros(exact.shape), np.zeros(exact.shape), np.zeros(exact.shape[1:])
    for seed in range(SEEDS):
        whole = torch.zeros(len(gradients[0]), k, dtype=torch.float64)
        for position, (layer, block) in enumerate(zip(layers, blocks, strict=True)):
            value = torch.zeros_like(whole)
            norms = Projection(layer, seed).add(block, value)
            assert relative_error(norms.numpy(), exact[position].diagonal()) < 1e-12
            total[position] += (value @ value.T).numpy()
            squares[position] += ((value @ value.T).numpy() - exact[position]) ** 2
            whole += value
        all_squares += ((whole @ whole.T).numpy() - exact.sum(0)) ** 2
    error = np.abs(total / SEEDS - exact)
    assert np.all(error <= 5.0 * np.sqrt(np.maximum(expected, 0.0) / SEEDS) + 1e-12 * np.abs(exact).max())
    size = expected.sum((1, 2))
    ratio = (squares.sum((1, 2)) / SEEDS)[size > 0] / size[size > 0]
    assert math.sqrt(ratio.mean()) == pytest.approx(1.0, rel=0.1)
    n = exact.diagonal(axis1=1, axis2=2)  # squared norms [L, b]
    pairs = np.einsum("la,mb->ab", n, n) + exact.sum(0) ** 2 - np.einsum("la,lb->ab", n, n) - (exact**2).sum(0)
    assert math.sqrt(all_squares.sum() / SEEDS / (expected.sum() + pairs.sum() / k)) == pytest.approx(1.0, rel=0.1)


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
    assert [layer.how for layer in found.layers] == ["whole"] * len(found.layers)
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

    def sketched(step: int, seed: int = 4) -> tuple[Tensor, Tensor]:
        found = RowGradients(Point(model, "all", None, "fp64", CPU), CROSS_ENTROPY, 9, seed)
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


def test_enough_values_are_the_gradient_itself() -> None:
    model, x, y = construct("grouped conv")
    point = Point(model, "all", None, "fp64", CPU)
    made = []
    for dim in (None, 10**6):
        found = RowGradients(point, CROSS_ENTROPY, dim)
        assert found.ready(x)
        made.append(found.of(x, y)[0])
    assert torch.equal(*made)
