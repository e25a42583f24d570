"""What a manifest's rows are after the edits of its train rows: their labels, their weights, and which are left."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions.protocol import Edits
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.split_column import SKIPPED


@dataclass(frozen=True, eq=False)
class Edited:
    """Every row [n] of a manifest after the edits; val and test rows are as they were."""

    manifest: Manifest
    action: str
    labels: NDArray[np.int64]
    weights: NDArray[np.float64]
    keep: NDArray[np.bool_]  # False where a train row was trimmed, or a row cannot be used

    @property
    def train_rows(self) -> int:
        """The number of train rows that are left."""
        return int((self.keep & (self.manifest.splits == "train")).sum())

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where the manifest has no names."""
        names = self.manifest.classes or ()
        return names[label] if label < len(names) else str(label)


def apply_edits(manifest: Manifest, train: Rows, edits: Edits) -> Edited:
    """The manifest with the edits of its train rows.  Weight 0 from before is no trim, and stays."""
    labels, before = manifest.labels.copy(), manifest.weights()
    weights = before.copy()
    labels[train.index], weights[train.index] = edits.labels, edits.weights
    keep = ~((manifest.splits == "train") & (weights == 0) & (before > 0)) & (manifest.splits != SKIPPED)
    return Edited(manifest, edits.action, labels, weights, keep)


def rebased(table: pa.Table, manifest: Manifest, folder: Path) -> pa.Table:
    """Relative payload paths count from the manifest; make them count from where the copy is written."""
    source = manifest.folder
    if source.resolve() == folder.resolve():
        return table

    def moved(path: str | None) -> str | None:
        return None if path is None else os.path.relpath(source / path, folder)

    return manifest.payload_kind.moved(table, moved)
