"""What an export is given, what it gives back, and how the payloads of a manifest are read for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions.edited import Edited
from influence_cli.data.kinds.protocol import Payload
from influence_cli.data.payloads import payload_batches
from influence_cli.data.sources.origin import Origin
from influence_cli.errors import ManifestError

LINKS = ("symbolic", "hard", "copy")


@dataclass(frozen=True, eq=False)
class ExportJob:
    """The edited rows, where they came from, and where they go."""

    edited: Edited
    origin: Origin | None
    edits: pa.Table  # one row per edit, most harmful first
    label: str  # the manifest's label column
    place: Path
    link: str = "symbolic"  # of image files: symbolic, hard or copy
    url_prefix: str = ""  # of image paths, for Label Studio
    ranks: dict[str, float] = field(default_factory=dict)  # id of a scored row -> share of rows that score lower

    def made_from(self, form: str) -> Origin | None:
        """The origin, where it has this form."""
        return self.origin if self.origin is not None and self.origin.form == form else None

    @property
    def folder(self) -> Path:
        """The manifest's folder, from which its paths count."""
        return self.edited.manifest.folder


@dataclass(frozen=True, eq=False)
class Prepared:
    """An export that was checked; ``write`` makes it at a temporary place."""

    write: Callable[[Path], object]
    rows: int
    notes: list[str] = field(default_factory=list)


def stored(
    job: ExportJob, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Payload | Path | None, str | None]]:
    """(row, payload as it is stored, the path that is stored with it) of every wanted row, by streaming.

    ``wanted`` [n] is, where it is not given, the rows that are left after the edits.
    """
    manifest = job.edited.manifest
    mask = job.edited.keep if wanted is None else wanted
    kind = manifest.payload_kind
    for first, batch in payload_batches(manifest.files, kind):
        here = np.flatnonzero(mask[first : first + len(batch)])
        if not len(here):
            continue
        chosen = batch.take(pa.array(here))
        yield from zip((first + here).tolist(), kind.stored(chosen, job.folder), kind.paths(chosen), strict=True)


def same_images(job: ExportJob, folder: Path) -> None:
    """Check that images that were embedded are still those that the source names, which the export names again.

    Raises:
        ManifestError: one is gone, or has changed.
    """
    manifest = job.edited.manifest
    for row, value, name in stored(job):
        if not isinstance(value, bytes) or name is None:
            continue
        file = folder / name
        if not file.is_file() or file.read_bytes() != value:
            raise ManifestError(
                f"{name} has changed since it was embedded" if file.is_file() else f"{name} is not there any more",
                where=f"{manifest.source}, row id={manifest.ids[row]}",
                fix="run `influence manifest` and `influence score` again, or pass --export-as folder",
            )


def rebase(path: str, old: Path, new: Path) -> str:
    """A relative path that counts from folder ``old``, as seen from ``new``; absolute paths and URLs stay."""
    if "://" in path or Path(path).is_absolute() or not path:
        return path
    return Path(os.path.relpath(old / path, new)).as_posix()
