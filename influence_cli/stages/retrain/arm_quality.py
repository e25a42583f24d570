"""What an arm's users look at beyond accuracy: collapse onto one class, and how it treats groups of test rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.maths.fairness import demographic_parity, equalised_odds
from influence_cli.maths.labels import softmax
from influence_cli.stages.curate.score_table import GROUP, groups_of

GAPS = ("dp_gap", "dp_gap_soft", "eo_gap", "eo_gap_soft")
CONSTANT = 0.02  # predicted shares this near to 0 or 1 are as good as a constant prediction


def beyond_accuracy(
    logits: NDArray[np.float64], test: Rows, labels: NDArray[np.int64], column: str = GROUP
) -> dict[str, float]:
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
