"""Datasets that Hugging Face's ``save_to_disk`` wrote: Arrow stream files and their description, read by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from influence_cli.data.plain_types import plain_table
from influence_cli.data.request import Columns
from influence_cli.data.sources.chunks import Chunk
from influence_cli.data.sources.protocol import Source, one_meaning, one_numbering
from influence_cli.data.sources.tabular import described_classes, table_source
from influence_cli.data.splits import split_of
from influence_cli.data.tables import check_regular
from influence_cli.errors import ManifestError
from influence_cli.store.keys import parse_json
from influence_cli.store.lfs import refuse_pointer

SAVE_AGAIN = "save the dataset again"


def read_saved_dataset(root: Path, columns: Columns) -> Source:
    """A saved Dataset, or a DatasetDict whose splits keep their names.

    Raises:
        ManifestError: a file is missing or is not Arrow, or a split has an unknown name.
    """
    parts = split_folders(root)
    described = {folder: folder / "dataset_info.json" for folder in parts.values()}
    classes = {str(f): described_classes(read_description(info), columns, str(info)) for f, info in described.items()}

    def chunks() -> Iterator[Chunk]:
        for split, folder in parts.items():
            first = 0
            for file in data_files(folder):
                for table in read_stream(file):
                    yield Chunk(plain_table(table, str(folder)), str(folder), first, split, split)
                    first += table.num_rows

    return table_source("Hugging Face dataset", chunks, columns, one_numbering(classes), str(root))


def split_folders(root: Path) -> dict[str | None, Path]:
    """The folder of every split; the root itself, under None, where the dataset has no splits.

    Raises:
        ManifestError: a split has an unknown name.
    """
    index = root / "dataset_dict.json"
    if not index.exists():
        return {None: root}
    named = _list_in(index, "splits", str)
    unknown = [n for n in named if split_of(n) is None]
    if unknown:
        raise ManifestError(f"unknown split {unknown[0]!r}", where=str(index), fix="use train, validation, test")
    one_meaning(named, str(index))
    return {split_of(n): root / n for n in named}


def data_files(folder: Path) -> list[Path]:
    """The Arrow files of one split, in order."""
    place = folder / "state.json"
    names = [file.get("filename") for file in _list_in(place, "_data_files", dict)]
    strange = next((name for name in names if not isinstance(name, str) or Path(name).name != name), None)
    if strange is not None or None in names:  # a file of somewhere else is no part of this dataset
        raise ManifestError(f"it names {strange!r}, which is no file beside it", where=str(place), fix=SAVE_AGAIN)
    return [folder / name for name in names]


def _list_in(path: Path, key: str, kind: type[Any]) -> list[Any]:
    """A list of values of one type in a description.  Raises ManifestError: there is none."""
    found = read_description(path).get(key)
    if not isinstance(found, list) or not all(isinstance(value, kind) for value in found):
        raise ManifestError(f"cannot be read (no list called {key!r})", where=str(path), fix=SAVE_AGAIN)
    return found


def dataset_files(root: Path) -> list[Path]:
    """Every file that rows are read from or described by; caches that may lie beside them are none."""
    index = root / "dataset_dict.json"
    files = [index] if index.exists() else []
    for folder in split_folders(root).values():
        files += [folder / "dataset_info.json", folder / "state.json", *data_files(folder)]
    return files


def read_description(path: Path) -> dict[str, Any]:
    """One of the dataset's JSON files.  Raises ManifestError: it cannot be read."""
    check_regular(str(path))
    refuse_pointer(path)
    try:
        described = parse_json(path.read_text())
        if isinstance(described, dict):
            return described
        why: object = "it is no JSON object"
    except (OSError, ValueError) as error:
        why = error
    raise ManifestError(f"cannot be read ({why})", where=str(path), fix=SAVE_AGAIN)


def read_stream(path: Path) -> Iterator[pa.Table]:
    """The tables of an Arrow stream file.  Raises ManifestError: it is not one."""
    check_regular(str(path))
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowInvalid) as error:
        what = f"cannot be read as Arrow ({error})"
        raise ManifestError(what, where=str(path), fix="save the dataset again") from error
