"""NumPy archives: x and y, or {train,val,test}_images and {train,val,test}_labels; u8 images or numeric features."""

from __future__ import annotations

import io
import math
import re
import tokenize
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.kinds.image import EMBEDDED
from influence_cli.data.label_kinds import DEFAULT, SEVERAL, TASKS
from influence_cli.data.request import Columns
from influence_cli.data.sources.features import count_blurred
from influence_cli.data.sources.protocol import LeftOut, Source, one_meaning, usual_splits
from influence_cli.data.splits import split_of
from influence_cli.errors import ManifestError, nearest
from influence_cli.store.files import DamagedFile
from influence_cli.store.zips import damage_told

_VALUES, _LABELS = ("x", "images", "image", "features", "data"), ("y", "labels", "label", "targets")
_CHUNK = 2048


def read_npz(path: Path, columns: Columns) -> Source:
    """An archive of arrays; arrays are read as data, never unpickled.

    Raises:
        ManifestError: no pair of values and labels, other lengths, or values that are neither images nor features.
    """
    several = TASKS[columns.task or DEFAULT].holds == SEVERAL
    arrays = {name: array if several else plain_array(array) for name, array in read_arrays(path).items()}
    parts = pair_names(arrays, columns, str(path))
    used = {name for pair in parts.values() for name in pair}
    splits = _splits(arrays, parts, used, str(path))
    used |= {"split"} if splits is not None else set()
    left_out = tuple(LeftOut(f"array {name}", _why_not(name, columns)) for name in arrays if name not in used)
    taken = [f"{split or 'rows'}: values {values}, labels {labels}" for split, (values, labels) in parts.items()]
    taken += [] if splits is None else ["split: array split"]

    counts = Counter[str]()

    def tables() -> Iterator[pa.Table]:
        counts.clear()
        for split, names in parts.items():
            values, labels = arrays[names[0]], as_column(arrays[names[1]])
            for first in range(0, len(values), _CHUNK):
                here = slice(first, first + _CHUNK)
                ids = [f"{split or 'row'}-{first + k}" for k in range(len(values[here]))]
                if values.dtype.kind in "iuf":
                    count_blurred(values[here], "", counts)
                table = {"id": pa.array(ids), **_payload(values[here], str(path)), "label": _column(labels[here])}
                if split is not None:
                    table["split"] = pa.array([split] * len(ids))
                elif splits is not None:
                    table["split"] = splits.slice(first, len(ids))
                yield pa.table(table)

    about: dict[str, Any] = {"left_out": left_out, "taken": tuple(taken), "counts": counts}
    return Source("npz", tables, None, str(path.parent), task=columns.task or DEFAULT, **about)


def _column(labels: NDArray[np.generic]) -> pa.Array:
    """Labels [n], or [n, L] as lists."""
    return pa.array(labels.tolist() if labels.ndim == 2 else labels)


def _splits(
    arrays: dict[str, NDArray[np.generic]], parts: dict[str | None, tuple[str, str]], used: set[str], where: str
) -> pa.Array | None:
    """The split of every row [n], from an array ``split`` beside one pair of values and labels; None without one."""
    array = arrays.get("split")
    if array is None or "split" in used or None not in parts or array.shape != (len(arrays[parts[None][1]]),):
        return None
    return usual_splits(pa.chunked_array([pa.array(as_column(array).astype(str).tolist())]), where, "split")


