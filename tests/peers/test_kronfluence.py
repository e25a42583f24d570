"""ekfac and ip against kronfluence in float64: the same numbers where labels and damping are the same.

What differs in definition, and so is set alike here:
- It draws labels from torch's global generator; here both take ours, other ones in its pass for eigenvalues.
- Its loss is summed over a batch, as per-row sums must be; l2 of the training objective is no part of it: ours is 0.
- Its default damping is 1e-8; None is a tenth of a layer's mean eigenvalue, which is ours.
- It gives a score for every target row; their mean is ours.

    pip install 'influence-cli[test,peers]' && python -m pytest -m peers
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats
from torch.utils.data import TensorDataset

from influence_cli.data.open import open_manifest
from influence_cli.maths.hashed_draws import keyed_uniform
from influence_cli.maths.kronecker import label_at
from tests.opened import score
from tests.oracle import Problem, column, make_problem, relative_error

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("kronfluence", reason="kronfluence is not installed", exc_type=ImportError)


def drawn(problem: Problem, stream: int) -> torch.Tensor:
    """The labels that ekfac draws in a pass."""
    x, _ = problem.part("train")
    keys = open_manifest(str(problem.manifest)).rows("train").row_keys
    return label_at(problem.model(x).softmax(1).detach(), torch.from_numpy(keyed_uniform(keys, 0, stream)))


def theirs(problem: Problem, strategy: str, folder: Path) -> NDArray[np.float64]:
    """Their scores of the train rows, averaged over target rows."""
    parts: Any = [importlib.import_module(f"kronfluence.{name}") for name in ("analyzer", "arguments", "task")]
    analyzer_of, arguments_of, base = parts[0], parts[1], parts[2].Task

    class Injected(base):
        stream = 0  # which of the batch's labels are taken for those of the model

        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            return F.cross_entropy(model(batch[0]), batch[2 + self.stream] if sample else batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def get_influence_tracked_modules(self) -> None:
            return None

    x, y = problem.part("train")
    train = TensorDataset(x, y, drawn(problem, 0), drawn(problem, 1))
    task, double = Injected(), torch.float64
    model = analyzer_of.prepare_model(problem.model.requires_grad_(True), task)
    analyzer = analyzer_of.Analyzer("peer", model, task, cpu=True, output_dir=str(folder), disable_tqdm=True)
    factors = arguments_of.FactorArguments(strategy=strategy, eigendecomposition_dtype=double,
        activation_covariance_dtype=double, gradient_covariance_dtype=double, per_sample_gradient_dtype=double,
        lambda_dtype=double)  # fmt: skip
    every: Any = {"factors_name": "f", "overwrite_output_dir": True}
    analyzer.fit_covariance_matrices(dataset=train, factor_args=factors, per_device_batch_size=20, **every)
    analyzer.perform_eigendecomposition(factor_args=factors, **every)
    task.stream = 1
    analyzer.fit_lambda_matrices(dataset=train, factor_args=factors, per_device_batch_size=20, **every)
    arguments = arguments_of.ScoreArguments(damping_factor=None, score_dtype=double, per_sample_gradient_dtype=double,
        precondition_dtype=double)  # fmt: skip
    analyzer.compute_pairwise_scores(
        "s", query_dataset=TensorDataset(*problem.part("val")), train_dataset=train, score_args=arguments,
        per_device_query_batch_size=12, per_device_train_batch_size=20, **every,
    )  # fmt: skip
    return analyzer.load_pairwise_scores("s")["all_modules"].double().mean(dim=0).numpy()


@pytest.mark.parametrize(
    ("strategy", "name", "options"),
    [("ekfac", "ekfac", {"l2": 0.0}), ("kfac", "ekfac", {"l2": 0.0, "mode": "kfac"}), ("identity", "ip", {})],
)
def test_scores_equal_ours_with_the_same_labels(
    peer: Any, strategy: str, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    problem = make_problem(
        tmp_path, "mlp:4", (5,), classes=3, train=60, val=12
    )  # it changes the model that it is given
    ours = column(score(problem.job(methods=(name,), options={name: options})))
    found = theirs(problem, strategy, tmp_path / "peer")
    assert stats.spearmanr(ours, found).statistic >= 0.999
    assert relative_error(ours, found) < 1e-8
