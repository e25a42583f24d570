"""Kronecker factors and rank-one inverses against dense matrices in float64 (methods.md T22 to T26).

python -m pytest tests/maths/test_kronecker_maths.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature import rank_one
from influence_cli.maths import kronecker
from influence_cli.maths.hashed_draws import keyed_uniform
from influence_cli.maths.kronecker import eigenbasis, label_at, output_root, preconditioned, rotated_squares
from tests.oracle import relative_error


def layer(seed: int, b: int = 9, steps: int = 3, wide: int = 4, tall: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, output gradients and weights of rows."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(b, steps, wide, generator=g, dtype=torch.float64)
    d = torch.randn(b, steps, tall, generator=g, dtype=torch.float64)
    return a, d, torch.rand(b, generator=g, dtype=torch.float64) + 0.5


def bases(a: Tensor, d: Tensor, w: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return tuple(eigenbasis(kronecker.second_moment(v, w) / w.sum()) for v in (a, d))  # type: ignore[return-value]


def dense_fisher(a: Tensor, d: Tensor, w: Tensor) -> NDArray[np.float64]:
    """Row by row, position by position, gradients flattened as [O, I]."""
    total = 0.0
    for i in range(len(a)):
        g = sum(torch.outer(d[i, t], a[i, t]) for t in range(a.shape[1]))
        assert isinstance(g, Tensor)
        total = total + w[i] * torch.outer(g.flatten(), g.flatten())
    assert isinstance(total, Tensor)
    return (total / w.sum()).numpy()


@pytest.mark.parametrize("steps", [1, 2, 3, 7])  # one position, fewer than outputs, as many, more
@pytest.mark.parametrize("few", [False, True])
def test_t22_eigenvalues_are_the_diagonal_of_the_rotated_dense_fisher(
    steps: int, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if few:
        monkeypatch.setattr(kronecker, "BLOCK", 24)  # two rows at a time
    a, d, w = layer(0, steps=steps)
    (_, q_a), (_, q_s) = bases(a, d, w)
    lam = rotated_squares(a, d, w, q_a, q_s) / w.sum()
    q = torch.kron(q_s, q_a).numpy()
    assert relative_error(lam.flatten().numpy(), np.diag(q.T @ dense_fisher(a, d, w) @ q)) < 1e-12


def test_t24_positions_are_summed_before_they_are_squared() -> None:
    a, d, w = layer(1)
    (_, q_a), (_, q_s) = bases(a, d, w)
    lam = rotated_squares(a, d, w, q_a, q_s)
    each = sum(rotated_squares(a[:, t : t + 1], d[:, t : t + 1], w, q_a, q_s) for t in range(3))
    assert isinstance(each, Tensor)
    assert float((lam - each).abs().max()) > 0.1 * float(lam.max())


def test_t22_applying_is_the_dense_inverse() -> None:
    a, d, w = layer(2)
    (_, q_a), (_, q_s) = bases(a, d, w)
    lam = (rotated_squares(a, d, w, q_a, q_s) / w.sum()).numpy()
    q = np.random.default_rng(0).normal(size=(3, 4))
    basis = torch.kron(q_s, q_a).numpy()
    expected = basis @ ((basis.T @ q.ravel()) / (lam.ravel() + 0.1))
    assert relative_error(preconditioned(q, q_a.numpy(), q_s.numpy(), lam + 0.1).ravel(), expected) < 1e-12


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 4])
def test_t23_corrected_eigenvalues_are_nearer_to_the_fisher_than_kfac_s(seed: int, steps: int) -> None:
    a, d, w = layer(seed, steps=steps)
    (e_a, q_a), (e_s, q_s) = bases(a, d, w)
    lam = rotated_squares(a, d, w, q_a, q_s) / w.sum()
    q, fisher = torch.kron(q_s, q_a).numpy(), dense_fisher(a, d, w)

    def error(values: Tensor) -> float:
        return float(np.linalg.norm(fisher - q @ np.diag(values.flatten().numpy()) @ q.T))

    assert error(lam) < error(torch.outer(e_s / steps, e_a)) * (1 - 1e-6)


def test_t24_one_layer_with_squared_error_is_exact_and_so_is_one_row() -> None:
    """Squared error: output gradients whose second moment is the identity in every row, an output at a time."""
    a, _, w = layer(3, steps=1)
    columns = [torch.eye(3, dtype=torch.float64)[c].expand(len(a), 1, 3) for c in range(3)]
    fisher = sum(dense_fisher(a, d, w) for d in columns)
    for rows, of_rows in ((slice(None), fisher), (slice(0, 1), None)):
        outputs = columns if of_rows is not None else [*torch.randn(3, 1, 1, 3, dtype=torch.float64)]
        inside, weights = a[rows], w[rows]
        expected = fisher if of_rows is not None else sum(dense_fisher(inside, d, weights) for d in outputs)
        _, q_a = eigenbasis(kronecker.second_moment(inside, weights))
        _, q_s = eigenbasis(sum((kronecker.second_moment(d, weights) for d in outputs), torch.zeros(3, 3)))
        lam = sum(rotated_squares(inside, d, weights, q_a, q_s) for d in outputs) / weights.sum()
        assert isinstance(lam, Tensor)
        basis = torch.kron(q_s, q_a).numpy()
        found = basis @ np.diag(lam.flatten().numpy()) @ basis.T
        assert relative_error(found.ravel(), np.asarray(expected).ravel()) < 1e-11


def test_the_output_root_squares_to_the_output_curvature() -> None:
    p = torch.rand(6, 5, dtype=torch.float64).softmax(1)
    p[0] = torch.tensor([1.0, 0, 0, 0, 0])
    root = output_root(p)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    assert float((root @ root.mT - expected).abs().max()) < 1e-15


def test_labels_are_drawn_as_often_as_they_are_likely_and_belong_to_the_key() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (20_000, 16), dtype=np.uint8)
    u = keyed_uniform(keys, 3, 1)
    p = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(len(u), 4)
    drawn = label_at(p, torch.from_numpy(u)).numpy()
    shares = np.bincount(drawn, minlength=4) / len(u)
    assert np.abs(shares - [0.1, 0.0, 0.6, 0.3]).max() < 4 * 0.5 / len(u) ** 0.5
    assert shares[1] == 0.0
    order = np.random.default_rng(1).permutation(len(u))
    assert np.array_equal(keyed_uniform(keys[order], 3, 1), u[order])
    for other in (keyed_uniform(keys, 4, 1), keyed_uniform(keys, 3, 2), keyed_uniform(keys, 1, 3)):
        assert abs(float(np.corrcoef(u, other)[0, 1])) < 4 / len(u) ** 0.5
    assert 0.0 <= u.min() < u.max() < 1.0


def test_eigenvectors_of_moments_with_dead_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    a, _, w = layer(4, wide=6)
    a[:, :, [1, 4]] = 0.0
    moment = kronecker.second_moment(a, w)

    def failing(matrix: Tensor) -> Any:
        raise RuntimeError("it did not converge")

    for _ in range(2):
        values, vectors = eigenbasis(moment)
        assert relative_error((vectors * values @ vectors.T).flatten().numpy(), moment.flatten().numpy()) < 1e-14
        assert float((vectors.T @ vectors - torch.eye(6)).abs().max()) < 1e-14
        assert (values[:2] == 0.0).all()
        monkeypatch.setattr(torch.linalg, "eigh", failing)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_dead_inputs_and_their_eigenvectors_are_in_no_product(steps: int) -> None:
    """The numbers are those of the whole matrices; what is not a number among the dead reaches nothing."""
    torch.manual_seed(6)
    a, d = (torch.randn(9, steps, k, dtype=torch.float64) for k in (6, 4))
    w, shares = torch.rand(9, dtype=torch.float64) + 0.5, torch.rand(4, 6, dtype=torch.float64) + 0.1
    dead = [1, 4]
    a[:, :, dead] = 0.0
    moment = kronecker.second_moment(a, w)
    assert relative_error(moment.flatten().numpy(), torch.einsum("b,bti,btj->ij", w, a, a).flatten().numpy()) < 1e-14
    (_, q_a), (_, q_s) = eigenbasis(moment), eigenbasis(kronecker.second_moment(d, w))
    g = torch.einsum("bto,bti->boi", d, a)
    turned = q_s.T @ g @ q_a
    q = g[0].numpy()
    inverse = (q_s @ (turned[0] * shares) @ q_a.T).numpy()
    squares, forms = torch.einsum("boi,b->oi", turned.square(), w), (turned.square() * shares).sum((1, 2))
    poisoned = q_a.clone()
    poisoned[dead] = q_a[dead].masked_fill(q_a[dead] != 0.0, float("nan"))
    assert poisoned.isnan().any()
    assert relative_error(rotated_squares(a, d, w, poisoned, q_s).numpy().ravel(), squares.numpy().ravel()) < 1e-13
    assert relative_error(kronecker.inverse_forms(a, d, poisoned, q_s, shares).numpy(), forms.numpy()) < 1e-13
    found = preconditioned(q, poisoned.numpy(), q_s.numpy(), 1.0 / shares.numpy())
    assert relative_error(found.ravel(), inverse.ravel()) < 1e-13


# -- DataInf -------------------------------------------------------------------------------------------------------


def lean(g: NDArray[np.float64], v: NDArray[np.float64], w: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    dots, squares = torch.from_numpy(g @ v), torch.from_numpy((g * g).sum(axis=1))
    c = rank_one.coefficients(dots, squares, damping).numpy()
    return (v - g.T @ (w * c) / w.sum()) / damping


def dense(
    g: NDArray[np.float64], v: NDArray[np.float64], w: NDArray[np.float64], damping: float
) -> NDArray[np.float64]:
    """The mean over rows of inverses, one by one."""
    eye = damping * np.eye(len(v))
    return sum(wi * np.linalg.solve(np.outer(gi, gi) + eye, v) for gi, wi in zip(g, w, strict=True)) / w.sum()


@pytest.fixture
def rows() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 6)), rng.normal(size=6), rng.uniform(0.5, 2.0, 12)


def test_t25_the_lean_form_is_the_mean_of_inverses(rows: tuple[NDArray[np.float64], ...]) -> None:
    g, v, w = rows
    for damping in (0.01, 1.0, 50.0):
        assert relative_error(lean(g, v, w, damping), dense(g, v, w, damping)) < 1e-11


def test_t25_one_row_and_identical_rows_are_exact(rows: tuple[NDArray[np.float64], ...]) -> None:
    g, v, _ = rows
    expected = np.linalg.solve(np.outer(g[0], g[0]) + 0.3 * np.eye(6), v)
    for count in (1, 5):
        assert relative_error(lean(np.tile(g[:1], (count, 1)), v, np.ones(count), 0.3), expected) < 1e-11


def test_t25_orthogonal_rows_of_one_size_have_a_closed_form() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(8, 5)))[0].T * 3.0  # squared norm 9
    v = basis.T @ rng.normal(size=5)
    expected = v / 0.7 * (1 - 9.0 / (5 * (0.7 + 9.0)))
    assert relative_error(lean(basis, v, np.ones(5), 0.7), expected) < 1e-11


def test_t26_the_mean_of_inverses_is_above_the_inverse_of_the_mean_until_damping_is_large(
    rows: tuple[NDArray[np.float64], ...],
) -> None:
    g, v, w = rows
    second = (g * w[:, None]).T @ g / w.sum()
    errors = []
    for damping in (1.0, 10.0, 100.0, 1000.0):
        inverse = np.linalg.solve(second + damping * np.eye(6), v)
        assert v @ lean(g, v, w, damping) >= v @ inverse
        errors.append(relative_error(lean(g, v, w, damping), inverse))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_a_tensor_without_gradients_is_damped_a_little() -> None:
    assert rank_one.default_dampings([10.0, 0.0]) == [1.0, 1e-8]
    assert rank_one.default_dampings([]) == []


@pytest.mark.parametrize(("steps", "tall", "wide"), [(1, 3, 4), (2, 5, 4), (7, 3, 4), (0, 3, 4)])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_inverse_forms_are_weighted_squares_in_the_basis(
    steps: int, tall: int, wide: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One position, fewer positions than outputs, more, and none; rows one at a time and all at once."""
    monkeypatch.setattr(kronecker, "FORM_BLOCK", block)
    rng = np.random.default_rng(0)
    a, d = rng.normal(size=(6, steps, wide)), rng.normal(size=(6, steps, tall))
    q_a, q_s = (np.linalg.qr(rng.normal(size=(k, k)))[0] for k in (wide, tall))
    shares = rng.uniform(0.1, 2.0, size=(tall, wide))
    turned = np.einsum("op,bto,bti,ij->bpj", q_s, d, a, q_a)
    found = kronecker.inverse_forms(*map(torch.from_numpy, (a, d, q_a, q_s, shares)))
    assert found.dtype == torch.float64
    assert np.allclose(found.numpy(), (turned**2 * shares).sum((1, 2)), rtol=1e-12, atol=0)
