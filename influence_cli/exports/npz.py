"""NumPy archives: the source's arrays under their names, less the rows that went; or x and y of every split."""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import Decoded, form_of
from influence_cli.data.payloads import read_payload
from influence_cli.data.sources import open_source
from influence_cli.data.sources.npz import as_column, pair_names, read_arrays
from influence_cli.data.split_column import SPLITS
from influence_cli.errors import ManifestError, UsageError
from influence_cli.exports.matched import Matched, match, spellings
from influence_cli.exports.protocol import ExportJob, Prepared, stored

Arrays = dict[str, NDArray[Any]]


def prepare(job: ExportJob) -> Prepared:
    """Check an npz export: from the source where the manifest was made from one, otherwise from the manifest."""
    origin = job.made_from("npz")
    if origin is None:
        arrays = _new_arrays(job)
        rows = sum(len(a) for name, a in arrays.items() if name.endswith("_y"))
        return Prepared(lambda place: _save(place, arrays, False), rows)
    source = origin.verified(job.folder)
    arrays = dict(read_arrays(source))
    matched = match(job, open_source(str(source), origin.columns), str(source))
    first, weighted = 0, bool(matched.reweighted.any())
    for split, (values, labels) in pair_names(arrays, origin.columns, str(source)).items():
        here = slice(first, first + len(arrays[values]))
        first = here.stop
        keep = matched.keep[here]
        arrays[values], arrays[labels] = arrays[values][keep], _labels(job, arrays[labels], matched, here)[keep]
        if weighted:
            name = f"{split}_weights" if split else "weights"
            if name in arrays:
                raise UsageError(f"the source has an array {name!r} already", where=str(source), fix="rename it")
            arrays[name] = matched.weight[here][keep]
    with zipfile.ZipFile(source) as archive:
        packed = any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())
    return Prepared(lambda place: _save(place, arrays, packed), int(matched.keep.sum()), matched.notes)


def _labels(job: ExportJob, before: NDArray[Any], matched: Matched, here: slice) -> NDArray[Any]:
    """The labels of one array after the edits, in the same shape and as the source writes them."""
    column, edited = as_column(before), matched.relabelled[here]
    if not edited.any():
        return before
    new = matched.label[here][edited]
    if column.dtype.kind in "US":
        written = spellings(matched.label_was[here], column.tolist(), str(job.place))
        texts = np.array([written.get(c, job.edited.class_name(c)) for c in new.tolist()], dtype=column.dtype.kind)
        column = column.astype(np.promote_types(column.dtype, texts.dtype))
        column[edited] = texts
    else:
        column = column.copy()
        column[edited] = new
    return column.reshape(before.shape)


def _new_arrays(job: ExportJob) -> Arrays:
    """``train_x``, ``train_y`` and so on; images have to be of one size."""
    manifest, edited = job.edited.manifest, job.edited
    values: dict[str, list[Decoded]] = {s: [] for s in SPLITS}
    rows: dict[str, list[int]] = {s: [] for s in SPLITS}
    for row, value, _ in stored(job):
        split, where = str(manifest.splits[row]), manifest.place(row)
        payload = read_payload(value, functools.partial(manifest.place, row))
        values[split].append(manifest.payload_kind.as_arrays(payload, where))
        rows[split].append(row)
    shapes = {form_of(v) for arrays in values.values() for v in arrays}
    if len(shapes) > 1:
        fix = "use --export-as folder or huggingface"
        raise ManifestError(f"payloads have {len(shapes)} shapes, and an array has one", where=manifest.source, fix=fix)
    arrays: Arrays = {}
    weighted = bool((edited.weights[edited.keep] != 1).any())
    for split in (s for s in SPLITS if rows[s]):
        stacked = manifest.payload_kind.collate(values[split])
        parts = stacked if isinstance(stacked, dict) else {"x": stacked}
        arrays |= {f"{split}_{name}": part for name, part in parts.items()}
        arrays[f"{split}_y"] = edited.labels[rows[split]]
        if weighted:
            arrays[f"{split}_weights"] = edited.weights[rows[split]]
    return arrays


def _save(place: Path, arrays: Arrays, packed: bool) -> None:
    """As ``numpy.savez`` does, but that any name of an array will do, and that nothing is ever pickled."""
    with zipfile.ZipFile(place, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as handle:
                np.lib.format.write_array(handle, array, allow_pickle=False)
