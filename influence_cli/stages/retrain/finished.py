"""What is kept of a training that an earlier run has finished, or one beside this one, as far as it can be used."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from influence_cli.errors import DamagedModel
from influence_cli.events import Listener
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.run_folder import METRICS_FILE, RUN_FILE, RunFolder
from influence_cli.model.run_record import WEIGHTS_FILE, RunRecord
from influence_cli.store.files import DamagedFile


def finished_training(
    folder: RunFolder, keep: int, listener: Listener, asked: Collection[str] = ()
) -> dict[str, Any] | None:
    """What was measured of a training with at least ``keep`` checkpoints; None where it must be trained.

    One that lacks something of its record that is ``asked`` for must be.

    Of one whose measures alone are damaged what is left is given, so that it is measured again.

    Raises:
        DamagedModel: a folder stands where a file is to be, so that it cannot be trained again either.
    """
    for name in (RUN_FILE, WEIGHTS_FILE, METRICS_FILE):
        if (folder.path / name).is_dir():
            raise DamagedModel(f"{name} is a folder", where=str(folder.path / name), fix="move it away")
    if not (folder.path / METRICS_FILE).exists() or not (folder.path / WEIGHTS_FILE).exists():
        return None  # cut off before it was finished
    record: RunRecord | None = None
    try:
        record = _verified(folder)
        if not all(getattr(record, name) for name in asked):
            return None
        measures = folder.read_measures()
        files = [c["file"] for c in measures["checkpoints"]]
        missing = [name for name in files if not (folder.path / name).exists()]
        if missing:
            raise DamagedFile(f"{missing[0]} is missing")
    except DamagedModel as error:
        listener.warn(f"{error.where}: {error.what}; it is trained again")
        return None
    except (OSError, DamagedFile, KeyError, TypeError) as error:
        known = record is not None and record.steps is not None and len(record.checkpoints) >= keep
        what = "measured" if known and isinstance(error, OSError | DamagedFile) else "trained"
        listener.warn(f"{folder.path / METRICS_FILE} is damaged ({error}); it is {what} again")
        if record is None or what == "trained":
            return None
        return {name: record.as_json()[name] for name in ("seed", "steps", "checkpoints")}
    return measures if len(files) >= keep else None


def _verified(folder: RunFolder) -> RunRecord:
    """The record of a training, all of whose weights are as it says.

    Raises:
        DamagedModel: they are not.
    """
    record = folder.read()
    if record is None:
        raise DamagedModel(f"{RUN_FILE} is not there", where=str(folder.path), fix="train again")
    for name in record.digests if record.digests is not None else (WEIGHTS_FILE,):
        if not (folder.path / name).exists():
            raise DamagedModel(f"{name} is not there", where=str(folder.path), fix="train again")
        find_checkpoint(str(folder.path / name))
    for name, digest in {**record.values, **record.moments}.items():
        folder.read_arrays(name, digest)
    return record
