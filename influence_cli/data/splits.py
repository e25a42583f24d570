"""The usual names of splits, as columns, folders and files spell them."""

from __future__ import annotations

from pathlib import Path

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip


def split_of(name: str) -> str | None:
    """The split that a folder's or file's name stands for, or None."""
    return SPLIT_NAMES.get(name.lower())


def split_of_file(file: Path) -> str | None:
    """The split that a table's file is of by its name, as in ``train-00000-of-00002.parquet``, or by its folder's."""
    return split_of(file.name.partition("-")[0].partition(".")[0]) or split_of(file.parent.name)
