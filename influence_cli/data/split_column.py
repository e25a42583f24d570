"""The splits of rows, a byte a row: as texts they would take as much memory as two keys."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from influence_cli.store.manifest_keys import digest_of_parts

SPLITS = ("train", "val", "test")
SKIPPED = "skipped"  # the split of a row that is left out
LATER = "later"  # that of a train row which a run with limits does not come to
NAMES = (*SPLITS, SKIPPED, LATER)
CODES = {name: code for code, name in enumerate(NAMES)}

Mask = NDArray[np.bool_]


class Splits:
    """The split of every row [n] by its place in ``NAMES``, as an array of texts is used."""

    def __init__(self, codes: NDArray[np.uint8]) -> None:
        """Numbers [n]; an array of one number for all rows, broadcast, takes no memory a row."""
        self.codes = codes

    @staticmethod
    def all_of(name: str, rows: int) -> Splits:
        """So many rows of one split.

        >>> Splits.all_of("val", 2).tolist()
        ['val', 'val']
        """
        return Splits(np.broadcast_to(np.uint8(CODES[name]), (rows,)))

    def __len__(self) -> int:
        return len(self.codes)

    def __eq__(self, name: object) -> Mask:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Which rows [n] are of a split, as numpy says it of texts."""
        return self.codes == CODES.get(name, len(NAMES)) if isinstance(name, str) else np.asarray(self) == name

    def __ne__(self, name: object) -> Mask:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ~(self == name)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> str: ...

    @overload
    def __getitem__(self, index: slice | NDArray[Any]) -> Splits: ...

    def __getitem__(self, index: Any) -> str | Splits:
        found = self.codes[index]
        return Splits(found) if isinstance(found, np.ndarray) else NAMES[found]

    def __setitem__(self, index: Any, name: str) -> None:
        self.codes[index] = CODES[name]

    def copy(self) -> Splits:
        """The same, to be changed."""
        return Splits(self.codes.copy())

    def tolist(self) -> list[str]:
        """Their names."""
        return [NAMES[code] for code in self.codes.tolist()]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(NAMES)[self.codes].astype(dtype or f"<U{len(SKIPPED)}")

    def __repr__(self) -> str:
        return repr(np.asarray(self))

    def digest(self) -> str:
        """Digest of the names of all rows, in order."""
        if self.codes.strides == (0,) and len(self):  # one for all rows, which is in memory once
            return digest_of_parts(self[0], str(len(self)))
        there = np.flatnonzero(np.bincount(self.codes, minlength=len(NAMES)))
        names = sorted(NAMES[code] for code in there.tolist())
        number = np.zeros(len(NAMES), np.uint8)
        number[[CODES[name] for name in names]] = np.arange(len(names), dtype=np.uint8)
        return digest_of_parts(*names, number[self.codes])
