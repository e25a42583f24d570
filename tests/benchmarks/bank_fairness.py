"""Edits for fairness and for robustness on bank, over resampled splits: one Markdown table on standard output.

    python tests/benchmarks/bank_fairness.py MANIFEST OUT [SPLITS [GROUP]]

GROUP is the manifest's column with the groups, or a one-hot feature by its name, such as job=blue-collar.
Every split draws train, val and test rows of the manifest's sizes anew.  Scores are of the val rows alone (attacked val
rows for robustness); test rows are seen by the measures and nothing else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import influence_cli
from influence_cli.data.tables import provenance
from influence_cli.maths.arms import mean_interval, paired_difference
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.attacked_arms import FRACTIONS
from influence_cli.stages.retrain.request import EditsRequest, RetrainRequest
from influence_cli.stages.retrain.retrain import retrain

RECIPE = Recipe(optimizer="lbfgs", weight_decay=1e-3)
OBJECTIVES = ("fairness", "robustness")
SHOWN = {
    "accuracy": ("accuracy", True),
    "balanced_accuracy": ("balanced accuracy", True),
    "dp_gap": ("DP gap", False),
    "dp_gap_soft": ("DP gap, soft", False),
    "attacked_static": ("attacked, static", True),
    "attacked_adaptive": ("attacked, adaptive", True),
    "positive_rate": ("predicted positive", True),
}
EDITED = ("trimmed", "relabelled", "reweighted")
OVER = {"fairness": ("accuracy", "dp_gap"), "robustness": ("accuracy", "attacked_static", "attacked_adaptive")}


def grouped(table: pa.Table, group: str) -> pa.Table:
    """The manifest with the groups that are asked for as its column ``group``."""
    if group in table.column_names:
        values = table[group]
    else:
        names = json.loads(table.schema.metadata[b"feature_names"])
        values = pa.array([int(row[names.index(group)] > 0) for row in table["features"].to_pylist()])
    return table.set_column(table.column_names.index("group"), "group", values)


def resampled(table: pa.Table, seed: int, path: Path) -> None:
    """The manifest with its splits drawn again, in their sizes."""
    splits = np.array(table["split"].to_pylist())[np.random.default_rng(seed).permutation(table.num_rows)]
    place = table.column_names.index("split")
    pq.write_table(table.set_column(place, "split", pa.array(splits.tolist())), path)


def one_split(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by arm of one split: no edit, every edit under each objective, and their controls."""
    manifest = str(folder / "bank.parquet")
    run = RetrainRequest(Inputs(manifest, model="linear"), str(folder / "RUN"), device="cpu")
    retrain(run, RECIPE)
    found: dict[str, dict[str, Any]] = {}
    for objective in OBJECTIVES:
        table = influence_cli.score(
            manifest, checkpoint=str(folder / "RUN"), method="exact", objective=objective, precision="fp64",
            store=str(folder / ".influence"), allow_overlap=True,
        )  # fmt: skip
        if objective == "fairness":
            print(f"{folder.name}: {gap_of(table)}", file=sys.stderr, flush=True)
        edits = [(objective, EditsRequest(table, ("5%",), ("trim", "relabel", "reweight")))]
        if objective == "fairness":
            ignore: dict[str, Any] = {"trim": {"parity": "ignore"}}
            edits.append((f"{objective} unstopped", EditsRequest(table, ("5%",), options=ignore)))
        for title, edit in edits:
            asked = RetrainRequest(Inputs(manifest, model="linear"), str(folder / "RUN"), device="cpu", edits=edit)
            for name, arm in retrain(asked, RECIPE)["arms"].items():
                (result,) = arm["seeds"].values()
                called = name if name == "no edit" else name.replace("score", title, 1)
                found[called] = {
                    **result,
                    "controls": arm["controls"],
                    "rows": sum((arm["edits"] or {}).get(e, 0) for e in EDITED),
                }
        print(f"{folder.name}, {objective}: done", file=sys.stderr, flush=True)
    return found


def gap_of(table: pa.Table) -> str:
    """The base model's gap on the val rows, as the scores' provenance has it."""
    (term,) = provenance(table.schema)["noise"]["fairness"]["parts"]["terms"]
    means = ", ".join(f"{name} {group['mean']:.4f} ({group['rows']} rows)" for name, group in term["groups"].items())
    return f"D on val {term['gap']:+.4f}, standard error {term['gap_se']:.4f}; means {means}"


def percent(value: dict[str, Any], sign: bool = False) -> str:
    """'87.45 ± 0.39'."""
    return f"{'+' if sign and value['mean'] >= 0 else ''}{100 * value['mean']:.2f} ± {100 * value['half_width']:.2f}"


def main(source: str, out: str, splits: int, group: str) -> None:
    """Run every split and print the tables."""
    table = grouped(pq.read_table(source), group)
    results = []
    for s in range(splits):
        folder = Path(out) / f"split-{s}"
        folder.mkdir(parents=True, exist_ok=True)
        resampled(table, s, folder / "bank.parquet")
        results.append(one_split(folder))
    names = list(results[0])
    values = {n: {m: np.array([r[n][m] for r in results]) for m in SHOWN} for n in names}
    majority = 100 * (np.array(table["label"].to_pylist()) == 0).mean()
    about = f"the majority class is {majority:.2f} %, groups by {group}"
    print(f"{splits} resampled splits, in %, mean and 95 % t interval; {about}\n")
    print("| arm | rows edited | " + " | ".join(title for title, _ in SHOWN.values()) + " |")
    print("|---" * (len(SHOWN) + 2) + "|")
    for n in names:
        edited = f"{np.mean([r[n]['rows'] for r in results]):,.0f}"
        print(f"| {n} | {edited} | " + " | ".join(percent(mean_interval(values[n][m])) for m in SHOWN) + " |")
    print("\nDifferences, paired over splits:\n\n| edit | measure | over no edit | over its controls |")
    print("|---|---|---|---|")
    for n in (n for n in names if n != "no edit" and results[0][n]["controls"] is None):
        for m in OVER[n.split()[0]]:
            others = [o for o in names if o == "no edit" or o.startswith(f"{n}: ")]
            cells = [difference(values, n, o, m) for o in others]
            print(f"| {n} | {SHOWN[m][0]} | {cells[0]} | {'; '.join(cells[1:])} |")
    print(f"\nAttacked accuracy of no edit less acc - f (2 acc - 1), in points: {identity(results)}")


def difference(values: dict[str, Any], name: str, other: str, measure: str) -> str:
    """An arm's difference from another, with its verdict and, for a control, which it is."""
    d = paired_difference(values[name][measure], values[other][measure], SHOWN[measure][1])
    said = f" ({other.split(': ')[1]})" if ": " in other else ""
    return f"{percent(d, sign=True)} {d['verdict']}{said}"


def identity(results: list[dict[str, dict[str, Any]]]) -> str:
    """How far the undefended model is from what a flip of every attacked prediction would give."""
    shown = []
    for k, f in enumerate(FRACTIONS):
        off = [
            r["no edit"]["attack"]["static"]["accuracy"][k]
            - (r["no edit"]["accuracy"] - f * (2 * r["no edit"]["accuracy"] - 1))
            for r in results
        ]
        shown.append(f"f {f:.0%} {100 * np.mean(off):+.3f}")
    return ", ".join(shown)


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    main(given[0], given[1], int(given.get(2, "5")), given.get(3, "group_married"))
