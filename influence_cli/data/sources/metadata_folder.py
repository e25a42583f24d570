"""Image folders described by ``metadata.csv`` or ``metadata.jsonl`` (``file_name``), as Hugging Face lays them out.

The file is in the folder itself, or one in each folder of a split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from influence_cli.data.request import Columns
from influence_cli.data.sources.protocol import ID_NAMES, Source, one_meaning, pick, split_of
from influence_cli.data.sources.tabular import shape_table
from influence_cli.data.sources.text_file import read_text_file
from influence_cli.errors import ManifestError

NAMES = ("metadata.csv", "metadata.jsonl")
FILE = "file_name"


def metadata_files(root: Path) -> list[Path]:
    """The metadata of a folder, or of its folders of splits; none where there is no such file."""
    own = [root / name for name in NAMES if _names_files(root / name)]
    parts = [p for p in sorted(root.iterdir()) if p.is_dir() and split_of(p.name) is not None]
    return own or [part / name for part in parts for name in NAMES if _names_files(part / name)]


def _names_files(path: Path) -> bool:
    """Whether it is there and says which images it describes; other tables may have the same name."""
    if not path.is_file():
        return False
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
    if parts:
        _check_all_described(root, folders)
    read = [_rows(root, file, columns) for file in files]

    def tables() -> Iterator[pa.Table]:
        yield from read

    return Source("image folder with metadata", tables, None, str(root))


def _check_all_described(root: Path, described: list[Path]) -> None:
    """No split is left out because it has no metadata."""
    for part in sorted(root.iterdir()):
        if part.is_dir() and split_of(part.name) is not None and part not in described:
            raise ManifestError("a split has no metadata file", where=str(part), fix="write its metadata.csv")


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
