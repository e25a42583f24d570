"""The gate: are there more suspicious new rows than allowed?  It decides and writes nothing.

New rows are compared with calibration rows (see ``calibration``); a row is flagged where its p-value is at most the
rate of false flags that is asked for.  A new row without a score cannot be judged, and the gate trips for it.

With a **threshold** X, in the objective's own unit, the rows flagged are the new rows whose ``effect`` is below -X:
removing such a row (of weight 1) is predicted to lower Phi by more than X.  That compares a row with nothing but X, so
it needs no calibration rows, says nothing of a rate, and is only for methods that estimate an effect.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.settings import parse_budget, parse_share
from influence_cli.stages.curate.combining import floats
from influence_cli.stages.curate.known_rows import calibration_keys, p_values, read_baseline, reference_rows
from influence_cli.stages.curate.request import GateRequest
from influence_cli.stages.curate.score_table import ScoreTable, planted_labels
from influence_cli.stages.score.noise import describe_noise, is_noise
from influence_cli.store.shards import as_arrow

FEW = 4  # rows to compare with that may score as low as a flagged one: with fewer, single rows decide


@dataclass(frozen=True, eq=False)
class Verdict:
    """The flagged rows and those that cannot be judged, and whether there are too many."""

    flagged: pa.Table
    candidates: int
    allowed: int
    reference: str
    tripped: bool
    unjudged: int = 0  # new rows that have no score; the first ones of ``flagged``
    notes: tuple[str, ...] = ()  # what was not looked at, and how coarse the rate is

    def sentence(self) -> str:
        """The verdict in a line."""
        what = "tripped" if self.tripped else "clean"
        unjudged = f"; {self.unjudged} cannot be judged: repair them or take them out" if self.unjudged else ""
        return (
            f"gate {what}: {self.flagged.num_rows - self.unjudged} of {self.candidates} new rows flagged, "
            f"{self.allowed} allowed ({self.reference}){unjudged}"
        )


def check(scores: ScoreTable, request: GateRequest) -> Verdict:
    """Compare new rows with calibration rows.

    Raises:
        UsageError: a threshold without an effect or below 0, a direction that is noise, nothing to compare with, or
            too few calibration rows for the rate that is asked for.
    """
    effect = None if request.threshold is None else _effects(scores, request.threshold)
    _refuse_noise(scores)
    accepted = read_baseline(request.baseline)
    calibration = calibration_keys(scores, effect is not None)
    keys = [k.hex() for k in scores.scored.keys]
    in_baseline = np.array([k in accepted for k in keys])
    known = in_baseline | np.array([k in calibration for k in keys])  # canaries too, but for the label planted there
    new = ~known & (planted_labels(scores.table) < 0)
    judged = new & np.isfinite(scores.scored.score if effect is None else effect)
    unjudged = _unjudged(scores, new & ~judged, accepted | set(calibration))
    notes = _not_looked_at(scores, accepted)
    if effect is not None:
        assert request.threshold is not None
        harmful = np.flatnonzero(judged & (effect < -request.threshold))
        basis = f"effect below -{request.threshold:g}, in the objective's unit"
        return _verdict(
            scores, request, int(judged.sum()), harmful, {"effect": effect[harmful]}, basis, unjudged, notes
        )
    rate = parse_share(request.false_flag, "--false-flag")
    reference, basis = reference_rows(scores, calibration, in_baseline, rate)
    p = p_values(scores.scored.score[reference], scores.scored.score[judged])
    least = 1.0 / (1 + int(reference.sum()))
    if least > rate:
        raise UsageError(
            f"{int(reference.sum())} rows to compare with cannot resolve a rate of {request.false_flag}",
            fix=f"use at least {int(np.ceil(1 / rate)) - 1} calibration rows, or --false-flag {100 * least:.2g}%",
        )
    notes += _coarse(int(reference.sum()), rate)
    why = {"p_value": p[p <= rate]}
    return _verdict(scores, request, int(judged.sum()), np.flatnonzero(judged)[p <= rate], why, basis, unjudged, notes)


def _not_looked_at(scores: ScoreTable, accepted: set[str]) -> tuple[str, ...]:
    """Rows of other splits than train that the baseline does not hold: nothing is known of them."""
    rows = {split: scores.manifest.rows(split) for split in ("val", "test")}
    counts = {s: sum(key.tobytes().hex() not in accepted for key in r.row_keys) for s, r in rows.items()}
    said = [f"{rows:,} {split}" for split, rows in counts.items() if rows]
    if not said:
        return ()
    how = "to have new rows judged, give them split train in the manifest (a column split, or `manifest --split`)"
    return (f"not looked at: {' and '.join(said)} rows, since only train rows have scores; {how}",)


def _coarse(calibration: int, rate: float) -> tuple[str, ...]:
    """That few rows to compare with leave the gate blind to all but the lowest scores; nothing where there are many."""
    below = int(rate * (1 + calibration) + 1e-9) - 1  # as many of them may score as low as a flagged row
    if below >= FEW:
        return ()
    lower = f"all but {below}" if below else "all"
    enough = int(np.ceil((FEW + 1) / rate)) - 1
    return (
        f"few rows to compare with: at {100 * rate:.3g}% a new row is flagged only below {lower} of {calibration:,}; "
        f"{enough:,} would do (retrain --calibration), or a larger --false-flag",
    )


def _unjudged(scores: ScoreTable, null: NDArray[np.bool_], known: set[str]) -> list[tuple[int, str]]:
    """New train rows, by their place in the manifest, that have no score, or were left out; and why."""
    manifest = scores.manifest
    found = [(row, "its score is null") for row in scores.train.index[null].tolist()]
    splits = manifest.table.column("split").to_pylist() if "split" in manifest.table.column_names else None
    for bad in manifest.bad:
        target = splits is not None and splits[bad.row] in ("val", "test")
        if not target and manifest.row_keys[bad.row].tobytes().hex() not in known:
            found.append((bad.row, f"column {bad.column}: {bad.reason}"))
    return found


def _verdict(
    scores: ScoreTable,
    request: GateRequest,
    judged: int,
    flagged: NDArray[np.int64],
    why: dict[str, NDArray[np.float64]],
    basis: str,
    unjudged: list[tuple[int, str]],
    notes: tuple[str, ...],
) -> Verdict:
    """The flagged rows, most suspicious first by what they are flagged for, against those allowed.

    Rows that cannot be judged go before, and the gate trips for any of them: it calls nothing clean that it has not
    seen.
    """
    candidates = judged + len(unjudged)
    allowed = parse_budget(request.max_flagged, candidates, "--max-flagged")
    shown = functools.partial(scores.manifest.label_kind.shown, names=scores.manifest.classes)
    suspicious = {
        "id": pa.array([scores.train.ids[i] for i in flagged], pa.string()),
        "row_key": as_arrow(scores.train.row_keys[flagged]),
        "label": shown(scores.train.labels[flagged]),
        "score": pa.array(scores.scored.score[flagged]),
        **{name: pa.array(values) for name, values in why.items()},
        "reason": pa.nulls(len(flagged), pa.string()),
    }
    rows, manifest = np.array([row for row, _ in unjudged], dtype=np.int64), scores.manifest
    first = {
        "id": pa.array([manifest.ids[k] for k in rows], pa.string()),
        "row_key": as_arrow(manifest.row_keys[rows]),
        "label": shown(manifest.labels[rows]),
        **{name: pa.nulls(len(rows), pa.float64()) for name in ("score", *why)},
        "reason": pa.array([f"cannot be judged: {reason}" for _, reason in unjudged], pa.string()),
    }
    table = pa.table(suspicious).sort_by([(name, "ascending") for name in (*why, "score", "id")])
    tripped = len(flagged) > allowed or len(unjudged) > 0
    return Verdict(
        pa.concat_tables([pa.table(first), table]), candidates, allowed, basis, tripped, len(unjudged), notes
    )


def _effects(scores: ScoreTable, threshold: float) -> NDArray[np.float64]:
    """Column ``effect`` [n], null as NaN, which cannot be judged."""
    if "effect" not in scores.table.column_names or scores.column not in ("score", scores.provenance.get("score_is")):
        raise UsageError(
            "--threshold compares column effect, in the objective's unit, which this method does not estimate",
            fix="score with a method that does (influence methods), or use --false-flag with calibration rows",
        )
    if not 0 <= threshold < float("inf"):
        what = "negative" if threshold < 0 else "no size"
        raise UsageError(f"--threshold {threshold:g} is {what}", fix="give a size: effects below minus it are flagged")
    return floats(scores.table, "effect")


def _refuse_noise(scores: ScoreTable) -> None:
    for name, entry in scores.provenance.get("noise", {}).items():
        if scores.scored.kind == "signed" and is_noise(entry):
            what = f"the direction of {name} is mostly sampling noise ({describe_noise(entry)}), and so would a gate be"
            raise UsageError(what, fix="use more target rows, or a ranking such as --method loss")
