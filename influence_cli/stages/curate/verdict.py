"""The gate's verdict: the rows that it flagged, how many are allowed, by which rule, and what people are told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.sources.places import places_of
from influence_cli.data.write_tables import rows_of
from influence_cli.stages.curate.score_table import ScoreTable
from influence_cli.stages.curate.slices import Slice
from influence_cli.store.shards import as_arrow

SHOWN = 5  # slices in a sentence


@dataclass(frozen=True)
class Rule:
    """What a row is flagged for: a p-value (``by`` false-flag or fdr) or an effect (``by`` threshold).

    ``value`` is the rate, or the threshold in the objective's unit.  ``rate_known`` says whether the rate holds;
    ``compared_with`` is the number of rows that p-values come from.
    """

    by: str
    value: float
    basis: str  # what the rule promises, in words
    rate_known: bool = False
    compared_with: int = 0


@dataclass(frozen=True, eq=False)
class Verdict:
    """The flagged rows and those that cannot be judged, and whether there are too many."""

    flagged: pa.Table
    candidates: int
    allowed: int | None  # None: only slices have limits
    rule: Rule
    tripped: bool
    unjudged: int = 0  # new rows that have no score; the first ones of ``flagged``
    slices: tuple[Slice, ...] = ()
    clean_trips: float | None = None  # the chance that as many clean rows trip the gate; None where it is unknown
    notes: tuple[str, ...] = ()  # what was not looked at, and how coarse the rate is
    classes: tuple[str, ...] | None = None
    source: str = ""

    def sentence(self) -> str:
        """The verdict in a line."""
        what = "tripped" if self.tripped else "clean"
        unjudged = f"; {self.unjudged:,} cannot be judged: repair them or take them out" if self.unjudged else ""
        allowed = "limits by slice" if self.allowed is None else f"{self.allowed:,} allowed"
        over = [part for part in self.slices if part.over]
        more = f" and {len(over) - SHOWN:,} more slices" if len(over) > SHOWN else ""
        slices = "".join(f"; {part.sentence()}" for part in over[:SHOWN]) + more
        return (
            f"gate {what}: {self.flagged.num_rows - self.unjudged:,} of {self.candidates:,} new rows flagged, "
            f"{allowed} ({self.rule.basis}){slices}{unjudged}"
        )

    def document(self) -> dict[str, Any]:
        """The verdict as JSON, as ``guide/gate.schema.json`` describes it; its rows are those of the table."""
        rule = asdict(self.rule)
        return {
            "schema_version": 1,
            "verdict": "tripped" if self.tripped else "clean",
            "sentence": self.sentence(),
            "candidates": self.candidates,
            "flagged": self.flagged.num_rows - self.unjudged,
            "unjudged": self.unjudged,
            "allowed": self.allowed,
            "rule": {**rule, "compared_with": self.rule.compared_with or None},
            "clean_trips": self.clean_trips,
            "slices": [{**asdict(part), "over": part.over} for part in self.slices],
            "notes": list(self.notes),
            "manifest": self.source,
            "classes": None if self.classes is None else list(self.classes),
            "rows": rows_of(self.flagged),
        }


def flagged_table(
    scores: ScoreTable,
    flagged: NDArray[np.int64],
    why: dict[str, NDArray[np.float64]],
    unjudged: list[tuple[int, str]],
) -> tuple[pa.Table, str | None]:
    """The rows that cannot be judged and then the flagged ones, most suspicious first by what they are flagged for.

    ``flagged`` are train rows, ``why`` their figures, ``unjudged`` rows of the manifest with the reason.  Last: why no
    row has a line of its source, where lines are to be expected.
    """
    manifest = scores.manifest
    order = np.lexsort((np.array(scores.train.ids)[flagged], scores.scored.score[flagged], *reversed(why.values())))
    chosen = flagged[order]
    rows = np.array([row for row, _ in unjudged] + scores.train.index[chosen].tolist(), dtype=np.int64)
    blank = pa.nulls(len(unjudged), pa.float64())
    labels, probabilities = _proposals(scores, chosen)
    none = len(chosen) * [None]
    places, said = places_of(manifest, rows.tolist())
    numbers = {"score": scores.scored.score[chosen], **{name: values[order] for name, values in why.items()}}
    table = {
        "id": pa.array([manifest.ids[row] for row in rows], pa.string()),
        "row_key": as_arrow(manifest.row_keys[rows]),
        "label": manifest.label_kind.shown(manifest.labels[rows], manifest.classes),
        **{name: pa.concat_arrays([blank, pa.array(values, pa.float64())]) for name, values in numbers.items()},
        "proposed_label": pa.array([None] * len(unjudged) + labels, pa.int64()),
        "proposed_probability": pa.array([None] * len(unjudged) + probabilities, pa.float64()),
        "file": pa.array([place.file for place in places], pa.string()),
        "line": pa.array([place.line for place in places], pa.int64()),
        "image": pa.array([place.image for place in places], pa.string()),
        "reason": pa.array([f"cannot be judged: {reason}" for _, reason in unjudged] + none, pa.string()),
    }
    return pa.table(table), said


def _proposals(scores: ScoreTable, rows: NDArray[np.int64]) -> tuple[list[int | None], list[float | None]]:
    """The label that each row would be given, and the model's probability of it where the model proposes it.

    The label with which the row would score highest, where the scores know it; otherwise the model's own.  None where
    that is the row's label.
    """
    scored = scores.scored
    own = scored.labels[rows]
    none: list[Any] = [None] * len(rows)
    if scored.best_label is not None:
        best = scored.best_label[rows]
        return [int(b) if b >= 0 and b != y else None for b, y in zip(best, own, strict=True)], none
    if scored.model_label is None or scored.model_probability is None:
        return none, none
    found = zip(scored.model_label[rows], scored.model_probability[rows], own, strict=True)
    sure = [(int(b), float(p)) if b >= 0 and b != y and p >= 0.5 else (None, None) for b, p, y in found]
    return [label for label, _ in sure], [p for _, p in sure]
