"""The answer of a result in one line: what is best, whether an edit helped, by how much, and how sure that is."""

from __future__ import annotations

from typing import Any

from influence_cli.data.measures import MEASURES as CALLED
from influence_cli.data.measures import chief_of, headline_of
from influence_cli.report.arm_tables import MEASURES, measured_of, signed
from influence_cli.report.counterfactual_tables import by_loss, highest_first
from influence_cli.report.text_table import bracketed, fixed, percent, points, share

Figures = dict[str, Any]
RANDOM = "random"
GAPS = {  # what is measured of test rows -> by the objective that the edits' scores are of
    **{"fairness": "dp_gap", "flip-fairness": "fair_score"},
    **dict.fromkeys(("equal-opportunity", "equalised-odds"), "eo_gap"),
}
SHOWN = 4  # groups that are named


def edited_arms(metrics: Figures) -> list[str]:
    """The arms of a comparison that hold edits, best first: those better than no edit and every control lead."""
    arms, (chief, sign) = metrics["arms"], _chief(metrics)
    return sorted(metrics["comparison"], key=lambda n: (-_standing(metrics, n), -sign * arms[n]["mean"][chief]["mean"]))


def _chief(metrics: Figures) -> tuple[str, float]:
    """The measure that decides between arms, and 1 where more of it is better, else -1."""
    chief = chief_of(measured_of(metrics))
    return chief, 1.0 if CALLED[chief].higher else -1.0


def helped(metrics: Figures, name: str) -> bool:
    """Whether an arm is better in accuracy, or else in loss, than no edit and every one of its controls."""
    chief = chief_of(next(iter(metrics["comparison"][name].values())))
    return all(c[chief]["verdict"] == "better" for c in metrics["comparison"][name].values())


def _standing(metrics: Figures, name: str) -> int:
    """1 where the arm is better than no edit, and one more for every control that it also beats; else 0."""
    found, (chief, _) = metrics["comparison"][name], _chief(metrics)
    if found["no edit"][chief]["verdict"] != "better":
        return 0
    return 1 + sum(c[chief]["verdict"] == "better" for c in found.values())


def answer_of_retrain(metrics: Figures) -> str:
    """Whether the edits helped; of a training alone, how good it is."""
    if not metrics["comparison"]:
        name, arm = next(iter(metrics["arms"].items()))
        if not metrics["test_rows"]:
            return f"trained on {arm['train_rows']:,} rows ({name}); there are no test rows to say how good it is"
        rows = f"{metrics['test_rows']:,} test rows, {arm['train_rows']:,} train rows ({name})"
        return f"test {_how_good(arm['mean'])} on {rows}"
    if gaps := _of_groups(metrics):
        return gaps
    names = edited_arms(metrics)
    name, many = names[0], len(names) > 1
    found = metrics["comparison"][name]
    chief, sign = _chief(metrics)
    over = found["no edit"][chief]
    unit = f"points of {chief}" if CALLED[chief].share else f"of test {CALLED[chief].called}"
    gain = f"{signed(over, chief)} {unit} over no edit"
    controls = {n: c[chief] for n, c in found.items() if n != "no edit"}
    if helped(metrics, name):
        said = f"{name} helped{f', the best of {len(names)} edits' if many else ''}: {gain}"
        if controls:
            closest = min(controls.values(), key=lambda c: sign * c["mean"])
            said += f", {signed(closest, chief)} over its closest random control"
    elif over["verdict"] == "better":
        closest = min((c for c in controls.values() if c["verdict"] != "better"), key=lambda c: sign * c["mean"])
        said = (
            f"{name} is no better than random edits of its size: {gain}, but {signed(closest, chief)} over its control"
        )
    elif over["verdict"] == "worse":
        said = f"{'every edit hurt: the least, ' if many else ''}{name}{'' if many else ' hurt'}: {gain}"
    else:
        which = f"none of {len(names)} edits is shown to help; the best, {name}" if many else f"{name} is not resolved"
        said = f"{which}: {gain} ({over['verdict']})"
    gap = found["no edit"].get("dp_gap")
    if gap is not None and gap["verdict"] in ("better", "worse"):
        said += f"; {_gap_called(metrics, 'dp_gap')} {_points(gap)} points ({gap['verdict']})"
    return f"{said}; 95% intervals over {_over(metrics, [over, *controls.values()])}"


def _how_good(mean: Figures) -> str:
    """'accuracy 87.45 ± 0.39%', or 'RMSE 54.12, R2 0.4712' where numbers are predicted."""
    shown = [headline_of(mean), *(name for name in ("r2", "perplexity") if name in mean)]
    texts = [f"{CALLED[n].called} {CALLED[n].interval(mean[n]['mean'], mean[n]['half_width'])}" for n in shown]
    return ", ".join(text + "%" * CALLED[n].share for n, text in zip(shown, texts, strict=True))


