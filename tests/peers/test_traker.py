"""trak against traker, whose sums are in single precision: the same projection, whole or in fewer columns.

It has a projection of its own (random signs), which is replaced by ours: both are fed the same columns.  What else
differs in definition, and so is set alike here:
- Its ridge is that of the sum over rows, n times our damping, over d, by which it divides squared gradients.
- It divides the inverse by the mean of its absolute entries: its scores are ours up to one positive factor.
- Its scores are of margins of single target rows: our objective target-margin is their mean.
- By default it computes in half precision, which is off here.

    pip install 'influence-cli[test,peers]' && python -m pytest -m peers
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from influence_cli.curvature.sketched import Sketched
from influence_cli.stages.grads.further import open_fit_rows
from influence_cli.stages.grads.member_model import Models
from tests.opened import score
from tests.oracle import Problem, column, make_problem, relative_error

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

RIDGE = 1e-3


@pytest.fixture(scope="module")
def peer() -> Any:
    return pytest.importorskip("trak", reason="traker is not installed", exc_type=ImportError)


def projection(problem: Problem, columns: int) -> torch.Tensor:
    """Our sketch S [k, d] as a matrix; of as many columns as parameters it is one that loses nothing."""
    case = problem.job(methods=("trak",), options={"trak": {"dim": columns}})
    curvature = open_fit_rows(case.run, case.session, Models(case.run, case.session).final())
    return torch.from_numpy(Sketched(curvature, columns, 0).into(np.eye(curvature.size)))


def theirs(peer: Any, problem: Problem, s: torch.Tensor, folder: Path) -> NDArray[np.float64]:
    """Their scores [n] of the train rows, averaged over target rows."""
    from trak.projectors import NoOpProjector  # pyright: ignore[reportMissingImports]
    from trak.utils import vectorize  # pyright: ignore[reportMissingImports]

    class Ours(NoOpProjector):
        def project(self, grads: Any, model_id: int) -> torch.Tensor:
            del model_id
            return vectorize(grads, device="cpu") @ s.float().T

    (x, y), (xv, yv) = problem.part("train"), problem.part("val")
    model = problem.model.float().requires_grad_(True)
    k, d = s.shape
    traker = peer.TRAKer(
        model=model, task="image_classification", train_set_size=len(y), save_dir=str(folder), device="cpu",
        projector=Ours(d, k, 0, "na", "cpu"), proj_dim=k, use_half_precision=False, lambda_reg=len(y) * RIDGE / d,
    )  # fmt: skip
    traker.load_checkpoint(model.state_dict(), model_id=0)
    traker.featurize(batch=(x.float(), y), num_samples=len(y))
    traker.finalize_features()
    traker.start_scoring_checkpoint("val", model.state_dict(), model_id=0, num_targets=len(yv))
    traker.score(batch=(xv.float(), yv), num_samples=len(yv))
    return np.asarray(traker.finalize_scores("val"), dtype=np.float64).mean(1)


@pytest.mark.parametrize("columns", [1000, 9])
def test_scores_equal_theirs_up_to_one_factor(peer: Any, columns: int, tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "mlp:4", (5,), classes=3, train=40, val=12)  # it changes the model it is given
    options = {"trak": {"damping": RIDGE, "dim": columns}}
    ours = column(score(problem.job(methods=("trak",), options=options, objectives=("target-margin",))))
    found = theirs(peer, problem, projection(problem, columns), tmp_path / "theirs")
    assert stats.spearmanr(ours, found).statistic >= 0.999
    factor = float(ours @ found / (found @ found))
    assert factor > 0
    assert relative_error(ours, factor * found) < 1e-3
