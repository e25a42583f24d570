"""Folds of rows: one for all rows of a payload, so that equal rows never stand on both sides, class after class."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.store.shards import positions, unique

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows

Ints = NDArray[np.int64]
FEWEST = 3  # folds that every command takes


def dealt(rows: Rows, trained: NDArray[np.bool_], folds: int, seed: int, flag: str = "--folds ") -> Ints:
    """The fold of each row [n], from 0 on: one for all rows of a payload, with as much of each class as can be.

    Payloads are dealt out in an order that hashes of (seed, payload) give, class after class, those that are trained on
    first, so that the others change nothing for them.  ``flag`` stands before the number of folds in messages.

    Raises:
        UsageError: there are fewer distinct payloads to train on than folds.
    """
    keys = rows.payload_keys
    first = unique(keys)
    payload = positions(keys, keys[first])
    used = np.zeros(len(first), dtype=bool)
    np.logical_or.at(used, payload, trained)
    if used.sum() < folds:
        some = int(used.sum())
        more = "give more rows that differ, of a weight above 0"
        raise UsageError(
            f"{flag}{folds} of {some} distinct rows with a weight above 0",
            fix=more if some < FEWEST else f"pass {flag}{some} or fewer, or {more}",
        )
    label = np.full(len(first), np.iinfo(np.int64).max)
    np.minimum.at(label, payload, rows.strata)
    salt = f"{seed}:fold".encode()
    draw = [hashlib.blake2b(keys[k].tobytes(), digest_size=16, key=salt).digest() for k in first.tolist()]
    order = sorted(range(len(first)), key=lambda p: (not used[p], label[p], draw[p]))
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(first)) % folds
    return fold[payload]
