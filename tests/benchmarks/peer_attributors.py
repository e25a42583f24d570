"""What other libraries take for grad-dot scores of given rows; ``engines.py`` runs it where they are installed.

    python peer_attributors.py kronfluence|captum FOLDER --threads 2 --device cpu

FOLDER holds ``rows.npz`` (x, y, target_x, target_y; decoded and normalised), ``weights.safetensors`` and
``model.json``.  Every line of JSON on standard input, ``{"batch": 64, "rows": 512, "targets": 1000}``,
is a run; its answer, a line on standard output, is its seconds and the file of its scores (the sum over target rows).
Everything is in memory and warm before a run is timed; what a library needs once (hooks, an identity factor) is not
counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Scores = Callable[[int, int, int], Tensor]  # (batch, rows, target rows) -> scores [rows]


def kronfluence(model: nn.Module, rows: dict[str, Tensor], device: str) -> Scores:
    """Identity strategy, gradients of the target rows aggregated before the pass over the rows."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classify(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    task, folder = Classify(), tempfile.mkdtemp()
    analyzer = Analyzer(
        "peer", prepare_model(model, task), task, cpu=device == "cpu", output_dir=folder, disable_tqdm=True,
        disable_model_save=True,
    )  # fmt: skip
    few = TensorDataset(rows["x"][:8], rows["y"][:8])
    analyzer.fit_all_factors("factors", few, per_device_batch_size=8, factor_args=FactorArguments(strategy="identity"))
    runs = iter(range(10**6))

    def scores(batch: int, count: int, targets: int) -> Tensor:
        target = TensorDataset(rows["target_x"][:targets], rows["target_y"][:targets])
        name = f"scores-{next(runs)}"
        analyzer.compute_pairwise_scores(
            name, "factors", target, TensorDataset(rows["x"][:count], rows["y"][:count]),
            per_device_query_batch_size=batch, per_device_train_batch_size=batch,
            score_args=ScoreArguments(aggregate_query_gradients=True),
        )  # fmt: skip
        return analyzer.load_pairwise_scores(name)["all_modules"][0]

    return scores


def captum(model: nn.Module, rows: dict[str, Tensor], device: str) -> Scores:
    """TracInCP with one checkpoint of rate 1, sample-wise gradients a batch at once, target rows aggregated."""
    from captum.influence import TracInCP

    path = str(Path(tempfile.mkdtemp()) / "weights.pt")
    torch.save(model.state_dict(), path)

    def load(module: nn.Module, file: str) -> float:
        module.load_state_dict(torch.load(file, weights_only=True))
        return 1.0

    on_device = {name: value.to(device) for name, value in rows.items()}
    model.to(device)

    def scores(batch: int, count: int, targets: int) -> Tensor:
        tracin = TracInCP(
            model, TensorDataset(on_device["x"][:count], on_device["y"][:count]), [path], load,
            loss_fn=nn.CrossEntropyLoss(reduction="sum"), batch_size=batch, sample_wise_grads_per_batch=True,
        )  # fmt: skip
        some = TensorDataset(on_device["target_x"][:targets], on_device["target_y"][:targets])
        return tracin.influence(DataLoader(some, batch_size=batch), aggregate=True)[0]

    return scores


PEERS = {"kronfluence": kronfluence, "captum": captum}


def main() -> None:
    """Answer every line of standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(asked.threads)
    torch.backends.cudnn.allow_tf32 = False
    rows = {name: torch.from_numpy(array) for name, array in np.load(asked.folder / "rows.npz").items()}
    about = json.loads((asked.folder / "model.json").read_text())
    model = timm.create_model(about["model"], num_classes=about["classes"])
    model.load_state_dict(load_file(asked.folder / "weights.safetensors"))
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        scores = PEERS[asked.peer](model.eval(), rows, asked.device)
        for line in sys.stdin:
            wanted = json.loads(line)
            try:
                started = time.perf_counter()
                found = scores(wanted["batch"], wanted["rows"], wanted["targets"]).float().cpu()
                took = time.perf_counter() - started
            except Exception as error:
                answer: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
            else:
                file = asked.folder / f"{asked.peer}.npy"
                np.save(file, found.numpy())
                answer = {"seconds": took, "scores": str(file)}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
