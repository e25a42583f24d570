"""Image folders: ROOT/CLASS/... or ROOT/{train,val,test}/CLASS/..., as torchvision's ImageFolder reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from influence_cli.data.sources.protocol import Source, split_of
from influence_cli.errors import ManifestError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


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
        raise ManifestError(
            "no image in a class folder",
            where=str(root),
            fix="lay it out as ROOT/CLASS/IMAGE or ROOT/train/CLASS/IMAGE",
        )

    def tables() -> Iterator[pa.Table]:
        paths = [file.relative_to(root).as_posix() for file, _, _ in found]
        columns = {"id": pa.array(paths), "path": pa.array(paths), "label": pa.array([name for _, _, name in found])}
        if parts is named:
            columns["split"] = pa.array([split for _, split, _ in found])
        yield pa.table(columns)

    return Source("image folder", tables, tuple(classes), str(root))