def plain_array(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The array; truth values that are labels [n] or [n, 1] become the names False and True, as in other tables."""
    return array.astype(str) if array.dtype.kind == "b" and (array.ndim == 1 or array.shape[1:] == (1,)) else array


def _why_not(name: str, columns: Columns) -> str:
    if _is_values(name, columns):
        return "another array holds the values; --image or --features takes it"
    return "its name is none of values or labels; --features or --label takes it"


NPY = b"\x93NUMPY"  # how an array in an archive begins
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Every array of an archive, by name; nothing is unpickled.  Raises ManifestError: it is no archive of arrays."""
    try:
        with damage_told():
            _refuse_false_sizes(path)
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
    except (OSError, DamagedFile, TypeError, AttributeError, tokenize.TokenError) as error:
        why = "it holds one array, not several by name" if isinstance(error, TypeError | AttributeError) else error
        raise ManifestError(f"cannot be read ({why})", where=str(path), fix="save it with numpy.savez") from error
    odd = next((name for name, a in arrays.items() if not isinstance(a, np.ndarray) or a.ndim == 0), None)
    if odd is not None:
        what = f"{odd} is no array with a row for each example"
        raise ManifestError(what, where=str(path), fix="save arrays alone, with numpy.savez")
    return arrays


def _refuse_false_sizes(path: Path) -> None:
    """Refuse (ValueError) an array that says it has more values than its bytes hold: memory is taken by its word."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as handle:
                if handle.read(len(NPY)) != NPY:
                    continue
                handle.seek(0)
                header = READ_HEADER.get(np.lib.format.read_magic(handle))
                if header is None:
                    continue
                shape, _, dtype = header(handle)
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize > entry.file_size:
                    raise ValueError(f"{entry.filename} says it is {shape}, and holds {entry.file_size:,} bytes")


def as_column(labels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Labels [n] of an array [n] or [n, 1]; bytes are text.  Raises ManifestError: they are not UTF-8."""
    flat = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.dtype.kind != "S":
        return flat
    try:
        return np.char.decode(np.asarray(flat, dtype=np.bytes_), "utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError("labels are not UTF-8", fix="save them as text") from error


def pair_names(
    arrays: dict[str, NDArray[np.generic]], columns: Columns, where: str
) -> dict[str | None, tuple[str, str]]:
    """The names of values and labels by split (None: no splits).

    Raises:
        ManifestError: they do not pair, or are of other lengths.
    """
    values: dict[str | None, str] = {}
    labels: dict[str | None, str] = {}
    asked = [name for name in (columns.image, *columns.features) if name is not None]
    missing = [name for name in (columns.label, *asked) if name is not None and name not in arrays]
    if missing:
        raise ManifestError(f"no array {missing[0]!r}", where=where, fix=nearest(missing[0], list(arrays)))
    words = {name: [w for w in re.split(r"[_\-.]", name.lower()) if w] for name in arrays}
    one_meaning([w for some in words.values() for w in some if split_of(w)], where)
    for name in arrays:
        split = next((split_of(w) for w in words[name] if split_of(w)), None)
        rest = [w for w in words[name] if split_of(w) is None]
        if name == columns.label or (columns.label is None and rest and rest[0] in _LABELS):
            labels.setdefault(split, name)
        elif name in asked or (not asked and _is_values(name, columns)):
            better = split not in values or _rank(name) < _rank(values[split])
            values[split] = name if better else values[split]
    if not values or set(values) != set(labels):
        fix = f"name arrays x and y, or train_images and train_labels; there are: {', '.join(arrays)}"
        raise ManifestError("no pair of values and labels", where=where, fix=fix)
    several = TASKS[columns.task or DEFAULT].holds == SEVERAL
    for split, name in values.items():
        array, column = arrays[name], as_column(arrays[labels[split]])
        if len(array) != len(column) or column.ndim != (2 if several else 1):
            what = f"{len(array)} values and labels of shape {column.shape}"
            raise ManifestError(what, where=where, fix="one label a row" + (", a 0 or 1 for each" if several else ""))
    return {split: (values[split], labels[split]) for split in values}


def _rank(name: str) -> int:
    """How usual an array's first word is for values: the smaller the more."""
    first = next((w for w in re.split(r"[_\-.]", name.lower()) if w and split_of(w) is None), "")
    return _VALUES.index(first) if first in _VALUES else len(_VALUES)


def _is_values(name: str, columns: Columns) -> bool:
    return name == columns.image or name in columns.features or _rank(name) < len(_VALUES)


def _payload(values: NDArray[Any], where: str) -> dict[str, pa.Array]:
    if values.ndim == 2 and values.dtype.kind in "iufb":
        return {"features": pa.array(values.astype(np.float32).tolist(), pa.list_(pa.float32()))}
    if values.dtype == np.uint8 and (values.ndim == 3 or (values.ndim == 4 and values.shape[-1] in (1, 3))):
        images = [{"bytes": _png(image), "path": None} for image in values]
        return {"image": pa.array(images, EMBEDDED)}
    what = f"values of shape {values.shape} and type {values.dtype} are neither images nor features"
    fix = "give u8 [n, height, width] or [n, height, width, 3], or numbers [n, d]"
    raise ManifestError(what, where=where, fix=fix)


def _png(image: NDArray[np.generic]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()
