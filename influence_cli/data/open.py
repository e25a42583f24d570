"""A manifest from a file, a folder, or rows that a Python program holds."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.frames import NUMBERED, as_table, index_said, name_of
from influence_cli.data.kinds import PAYLOADS, kind_in
from influence_cli.data.kinds.own_input import errors_of_own_code
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.manifest import Manifest, read_manifest
from influence_cli.data.outside import allowing_outside
from influence_cli.data.partitions import names_in_folders
from influence_cli.data.plain_types import plain_type
from influence_cli.data.request import COLUMNS_KEY, Columns, IngestRequest
from influence_cli.data.row_checks import RowChecks
from influence_cli.data.split_column import Splits
from influence_cli.data.splits import split_of_file
from influence_cli.data.tables import manifest_command, parquet_files, read_schema, temporary_folder
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.store.file_keys import StoredFileKeys
from influence_cli.store.keys import KEY_BYTES, row_keys, stack
from influence_cli.store.parquet import write_sealed
from influence_cli.store.parts import local_tables
from influence_cli.store.remote import is_remote


def open_manifest(
    source: Any,
    label: str = "label",
    skip_bad: bool = False,
    known: StoredFileKeys | None = None,
    *,
    like: Manifest | None = None,
    listener: Listener = SILENT,
) -> Manifest:
    """Read a manifest from a file or folder of Parquet files, or from rows in memory; see ``read_manifest``.

    A table in memory may have plain columns, from which a manifest is made as ``influence manifest`` does, with every
    row a train row where there is no column ``split``; it is read as ``like`` was, where that was made of such too.

    Raises:
        ManifestError: a column or a row cannot be used.
        UsageError: it is nothing that holds rows.
    """
    if isinstance(source, Manifest):
        return source
    if not isinstance(source, str | Path):
        with allowing_outside(True):  # a program of the user's has read them
            return _in_memory(source, label, skip_bad, like, listener)
    files = parquet_files(str(source), label)
    _refuse_named_splits(str(source), files, label)
    if is_remote(source):
        known = None  # of copies, which are gone when the command ends, nothing is remembered
    return read_manifest(str(source), files, label, skip_bad=skip_bad, known=known)


def _refuse_named_splits(source: str, files: list[Path], label: str) -> None:
    """Refuse files whose names or folders alone say which split they are of; ``manifest`` makes it a column.

    Taken as they are, test rows would be trained on.
    """
    named = {split: file for file in files if (split := split_of_file(file)) is not None}
    if "split" in names_in_folders(files):
        named = {str(file.parent): file for file in files}
    elif len(named) < 2 or "split" in read_schema(files[0]).names:
        return
    shown = ", ".join(file.relative_to(local_tables(str(source))).as_posix() for file in list(named.values())[:3])
    what = f"which split its rows are of stands in names alone ({shown}), and in no column"
    raise ManifestError(what, where=source, fix=f"make a manifest of it: {manifest_command(source, label)}")


def _in_memory(source: Any, label: str, skip_bad: bool, like: Manifest | None, listener: Listener) -> Manifest:
    """A manifest of rows in memory; relative paths count from here."""
    table = as_table(source)
    if table is not None and NUMBERED in index_said(table):
        listener.warn(index_said(table))
    if table is not None and _is_manifest(table, label):
        table = table.select([n for n in table.column_names if not n.startswith("__index_level_")])
        return read_manifest(name_of(source), [_spooled(table)], label, skip_bad=skip_bad, folder=Path.cwd())
    if table is not None:
        return _of_plain_columns(source, table, label, skip_bad, like, listener)
    if callable(getattr(source, "__getitem__", None)) and callable(getattr(source, "__len__", None)):
        return read_dataset(source, skip_bad)
    fix = "give a path, an Arrow table, a DataFrame or a torch Dataset"
    raise UsageError(f"a {type(source).__name__} holds no rows", fix=fix)


def _is_manifest(table: pa.Table, label: str) -> bool:
    """Whether a table has a manifest's columns, or at least a payload as a manifest has it and no labels by name."""
    if kind_in(table.column_names) is None:
        return False
    kind = plain_type(table.schema.field(label).type) if table.column_names.count(label) == 1 else pa.int64()
    return "id" in table.column_names and not (is_text(kind) or pa.types.is_boolean(kind))


