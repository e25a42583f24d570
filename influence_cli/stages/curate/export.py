"""(3) edits -> the form that the data came in: a folder, a CSV, a dataset, or tasks for people to look at."""

from __future__ import annotations

import os
import stat
import tempfile
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
from influence_cli.store.putting import check_folder, put_new
from influence_cli.store.remote import folder_of_copies, is_remote, names_below


@dataclass(frozen=True, eq=False)
class Export:
    """A checked export; nothing is written before ``write``."""

    form: str
    path: str
    place: Path
    prepared: Prepared
    address: str | None = None  # where what is written to ``place`` is put then

    def sentence(self) -> str:
        """What is written where."""
        unit = {"label-studio": "tasks", "fiftyone": "samples"}.get(self.form, "rows")
        return f"{self.prepared.rows:,} {unit} exported as {self.form} to {self.path}"

    def write(self) -> None:
        """Write it, where still nothing is."""
        if self.address is None:
            _check_free(self.place, self.path)
        with (replacing_folder if FORMS[self.form].folder else replacing)(self.place) as temporary:
            self.prepared.write(temporary)
        if self.address is not None:
            put_new(self.place, self.address)


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
    address = request.path.rstrip("/") if is_remote(request.path) else None
    if address is None:
        place = _place_here(request.path, origin, manifest.folder)
    else:
        place = _place_of_copy(address, form, manifest.payload_kind.pixels, request.url_prefix)
    job = ExportJob(
        edited=curated.after(),
        origin=origin,
        edits=curated.table(),
        label=curated.scores.label,
        place=Path(os.path.relpath(place)),
        link=request.link if address is None else "copy",  # a link has nothing to lead to
        url_prefix=request.url_prefix or "",
        ranks=_ranks(curated),
    )
    return Export(form, request.path, place, prepare(form, job), address)


def check_address(place: str | None) -> None:
    """Refuse an address that no export can be put at, before any work.

    Raises:
        UsageError: something is there, or nothing can be put there.
    """
    if place is None or not is_remote(place):
        return
    address = place.rstrip("/")
    check_folder(address)
    if names_below(address):
        raise UsageError(f"--export {address} is there already", fix="give a new place: nothing is overwritten")


def _place_here(named: str, origin: Origin | None, folder: Path) -> Path:
    """Where an export on this machine is written.

    Raises:
        UsageError: it cannot be.
    """
    status_of("--export", named)
    place = Path(os.path.abspath(named))
    _check_free(place, named)
    _check_outside(place, named, origin, folder)
    check_no_store("--export", named)
    check_writable("--export", named, probe=False)
    return place


def _place_of_copy(address: str, form: str, pixels: bool, prefix: str | None) -> Path:
    """Where an export is made that is put at an address then.

    Raises:
        UsageError: something is there, nothing can be put there, or its rows would name images on this machine.
    """
    if pixels and not FORMS[form].holds_images and not (form == "label-studio" and prefix):
        what = f"{form} names images by their path from where it lies, and at an address nothing lies beside it"
        raise UsageError(what, where=address, fix="pass --export-as folder, huggingface or npz")
    check_address(address)
    return Path(tempfile.mkdtemp(prefix="export-", dir=folder_of_copies())) / address.rpartition("/")[2]


def _check_free(place: Path, named: str) -> None:
    """Refuse to overwrite anything but a file that has been made for this, as ``mktemp`` does.

    Raises:
        UsageError: the place is taken.
    """
    if place.is_dir() and not place.is_symlink():
        if any(place.iterdir()):
            raise UsageError(f"--export {named} is not empty", fix="give a new place: nothing is overwritten")
    elif os.path.lexists(place):
        status = os.lstat(place)
        if not stat.S_ISREG(status.st_mode) or status.st_size:
            raise UsageError(f"--export {named} is there already", fix="give a new place: nothing is overwritten")


def _check_outside(place: Path, named: str, origin: Origin | None, folder: Path) -> None:
    """Refuse to write into the source."""
    real = Path(os.path.realpath(place))
    if origin is not None and origin.path(folder).resolve() in (real, *real.parents):
        raise UsageError(f"--export {named} is inside of the source", fix="give a place outside of it")


def _ranks(curated: Curated) -> dict[str, float]:
    """The share of the scored rows that score lower, by id: 0 for the most harmful."""
    order = curated.scores.scored.ascending()
    shares = np.arange(len(order)) / max(len(order), 1)
    ids = curated.scores.train.ids
    return {ids[i]: float(share) for i, share in zip(order.tolist(), shares, strict=True)}
