"""What the review page shows: a review, its rows, and why each row scores as it does, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.report.review.shades import RowTokens, Scale

KEEP, DROP, RELABEL = "keep", "drop", "relabel"  # what can be decided of a row
Counted = tuple[str, int, int]  # a name, its rows, and how many of them are flagged


@dataclass(frozen=True)
class Why:
    """What a person can check of a row's score; each list is empty where it is not known."""

    hurts: Sequence[tuple[str, str, float]] = ()  # target rows: id, label, how far the row helps it (below 0: hurts)
    helped_by: Sequence[tuple[str, str, float]] = ()  # nearest helpful train rows: id, label, similarity
    other_label: Sequence[tuple[str, str, float]] = ()  # nearest train rows of another label: id, label, similarity
    duplicates: Sequence[str] = ()  # ids of near-duplicates among the rows of the page
    more_duplicates: Sequence[tuple[str, str, str]] = ()  # of all train and target rows: id, split, label
    tokens: RowTokens | None = None  # of a text, with the numbers that they are shaded by

    def named(self) -> list[str]:
        """The ids of the rows that it names."""
        lists = (self.hurts, self.helped_by, self.other_label, self.more_duplicates)
        return [entry[0] for some in lists for entry in some]


@dataclass(frozen=True)
class Value:
    """One named value of a row, and what is usual in rows of the same label."""

    name: str
    value: str
    usual: str
    odd: bool


@dataclass(frozen=True)
class ReviewRow:
    """A row as it is shown.  ``number`` and ``proposed_number`` are None where labels are no classes."""

    id: str
    row_key: str  # hex
    label: str
    number: int | None
    score: float
    rank: int  # 1: the lowest
    reason: str = ""
    proposed: str | None = None
    proposed_number: int | None = None
    gain: str = ""  # what speaks for the proposed label
    agreement: float | None = None
    slices: dict[str, str] = field(default_factory=dict)  # by column of groups
    card: dict[str, Any] = field(default_factory=dict)  # what ``Kind.card`` says
    values: Sequence[Value] = ()
    shades: dict[str, Any] = field(default_factory=dict)  # by column of text what ``shades.shaded`` says
    why: Why = field(default_factory=Why)
    copies: Sequence[tuple[str, str]] = ()  # (id, row key) of rows that are shown with it, and decided with it

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON has it, with short names; what is not there is left out."""
        why = {
            "hurts": [list(entry) for entry in self.why.hurts],
            "helped": [list(entry) for entry in self.why.helped_by],
            "other": [list(entry) for entry in self.why.other_label],
            "alike": [list(entry) for entry in self.why.more_duplicates],
        }
        found = {
            "id": self.id, "key": self.row_key, "label": self.label, "number": self.number, "score": self.score,
            "rank": self.rank, "reason": self.reason, "proposed": self.proposed, "to": self.proposed_number,
            "gain": self.gain, "agreement": self.agreement, "slices": self.slices, **self.card,
            "shades": self.shades, "values": [[v.name, v.value, v.usual, v.odd] for v in self.values],
            "why": {name: some for name, some in why.items() if some}, "copies": [list(pair) for pair in self.copies],
        }  # fmt: skip
        return {name: value for name, value in found.items() if value not in (None, "", [], {})}


@dataclass(frozen=True, eq=False)
class Review:
    """Everything on the page."""

    title: str
    answer: str
    command: str
    apply: str  # the command that applies what is decided; {file} stands for the saved decisions
    fingerprint: str
    rows: Sequence[ReviewRow]
    scores: NDArray[np.float64]  # of all train rows [n], NaN where a row has none
    flagged: NDArray[np.bool_]  # [n]
    cut: float | None  # the largest score that is flagged, where those below it are
    column: str
    decisions: Sequence[str]  # keep, drop, relabel
    manifest: str = ""  # the fingerprint of the rows' manifest
    classes: Sequence[str] | None = None  # names that a row can be given
    others: dict[str, dict[str, Any]] = field(default_factory=dict)  # cards of rows that reasons name, by id
    by_class: Sequence[Counted] = ()
    by_slice: dict[str, Sequence[Counted]] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str, int]] = ()  # label, proposed label, rows
    scale: Scale | None = None  # of the tokens' colours
    notes: Sequence[str] = ()
    not_shown: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()  # what the page was made from


def together(rows: Sequence[ReviewRow], payloads: Sequence[bytes]) -> list[ReviewRow]:
    """The rows with duplicates of one label once: those that come later are ``copies`` of the first.

    ``payloads`` are the keys of the rows' payloads [n], equal for exact copies; near ones are those that ``why`` names.
    """
    place = {row.id: k for k, row in enumerate(rows)}
    same: dict[tuple[bytes, str], list[int]] = {}
    for k, row in enumerate(rows):
        same.setdefault((payloads[k], row.label), []).append(k)
    gone, made = set[int](), list[ReviewRow]()
    for k, row in enumerate(rows):
        if k in gone:
            continue
        near = [place[i] for i in row.why.duplicates if i in place and rows[place[i]].label == row.label]
        copies = sorted({j for j in (*same[payloads[k], row.label], *near) if j > k} - gone)
        gone.update(copies)
        made.append(replace(row, copies=[(rows[j].id, rows[j].row_key) for j in copies]) if copies else row)
    return made