def _of_plain_columns(
    source: Any, table: pa.Table, label: str, skip_bad: bool, like: Manifest | None, listener: Listener
) -> Manifest:
    """A manifest made of a table's plain columns; all of them are kept beside the features, for groups and slices."""
    from influence_cli.data.ingest import make_manifest  # readers of sources, which a manifest does not need

    recipe = None if like is None or not like.files else str(like.files[0])
    if recipe is not None and COLUMNS_KEY not in (read_schema(Path(recipe)).metadata or {}):
        recipe = None
    named = label if label in table.column_names else None
    own = {label, "id", "split", "weight", *PAYLOADS}
    kept = tuple(f.name for f in table.schema if f.name not in own and not pa.types.is_nested(f.type))
    columns = Columns(label=named, like=recipe, keep=() if recipe else kept)
    with tempfile.NamedTemporaryFile(dir=temporary_folder("influence-rows-"), suffix=".parquet") as handle:
        place = handle.name
    request = IngestRequest(table, place, columns, split="100/0/0", skip_bad=skip_bad)
    made = make_manifest(request, listener)
    for sentence in (*made.taken, *made.notes):
        listener.note(sentence)
    for name, reason in made.skipped:
        listener.warn(f"row id={name} is left out: {reason}")
    return dataclasses.replace(made.manifest, source=name_of(source), folder=Path.cwd())


def _spooled(table: pa.Table) -> Path:
    """The table as a file: every stage streams payloads from files."""
    with tempfile.NamedTemporaryFile(
        dir=temporary_folder("influence-rows-"), suffix=".parquet", delete=False
    ) as handle:
        write_sealed(table, pa.PythonFile(handle, mode="w"))
    return Path(handle.name)


