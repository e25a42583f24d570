"""The rows that Phi is measured on, apart from those that are trained on and from those that measure the outcome.

A target row is a training row where both have one payload.  In images such a pair is a mistake, and the target rows
are left out; in tables of a few discrete columns equal rows are natural, and leaving them out makes the target about
other rows than were given.  ``--overlap`` says which it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from influence_cli.data.classes import class_name
from influence_cli.data.labels import numbered_as
from influence_cli.data.manifest import Manifest, Rows, without_overlap
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError
from influence_cli.events import Listener
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import Inputs
from influence_cli.stages.run.usable_rows import check_alike, usable_target
from influence_cli.store import Store

MAX_OVERLAP = 0.01  # share of target rows that may be training or test rows before the run is refused
MOVED = 0.05  # of a class's or a group's share of the target: more is worth a warning
SHOWN = 6  # classes, or groups, whose shares are told
BOTH_WAYS = (
    "take them out of one of the two; or pass --overlap keep, which leaves them in the target (equal rows are "
    "natural where columns are discrete), or "
    "--overlap drop, which takes them out of it and narrows it"
)


def target_rows(
    inputs: Inputs,
    manifest: Manifest,
    listener: Listener,
    model: ModelSpec | None = None,
    store: Store | None = None,
    columns: Iterable[str] = (),
) -> tuple[Rows, Rows]:
    """The target rows that ``model`` can use, less those that are left out as training rows, and the latter.

    ``columns`` are those with groups that the objectives are about, beside that of ``inputs``.
    """
    target, where = given_target(inputs, manifest, listener, model, store)
    if inputs.allow_overlap:
        listener.note("--allow-overlap is called --overlap drop now; --overlap keep leaves such rows in the target")
    return of_their_own(target, inputs, manifest, where, listener, columns)


def of_their_own(
    target: Rows, inputs: Inputs, manifest: Manifest, where: str, listener: Listener, columns: Iterable[str] = ()
) -> tuple[Rows, Rows]:
    """Target rows less those that are left out as training or test rows, and the former of these.

    Raises:
        ManifestError: they are more than 1% and nothing says what they are, or all are left out.
    """
    train = manifest.rows("train")
    kept, overlap = _apart(target, train, "training", inputs, where, listener)
    kept, _ = _apart(kept, manifest.rows("test"), "test", inputs, where, listener)  # tests would know the answer
    if inputs.overlap == "drop" and len(kept) < len(target):
        _say_how_it_changed(target, kept, dict.fromkeys((*columns, inputs.group)), listener)
    return kept, overlap


def given_target(
    inputs: Inputs, manifest: Manifest, listener: Listener, model: ModelSpec | None, store: Store | None
) -> tuple[Rows, str]:
    """The target rows as they are given, those that ``model`` can use; and where they are."""
    known = None if store is None else store.file_keys()
    if inputs.target is None:
        target, where = manifest.rows("val"), f"{manifest.source}, split val"
    else:
        other = open_manifest(inputs.target, inputs.label, inputs.skip_bad, known, like=manifest)
        classes = manifest.classes or (None if model is None else model.classes)
        other = numbered_as(other, classes, manifest.source if manifest.classes else "the checkpoint", listener)
        check_alike(other, manifest, model)
        target, where = other.rows("val") if (other.splits == "val").any() else other.all_rows(), other.source
    if len(target) == 0:
        raise ManifestError("no target rows", where=where, fix="set split to val for some rows, or pass --target PATH")
    if model is not None and store is not None:
        target = usable_target(target, model, inputs, store)
    return target, where


def _apart(target: Rows, others: Rows, kind: str, inputs: Inputs, where: str, listener: Listener) -> tuple[Rows, Rows]:
    """Target rows that stay, and those that are left out as some of ``others``: more than 1% needs a decision.

    Raises:
        ManifestError: too many are, or all are left out.
    """
    kept, overlap = without_overlap(target, others)
    if not len(overlap):
        return kept, overlap
    names = ", ".join(overlap.ids[:5])
    found = f"{len(overlap)} of {len(target)} target rows are {kind} rows (same payload)"
    if inputs.overlap == "keep":
        listener.note(f"{found} and stay in the target: {names}")
        return target, overlap.take(np.array([], dtype=np.int64))
    if len(kept) == 0 and inputs.overlap == "drop":
        fix = "give target rows of their own, or pass --overlap keep where equal rows are natural"
        raise ManifestError(f"every target row is a {kind} row", where=where, fix=fix)
    if len(overlap) / len(target) > MAX_OVERLAP and inputs.overlap == "refuse":
        raise ManifestError(f"{found}: {names}", where=where, fix=BOTH_WAYS)
    listener.warn(f"{len(overlap)} target rows are {kind} rows and were left out of the target: {names}")
    return kept, overlap


def _say_how_it_changed(target: Rows, kept: Rows, columns: Iterable[str], listener: Listener) -> None:
    """The share of every class and group in the target before and after rows were left out; a warning if one moved."""
    parts = [("class", _labels(target), _labels(kept))]
    parts += [(column, _groups(target, column), _groups(kept, column)) for column in columns]
    moved: list[str] = []
    for name, before, after in parts:
        shares = sorted(_shares(before, after), key=lambda s: -abs(s[2] - s[1]))
        if not shares:
            continue
        told = "; ".join(f"{part} {was:.1%} -> {now:.1%}" for part, was, now in shares[:SHOWN])
        more = f"; {len(shares) - SHOWN} more moved less" if len(shares) > SHOWN else ""
        listener.note(f"  target by {name}, before and after: {told}{more}")
        part, was, now = next((s for s in shares if s[2] == 0), shares[0])
        if now == 0 or abs(now - was) > MOVED:
            moved.append(f"{name} {part} went from {was:.1%} to {now:.1%} of it")
    if moved:
        listener.warn(
            f"the target that is left is about other rows than were given: {', '.join(moved)}; "
            "--overlap keep measures on all of them"
        )


def _shares(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, float, float]]:
    """The share of each name there is among all, before and after."""
    was, now = Counter(before), Counter(after)
    return [(name, count / len(before), now[name] / len(after)) for name, count in sorted(was.items())]


def _labels(rows: Rows) -> list[str]:
    return [class_name(rows.manifest.classes, label) for label in rows.labels.tolist()]


def _groups(rows: Rows, column: str) -> list[str]:
    """The group of every row; none where there is no such column."""
    if column not in rows.manifest.table.column_names:
        return []
    values = rows.manifest.table.column(column).take(pa.array(rows.index)).to_pylist()
    return ["none" if value is None else str(value) for value in values]
