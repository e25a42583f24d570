"""Conjugate gradients and Lanczos on matrices of known spectrum (methods.md T16, T17, T21; P5).

python -m pytest tests/maths/test_krylov.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from influence_cli.maths.conjugate_gradients import RECOMPUTE, conjugate_gradients
from influence_cli.maths.iterative import Interim, State
from influence_cli.maths.lanczos import lanczos, ritz
from tests.oracle import relative_error

Floats = NDArray[np.float64]


def matrix_of(eigenvalues: Floats, seed: int = 0) -> Floats:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))[0]
    return (q * eigenvalues) @ q.T


def columns(d: int, k: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(d, k))


class Kept(Interim):
    """Goes on from a state, and keeps a copy of all that it is offered."""

    def __init__(self, state: State | None = None) -> None:
        self.state, self.states = state, list[State]()

    def load(self) -> State | None:
        return self.state

    def offer(self, state: Callable[[], State]) -> None:
        self.states.append({name: array.copy() for name, array in state().items()})


# -- conjugate gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 5, 12])
def test_t16_equals_the_dense_solve_within_d_iterations(d: int) -> None:
    a, b = matrix_of(np.linspace(1.0, 3.0, d)), columns(d, 3)
    solved = conjugate_gradients(lambda v: a @ v, b, 1e-11)
    assert relative_error(solved.x, np.linalg.solve(a, b)) < 1e-10
    assert solved.iterations.max() <= d
    assert solved.residuals.max() <= 1e-11


def test_the_error_falls_as_the_condition_number_says_and_always_in_the_norm_of_a() -> None:
    """|e_k|_A <= 2 ((sqrt c - 1) / (sqrt c + 1))^k |e_0|_A."""
    condition = 50.0
    a, b = matrix_of(np.linspace(1.0, condition, 60)), columns(60, 1)
    exact = np.linalg.solve(a, b)
    errors = [float(np.sqrt((exact.T @ a @ exact).item()))]
    for most in range(1, 30):
        e = conjugate_gradients(lambda v: a @ v, b, 1e-15, most).x - exact
        errors.append(float(np.sqrt((e.T @ a @ e).item())))
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    rate = (np.sqrt(condition) - 1) / (np.sqrt(condition) + 1)
    assert all(error <= 2 * rate**k * errors[0] * (1 + 1e-9) for k, error in enumerate(errors))


def test_columns_share_products_and_one_that_is_done_takes_part_no_more() -> None:
    """A column in an eigenspace ends after one iteration and a zero one before any; the third goes on alone."""
    a = np.diag(np.arange(1.0, 9.0))
    b = np.stack([np.eye(8)[2], np.zeros(8), np.ones(8)], axis=1)
    widths: list[int] = []

    def product(v: Floats) -> Floats:
        widths.append(v.shape[1])
        return a @ v

    solved = conjugate_gradients(product, b, 1e-12)
    assert solved.iterations.tolist() == [1, 0, 8]
    assert widths[:3] == [2, 1, 1]  # both, the first's true residual, the last alone
    assert solved.x[:, 1].tolist() == [0.0] * 8
    alone = conjugate_gradients(lambda v: a @ v, b[:, 2:], 1e-12)
    assert relative_error(solved.x[:, 2:], alone.x) < 1e-14


def test_the_residual_is_that_of_the_definition_though_products_be_rounded() -> None:
    """In float32 the recursion's residual goes on falling while the true one stands still; the latter is reported."""
    a, b = matrix_of(np.geomspace(1e-4, 1.0, 80)), columns(80, 1)
    rounded = a.astype(np.float32)
    calls: list[int] = []

    def product(v: Floats) -> Floats:
        calls.append(1)
        return (rounded @ v.astype(np.float32)).astype(np.float64)

    solved = conjugate_gradients(product, b, 1e-9, 120)
    assert solved.iterations.tolist() == [120]  # and it is not said to have converged
    assert solved.residuals[0] > 1e-9
    assert solved.residuals[0] == pytest.approx(np.linalg.norm(b - product(solved.x)) / np.linalg.norm(b), rel=1e-12)
    assert len(calls) >= 120 + 120 // RECOMPUTE
    shorter = [conjugate_gradients(product, b, 1e-9, most).residuals[0] for most in range(20, 121, RECOMPUTE)]
    assert solved.course.tolist() == shorter


