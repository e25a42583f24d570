"""(3) scores, and edits where there are any -> what a person is shown of them, row by row, to decide.

A row has the label proposed by the edit, or else the one with which it would score highest, or else the model's.  Its
numbers stand beside the range from the 5th to the 95th percentile of train rows of its label, and its categories beside
the share of those rows that have the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influence_cli.actions.protocol import Edits, Ints
from influence_cli.data.classes import class_name
from influence_cli.data.label_kinds import CLASSES
from influence_cli.report.review.rows import DROP, KEEP, RELABEL, Counted, Review, ReviewRow, Why, together
from influence_cli.report.review.shades import scale_of, shaded
from influence_cli.stages.curate.combining import floats
from influence_cli.stages.curate.curate import Curated, summarise
from influence_cli.stages.curate.score_table import ScoreTable, proposed_labels
from influence_cli.stages.curate.usual_values import UsualValues
from influence_cli.store.keys import fingerprint

MOST_ROWS = 10_000  # on a page
MOST_BYTES = 24 << 20  # of pictures on a page
LOWEST = 200  # rows of a page about scores alone


@dataclass(frozen=True)
class Commands:
    """The command that made the page, and the one that applies what is decided on it."""

    made: str
    apply: str


Reasons = tuple[Mapping[str, Why], Sequence[str]]  # by id of a row, and sentences on what is not known
NO_REASONS: Reasons = ({}, ())


def edited_rows(curated: Curated) -> list[str]:
    """The ids of the edited rows in the order of the page: the most harmful first."""
    return [curated.scores.train.ids[i] for i in _edited(curated).tolist()]


def lowest_rows(scores: ScoreTable) -> list[str]:
    """The ids of the rows of a page about scores alone, in its order."""
    return [scores.train.ids[i] for i in scores.scored.ascending()[:LOWEST].tolist()]


def _edited(curated: Curated) -> Ints:
    chosen = np.zeros(len(curated.scores.train), dtype=bool)
    chosen[curated.edits.edited] = True
    return np.array([i for i in curated.scores.scored.ascending().tolist() if chosen[i]], dtype=np.int64)


def review_of_edits(curated: Curated, commands: Commands, why: Reasons = NO_REASONS) -> Review:
    """What a page shows of edits: those rows, the most harmful first."""
    scores, edits, order = curated.scores, curated.edits, _edited(curated)
    summary, n, name = summarise(curated), len(scores.train), Path(scores.manifest.source).name
    done = {"trim": "taken out", "relabel": "given another label", "reweight": "given another weight"}
    share = f"{len(order):,} of {n:,} train rows ({100 * len(order) / n:.1f}%)"
    answer = f"{share} would be {done.get(edits.action, 'edited')}, by column {scores.column}."
    lowest = edits.action == "trim" and len(order) > 0
    if lowest:
        answer += f" They score {scores.scored.score[order[-1]]:.3g} or less."
    title = f"{edits.action.capitalize()} {len(order):,} of the {n:,} train rows of {name}?"
    if curated.request.decisions is not None:
        title = f"What was decided of {len(order):,} of the {n:,} train rows of {name}"
    notes = [*summary["notes"], *summary["warnings"]]
    if "wrong_share_of_edited" in summary:
        notes.append(
            f"Clean labels say: {100 * summary['wrong_share_of_edited']:.1f}% of these rows are labelled wrong, "
            f"and {100 * summary['wrong_share_of_all']:.1f}% of all rows."
        )
    cut = float(scores.scored.score[order].max()) if lowest else None
    return _review(scores, order, edits, (title, answer, notes, commands), cut, why)


def review_of_scores(scores: ScoreTable, commands: Commands, why: Reasons = NO_REASONS) -> Review:
    """What a page shows of scores alone: the lowest rows, of which nothing is proposed to be edited."""
    order, n = scores.scored.ascending()[:LOWEST], len(scores.train)
    title = f"Which of the {n:,} train rows of {Path(scores.manifest.source).name} score lowest?"
    answer = f"The {len(order):,} lowest by column {scores.column} are shown; nothing is edited."
    cut = float(scores.scored.score[order[-1]]) if len(order) else None
    return _review(scores, order, None, (title, answer, [], commands), cut, why)


def _review(
    scores: ScoreTable, order: Ints, edits: Edits | None, said: tuple[str, str, list[str], Commands],
    cut: float | None, why: Reasons,
) -> Review:  # fmt: skip
    title, answer, notes, commands = said
    flagged = np.zeros(len(scores.train), dtype=bool)
    flagged[order] = True
    shown, not_shown = order[:MOST_ROWS], list[str]()
    if len(shown) < len(order):
        not_shown.append(
            f"The {len(shown):,} lowest rows are shown; the other {len(order) - len(shown):,} are in the tables."
        )
    made = _Rows(scores, edits, why[0])
    rows = made.rows(shown)
    if why[0] and len(why[0]) < len(shown):
        not_shown.append(f"The first {len(why[0]):,} rows have reasons (--reasons).")
    not_shown += why[1]
    if made.without_picture:
        not_shown.append(
            f"The first {len(shown) - made.without_picture:,} rows have pictures: the page holds "
            f"{MOST_BYTES >> 20} MiB of them."
        )
    together_rows = together(rows, [scores.train.payload_keys[i].tobytes() for i in shown])
    if copies := len(rows) - len(together_rows):
        some = (
            "1 row is shown with the row that it is a duplicate"
            if copies == 1
            else (f"{copies:,} rows are shown with a row that they are duplicates")
        )
        not_shown.append(f"{some} of.")
    pairs = Counter((row.label, row.proposed) for row in rows if row.proposed is not None)
    by_class = scores.manifest.label_kind.holds == CLASSES
    return Review(
        title=title, answer=answer, command=commands.made, apply=commands.apply,
        fingerprint=_fingerprint(scores, shown, edits), rows=together_rows, scores=scores.scored.score,
        flagged=flagged, cut=cut, column=scores.column, manifest=scores.manifest.fingerprint,
        decisions=(KEEP, DROP, RELABEL) if by_class else (KEEP, DROP),
        classes=made.class_names if by_class else None, others=made.others(rows), by_class=_by_class(scores, flagged),
        by_slice={c: _counted(_texts(scores, c), flagged) for c in scores.group_columns},
        pairs=[(a, b or "", k) for (a, b), k in pairs.most_common()], scale=made.scale,
        notes=[line[:1].upper() + line[1:] for line in notes], not_shown=not_shown, facts=_facts(scores),
    )  # fmt: skip


class _Rows:
    """Makes the rows of a page."""

    def __init__(self, scores: ScoreTable, edits: Edits | None, why: Mapping[str, Why]) -> None:
        self.scores, self.edits, self.why = scores, edits, why
        self.without_picture, self.left = 0, MOST_BYTES
        manifest, names = scores.manifest, scores.table.column_names
        self.by_class = manifest.label_kind.holds == CLASSES
        self.class_names: list[str] = []
        if self.by_class:
            count = len(manifest.classes) if manifest.classes else int(scores.train.labels.max()) + 1
            self.class_names = [class_name(manifest.classes, c) for c in range(count)]
        self.best, self.other = (
            proposed_labels(scores.table, name, scores.train) for name in ("best_label", "other_label")
        )
        self.gain = floats(scores.table, "best_label_gain") if "best_label_gain" in names else None
        self.probability = floats(scores.table, "other_probability") if "other_probability" in names else None
        self.agreement = floats(scores.table, "agreement") if "agreement" in names else None
        self.slices = {column: _texts(scores, column) for column in scores.group_columns}
        self.scale = scale_of(one.tokens for one in why.values() if one.tokens is not None)

    def rows(self, order: Ints) -> list[ReviewRow]:
        """Rows of the train rows at ``order``, in that order."""
        scored, train, manifest = self.scores.scored, self.scores.train, self.scores.manifest
        rank = np.zeros(len(train), dtype=np.int64)
        ascending = scored.ascending()
        rank[ascending] = np.arange(1, len(ascending) + 1)
        usual = UsualValues.of(train)
        cards, shades = self._cards(order, usual)
        made: list[ReviewRow] = []
        for i in order.tolist():
            number, gain = self._proposal(i)
            card, values = cards[i]
            agreement = None if self.agreement is None else float(self.agreement[i])
            made.append(ReviewRow(
                id=train.ids[i], row_key=train.row_keys[i].tobytes().hex(), label=self.label(scored.labels[i]),
                number=int(scored.labels[i]) if self.by_class else None, score=float(scored.score[i]),
                rank=int(rank[i]), reason="" if self.edits is None else self.edits.reason[i],
                proposed=None if number is None else class_name(manifest.classes, number), proposed_number=number,
                gain=gain, agreement=agreement if agreement is not None and np.isfinite(agreement) else None,
                slices={column: text for column, texts in self.slices.items() if (text := texts[i]) is not None},
                card=card, values=values, shades=shades.get(i, {}), why=self.why.get(train.ids[i], Why()),
            ))  # fmt: skip
        return made

    def label(self, label: Any) -> str:
        """A label as people read it."""
        manifest = self.scores.manifest
        return manifest.label_kind.told(label if manifest.labelled else None, manifest.classes)

    def _proposal(self, i: int) -> tuple[int | None, str]:
        """The label proposed for a train row, and what speaks for it."""
        own = self.scores.scored.labels[i]
        best = -1 if self.best is None else int(self.best[i])
        other = -1 if self.other is None else int(self.other[i])
        edited = int(self.edits.labels[i]) if self.by_class and self.edits is not None else own
        found = next((c for c in (edited, best, other) if c not in (own, -1)), None) if self.by_class else None
        if found is None:
            return None, ""
        if found == best and self.gain is not None:
            return found, f"{self.gain[i]:.3g} higher with {class_name(self.scores.manifest.classes, found)}"
        if found == other and self.probability is not None:
            return found, f"the model gives {class_name(self.scores.manifest.classes, found)} {self.probability[i]:.2f}"
        return found, ""

    def _cards(
        self, order: Ints, usual: UsualValues | None
    ) -> tuple[dict[int, tuple[dict[str, Any], Sequence[Any]]], dict[int, dict[str, Any]]]:
        """What is shown of the payload of each train row at ``order``; and the shades of texts, where known.

        Pictures are shown up to ``MOST_BYTES``, in that order.
        """
        train, manifest = self.scores.train, self.scores.manifest
        place = {int(train.index[i]): i for i in order.tolist()}
        kind, cards = manifest.payload_kind, dict[int, tuple[dict[str, Any], Sequence[Any]]]()
        shades = dict[int, dict[str, Any]]()
        for row, payload in manifest.payloads(train.index[order]):
            i = place[row]
            values = [] if usual is None else usual.of_row(kind.compared(payload), int(train.strata[i]))
            cards[i] = kind.card(payload, manifest.place(row, kind.column)), values
            shades[i] = self._shades(train.ids[i], kind.as_values(payload) or {})
        for i in order.tolist():
            self.without_picture += not self._fits(cards[i][0])
        return cards, shades

    def _shades(self, row: str, texts: Mapping[str, Any]) -> dict[str, Any]:
        """The texts of a row by column, their tokens in colours; nothing where their numbers are not known."""
        tokens = self.why[row].tokens if row in self.why else None
        if tokens is None or self.scale is None:
            return {}
        return {column: shaded(texts[column], some, self.scale) for column, some in tokens.columns.items()}

    def others(self, rows: Sequence[ReviewRow]) -> dict[str, dict[str, Any]]:
        """What is shown of rows that reasons name, by id, of whatever split; those of other manifests are not known."""
        manifest, named = self.scores.manifest, dict.fromkeys(i for row in rows for i in row.why.named())
        place = {i: k for k, i in enumerate(manifest.ids) if i in named}
        index = np.array(sorted(place.values()), dtype=np.int64)
        cards = {
            manifest.ids[row]: manifest.payload_kind.card(payload, manifest.place(row, manifest.payload_kind.column))
            for row, payload in (manifest.payloads(index) if len(index) else ())
        }
        for i in named:
            if i in cards:
                self._fits(cards[i])
        return {i: card for i, card in cards.items() if card}

    def _fits(self, card: dict[str, Any]) -> bool:
        """Whether the page still holds the card's picture, which is taken off it where not."""
        self.left -= len(card.get("picture", ""))
        if self.left >= 0 or "picture" not in card:
            return True
        del card["picture"]
        return False


