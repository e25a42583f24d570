"""How well score columns find rows that are known to be wrong: figures, intervals, and who is better than whom.

Suspiciousness is minus the score.  All columns share the draws of one bootstrap over rows, stratified by truth, so
differences are paired; ``maths.ranking`` has the figures and ``maths.bootstrap`` the intervals, and why those.
Verdicts against the reference column are Holm's, over all columns, figure by figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError, nearest
from influence_cli.maths.bootstrap import degrees_of_freedom, draws_of, holm, share_interval, student, two_sided
from influence_cli.maths.ranking import Ladder, curves, found, influence_of_rows
from influence_cli.stages.evaluate.truth import Mask, Truth

Floats = NDArray[np.float64]
RANDOM = "random"
FIGURES = ("auc", "average_precision", "precision_at_budget", "recall_at_budget", "recall_at_wrong")
SOURCES = {  # figures that are reported -> those of ``_RankedRows`` that they are taken from
    "auc": "auc",
    "average_precision": "average_precision",
    "precision_at_budget": "at_budget",
    "recall_at_budget": "at_budget",
    "precision_at_wrong": "at_wrong",
    "recall_at_wrong": "at_wrong",
}
COMPARED = ("auc", "average_precision", "recall_at_budget", "recall_at_wrong")
INTERVALS = "95%, stratified bootstrap over rows, logit scale, Student's t; differences paired, verdicts after Holm"


@dataclass(eq=False)
class _RankedRows:
    """A column on some rows: its figures there, and in every draw."""

    rows: NDArray[np.intp]  # places among the known rows
    wrong: Mask
    ladder: Ladder
    budget: int

    @classmethod
    def of(cls, values: Floats, mask: Mask, wrong: Mask, budget: int) -> _RankedRows:
        rows = np.flatnonzero(mask)
        return cls(rows, wrong[rows], Ladder.of(-values[rows]), min(budget, len(rows)))

    def figures(self, counts: NDArray[np.integer]) -> dict[str, Floats]:
        """AUC, AP, and hits at the budget and at the number of wrong rows as shares of the most there can be [D]."""
        f = found(self.ladder, self.wrong, counts)
        wrongs = int(self.wrong.sum())
        return {
            "auc": f.auc(),
            "average_precision": f.average_precision(),
            "at_budget": f.hits(self.budget) / max(1, min(self.budget, wrongs)),
            "at_wrong": f.hits(wrongs) / max(1, wrongs),
        }

    def at_once(self) -> dict[str, float]:
        """The figures of the rows themselves."""
        ones = np.ones((1, len(self.rows)), np.int64)
        return {name: float(values[0]) for name, values in self.figures(ones).items()}

    def influence(self) -> dict[str, Floats]:
        """Influence values of AUC and AP on these rows [n]."""
        values = influence_of_rows(self.ladder, self.wrong)
        return {"auc": values.auc, "average_precision": values.average_precision}

    @property
    def tellable(self) -> bool:
        """Whether there are rows of both kinds."""
        return bool(self.wrong.any() and not self.wrong.all())


def detect(
    columns: dict[str, Floats], truth: Truth, budget: int, draws: int, seed: int, reference: str | None = None
) -> dict[str, Any]:
    """Figures of every column of scores [n] with intervals, and differences to a reference column with verdicts.

    ``reference`` is by default the column that is best by average precision, the random one aside.  Rows without a
    score are left out of a column's figures, and of both where two columns are compared.

    Raises:
        UsageError: the reference is no column, or there are too few draws.
    """
    if draws < 20:
        raise UsageError(f"{draws} bootstrap draws say nothing of the spread", fix="--draws 1000")
    wrong = truth.wrong[truth.known]
    values = {name: v[truth.known] for name, v in columns.items()}
    usable = {name: np.isfinite(v) for name, v in values.items()}
    views = {(name, name): _RankedRows.of(v, usable[name], wrong, budget) for name, v in values.items()}
    views = {key: view for key, view in views.items() if view.tellable}
    at = {name: view.at_once() for (name, _), view in views.items()}
    chosen = _reference(reference, at, list(columns))
    for name in at:
        if chosen is not None and not np.array_equal(usable[name], usable[chosen]):
            both = usable[name] & usable[chosen]
            pair = {(k, o): _RankedRows.of(values[k], both, wrong, budget) for k, o in ((name, chosen), (chosen, name))}
            views |= {key: view for key, view in pair.items() if view.tellable}
    drawn = _draw(views, wrong, draws, seed)
    found_by: dict[str, Any] = {}
    for name in columns:
        view = views.get((name, name))
        entry: dict[str, Any] = {"rows": int(usable[name].sum()), "wrong": int(wrong[usable[name]].sum())}
        if view is None:
            found_by[name] = {**dict.fromkeys(FIGURES), **entry}
        else:
            ranked = curves(-values[name][view.rows], view.wrong)
            found_by[name] = {**entry, **_figures(view, at[name], drawn[name, name]), "curves": ranked}
    if chosen is not None:
        for name, difference in _differences(views, drawn, chosen, list(at)).items():
            found_by[name]["difference"] = difference
    return {"reference": chosen, "draws": draws, "intervals": INTERVALS, "columns": found_by}


def _reference(asked: str | None, at: dict[str, dict[str, float]], known: list[str]) -> str | None:
    if asked is not None and asked not in at:
        raise UsageError(f"no column {asked!r} to compare with", fix=nearest(asked, known))
    others = [name for name in at if name != RANDOM] or list(at)
    return asked or max(others, key=lambda name: at[name]["average_precision"], default=None)


def _draw(
    views: dict[tuple[str, str], _RankedRows], wrong: Mask, draws: int, seed: int
) -> dict[tuple[str, str], dict[str, Floats]]:
    """Figures [D] of every view on the same draws."""
    parts: dict[tuple[str, str], list[dict[str, Floats]]] = {key: [] for key in views}
    for counts in draws_of(wrong, draws, seed):
        for key, view in views.items():
            whole = len(view.rows) == counts.shape[1]
            parts[key].append(view.figures(counts if whole else counts[:, view.rows]))
    return {key: {n: np.concatenate([p[n] for p in ps]) for n in ps[0]} for key, ps in parts.items()}


def _figures(view: _RankedRows, at: dict[str, float], drawn: dict[str, Floats]) -> dict[str, Any]:
    wrongs, rows = int(view.wrong.sum()), len(view.rows)
    influence = view.influence()
    trials = {"auc": min(wrongs, rows - wrongs), "at_budget": max(1, min(view.budget, wrongs))}
    interval: dict[str, list[float]] = {}
    for name, value in at.items():
        df = degrees_of_freedom(influence[name], view.wrong) if name in influence else float("inf")
        interval[name] = share_interval(value, float(np.nanstd(drawn[name])), df, trials.get(name, wrongs))
    most = min(view.budget, wrongs)
    scales = {"precision_at_budget": (most, view.budget), "recall_at_budget": (most, wrongs)}
    out: dict[str, Any] = {}
    for name, source in SOURCES.items():
        hits, of = scales.get(name, (1, 1))
        out[name] = at[source] * hits / of if of else None
        out[f"{name}_interval"] = [v * hits / of for v in interval[source]] if of else None
    return out


def _differences(
    views: dict[tuple[str, str], _RankedRows],
    drawn: dict[tuple[str, str], dict[str, Floats]],
    reference: str,
    names: list[str],
) -> dict[str, dict[str, Any]]:
    """Of every column but the reference: column minus reference on the rows that both score."""
    out: dict[str, dict[str, Any]] = {}
    for name in names:
        mine, other = (name, reference), (reference, name)
        if mine not in views:
            mine, other = (name, name), (reference, reference)
        if name != reference and other in views:
            out[name] = _difference(views[mine], views[other], drawn[mine], drawn[other])
    for figure in COMPARED:
        adjusted = holm(np.array([d[figure]["p"] for d in out.values()]))
        for d, p in zip(out.values(), adjusted.tolist(), strict=True):
            better = "better" if d[figure]["difference"] > 0 else "worse"
            d[figure] |= {"p_holm": p, "verdict": better if p <= 0.05 else "not resolved"}
    return out


def _difference(mine: _RankedRows, other: _RankedRows, a: dict[str, Floats], b: dict[str, Floats]) -> dict[str, Any]:
    at_a, at_b, influence_a, influence_b = mine.at_once(), other.at_once(), mine.influence(), other.influence()
    wrongs = int(mine.wrong.sum())
    out: dict[str, Any] = {"rows": len(mine.rows)}
    for figure in COMPARED:
        source = SOURCES[figure]
        scale = min(mine.budget, wrongs) / wrongs if source == "at_budget" else 1.0
        d = scale * (at_a[source] - at_b[source])
        se = scale * float(np.nanstd(a[source] - b[source]))
        df = float("inf")
        if source in influence_a:
            df = degrees_of_freedom(influence_a[source] - influence_b[source], mine.wrong)
        half = student(df) * se
        out[figure] = {"difference": d, "interval": [d - half, d + half], "p": two_sided(d, se, df)}
    return out
