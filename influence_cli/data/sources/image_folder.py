"""Image folders: ROOT/CLASS/... or ROOT/{train,val,test}/CLASS/..., as torchvision's ImageFolder reads them.

Or described by ``metadata.csv`` or ``metadata.jsonl`` (``file_name``), as Hugging Face lays them out: a file in the
folder itself, or one in each folder of a split.  What is in no row is counted, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from influence_cli.data.folders import is_hidden, walk
from influence_cli.data.label_kinds import DEFAULT
from influence_cli.data.request import Columns
from influence_cli.data.sources.class_folders import ClassFolder, layout_of, split_in
from influence_cli.data.sources.other_files import few, files_left_out, folders_behind_links, is_read, passed_by
from influence_cli.data.sources.protocol import ID_NAMES, LeftOut, Source, one_meaning, pick
from influence_cli.data.sources.tabular import shape_table
from influence_cli.data.sources.text_files import read_text_file
from influence_cli.data.splits import split_of
from influence_cli.data.tables import check_regular
from influence_cli.errors import ManifestError

IMAGE_FOLDER = "image folder"  # the form of a source whose files no row names
NAMES = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


def read_image_folder(root: Path) -> Source:
    """A row per image; the class is its folder, the id its path, and classes are numbered by name.

    Raises:
        ManifestError: no image is in a class folder, or folders of splits stand beside others that hold images.
    """
    folder, passed = walk(root)
    layout = layout_of(folder)
    found = [(file, part) for part in layout.classes for file in _images(part)]
    taken = {file for file, _ in found}
    others = files_left_out((f for f in folder.everything() if f not in taken), root, "it is in no class folder")
    if not found:
        raise _no_image(root, others)
    classes = sorted({part.label for part in layout.classes})
    notes = [*layout.notes, *_about_classes(classes, [part for _, part in found])]

    def tables() -> Iterator[pa.Table]:
        paths = [file.relative_to(root).as_posix() for file, _ in found]
        columns = {"id": pa.array(paths), "path": pa.array(paths), "label": pa.array([p.label for _, p in found])}
        if any(part.split is not None for part in layout.classes):
            columns["split"] = pa.array([part.split for _, part in found])
        yield pa.table(columns)

    left_out = (*passed_by(passed, root), *layout.left_out, *others)
    notes += folders_behind_links(passed, root)
    return Source(IMAGE_FOLDER, tables, tuple(classes), str(root), left_out, tuple(notes))


def _no_image(root: Path, others: list[LeftOut]) -> ManifestError:
    """The error for a folder without an image in a class folder; says what is there instead."""
    there = "".join(f"; {part.what}: {part.reason}" for part in others[:5])
    fix = "lay it out as ROOT/CLASS/IMAGE or ROOT/train/CLASS/IMAGE"
    table = next((suffix for suffix in _TABLES for part in others if part.what.endswith(suffix)), None)
    fix += "" if table is None else f", or give the {table} file where it names the images"
    return ManifestError(f"no image in a class folder{there}", where=str(root), fix=fix)


def _images(part: ClassFolder) -> list[Path]:
    return sorted(file for file in part.folder.everything() if is_read(file))


def _about_classes(classes: list[str], rows: list[ClassFolder]) -> list[str]:
    """Notes of classes without an image, of there being one class only, and of splits that share no class."""
    found = {part.label for part in rows}
    empty = [name for name in classes if name not in found]
    notes = [f"no image in the folders of these classes: {', '.join(empty)}"] if empty else []
    if len(found) == 1:
        notes.append(f"all images are of one class, {found.copy().pop()}: are the classes its sub-folders?")
    of_split: dict[str | None, set[str]] = {}
    for part in rows:
        of_split.setdefault(part.split, set()).add(part.label)
    for split, own in sorted(of_split.items(), key=str) if len(of_split) > 1 else ():
        if own.isdisjoint(set().union(*(labels for other, labels in of_split.items() if other != split))):
            notes.append(f"the classes of split {split} are in no other split: {few(sorted(own))}")
    return notes


def metadata_files(root: Path) -> list[Path]:
    """The metadata of a folder, or of its folders of splits; none where there is no such file."""
    own = [root / name for name in NAMES if _names_files(root / name)]
    return own or [part / name for part in _split_folders(root) for name in NAMES if _names_files(part / name)]


def _split_folders(root: Path) -> list[Path]:
    there = [p for p in sorted(root.iterdir()) if p.is_dir() and not is_hidden(p.name)]
    return [p for p in there if split_in(p.name) is not None]


def _names_files(path: Path) -> bool:
    """Whether it is there and says which images it describes; other tables may have the same name."""
    if not path.is_file():
        return False
    check_regular(str(path))
    with path.open("rb") as handle:
        return FILE.encode() in handle.readline(1 << 20)


def read_metadata_folder(root: Path, files: list[Path], columns: Columns) -> Source:
    """A row per line of the metadata; ids are the images' paths where there is no id column.

    Raises:
        ManifestError: a folder has two such files, a column is missing, or two splits mean one.
    """
    folders = [file.parent for file in files]
    if len(set(folders)) < len(folders):
        raise ManifestError("there is a metadata.csv and a metadata.jsonl", where=str(folders[0]), fix="keep one")
    parts = [folder.name for folder in folders if folder != root]
    one_meaning(parts, str(root), split_in)
    left_out = [p for p in _split_folders(root) if p not in folders and split_of(p.name)] if parts else []
    if left_out:
        raise ManifestError("a split has no metadata file", where=str(left_out[0]), fix="write its metadata.csv")
    read = [_rows(root, file, columns) for file in files]
    whole, passed = walk(root)
    named = {root / os.path.normpath(path) for table in read for path in _paths(table) if path} | set(files)
    others = files_left_out((f for f in whole.everything() if f not in named), root, "no line of the metadata names it")
    about = (*passed_by(passed, root), *others)
    task = columns.task or DEFAULT
    return Source("image folder with metadata", lambda: iter(read), None, str(root), about, task=task)


def _paths(table: pa.Table) -> list[str | None]:
    return table.column("path").to_pylist()


def _rows(root: Path, file: Path, columns: Columns) -> pa.Table:
    table = read_text_file(file, columns)
    image = pick(table.column_names, columns.image or FILE, (), "image", str(file))
    assert image is not None
    prefix = file.parent.relative_to(root)
    paths = [None if v is None else (prefix / v).as_posix() for v in table.column(image).cast(pa.string()).to_pylist()]
    table = table.set_column(table.column_names.index(image), image, pa.array(paths, pa.string()))
    asked = Columns(columns.label, columns.id, image, task=columns.task)
    split = split_in(file.parent.name) if file.parent != root else None
    shaped = shape_table(table, asked, str(file), 0, split)
    if pick(table.column_names, columns.id, ID_NAMES, "id", str(file)) is None:
        shaped = shaped.set_column(shaped.column_names.index("id"), "id", pa.array(paths, pa.string()))
    return shaped
