"""What Phi is made of, for people and provenance: group means, gaps with standard errors, accuracy under attack."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import Names, class_called, class_name

if TYPE_CHECKING:
    from influence_cli.stages.run.run import Run

DRAWS = 200  # bootstrap draws of target rows, within each cell

Floats = NDArray[np.float64]


def group_parts(run: Run, name: str, values: Floats) -> dict[str, Any]:
    """Of an objective about groups: every term's rows and mean by group, its gap D, and D's bootstrap standard error.

    D of two groups is the second's mean less the first's (``eo-loss``: the first's less the second's), of more the
    mean absolute difference over pairs.  Parity is where |D| of every term is below tau.
    """
    assert run.model is not None
    objective, groups, labels = run.objectives[name], run.groups[name], run.target.labels
    terms: list[dict[str, Any]] = []
    for k, term in enumerate(objective.terms(run.model.num_classes)):
        cells = [np.isin(labels, term.labels) & (groups.index == g) for g in range(len(groups.names))]
        given = [values[cell, term.column] for cell in cells]
        drawn = [_bootstrap(v, run.spec.seed, (k, g)) for g, v in enumerate(given)]
        gaps = np.array([_gap([float(d[b]) for d in drawn]) for b in range(DRAWS)])
        found = {n: {"rows": len(v), "mean": float(v.mean())} for n, v in zip(groups.names, given, strict=True)}
        gap = objective.sign * _gap([float(v.mean()) for v in given])
        terms.append({"term": term.name, "gap": gap, "gap_se": float(gaps.std(ddof=1)), "groups": found})
    at_parity = all(abs(t["gap"]) < objective.tau for t in terms)
    return {"column": groups.column, "terms": terms, "tau": objective.tau, "at_parity": at_parity}


def pair_parts(run: Run, name: str, flips: int) -> dict[str, Any]:
    """Of an objective about pairs: rows, those whose text changes, and those whose prediction flips."""
    changed = run.changed[name]
    return {"pairs": {"rows": len(run.target), "changed": len(changed), "flips": flips, "source": changed.source}}


def _bootstrap(values: Floats, seed: int, place: tuple[int, int]) -> Floats:
    """The means of draws of as many values, with replacement [DRAWS]."""
    generator, m = np.random.default_rng([seed, *place]), len(values)
    return np.array([values[generator.integers(0, m, m)].mean() for _ in range(DRAWS)])


def _gap(means: list[float]) -> float:
    """The second mean less the first; of more than two the mean absolute difference over pairs."""
    if len(means) == 2:
        return means[1] - means[0]
    return float(np.mean([abs(a - b) for a, b in itertools.combinations(means, 2)]))


def with_class_names(parts: dict[str, Any], classes: Names | None) -> dict[str, Any]:
    """The parts with names of classes in place of their numbers; the store, which knows no names, keeps numbers.

    >>> with_class_names({"terms": [{"term": "class 1, label not 1", "gap": 0.5}]}, ("cat", "dog"))
    {'terms': [{'term': 'class dog, label not dog', 'gap': 0.5}]}
    """
    if not classes or "terms" not in parts:
        return parts

    def named(found: re.Match[str]) -> str:
        label = int(found[2])
        return class_called(classes, label) if found[1] == "class" else f"{found[1]} {class_name(classes, label)}"

    terms = [{**t, "term": re.sub(r"\b(class|label|label not) (\d+)\b", named, t["term"])} for t in parts["terms"]]
    return {**parts, "terms": terms}


def parts_lines(name: str, parts: dict[str, Any]) -> list[str]:
    """What to say of an objective's parts, the terms with the largest gaps first where there are many."""
    if "attack" in parts:
        how = parts["attack"]
        strength = f"kappa {how['kappa']:g}" if "kappa" in how else f"eps {how['eps']:.4g}"
        strength += f" of {how['changes']}" if "changes" in how else ""
        known = parts["attacked_accuracy"]  # none where numbers are predicted
        accuracy = "" if known is None else f": target accuracy under attack {known:.1%}"
        return [f"  {how['attack']} attack, {strength}{accuracy}"]
    if "pairs" in parts:
        return [_pairs_line(parts["pairs"])]
    terms = sorted(parts["terms"], key=lambda t: -abs(t["gap"])) if len(parts["terms"]) > 2 else parts["terms"]
    lines: list[str] = []
    for t in terms[:3]:
        groups = list(t["groups"].items())
        means = ", ".join(f"{g} {v['mean']:.4g} ({v['rows']:,} rows)" for g, v in groups[:6])
        more = "" if len(groups) <= 6 else f" and {len(groups) - 6} more groups"
        gap = f"D {t['gap']:.4g}, standard error {t['gap_se']:.2g}"
        lines.append(f"  {t['term']}: {gap}; mean by {parts['column']}: {means}{more}")
    if len(terms) > 3:
        lines.append(f"  and {len(terms) - 3} more terms with smaller gaps: see provenance")
    return lines


def _pairs_line(pairs: dict[str, Any]) -> str:
    """How often predictions flip with the texts: of all rows (the fair score), and of those that change."""
    rows, changed, flips = (pairs[name] for name in ("rows", "changed", "flips"))
    of_changed = f", {flips / changed:.2%} of the {changed:,} whose text changes" if changed else ": no text changes"
    return f"  predictions flip in {flips / rows:.2%} of {rows:,} target rows{of_changed} ({pairs['source']})"


def undecided(entry: dict[str, Any]) -> bool:
    """Whether an objective about groups is at parity, or every D is below its own standard error: its sign is chance.

    The direction may be clear all the same: it says which rows move the gap, not whether it should grow or shrink.
    """
    parts = entry.get("parts") or {}
    terms = parts.get("terms") or []
    return bool(terms) and (parts["at_parity"] or all(abs(t["gap"]) < t["gap_se"] for t in terms))


def parity_warnings(noise: dict[str, dict[str, Any]]) -> list[str]:
    """A line for every objective that is at parity already, or no further from it than sampling allows."""
    out: list[str] = []
    for name, entry in noise.items():
        if undecided(entry) and entry["parts"]["at_parity"]:
            out.append(f"{name} is already at parity (|D| < tau = {entry['parts']['tau']:g}): its scores mean nothing")
        elif undecided(entry):
            out.append(f"{name}: D is below its standard error: these target rows do not tell which group is ahead")
    return out