@pytest.mark.parametrize("eigenvalues", [[-1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
def test_t17_negative_curvature_stops_the_column_alone(eigenvalues: list[float]) -> None:
    a, b = np.diag(eigenvalues), np.array([[2.0, 0.0], [0.5, 1.0], [0.5, 0.0]])
    solved = conjugate_gradients(lambda v: a @ v, b, 1e-12)
    assert solved.negative[0] <= 0
    assert solved.negative[0] >= min(eigenvalues)
    assert solved.residuals[0] > 1e-12
    if eigenvalues[1] > 0:  # the other column never meets the negative direction
        assert np.isnan(solved.negative[1])
        assert solved.x[:, 1] == pytest.approx([0.0, 0.5, 0.0])


def test_a_solve_goes_on_from_any_state_to_the_same_bits() -> None:
    a, b = matrix_of(np.geomspace(0.01, 1.0, 40)), columns(40, 2)
    states = (kept := Kept()).states
    whole = conjugate_gradients(lambda v: a @ v, b, 1e-8, 100, kept)
    assert len(states) == whole.iterations.max()
    older = {name: array for name, array in states[2].items() if name != "course"}  # as earlier versions left it
    for state in (states[0], states[len(states) // 2], states[-1], older):
        again = conjugate_gradients(lambda v: a @ v, b, 1e-8, 100, Kept(state))
        assert again.x.tobytes() == whole.x.tobytes()
        assert again.iterations.tolist() == whole.iterations.tolist()
        assert again.course.tolist() == whole.course.tolist()


# -- Lanczos -------------------------------------------------------------------------------------------------------


def test_t21_all_of_the_space_solves_to_rounding_and_is_orthogonal() -> None:
    e = np.geomspace(1e-3, 10.0, 40)
    a, b = matrix_of(e), columns(40, 2)
    found = lanczos(lambda v: a @ v, columns(40, 1)[:, 0], 40, 1e-12)
    assert np.abs(found.basis @ found.basis.T - np.eye(40)).max() < 1e-10
    values, vectors = ritz(found.diagonal, found.beside)
    assert relative_error(values, e) < 1e-12
    u = found.basis.T @ vectors
    assert relative_error(u @ ((u.T @ b) / values[:, None]), np.linalg.solve(a, b)) < 1e-6


def test_t21_leading_ritz_values_of_a_spectrum_that_decays() -> None:
    e = 2.0 ** -np.arange(200.0)
    a = matrix_of(e)
    found = lanczos(lambda v: a @ v, columns(200, 1)[:, 0], 30, 1e-14)
    values = ritz(found.diagonal, found.beside)[0]
    assert relative_error(np.sort(values)[::-1][:10], e[:10]) < 1e-12
    assert len(np.unique(values.round(13))) == len(values)  # no ghosts


def test_t21_a_matrix_of_rank_8_breaks_down_and_keeps_every_vector() -> None:
    e = np.concatenate([np.linspace(1.0, 4.0, 8), np.zeros(42)])
    a = matrix_of(e)
    found = lanczos(lambda v: a @ v, columns(50, 1)[:, 0], 50, 1e-8)
    assert found.complete
    assert 8 <= len(found.basis) <= 10
    assert np.abs(found.basis @ found.basis.T - np.eye(len(found.basis))).max() < 1e-10
    values = ritz(found.diagonal, found.beside)[0]
    assert relative_error(np.sort(values)[-8:], e[:8]) < 1e-10
    assert lanczos(lambda v: 0.0 * v, np.ones(3), 3, 1e-8).complete  # the zero matrix: one vector


def test_single_precision_keeps_the_vectors_orthogonal_to_single_precision() -> None:
    a = matrix_of(np.geomspace(1e-3, 1.0, 100))
    found = lanczos(lambda v: a @ v, columns(100, 1)[:, 0].astype(np.float32), 60, 1e-4)
    assert found.basis.dtype == np.float32
    assert np.abs(found.basis @ found.basis.T - np.eye(len(found.basis))).max() < 1e-6


def test_a_basis_goes_on_from_any_state_to_the_same_bits() -> None:
    a, start = matrix_of(np.geomspace(0.01, 1.0, 40)), columns(40, 1)[:, 0]
    states = (kept := Kept()).states
    whole = lanczos(lambda v: a @ v, start, 20, 1e-8, kept)
    assert len(states) == 19
    for state in (states[0], states[9], states[-1]):
        again = lanczos(lambda v: a @ v, start, 20, 1e-8, Kept(state))
        assert again.basis.tobytes() == whole.basis.tobytes()
        assert again.diagonal.tobytes() == whole.diagonal.tobytes()
