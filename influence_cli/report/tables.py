"""The result of ``evaluate`` as tables of text, for a terminal and for a page alike."""

from __future__ import annotations

from typing import Any

from influence_cli.report import duplicates
from influence_cli.report.arm_tables import MEASURES, arm_tables, comparison_table
from influence_cli.report.counterfactual_tables import counterfactual_tables
from influence_cli.report.text_table import Judged, TextTable, bracketed, fixed, number, share, signed

_PAIRED = ("auc", "average_precision")


def tables_of(result: dict[str, Any]) -> list[TextTable]:
    """Every table that a result has something to put in."""
    if "duplicates" in result:
        return duplicates.tables(result["duplicates"])
    made: list[TextTable] = []
    if result.get("detection"):
        title = f"{result['wrong_rows']:,} of {result['known_rows']:,} train labels are wrong"
        made.append(_detection(title, result, "difference in average precision"))
    for entry in result.get("canaries", []):
        made += _canaries(entry)
    if result.get("order", {}).get("pairs"):
        made.append(_order(result["order"]))
    made += _orders_of_tables(result.get("order", {}))
    made += [_at_checkpoint(entry) for entry in result.get("at_checkpoint", [])]
    if "stability" in result:
        made.append(_stability(result["stability"]))
    if "arms" in result:
        return [comparison_table(result), *arm_tables(result)]
    if "comparison" in result:
        made += _comparison(result)
    return made + counterfactual_tables(result)


def _at_checkpoint(entry: dict[str, Any]) -> TextTable:
    """What the users of fairness and robustness look at: a column a measure, a row for target and test rows."""
    names = [n for n in MEASURES if any(n in m for m in entry["rows"].values())]
    header = ["rows", *(MEASURES[n] for n in names)]
    rows = [[f"{m['n']:,} {split}", *(number(m.get(n)) for n in names)] for split, m in entry["rows"].items()]
    groups = "" if entry["group"] is None else f", groups by {entry['group']}"
    notes: list[str] = []
    if "flips" in entry:
        counts = entry["flips"]["changed"].items()
        changed = ", ".join(f"{count:,} of {entry['rows'][split]['n']:,} {split}" for split, count in counts)
        notes = [f"texts that change: {changed} rows ({entry['flips']['source']})"]
    return TextTable(f"The model that was scored, {entry['checkpoint']}{groups}", header, rows, notes)


def _detection(title: str, result: dict[str, Any], difference: str) -> TextTable:
    at_budget = [f"precision at {result['budget_rows']:,}", "recall", f"AP over {result['reference'] or '-'}"]
    rows: list[list[str]] = []
    for name, d in sorted(result["detection"].items(), key=lambda kv: -(kv[1]["average_precision"] or 0.0)):
        auc, ap = (bracketed(d[figure], d.get(f"{figure}_interval")) for figure in _PAIRED)
        rows.append([name, auc, ap, number(d["precision_at_budget"]), number(d["recall_at_budget"]), _verdict(d)])
    notes = [f"{at_budget[-1]}: {difference}, paired, with its verdict; intervals: {result['intervals']}"]
    if result.get("canary_rows"):
        notes.append(f"{result['canary_rows']:,} canaries, whose labels the checkpoint did not learn, are left out")
    return TextTable(title, ["score", "AUC", "average precision", *at_budget], rows, notes, 5)


def _verdict(d: dict[str, Any]) -> str:
    if d.get("difference") is None:
        return "-"
    ap = d["difference"]["average_precision"]
    low, high = map(signed, ap["interval"])
    return Judged(f"{signed(ap['difference'])} [{low}, {high}]", ap["verdict"])


def _canaries(entry: dict[str, Any]) -> list[TextTable]:
    title = f"{entry['canaries']:,} canaries among {entry['rows']:,} rows trained on: wrong labels planted in training"
    table = _detection(title, entry, "difference in average precision from a random ranking")
    best = entry["best_against_random"]
    table.notes.append("no column finds canaries better than chance" if best is None else f"best: {best}")
    if "against_truth" not in entry:
        return [table]
    rate = entry["against_truth"]["wrong_rate"]
    sides = {"canaries": "canaries", "among right rows": "canaries_among_right", "really wrong": "real", "gap": "gap"}
    rows = [
        [name, *((signed if k == "gap" else fixed)(c[figure][k]) for figure in _PAIRED for k in sides.values())]
        for name, c in entry["against_truth"]["columns"].items()
    ]
    header = ["score", *(f"{what}: {side}" for what in ("AUC", "AP") for side in sides)]
    notes = [
        f"average precision (AP) of all three at {share(rate)} to find; the gap is that of canaries less that of rows "
        "that are really wrong, which count against canaries in the first and are left out in the second"
    ]
    return [table, TextTable("canaries beside rows that are really wrong", header, rows, notes)]


