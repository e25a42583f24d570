"""Data of public sources as tables with a manifest's columns; what is random is drawn from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(
    path: Path, features: NDArray[Any], clean: NDArray[Any], labels: NDArray[Any], sizes: tuple[int, int, int],
    **columns: Any,
) -> Path:  # fmt: skip
    """Write rows of features [n, d], labels [n] and true labels [n] as Parquet; ``sizes`` of train, val and test."""
    train, val, test = sizes
    assert len(features) == sum(sizes)
    table = {
        "id": [f"r{k:05d}" for k in range(len(features))],
        "features": pa.array(list(features.astype(np.float32)), pa.list_(pa.float32())),
        "label": labels.astype(np.int64),
        "clean_label": clean.astype(np.int64),
        "split": ["train"] * train + ["val"] * val + ["test"] * test,
        **columns,
    }
    pq.write_table(pa.table(table), path)
    return path


def blobs(path: Path, seed: int, sizes: tuple[int, int, int] = (150, 100, 100), flipped: int = 10) -> Path:
    """Two blobs around (-2, -2) and (2, 2) with deviation 1; of the train labels ``flipped`` are wrong.

    Column ``group`` is a sensitive attribute that is no feature: 1 for three quarters of class 1 and a quarter of class
    0.
    """
    from sklearn.datasets import make_blobs

    x, y = make_blobs(sum(sizes), centers=[(-2, -2), (2, 2)], cluster_std=1.0, random_state=seed)[:2]
    rng = np.random.default_rng(seed)
    labels = y.copy()
    wrong = rng.choice(sizes[0], flipped, replace=False)
    labels[wrong] = 1 - labels[wrong]
    group = (rng.random(len(y)) < np.where(y == 1, 0.75, 0.25)).astype(np.int64)
    return write(path, x, y, labels, sizes, group=group)
