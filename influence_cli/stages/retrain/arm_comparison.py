"""What the arms of a ``retrain`` come to: means over seeds, and paired differences with no edit and with controls.

Beyond accuracy an arm's users look at collapse onto one class, and at how it treats groups of test rows.  The Pareto
report holds accuracy against what else a model's users look at (methods.md 3.6, 6.6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.data.measures import MEASURES
from influence_cli.errors import UsageError
from influence_cli.maths.arms import (
    Floats,
    mean_ellipse,
    mean_interval,
    non_dominated,
    non_dominated_share,
    quadrant,
)
from influence_cli.maths.fairness import demographic_parity, equalised_odds
from influence_cli.maths.labels import softmax
from influence_cli.report.answers import helped
from influence_cli.stages.curate.score_table import GROUP, groups_of
from influence_cli.stages.retrain.arms import Arm

GAPS = ("dp_gap", "dp_gap_soft", "eo_gap", "eo_gap_soft")
ATTACKED = ("attacked_static", "attacked_adaptive")
FLIPS = ("fair_score", "fair_score_changed")  # share of flipped predictions: of all rows, of those whose text changes
METRICS = {  # what is compared, where every arm was measured by it -> whether higher is better
    **{name: measure.higher for name, measure in MEASURES.items()},
    **dict.fromkeys((*GAPS, *FLIPS), False),
    **dict.fromkeys(ATTACKED, True),
}
SHARES = ("majority_share", "positive_rate")  # what is reported beside them: neither more nor less is better
DRAWS = 1000
AXES = {  # what accuracy is held against, where measured -> what goes up where it gets better
    **dict.fromkeys(("dp_gap", "dp_gap_soft", "eo_gap", "fair_score"), "fairness"),
    **dict.fromkeys(ATTACKED, "robustness"),
}
Between = Callable[[str, str, str], dict[str, Any]]  # (arm, other arm, measure) -> their difference, with its verdict
CONSTANT = 0.02  # predicted shares this near to 0 or 1 are as good as a constant prediction


def summary_of(
    arm: Arm, results: dict[str, dict[str, Any]], draws: Sequence[dict[str, Any]] = (), same: bool = False
) -> dict[str, Any]:
    """What one arm is: the edits it makes, and its results by seed with their means.

    Where seeds change nothing (``same``) the means are over one of them and the further random ``draws`` of a control.
    """
    every = [*list(results.values())[: 1 if same else None], *draws]
    measured = [m for m in (*METRICS, *SHARES) if all(m in r for r in results.values())]
    values = {m: [r[m] for r in every if m in r] for m in measured}
    return {
        "controls": arm.controls,
        "train_rows": int((arm.weights > 0).sum()),
        "edits": arm.about,
        "seeds": results,
        **({"draws": list(draws)} if draws else {}),
        "mean": {m: mean_interval(np.array(v)) for m, v in values.items()},
    }


def compare_arms(metrics: dict[str, Any], arms: list[Arm], between: Between) -> None:
    """Differences of every curated arm from no edit and from each of its controls."""
    made = metrics["arms"]
    if "no edit" not in made:
        return
    for arm in arms:
        if arm.controls is not None or arm.name == "no edit":
            continue
        others = ["no edit", *(c.name for c in arms if c.controls == arm.name)]
        metrics["comparison"][arm.name] = {
            other: {
                m: between(arm.name, other, m)
                for m in METRICS
                if m in made[arm.name]["mean"] and m in made[other]["mean"]
            }
            for other in others
        }


def _values(arm: dict[str, Any], metric: str) -> Floats:
    """A measure by seed."""
    return np.array([r[metric] for r in arm["seeds"].values()], dtype=np.float64)


def improved(metrics: dict[str, Any]) -> bool:
    """Whether the first curated arm beats no edit and every control in accuracy, or else in loss."""
    first = next(iter(metrics["comparison"]), None)
    if first is None:
        raise UsageError("nothing to compare with", fix="pass --against MANIFEST, the rows before curation")
    return helped(metrics, first)


def pareto(metrics: dict[str, Any], seed: int, between: Between, same: bool = False) -> dict[str, Any]:
    """By axis: every arm's point with its verdict relative to no edit, and who is non-dominated how often.

    Empty where no arm is compared with no edit, or nothing but accuracy was measured.  Where seeds change nothing
    (``same``) no share is given: there are none to draw.
    """
    arms = metrics["arms"]
    if "no edit" not in arms or len(arms) < 3:
        return {}
    measured = [axis for axis in AXES if all(axis in r for arm in arms.values() for r in arm["seeds"].values())]
    return {axis: _front(arms, axis, seed, between, same) for axis in measured}


def _front(arms: dict[str, Any], axis: str, seed: int, between: Between, same: bool) -> dict[str, Any]:
    """One axis against accuracy, turned so that higher is better."""
    sign = 1.0 if METRICS[axis] else -1.0
    x = {name: _values(arm, "accuracy") for name, arm in arms.items()}
    y = {name: sign * _values(arm, axis) for name, arm in arms.items()}
    candidates = [name for name, arm in arms.items() if arm["controls"] is None]
    xs, ys = np.stack([x[n] for n in candidates]), np.stack([y[n] for n in candidates])
    front = dict(zip(candidates, non_dominated(xs.mean(axis=1), ys.mean(axis=1)).tolist(), strict=True))
    share = {} if same else dict(zip(candidates, non_dominated_share(xs, ys, DRAWS, seed).tolist(), strict=True))
    points: dict[str, Any] = {}
    for name in arms:
        points[name] = {
            "controls": arms[name]["controls"],
            "accuracy": mean_interval(x[name]),
            axis: mean_interval(sign * y[name]),
            "ellipse": mean_ellipse(x[name], sign * y[name]),
            "non_dominated": front.get(name),
            "non_dominated_share": share.get(name),
        }
        if name != "no edit":
            dx, dy = (between(name, "no edit", measure) for measure in ("accuracy", axis))
            halves = dx["half_width"], dy["half_width"]
            points[name]["verdict"] = quadrant(dx["mean"], sign * dy["mean"], *halves, "accuracy", AXES[axis])
            points[name]["difference"] = {"accuracy": dx, axis: dy}
    return {"higher_is_better": sign > 0, "seeds": xs.shape[1], "same_models": same, "points": points}


def beyond_accuracy(logits: Floats, test: Rows, labels: NDArray[np.int64], column: str = GROUP) -> dict[str, float]:
    """Share predicted as the commonest label, share predicted positive (two classes), and gaps between groups."""
    predicted = logits.argmax(axis=1)
    found = {"majority_share": float((predicted == np.bincount(labels).argmax()).mean())}
    if logits.shape[1] == 2:
        found["positive_rate"] = float((predicted == 1).mean())
    groups = groups_of(test, column)
    if groups is not None and len(np.unique(groups[groups >= 0])) > 1:
        known = groups >= 0
        p, y, g = softmax(logits[known]), labels[known], groups[known]
        for suffix, hard in (("", True), ("_soft", False)):
            found["dp_gap" + suffix] = demographic_parity(p, g, hard=hard)
            found["eo_gap" + suffix] = equalised_odds(p, y, g, hard=hard)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def cautions_of(metrics: dict[str, Any]) -> list[str]:
    """Warnings that a reader of accuracies needs: arms that all but predict one class, or a single seed."""
    lines = []
    for name, arm in metrics["arms"].items():
        share = arm["mean"].get("majority_share", {}).get("mean", 0.0)
        if share > 1.0 - CONSTANT:
            lines.append(f"{name} predicts the majority class on {share:.1%} of the test rows: all but a constant")
    return lines
