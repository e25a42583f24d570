"""Data as people have it -> tables of rows: image folders, CSV, Excel, JSON, .npz, Hugging Face folders, Parquet.

A source yields tables with the columns of a manifest, but for labels, which may still be names: ``make_manifest``
numbers them.  Nothing here decodes an image or imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from influence_cli.data.file_contents import refuse_wrong_suffix
from influence_cli.data.label_kinds import DEFAULT
from influence_cli.data.request import Columns
from influence_cli.data.sources.huggingface import read_saved_dataset
from influence_cli.data.sources.image_folder import metadata_files, read_image_folder, read_metadata_folder
from influence_cli.data.sources.npz import read_npz
from influence_cli.data.sources.parquet import read_parquet, source_files
from influence_cli.data.sources.protocol import Source
from influence_cli.data.sources.tabular import read_frame, read_text_table
from influence_cli.data.sources.text_files import TEXT_TABLES, refuse_options
from influence_cli.data.tables import check_regular
from influence_cli.errors import ManifestError


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
        return read_frame(source, columns)
    path, where = str(source), Path(source)
    if path == "-":
        what = "standard input is no source: a manifest says where its rows are, and later commands look there"
        raise ManifestError(
            what, where=path, fix="write it to a file first: ... > rows.csv; influence manifest rows.csv"
        )
    if not where.exists():
        raise ManifestError("no such file or folder", where=path, fix="check the path")
    folder = where.is_dir()
    if not folder:
        check_regular(path)
        refuse_wrong_suffix(where)
    if not folder and where.suffix.lower() == ".npz":
        return read_npz(where, columns)
    if not folder and where.suffix.lower() in TEXT_TABLES:
        return read_text_table(where, columns)
    refuse_options(columns, ("sheet", "delimiter", "encoding"), path)
    if is_saved(where):
        return read_saved_dataset(where, columns)
    if where.suffix == ".parquet" or (folder and source_files(where)):
        return read_parquet(where, columns)
    if folder:
        described = metadata_files(where)
        if not described and columns.task not in (None, DEFAULT):
            what = f"the labels of an image folder are its folders, which are classes, and the task is {columns.task}"
            raise ManifestError(what, where=path, fix="write labels beside the images: a metadata.csv with file_name")
        return read_metadata_folder(where, described, columns) if described else read_image_folder(where)
    fix = "give an image folder, .csv, .xlsx, .jsonl, .npz, .parquet, or a saved Hugging Face dataset"
    raise ManifestError(f"cannot make a manifest from {where.suffix or 'this'}", where=path, fix=fix)
