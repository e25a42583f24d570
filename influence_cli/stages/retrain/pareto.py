"""The Pareto report of a comparison: accuracy against what else its users look at (methods.md 3.6, 6.6)."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_cli.maths.arms import (
    Floats,
    mean_ellipse,
    mean_interval,
    non_dominated,
    non_dominated_share,
    paired_difference,
    quadrant,
)

AXES = ("dp_gap", "dp_gap_soft", "eo_gap", "attacked_static", "attacked_adaptive")  # against accuracy, where measured
DRAWS = 1000


def pareto(metrics: dict[str, Any], higher: dict[str, bool], seed: int) -> dict[str, Any]:
    """By axis: every arm's point with its verdict relative to no edit, and who is non-dominated how often.

    Empty where no arm is compared with no edit, or nothing but accuracy was measured.
    """
    arms = metrics["arms"]
    if "no edit" not in arms or len(arms) < 3:
        return {}
    found: dict[str, Any] = {}
    for axis in AXES:
        if all(axis in r for arm in arms.values() for r in arm["seeds"].values()):
            found[axis] = _front(arms, axis, 1.0 if higher[axis] else -1.0, seed)
    return found


def _front(arms: dict[str, Any], axis: str, sign: float, seed: int) -> dict[str, Any]:
    """One axis; ``sign`` turns it so that higher is better."""
    x = {name: _values(arm, "accuracy") for name, arm in arms.items()}
    y = {name: sign * _values(arm, axis) for name, arm in arms.items()}
    candidates = [name for name, arm in arms.items() if arm["controls"] is None]
    xs, ys = np.stack([x[n] for n in candidates]), np.stack([y[n] for n in candidates])
    front = dict(zip(candidates, non_dominated(xs.mean(axis=1), ys.mean(axis=1)).tolist(), strict=True))
    share = dict(zip(candidates, non_dominated_share(xs, ys, DRAWS, seed).tolist(), strict=True))
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
            dx = paired_difference(x[name], x["no edit"], True)
            dy = paired_difference(y[name], y["no edit"], True)
            verdict = quadrant(dx["mean"], dy["mean"], dx["half_width"], dy["half_width"])
            points[name]["verdict"] = verdict.replace("x ", "accuracy ").replace("y ", f"{NAMES[axis]} ")
            points[name]["difference"] = {"accuracy": dx, axis: {**dy, "mean": sign * dy["mean"]}}
    return {"higher_is_better": sign > 0, "seeds": xs.shape[1], "points": points}


NAMES = {  # what it is that goes up where a measure gets better
    "dp_gap": "fairness",
    "dp_gap_soft": "fairness",
    "eo_gap": "fairness",
    "attacked_static": "robustness",
    "attacked_adaptive": "robustness",
}


def _values(arm: dict[str, Any], metric: str) -> Floats:
    return np.array([r[metric] for r in arm["seeds"].values()], dtype=np.float64)
