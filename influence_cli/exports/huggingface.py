"""Datasets that Hugging Face's ``load_from_disk`` reads: Arrow streams and their description, written by pyarrow.

A folder holds ``data-00000-of-00001.arrow``, ``dataset_info.json`` (features, with the names of the classes) and
``state.json``; a dataset with splits is a folder of them, with ``dataset_dict.json``.  The fingerprint in
``state.json`` is of the content, so that nothing that was cached for the source is taken for the export.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions.protocol import PROPOSAL
from influence_cli.data.kinds.protocol import Payload
from influence_cli.data.label_kinds import CLASSES, NUMBERS, SEVERAL
from influence_cli.data.payloads import read_payload
from influence_cli.data.sources import open_source
from influence_cli.data.sources.huggingface import data_files, read_description, read_stream, split_folders
from influence_cli.data.sources.origin import Origin
from influence_cli.data.sources.protocol import LABEL_NAMES, pick
from influence_cli.data.split_column import SPLITS
from influence_cli.exports.matched import Matched, match
from influence_cli.exports.protocol import ExportJob, Prepared, stored
from influence_cli.store.files import file_digest, write_bytes

_FILE = "data-00000-of-00001.arrow"
_SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
_STATE: dict[str, Any] = {
    "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False, "_split": None,
}  # fmt: skip
_SIZES = ("splits", "dataset_size", "download_size", "size_in_bytes", "download_checksums")  # of the source
_DTYPES = {"double": "float64", "float": "float32"}  # where Arrow's name is another
_WEIGHT = {"dtype": "float64", "_type": "Value"}


def prepare(job: ExportJob) -> Prepared:
    """Check an export as a saved dataset: from the source where there is one, otherwise from the manifest."""
    origin = job.made_from("huggingface")
    if origin is None:
        return Prepared(lambda place: _write_new(job, place), int(job.edited.keep.sum()))
    source = origin.verified(job.folder)
    matched = match(job, open_source(str(source), origin.columns), str(source))
    rows = int(matched.keep.sum())
    return Prepared(lambda place: _write_again(job, origin, source, matched, place), rows, matched.notes)


def _write_again(job: ExportJob, origin: Origin, source: Path, matched: Matched, place: Path) -> None:
    """The source's columns, features and splits, less the rows that went."""
    parts, weighted = split_folders(source), bool(matched.reweighted.any())
    first = 0

    def tables(folder: Path) -> Iterator[pa.Table]:
        nonlocal first  # rows of the source before a table, over all splits
        for file in data_files(folder):
            for table in read_stream(file):
                here = slice(first, first + table.num_rows)
                first = here.stop
                label = None  # labels that are no classes are never edited
                if job.edited.manifest.label_kind.holds == CLASSES:
                    label = pick(table.column_names, origin.columns.label, LABEL_NAMES, "label", str(folder))
                yield _edited(job, table, label, matched, here, weighted)

    for folder in parts.values():
        info = {k: v for k, v in read_description(folder / "dataset_info.json").items() if k not in _SIZES}
        state = {**_STATE, **read_description(folder / "state.json")}
        if weighted and info.get("features"):
            info["features"] = {**info["features"], "weight": _WEIGHT}
        _save(place / folder.relative_to(source), tables(folder), info, state)
    if None not in parts:
        _write_json(place / "dataset_dict.json", {"splits": [folder.name for folder in parts.values()]})


def _edited(
    job: ExportJob, table: pa.Table, label: str | None, matched: Matched, here: slice, weighted: bool
) -> pa.Table:
    if label is not None:
        position, kind = table.column_names.index(label), table.schema.field(label).type
        labels = table.column(label).to_pylist()
        for k in np.flatnonzero(matched.relabelled[here]).tolist():
            new = int(matched.label[here][k])
            labels[k] = job.edited.class_name(new) if isinstance(labels[k], str) else new
        table = table.set_column(position, table.schema.field(label), pa.array(labels, kind))
    if weighted:
        names, weights = table.column_names, pa.array(matched.weight[here])
        if "weight" in names:
            table = table.set_column(names.index("weight"), "weight", weights)
        else:
            table = table.append_column("weight", weights)
    return table.filter(pa.array(matched.keep[here]))


