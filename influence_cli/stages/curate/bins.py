"""Every train row in a bin: act on it, have it reviewed, abstain, or keep it; and which reviews are worth most.

The cut is the score of the last row that the budget, or canaries, allow.  By the members of a method, whose scores
s_1 .. s_M are taken for independent draws, a row's score has Student's 95% interval [low, high] about their mean:

    act      high < 0 and high < cut    surely harmful, and surely beyond the cut
    review   low <= cut, else           the interval reaches the cut, or members leave the sign open beyond it
    abstain  low <= 0 <= high, else     nothing says whether the row helps or harms
    keep     all others                 surely on this side of the cut

By canaries a row has a probability that its label is wrong, with a 95% interval (``maths.canary_cut``):

    act      low > 1/2, beyond the cut          editing does more good than harm
    abstain  high < 1/2                         editing would do more harm
    review   all others                         canaries do not tell, or the budget is spent

Where a recall is asked for (``--target-recall``) no row beyond the cut is in abstain: the recall is that of the rows
beyond it, acted on or reviewed.

Only rows to act on are edited; the others stay as they are unless a person decides otherwise.  A review is worth what
it is expected to gain over leaving the row alone (value of information, Howard 1966): E[max(-s, 0)] with s normal about
the mean of the members, which is large where a row is both uncertain and of consequence; or, by canaries, the
probability that the label is wrong times what another label gains (``best_label_gain``; 1 where that is not known).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.tables import provenance, schema_of, shown, with_provenance
from influence_cli.errors import UsageError
from influence_cli.settings import parse_budget
from influence_cli.stages.curate.combining import column_named, floats
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import ScoreTable
from influence_cli.store.keys import hex_of
from influence_cli.store.shards import as_arrow

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
ACT, REVIEW, ABSTAIN, KEEP = "act", "review", "abstain", "keep"
EVEN = 0.5  # the probability from which on editing a row does more good than harm
LEVEL = 0.975


@dataclass(frozen=True, eq=False)
class Members:
    """What members say of every row [n]: the score's interval, its standard error, and how many share its sign."""

    low: Floats
    high: Floats
    error: Floats
    agreement: Floats


@dataclass(frozen=True, eq=False)
class Bins:
    """The bin of every train row [n], why, what a review is worth, and the place of the rows to review (0: none)."""

    names: NDArray[np.str_]  # "" for a row without a score
    reasons: list[str]
    low: Floats
    high: Floats
    value: Floats
    place: NDArray[np.int64]
    about: str  # what the interval is of

    def counts(self) -> dict[str, int]:
        """The number of rows in every bin."""
        return {name: int((self.names == name).sum()) for name in (ACT, REVIEW, ABSTAIN, KEEP)}

    def table(self, scores: ScoreTable) -> pa.Table:
        """A row for every train row with a score, those to review first, then by score."""
        shown = [i for i in scores.scored.ascending().tolist() if self.names[i]]
        order = np.array(sorted(shown, key=lambda i: self.place[i] or len(self.names)), dtype=np.int64)
        place = self.place[order]
        labelled = scores.manifest.label_kind.shown
        columns = {
            "id": pa.array([scores.train.ids[i] for i in order]),
            "row_key": as_arrow(scores.train.row_keys[order]),
            "label": labelled(scores.train.labels[order], names=scores.manifest.classes),
            "score": pa.array(scores.scored.score[order]),
            "low": pa.array(self.low[order]),
            "high": pa.array(self.high[order]),
            "bin": pa.array(self.names[order].tolist(), pa.string()),
            "reason": pa.array([self.reasons[i] for i in order], pa.string()),
            "review_value": pa.array(self.value[order], mask=~np.isfinite(self.value[order])),
            "review": pa.array(place, mask=place == 0),
        }
        return with_provenance(pa.table(columns), {**scores.provenance, "stage": "bins"})


def members_of(scores: ScoreTable) -> Members | None:
    """What the members of the column acted on say, from their own columns or from ``score_std``; None without any."""
    name, columns, count = _members_in(scores.column, scores.table.column_names, scores.provenance)
    if count < 2:
        return None
    weights = np.asarray(scores.provenance.get("member_weights", {}).get(name) or (), dtype=np.float64)
    times = float(weights.sum()) if name in scores.provenance.get("summed_over_members", ()) else 1.0
    mean = scores.scored.score
    if len(columns) > 1:
        of = np.stack([floats(scores.table, column) for column in columns])
        shares = weights / weights.sum() if len(weights) == count else np.full(count, 1 / count)
        spread = times * np.sqrt(shares @ (of - shares @ of) ** 2 * count / (count - 1))
        positive = shares @ (of > 0)
        agreement = np.maximum(positive, 1 - positive)
    else:
        shares = weights / weights.sum() if len(weights) else np.full(count, 1 / count)
        spread, agreement = floats(scores.table, "score_std"), floats(scores.table, "agreement")
    from scipy import special

    error = spread * np.sqrt((shares**2).sum())
    half = float(special.stdtrit(count - 1, LEVEL)) * error
    return Members(mean - half, mean + half, error, agreement)


