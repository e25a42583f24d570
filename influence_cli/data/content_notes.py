"""What people should know of a manifest's rows: classes, weights, and payloads that stand there twice."""

from __future__ import annotations

import re
import unicodedata

import numpy as np

from influence_cli.data.classes import class_called, class_name
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.manifest import Manifest
from influence_cli.data.sources.survey import MISSING
from influence_cli.store.shards import positions

SHOWN = 20  # things that are found in rows, line by line


def content_notes(manifest: Manifest, group: str | None = None) -> list[str]:
    """Classes without train rows or of nearly one name, payloads in several splits, duplicates with other labels.

    ``group`` is the column of groups.
    """
    notes = [*_class_notes(manifest), *_weight_notes(manifest)]
    blank = 0 if group is None else manifest.table.column(group).null_count
    if blank:
        notes.append(f"{_rows(blank)} without a value in column {group} {'is' if blank == 1 else 'are'} in no group")
    for other in ("val", "test"):
        rows, train = manifest.rows(other), manifest.rows("train")
        shared = positions(rows.payload_keys, train.payload_keys) >= 0
        if shared.any():
            ids = [i for i, s in zip(rows.ids, shared.tolist(), strict=True) if s]
            notes.append(f"{len(ids)} {other} rows are also train rows (same payload): {', '.join(ids[:5])}")
    first = positions(manifest.payload_keys, manifest.payload_keys)
    again = np.flatnonzero(first != np.arange(len(first)))
    differ = manifest.label_kind.differ(manifest.labels, manifest.labels[first])
    clashing = again[differ[again]].tolist()
    if len(again):
        notes.append(f"{len(again)} rows repeat the payload of an earlier row")
    if clashing:
        pairs = ", ".join(f"{manifest.ids[int(first[k])]} and {manifest.ids[k]}" for k in clashing[:5])
        notes.append(f"{len(clashing)} of these have another label: {pairs}")
    return notes


def _class_notes(manifest: Manifest) -> list[str]:
    """Classes that only val or test rows have, or all train rows, and names that say little or look alike."""
    names, notes = manifest.classes or (), list[str]()
    if manifest.label_kind.holds != CLASSES:
        return []
    train = set(np.unique(manifest.rows("train").labels).tolist())
    notes += classes_not_trained_on(manifest)
    if len(train) == 1:
        only = class_called(names, next(iter(train)))
        notes.append(f"every train row is of {only}: a model of them tells nothing apart")
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_plain_name(name), []).append(name)
    twins = [" and ".join(map(repr, found)) for found in alike.values() if len(found) > 1]
    if twins:
        notes.append(f"classes of nearly one name are different classes: {'; '.join(twins[:SHOWN])}")
    blank = [(name, int((manifest.labels == k).sum())) for k, name in enumerate(names) if name.strip() in MISSING]
    notes += [
        f"class {name!r} is a class like others, though it reads as a missing label ({rows:,} rows): write nothing "
        "there, and pass --skip-bad, where it is none" for name, rows in blank if rows
    ]  # fmt: skip
    return notes


def _weight_notes(manifest: Manifest) -> list[str]:
    """Rows without a weight, and train rows of which none has any."""
    if "weight" not in manifest.table.column_names:
        return []
    blank, train = manifest.table.column("weight").null_count, manifest.rows("train")
    notes = (
        [f"{blank:,} row{'s' if blank > 1 else ''} without a weight count{'' if blank > 1 else 's'} as weight 1"]
        if blank
        else []
    )
    if len(train) and not train.weights.any():
        return [*notes, "every train row has weight 0"]
    return notes


def classes_not_trained_on(manifest: Manifest) -> list[str]:
    """A sentence on classes that only val or test rows have, and one on those whose train rows all have weight 0."""
    train, notes = manifest.rows("train"), list[str]()
    if manifest.label_kind.holds != CLASSES or not train.weights.any():
        return []

    def called(classes: set[int]) -> str:
        return ", ".join(class_name(manifest.classes or (), k) for k in sorted(classes)[:SHOWN])

    there, learnt = set(train.labels.tolist()), set(train.labels[train.weights > 0].tolist())
    others = set(np.unique(manifest.all_rows().labels).tolist()) - there
    if others:
        notes.append(f"no train row is of these classes, which val or test rows have: {called(others)}")
    if there - learnt:
        notes.append(f"every train row of these classes has weight 0, so that none is learnt: {called(there - learnt)}")
    return notes


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _plain_name(name: str) -> str:
    """A class's name without case, spaces and hyphens between letters, and a last point."""
    folded = unicodedata.normalize("NFKC", name).casefold().strip().rstrip(".")
    return re.sub(r"(?<=[^\W\d_])[\s_-]+(?=[^\W\d_])", "", folded)