def _of_groups(metrics: Figures) -> str | None:
    """What edits by scores about groups did to the gap that the objective is about; None for other edits."""
    arms, found = metrics["arms"], metrics["comparison"]
    gaps = {name: GAPS.get(arms[name]["edits"].get("objective")) for name in found}
    if not all(gap is not None and gap in found[name]["no edit"] for name, gap in gaps.items()):
        return None
    name = min(found, key=lambda n: arms[n]["mean"][gaps[n]]["mean"])
    gap, controls = str(gaps[name]), {n: c for n, c in found[name].items() if n != "no edit"}
    over, accuracy = found[name]["no edit"][gap], found[name]["no edit"]["accuracy"]
    was, now = (100 * arms[n]["mean"][gap]["mean"] for n in ("no edit", name))
    better, worse = ("lowered", "raised") if gap == "fair_score" else ("narrowed", "widened")
    did = {"better": better, "worse": worse}.get(over["verdict"], "is not shown to change")
    which = f"of {len(found)} edits {name}" if len(found) > 1 else name
    said = f"{which} {did} {_gap_called(metrics, gap)}: {was:.2f} to {now:.2f} points, {_points(over)} over no edit"
    said += f" ({over['verdict']})"
    if controls:
        closest = max((c[gap] for c in controls.values()), key=lambda c: c["mean"])
        said += f", {_points(closest)} over its closest random control ({closest['verdict']})"
    said += f"; accuracy {_points(accuracy)} points ({accuracy['verdict']})"
    return f"{said}; 95% intervals over {_over(metrics, [over, *(c[gap] for c in controls.values())])}"


def _gap_called(metrics: Figures, gap: str) -> str:
    """A gap by its groups' names: "the demographic-parity gap between f and m (column sex)"."""
    if gap == "fair_score":
        return "the share of predictions that flip with changed texts"
    groups = metrics.get("groups") or {"column": "group", "names": []}
    between = f" between {' and '.join(groups['names'])}" if 1 < len(groups["names"]) <= SHOWN else ""
    return f"the {MEASURES[gap]}{between} (column {groups['column']})"


def _over(metrics: Figures, differences: list[Figures]) -> str:
    units = {d.get("interval_over", "seeds") for d in differences}
    seeds = len(next(iter(metrics["arms"].values()))["seeds"])
    if units == {"seeds"}:
        return f"{seeds} seed{'s' if seeds > 1 else ''}"
    rows = f"{metrics['test_rows']:,} test rows"
    return f"{rows} and random draws of the controls" if "test rows and random draws" in units else rows


def _points(d: Figures) -> str:
    return points(d["mean"], d["half_width"])


def answer_of_evaluate(result: Figures) -> str | None:
    """What a result of ``evaluate`` says, whichever question was asked; None where it says nothing."""
    if "recompute" in result:
        from influence_cli.report.tables import sentence

        return sentence(result)
    if "refit" in result:
        parts = {"lds": _lds, "removal": _removal, "leave_one_out": _leave_one_out, "brittleness": _brittleness}
        said = [text for part, say in parts.items() if part in result and (text := say(result[part]))]
        return "; ".join(said) or None
    if "comparison" in result:
        return _against(result)
    said = [text for entry in result.get("at_checkpoint", []) for text in _gaps_of_model(entry)]
    said += [_detection("wrong labels", result)] if result.get("detection") else []
    said += [_detection("canaries", entry) for entry in result.get("canaries", [])]
    if "stability" in result:
        said += _stability(result["stability"])
    return "; ".join(filter(None, said)) or _order(result)


def _gaps_of_model(entry: Figures) -> list[str]:
    """The gaps that a table's objectives are about, of the model that was scored."""
    said: list[str] = []
    for gap in dict.fromkeys(GAPS[o] for o in entry["objectives"] if o in GAPS):
        known = [(split, rows) for split, rows in entry["rows"].items() if gap in rows]
        sizes = ", ".join(
            f"{percent(rows[gap], None)} points on {rows['n']:,} {split} rows (accuracy {share(rows['accuracy'], 2)})"
            for split, rows in known
        )
        if known:
            said.append(f"of the model that was scored {_gap_called(entry, gap)} is {sizes}")
    return said


def best_column(result: Figures) -> str | None:
    """The column that finds the most wrong rows, if any is better than a random one."""
    columns = result["detection"]
    known = {n: d for n, d in columns.items() if d["average_precision"] is not None and n != RANDOM}
    best = max(known, key=lambda n: known[n]["average_precision"], default=None)
    if best is None or not _beats_random(result, best):
        return None
    return best


def _beats_random(result: Figures, name: str) -> bool:
    """By the paired difference where one side of it is the reference; else by the figures themselves."""
    columns, reference = result["detection"], result["reference"]
    if RANDOM not in columns or columns[RANDOM]["average_precision"] is None:
        return True
    if name == reference and columns[RANDOM].get("difference"):
        return columns[RANDOM]["difference"]["average_precision"]["verdict"] == "worse"
    if reference == RANDOM and columns[name].get("difference"):
        return columns[name]["difference"]["average_precision"]["verdict"] == "better"
    return columns[name]["average_precision_interval"][0] > columns[RANDOM]["average_precision"]


