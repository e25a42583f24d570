"""Looking after a store: list, verify, collect.  No answer changes, only what has to be computed again.

Only files of the store are renamed or deleted (see ``layout``), and links to folders are not followed; runs and other
such commands may be at work on the same store meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from influence_cli.errors import StoreError
from influence_cli.events import SILENT, Listener
from influence_cli.store import Store, layout
from influence_cli.store.blocks import BlockFolder
from influence_cli.store.entries import Entry, list_entries
from influence_cli.store.file_keys import read_keys
from influence_cli.store.files import DamagedFile
from influence_cli.store.gradients import GradientFolder, LostRows
from influence_cli.store.keys import Keys
from influence_cli.store.notes import check_note, read_note
from influence_cli.store.place import Place, check_place
from influence_cli.store.shards import TRIES, ShardFolder
from influence_cli.store.tensors import read_metadata, read_tensors

__all__ = ["Entry", "Found", "collect", "examine", "list_entries"]

SPARE_SECONDS = 24 * 3600.0  # a younger temporary file may belong to a run in progress
FOLDERS = {"gradients": GradientFolder, **dict.fromkeys(("outputs", "tangents", "features"), BlockFolder)}
NAMED = 5  # so many files that are not the store's are named


@dataclass(frozen=True)
class Found:
    """What a look at every file of a store has found."""

    files: int  # with tensors
    notes: int
    damaged: list[str]
    left_alone: int


def examine(root: Path, listener: Listener = SILENT) -> Found:
    """Re-read every file and note; damaged ones are set aside, what is not the store's is named and left alone.

    Raises:
        StoreError: the folder is no store.
    """
    check_place(root, looked_after=True)
    tensors = [
        f for kind in layout.SHARDED for folder in layout.folders_of(root / kind) for f in layout.shards_of(folder)
    ]
    tensors += [f for kind in layout.SINGLE for f in layout.singles_of(root / kind)]
    notes, damaged, files = _notes(root), list[str](), 0
    with listener.progress("verify", len(tensors) + len(notes), "files") as progress:
        for file in [*tensors, *notes]:
            with contextlib.suppress(FileNotFoundError):  # merged by another command meanwhile
                try:
                    _read(file)
                    files += file.suffix == ".safetensors"
                except DamagedFile as error:
                    ours, kept = _set_aside(file, error)
                    if ours:
                        damaged.append(f"{file} ({error}{kept})")
                        files += file.suffix == ".safetensors"
            progress.advance(1)
    return Found(files, len(notes), damaged, _left_alone(root, listener))


def _set_aside(file: Path, error: DamagedFile) -> tuple[bool, str]:
    """Whether a damaged file is the store's, and why it stays where it is: in a store that may only be read."""
    try:
        return layout.set_aside(file, error, SILENT, ""), ""
    except StoreError:
        return True, "; it cannot be set aside"


def _read(file: Path) -> None:
    if file.suffix == ".safetensors":
        layout.refuse_moved(file, read_tensors(file)[1])
    elif file.name == layout.FILE_KEYS:
        read_keys(file)
    else:
        check_note(file)


def _notes(root: Path) -> list[Path]:
    """Every note of the store, and the keys of files."""
    notes = [root / name for name in (layout.UNDECODABLE, layout.TIMINGS, layout.FILE_KEYS)]
    notes += [folder / layout.VALUE_NOTE for folder in layout.folders_of(root / "row_values")]
    for kind in layout.NOTED:
        if not (root / kind).is_symlink():
            notes += [path for path in sorted((root / kind).glob("*.json")) if layout.NAME.fullmatch(path.stem)]
    return [path for path in notes if path.is_file()]


def _left_alone(root: Path, listener: Listener) -> int:
    """How many files and links below the root are not the store's; they are said once."""
    names: list[str] = []
    for entry, parts in layout.walk(root):
        if entry.name in layout.HARMLESS or entry.is_dir(follow_symlinks=False):
            continue
        if (entry.is_dir() or not layout.belongs(Path(entry.path), parts)) and os.path.lexists(entry.path):
            names.append("/".join(parts))
    if names:
        shown = ", ".join(names[:NAMED]) + (f", and {len(names) - NAMED:,} more" if len(names) > NAMED else "")
        listener.warn(f"{len(names):,} files that are not the store's were left alone: {shown}")
    return len(names)


