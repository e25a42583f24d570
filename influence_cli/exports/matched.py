"""The rows of a source, read again, beside the rows of the manifest that was made from it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.classes import Numbering
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.sources import Source, open_source
from influence_cli.data.sources.origin import Origin
from influence_cli.data.sources.survey import COMMA
from influence_cli.errors import ManifestError
from influence_cli.exports.protocol import ExportJob, rebase, same_images


@dataclass(frozen=True, eq=False)
class Matched:
    """Every row [s] of the source, in its order; what it says is compared with what holds after the edits."""

    keep: NDArray[np.bool_]  # False: trimmed, or not in the manifest
    label_was: NDArray[np.int64]  # the source's own; -1 where it cannot be used
    label: NDArray[np.int64]
    weight_was: NDArray[np.float64]
    weight: NDArray[np.float64]
    notes: list[str]

    @functools.cached_property
    def relabelled(self) -> NDArray[np.bool_]:
        """Rows that are kept with another label."""
        return self.keep & (self.label != self.label_was)

    @functools.cached_property
    def reweighted(self) -> NDArray[np.bool_]:
        """Rows that are kept with another weight."""
        return self.keep & (self.weight != self.weight_was)


def match(job: ExportJob, source: Source, where: str) -> Matched:
    """Find every row of the manifest in the source by its id, which is the row's number where there is no id column.

    Raises:
        ManifestError: a row of the manifest is not there, or is there twice.
    """
    edited = job.edited
    place = {i: k for k, i in enumerate(edited.manifest.ids)}
    by_class = edited.manifest.label_kind.holds == CLASSES  # other labels are never edited
    number = Numbering(edited.manifest.classes, source.classes is not None)
    row: list[int] = []
    was: list[int] = []
    weight: list[float] = []
    for table in source.tables():
        row += [place.get(i, -1) for i in table.column("id").to_pylist()]
        was += [_number(v, number) for v in table.column("label").to_pylist()] if by_class else [-1] * table.num_rows
        weight += _weights(table)
    at = np.array(row, dtype=np.int64)
    found, times = np.unique(at[at >= 0], return_counts=True)
    if (times > 1).any():
        twice = edited.manifest.ids[int(found[times > 1][0])]
        raise ManifestError(f"id {twice!r} is there twice", where=where, fix="make ids unique in the source")
    missing = np.flatnonzero(edited.keep & ~np.isin(np.arange(len(edited.keep)), found))
    if len(missing):
        name = edited.manifest.ids[int(missing[0])]
        fix = "export the manifest that was made from it, or pick another form with --export-as"
        raise ManifestError(f"row id={name} of the manifest is not in its source", where=where, fix=fix)
    left_out = int((at < 0).sum())
    notes = [f"{left_out:,} rows of the source are not in the manifest and were left out"] if left_out else []
    inside = at >= 0
    return Matched(
        keep=inside & edited.keep[at],
        label_was=np.array(was, dtype=np.int64),
        label=np.where(inside, edited.labels[at], -1) if by_class else np.full(len(at), -1, dtype=np.int64),
        weight_was=np.array(weight),
        weight=np.where(inside, edited.weights[at], 1.0),
        notes=notes,
    )


@dataclass(frozen=True, eq=False)
class MatchedLines:
    """A text file that is written again: its rows, and what edits change in a line or object of it."""

    job: ExportJob
    source: Path
    rows: Matched
    label: str  # its columns
    image: str | None
    weight: str | None
    comma: bool  # whether it writes weights with a decimal comma

    @property
    def moved(self) -> bool:
        """Whether paths of images are to count from another folder than they do in the source."""
        return self.image is not None and self.source.parent.resolve() != self.job.place.parent.resolve()

    def rebased(self, path: str) -> str:
        """A path of the source as the export writes it."""
        return rebase(path, self.source.parent, self.job.place.parent)


def match_lines(job: ExportJob, origin: Origin, source: Path, count: int, unit: str) -> MatchedLines:
    """``match``, where every row is one of ``count`` lines or objects of a text file.

    Raises:
        ManifestError: rows and lines are not the same, or an image has changed since it was embedded.
    """
    where = str(source)
    opened = open_source(where, origin.columns_in(job.folder))
    matched = match(job, opened, where)
    if count != len(matched.keep):
        fix = f"write it with one {'row' if unit == 'line' else unit} a line, or export as another form"
        what = f"{len(matched.keep)} rows were read and {count} {unit}s are there"
        raise ManifestError(what, where=where, fix=fix)
    same_images(job, source.parent)
    roles = opened.columns
    assert roles is not None  # it is a table
    written = roles["weight_form"]
    comma = written[0] == COMMA if written else roles["marks"] == ","
    return MatchedLines(job, source, matched, roles["label"], roles["image"], roles["weight"], comma)


def weight_column(weight: str | None, names: Sequence[str]) -> str:
    """The column that new weights are written to: the one that rows were weighted by, or a new one."""
    return weight or ("weight" if "weight" not in names else "sample_weight")


def _number(value: Any, number: Numbering) -> int:
    """The label of what stands in the source; -1 where it cannot be used."""
    try:
        return -1 if value is None else number.of(value)
    except ValueError:
        return -1


def _weights(table: pa.Table) -> list[float]:
    if "weight" not in table.column_names:
        return [1.0] * table.num_rows
    return [1.0 if v is None else float(v) for v in table.column("weight").to_pylist()]


def spellings(labels: NDArray[np.int64], written: list[Any], where: str) -> dict[int, Any]:
    """How the source writes each label: as it did first.

    Raises:
        ManifestError: one text stands for two labels, so rows and lines are not the same.
    """
    out: dict[int, Any] = {}
    meant: dict[Any, int] = {}
    for label, text in zip(labels.tolist(), written, strict=True):
        if meant.setdefault(text, label) != label:
            fix = "write it with one row a line, or export as another form"
            raise ManifestError(f"{text!r} is read as two labels: lines and rows differ", where=where, fix=fix)
        if label >= 0:
            out.setdefault(label, text)
    return out
