"""tracin against captum's TracInCP in float64: the same checkpoints and rates.

It sums over the target rows where ours is the mean; sign and rates are alike: positive helps, each rate enters once.

    pip install 'influence-cli[test,peers]' && python -m pytest -m peers
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.train.recipe import Recipe
from tests.cases import column, examples, feature_table, write
from tests.methods.test_tracin import data, kept, scored, train
from tests.oracle import relative_error

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def peer() -> Any:
    name = "captum.influence._core.tracincp"
    return pytest.importorskip(name, reason="captum is not installed", exc_type=ImportError)


def test_scores_equal_theirs(peer: Any, tmp_path: Path) -> None:
    write(feature_table(examples(val=30)), tmp_path / "m.parquet")
    run = train(tmp_path, "run", "mlp:7", Recipe(epochs=8, lr=0.2, batch_size=16), 4)
    spec, checkpoints = kept(run)
    rates = {str(run / str(c["file"])): float(c["lr"]) for c in checkpoints}
    model = load_model(spec, find_checkpoint(next(iter(rates)))[0], torch.float64).requires_grad_(True)

    def load(module: torch.nn.Module, path: str) -> float:
        module.load_state_dict(load_model(spec, find_checkpoint(path)[0], torch.float64).state_dict())
        return rates[path]

    x, y = data(tmp_path, "train")
    theirs = peer.TracInCP(
        model, DataLoader(TensorDataset(x, y), batch_size=len(y)), list(rates), load,
        loss_fn=torch.nn.CrossEntropyLoss(reduction="none"), batch_size=None,
    )  # fmt: skip
    found = theirs.influence(data(tmp_path, "val")).mean(dim=0).detach().numpy()
    assert relative_error(column(scored(tmp_path, "tracin")), found) < 1e-9