def collect(root: Path, keep: Keys | None, listener: Listener = SILENT, fits: set[str] | None = None) -> dict[str, int]:
    """Remove rubbish, drop rows whose payload is not in ``keep`` [n, 16] (None: all are), and merge small shards.

    Rubbish is what was set aside as damaged, and temporary files and states of stopped computations older than a day.
    With ``fits``, factors of fit sets that are not among these fingerprints go too, with the directions made from them,
    the tangents along those, and values of rows that were taken with them.
    Payload files that are gone or have changed are forgotten, and undecodable payloads that are not in ``keep``.

    Raises:
        StoreError: the folder is no store.
    """
    check_place(root, looked_after=True)
    if root.exists():
        Place(root).claim()
    before = _size(root)
    removed = _collect_rubbish(root)
    if fits is not None:
        removed += _collect_fits(root, fits, listener)
    known = Store(root, listener)
    notes_dropped = known.forget_undecodable(None if keep is None else {key.tobytes().hex() for key in keep})
    files = known.file_keys()
    files_forgotten = files.drop_stale()
    files.save()
    manifests_forgotten = files.manifests.drop_stale() if files.manifests is not None else 0
    dropped = merged = 0
    for kind in layout.SHARDED:
        for path in layout.folders_of(root / kind):
            rows, shards = _collect_rows(FOLDERS.get(kind, ShardFolder), path, keep, listener)
            dropped, merged = dropped + rows, merged + shards
    return {
        "files_removed": removed,
        "rows_dropped": dropped,
        "shards_merged": merged,
        "payload_files_forgotten": files_forgotten,
        "manifests_forgotten": manifests_forgotten,
        "undecodable_forgotten": notes_dropped,
        "bytes_freed": before - _size(root),
        "left_alone": _left_alone(root, listener),
    }


def _collect_rubbish(root: Path) -> int:
    """Remove what was set aside, and what runs have left a day ago; returns the number of files."""
    claims = [f.stem for f in layout.claims_of(root / layout.CLAIMED)]
    removed = Store(root).claims.drop_unheld(claims)
    for file in layout.singles_of(root / "interims"):
        if _age(file) > SPARE_SECONDS and _fit_of(file) is not None and layout.NAME.fullmatch(file.stem):
            file.unlink(missing_ok=True)
            removed += 1
    for entry, parts in layout.walk(root):
        file = Path(entry.path)
        if layout.is_rubbish(file, parts) and (file.name.startswith(layout.DAMAGED) or _age(file) > SPARE_SECONDS):
            file.unlink(missing_ok=True)
            removed += 1
    return removed


def _age(file: Path) -> float:
    try:
        return time.time() - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _fit_of(file: Path) -> str | None:
    """The fit set that a file's metadata names; None where there is none to be read."""
    try:
        return read_metadata(file).get("fit")
    except (DamagedFile, FileNotFoundError):
        return None  # verify names it


def _size(root: Path) -> int:
    """The bytes of the kinds' folders."""
    folders = [root / kind for kind in (*layout.SINGLE, *layout.SHARDED) if not (root / kind).is_symlink()]
    files = [e for folder in folders for e, _ in layout.walk(folder) if e.is_file(follow_symlinks=False)]
    return sum(layout.bytes_of(Path(file.path)) for file in files)


def _collect_fits(root: Path, fits: set[str], listener: Listener) -> int:
    """Remove what was fitted on other fit sets; returns the number of files."""
    removed = 0
    for kind in layout.SINGLE:
        for file in layout.singles_of(root / kind):
            fit = _fit_of(file)
            if fit is None or fit in fits or not layout.NAME.fullmatch(file.stem):
                continue
            # what is of rows along a direction of that name, and traces of a chain; none is named as a factor
            made = (*layout.OF_DIRECTIONS, "traces")
            removed += sum(_remove_folder(root / of / file.stem) for of in made)
            removed += _remove_outputs(root, file)
            file.unlink(missing_ok=True)
            removed += 1
    for folder in layout.folders_of(root / "row_values"):
        note = read_note(folder / layout.VALUE_NOTE, listener)
        if note is not None and note["fit"] not in fits:
            removed += _remove_folder(folder)
    return removed


def _remove_outputs(root: Path, file: Path) -> int:
    """Remove the outputs of a member whose weights, trained on a fit set, are in a file; returns how many files."""
    try:
        named = str(read_metadata(file).get("outputs", ""))
    except (DamagedFile, FileNotFoundError):
        return 0
    return _remove_folder(root / "outputs" / named) if layout.NAME.fullmatch(named) else 0


def _remove_folder(folder: Path) -> int:
    """Remove the store's files from the folder of one thing, and the folder where nothing else is in it."""
    if folder not in layout.folders_of(folder.parent):
        return 0
    ours = [shard for shard in layout.shards_of(folder) if layout.carries(shard)]
    ours += [folder / name for name in (layout.SPEC, layout.VALUE_NOTE) if (folder / name).is_file()]
    for gone in ours:
        gone.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it
        folder.rmdir()
    return len(ours)


def _collect_rows(folder: type[ShardFolder], path: Path, keep: Keys | None, listener: Listener) -> tuple[int, int]:
    """What ``collect`` returns, again where a shard was damaged, or another run has merged it meanwhile."""
    for _ in range(TRIES):
        with contextlib.suppress(LostRows, FileNotFoundError):
            return folder(path, {}, listener).collect(keep)
    return 0, 0
