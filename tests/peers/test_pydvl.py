"""exact, cg and lissa against pyDVL on one full batch in float64: the same numbers, up to when each stops.

What differs in definition, and so is set alike here:
- pyDVL averages the loss over a batch, and its curvature over batches: on one full batch that is our mean over rows.
- Its regularization is our damping, in the same unit; l2 of the training objective is no part of its loss: ours is 0.
- Its LiSSA damps by regularization + dampen x scale (ours: damping, or dampen alone); it stops by a tolerance on every
  entry and returns the last iterate, so that ours averages no tail.
- It gives a score for every target row; their mean is ours.
- Its conjugate gradients (0.10.0) solve only for as many target rows at once as there are parameters, and score the
  others 0 without a word (it pairs rows with one tolerance a parameter): it is given ten rows at a time.

    pip install 'influence-cli[test,pydvl]' && python -m pytest -m peers   # in an environment of its own: numpy below 2
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from tests.methods.test_exact import Logistic
from tests.opened import score
from tests.oracle import Problem, column, make_problem, relative_error

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

DAMPING = 0.02


@pytest.fixture(scope="module")
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("pydvl.influence.torch", reason="pyDVL is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def logistic(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return Logistic(tmp_path_factory.mktemp("p1"), penalty=0.01).problem


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:4", (5,), classes=3, train=60, val=12)


def theirs(model: Any, problem: Problem, batch: int | None = None, at_once: int = 10) -> NDArray[np.float64]:
    """Their scores of the train rows, averaged over target rows; curvature of batches of so many rows, or of one."""
    x, y = problem.part("train")
    fitted = model.fit(DataLoader(TensorDataset(x, y), batch_size=batch or len(y)))
    some = zip(*(part.split(at_once) for part in problem.part("val")), strict=True)
    return torch.cat([fitted.influences(*v, x, y, mode="up") for v in some]).mean(dim=0).detach().numpy()


def ours(problem: Problem, name: str, **options: Any) -> NDArray[np.float64]:
    return column(score(problem.job(methods=(name,), options={name: {"l2": 0.0, **options}})))


def test_direct_equals_exact_on_the_hessian(peer: Any, logistic: Problem, mlp: Problem) -> None:
    for problem, damping in ((logistic, DAMPING), (mlp, 4.0)):  # a network's Hessian is indefinite: damped above that
        found = theirs(peer.DirectInfluence(problem.model, F.cross_entropy, damping), problem)
        assert relative_error(ours(problem, "exact", mode="damp", damping=damping), found) < 1e-10


def test_conjugate_gradients_equal_ours(peer: Any, logistic: Problem) -> None:
    model = peer.CgInfluence(logistic.model, F.cross_entropy, DAMPING, rtol=1e-9, atol=1e-12, maxiter=200)
    found = theirs(model, logistic)
    for mode in ("hessian", "ggn"):  # one matrix, for a linear model
        mine = ours(logistic, "cg", mode=mode, damping=DAMPING, tolerance=1e-9)
        assert relative_error(mine, found) < 1e-7
        assert stats.spearmanr(mine, found).statistic >= 0.999
    assert relative_error(theirs(model, logistic, at_once=100), found) > 0.1  # 88 of 100 target rows scored 0


def test_lissa_equals_ours_where_damping_is_converted(peer: Any, logistic: Problem) -> None:
    """Full batches, so that nothing is random; theirs has half of the damping as regularization, half as dampen."""
    scale, depth = 2.0, 600
    model = peer.LissaInfluence(
        logistic.model, F.cross_entropy, DAMPING / 2, maxiter=depth, dampen=DAMPING / 2 / scale, scale=scale, rtol=0.0
    )
    found = theirs(model, logistic)
    options = {"batch": 200, "tail": 0.0, "series_scale": scale, "depth": depth}
    mine = ours(logistic, "lissa", damping=DAMPING, **options)
    assert relative_error(mine, found) < 1e-8
    assert stats.spearmanr(mine, found).statistic >= 0.999
    assert relative_error(ours(logistic, "lissa", dampen=DAMPING / scale, **options), mine) < 1e-12


def test_their_curvature_of_many_batches_is_a_mean_of_means(peer: Any, logistic: Problem) -> None:
    """Not ours where the last batch is smaller: rows in it count more.  With batches of one size it is the same."""
    expected = ours(logistic, "exact", mode="damp", damping=DAMPING)
    model = peer.CgInfluence(logistic.model, F.cross_entropy, DAMPING, rtol=1e-10, atol=1e-13, maxiter=200)
    assert relative_error(theirs(model, logistic, 50), expected) < 1e-7
    assert relative_error(theirs(model, logistic, 150), expected) > 1e-3
