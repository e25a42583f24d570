"""A run folder of ``retrain``: the one class that knows its files and reads and writes them.

RUN/run.json                       what was trained (``RunRecord``), with a checksum and the digests of all weights
RUN/model.safetensors              the weights; they carry their model and digest themselves
RUN/checkpoints/step-N.safetensors weights that were kept during training
RUN/epochs/                        values of every row at every epoch of training, whole epochs a file
RUN/moments/step-N.safetensors     the optimizer's state at the checkpoint after N steps
RUN/folds/                         logits of every row by a model that was trained without it, a fold a file
RUN/metrics.json                   what the arms came to
RUN/arms/<fingerprint>             every finished training, as a run folder of its own; its metrics.json is sealed

A ``run.json`` that is there and cannot be read, or is not as it was written, is an error for whoever reads it: the l2
of training, canaries and calibration rows are in it, and numbers would be other ones without them.  Folders of earlier
versions carry no checksums and are read as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.errors import DamagedModel
from influence_cli.model.run_record import WEIGHTS_FILE, RunRecord
from influence_cli.store.claims import Claims
from influence_cli.store.files import DamagedFile, file_digest, replacing, write_bytes, write_json
from influence_cli.store.layout import OF
from influence_cli.store.remote import local
from influence_cli.store.sealed import (
    CHECKSUM,
    WEIGHTS,
    parsed_object,
    serialized_digest,
    tensor_digest,
    weights_metadata,
    write_sealed_json,
)
from influence_cli.store.tensors import (
    METADATA_KEY,
    read_header,
    read_metadata,
    read_tensors,
    tensor_names,
    write_tensors,
)

if TYPE_CHECKING:
    from torch import nn

RUN_FILE, METRICS_FILE = "run.json", "metrics.json"
CHECKPOINTS, ARMS, EPOCHS, FOLDS, MOMENTS = "checkpoints", "arms", "epochs", "folds", "moments"
_OURS = {"schema_version", "model", "recipe", CHECKSUM, WEIGHTS}  # any of these: not another program's run.json
_METRICS = {"schema_version", "test_rows", "arms", "comparison"}  # keys of every metrics.json at the top


class RunFolder:
    """The run folder at ``path``, whether it is there or not."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def of(cls, locator: str | Path) -> RunFolder:
        """The folder whose ``run.json`` speaks of a checkpoint: itself, or where its file or its checkpoints lie."""
        path = local(str(locator))
        if path.is_dir():
            return cls(path)
        return cls(path.parent.parent if path.parent.name == CHECKPOINTS else path.parent)

    def arm(self, name: str) -> RunFolder:
        """The folder of one finished training, by its fingerprint."""
        return RunFolder(self.path / ARMS / name)

    def claims(self) -> Claims:
        """Which training a process is at: a hidden file below ``arms/`` for each, which is there while it goes on."""
        return Claims(lambda name: self.path / ARMS / f".{name}.claim.tmp")

    def read(self) -> RunRecord | None:
        """What ``run.json`` says, verified; None where there is none, or it is another program's.

        Raises:
            DamagedModel: it is there and cannot be read, or is not as ``retrain`` wrote it.
        """
        path = self.path / RUN_FILE
        if path.exists() and not path.is_file():
            raise _unreadable(path, "it is no regular file")
        try:
            value = parsed_object(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            if path.is_symlink():
                raise _unreadable(path, error) from error
            return None
        except (OSError, DamagedFile) as error:
            raise _unreadable(path, error) from error
        if value and not _OURS & value.keys() and not (self.path / WEIGHTS_FILE).exists():
            return None
        if (CHECKSUM in value) != (WEIGHTS in value):
            raise _unreadable(path, "its checksum or its digests of weights are missing")
        try:
            return RunRecord.from_json(value)
        except ValueError as error:
            raise _unreadable(path, error) from error

    def planted_labels(self, rows: Rows) -> NDArray[np.int64] | None:
        """The label planted for each row [n] in training, -1 for none; None for a run without canaries."""
        record = self.read()
        return None if record is None or record.canaries is None else record.canaries.of(rows)

    def write(self, record: RunRecord) -> None:
        """Write ``run.json``, with the digests of the weights that the record names, which are there by now."""
        weights = {name: tensor_digest((self.path / name,)) for name in record.weights}
        write_sealed_json(self.path / RUN_FILE, {**record.as_json(), WEIGHTS: weights})

    def check_weights(self, path: Path, digest: str, whole: bool) -> None:
        """Refuse weights that are not those which ``run.json`` names; ``whole``: it must name them.

        Raises:
            DamagedModel: the weights have another digest, or ``run.json`` cannot be read.
        """
        record = self.read()
        if record is None or record.digests is None:
            return
        name = path.relative_to(self.path).as_posix()
        if record.digests.get(name, None if whole else digest) != digest:
            what = f"{name} is not the weights that {RUN_FILE} names: damaged, or replaced"
            fix = f"copy the run folder again, or train again; for other weights, put them where no {RUN_FILE} is"
            raise DamagedModel(what, where=str(path), fix=fix)

    def write_weights(self, name: str, model: nn.Module, about: dict[str, Any]) -> None:
        """Write a model's weights to one file, with what they are ``about`` and their digest as metadata."""
        from safetensors.torch import save

        weights = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        write_bytes(self.path / name, save(weights, weights_metadata(about, serialized_digest(save(weights)))))

    def write_arrays(self, name: str, arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> str:
        """Write arrays to one file, with what they are ``about``; its digest."""
        write_tensors(self.path / name, arrays, about)
        return file_digest(self.path / name)

    def read_arrays(self, name: str, digest: str) -> dict[str, NDArray[Any]]:
        """The arrays of a file that ``run.json`` names with this digest.

        Raises:
            DamagedModel: it is not there, or not as it was written.
        """
        path = self.path / name
        try:
            arrays, _ = read_tensors(path)
            if file_digest(path) == digest:
                return arrays
            why: object = f"it is not the file that {RUN_FILE} names"
        except (OSError, DamagedFile) as error:
            why = error
        fix = "copy the run folder again, or train again"
        raise DamagedModel(f"{name} is damaged ({why})", where=str(path), fix=fix)

    def names_in(self, name: str) -> set[str]:
        """The names of the arrays of a file that is there whole, whose values are not looked at.

        Raises:
            DamagedModel: it is not there, is no such file, or is cut short.
        """
        path = self.path / name
        try:
            return tensor_names(path)
        except (OSError, DamagedFile) as error:
            fix = "copy the run folder again, or train again"
            raise DamagedModel(f"{name} is damaged ({error})", where=str(path), fix=fix) from error

    def kept_arrays(self, name: str, about: dict[str, Any]) -> tuple[str, dict[str, NDArray[Any]]] | None:
        """The digest and arrays of a file that is ``about`` just this; None where there is none that can be used."""
        try:
            arrays, found = read_tensors(self.path / name)
        except (OSError, DamagedFile):
            return None
        return (file_digest(self.path / name), arrays) if found == about else None

    def copy_files(self, names: Iterable[str], source: RunFolder) -> None:
        """Copy files from another run folder, each whole or not at all."""
        for name in names:
            with replacing(self.path / name) as temporary:
                shutil.copyfile(source.path / name, temporary)

    def read_measures(self) -> dict[str, Any]:
        """What was measured of one training.

        Raises:
            OSError: there is no file, or it cannot be read.
            DamagedFile: it is not as it was written.
        """
        measures = parsed_object((self.path / METRICS_FILE).read_bytes())
        if measures.get(OF, self.path.name) != self.path.name:
            raise DamagedFile(f"it is of {measures[OF]}")
        return {k: v for k, v in measures.items() if k not in (CHECKSUM, OF)}

    def write_measures(self, measures: dict[str, Any]) -> None:
        """Write what was measured of one training, with its name and a checksum."""
        write_sealed_json(self.path / METRICS_FILE, {**measures, OF: self.path.name})

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Write what all arms came to."""
        write_json(self.path / METRICS_FILE, metrics)

    def wrote(self, name: str) -> bool:
        """Whether a file says what it is of as a run's does: weights and arrays by their header, or metrics."""
        file = self.path / name
        try:
            if not file.is_file():
                return False
            if file.name == METRICS_FILE:
                metrics = json.loads(file.read_bytes())
                return metrics.keys() >= _METRICS and isinstance(metrics["arms"], dict)
            if file.parent.name in (EPOCHS, FOLDS, MOMENTS):
                return "of" in read_metadata(file)
            return "model" in json.loads(read_header(file)["__metadata__"][METADATA_KEY])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, DamagedFile):
            return False


def _unreadable(path: Path, why: object) -> DamagedModel:
    fix = f"copy the run folder again, or train again; to do without it, move {RUN_FILE} away and pass --model"
    return DamagedModel(f"{RUN_FILE} is not as retrain wrote it ({why})", where=str(path), fix=fix)
