"""Rows of several lengths, such as one number a token: an array of arrays in memory, flat in a file, never filled up.

A ragged array is one of objects, each of which is a row's own array [T, ...].  In a file it is the rows one after
another, beside a tensor of their lengths.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.store.files import DamagedFile

LENGTHS = ".lengths"  # after the name of the flat values


def ragged(rows: Iterable[NDArray[Any]]) -> NDArray[np.object_]:
    """One array [n] of the rows' own arrays.

    >>> ragged([np.array([1.0, 2.0]), np.array([3.0, 4.0])]).shape
    (2,)
    """
    some = list(rows)
    found = np.empty(len(some), dtype=object)
    for k, row in enumerate(some):
        found[k] = row
    return found


def flattened(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Arrays [n, ...] as a file holds them: ragged ones of at least one row flat, with their lengths i64[n]."""
    out: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if array.dtype == object:
            out[name] = np.concatenate(list(array))
            out[name + LENGTHS] = np.array([len(row) for row in array], dtype=np.int64)
        else:
            out[name] = array
    return out


def unflattened(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inverse of ``flattened``.

    Raises:
        DamagedFile: lengths are not those of the values.
    """
    out: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        if name.endswith(LENGTHS):
            continue
        lengths = tensors.get(name + LENGTHS)
        if lengths is None:
            out[name] = tensor
            continue
        if int(lengths.sum()) != len(tensor) or (len(lengths) and int(lengths.min()) < 0):
            raise DamagedFile(f"{name} has {len(tensor)} values where its rows have {int(lengths.sum())}")
        out[name] = ragged(np.split(tensor, np.cumsum(lengths)[:-1]))
    return out
