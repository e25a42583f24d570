"""Memory of `grads` and `score` does not grow with rows times classes.

python -m pytest tests/stages/score/test_memory_by_class.py
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from influence_cli.settings import GradSpec
from influence_cli.stages.run import names
from influence_cli.store import Store, blocks
from influence_cli.store.maintenance import collect
from tests.cases import job_of, write
from tests.opened import Opened, grads_table, score

ROWS, CLASSES, FEATURES = 6000, 250, 2
ONE_ARRAY = 4 * ROWS * CLASSES  # bytes of the logits of all rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of many classes, and a linear model of them."""
    here, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    rows = ROWS + 40
    values = rng.normal(size=rows * FEATURES).astype(np.float32)
    columns = {
        "id": pa.array([f"r{k}" for k in range(rows)]),
        "features": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * FEATURES, pa.array(values)),
        "label": pa.array(rng.integers(0, CLASSES, rows)),
        "split": pa.array(["train"] * ROWS + ["val"] * 40),
    }
    classes = {"classes": json.dumps([str(c) for c in range(CLASSES)])}
    write(pa.table(columns).replace_schema_metadata(classes), here / "m.parquet")
    weights = {"head.weight": torch.randn(CLASSES, FEATURES), "head.bias": torch.randn(CLASSES)}
    save_file(weights, here / "w.safetensors")
    return here


def opened(place: Path, *methods: str, **more: Any) -> Opened:
    """A run with its store beside it."""
    how = {"model": "linear", "shard_rows": 500, **more}
    return job_of(place / "m.parquet", place / "w.safetensors", place / "store", spec=GradSpec(methods), **how)


def most(work: Callable[[], object]) -> int:
    """Bytes that numpy and Python held at most beyond what they had."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", ["ip", "loss", "ekfac"])
def test_no_array_of_all_rows_by_class_is_held(method: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 20_000)
    monkeypatch.setattr("influence_cli.stages.run.run.HALF_SAMPLE", 50)  # of which there are some arrays
    score(opened(place, method))  # all is imported, and the store is filled
    assert most(lambda: score(opened(place, method))) < ONE_ARRAY
    assert most(lambda: grads_table(opened(place, method))) < ONE_ARRAY


def test_gc_holds_a_shard_at_a_time(place: Path, tmp_path: Path) -> None:
    score(opened(place, "ip"))
    shutil.copytree(place / "store", tmp_path / "store")
    keep = opened(place, "ip").train.payload_keys[10:]
    before = opened(place, "ip").outputs(opened(place, "ip").plain_member()).read(keep)["logits"]
    found = dict[str, int]()
    with mock.patch("influence_cli.store.blocks.MERGE_ROWS", 500):
        held = most(lambda: found.update(collect(tmp_path / "store", keep)))
    assert held < ONE_ARRAY
    assert found["rows_dropped"] >= 2 * 10
    folder = Store(tmp_path / "store").by_blocks("outputs", names.outputs(opened(place, "ip").plain_member()))
    assert np.array_equal(folder.read(keep)["logits"], before)
