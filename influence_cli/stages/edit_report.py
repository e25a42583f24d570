"""What edits do to the data: counts by class, and where clean labels are known their precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_cli.stages.curate import Curated


def summarise(curated: Curated) -> dict[str, Any]:
    """What the edits do: counts, classes, notes, and where clean labels are known their precision."""
    edits, train = curated.edits, curated.scores.train
    edited = edits.edited
    summary: dict[str, Any] = {
        "action": edits.action,
        "train_rows": len(train),
        "edited": len(edited),
        "notes": edits.notes,
        "classes": {
            int(c): {"rows": int((train.labels == c).sum()), "edited": int((train.labels[edited] == c).sum())}
            for c in np.unique(train.labels)
        },
    }
    worst = max(summary["classes"].items(), key=lambda kv: kv[1]["edited"])
    if len(edited) and worst[1]["edited"] > 0.5 * len(edited) and worst[1]["rows"] < 0.25 * len(train):
        share = worst[1]["edited"] / len(edited)
        summary["notes"] = [*edits.notes, f"{share:.0%} of the edits are of class {worst[0]}, a minority"]
    clean = train.clean_labels()
    if clean is not None and len(edited):
        wrong = (clean >= 0) & (clean != train.labels)
        summary["wrong_share_of_edited"] = float(wrong[edited].mean())
        summary["wrong_share_of_all"] = float(wrong.mean())
        if edits.action == "relabel":
            right = edits.labels == clean
            summary["right_after_relabel"] = float(right[edited].mean())
    return summary
