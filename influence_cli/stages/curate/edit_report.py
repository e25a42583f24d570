"""What edits do to the data: classes, groups and scores before and after, balance, and precision where truth is known.

Chi-square of the edits by class, with k_c edits among the n_c rows of class c and q = k/n the share edited at all:

    X^2 = sum_c (k_c - q n_c)^2 / (q (1 - q) n_c),   C - 1 degrees of freedom

which is Pearson's statistic of the table (edited or not) x class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.labels import clean_labels
from influence_cli.stages.curate.curate import Curated
from influence_cli.stages.curate.score_table import GROUP

Ints = NDArray[np.int64]
MOST_OF_EDITS, MINORITY = 0.5, 0.25  # more of the edits than this from a class of less than that is worth a warning


def summarise(curated: Curated) -> dict[str, Any]:
    """What the edits do: counts by class and group, before and after; scores; notes; precision against clean labels."""
    edits, train = curated.edits, curated.scores.train
    edited = np.zeros(len(train), dtype=bool)
    edited[edits.edited] = True
    kept = (edits.weights > 0) | (train.weights <= 0)
    classes = _parts(train.labels, edits.labels, edited, kept)
    summary: dict[str, Any] = {
        "action": edits.action,
        "train_rows": len(train),
        "edited": int(edited.sum()),
        "notes": list(edits.notes),
        "warnings": _lopsided(classes, int(edited.sum()), len(train)),
        "classes": classes,
        "score": _scores(curated.scores.scored.score, edited),
        "chi_square": chi_square(train.labels, edited),
    }
    groups = curated.scores.scored.groups
    if groups is not None and (groups >= 0).any():
        names = _names(curated, groups)
        summary["groups"] = {names[g]: part for g, part in _parts(groups, groups, edited, kept).items() if g >= 0}
    clean = clean_labels(train)
    if clean is not None and edited.any():
        wrong = (clean >= 0) & (clean != train.labels)
        summary["wrong_share_of_edited"] = float(wrong[edited].mean())
        summary["wrong_share_of_all"] = float(wrong.mean())
        if edits.action == "relabel":
            summary["right_after_relabel"] = float((edits.labels == clean)[edited].mean())
    return summary


def chi_square(labels: Ints, edited: NDArray[np.bool_]) -> dict[str, float] | None:
    """Whether edits fall on classes as their sizes would have it; None where there is nothing to tell."""
    from scipy import stats

    classes, sizes = np.unique(labels, return_counts=True)
    hit = int(edited.sum())
    if len(sizes) < 2 or hit in (0, len(labels)):
        return None
    found = np.array([edited[labels == c].sum() for c in classes])
    q = hit / len(labels)
    statistic = float(((found - q * sizes) ** 2 / (q * (1 - q) * sizes)).sum())
    free = len(sizes) - 1
    return {"statistic": statistic, "degrees": free, "p_value": float(stats.chi2.sf(statistic, free))}


def _parts(before: Ints, after: Ints, edited: NDArray[np.bool_], kept: NDArray[np.bool_]) -> dict[int, dict[str, int]]:
    """By class or group: its rows, how many of them are edited, and its rows after the edits."""
    return {
        int(c): {
            "rows": int((before == c).sum()),
            "edited": int(edited[before == c].sum()),
            "after": int((kept & (after == c)).sum()),
        }
        for c in np.unique(np.concatenate([before, after]))
    }


def _scores(score: NDArray[np.float64], edited: NDArray[np.bool_]) -> dict[str, float | None]:
    finite = np.isfinite(score)
    means = {"edited": score[edited & finite], "kept": score[~edited & finite]}
    return {name: float(values.mean()) if len(values) else None for name, values in means.items()}


def _lopsided(classes: dict[int, dict[str, int]], edited: int, rows: int) -> list[str]:
    """A warning where most edits are of one small class."""
    name, worst = max(classes.items(), key=lambda kv: kv[1]["edited"])
    if edited and worst["edited"] > MOST_OF_EDITS * edited and worst["rows"] < MINORITY * rows:
        share, size = worst["edited"] / edited, worst["rows"] / rows
        return [f"{share:.0%} of the edits are of class {name}, a minority ({size:.1%} of the rows)"]
    return []


def _names(curated: Curated, groups: Ints) -> dict[int, str]:
    """What the groups are called in the manifest."""
    values = curated.scores.manifest.table.column(GROUP).to_pylist()
    index = curated.scores.train.index.tolist()
    return {int(g): str(values[index[int(np.flatnonzero(groups == g)[0])]]) for g in np.unique(groups)}
