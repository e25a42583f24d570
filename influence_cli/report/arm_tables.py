"""The arms of a ``retrain`` as tables of text: what each one's users look at, and the Pareto report."""

from __future__ import annotations

from typing import Any

from influence_cli.data.measures import MEASURES as CALLED
from influence_cli.data.measures import chief_of, headline_of
from influence_cli.report.text_table import Judged, TextTable, share
from influence_cli.report.text_table import percent as percent_of

Figures = dict[str, Any]

MEASURES = {  # name in the result -> (what people call it, whether it is a share that is shown in %)
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    **{name: CALLED[name].called for name in ("micro_f1", "macro_f1", "exact_match")},
    "dp_gap": "demographic-parity gap",
    "dp_gap_soft": "demographic-parity gap, soft",
    "eo_gap": "equalised-odds gap",
    "eo_gap_soft": "equalised-odds gap, soft",
    "fair_score": "predictions that flip",
    "fair_score_changed": "predictions that flip, of changed texts",
    "attacked_static": "attacked accuracy, static",
    "attacked_adaptive": "attacked accuracy, adaptive",
    "majority_share": "predicted as the majority class",
    "positive_rate": "predicted positive",
}
ATTACKED = ("attacked_static", "attacked_adaptive")
FLIPS = ("fair_score", "fair_score_changed")
BRIEF = (
    "accuracy",
    "balanced_accuracy",
    "micro_f1",
    "macro_f1",
    "exact_match",
    "dp_gap",
    "eo_gap",
    *FLIPS,
    "attacked_adaptive",
)  # what a terminal has room for


def arm_tables(result: Figures, brief: bool = False) -> list[TextTable]:
    """Every table that a comparison has something to put in; none where only accuracy was measured.

    ``brief`` leaves out what nobody asked for: attacks unless ``--attack`` named one, and all but the chief measures.
    """
    arms, attack = result.get("arms", {}), result.get("attack")
    measured = [m for m in MEASURES if all(m in arm["mean"] for arm in arms.values())]
    if brief:
        asked = bool(attack and result.get("attack_asked"))
        attack = attack if asked else None
        measured = [m for m in measured if m in BRIEF and (asked or m not in ATTACKED)]
    if not arms or set(measured) <= {"accuracy", "balanced_accuracy"}:
        return []
    made = [_measures(result, measured)]
    if attack:
        made.append(_attack(result))
    fronts = {k: v for k, v in result.get("pareto", {}).items() if not brief or (k in measured and k != "eo_gap")}
    return made + [_front(axis, front) for axis, front in fronts.items()]


def comparison_table(metrics: Figures) -> TextTable:
    """Accuracy of every arm, and paired differences with no edit and with its control.

    Where numbers are predicted the error, and differences of the loss.
    """
    shown, chief = headline_of(measured_of(metrics)), chief_of(measured_of(metrics))
    called = CALLED[shown].called
    header = [
        "arm",
        "rows",
        "edited",
        "wrong",
        called,
        "difference" if chief == shown else f"difference of {CALLED[chief].called}",
    ]
    rows = []
    for name, arm in metrics["arms"].items():
        edits = arm["edits"]
        done = [f"{edits[k]:,} {k}" for k in ("trimmed", "relabelled", "reweighted") if edits.get(k)]
        wrong = [edits[k] for k in ("wrong_share_of_trimmed", "wrong_share_of_relabelled") if k in edits]
        edited = [f"{arm['train_rows']:,}", ", ".join(done) or "-", share(wrong[0]) if wrong else "-"]
        mean = arm["mean"].get(shown)
        good = "-" if mean is None else CALLED[shown].interval(mean["mean"], mean["half_width"])
        rows.append([name, *edited, good, _gain(metrics, name, arm, chief)])
    seeds = len(next(iter(metrics["arms"].values()))["seeds"])
    over = f"{metrics['test_rows']:,} test rows, {seeds} seed{'s' if seeds > 1 else ''}"
    how = "paired over seeds"
    if metrics.get("intervals_over", "seeds") != "seeds":
        how = "over test rows, for every seed gives the same model (and over random draws of a control)"
    note = f"difference, {how}: of a curated arm over no edit; in a control's line, of its arm over it"
    notes = [note] if metrics["comparison"] else []
    unit = " in %" if CALLED[shown].share else ""
    return TextTable(f"{over}; {called}{unit}, mean and 95% interval", header, rows, notes, 5)


