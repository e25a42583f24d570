"""Columns that are the label under another name: each of their values stands for one label, in all rows or nearly all.

A model that is given such a column predicts nothing: scores of its rows say nothing of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.plain_types import pc
from influence_cli.data.sources.features import as_texts, column_of
from influence_cli.errors import ManifestError, shell_word

SAME = 0.99  # share of rows, and of each label's on average, above which a column is the label: predictions of it are
CHANCE_BITS = 10.0  # that a column agrees by chance is less likely than 2 to the minus this, over all columns
MOST_LABELS = 1_000  # more are no classes
FEWEST_NUMBERS = 6  # different ones, that another column has in the same rows by no chance

Pairs = Counter[tuple[str, str]]  # how many rows have a value and a label


@dataclass(frozen=True)
class LabelCopy:
    """A column that is the label, and in how many of the rows that have both."""

    column: str
    values: int
    same: int
    rows: int
    equal: bool = False  # its numbers are those of the label

    def said(self, label: str) -> str:
        """What it is, in a sentence."""
        share = math.floor(1000 * self.same / self.rows) / 10  # 99.96% is not 100%
        where = f"all {self.rows:,} rows" if self.same == self.rows else f"{share:.1f}% of rows"
        if self.equal:
            return f"column {self.column} is the label (column {label}): the same number stands in {where}"
        return (
            f"column {self.column} is the label (column {label}) under another name: "
            f"each of its {self.values} values stands for one label in {where}"
        )


def label_copies(tables: Iterable[pa.Table], label: str, columns: Iterable[str], rows: int) -> list[LabelCopy]:
    """The columns that are the label; of ``rows`` rows in all.  Reading stops where none can be one any more."""
    pairs: dict[str, Pairs] = {name: Counter() for name in columns}
    width, labels = len(pairs), set[str]()
    for table in tables:
        truth = as_texts(column_of(table, label)).dictionary_encode()
        names, of = truth.dictionary.to_pylist(), _places(truth)
        labels.update(names)
        if len(labels) > MOST_LABELS:
            return []
        for name in list(pairs):
            if not _agrees(column_of(table, name), names, of, pairs[name], len(labels), rows):
                del pairs[name]
        if not pairs:
            return []
    return [copy for name, found in pairs.items() if (copy := _copy(name, found, width)) is not None]


def number_copies(
    tables: Iterable[Mapping[str, NDArray[np.float64]]], label: str, columns: Iterable[str], rows: int
) -> list[LabelCopy]:
    """The columns whose numbers are the label's, of ``rows`` rows in all; tables give each column's numbers [n].

    They are also the same in rows that have another label than the commonest: many labels are mostly 0.
    """
    parts: dict[str, list[NDArray[np.float64]]] = {name: [] for name in columns}  # [n, 2], label and column
    unlike = Counter[str]()
    for table in tables:
        for name in list(parts):
            pair = np.stack([table[label], table[name]], axis=1)
            pair = pair[np.isfinite(pair).all(axis=1)]
            unlike[name] += int((pair[:, 0] != pair[:, 1]).sum())
            parts[name].append(pair)
            if unlike[name] > (1 - SAME) * rows:
                del parts[name]
        if not parts:
            return []
    found: list[LabelCopy] = []
    for name, pairs in parts.items():
        both = np.concatenate(pairs)
        labels, counts = np.unique(both[:, 0], return_counts=True)
        if len(labels) < FEWEST_NUMBERS:
            continue
        same = both[:, 0] == both[:, 1]
        rare = both[:, 0] != labels[counts.argmax()]
        if min(same.mean(), same[rare].mean()) > SAME:
            found.append(LabelCopy(name, len(labels), int(same.sum()), len(both), equal=True))
    return found


def refuse_copies(copies: Sequence[tuple[str, LabelCopy]], where: str) -> None:
    """Refuse columns that are the label, each with the label that it is.  Raises ManifestError: there is one."""
    if not copies:
        return
    names = [copy.column for _, copy in copies]
    flags = " ".join(f"--drop-column {shell_word(name)}" for name in names)
    it, they, noun = ("it", "it is", "column") if len(names) == 1 else ("them", "they are", "columns")
    fix = f"pass {flags} to leave {it} out; where {they} known before the label is, name all features with --features"
    what = "; ".join(copy.said(label) for label, copy in copies)
    raise ManifestError(what, where=f"{where}, {noun} {', '.join(names)}", fix=fix)


def _places(texts: pa.DictionaryArray) -> NDArray[np.int64]:
    """Which of its dictionary each text [n] is; -1 where there is none."""
    at = texts.indices if texts.null_count == 0 else pc.fill_null(texts.indices, -1)
    return at.to_numpy().astype(np.int64)


def _agrees(
    column: pa.Array, names: Sequence[str], of: NDArray[np.int64], found: Pairs, labels: int, rows: int
) -> bool:
    """Whether a column can still be the label, with the pairs of these rows counted: ``of`` are places in ``names``."""
    texts = as_texts(column).dictionary_encode()
    if len(texts.dictionary) + (texts.null_count > 0) > 2 * labels + 10:  # most columns of numbers
        return False
    values, at = texts.dictionary.to_pylist(), _places(texts)
    pairs, counts = np.unique((at * len(names) + of)[(at >= 0) & (of >= 0)], return_counts=True)
    for pair, count in zip(map(int, pairs), map(int, counts), strict=True):
        found[values[pair // len(names)], names[pair % len(names)]] += count
    most, total = Counter[str](), Counter[str]()
    for (value, _), count in found.items():
        most[value], total[value] = max(most[value], count), total[value] + count
    return sum(total.values()) - sum(most.values()) <= (1 - SAME) * rows


def _copy(name: str, found: Pairs, width: int) -> LabelCopy | None:
    """The column as a copy of the label, where that is no accident; None where it is none."""
    values, labels = (sorted({pair[k] for pair in found}) for k in (0, 1))
    table = np.array([[found[v, of] for v in values] for of in labels], dtype=np.int64)
    same = _same_rows(table)
    if not same or _bits(table, same) < CHANCE_BITS + math.log2(width):
        return None
    return LabelCopy(name, len(labels), same, int(table.sum()))


def _same_rows(table: NDArray[np.int64]) -> int:
    """In how many rows, of counts [labels, values], each label's own value stands; 0 where that is no copy."""
    if len(table) < 2:
        return 0
    own = table.argmax(axis=1)
    if len(set(own.tolist())) < len(own):
        return 0
    same = table[np.arange(len(own)), own]
    shares = (same.sum() / table.sum(), (same / table.sum(axis=1)).mean(), (same / table[:, own].sum(axis=0)).mean())
    return int(same.sum()) if min(shares) > SAME else 0


def _bits(table: NDArray[np.int64], same: int) -> float:
    """How unlikely it is that values in random order agree as well with labels: bits, of the number of orders."""
    labels, n = table.sum(axis=1).tolist(), int(table.sum())
    orders = math.lgamma(n + 1) - sum(math.lgamma(k + 1) for k in labels)
    wrong = n - same
    alike = math.lgamma(len(labels) + 1)  # whichever value stands for whichever label
    alike += math.lgamma(n + 1) - math.lgamma(same + 1) - math.lgamma(wrong + 1) + wrong * math.log(len(labels))
    return (orders - alike) / math.log(2)