def _detection(what: str, result: Figures) -> str:
    best = best_column(result)
    if best is None:
        return f"no column finds {what} better than chance"
    d = result["detection"][best]
    precision = bracketed(d["average_precision"], d["average_precision_interval"])
    text = f"{best} finds {what} best: average precision {precision}"
    if d["precision_at_budget"] is not None:
        text += f", {share(d['precision_at_budget'])} of the lowest {result['budget_rows']:,} rows are {_called(what)}"
    if best != result["reference"]:
        return text
    near = [
        name
        for name, other in result["detection"].items()
        if (other.get("difference") or {}).get("average_precision", {}).get("verdict") == "not resolved"
    ]
    return text + (f"; not told apart from {', '.join(near)}" if near else "")


def _called(what: str) -> str:
    return "wrong" if what == "wrong labels" else what


def _order(result: Figures) -> str | None:
    pairs = [p for p in result.get("order", {}).get("pairs", []) if p["spearman"] is not None]
    if not pairs:
        return None
    least = min(pairs, key=lambda p: p["spearman"])
    text = f"the columns that agree least are {least['a']} and {least['b']}: Spearman {fixed(least['spearman'])}"
    return f"which column finds wrong labels is not known; {text}"


def _stability(stability: Figures) -> list[str]:
    known = {n: c for n, c in stability["columns"].items() if c["spearman"] is not None}
    if not known:
        return []
    least = min(known, key=lambda n: known[n]["spearman"])
    c = known[least]
    return [
        f"{least} agrees least between {c['tables']} tables: mean Spearman {fixed(c['spearman'])}, "
        f"mean Jaccard of the lowest {stability['budget_rows']:,} rows {fixed(c['jaccard'])}"
    ]


def _against(result: Figures) -> str | None:
    known = {n: c for n, c in result["comparison"].items() if c["spearman"] is not None}
    if not known:
        return None
    least = min(known, key=lambda n: known[n]["spearman"])
    c = known[least]
    which = "the column that changed most, " if len(known) > 1 else ""
    return (
        f"{which}{least}: Spearman {bracketed(c['spearman'], c['spearman_interval'])}, "
        f"{c['overlap']:,} of the lowest {result['budget_rows']:,} rows are the same"
    )


def best_foretelling(result: Figures) -> str | None:
    """The column that foretells retraining best, by the first part that says."""
    for part, figure in (("lds", "lds"), ("leave_one_out", "spearman")):
        columns = result.get(part, {}).get("columns", {})
        if ordered := [n for n in highest_first(columns, figure) if columns[n][figure] is not None]:
            return ordered[0]
    return next(iter(by_loss(result["removal"])), None) if "removal" in result else None


def _lds(part: Figures) -> str | None:
    ordered = [n for n in highest_first(part["columns"], "lds") if part["columns"][n]["lds"] is not None]
    if not ordered:
        return None
    c = part["columns"][ordered[0]]
    if ordered[0] == RANDOM or (c["interval"] is not None and c["interval"][0] <= 0.0):
        return f"no column is shown to foretell retraining: the highest LDS, of {ordered[0]}, is {_lds_of(c)}"
    return f"{ordered[0]} foretells retraining best: LDS {_lds_of(c)}"


def _lds_of(column: Figures) -> str:
    return bracketed(column["lds"], column["interval"])


def _removal(part: Figures) -> str | None:
    ordered = by_loss(part)
    sizes = [k for k in map(str, part["removed_rows"]) if ordered and k in part["columns"][ordered[0]]]
    if not sizes:
        return None
    name, k = ordered[0], sizes[-1]
    over = part["columns"][name][k]["over_random"]
    if over is None:
        return None
    d = over["target_loss"]
    half = "" if d["half_width"] is None else f" ± {d['half_width']:.2g}"
    loss = f"the target loss is {d['mean']:+.2g}{half} over random ones ({d['verdict']})"
    return f"without the lowest {int(k):,} rows by {name} {loss}"


def _leave_one_out(part: Figures) -> str | None:
    ordered = [n for n in highest_first(part["columns"], "spearman") if part["columns"][n]["spearman"] is not None]
    if not ordered:
        return None
    c = part["columns"][ordered[0]]
    rows = f"{part['rows']:,} rows left out one at a time"
    spearman = bracketed(c["spearman"], c["intervals"]["spearman"])
    return f"{ordered[0]} foretells best what {rows} change: Spearman {spearman}"


def _brittleness(part: Figures) -> str | None:
    known = {n: c for n, c in part["columns"].items() if c["margin_drop"] is not None and n != RANDOM}
    if not known:
        return None
    name = max(known, key=lambda n: known[n]["margin_drop"]["mean"])
    sizes = part["removed_rows"]
    flipped = f"{share(known[name]['flipped'][str(sizes[-1])], 0)} of {part['queries']} predictions flip"
    return f"without its {sizes[-1]:,} most helpful rows by {name}, {flipped}"
