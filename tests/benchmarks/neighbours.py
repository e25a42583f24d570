"""Detection of wrong labels by neighbours (knn, outlier) beside loss and margin: a table of every option.

    python tests/benchmarks/neighbours.py MANIFEST RUN [--store STORE] [--wide] > table.md

MANIFEST has train, val and clean_label, RUN is a run folder of ``retrain``.  For CIFAR-10N:

    influence retrain ../shared/data/cifar10n-small/manifest.parquet --model resnet18 --epochs 12 \
      --augment flip-shift -o RUN

The model is run once over the rows for all columns; each search takes seconds.  With ``--wide`` every combination of
options is measured, else those of one option at a time.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import pyarrow as pa

import influence_cli
from influence_cli.data.open import open_manifest
from influence_cli.stages.evaluate.detection import detect
from influence_cli.stages.evaluate.truth import truth_of_column

DEFAULT = {"k": 50, "among": "target", "metric": "cosine", "weights": "distance"}
OTHERS = {"k": (5, 10, 20, 100), "among": ("train",), "metric": ("euclidean",), "weights": ("uniform",)}
DRAWS = 500


def variants(wide: bool) -> list[dict[str, object]]:
    """Options of knn: the defaults, and others."""
    if wide:
        every = ((DEFAULT[name], *OTHERS[name]) for name in DEFAULT)
        return [dict(zip(DEFAULT, some, strict=True)) for some in itertools.product(*every)]
    changed = [{**DEFAULT, name: value} for name, values in OTHERS.items() for value in values]
    return [DEFAULT, *changed, *({**DEFAULT, "among": "train", "k": k} for k in (10, 20))]


def main() -> None:
    """Score, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("run")
    parser.add_argument("--store", default=".influence")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--budget", type=float, default=0.2)
    asked = parser.parse_args()
    how = {"checkpoint": asked.run, "store": asked.store}
    columns: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}

    def add(name: str, method: str, options: dict[str, object], column: str | None = None) -> pa.Table:
        started = time.process_time()
        table = influence_cli.score(asked.manifest, method=method, options={method: options}, **how)
        seconds[name] = time.process_time() - started
        columns[name] = table.column(column or "score").to_numpy()
        return table

    add("loss", "loss", {})
    add("margin", "margin", {})
    add("self-tracin", "self-tracin", {})
    add("outlier", "outlier", {})
    for options in variants(asked.wide):
        name = f"knn, {options['k']} {options['among']} rows, {options['metric']}, {options['weights']}"
        add(name, "knn", options)
    rows = open_manifest(asked.manifest, "label").rows("train")
    truth = truth_of_column(rows, "clean_label")
    assert truth is not None
    budget = round(asked.budget * len(rows))
    found = detect(columns, truth, budget, DRAWS, 0, "loss")
    print(f"{int(truth.wrong.sum()):,} of {len(rows):,} labels are wrong; differences from loss, paired\n")
    print(f"| score | AUC | average precision | over loss | precision in the lowest {budget:,} | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for name, d in found["columns"].items():
        auc, ap = (f"{d[f]:.3f} [{d[f'{f}_interval'][0]:.3f}, {d[f'{f}_interval'][1]:.3f}]" for f in FIGURES)
        over = "-"
        if d.get("difference"):
            against = d["difference"]["average_precision"]
            over = f"{against['difference']:+.3f} {against['verdict']}"
        print(f"| {name} | {auc} | {ap} | {over} | {d['precision_at_budget']:.3f} | {seconds[name]:.2f} |")


FIGURES = ("auc", "average_precision")

if __name__ == "__main__":
    main()
