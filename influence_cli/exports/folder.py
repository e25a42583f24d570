"""Image folders: ROOT/CLASS/FILE or ROOT/SPLIT/CLASS/FILE, of links to the images or of the images themselves.

A row of an image folder keeps its split folder, its sub-folders and its file name; a relabelled one stands in the
folder of its new class.  Where two files would have one name, the one that moved gets a number.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path, PurePosixPath

import numpy as np

from influence_cli.data.kinds.image import image_of
from influence_cli.data.kinds.protocol import Payload
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.payloads import read_payload
from influence_cli.data.sources.other_files import EXTENSIONS
from influence_cli.errors import ManifestError, UsageError, nearest
from influence_cli.exports.protocol import LINKS, ExportJob, Prepared, stored

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif"}
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)
_LONGEST = 255  # bytes of one name, on the usual file systems


def prepare(job: ExportJob) -> Prepared:
    """Check an export as an image folder: every row gets a place, and no two the same.

    Raises:
        InfluenceError: features, weights, class names that are no folder names, or an unknown kind of link.
    """
    edited, manifest = job.edited, job.edited.manifest
    if not manifest.payload_kind.pixels:
        fix = "use --export-as csv, jsonl or npz"
        raise UsageError(f"{manifest.payload_kind.column} are no images", where=manifest.source, fix=fix)
    if edited.action == "reweight":
        raise UsageError("an image folder has no place for weights", fix="use --export-as csv, jsonl or huggingface")
    if job.link not in LINKS:
        raise UsageError(f"--link {job.link!r} is unknown", fix=nearest(job.link, list(LINKS)))
    names = _class_folders(job)
    places, renamed, linked = _places(job, names)
    notes = [f"{renamed:,} files have the name of another of their class: a number was added"] if renamed else []
    if linked and job.link == "symbolic":
        notes.append(
            "its images are links: a manifest that stands in no folder above the files takes --allow-outside "
            "(--link hard or copy makes no links)"
        )
    empty = sorted(set(names.values()) - {names[int(c)] for c in edited.labels[edited.keep]})
    if empty:
        notes.append(f"no row is left of: {', '.join(empty)}")
    return Prepared(lambda place: _write(job, places, place), len(places), notes)


def _class_folders(job: ExportJob) -> dict[int, str]:
    """The folder of every class that is named or used; numbers are padded, so that their order is the classes'."""
    edited = job.edited
    if edited.manifest.label_kind.holds != CLASSES:
        what = f"an image folder has a folder a class, and the labels are {edited.manifest.label_kind.called}"
        raise UsageError(what, where=edited.manifest.source, fix="pass --export-as csv, jsonl, huggingface or npz")
    named = len(edited.manifest.classes or ())
    used = max(int(edited.labels.max()) + 1, named)
    folders = {c: edited.class_name(c) if c < named else str(c).zfill(len(str(used - 1))) for c in range(used)}
    seen: dict[str, int] = {}
    for c in np.unique(edited.labels[edited.keep]).tolist():
        name = folders[c]
        first = seen.setdefault(name, c)
        why = _unusable(name) or (f"class {first} has it" if first != c else "")
        if why:
            what = f"class {c} is named {name!r}, which cannot be a folder: {why}"
            fix = "rename it in the schema metadata key 'classes', or pick another form with --export-as"
            raise ManifestError(what, where=edited.manifest.source, fix=fix)
    return folders


def _unusable(name: str) -> str:
    """Why a class name is no folder name; empty where it is one."""
    if not name or name in (".", ".."):
        return "it is empty or stands for another folder"
    if "/" in name or "\\" in name:
        return "it holds a slash"
    if any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "it holds a control character"
    if name.startswith("."):
        return "readers leave hidden folders out"
    return "it is too long" if len(name.encode()) > _LONGEST else ""


def _places(job: ExportJob, classes: dict[int, str]) -> tuple[dict[int, str], int, bool]:
    """Where every row that is left stands, how many got a number, and whether files are named in place of images.

    Rows that stay where they are come first.
    """
    manifest, labels = job.edited.manifest, job.edited.labels
    origin = job.made_from("folder")
    taken = _Taken()
    moved: list[tuple[int, str, str]] = []
    out: dict[int, str] = {}
    linked = False
    for row, value, name in stored(job):
        linked |= isinstance(value, Path)
        known = None if origin is None else _source_place(manifest.ids[row], origin.splits, set(classes.values()))
        class_name = classes[int(labels[row])]
        if known is not None and known[1] == class_name:
            out[row] = manifest.ids[row]
            taken.add(out[row])
        elif known is not None:
            moved.append((row, "/".join((*known[0], class_name)), known[2]))
        else:
            head = f"{manifest.splits[row]}/{class_name}" if "split" in manifest.table.column_names else class_name
            moved.append((row, head, _file_name(manifest.ids[row], value, name, manifest.place(row))))
    renamed = 0
    for row, head, rest in moved:
        out[row] = taken.free(head, rest)
        renamed += out[row] != f"{head}/{rest}"
        taken.add(out[row])
    return out, renamed, linked


