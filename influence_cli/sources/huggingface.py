"""Datasets that Hugging Face's ``save_to_disk`` wrote: Arrow stream files and their description, read by pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_cli.errors import ManifestError
from influence_cli.sources.protocol import LABEL_NAMES, Columns, Source, pick, split_of
from influence_cli.sources.tabular import shape_table


def read_saved_dataset(root: Path, columns: Columns) -> Source:
    """A saved Dataset, or a DatasetDict whose splits keep their names.

    Raises:
        ManifestError: a file is missing or is not Arrow, or a split has an unknown name.
    """
    parts: dict[str | None, Path] = {None: root}
    if (root / "dataset_dict.json").exists():
        named = _json(root / "dataset_dict.json")["splits"]
        unknown = [n for n in named if split_of(n) is None]
        if unknown:
            raise ManifestError(
                f"unknown split {unknown[0]!r}",
                where=str(root / "dataset_dict.json"),
                fix="use train, validation, test",
            )
        parts = {split_of(n): root / n for n in named}
    features = _json(next(iter(parts.values())) / "dataset_info.json").get("features") or {}
    label = pick(list(features), columns.label, LABEL_NAMES, "label", str(root))
    names = features[label].get("names") if label is not None else None

    def tables() -> Iterator[pa.Table]:
        for split, folder in parts.items():
            first = 0
            for file in _json(folder / "state.json")["_data_files"]:
                for table in _stream(folder / file["filename"]):
                    yield shape_table(table, columns, str(folder), first, split, split)
                    first += table.num_rows

    return Source("Hugging Face dataset", tables, tuple(names) if names else None, str(root))


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ManifestError(f"cannot be read ({error})", where=str(path), fix="save the dataset again") from error


def _stream(path: Path) -> Iterator[pa.Table]:
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowInvalid) as error:
        raise ManifestError(
            f"cannot be read as Arrow ({error})", where=str(path), fix="save the dataset again"
        ) from error
