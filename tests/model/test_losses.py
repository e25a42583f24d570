"""Losses of labels that are no classes: squared error, Huber's, and summed binary losses.

Reference: plain formulas of these losses, differentiated by autograd in float64, row by row; scikit-learn's measures.
Behavioural: a loss that is none of the labels is refused with what to do.

    python -m pytest tests/model/test_losses.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from influence_cli.data.label_kinds import TASKS
from influence_cli.errors import UsageError
from influence_cli.maths.outputs_apart import Apart, fit_apart, logistic
from influence_cli.model.losses import is_loss, loss_in_spec, named_loss

torch.set_num_threads(1)
DELTA = 0.7
N, OUTPUTS = 15, 3


def squared(z: Tensor, y: Tensor) -> Tensor:
    return (z[0] - y) ** 2 / 2


def huber(z: Tensor, y: Tensor) -> Tensor:
    r = (z[0] - y).abs()
    return r**2 / 2 if float(r.detach()) <= DELTA else DELTA * (r - DELTA / 2)


def binary(z: Tensor, y: Tensor) -> Tensor:
    p = 1 / (1 + torch.exp(-z))
    return -(y * p.log() + (1 - y) * (1 - p).log()).sum()


CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"squared": squared, f"huber:{DELTA}": huber, "binary": binary}


def rows(name: str) -> tuple[Tensor, Tensor]:
    """Outputs and labels in float64."""
    rng = np.random.default_rng(3)
    if name == "binary":
        return torch.from_numpy(rng.normal(size=(N, OUTPUTS)) * 2), torch.from_numpy(rng.integers(0, 2, (N, OUTPUTS)))
    return torch.from_numpy(rng.normal(size=(N, 1))), torch.from_numpy(rng.normal(size=N))


@pytest.mark.parametrize("name", CASES)
def test_losses_slopes_and_curvature_are_those_of_the_plain_formula(name: str) -> None:
    loss, plain, (z, y) = named_loss(name), CASES[name], rows(name)
    values = torch.stack([plain(a, b) for a, b in zip(z, y, strict=True)])
    slopes = torch.stack(
        [torch.autograd.functional.jacobian(lambda v, b=b: plain(v, b), a) for a, b in zip(z, y, strict=True)]
    )
    bends = torch.stack(
        [torch.autograd.functional.hessian(lambda v, b=b: plain(v, b), a) for a, b in zip(z, y, strict=True)]
    )
    labels = y.to(torch.int8) if name == "binary" else y
    at = loss.curvature(z, labels)
    assert torch.allclose(loss.rows(z, labels), values, atol=1e-12)
    assert np.allclose(loss.losses(z.numpy(), labels.numpy()), values.numpy(), atol=1e-12)
    assert torch.allclose(loss.slopes(z, labels), slopes, atol=1e-12)
    assert torch.allclose(at.residuals(), slopes, atol=1e-12)
    over, size = loss.slopes_over_size(z, labels)
    assert torch.equal(over * size[:, None], loss.slopes(z, labels))
    t, w = torch.randn(N, z.shape[1]).double(), torch.rand(N).double()
    assert torch.allclose(at.times(t, w), w[:, None] * torch.einsum("bck,bk->bc", bends, t), atol=1e-12)
    assert torch.allclose(at.form(t), torch.einsum("bc,bck,bk->b", t, bends, t), atol=1e-12)
    root = at.root()
    assert torch.allclose(root @ root.mT, bends, atol=1e-12)
    for c in range(z.shape[1]):
        for k in range(c, z.shape[1]):
            entry = at.entry(c, k)
            assert torch.allclose(torch.zeros(N).double() if entry is None else entry, bends[:, c, k], atol=1e-12)
    jacobian = torch.randn(N, z.shape[1], 5).double()
    rooted = at.rooted(jacobian, w)
    expected = w[:, None, None] * torch.einsum("bcd,bck,bke->bde", jacobian, bends, jacobian)
    assert torch.allclose(torch.einsum("bcd,bce->bde", rooted, rooted), expected, atol=1e-12)
    scores, every = loss.scores(z.numpy(), t.numpy(), labels.numpy())
    assert every is None
    assert np.allclose(scores, (slopes * t).sum(1).numpy(), atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_drawn_gradients_have_mean_zero_and_the_curvature_as_covariance(name: str) -> None:
    loss, (z, y) = named_loss(name), rows(name)
    at = loss.curvature(z, y)
    rng, total, square, draws = np.random.default_rng(0), 0.0, 0.0, 2000
    for _ in range(draws):
        u = rng.uniform(size=(z.shape[1], N))
        g = at.drawn(lambda k, u=u: torch.from_numpy(u[k]))
        total, square = total + g, square + g[:, :, None] * g[:, None, :]
    root = at.root()
    bends = root @ root.mT
    assert float((total / draws).abs().max()) < 5.0 / draws**0.5
    assert float((square / draws - bends).abs().max()) < 5.0 / draws**0.5


def test_binary_slopes_are_exact_where_a_row_is_certain() -> None:
    loss = named_loss("binary")
    z, y = torch.tensor([[40.0, -50.0], [800.0, -900.0]]), torch.tensor([[1, 0], [1, 0]], dtype=torch.int8)
    slopes = loss.slopes(z, y)
    assert torch.allclose(slopes[0], torch.tensor([-np.exp(-40.0), np.exp(-50.0)]), rtol=1e-12, atol=0.0)
    over, size = loss.slopes_over_size(z, y)  # of the second row p is 0 in float64
    assert over[1].tolist() == [-1.0, np.exp(-100.0)]
    assert float(size[1]) == 0.0
    assert torch.allclose(over[0] * size[0], slopes[0], rtol=1e-12, atol=0.0)


def test_measures_are_those_of_scikit_learn() -> None:
    z, y = (v.numpy() for v in rows("binary"))
    said, found = z > 0, named_loss("binary").quality(z, y)
    assert found["accuracy"] == pytest.approx((said == y).mean())
    assert found["exact_match"] == pytest.approx(metrics.accuracy_score(y, said))
    assert found["micro_f1"] == pytest.approx(metrics.f1_score(y, said, average="micro"))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(y, said, average="macro"))
    z, y = (v.numpy() for v in rows("squared"))
    found = named_loss("squared").quality(z, y)
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, z[:, 0]))
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, z[:, 0]))
    assert found["r2"] == pytest.approx(metrics.r2_score(y, z[:, 0]))
    assert found["loss"] == pytest.approx(found["rmse"] ** 2 / 2)
    assert "r2" not in named_loss("squared").quality(z, np.ones(N))


def test_margins() -> None:
    z, y = np.array([[2.0, -1.0], [0.5, 3.0]]), np.array([[1, 0], [1, 0]], dtype=np.int8)
    assert named_loss("binary").margins(z, y).tolist() == [1.0, -3.0]
    assert named_loss("squared").margins(np.array([[2.0], [0.0]]), np.array([5.0, -1.0])).tolist() == [-3.0, -1.0]
    says = named_loss("binary").says(z, y)
    assert says["doubted_label"].tolist() == [1, 1]
    assert says["doubted_probability"].tolist() == pytest.approx([1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(3.0))])


def test_linear_fits_are_optima() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(1)
    x, w = np.hstack([rng.normal(size=(60, 3)), np.ones((60, 1))]), rng.uniform(0.5, 2.0, 60)
    numbers, flags = x @ rng.normal(size=(4, 1)) + rng.standard_t(2, size=(60, 1)), rng.integers(0, 2, (60, 2)) * 1.0
    for name, y in (("squared", numbers), (f"huber:{DELTA}", numbers), ("binary", flags)):
        loss = named_loss(name)
        parts = loss.apart()
        assert parts is not None
        best = fit_apart(Apart(x, y, w, parts, 0.05))
        labels = y.astype(np.int8) if name == "binary" else y[:, 0]

        def risk(theta: np.ndarray, y: np.ndarray = y, loss: object = loss, labels: np.ndarray = labels) -> float:
            z = x @ theta.reshape(y.shape[1], -1).T
            return float(w @ loss.losses(z, labels) / w.sum() + 0.025 * theta @ theta)  # type: ignore[attr-defined]

        found = minimize(risk, np.zeros(best.theta.size), method="BFGS", options={"gtol": 1e-9})
        assert best.converged
        assert risk(best.theta.ravel()) <= found.fun + 1e-10
        assert np.allclose(best.theta.ravel(), found.x, atol=1e-4)
    squares = named_loss("squared").apart()
    assert squares is not None
    small = fit_apart(Apart(x, numbers, w, squares, 0.05))
    large = fit_apart(Apart(x, 1e9 * numbers, w, squares, 0.05))  # rounding of the gradient has the labels' unit
    assert large.converged
    assert np.allclose(large.theta, 1e9 * small.theta, rtol=1e-9)
    assert logistic(np.array([1000.0]), np.array([1.0]))[0][0] == 0.0


def test_a_loss_that_is_none_of_the_labels_is_refused() -> None:
    assert loss_in_spec(None, TASKS["classification"], own=False) is None
    assert loss_in_spec("cross-entropy", TASKS["classification"], own=False) is None
    assert loss_in_spec(None, TASKS["regression"], own=False) == "squared"
    assert loss_in_spec("huber:2", TASKS["ordinal"], own=False) == "huber:2.0"
    assert loss_in_spec(None, TASKS["multi-label"], own=True) == "own:several"
    for asked, task in (("squared", "classification"), ("binary", "regression"), ("cross-entropy", "multi-label")):
        with pytest.raises(UsageError, match=f"--loss {asked} is no loss of labels"):
            loss_in_spec(asked, TASKS[task], own=False)
    for wrong in ("mse", "huber:-1", "huber:x", "squared:2"):
        with pytest.raises(UsageError):
            named_loss(wrong)
    assert [is_loss(v) for v in ("squared", "huber:1.0", "own:numbers", "cross-entropy", "nonsense", 3)] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