def _source_place(row_id: str, splits: bool, classes: set[str]) -> tuple[tuple[str, ...], str, str] | None:
    """(split folder, class, the rest) of an id that is a path in an image folder; None where it is none."""
    parts = PurePosixPath(row_id).parts
    at = 1 if splits else 0
    usual = len(parts) >= at + 2 and parts[at] in classes and "/".join(parts) == row_id
    if not usual or ".." in parts or row_id.startswith("/"):
        return None
    return parts[:at], parts[at], "/".join(parts[at + 1 :])


class _Taken:
    """Names in use, of files and of their folders; capitals make no difference, as on some file systems."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.folders: set[str] = set()

    def add(self, place: str) -> None:
        self.files.add(place.casefold())
        self.folders.update(str(p) for p in PurePosixPath(place.casefold()).parents)

    def _inside_file(self, place: str) -> bool:
        return any(str(p) in self.files for p in PurePosixPath(place.casefold()).parents)

    def _clashes(self, place: str) -> bool:
        return place.casefold() in self.files or place.casefold() in self.folders or self._inside_file(place)

    def free(self, head: str, rest: str) -> str:
        """``head/rest``, or with a number before its suffix where that is taken."""
        if self._inside_file(f"{head}/{rest}"):
            rest = _cut("", rest.replace("/", "_"))  # a file stands where a sub-folder would
        first, number, place = PurePosixPath(rest), 1, f"{head}/{PurePosixPath(rest)}"
        while self._clashes(place):
            number += 1
            place = f"{head}/{first.with_name(_cut(first.stem, f'-{number}{first.suffix}'))}"
        return place


def _cut(stem: str, end: str) -> str:
    """``stem`` and ``end`` as one name that is not too long."""
    room = _LONGEST - len(end.encode())
    return stem.encode()[:room].decode(errors="ignore") + end


def _file_name(row_id: str, value: Payload | Path | None, name: str | None, where: str) -> str:
    """The file name of a row that came from no image folder: its path's, or its id with the suffix of its format."""
    base = PurePosixPath(name).name if name else row_id
    safe = "".join("_" if c in "/\\" or ord(c) < 32 or ord(c) == 127 else c for c in base) or "_"
    safe = f"_{safe}" if safe.startswith(".") else safe
    suffix = PurePosixPath(safe).suffix
    if suffix.lower() in EXTENSIONS:
        return _cut(safe[: -len(suffix)], suffix)
    return _cut(safe, sniffed(value, where))


def sniffed(value: Payload | Path | None, where: str) -> str:
    """The suffix of an image's format."""
    with image_of(read_payload(value, lambda: where), where) as image:
        kind = image.format or "PNG"
    return _SUFFIXES.get(kind, f".{kind.lower()}")


def _write(job: ExportJob, places: dict[int, str], root: Path) -> None:
    final = Path(os.path.realpath(job.place.parent)) / job.place.name
    root.mkdir(parents=True)
    for folder in {(root / place).parent for place in places.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    for row, value, _ in stored(job):
        assert isinstance(value, bytes | Path)  # a manifest has no empty payload
        if isinstance(value, Path):
            _link(job.link, value, root / places[row], final / places[row])
        else:
            with open(root / places[row], "xb") as handle:
                handle.write(value)


def _link(how: str, source: Path, file: Path, final: Path) -> None:
    """One file as a link or a copy; a symbolic link counts from where it will stand in the end."""
    target = os.path.realpath(source)
    try:
        if how == "symbolic":
            try:
                os.symlink(os.path.relpath(target, final.parent), file)
            except ValueError:  # another drive
                os.symlink(target, file)
        elif how == "hard":
            os.link(target, file)
        else:
            shutil.copy2(target, file)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        what = f"cannot make a {how} link ({error.strerror})"
        raise ManifestError(what, where=str(source), fix="pass --link copy, or export to the same disk") from error