def measured_of(metrics: Figures) -> set[str]:
    """What the arms of a comparison were measured by."""
    return set(next(iter(metrics["arms"].values()))["mean"]) if metrics["arms"] else set()


def measure(axis: str) -> str:
    """What people call a measure, where it stands alone."""
    return MEASURES[axis]


def percent(value: Figures) -> str:
    """'87.45 ± 0.39' of a mean share with its half-width."""
    return percent_of(value["mean"], value["half_width"])


def difference(value: Figures, measure: str = "accuracy") -> str:
    """'+0.39 ± 0.93 not resolved'."""
    return Judged(signed(value, measure), value["verdict"])


def signed(value: Figures, measure: str) -> str:
    """'+0.39 ± 0.93' of a difference in a measure."""
    return ("+" if value["mean"] >= 0 else "") + CALLED[measure].interval(value["mean"], value["half_width"])


def _measures(result: Figures, measured: list[str]) -> TextTable:
    rows = [[name, *(percent(arm["mean"][m]) for m in measured)] for name, arm in result["arms"].items()]
    notes = [*result.get("cautions", [])]
    if result.get("test_classes"):
        best = f"{share(max(result['test_classes']), 2)} of the test rows"
        notes.insert(0, f"predicting the majority class alone would be right on {best}")
    title = f"what the arms' users look at, on {result['test_rows']:,} test rows, in %, mean and 95% interval"
    return TextTable(title, ["arm", *(MEASURES[m] for m in measured)], rows, notes)


def _attack(result: Figures) -> TextTable:
    attack = result["attack"]
    shares = (f"{who}, {share(part, 0)}" for who in ("static", "adaptive") for part in attack["fractions"])
    rows = []
    for name, arm in result["arms"].items():
        cells = [percent(arm["mean"]["accuracy"])]
        for who in ("static", "adaptive"):
            every = [r["attack"][who]["accuracy"] for r in arm["seeds"].values()]
            cells += [f"{100 * sum(e[k] for e in every) / len(every):.2f}" for k in range(len(attack["fractions"]))]
        rows.append([name, *cells])
    title = f"accuracy in % with a share of the test rows attacked ({attack['kind']}), mean of {attack['draws']} draws"
    note = (
        "static: rows changed against the model without edits; adaptive: against each arm's own; "
        "the same rows are attacked in every arm"
    )
    return TextTable(title, ["arm", "clean", *shares], rows, [note])


def _front(axis: str, front: Figures) -> TextTable:
    rows: list[list[str]] = []
    for name, point in front["points"].items():
        moved, verdict = ["-", "-"], "no edit"
        if point.get("difference") is not None:
            moved, verdict = [difference(point["difference"][k]) for k in ("accuracy", axis)], point["verdict"]
        best = "a control"
        if point["non_dominated"] is not None:
            drawn = point["non_dominated_share"]
            best = ("yes" if point["non_dominated"] else "no") + ("" if drawn is None else f" ({share(drawn, 0)})")
        rows.append([name, *moved, verdict, best])
    name = measure(axis)
    header = ["arm", "accuracy over no edit", f"{name} over no edit", "verdict", "non-dominated"]
    note = (
        f"paired over {front['seeds']} seeds, in %; non-dominated on means, and its share of bootstrap draws over seeds"
    )
    if front.get("same_models"):
        note = "over test rows, for every seed gives the same model; in %; non-dominated on means"
    return TextTable(f"accuracy against {name}", header, rows, [note], 3)


def _gain(metrics: dict[str, Any], name: str, arm: dict[str, Any], chief: str) -> str:
    """A curated arm's difference from no edit; in a control's line, its arm's difference from it."""
    other = "no edit" if arm["controls"] is None else name
    compared = metrics["comparison"].get(arm["controls"] or name, {}).get(other)
    if compared is None:
        return "-"
    every = (c[chief].get("interval_over") for of in metrics["comparison"].values() for c in of.values())
    over = f" (over {compared[chief].get('interval_over')})" if len(set(every)) > 1 else ""
    return Judged(signed(compared[chief], chief), f"{compared[chief]['verdict']}{over}")
