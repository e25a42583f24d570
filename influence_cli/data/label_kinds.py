"""What the labels of a manifest are, by its task: classes, numbers to be predicted, or several labels a row.

A manifest says its task in its schema's metadata (key ``task``); without one its labels are classes.  To add a task,
write its class here and add it to the table.  Nothing else asks which one it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.plain_types import is_list
from influence_cli.data.row_checks import RowChecks
from influence_cli.data.tables import manifest_command
from influence_cli.errors import ManifestError, nearest
from influence_cli.store.arrow import array_of, array_of_texts, is_valid, values_of
from influence_cli.store.lfs import FIX, WHAT, is_pointer

CLASSES, NUMBERS, SEVERAL = "classes", "numbers", "several"  # what labels are, for whatever takes them
NOTHING = "nothing"  # there are none: a model learns to predict the payload itself
TASK_KEY = b"task"  # of a manifest's schema metadata
LARGEST = 1e150  # of a label that is a number: its square, and sums of such, are still numbers
Labels = NDArray[Any]


class LabelKind:
    """The labels of one task; what it does unless it says otherwise."""

    name: ClassVar[str]  # the task
    holds: ClassVar[str]  # classes, numbers or several
    losses: ClassVar[tuple[str, ...]]  # that a model of such labels can have; the first is the usual one
    trained: ClassVar[bool] = True  # whether they are what a model is trained to give, so that all of one are no use

    def read(self, checks: RowChecks, column: str) -> Labels:
        """The labels of every row; what stands for none in rows that are left out.

        Raises:
            ManifestError: the column is of another type than the task needs, or a row is refused.
        """
        raise NotImplementedError

    def outputs(self, labels: Labels, names: Sequence[str] | None) -> int:
        """How many outputs a model of these labels has."""
        raise NotImplementedError

    def strata(self, labels: Labels) -> NDArray[np.int64]:
        """Parts of the data [n] whose sizes edits are to keep: classes; all rows are one where there are none."""
        return np.zeros(len(labels), dtype=np.int64)

    def parts(self, labels: Labels) -> dict[int, NDArray[np.bool_]]:
        """Which rows [n] are of each class, or have each label, by number; none where labels are numbers."""
        return {}

    def differ(self, a: Labels, b: Labels) -> NDArray[np.bool_]:
        """Which of two columns of labels differ [n]."""
        return a != b

    def stored(self, labels: Labels) -> pa.Array:
        """The labels as a column of a manifest; null where there is none."""
        raise NotImplementedError

    def shown(self, labels: Labels, names: Sequence[str] | None) -> pa.Array:
        """The labels as a column of a table for people; null where there is none."""
        return self.stored(labels)

    def plain(self, label: Any, names: Sequence[str] | None) -> Any:
        """One label as a plain value, for lines of text: by name where it has one."""
        raise NotImplementedError

    def told(self, label: Any, names: Sequence[str] | None) -> str:
        """One label as people read it, given as it is or as ``shown``; None where there is none."""
        if isinstance(label, str):  # several, as a table shows them
            return ", ".join(label.split(";")) or "no label"
        plain = None if label is None else self.plain(label, names)
        if plain is None or plain == []:
            return "no label"
        if isinstance(plain, list):
            return ", ".join(map(str, plain))
        return f"{plain:.6g}" if isinstance(plain, float) else str(plain)

    @property
    def called(self) -> str:
        """What the labels are, in a sentence."""
        return f"of task {self.name}"


class Classes(LabelKind):
    """One of several classes, by number: int64 [n], -1 in rows that are left out."""

    name: ClassVar[str] = "classification"
    holds: ClassVar[str] = CLASSES
    losses: ClassVar[tuple[str, ...]] = ("cross-entropy",)

    def read(self, checks: RowChecks, column: str) -> Labels:
        """Whole numbers from 0 on."""
        stored = checks.table.column(column)
        if not pa.types.is_integer(stored.type):
            where = f"{checks.source}, column {column}"
            fix = f"number the classes, which this does: {manifest_command(checks.source, column)}"
            if pa.types.is_floating(stored.type):
                fix += " (with --task regression where they are numbers to be predicted)"
            raise ManifestError(f"labels are {stored.type}, not integers", where=where, fix=fix)
        null = ~is_valid(stored)
        checks.each(np.flatnonzero(null), column, lambda _: "a label is null", "label it or take it out")
        labels = values_of(stored.cast(pa.int64(), safe=False), -1)
        negative = np.flatnonzero((labels < 0) & ~null)
        what = lambda row: f"a label is negative ({labels[row]})"  # noqa: E731
        checks.each(negative, column, what, "number the classes from 0")
        return np.maximum(labels, -1)

    def stored(self, labels: Labels) -> pa.Array:
        """Whole numbers."""
        null = labels < 0
        return array_of(labels, null if null.any() else None)

    def outputs(self, labels: Labels, names: Sequence[str] | None) -> int:
        """One a class."""
        return len(names) if names else int(labels.max()) + 1

    def strata(self, labels: Labels) -> NDArray[np.int64]:
        """The classes."""
        return labels

    def parts(self, labels: Labels) -> dict[int, NDArray[np.bool_]]:
        """The rows of each class."""
        return {int(c): labels == c for c in np.unique(labels)}

    def plain(self, label: Any, names: Sequence[str] | None) -> Any:
        """The name of a class, or its number."""
        return names[label] if names is not None and 0 <= label < len(names) else int(label)


class Numbers(LabelKind):
    """A number to be predicted: float64 [n], NaN in rows that are left out."""

    name: ClassVar[str] = "regression"
    holds: ClassVar[str] = NUMBERS
    losses: ClassVar[tuple[str, ...]] = ("squared", "huber")

    def read(self, checks: RowChecks, column: str) -> Labels:
        """Finite numbers."""
        stored = checks.table.column(column)
        if not (pa.types.is_integer(stored.type) or pa.types.is_floating(stored.type)):
            where = f"{checks.source}, column {column}"
            fix = f"cast them, which this does: {manifest_command(checks.source, column)} --task {self.name}"
            raise ManifestError(f"labels are {stored.type}, and task {self.name} needs numbers", where=where, fix=fix)
        null = ~is_valid(stored)
        checks.each(np.flatnonzero(null), column, lambda _: "a label is null", "label it or take it out")
        labels = values_of(stored.cast(pa.float64(), safe=False), np.nan).astype(np.float64)
        odd = np.flatnonzero(~np.isfinite(labels) & ~null)
        checks.each(odd, column, lambda row: f"a label is {labels[row]}, not finite", "label it or take it out")
        large = np.abs(labels) > LARGEST
        what = lambda row: f"a label is {labels[row]:g}, too large to be squared"  # noqa: E731
        checks.each(np.flatnonzero(large & np.isfinite(labels)), column, what, "mend it, or take it out")
        return np.where(np.isfinite(labels) & ~large, labels, np.nan) + 0.0  # one zero: -0.0 is the same label

    def stored(self, labels: Labels) -> pa.Array:
        """Real numbers."""
        null = np.isnan(labels)
        return array_of(labels, null if null.any() else None)

    def outputs(self, labels: Labels, names: Sequence[str] | None) -> int:
        """The prediction alone."""
        return 1

    def plain(self, label: Any, names: Sequence[str] | None) -> Any:
        """The number."""
        return float(label)

    @property
    def called(self) -> str:
        """What the labels are, in a sentence."""
        return f"numbers (task {self.name})"


class Ranks(Numbers):
    """Ordered grades, as numbers: a regression on their ranks."""

    name: ClassVar[str] = "ordinal"


class Several(LabelKind):
    """Which of several labels each row has: int8 0 or 1 [n, L], -1 in rows that are left out."""

    name: ClassVar[str] = "multi-label"
    holds: ClassVar[str] = SEVERAL
    losses: ClassVar[tuple[str, ...]] = ("binary",)

    def read(self, checks: RowChecks, column: str) -> Labels:
        """Lists of 0 and 1, all as long."""
        stored = checks.table.column(column)
        inner = stored.type.value_type if is_list(stored.type) else None
        where = f"{checks.source}, column {column}"
        if inner is None or not (
            pa.types.is_integer(inner) or pa.types.is_boolean(inner) or pa.types.is_floating(inner)
        ):
            fix = f"make them so: {manifest_command(checks.source, column)} --task {self.name}"
            what = f"labels are {stored.type}, and task {self.name} needs lists of 0 and 1"
            raise ManifestError(what, where=where, fix=fix)
        found = stored.to_pylist()
        widths = [len(value) for value in found if value is not None]
        wide = max(set(widths), key=widths.count, default=0)
        if wide == 0:
            raise ManifestError(
                "no row has a list of labels", where=where, fix="give every row a 0 or 1 for each label"
            )
        labels = np.full((len(found), wide), -1, dtype=np.int8)
        for row, value in enumerate(found):
            if value is None:
                checks.fail(row, column, "a label is null", "label it or take it out")
            elif len(value) != wide:
                what = f"{len(value)} labels where most rows have {wide}"
                checks.fail(row, column, what, "give every row a 0 or 1 for each label")
            elif any(v not in (0, 1) for v in value):
                odd = next(v for v in value if v not in (0, 1))
                checks.fail(row, column, f"a label is {odd!r}, neither 0 nor 1", "write 1 where it is there, else 0")
            else:
                labels[row] = value
        return labels

    def outputs(self, labels: Labels, names: Sequence[str] | None) -> int:
        """One a label."""
        return labels.shape[1]

    def differ(self, a: Labels, b: Labels) -> NDArray[np.bool_]:
        """Which rows differ in any label [n]."""
        return (a != b).any(axis=1)

    def stored(self, labels: Labels) -> pa.Array:
        """A list of 0 and 1 a row."""
        there = [None if (row < 0).any() else row.tolist() for row in labels]
        return pa.array(there, pa.list_(pa.int8()))

    def shown(self, labels: Labels, names: Sequence[str] | None) -> pa.Array:
        """The labels that are there, by name or number, with semicolons between them."""
        called = [str(k) for k in range(labels.shape[1])] if names is None else list(names)
        there = [None if (row < 0).any() else ";".join(called[k] for k in np.flatnonzero(row)) for row in labels]
        return array_of_texts([text or "" for text in there]) if None not in there else pa.array(there, pa.string())

    def parts(self, labels: Labels) -> dict[int, NDArray[np.bool_]]:
        """The rows that have each label."""
        return {c: labels[:, c] > 0 for c in range(labels.shape[1])}

    def plain(self, label: Any, names: Sequence[str] | None) -> Any:
        """The names of the labels that are there; 0 or 1 for each where they have none."""
        if names is None:
            return [int(v) for v in label]
        return [name for name, v in zip(names, label, strict=True) if v > 0]

    @property
    def called(self) -> str:
        """What the labels are, in a sentence."""
        return f"several a row (task {self.name})"


class Unlabelled(LabelKind):
    """No labels: texts whose next tokens are to be predicted.  They count as 0, int64 [n]."""

    name: ClassVar[str] = "language"
    holds: ClassVar[str] = NOTHING
    losses: ClassVar[tuple[str, ...]] = ("next-token",)
    trained: ClassVar[bool] = False

    def read(self, checks: RowChecks, column: str) -> Labels:
        """Zeros, whatever columns there are."""
        return np.zeros(checks.table.num_rows, dtype=np.int64)

    def stored(self, labels: Labels) -> pa.Array:
        """Zeros, for tables that have a column of labels whatever the task."""
        return array_of(labels)

    def outputs(self, labels: Labels, names: Sequence[str] | None) -> int:
        """The loss of a row counts as one."""
        return 1

    def plain(self, label: Any, names: Sequence[str] | None) -> Any:
        """Nothing."""
        return

    @property
    def called(self) -> str:
        """What the labels are, in a sentence."""
        return f"none (task {self.name})"


_ALL: tuple[LabelKind, ...] = (Classes(), Numbers(), Several(), Ranks(), Unlabelled())
LANGUAGE = Unlabelled.name  # the task of texts that say none and have no labels
TASKS: dict[str, LabelKind] = {kind.name: kind for kind in _ALL}
DEFAULT = Classes.name


def task_in(schema: pa.Schema, where: str) -> str:
    """The task that a manifest's schema names; classification where it names none.

    Raises:
        ManifestError: it names another than there are.
    """
    stored = (schema.metadata or {}).get(TASK_KEY)
    if stored is None:
        return DEFAULT
    if is_pointer(stored):
        raise ManifestError(WHAT, where=where, fix=FIX)
    name = stored.decode(errors="replace")
    if name not in TASKS:
        raise ManifestError(f"unknown task {name!r}", where=f"{where}, task", fix=nearest(name, list(TASKS)))
    return name


def one_task(found: dict[str, str], source: str) -> str:
    """The task of all files, by file.  Raises ManifestError: they have several."""
    (first, task), *others = found.items()
    for file, other in others:
        if other != task:
            what = f"its task is {other}, that of {first} {task}"
            raise ManifestError(what, where=f"{source}: {file}", fix="give all files one task")
    return task