@dataclass(frozen=True, eq=False)
class DatasetManifest(Manifest):
    """A torch Dataset of (input, label) pairs as a manifest: payloads are what its rows hold, named by content."""

    dataset: Any = None

    def payloads(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
        """(row, payload) for ``rows`` in ascending order."""
        for row in np.sort(rows).tolist():
            yield row, _pair(self.dataset, row, self.source)[0]


def read_dataset(dataset: Any, skip_bad: bool = False) -> DatasetManifest:
    """Read every row of a Dataset once, to name it; a row is (input, label).

    Ids are ``dataset.ids`` where it has them, otherwise row numbers; class names are ``dataset.classes``.

    Raises:
        ManifestError: no rows, a row that is no pair or has no whole-number label, ids that do not fit, or rows that
            are not the same when they are read again.
    """
    source, n = name_of(dataset), len(dataset)
    if n == 0:
        raise ManifestError("the Dataset has no rows", where=source, fix="give a Dataset with rows")
    names = getattr(dataset, "ids", None)
    ids = [str(i) for i in (range(n) if names is None else names)]
    if len(ids) != n or len(set(ids)) != n:
        raise ManifestError(f"{len(set(ids))} different ids for {n} rows", where=source, fix="name every row once")
    checks = RowChecks(source, pa.table({"id": ids}), skip_bad)
    keys, labels = [bytes(KEY_BYTES)] * n, np.full(n, -1, dtype=np.int64)
    for row in range(n):
        try:
            payload, label = _pair(dataset, row, source)
            keys[row], labels[row] = object_key(payload), label
        except ManifestError as error:
            checks.fail(row, "dataset", error.what, error.fix)
    for row in {0, n - 1} - set(checks.bad):
        if object_key(_pair(dataset, row, source)[0]) != keys[row]:
            what, fix = f"row {row} is not the same when it is read again", "turn random augmentation off"
            raise ManifestError(what, where=source, fix=f"{fix}: a score belongs to one input")
    splits, bad = checks.left_out(Splits.all_of("train", n))
    table = pa.table({"id": pa.array(ids), "label": pa.array(labels)})
    stacked = stack(keys)
    classes, named = _class_names(dataset, source), row_keys(stacked, labels)
    return DatasetManifest(
        source,
        (),
        "dataset",
        table,
        labels,
        splits,
        stacked,
        named,
        classes,
        Path.cwd(),
        bad,
        len(bad),
        dataset=dataset,
    )


def _class_names(dataset: Any, source: str) -> tuple[str, ...] | None:
    """The names of classes 0, 1, ... where the Dataset has them."""
    classes = getattr(dataset, "classes", None)
    if classes is None:
        return None
    if isinstance(classes, str | dict) or not (hasattr(classes, "__len__") and hasattr(classes, "__getitem__")):
        fix = "give a list of names, in the order of the labels"
        raise ManifestError(f"its classes are a {type(classes).__name__}, not a list", where=source, fix=fix)
    return tuple(str(classes[k]) for k in range(len(classes)))


def _pair(dataset: Any, row: int, source: str) -> tuple[Any, int]:
    where = f"{source}, row {row}"
    failure = lambda why: ManifestError(f"row {row} cannot be read ({why})", where=where, fix="repair the Dataset")  # noqa: E731
    with errors_of_own_code(failure):
        value = dataset[row]
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ManifestError("a row is no (input, label)", where=where, fix="return such pairs")
    payload, label = value
    try:
        whole = int(label)
        if whole < 0 or whole != label:
            raise ValueError
    except (TypeError, ValueError) as error:
        what = f"label {label!r} is no class number"
        raise ManifestError(what, where=where, fix="number the classes from 0") from error
    return payload, whole


def object_key(value: Any) -> bytes:
    """16 bytes that name what a row holds: tensors, arrays, images, bytes, text, numbers, and lists or dicts of them.

    Raises:
        ManifestError: it holds something else.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=b"influence.obj")
    _feed(digest.update, value)
    return digest.digest()


def _feed(update: Callable[[Any], None], value: Any) -> None:
    """Every part is preceded by its kind and size, so that no two values have one text."""
    kind = type(value).__module__.partition(".")[0]
    if kind == "torch" and hasattr(value, "detach"):
        import torch

        flat = value.detach().cpu().contiguous()
        update(f"tensor {flat.dtype} {tuple(flat.shape)} ".encode())
        update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    elif isinstance(value, np.ndarray | np.generic) and value.dtype.kind != "O":
        update(f"array {value.dtype.str} {value.shape} ".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif kind == "PIL" and hasattr(value, "tobytes"):
        image: Any = value
        update(f"image {image.mode} {image.size} ".encode())
        update(image.tobytes())
        colours = image.getpalette("RGBA") if image.mode in ("P", "PA") else None
        if colours is not None:  # pixels are places in it
            update(f"palette {colours} {image.info.get('transparency')!r} ".encode())
    elif isinstance(value, bytes | str):
        raw = value if isinstance(value, bytes) else value.encode()
        update(f"{type(value).__name__} {len(raw)} ".encode())
        update(raw)
    elif value is None or isinstance(value, bool | int | float):
        update(f"{type(value).__name__} {value!r} ".encode())
    elif isinstance(value, list | tuple):
        update(f"list {len(value)} ".encode())
        for part in value:
            _feed(update, part)
    elif isinstance(value, dict):
        update(f"dict {len(value)} ".encode())
        for name in sorted(value, key=repr):
            _feed(update, name)
            _feed(update, value[name])
    else:
        what = f"a row holds a {type(value).__name__}, which has no name by content"
        raise ManifestError(what, fix="return tensors or arrays")
