"""The gate: are there more suspicious new rows than allowed?  It decides and writes nothing.

New rows are compared with **calibration rows**: accepted rows that the checkpoint was not trained on
(``retrain --calibration``).  With calibration scores c_1..c_m the conformal p-value of a new row with score s is

    p = (1 + #{j: c_j <= s}) / (1 + m)

and a clean row is flagged with probability at most q when rows with p <= q are (Bates et al. 2023,
arXiv:2104.08279).  Without calibration rows the accepted rows of the baseline stand in, and the rate is unknown.

With a **threshold** X, in the objective's own unit, the rows flagged are the new rows whose ``effect`` is below -X:
removing such a row (of weight 1) is predicted to lower Phi by more than X.  That compares a row with nothing but X, so
it needs no calibration rows, says nothing of a rate, and is only for methods that estimate an effect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.earlier import BASELINE
from influence_cli.data.outputs import Output, check_outputs, write_output
from influence_cli.errors import UsageError
from influence_cli.model.checkpoints import RUN_FILE
from influence_cli.stages.budgets import parse_budget, parse_share
from influence_cli.stages.reliability import describe_noise, is_noise
from influence_cli.stages.score_table import ScoreTable
from influence_cli.store.shards import as_arrow


@dataclass(frozen=True)
class GateRequest:
    """When the gate trips."""

    max_flagged: str = "0"
    false_flag: str = "1%"
    threshold: float | None = None
    baseline: str | None = None


@dataclass(frozen=True, eq=False)
class Verdict:
    """The flagged rows, and whether there are too many."""

    flagged: pa.Table
    candidates: int
    allowed: int
    reference: str
    tripped: bool

    def sentence(self) -> str:
        """The verdict in a line."""
        what = "tripped" if self.tripped else "clean"
        return (
            f"gate {what}: {self.flagged.num_rows} of {self.candidates} new rows flagged, "
            f"{self.allowed} allowed ({self.reference})"
        )


def check(scores: ScoreTable, request: GateRequest) -> Verdict:
    """Compare new rows with calibration rows.

    Raises:
        UsageError: a threshold without an effect or below 0, a direction that is noise, nothing to compare with, or
            too few calibration rows for the rate that is asked for.
    """
    effect = None if request.threshold is None else _effects(scores, request.threshold)
    _refuse_noise(scores)
    accepted = _read_baseline(request.baseline)
    keys = [k.hex() for k in scores.scored.keys]
    in_baseline = np.array([k in accepted for k in keys])
    calibration = _calibration_ids(scores)
    in_calibration = np.array([i in calibration for i in scores.train.ids])
    new = ~in_baseline & ~in_calibration & np.isfinite(scores.scored.score)
    if effect is not None:
        assert request.threshold is not None
        harmful = np.flatnonzero(new & (effect < -request.threshold))
        basis = f"effect below -{request.threshold:g}, in the objective's unit"
        return _verdict(scores, request, new, harmful, {"effect": effect[harmful]}, basis)
    rate = parse_share(request.false_flag, "--false-flag")
    if in_calibration.any():
        reference, basis = in_calibration, f"at most {rate:.3g} of clean rows are flagged"
    elif in_baseline.any():
        reference, basis = (
            in_baseline,
            "compared with rows of the baseline, so the rate of false flags is unknown",
        )
    else:
        raise UsageError(
            "the gate has nothing to compare new rows with",
            fix="train with `retrain --calibration 5%`, or pass --baseline FILE",
        )
    reference &= np.isfinite(scores.scored.score)
    p = p_values(scores.scored.score[reference], scores.scored.score[new])
    least = 1.0 / (1 + int(reference.sum()))
    if least > rate:
        raise UsageError(
            f"{int(reference.sum())} rows to compare with cannot resolve a rate of {request.false_flag}",
            fix=f"use at least {int(np.ceil(1 / rate)) - 1} calibration rows, or --false-flag {100 * least:.2g}%",
        )
    return _verdict(scores, request, new, np.flatnonzero(new)[p <= rate], {"p_value": p[p <= rate]}, basis)


def _verdict(
    scores: ScoreTable,
    request: GateRequest,
    new: NDArray[np.bool_],
    flagged: NDArray[np.int64],
    why: dict[str, NDArray[np.float64]],
    basis: str,
) -> Verdict:
    """The flagged rows, most suspicious first by what they are flagged for, against those allowed."""
    allowed = parse_budget(request.max_flagged, int(new.sum()), "--max-flagged")
    table = pa.table(
        {
            "id": pa.array([scores.train.ids[i] for i in flagged], pa.string()),
            "row_key": as_arrow(scores.train.row_keys[flagged]),
            "label": pa.array(scores.train.labels[flagged]),
            "score": pa.array(scores.scored.score[flagged]),
            **{name: pa.array(values) for name, values in why.items()},
        }
    ).sort_by([(next(iter(why)), "ascending"), ("score", "ascending"), ("id", "ascending")])
    return Verdict(table, int(new.sum()), allowed, basis, len(flagged) > allowed)


def _effects(scores: ScoreTable, threshold: float) -> NDArray[np.float64]:
    """Column ``effect`` [n], null as NaN, which no threshold flags."""
    if "effect" not in scores.table.column_names or scores.column not in ("score", scores.provenance.get("score_is")):
        raise UsageError(
            "--threshold compares column effect, in the objective's unit, which this method does not estimate",
            fix="score with a method that does (influence methods), or use --false-flag with calibration rows",
        )
    if threshold < 0:
        raise UsageError(
            f"--threshold {threshold:g} is negative", fix="give a size: effects below minus it are flagged"
        )
    return scores.table.column("effect").cast(pa.float64()).fill_null(float("nan")).to_numpy()


def p_values(calibration: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
    """Conformal p-values [n] of new scores against calibration scores [m].

    >>> p_values(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])).tolist()
    [0.25, 0.75]
    """
    below = np.searchsorted(np.sort(calibration), new, side="right")
    return (1.0 + below.astype(np.float64)) / (1.0 + len(calibration))


def write_baseline(scores: ScoreTable, path: str) -> int:
    """Accept every train row as it is, by row key: an edited row comes back to the gate."""
    lines = [
        json.dumps({"id": i, "row_key": k.hex()}, ensure_ascii=False)
        for i, k in sorted(zip(scores.train.ids, scores.scored.keys, strict=True))
    ]
    check_outputs([Output("--write-baseline", path, BASELINE)], scores.manifest.files)
    write_output(path, BASELINE, ("\n".join(lines) + "\n").encode())
    return len(lines)


def _refuse_noise(scores: ScoreTable) -> None:
    origin = scores.provenance
    if scores.scored.kind != "signed":
        return
    for name, entry in origin.get("noise", {}).items():
        if is_noise(entry):
            raise UsageError(
                f"the direction of {name} is mostly sampling noise ({describe_noise(entry)}), and so would a gate be",
                fix="use more target rows, or a ranking such as --method loss",
            )


def _read_baseline(path: str | None) -> set[str]:
    if path is None:
        return set()
    try:
        return {json.loads(line)["row_key"] for line in Path(path).read_text().splitlines() if line}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the baseline cannot be read ({error})", where=path, fix="use --write-baseline") from error


def _calibration_ids(scores: ScoreTable) -> set[str]:
    checkpoint: dict[str, Any] = scores.provenance.get("checkpoint") or {}
    try:
        run = json.loads((Path(checkpoint["locator"]) / RUN_FILE).read_text())
        return set(run["calibration_ids"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
