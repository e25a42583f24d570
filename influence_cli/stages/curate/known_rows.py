"""The rows that the gate knows: accepted ones, and calibration rows, which the checkpoint was not trained on.

New rows are compared with the calibration rows, which ``retrain --calibration`` leaves out.  With their scores
c_1..c_m the conformal p-value of a new row of score s is

    p = (1 + #{j: c_j <= s}) / (1 + m)

and a clean row is flagged with probability at most q when rows with p <= q are (Bates et al. 2023,
arXiv:2104.08279).  Without calibration rows the accepted rows of the baseline stand in, and the rate is unknown.
Calibration rows and accepted rows are known by row key: one whose label or payload was changed is a new row.  Accepted
rows are those of the baseline, a file with the row key of every row that was accepted, one a line, and those of the
manifest that new rows are held against.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.earlier import BASELINE
from influence_cli.data.labels import numbered_as
from influence_cli.data.open import open_manifest
from influence_cli.data.outputs import Output, check_outputs, write_output
from influence_cli.errors import InfluenceError, ManifestError, ModelError, UsageError
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.run_folder import RunFolder
from influence_cli.stages.curate.baseline import baseline_of, read_baseline
from influence_cli.stages.curate.score_table import ScoreTable
from influence_cli.store.keys import hex_of

Mask = NDArray[np.bool_]
STEADY = 5  # calibration rows that have to score as low as a row, so that no single one of them decides


def reference_rows(scores: ScoreTable, calibration: Counter[str], accepted: Mask) -> tuple[Mask, str | None]:
    """Which rows [n] new ones are compared with; and why the rate is unknown, where accepted rows stand in.

    A calibration row counts as often as it was left out of training: copies of it add nothing.

    Raises:
        UsageError: there are none.
    """
    reference, finite = calibration_rows(scores, calibration), np.isfinite(scores.scored.score)
    if reference.any():
        return reference, None
    lost = f": none of the run's {calibration.total():,} calibration rows is there as it was" if calibration else ""
    gone = _checkpoint_gone(scores)
    if gone is not None:
        lost = f": {gone}, which was scored, is not there, and so its calibration rows are not known"
    if accepted.any():
        return accepted & finite, f"compared with accepted rows, so the rate of false flags is unknown{lost}"
    fix = "train with `retrain --calibration 5%`, or pass --baseline FILE or --against MANIFEST"
    if gone is not None:
        fix = f"run the gate where {gone} is, or {fix}"
    if any(calibration[key] and not finite[k] for k, key in enumerate(hex_of(scores.scored.keys))):
        lost = f": none of the run's {calibration.total():,} calibration rows has a score, since none was trained on"
        fix = "score with a method that needs no training on the row, such as loss or ip"
    raise UsageError(f"the gate has nothing to compare new rows with{lost}", fix=fix)


def _checkpoint_gone(scores: ScoreTable) -> str | None:
    """The checkpoint that was scored, where its path leads to nothing from here."""
    locator = (scores.provenance.get("checkpoint") or {}).get("locator")
    if not isinstance(locator, str) or "://" in locator or Path(locator).exists():
        return None
    return locator


def calibration_rows(scores: ScoreTable, calibration: Counter[str]) -> Mask:
    """Which train rows [n] are calibration rows with a score, each as often as it was left out of training."""
    finite, left = np.isfinite(scores.scored.score), calibration.copy()
    found = np.zeros(len(scores.train), dtype=bool)
    for k, key in enumerate(hex_of(scores.scored.keys)):
        if finite[k] and left[key] > 0:
            found[k] = True
            left[key] -= 1
    return found


def said_of_rates(scores: ScoreTable) -> tuple[bool, str]:
    """Whether a gate with these scores knows its rate of false flags; and which rates it can tell, in a sentence."""
    try:
        count = int(calibration_rows(scores, calibration_keys(scores, unused=False)).sum())
    except InfluenceError as error:
        return False, f"a gate with these scores would be refused: {error.what} ({error.fix})"
    if not count:
        what = "no calibration row of the run has a score, so a gate would not know its rate of false flags"
        return False, f"{what}: train with `retrain --calibration 5%`, and score with a method such as loss or ip"
    least, steady = 100 / (count + 1), 100 * STEADY / (count + 1)
    many = f"; from {rounded_up(steady)}% on no single row decides" if steady < 100 else ""
    return True, f"{count:,} calibration rows: a gate can tell a --false-flag of {rounded_up(least)}% or more{many}"


def rounded_up(percent: float) -> str:
    """A percentage with two digits that is not below it."""
    step = 10.0 ** (math.floor(math.log10(percent)) - 1)
    return f"{math.ceil(percent / step - 1e-9) * step:.3g}"


def p_values(calibration: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
    """Conformal p-values [n] of new scores against calibration scores [m].

    >>> p_values(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])).tolist()
    [0.25, 0.75]
    """
    below = np.searchsorted(np.sort(calibration), new, side="right")
    return (1.0 + below.astype(np.float64)) / (1.0 + len(calibration))


def calibration_keys(scores: ScoreTable, unused: bool) -> Counter[str]:
    """The calibration rows of the run that was scored, by row key: one that was changed since is none.

    ``unused`` says that new rows are compared with no other, so that those of an older run are new ones like any.

    Raises:
        ModelError: the run folder is gone, cannot be read, or holds other weights than those that were scored.
        UsageError: it knows the rows by id alone.
    """
    checkpoint: dict[str, Any] = scores.provenance.get("checkpoint") or {}
    locator = checkpoint.get("locator")
    run = RunFolder(locator).read() if isinstance(locator, str) else None
    if run is None:
        return Counter()
    if find_checkpoint(str(locator))[0].digest != checkpoint.get("fingerprint") and not unused:
        what = "the run folder holds other weights than those that were scored, and so other calibration rows"
        raise ModelError(what, where=str(locator), fix="run `influence score` again")
    if run.calibration_ids and run.calibration_keys is None and not unused:
        what = "the run folder knows its calibration rows by id alone, so that a changed label or payload is not seen"
        fix = "run `retrain --calibration 5%` and `influence score` again"
        raise UsageError(what, where=str(checkpoint["locator"]), fix=fix)
    return Counter[str](run.calibration_keys or ())


def write_baseline(scores: ScoreTable, path: str) -> int:
    """Accept every train row as it is, by row key: an edited row comes back to the gate."""
    rows = sorted(zip(scores.train.ids, hex_of(scores.scored.keys), strict=True))
    check_outputs([Output("--write-baseline", path, BASELINE)], scores.manifest.files)
    write_output(path, BASELINE, baseline_of(rows))
    return len(rows)


def accepted_keys(scores: ScoreTable, baseline: str | None, against: Any) -> tuple[set[str], tuple[str, ...]]:
    """Row keys of the rows of the baseline and of the manifest ``against``, and what is to be said of them."""
    keys, said = read_baseline(baseline)
    notes = () if said is None else (said,)
    if against is not None:
        rows, bad = _keys_of(against, scores)
        keys |= rows
        notes += (f"{bad:,} rows of {against} cannot be used, and accept nothing",) if bad else ()
    return keys, notes


def _keys_of(against: Any, scores: ScoreTable) -> tuple[set[str], int]:
    """Row keys of a manifest, its labels numbered as those that were scored; and how many of its rows are unusable.

    Raises:
        ManifestError: it cannot be read, its labels are of another task, or it has a class that is unknown here.
    """
    here = scores.manifest
    other = open_manifest(against, scores.label, skip_bad=True)
    if other.task != here.task:
        what = f"its task is {other.task}, and that of {here.source} is {here.task}"
        raise ManifestError(what, where=other.source, fix="give --against a manifest of the same task")
    other = numbered_as(other, here.classes, here.source)
    return set(hex_of(other.all_rows().row_keys)), len(other.bad)
