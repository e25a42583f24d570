"""Columns of numbers that decide the label without being a copy of it: a probability of it, or a noisy multiple.

A column decides where it parts every two classes: the area under its ROC curve, in either direction, is at least 0.999.
It may be a fair feature, so that it is named and stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.sources.features import NUMBER, Feature, as_texts, column_of

AUC = 0.999
LEAST, LEAST_OF_CLASS = 50, 10  # rows that say something, in all and of a class
MOST, FIRST = 20_000, 1_000  # rows that are looked at, and those that rule most columns out
MOST_CLASSES = 20


def label_deciders(tables: Iterable[pa.Table], label: str, features: Sequence[Feature], skip: set[str]) -> list[str]:
    """The columns among ``features`` that decide the label, of the first rows; not those to ``skip``."""
    numbers = [f for f in features if f.kind == NUMBER and f.column not in skip]
    if not numbers:
        return []
    labels, parts, rows = list[str | None](), list[dict[str, pa.Array]](), 0
    for table in tables:
        some = table.slice(0, MOST - rows)
        labels += as_texts(column_of(some, label)).to_pylist()
        parts.append({f.column: column_of(some, f.column) for f in numbers})
        rows += len(some)
        if rows == MOST:
            break
    named = np.array([v or "" for v in labels])
    classes = sorted({v for v in labels if v})
    if not 2 <= len(classes) <= MOST_CLASSES or rows < LEAST:
        return []
    found: list[str] = []
    for f in numbers:
        values = np.concatenate([f.encode(part[f.column])[:, 0] for part in parts])
        if all(_decides(values[:n], named[:n], classes) for n in dict.fromkeys((min(FIRST, rows), rows))):
            found.append(f.column)
    return found


def said_of_deciders(columns: Sequence[str], label: str) -> list[str]:
    """What they are, in sentences."""
    return [
        f"column {name} alone decides the label (column {label}): where it is known only after the label is, "
        f"leave it out: --drop-column {name}"
        for name in columns
    ]


def _decides(values: NDArray[np.float64], labels: NDArray[np.str_], classes: Sequence[str]) -> bool:
    """Whether numbers part every two classes that have enough rows here."""
    known = np.isfinite(values) & (labels != "")
    if known.sum() < LEAST:
        return False
    by_class = [values[known & (labels == c)] for c in classes]
    by_class = [some for some in by_class if len(some) >= LEAST_OF_CLASS]
    pairs = [(a, b) for k, a in enumerate(by_class) for b in by_class[:k]]
    return bool(pairs) and all(_auc(a, b) >= AUC for a, b in pairs)


def _auc(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The share of pairs that are in one order, the commoner of the two; ties count half."""
    others = np.sort(b)
    below, up_to = np.searchsorted(others, a), np.searchsorted(others, a, side="right")
    share = float((below + up_to).mean()) / (2 * len(b))
    return max(share, 1.0 - share)
