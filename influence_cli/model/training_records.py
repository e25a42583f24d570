"""What a run folder holds of rows it was trained on: values at every epoch, and logits of models that left them out.

Values by epoch are known by row key, so a row that has another label by now, or was not trained on, has none.  Logits
out of fold are known by payload key: a label is no part of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.model.run_folder import EPOCHS, RunFolder
from influence_cli.store import Keys

ROWS_FILE = f"{EPOCHS}/rows.safetensors"
ROWS_OF, FOLD_OF, MOMENTS_OF = "rows of a training", "rows of a fold", "moments"  # what such files say that they are
Floats = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EpochRecords:
    """Values of every row that was trained on, at every epoch, in a run folder."""

    folder: RunFolder
    files: dict[str, str]  # by name their digest

    @functools.cached_property
    def keys(self) -> Keys:
        """Row keys [m, 16] of the rows, under the labels that were trained on; equal rows stand there each."""
        return self.folder.read_arrays(ROWS_FILE, self.files[ROWS_FILE])["row_keys"]

    def shards(self) -> Iterator[Arrays]:
        """Values [e, m] by name, of the epochs in order, a file at a time.

        Raises:
            DamagedModel: a file is not as it was written.
        """
        for name in sorted(self.files.keys() - {ROWS_FILE}):
            yield self.folder.read_arrays(name, self.files[name])

    def each(self, name: str) -> Iterator[Floats]:
        """One value [m] at each epoch in order; NaN where the epoch passed over the row.

        A probability that was not written is that of a loss which is minus its log.
        """
        for shard in self.shards():
            if name in shard:
                yield from shard[name].astype(np.float64)
            else:
                yield from np.exp(-shard["loss"].astype(np.float64))

    def names(self) -> set[str]:
        """The values that there are, by what every file says that it holds: its numbers are read and checked later.

        Raises:
            DamagedModel: a file is not there, or does not begin as one.
        """
        names = sorted(self.files.keys() - {ROWS_FILE})
        found = set.intersection(*(self.folder.names_in(name) for name in names))
        return found | {"probability"} if "margin" in found else found

    def onto(self, values: Floats, keys: Keys) -> Floats:
        """Values [m] of the rows that were trained on, as values [n] of rows with these keys; NaN of any other row.

        Rows that were trained on more than once have the mean of theirs.
        """
        return onto(values, self.keys, keys)


@dataclass(frozen=True)
class FoldRecords:
    """Logits of every train row by the model of its fold, which was trained on the others."""

    folder: RunFolder
    files: dict[str, str]

    def logits(self, keys: Keys) -> Floats:
        """Logits [n, C] of rows with these payload keys; NaN of rows that are in no fold.

        Raises:
            DamagedModel: a file is not as it was written.
        """
        logits = np.concatenate([part["logits"] for part in self._parts]).astype(np.float64)
        at = self._places(keys)
        return np.where((at >= 0)[:, None], logits[at], np.nan)

    def among(self, keys: Keys) -> NDArray[np.bool_]:
        """Which rows with these payload keys are in a fold [n]."""
        return self._places(keys) >= 0

    @functools.cached_property
    def _parts(self) -> list[Arrays]:
        return [self.folder.read_arrays(name, digest) for name, digest in sorted(self.files.items())]

    def _places(self, keys: Keys) -> NDArray[np.int64]:
        """Where the rows stand in the files, one after another; -1 of those that do not."""
        known = np.concatenate([part["payload_keys"] for part in self._parts])
        place = {key.tobytes(): k for k, key in enumerate(known)}
        return np.array([place.get(key.tobytes(), -1) for key in keys], dtype=np.int64)


def onto(values: Floats, known: Keys, keys: Keys) -> Floats:
    """The mean of the values [m] of each key [n, 16] among those that are known [m, 16]; NaN where it is not.

    >>> keys = np.array([[1], [2], [1]], dtype=np.uint8)
    >>> onto(np.array([1.0, 5.0, 3.0]), keys, np.array([[2], [1], [9]], dtype=np.uint8)).tolist()
    [5.0, 2.0, nan]
    """
    number: dict[bytes, int] = {}
    at = np.array([number.setdefault(key.tobytes(), len(number)) for key in known], dtype=np.int64)
    counts = np.bincount(at, minlength=1)
    means = np.bincount(at, weights=values, minlength=1) / np.maximum(counts, 1)
    place = np.array([number.get(key.tobytes(), -1) for key in keys], dtype=np.int64)
    return np.where(place >= 0, means[place], np.nan)
