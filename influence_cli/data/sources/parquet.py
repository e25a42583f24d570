"""Parquet files and folders of them; columns, and the split, may stand in names of folders and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from influence_cli.data.earlier import MANIFESTS, kind_of
from influence_cli.data.folders import walk
from influence_cli.data.partitions import folder_of, names_in_folders
from influence_cli.data.request import Columns
from influence_cli.data.sources.chunks import Chunk
from influence_cli.data.sources.label_columns import label_columns
from influence_cli.data.sources.other_files import files_left_out, is_read, passed_by
from influence_cli.data.sources.protocol import ID_NAMES, KEPT, LABEL_NAMES, LeftOut, Source, one_numbering, pick
from influence_cli.data.sources.tabular import class_names, table_source
from influence_cli.data.splits import split_of_file
from influence_cli.data.tables import parquet_files, parquet_in, read_batches, read_schema, refuse_twins


def source_files(path: Path) -> list[Path]:
    """The Parquet file, or those of a folder that hold its rows: not what we have written into the folder since.

    Manifests of ours are its rows where there are neither other Parquet files nor images.
    """
    if not path.is_dir():
        return parquet_files(str(path))
    files = parquet_in(path)
    own = {file: kind for file in files if (kind := kind_of(file)) is not None}
    others = [file for file in files if file not in own]
    if not others and not any(is_read(file) for file in walk(path)[0].everything()):
        others = [file for file in files if own[file] in MANIFESTS]
    return parquet_files(str(path), taken=others) if others else []


def read_parquet(path: Path, columns: Columns) -> Source:
    """A Parquet file or folder; names such as ``train-00000-of-00002.parquet``, or ``split=train``, say the split."""
    files = source_files(path)
    unasked, stems = _unasked(files, columns), Counter(file.stem for file in files)
    classes = one_numbering({str(file): class_names(read_schema(file), columns) for file in files})
    for file in files:
        refuse_twins(read_schema(file).names, str(file))

    def chunks() -> Iterator[Chunk]:
        for file in files:
            split = split_of_file(file)
            name = None if len(files) == 1 else file.stem
            if stems[file.stem] > 1:  # of several folders, whose rows would have the same ids
                name = file.relative_to(path).with_suffix("").as_posix()
            first = 0
            for batch in read_batches(file, 4096):
                yield Chunk(pa.Table.from_batches([batch]).drop_columns(unasked), str(file), first, split, name)
                first += batch.num_rows

    why = "it stands in names of folders, and --features does not name it"
    left_out = (*(LeftOut(f"column {name}", why) for name in unasked), *_beside(files, path))
    named = any(split_of_file(file) is not None for file in files)
    taken = ("split: from the names of files or folders",) if named else ()
    place = str(folder_of(files[0]))
    return table_source("Parquet", chunks, columns, classes, place, taken=taken, left_out=left_out)


def _beside(files: Sequence[Path], path: Path) -> list[LeftOut]:
    """The files of a folder beside its Parquet; images may be named by rows."""
    if not path.is_dir():
        return []
    folder, passed = walk(path)
    read, why = {str(file) for file in files}, "the folder is read as Parquet, since it holds some"
    others = [file for file in folder.everything() if str(file) not in read]
    return [*passed_by(passed, path), *files_left_out(others, path, f"{why}; its rows may name images", why)]


def _unasked(files: Sequence[Path], columns: Columns) -> list[str]:
    """Columns that stand in names of folders, and are no label, id, split or other column of a manifest."""
    names = read_schema(files[0]).names
    labels = label_columns(names, columns, str(files[0])) if columns.like is None else ()
    label = labels[0] if labels else pick(names, columns.label, LABEL_NAMES, "label", str(files[0]))
    identity = pick(names, columns.id, ID_NAMES, "id", str(files[0]))
    asked = {label, *labels, identity, columns.image, columns.weight, columns.group, *columns.text, *columns.features}
    asked |= {*columns.keep, *columns.drop, *KEPT}
    return [] if columns.like else [name for name in names_in_folders(files) if name not in asked]
