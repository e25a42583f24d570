"""The memo law at 25,000 rows: what is computed after rows are appended, reordered and renamed, and at other weights.

    python tests/benchmarks/cifar10n_memo.py OUT [--data ../shared/data/cifar10n]

Needs the CIFAR-10N manifests (train, val, test); about ten minutes on two cores.  Prints a line of JSON per step and
fails where a count or a score is not what it must be.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch

import influence_cli

APPENDED = 2500


def rows_of(data: Path, name: str, split: str, first: int = 0, count: int | None = None) -> pa.Table:
    """Rows of one of the files, as a manifest."""
    table = pq.read_table(data / f"{name}.parquet", columns=["id", "image", "label"]).slice(first, count)
    return table.append_column("split", pa.array([split] * table.num_rows))


def weights(folder: Path, seed: int) -> str:
    """A resnet18 that nothing has trained: what is computed does not depend on what the weights are."""
    torch.manual_seed(seed)
    path = folder / f"weights-{seed}.pt"
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), path)
    return str(path)


def main() -> None:
    """Run every step and check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10n"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    train, val = rows_of(asked.data, "train", "train"), rows_of(asked.data, "val", "val")
    more = rows_of(asked.data, "test", "train", 0, APPENDED)
    first, second = weights(asked.out, 0), weights(asked.out, 1)
    store = str(asked.out / "store")

    def step(what: str, table: pa.Table, checkpoint: str, expected: int, store: str | None = store) -> pa.Table:
        path = asked.out / "manifest.parquet"
        pq.write_table(pa.concat_tables([table, val]), path)
        how = {"checkpoint": checkpoint, "model": "resnet18", "input_size": 32, "store": store}
        planned = influence_cli.plan(str(path), **how)["rows_to_compute"]
        started = time.perf_counter()
        scores = influence_cli.score(str(path), **how)
        seconds = round(time.perf_counter() - started, 2)
        after = influence_cli.plan(str(path), **how)["rows_to_compute"] if store else 0
        line = {"step": what, "rows": table.num_rows, "planned": planned, "left": after, "seconds": seconds}
        print(json.dumps(line), flush=True)
        assert (planned, after) == (expected, 0), f"{what}: {expected} rows were expected"
        return scores

    def by_id(scores: pa.Table) -> dict[str, float]:
        return dict(zip(scores.column("id").to_pylist(), scores.column("score").to_pylist(), strict=True))

    base = step("cold", train, first, train.num_rows)
    assert step("again", train, first, 0).equals(base)
    order = np.random.default_rng(0).permutation(train.num_rows)
    assert by_id(step("reordered", train.take(order), first, 0)) == by_id(base)
    renamed = train.set_column(0, "id", pa.array([f"renamed-{i}" for i in train.column("id").to_pylist()]))
    assert step("renamed", renamed, first, 0).column("score").equals(base.column("score"))
    labels = train.column("label").to_numpy().copy()
    labels[:100] = (labels[:100] + 1) % 10
    relabelled = step("100 rows relabelled", train.set_column(2, "label", pa.array(labels)), first, 0)
    changed = np.flatnonzero(relabelled.column("score").to_numpy() != base.column("score").to_numpy())
    assert changed.tolist() == list(range(100))
    grown = pa.concat_tables([train, more])
    warm = step("10 % appended", grown, first, APPENDED)
    step("other weights", grown, second, grown.num_rows)
    cold = step("the grown manifest, from an empty store", grown, first, grown.num_rows, store=None)
    a, b = warm.column("score").to_numpy(), cold.column("score").to_numpy()
    worst = float(np.abs(a - b).max() / np.abs(b).max())
    print(json.dumps({"warm against cold, of the largest score": worst}))
    assert worst <= 1e-6


if __name__ == "__main__":
    main()
