"""tracin against dattri's TracInAttributor: the same checkpoints and rates, in its single-precision sums.

It gives a score for every target row, where ours is their mean; sign and rates are alike: positive helps, each rate
enters once.  It projects gradients to 512 random columns where it is given no projector, and keeps what one attributor
was given for the next: here its projection is taken away.

    pip install 'influence-cli[test,peers]' && python -m pytest -m peers
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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
    return pytest.importorskip("dattri.algorithm.tracin", reason="dattri is not installed", exc_type=ImportError)


def test_scores_equal_theirs(peer: Any, tmp_path: Path) -> None:
    task_of = pytest.importorskip("dattri.task").AttributionTask
    write(feature_table(examples(val=30)), tmp_path / "m.parquet")
    run = train(tmp_path, "run", "mlp:7", Recipe(epochs=8, lr=0.2, batch_size=16), 4)
    spec, checkpoints = kept(run)
    models = [load_model(spec, find_checkpoint(str(run / str(c["file"])))[0], torch.float64) for c in checkpoints]
    model = models[0].requires_grad_(True)

    def loss(params: Any, row: Any) -> torch.Tensor:
        x, y = row
        return F.cross_entropy(torch.func.functional_call(model, params, x[None]), y[None])

    task = task_of(loss, model, [{n: v.clone() for n, v in m.state_dict().items()} for m in models])
    attributor = peer.TracInAttributor(task, torch.tensor([float(c["lr"]) for c in checkpoints]), False)
    attributor.projector_kwargs = None
    loaders = [DataLoader(TensorDataset(*data(tmp_path, split)), batch_size=20) for split in ("train", "val")]
    found = attributor.attribute(*loaders).double().mean(1).numpy()
    assert relative_error(column(scored(tmp_path, "tracin")), found) < 1e-6