def _texts(scores: ScoreTable, column: str) -> list[str | None]:
    """A column of the manifest as text, for every train row [n]."""
    values = scores.manifest.table.column(column).take(scores.train.index).to_pylist()
    return [None if value is None else str(value) for value in values]


def _by_class(scores: ScoreTable, flagged: np.ndarray) -> list[Counted]:
    """Rows and flagged rows of every class, or label of several; nothing where labels are numbers."""
    parts = scores.manifest.label_kind.parts(scores.train.labels)
    names = scores.manifest.classes
    return [(class_name(names, c), int(mask.sum()), int(flagged[mask].sum())) for c, mask in parts.items()]


def _counted(texts: Sequence[str | None], flagged: np.ndarray) -> list[Counted]:
    """Rows and flagged rows [n] of every text, the most rows first."""
    rows = Counter("none" if text is None else text for text in texts)
    some = Counter("none" if texts[i] is None else texts[i] for i in np.flatnonzero(flagged).tolist())
    return [(text, count, some[text]) for text, count in rows.most_common()]


def _fingerprint(scores: ScoreTable, shown: Ints, edits: Edits | None) -> str:
    """Names what is shown: rows, what is asked of them, and by which scores."""
    rows = [[scores.train.ids[i], scores.train.row_keys[i].tobytes().hex()] for i in shown.tolist()]
    about = {"action": "none" if edits is None else edits.action, "column": scores.column}
    values = [float(scores.scored.score[i]) for i in shown.tolist()]
    return fingerprint("review", 1, manifest=scores.manifest.fingerprint, rows=rows, scores=values, **about)


def _facts(scores: ScoreTable) -> list[tuple[str, str]]:
    """What the scores were made from, as far as their provenance says."""
    origin = scores.provenance
    spec = origin.get("spec", {})
    said = {
        "manifest": f"{scores.manifest.source} ({scores.manifest.fingerprint[:12]})",
        "method": ", ".join(spec.get("methods", [])),
        "objective": ", ".join(spec.get("objectives", [])),
        "checkpoint": str((origin.get("checkpoint") or {}).get("fingerprint") or "")[:12],
        "scores made by": "influence " + str(origin.get("version", "")) if origin.get("version") else "",
    }
    return [(name, text) for name, text in said.items() if text]
