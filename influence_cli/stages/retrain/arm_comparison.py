"""What the arms of a ``retrain`` come to: means over seeds, and paired differences with no edit and with controls."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.errors import UsageError
from influence_cli.maths.arms import mean_interval, paired_difference
from influence_cli.stages.retrain.arms import Arm

METRICS = {  # what is compared, where every arm was measured by it -> whether higher is better
    "accuracy": True,
    "balanced_accuracy": True,
    "loss": False,
    "dp_gap": False,
    "dp_gap_soft": False,
    "eo_gap": False,
    "eo_gap_soft": False,
    "attacked_static": True,
    "attacked_adaptive": True,
}
SHARES = ("majority_share", "positive_rate")  # what is reported beside them: neither more nor less is better


def summary_of(arm: Arm, base: Rows, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What one arm is: the edits it makes, and its results by seed with their means."""
    return {
        "controls": arm.controls,
        "train_rows": int((arm.weights > 0).sum()),
        "edits": arm.about,
        "seeds": results,
        "mean": {m: mean_interval(np.array([r[m] for r in results.values()])) for m in _measured(results)},
    }


def _measured(results: dict[str, dict[str, Any]]) -> list[str]:
    return [m for m in (*METRICS, *SHARES) if all(m in r for r in results.values())]


def compare_arms(metrics: dict[str, Any], arms: list[Arm]) -> None:
    """Paired differences of every curated arm with no edit and with each of its controls."""
    by_name = {arm.name: arm for arm in arms}
    if "no edit" not in by_name:
        return
    for arm in arms:
        if arm.controls is not None or arm.name == "no edit":
            continue
        others = ["no edit", *(c.name for c in arms if c.controls == arm.name)]
        metrics["comparison"][arm.name] = {
            other: {
                m: paired_difference(_values(metrics, arm.name, m), _values(metrics, other, m), higher)
                for m, higher in METRICS.items()
                if m in metrics["arms"][arm.name]["mean"] and m in metrics["arms"][other]["mean"]
            }
            for other in others
        }


def _values(metrics: dict[str, Any], arm: str, metric: str) -> NDArray[np.float64]:
    return np.array([r[metric] for r in metrics["arms"][arm]["seeds"].values()])


def improved(metrics: dict[str, Any]) -> bool:
    """Whether the first curated arm beats no edit and every control in accuracy, by the paired interval."""
    comparison = next(iter(metrics["comparison"].values()), None)
    if comparison is None:
        raise UsageError("nothing to compare with", fix="pass --against MANIFEST, the rows before curation")
    return all(c["accuracy"]["verdict"] == "better" for c in comparison.values())
