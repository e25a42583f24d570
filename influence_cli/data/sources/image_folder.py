"""Image folders: ROOT/CLASS/... or ROOT/{train,val,test}/CLASS/..., as torchvision's ImageFolder reads them.

Or described by ``metadata.csv`` or ``metadata.jsonl`` (``file_name``), as Hugging Face lays them out: a file in the
folder itself, or one in each folder of a split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from influence_cli.data.request import Columns
from influence_cli.data.sources.protocol import ID_NAMES, Source, one_meaning, pick, split_of
from influence_cli.data.sources.tabular import read_text_file, shape_table
from influence_cli.data.tables import check_regular
from influence_cli.errors import ManifestError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
NAMES = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"


def read_image_folder(root: Path) -> Source:
    """A row per image; the class is its folder, the id its path, and classes are numbered by name.

    Raises:
        ManifestError: no image is in a class folder.
    """
    splits = {entry: split_of(entry.name) for entry in sorted(root.iterdir()) if entry.is_dir()}
    named = {folder: split for folder, split in splits.items() if split is not None}
    parts = named if named and len(named) == len(splits) else {root: None}
    classes = sorted({c.name for part in parts for c in part.iterdir() if c.is_dir() and not c.name.startswith(".")})
    found = [
        (file, split, folder.name)
        for part, split in parts.items()
        for folder in sorted(part.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in EXTENSIONS and not file.name.startswith(".") and not file.is_dir()
    ]
    if not found:
        fix = "lay it out as ROOT/CLASS/IMAGE or ROOT/train/CLASS/IMAGE"
        raise ManifestError("no image in a class folder", where=str(root), fix=fix)

    def tables() -> Iterator[pa.Table]:
        paths = [file.relative_to(root).as_posix() for file, _, _ in found]
        columns = {"id": pa.array(paths), "path": pa.array(paths), "label": pa.array([name for _, _, name in found])}
        if parts is named:
            columns["split"] = pa.array([split for _, split, _ in found])
        yield pa.table(columns)

    return Source("image folder", tables, tuple(classes), str(root))


def metadata_files(root: Path) -> list[Path]:
    """The metadata of a folder, or of its folders of splits; none where there is no such file."""
    own = [root / name for name in NAMES if _names_files(root / name)]
    return own or [part / name for part in _split_folders(root) for name in NAMES if _names_files(part / name)]


def _split_folders(root: Path) -> list[Path]:
    return [p for p in sorted(root.iterdir()) if p.is_dir() and split_of(p.name) is not None]


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
    one_meaning(parts, str(root))
    left_out = [part for part in _split_folders(root) if part not in folders] if parts else []
    if left_out:
        raise ManifestError("a split has no metadata file", where=str(left_out[0]), fix="write its metadata.csv")
    read = [_rows(root, file, columns) for file in files]
    return Source("image folder with metadata", lambda: iter(read), None, str(root))


def _rows(root: Path, file: Path, columns: Columns) -> pa.Table:
    table = read_text_file(file, columns)
    image = pick(table.column_names, columns.image or FILE, (), "image", str(file))
    assert image is not None
    prefix = file.parent.relative_to(root)
    paths = [None if v is None else (prefix / v).as_posix() for v in table.column(image).cast(pa.string()).to_pylist()]
    table = table.set_column(table.column_names.index(image), image, pa.array(paths, pa.string()))
    asked = Columns(columns.label, columns.id, image, ())
    split = split_of(file.parent.name) if file.parent != root else None
    shaped = shape_table(table, asked, str(file), 0, split)
    if pick(table.column_names, columns.id, ID_NAMES, "id", str(file)) is None:
        shaped = shaped.set_column(shaped.column_names.index("id"), "id", pa.array(paths, pa.string()))
    return shaped
