"""Data as people have it -> tables of rows: image folders, CSV, JSONL, .npz, Hugging Face folders, Parquet.

A source yields tables with the columns of a manifest, but for labels, which may still be names: ``make_manifest``
numbers them.  Nothing here decodes an image or imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from influence_cli.data.request import Columns
from influence_cli.data.sources.protocol import Source
from influence_cli.data.tables import check_regular
from influence_cli.errors import ManifestError

__all__ = ["Columns", "Source", "is_saved", "open_source"]

SUFFIXES = {".csv": "tabular", ".tsv": "tabular", ".jsonl": "tabular", ".ndjson": "tabular", ".npz": "npz"}


def is_saved(source: Any) -> bool:
    """Whether a source is a saved Hugging Face dataset, in which no Parquet file is looked for."""
    names = ("dataset_dict.json", "dataset_info.json")
    return isinstance(source, str | Path) and any(os.path.exists(os.path.join(source, name)) for name in names)


def open_source(source: Any, columns: Columns) -> Source:
    """The source behind a path, by what is there, or behind a table or a DataFrame.

    Raises:
        ManifestError: nothing there, or nothing that can be read.
    """
    if not isinstance(source, str | Path):
        from influence_cli.data.sources.tabular import read_frame

        return read_frame(source, columns)
    path = str(source)
    where = Path(path)
    if not where.exists():
        raise ManifestError("no such file or folder", where=path, fix="check the path")
    if not where.is_dir():
        check_regular(path)
    if where.is_file() and where.suffix.lower() in SUFFIXES:
        if SUFFIXES[where.suffix.lower()] == "npz":
            from influence_cli.data.sources.npz import read_npz

            return read_npz(where, columns)
        from influence_cli.data.sources.tabular import read_text_table

        return read_text_table(where, columns)
    if is_saved(where):
        from influence_cli.data.sources.huggingface import read_saved_dataset

        return read_saved_dataset(where, columns)
    if where.suffix == ".parquet" or (
        where.is_dir() and any(not p.name.startswith(".") for p in where.rglob("*.parquet"))
    ):
        from influence_cli.data.sources.tabular import read_parquet

        return read_parquet(where, columns)
    if where.is_dir():
        from influence_cli.data.sources.image_folder import read_image_folder
        from influence_cli.data.sources.metadata_folder import metadata_files, read_metadata_folder

        described = metadata_files(where)
        if described:
            return read_metadata_folder(where, described, columns)

        return read_image_folder(where)
    raise ManifestError(
        f"cannot make a manifest from {where.suffix or 'this'}",
        where=path,
        fix="give an image folder, .csv, .jsonl, .npz, .parquet, or a saved Hugging Face dataset",
    )
