"""(3) edits -> the form that the data came in: a folder, a CSV, a dataset, or tasks for people to look at."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influence_cli.data.outputs import check_no_store, check_writable, status_of
from influence_cli.data.sources.origin import Origin, read_origin
from influence_cli.data.tables import read_schema
from influence_cli.errors import UsageError
from influence_cli.exports import FORMS, choose_form, prepare
from influence_cli.exports.protocol import ExportJob, Prepared
from influence_cli.stages.curate.curate import Curated
from influence_cli.stages.curate.request import ExportRequest
from influence_cli.store.files import replacing, replacing_folder


@dataclass(frozen=True, eq=False)
class Export:
    """A checked export; nothing is written before ``write``."""

    form: str
    path: str
    rows: int
    notes: list[str]
    write: Callable[[], None]

    def sentence(self) -> str:
        """What is written where."""
        unit = "tasks" if self.form == "label-studio" else "rows"
        return f"{self.rows:,} {unit} exported as {self.form} to {self.path}"


def prepare_export(curated: Curated, request: ExportRequest) -> Export:
    """Check everything that can be checked before anything is written.

    Raises:
        InfluenceError: no form can be told, the place is taken, the source is gone or has changed, or the form
            cannot hold the rows.
    """
    manifest = curated.scores.manifest
    if not manifest.files:
        raise UsageError("the rows of a Dataset cannot be exported", fix="take the edits, by row number")
    origin = read_origin(read_schema(manifest.files[0]))
    form = choose_form(request.form, origin, request.path)
    status_of("--export", request.path)
    place = Path(os.path.abspath(request.path))
    _check_place(place, request.path, origin, manifest.folder)
    check_no_store("--export", request.path)
    check_writable("--export", request.path, probe=False)
    job = ExportJob(
        edited=curated.after(),
        origin=origin,
        edits=curated.table(),
        label=curated.scores.label,
        place=Path(os.path.relpath(place)),
        link=request.link,
        url_prefix=request.url_prefix or "",
        ranks=_ranks(curated),
    )
    prepared = prepare(form, job)
    return Export(form, request.path, prepared.rows, prepared.notes, lambda: _write(form, place, prepared))


def _check_place(place: Path, named: str, origin: Origin | None, folder: Path) -> None:
    """Refuse to overwrite anything, and to write into the source.

    Raises:
        UsageError: the place is taken.
    """
    if place.is_dir() and not place.is_symlink():
        if any(place.iterdir()):
            raise UsageError(f"--export {named} is not empty", fix="give a new place: nothing is overwritten")
    elif os.path.lexists(place) and not _is_empty_file(place):
        raise UsageError(f"--export {named} is there already", fix="give a new place: nothing is overwritten")
    source = None if origin is None else origin.path(folder).resolve()
    if source is not None and source in (Path(os.path.realpath(place)), *Path(os.path.realpath(place)).parents):
        raise UsageError(f"--export {named} is inside of the source", fix="give a place outside of it")


def _is_empty_file(place: Path) -> bool:
    """Whether a file has been made for this, as ``mktemp`` does."""
    status = os.lstat(place)
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _write(form: str, place: Path, prepared: Prepared) -> None:
    if os.path.lexists(place) and not (place.is_dir() or _is_empty_file(place)):  # since it was checked
        raise UsageError(f"--export {place} is there already", fix="give a new place: nothing is overwritten")
    with (replacing_folder if FORMS[form].folder else replacing)(place) as temporary:
        prepared.write(temporary)


def _ranks(curated: Curated) -> dict[str, float]:
    """The share of the scored rows that score lower, by id: 0 for the most harmful."""
    order = curated.scores.scored.ascending()
    shares = np.arange(len(order)) / max(len(order), 1)
    ids = curated.scores.train.ids
    return {ids[i]: float(share) for i, share in zip(order.tolist(), shares, strict=True)}