def _save(folder: Path, tables: Iterable[pa.Table], info: dict[str, Any], state: dict[str, Any]) -> None:
    """One dataset: its rows in one Arrow stream, and what describes them."""
    folder.mkdir(parents=True, exist_ok=True)
    described = {"huggingface": json.dumps({"info": {"features": info.get("features")}}, ensure_ascii=False)}
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(pa.OSFile(str(folder / _FILE), "wb"))
        writer = None
        for table in tables:
            table = table.replace_schema_metadata(described)
            writer = writer or stack.enter_context(pa.ipc.new_stream(sink, table.schema))
            writer.write_table(table)
    own = {"_data_files": [{"filename": _FILE}], "_fingerprint": file_digest(folder / _FILE)[:16]}
    _write_json(folder / "dataset_info.json", info)
    _write_json(folder / "state.json", {**state, **own})


def _write_json(path: Path, value: Any) -> None:
    """Keys in their order: it is the columns'."""
    write_bytes(path, json.dumps(value, indent=2, ensure_ascii=False).encode())


def _write_new(job: ExportJob, place: Path) -> None:
    """A dataset with the manifest's columns; images are embedded, so that it can be moved."""
    manifest = job.edited.manifest
    has_splits = "split" in manifest.table.column_names
    present = [s for s in SPLITS if (job.edited.keep & (manifest.splits == s)).any()]
    for split in present:
        name = _SPLIT_NAMES[split] if has_splits else None
        info = {"citation": "", "description": "", "features": _features(job), "homepage": "", "license": ""}
        _save(place / (name or ""), _new_tables(job, split), info, {**_STATE, "_split": name})
    if has_splits:
        _write_json(place / "dataset_dict.json", {"splits": [_SPLIT_NAMES[s] for s in present]})


def _others(job: ExportJob) -> list[str]:
    """The manifest's other columns that hold one plain value a row."""
    left_out, schema = ("id", "split", "weight", job.label, PROPOSAL), job.edited.manifest.table.schema
    return [f.name for f in schema if f.name not in left_out and not pa.types.is_nested(_plain(f.type))]


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _weighted(job: ExportJob) -> bool:
    weights = job.edited.weights[job.edited.keep]
    return "weight" in job.edited.manifest.table.column_names or bool((weights != 1).any())


def _features(job: ExportJob) -> dict[str, Any]:
    """The types of the columns, as ``datasets`` names them."""
    manifest = job.edited.manifest
    features: dict[str, Any] = {"id": {"dtype": "string", "_type": "Value"}}
    features |= {name: described for name, (_, described) in manifest.payload_kind.embedded_types.items()}
    names = list(manifest.classes or ())
    plain = "float64" if manifest.label_kind.holds == NUMBERS else "int64"
    of_label: dict[str, Any] = {"names": names, "_type": "ClassLabel"} if names else {"dtype": plain, "_type": "Value"}
    if manifest.label_kind.holds == SEVERAL:  # the places of those that are there, as such data sets have them
        of_label = {"feature": of_label, "_type": "Sequence"}
    if manifest.labelled:
        features[job.label] = of_label
    for name in _others(job):
        kind = _plain(manifest.table.schema.field(name).type)
        features[name] = {"dtype": _DTYPES.get(str(kind), str(kind)), "_type": "Value"}
    return {**features, "weight": _WEIGHT} if _weighted(job) else features


def _labels(job: ExportJob, labels: NDArray[Any]) -> pa.Array:
    """Labels as a column: of several a row the places of those that are there."""
    kind = job.edited.manifest.label_kind
    if kind.holds != SEVERAL:
        return kind.stored(labels)
    return pa.array([np.flatnonzero(row).tolist() for row in labels], pa.list_(pa.int64()))


def _new_tables(job: ExportJob, split: str) -> Iterator[pa.Table]:
    """The rows of one split, some hundred at a time."""
    left = stored(job, job.edited.keep & (job.edited.manifest.splits == split))
    while some := list(itertools.islice(left, 512)):
        yield _new_table(job, some)


def _new_table(job: ExportJob, some: list[tuple[int, Payload | Path | None, str | None]]) -> pa.Table:
    edited, manifest = job.edited, job.edited.manifest
    rows, values = [row for row, _, _ in some], list[dict[str, Any]]()
    for row, value, name in some:
        payload = read_payload(value, functools.partial(manifest.place, row))
        values.append(manifest.payload_kind.embedded(payload, None if name is None else Path(name).name))
    columns = {"id": pa.array([manifest.ids[r] for r in rows], pa.string())}
    for name, (kind, _) in manifest.payload_kind.embedded_types.items():
        columns[name] = pa.array([value[name] for value in values], kind)
    if manifest.labelled:
        columns[job.label] = _labels(job, edited.labels[rows])
    for name in _others(job):
        column = manifest.table.column(name).take(pa.array(rows))
        columns[name] = column.cast(_plain(column.type))
    if _weighted(job):
        columns["weight"] = pa.array(edited.weights[rows])
    return pa.table(columns)
