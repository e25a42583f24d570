"""TRAK (methods.md T40, T41): against dense projected regressions in float64, and what it is for single rows.

python -m pytest tests/methods/test_trak.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from influence_cli.data.tables import provenance
from influence_cli.engines.point import Point
from influence_cli.engines.row_gradients import RowGradients
from influence_cli.errors import ModelError
from influence_cli.maths.projected import solved
from influence_cli.model.losses import CROSS_ENTROPY
from tests.cases import Heard
from tests.opened import score
from tests.oracle import Problem, column, make_problem, relative_error

METHOD = ("trak",)
OPTIONS = {"trak": {"damping": 1e-3, "dim": 1000}}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("trak"), "mlp:4", (5,), classes=3, train=40, val=12)


def margins(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of the labels."""
    p = z.softmax(1).gather(1, y[:, None])[:, 0]
    return (p / (1 - p)).log()


def features(p: Problem, split: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradients of every row's margin [n, d], one backward pass each, and 1 - p."""
    x, y = p.part(split)
    rows = []
    for one, label in zip(x.split(1), y.split(1), strict=True):
        f = margins(p.model(one), label).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(f, list(p.model.parameters()))]))
    chance = p.model(x).softmax(1).gather(1, y[:, None])[:, 0]
    return torch.stack(rows).numpy(), (1 - chance).detach().numpy()


def tau(phi: NDArray[Any], target: NDArray[Any], others: NDArray[Any], ridge: float) -> NDArray[np.float64]:
    """TRAK's scores [n, m] of training rows for the margins of target rows, with its own scale."""
    gram = phi.T @ phi + len(phi) * ridge * np.eye(phi.shape[1])
    return (others[:, None] * phi) @ np.linalg.solve(gram, target.T)


@pytest.mark.parametrize("objective", ["utility", "target-margin"])
def test_t41_scores_are_traks_and_losses_count_by_one_minus_p(objective: str, mlp: Problem) -> None:
    """With as many columns as parameters nothing is projected."""
    phi, others = features(mlp, "train")
    target, unsure = features(mlp, "val")
    pairs = tau(phi, target, others, 1e-3)
    expected = 40 * (pairs * unsure if objective == "utility" else pairs).mean(1)
    options = {"trak": {"damping": 1e-3, "dim": 1000}}
    table = score(mlp.job(methods=METHOD, options=options, objectives=(objective,)))
    assert relative_error(column(table), expected) < 1e-9
    assert "effect" not in table.column_names
    assert provenance(table.schema)["curvature"]["trak"]["whole"] is True


def test_t41_a_positive_score_raises_the_margin_in_finite_differences(mlp: Problem) -> None:
    """A step along u = G^-1 grad Phi against a row's own loss gradient moves Phi by the score."""
    phi, others = features(mlp, "train")
    target, _ = features(mlp, "val")
    found = column(score(mlp.job(methods=METHOD, options=OPTIONS, objectives=("target-margin",))))
    gram = phi.T @ phi / 40 + 1e-3 * np.eye(phi.shape[1])
    x, y = mlp.part("val")
    parameters, row, h = list(mlp.model.parameters()), int(np.argmax(found)), 1e-6
    step = np.linalg.solve(gram, others[row] * phi[row])  # what the row's loss gradient pulls along
    at = torch.nn.utils.parameters_to_vector(parameters).detach()
    values = []
    for sign in (1.0, -1.0):
        torch.nn.utils.vector_to_parameters(at + sign * h * torch.from_numpy(step), parameters)
        values.append(float(margins(mlp.model(x), y).mean().detach()))
    torch.nn.utils.vector_to_parameters(at, parameters)
    rise = (values[0] - values[1]) / (2 * h)
    assert rise > 0
    assert rise == pytest.approx(found[row], rel=1e-6)
    assert target.shape == (12, phi.shape[1])