def _order(order: dict[str, Any]) -> TextTable:
    names = order["columns"]
    between = {(p["a"], p["b"]): p["spearman"] for p in order["pairs"]}
    rows = [[a, *("1" if a == b else fixed(between.get((a, b), between.get((b, a))), 2) for b in names)] for a in names]
    return TextTable("Spearman's correlation of the columns", ["score", *names], rows)


def _orders_of_tables(order: dict[str, Any]) -> list[TextTable]:
    """Members, halves and angles, where a table knows them."""
    rows: list[list[str]] = []
    for table, members in order.get("members", {}).items():
        rows.append([_of("members agree on the sign of a row", table), fixed(members["sign_agreement"])])
        rows.append([_of("rows on whose sign all members agree", table), fixed(members["unanimous"])])
    for table, halves in order.get("halves", {}).items():
        rows += [[_of(f"two halves of the target, {n}: Spearman", table), fixed(v)] for n, v in halves.items()]
    for table, angles in order.get("angles", {}).items():
        rows += [[_of(f"cosine of q and u, {n}", table), fixed(v["cosine"])] for n, v in angles.items()]
    return [TextTable("agreement within a table", ["what", "value"], rows)] if rows else []


def _of(what: str, table: str) -> str:
    return what if table == "table" else f"{table}: {what}"


def _stability(stability: dict[str, Any]) -> TextTable:
    rows = [
        [n, str(c["tables"]), fixed(c["spearman"]), fixed(c["least_spearman"]), fixed(c["jaccard"])]
        for n, c in stability["columns"].items()
    ]
    header = [
        "score",
        "tables",
        "mean Spearman",
        "least Spearman",
        f"mean Jaccard of the lowest {stability['budget_rows']:,}",
    ]
    return TextTable("agreement between the tables, pair by pair", header, rows)


def _comparison(result: dict[str, Any]) -> list[TextTable]:
    rows: list[list[str]] = []
    for name, c in result["comparison"].items():
        spearman = bracketed(c["spearman"], c["spearman_interval"])
        jaccard = f"{fixed(c['jaccard'])} ({c['overlap']:,} rows)"
        rows.append([name, f"{c['rows']:,}", spearman, fixed(c["kendall"]), jaccard, fixed(c["sign_agreement"])])
    lowest = f"Jaccard of the lowest {result['budget_rows']:,}"
    header = ["score", "rows", "Spearman", "Kendall's tau-b", lowest, "same sign"]
    title = f"{result['rows']:,} rows in {result['a']} and in {result['b']}"
    notes = []
    if "changed" in result:
        notes.append(
            f"{result['only_in_a']:,} rows only in the first, {result['only_in_b']:,} only in the second, "
            f"{result['changed']:,} with another payload or label, {result['canary_rows']:,} canaries"
        )
    if "recompute" in result:
        notes.append(sentence(result))
    made = [TextTable(title, header, rows, notes)]
    for name, c in result["comparison"].items():
        if c["movers"] and "recompute" not in result:
            moved = [
                [m["id"], number(m["score_a"]), number(m["score_b"]), f"{m['rank_a']:,.10g}", f"{m['rank_b']:,.10g}"]
                for m in c["movers"]
            ]
            header = ["id", "first score", "second score", "first rank", "second rank"]
            made.append(TextTable(f"biggest movers by {name}", header, moved))
    return made


def sentence(result: dict[str, Any]) -> str:
    """The sentinel's answer in a sentence."""
    bounds = result["bounds"]
    bad = [name for name, needed in result["recompute_by_column"].items() if needed]
    rule = f"Spearman's lower end at least {bounds['spearman_low']:g}, Jaccard at least {bounds['jaccard']:g}"
    answer = f"full recompute needed: yes ({', '.join(bad)} moved" if bad else "full recompute needed: no ("
    return f"{answer}{'; ' if bad else ''}{rule}; judged on {result['rows']:,} of {result['of_rows']:,} rows)"
