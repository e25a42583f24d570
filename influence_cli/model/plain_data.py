"""Which classes in a torch file are plain data, so that a file that holds them beside its weights can be read.

torch reads tensors, dicts, lists, numbers and texts as data.  Training scripts keep more: timm's ``args`` is an
``argparse.Namespace``, others keep paths, dates and numpy's numbers.  To make one of these runs nothing but its own
constructor; whatever is not listed is code, and is never made.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import pathlib
import types
import uuid
from typing import Any

import numpy as np

_PATHS = {  # of another system or version of Python, too
    "PosixPath": pathlib.PurePosixPath, "PurePosixPath": pathlib.PurePosixPath, "Path": pathlib.PurePath,
    "WindowsPath": pathlib.PureWindowsPath, "PureWindowsPath": pathlib.PureWindowsPath, "PurePath": pathlib.PurePath,
}  # fmt: skip


def _a_dict(*_: Any) -> dict[Any, Any]:
    """In the place of a defaultdict, which torch does not fill."""
    return collections.OrderedDict()


def _a_list(*_: Any) -> list[Any]:
    """In the place of a deque."""
    return []


def _names() -> frozenset[str]:
    """What the same things are called in files, and what torch itself takes for plain data beside tensors."""
    named = {kind[1] if isinstance(kind, tuple) else f"{kind.__module__}.{kind.__qualname__}" for kind in plain_data()}
    named |= {"collections.OrderedDict", "_codecs.encode", "copyreg._reconstructor", "numpy.dtype"}
    named |= {name.replace("builtins.", "__builtin__.") for name in named}  # as of Python 2, in which torch writes
    return frozenset(named | {f"__builtin__.{name}" for name in ("long", "unicode", "xrange")})


def plain_data() -> list[Any]:
    """What ``torch.serialization.safe_globals`` takes: classes, and (class, the name that files give it)."""
    made: list[Any] = [
        argparse.Namespace, types.SimpleNamespace, collections.Counter, decimal.Decimal,
        fractions.Fraction, uuid.UUID, uuid.SafeUUID, datetime.datetime, datetime.date, datetime.time,
        datetime.timedelta, datetime.timezone, np.ndarray, np.dtype,
    ]  # fmt: skip
    made += [(_a_dict, "collections.defaultdict"), (_a_list, "collections.deque")]
    made += [(kind, f"builtins.{kind.__name__}") for kind in (int, float, bool, str, list, dict, tuple, set, frozenset)]
    made += [(kind, f"builtins.{kind.__name__}") for kind in (bytes, bytearray, complex, slice, range)]
    made += [(kind, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name, kind in _PATHS.items()]
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        made += [(scalar, f"{module}.scalar"), (array, f"{module}._reconstruct")]
    kinds = set(np.sctypeDict.values()) - {np.void}
    return [*made, *kinds, *{type(np.dtype(kind)) for kind in kinds}]


PLAIN = _names()  # full names
