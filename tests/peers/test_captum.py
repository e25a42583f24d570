"""arnoldi against captum's ArnoldiInfluenceFunction in float64.

What differs in definition, and so is set alike here:
- Its Hessian is the sum over rows where ours is the mean: its hessian_reg is n times our damping, its score 1/n of
  ours.
- It drops the last valid vector of its basis, and one more where the iteration breaks down: it is asked for more.
- Its breakdown is absolute, ours is relative to the product; its start is another random vector.  Ritz pairs that have
  converged depend on neither, so that the leading ones are compared.
- It sums over the target rows of a batch; the mean is ours.

    pip install 'influence-cli[test,peers]' && python -m pytest -m peers
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from influence_cli.data.tables import provenance
from tests.methods.test_exact import Logistic
from tests.opened import score
from tests.oracle import Problem, column, make_problem, relative_error

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = "captum.influence._core.arnoldi_influence_function"
        return pytest.importorskip(name, reason="captum is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=60, val=12)


def theirs(peer: Any, problem: Problem, vectors: int, kept: int, damping: float) -> NDArray[np.float64]:
    x, y = problem.part("train")
    model = peer.ArnoldiInfluenceFunction(
        problem.model.requires_grad_(True), DataLoader(TensorDataset(x, y), batch_size=len(y)), "none",
        checkpoints_load_func=lambda *_: 1.0, loss_fn=torch.nn.CrossEntropyLoss(reduction="none"), batch_size=None,
        projection_dim=kept, arnoldi_dim=vectors, arnoldi_tol=1e-8, hessian_reg=damping * len(y),
        hessian_inverse_tol=1e-6,
    )  # fmt: skip
    scores = model.influence(problem.part("val")) * len(y)
    problem.model.requires_grad_(False)
    return scores.mean(dim=0).detach().numpy()


def ours(problem: Problem, **options: Any) -> Any:
    return score(problem.job(methods=("arnoldi",), options={"arnoldi": {"mode": "hessian", "l2": 0.0, **options}}))


@pytest.mark.parametrize(("kept", "damping"), [(3, 0.0), (6, 0.0), (6, 0.3)])
def test_leading_pairs_of_a_networks_hessian_equal_ours(peer: Any, kept: int, damping: float, mlp: Problem) -> None:
    table = ours(mlp, r=str(kept), damping=damping)
    assert provenance(table.schema)["curvature"]["arnoldi"]["kept"] == kept
    found = theirs(peer, mlp, 36, kept, damping)
    assert relative_error(column(table), found) < 1e-6
    assert stats.spearmanr(column(table), found).statistic >= 0.999


def test_a_basis_that_is_complete_is_one_vector_short_with_them(
    peer: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Binary softmax regression: rank 6 of 12 and one vector of the null space, so 7; theirs keeps 6 of them."""
    logistic = Logistic(tmp_path_factory.mktemp("p1")).problem
    exact = {"mode": "damp", "l2": 0.0, "damping": 1e-3}
    expected = column(score(logistic.job(methods=("exact",), options={"exact": exact})))
    table = ours(logistic, r="all", damping=1e-3)
    assert provenance(table.schema)["curvature"]["arnoldi"]["vectors"] == 7
    assert relative_error(column(table), expected) < 1e-8
    assert relative_error(theirs(peer, logistic, 12, 12, 1e-3), expected) > 1e-6
