"""The gate: are there more suspicious new rows than allowed?  It decides and writes nothing.

New rows are compared with calibration rows (see ``known_rows``).  With a **rate of false flags** q a row is flagged
where its p-value is at most q, so that a clean row is flagged with probability at most q.  With a **false discovery
rate** the rows flagged are those of the Benjamini-Hochberg rule (``maths.false_discoveries``), so that at most that
share of them is clean on average.  A new row without a score cannot be judged, and the gate trips for it.

With a **threshold** X, in the objective's own unit, the rows flagged are the new rows whose ``effect`` is below -X:
removing such a row (of weight 1) is predicted to lower Phi by more than X.  That compares a row with nothing but X, so
it needs no calibration rows, says nothing of a rate, and is only for methods that estimate an effect.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.maths.false_discoveries import benjamini_hochberg, chance_of_more
from influence_cli.settings import parse_share
from influence_cli.stages.curate.combining import floats
from influence_cli.stages.curate.known_rows import (
    STEADY,
    accepted_keys,
    calibration_keys,
    p_values,
    reference_rows,
    rounded_up,
)
from influence_cli.stages.curate.request import GateRequest
from influence_cli.stages.curate.score_table import ScoreTable, left_for_later, planted_labels
from influence_cli.stages.curate.slices import check_limits, rows_allowed, slices_of
from influence_cli.stages.curate.verdict import Rule, Verdict, flagged_table
from influence_cli.stages.score.noise import describe_noise, is_noise
from influence_cli.store.keys import hex_of

OFTEN, SELDOM = 0.10, 0.05  # how often clean rows trip a gate: more than the first is worth a note, the second is fine
FALSE_FLAG, FDR, THRESHOLD = "false-flag", "fdr", "threshold"

Flagged = tuple[NDArray[np.bool_], dict[str, NDArray[np.float64]], Rule, tuple[str, ...]]


def check(scores: ScoreTable, request: GateRequest) -> Verdict:
    """Compare new rows with calibration rows.

    Raises:
        UsageError: a threshold without an effect or below 0, a direction that is noise, nothing to compare with, too
            few calibration rows for the rate that is asked for, or a limit that cannot be read.
        ManifestError: the manifest that new rows are held against cannot be used.
    """
    effect = None if request.threshold is None else _effects(scores, request.threshold)
    _refuse_noise(scores)
    limits = check_limits(scores, request.max_flagged_per)
    accepted, notes = accepted_keys(scores, request.baseline, request.against)
    calibration = calibration_keys(scores, effect is not None)
    keys = hex_of(scores.scored.keys)
    is_accepted = np.array([k in accepted for k in keys])
    known = is_accepted | np.array([k in calibration for k in keys])  # canaries too, but for the label planted there
    new = ~known & (planted_labels(scores.table) < 0)
    judged = new & np.isfinite(scores.scored.score if effect is None else effect)
    unjudged = _unjudged(scores, new & ~judged, accepted | set(calibration))
    notes += _not_looked_at(scores, accepted, request.against is not None)
    if effect is not None:
        flagged, why, rule, more = _by_effect(effect[judged], float(request.threshold or 0.0))
    else:
        reference, unknown = reference_rows(scores, calibration, is_accepted)
        flagged, why, rule, more = _by_p_value(request, scores.scored.score, reference, judged, unknown)
    hit = np.flatnonzero(judged)[flagged]
    table, no_lines = flagged_table(scores, hit, {name: values[flagged] for name, values in why.items()}, unjudged)
    candidates = [*scores.train.index[judged].tolist(), *(row for row, _ in unjudged)]
    allowed = None
    if request.max_flagged is not None or not limits:
        allowed = rows_allowed(request.max_flagged or "0", len(candidates), "--max-flagged")
    slices = slices_of(scores, limits, candidates, scores.train.index[hit].tolist())
    over = allowed is not None and len(hit) > allowed
    chance, often = _chance_of_clean(rule, int(judged.sum()), allowed)
    return Verdict(
        table,
        len(candidates),
        allowed,
        rule,
        tripped=over or len(unjudged) > 0 or any(part.over for part in slices),
        unjudged=len(unjudged),
        slices=slices,
        clean_trips=chance,
        notes=(*notes, *more, *often, *([no_lines] if no_lines else [])),
        classes=scores.manifest.class_names,
        source=scores.manifest.source,
    )


def _by_effect(effect: NDArray[np.float64], threshold: float) -> Flagged:
    """Which of the effects [m] of judged rows are below minus the threshold."""
    basis = f"effect below -{threshold:g}, in the objective's unit"
    return effect < -threshold, {"effect": effect}, Rule(THRESHOLD, threshold, basis), ()


def _by_p_value(
    request: GateRequest,
    score: NDArray[np.float64],
    reference: NDArray[np.bool_],
    judged: NDArray[np.bool_],
    unknown: str | None,
) -> Flagged:
    """Which of the m judged rows are flagged for their p-value, and how coarse that is.

    ``unknown`` says why the rate of false flags is unknown, where it is.

    Raises:
        UsageError: no row could be flagged, with so few rows to compare with.
    """
    by = FALSE_FLAG if request.fdr is None else FDR
    text = request.false_flag if request.fdr is None else request.fdr
    rate, count, rows = parse_share(text, f"--{by}"), int(reference.sum()), int(judged.sum())
    least = 1.0 / (1 + count)
    if least > rate:
        raise UsageError(
            f"{count} rows to compare with cannot resolve a rate of {text}",
            fix=f"use at least {int(np.ceil(1 / rate)) - 1} calibration rows, or --{by} {rounded_up(100 * least)}%",
        )
    p = p_values(score[reference], score[judged])
    promise = f"at most {100 * rate:.3g}% of clean rows are flagged"
    if by == FDR:
        promise = f"on average at most {100 * rate:.3g}% of the flagged rows are clean"
    rule = Rule(by, rate, unknown or promise, unknown is None, count)
    if by == FDR:
        return benjamini_hochberg(p, rate), {"p_value": p}, rule, _coarse_fdr(count, rate, rows)
    return p <= rate, {"p_value": p}, rule, _coarse(count, rate)


def _coarse(calibration: int, rate: float) -> tuple[str, ...]:
    """That few rows to compare with leave the gate blind to all but the lowest scores; nothing where there are many."""
    below = int(rate * (1 + calibration) + 1e-9) - 1  # as many of them may score as low as a flagged row
    if below >= STEADY - 1:
        return ()
    lower = f"all but {below}" if below else "all"
    enough = int(np.ceil(STEADY / rate)) - 1
    return (
        f"few rows to compare with: at {100 * rate:.3g}% a new row is flagged only below {lower} of {calibration:,}; "
        f"{enough:,} would do (retrain --calibration), or a larger --false-flag",
    )


def _coarse_fdr(calibration: int, rate: float, rows: int) -> tuple[str, ...]:
    """That few rows to compare with leave the gate blind to single bad rows among many new ones."""
    together = math.ceil(rows / (rate * (calibration + 1)) - 1e-9)  # rows of the least p-value that are flagged at all
    if together <= 1:
        return ()
    enough = math.ceil(rows / rate - 1e-9) - 1
    return (
        f"few rows to compare with: at --fdr {100 * rate:.3g}% none of {rows:,} new rows is flagged unless at least "
        f"{together:,} of them score very low, such as below all of {calibration:,}; to flag a single one takes "
        f"{enough:,} (retrain --calibration), or use --false-flag",
    )


def _chance_of_clean(rule: Rule, rows: int, allowed: int | None) -> tuple[float | None, tuple[str, ...]]:
    """The chance that as many clean rows trip the gate; and a note where that is often, with what makes it seldom."""
    if rule.by != FALSE_FLAG or not rule.rate_known or allowed is None:
        return None, ()
    chance = chance_of_more(allowed, rows, rule.compared_with, rule.value)
    if chance <= OFTEN:
        return chance, ()
    low, high = allowed, rows  # the chance falls as more are allowed
    while high - low > 1:
        middle = (low + high) // 2
        seldom = chance_of_more(middle, rows, rule.compared_with, rule.value) <= SELDOM
        low, high = (low, middle) if seldom else (middle, high)
    what = (
        f"{rows:,} clean new rows would trip this gate {100 * chance:.0f}% of the time, since {allowed:,} flagged rows"
    )
    return chance, (f"{what} are allowed: --max-flagged {high} makes that at most {100 * SELDOM:.0f}%",)


def _not_looked_at(scores: ScoreTable, accepted: set[str], told_apart: bool) -> tuple[str, ...]:
    """Rows of other splits than train that are not accepted: nothing is known of them.

    ``told_apart`` says that they are new: a manifest was given, while a baseline holds train rows alone.
    """
    rows = {split: scores.manifest.rows(split) for split in ("val", "test")}
    counts = {s: sum(key.tobytes().hex() not in accepted for key in r.row_keys) for s, r in rows.items()}
    said = [f"{rows:,} {split}" for split, rows in counts.items() if rows]
    if not said:
        return ()
    how = "to have new rows judged, give them split train in the manifest (a column split, or `manifest --split`)"
    which = "" if told_apart else ", old and new (with --against MANIFEST only new ones are counted)"
    return (f"not looked at: {' and '.join(said)} rows, since only train rows have scores{which}; {how}",)


def _unjudged(scores: ScoreTable, null: NDArray[np.bool_], known: set[str]) -> list[tuple[int, str]]:
    """New train rows, by their place in the manifest, that have no score, or were left out; and why."""
    manifest = scores.manifest
    later = left_for_later(scores.provenance) if null.any() else ""
    reason = f"its score is null ({later})" if later else "its score is null"
    found = [(row, reason) for row in scores.train.index[null].tolist()]
    splits = manifest.table.column("split").to_pylist() if "split" in manifest.table.column_names else None
    for bad in manifest.bad:
        target = splits is not None and splits[bad.row] in ("val", "test")
        if not target and manifest.row_keys[bad.row].tobytes().hex() not in known:
            found.append((bad.row, f"column {bad.column}: {bad.reason}"))
    return found


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