def test_in_fewer_columns_it_is_that_of_the_sketch_that_rows_are_stored_in(mlp: Problem) -> None:
    """The sketch by an engine that knows rows alone; of all training rows it is S in their span."""
    phi, others = features(mlp, "train")
    target, unsure = features(mlp, "val")
    sketcher = RowGradients(Point(mlp.model, "all", None, "fp64", torch.device("cpu")), CROSS_ENTROPY, 9, 0)

    def sketch(split: str) -> NDArray[np.float64]:
        x, y = mlp.part(split)
        assert sketcher.ready(x)
        return sketcher.of(x, y)[0].numpy()

    small, small_target = -sketch("train") / others[:, None], -sketch("val") / unsure[:, None]
    expected = 40 * (tau(small, small_target, others, 1e-3) * unsure).mean(1)
    found = column(score(mlp.job(methods=METHOD, options={"trak": {"damping": 1e-3, "dim": 9}})))
    assert relative_error(found, expected) < 1e-9
    assert relative_error(found, 40 * (tau(phi, target, others, 1e-3) * unsure).mean(1)) > 0.01


def test_images_and_large_layers_are_projected_as_stored_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions, norms and, with the bound lowered, layers whose inputs and output gradients are projected apart."""
    monkeypatch.setattr("influence_cli.engines.row_gradients.FOLDED", 200)
    p = make_problem(tmp_path, "mlp:16,16", (12,), classes=3, train=24, val=5)
    sketcher = RowGradients(Point(p.model, "all", None, "fp64", torch.device("cpu")), CROSS_ENTROPY, 12, 3)
    _, others = features(p, "train")
    _, unsure = features(p, "val")
    rows = {}
    for split, scale in (("train", others), ("val", unsure)):
        x, y = p.part(split)
        assert sketcher.ready(x)
        rows[split] = -sketcher.of(x, y)[0].numpy() / scale[:, None]
    assert {layer.how for layer in sketcher.layers or []} == {"factors", "folded"}
    expected = 24 * (tau(rows["train"], rows["val"], others, 0.05) * unsure).mean(1)
    found = column(score(p.job(methods=METHOD, options={"trak": {"damping": 0.05, "dim": 12, "seed": 3}})))
    assert relative_error(found, expected) < 1e-9


def test_t40_of_a_linear_regression_it_is_leave_one_out(tmp_path: Path) -> None:
    """With residual r and leverage h, phi_v^T (Phi^T Phi)^-1 phi_i r_i / (1 - h_i); under any invertible projection."""
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(60, 6)), rng.normal(size=60), rng.normal(size=(4, 6))
    for s in (np.eye(6), rng.normal(size=(6, 6))):
        phi, at = x @ s.T, new @ s.T
        inside, facts = solved(phi.T @ phi, 0.0, at.T)
        h = np.einsum("ij,ji->i", phi, solved(phi.T @ phi, 0.0, phi.T)[0])
        theta = np.linalg.lstsq(x, y, rcond=None)[0]
        found = (phi @ inside) * ((y - x @ theta) / (1 - h))[:, None]
        for i in (0, 17, 59):
            left = np.delete(np.arange(60), i)
            without = np.linalg.lstsq(x[left], y[left], rcond=None)[0]
            assert np.abs(found[i] - new @ (theta - without)).max() < 1e-10
        assert facts["rank"] == 6


def test_too_many_columns_are_warned_of_and_a_singular_matrix_refused(mlp: Problem) -> None:
    heard = Heard()
    job = mlp.job(methods=METHOD, options={"trak": {"dim": 20}})
    job.listener = heard
    score(job)
    assert any("20 columns for 40 fit rows" in w and "trak.dim=10" in w for w in heard.warnings)
    quiet = Heard()
    job = mlp.job(methods=METHOD)
    job.listener = quiet
    assert provenance(score(job).schema)["curvature"]["trak"]["projected_columns"] == 10
    assert not [w for w in quiet.warnings if w.startswith("trak")]
    with pytest.raises(ModelError, match="singular"):
        score(mlp.job(methods=METHOD, options={"trak": {"damping": 0.0, "dim": 1000}}))