def _members_in(column: str, there: Sequence[str], origin: dict[str, Any]) -> tuple[str | None, list[str], int]:
    """What a column of a score table is called in its provenance, its members' columns, and how many members it has.

    Their columns are there with --per-member; else ``score_std`` holds their spread, of the first column alone.
    """
    first = origin.get("score_is")
    name = first if column == "score" else column
    columns = list(itertools.takewhile(there.__contains__, (f"{name}_{k}" for k in itertools.count())))
    count = len(columns)
    if count < 2 and name == first and "score_std" in there:
        count = len(origin.get("member_weights", {}).get(name) or origin.get("norms", {}).get(name) or ())
    return name, columns, count


def needs_canaries(request: CurateRequest) -> bool:
    """Whether bins are to be told by canaries: the column has no members, as the names of the table's columns say."""
    if request.bins is None:
        return False
    asked = request.by if request.maximise is None else (request.maximise,)
    if len(asked) != 1 or request.combine is not None:
        return True
    schema = schema_of(request.scores)
    column = column_named(asked[0], schema.empty_table(), shown(request.scores))
    return _members_in(column, schema.names, provenance(schema, shown(request.scores)))[2] < 2


def binned(scores: ScoreTable, request: CurateRequest, beyond: Mask, last: float) -> Bins:
    """The bins of a score table; ``beyond`` [n] are the rows beyond the cut, ``last`` is the highest score of these.

    Raises:
        UsageError: neither members nor canaries tell how sure a score is, or its sign means nothing.
    """
    has_score, cut = np.isfinite(scores.scored.score), request.cut
    if cut is not None:
        probability, low, high = cut.probabilities(scores.scored.score)
        gain = scores.scored.best_label_gain
        value = probability * (1.0 if gain is None else gain)
        act, abstain = beyond & (low > EVEN), high < EVEN
        if request.target_recall is not None:
            abstain &= ~beyond
        named = _named(has_score, {ACT: act, ABSTAIN: abstain, REVIEW: has_score})
        told = [
            f"wrong with probability {p:.2f} ({a:.2f} to {b:.2f})"
            for p, a, b in zip(probability, low, high, strict=True)
        ]
        about = "the probability that the label is wrong, by canaries"
    else:
        members = members_of(scores)
        if members is None:
            what = f"column {scores.column} has neither members nor canaries: nothing tells how sure its scores are"
            fix = "score with --method ip-ensemble, or train with `retrain --canaries 5%` and score again"
            raise UsageError(what, where=scores.label, fix=fix)
        if scores.scored.kind != "signed":
            what = f"bins by members need scores whose sign means something; {scores.column} is ranking-only"
            raise UsageError(what, fix="--by a column of ip-ensemble, or train with `retrain --canaries 5%`")
        low, high, value = members.low, members.high, _expected_gain(scores.scored.score, members.error)
        act = beyond & (high < 0) & (high < last)
        reaches, open_sign = low <= last, (low <= 0) & (high >= 0)
        named = _named(has_score, {ACT: act, REVIEW: reaches | beyond, ABSTAIN: open_sign, KEEP: has_score})
        figures = zip(low, high, members.agreement, strict=True)
        told = [f"score between {a:.3g} and {b:.3g}, {g:.0%} of the members agree" for a, b, g in figures]
        about = "the score, by members"
    why = _why(last, cut is not None)
    reasons = [f"{why[name]}: {text}" if name else "" for name, text in zip(named.tolist(), told, strict=True)]
    value = np.where((named == ACT) | ~has_score, np.nan, value)
    return Bins(named, reasons, low, high, value, _places(scores, request, value), about)


def _named(has_score: Mask, bins: dict[str, Mask]) -> NDArray[np.str_]:
    """The first of the bins that holds each row [n]; "" for a row without a score."""
    return np.where(has_score, np.select(list(bins.values()), list(bins), default=""), "")


def _expected_gain(mean: Floats, error: Floats) -> Floats:
    """E[max(-s, 0)] for s normal about the mean [n]: what knowing the score gains over leaving the row alone."""
    from scipy.special import ndtr

    z = np.divide(mean, error, out=np.sign(mean) * 1e100, where=error > 0)
    density = np.exp(-np.minimum(z**2 / 2, 700.0)) / np.sqrt(2 * np.pi)
    return np.maximum(error * density - mean * ndtr(-z), 0.0)


def _why(last: float, by_canaries: bool) -> dict[str, str]:
    """What being in each bin means."""
    if by_canaries:
        return {
            ACT: "beyond the cut and more likely wrong than not",
            REVIEW: "canaries do not tell, it is not beyond the cut, or it is and the recall needs it",
            ABSTAIN: "more likely right than not",
        }
    return {
        ACT: f"harmful and beyond the cut ({last:.3g})",
        REVIEW: f"reaches the cut ({last:.3g})",
        ABSTAIN: "may help or harm",
        KEEP: "on this side of the cut",
    }


def _places(scores: ScoreTable, request: CurateRequest, value: Floats) -> NDArray[np.int64]:
    """The place of each row [n] among those whose review is worth most, from 1; 0 where it is none of them."""
    place = np.zeros(len(value), dtype=np.int64)
    if request.review_budget is None:
        return place
    budget = parse_budget(request.review_budget, len(value), "--review-budget")
    candidates = np.flatnonzero(np.isfinite(value) & (value > 0)).tolist()
    score, keys = scores.scored.score, hex_of(scores.scored.keys)
    chosen = sorted(candidates, key=lambda i: (-value[i], score[i], keys[i]))[:budget]
    place[chosen] = np.arange(1, len(chosen) + 1)
    return place
