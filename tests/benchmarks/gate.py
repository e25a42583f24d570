"""The gate on pull requests of 300 rows: 60 of them labelled wrong, or all of them clean; over seeds.

    python tests/benchmarks/gate.py OUT [--data ../shared/data] [--only bank] [--seeds 10]

Bank with logistic regression and an MLP takes about ten minutes on one core; cifar10n-small (test_resnet, 16 pixels
wide) a few minutes a seed.  For every seed 600 train rows are held back from ``main``; a model is trained on the rest
with calibration rows left out, another one with canaries, and the method that finds the canaries best scores ``main``
and each pull request, which is ``main`` with 300 of the rows.  Writes ``OUT/gate.md``, and
``OUT/*.jsonl`` with the figures of a seed a line; what is there is not run again, so that parts may run side by side
(``--only "bank, mlp"``).
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for what tests share

from tests.cases import Ran, call_cli

ROWS, WRONG, FIRST, RATE, ALLOWED = 300, 60, 75, "1%", "4%"
METHODS = ("loss", "margin", "ip")
SETS: dict[str, dict[str, list[str]]] = {
    "bank": {
        "linear": ["--model", "linear", "--optimizer", "lbfgs"],
        "mlp": ["--model", "mlp:32", "--epochs", "10"],
    },
    "cifar10n-small": {
        "test_resnet": ["--model", "test_resnet", "--epochs", "8", "--augment", "flip-shift"],
    },
}
CLEAN = {"cifar10n-small": "clean_label"}  # where new rows have labels of people, their true ones are taken


def influence(*words: Any, here: Path, codes: Sequence[int] = (0,)) -> Ran:
    """Run a command in this process."""
    ran = call_cli(*words, "--isolated", cwd=here)
    assert ran.code in codes, f"{words}: {ran.code}\n{ran.err}"
    return ran


def pull_requests(table: pa.Table, name: str, seed: int, here: Path) -> dict[str, set[str]]:
    """Write ``main`` and both pull requests; the ids that are labelled wrong in each."""
    rng = np.random.default_rng(seed)
    train = np.flatnonzero(pc.equal(table.column("split"), "train").to_numpy(zero_copy_only=False))
    out = rng.permutation(train)[: 2 * ROWS]
    labels = table.column("label").to_numpy().copy()
    if name in CLEAN:  # people's errors among the new rows would be counted as clean ones
        labels[out] = table.column(CLEAN[name]).to_numpy()[out]
    kept = np.setdiff1d(np.arange(len(table)), out)
    classes = int(labels.max()) + 1
    chosen = rng.choice(out[:ROWS], WRONG, replace=False)
    flipped = labels.copy()
    flipped[chosen] = (labels[chosen] + rng.integers(1, classes, WRONG)) % classes
    for place, given, rows in (
        ("main", labels, kept),
        ("bad", flipped, np.union1d(kept, out[:ROWS])),
        ("clean", labels, np.union1d(kept, out[ROWS:])),
    ):
        made = table.set_column(table.column_names.index("label"), "label", pa.array(given)).take(rows)
        pq.write_table(made, here / f"{place}.parquet")
    return {"bad": set(table.column("id").take(chosen).to_pylist()), "clean": set()}


def chosen_method(training: list[str], seed: int, here: Path) -> str:
    """The method that finds planted labels best."""
    plant = ["--canaries", "5%", "--canaries-from", "RUN", "--seed", seed]
    influence("retrain", "main.parquet", *training, *plant, "-o", "PLANTED", here=here)
    named = [word for method in METHODS for word in ("--method", method)]
    overlap = ["--allow-overlap", "--no-store"]
    influence("score", "main.parquet", "--checkpoint", "PLANTED", *named, *overlap, "-o", "planted.parquet", here=here)
    found = influence("evaluate", "planted.parquet", "--draws", 100, "--format", "json", here=here).json["canaries"][0][
        "detection"
    ]
    best = max(found, key=lambda column: found[column]["average_precision"])
    return next(method for method in METHODS if best.startswith(method))


def one_seed(table: pa.Table, name: str, training: list[str], seed: int, here: Path) -> dict[str, Any]:
    """Figures of one seed."""
    wrong = pull_requests(table, name, seed, here)
    influence(
        *("retrain", "main.parquet", *training, "--calibration", "5%" if name == "bank" else "10%"),
        *("--seed", seed, "-o", "RUN"),
        here=here,
    )
    method = chosen_method(training, seed, here)
    scoring = ["--checkpoint", "RUN", "--method", method, "--allow-overlap", "--store", "memo"]
    influence("score", "main.parquet", *scoring, "-o", "main-scores.parquet", here=here)
    figures: dict[str, Any] = {"seed": seed, "method": method}
    for kind in ("bad", "clean"):
        plan = influence("score", f"{kind}.parquet", *scoring, "-n", "--format", "json", here=here).json
        figures[f"{kind}_computed"] = sum(step["rows_to_compute"] for step in plan["steps"])
        influence("score", f"{kind}.parquet", *scoring, "-o", f"{kind}-scores.parquet", here=here)
        gate = ["--check", "--against", "main.parquet", "--false-flag", RATE, "--max-flagged", ALLOWED]
        ran = influence("curate", f"{kind}-scores.parquet", *gate, "--format", "json", here=here, codes=(0, 1))
        figures |= {f"{kind}_exit": ran.code, f"{kind}_flagged": ran.json["flagged"]}
        figures[f"{kind}_candidates"] = ran.json["candidates"]  # but for copies of rows of main, which are accepted
        figures[f"{kind}_calibration"] = ran.json["rule"]["compared_with"]
        figures[f"{kind}_found"] = sum(r["id"] in wrong[kind] for r in ran.json["rows"])
    known = set(pq.read_table(here / "main.parquet", columns=["id"]).column("id").to_pylist())
    rows = [r for r in pq.read_table(here / "bad-scores.parquet").to_pylist() if r["id"] not in known]
    first = sorted(rows, key=lambda r: (r["score"], r["id"]))[:FIRST]
    figures["found"] = sum(r["id"] in wrong["bad"] for r in first)
    return figures


def rate_said(flagged: int, rows: int) -> str:
    """A share with its 95 % interval (Clopper and Pearson)."""
    found = stats.binomtest(flagged, rows).proportion_ci()
    return f"{flagged}/{rows:,} = {100 * flagged / rows:.2f} % [{100 * found.low:.2f}, {100 * found.high:.2f}]"


def report(results: dict[str, list[dict[str, Any]]]) -> str:
    """The page of results, from what was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    seconds = np.mean([f["seconds"] for found in results.values() for f in found if "seconds" in f])
    lines = [
        "# The gate on pull requests of 300 rows", "", "| what | |", "|---|---|",
        "| command | `python tests/benchmarks/gate.py OUT` |",
        f"| recorded | commit {commit.strip()}, {time.strftime('%Y-%m-%d')} |",
        f"| machine | {platform.machine()}, one thread of two busy cores, {seconds:.0f} s a seed |",
        "| needs | the data sets of `../shared/data`, which are not part of the repository |", "",
        f"A pull request has {ROWS} new rows: in one {WRONG} of them are labelled wrong, in the other none. "
        f"The gate is `--against main.parquet --false-flag {RATE} --max-flagged {ALLOWED}`; the method is the one of "
        f"{', '.join(METHODS)} that finds canaries best. Exits are 1 for tripped, 0 for clean.", "",
    ]  # fmt: skip
    for name, found in results.items():
        wrong, clean = sum(r["bad_exit"] == 1 for r in found), sum(r["clean_exit"] == 0 for r in found)
        least, mean = min(r["found"] for r in found), np.mean([r["found"] for r in found])
        computed = sorted({r[f"{kind}_computed"] for r in found for kind in ("bad", "clean")})
        flagged = rate_said(*(sum(r.get(key, ROWS) for r in found) for key in ("clean_flagged", "clean_candidates")))
        lines += [
            f"## {name}", "",
            f"- tripped on {wrong} of {len(found)} bad pull requests, clean on {clean} of {len(found)} clean ones",
            f"- of the {WRONG} wrong rows, {mean:.1f} on average and {least} at least are among the first {FIRST}",
            f"- clean rows flagged: {flagged}",
            f"- rows computed for a pull request: {', '.join(map(str, computed))}; copies of old rows are not judged",
            "",
            "| seed | method | calibration rows | bad: exit | flagged | of them wrong | wrong in the first 75 "
            "| clean: exit | flagged |", "|---" * 9 + "|",
        ]  # fmt: skip
        lines += [
            f"| {r['seed']} | {r['method']} | {r['bad_calibration']} | {r['bad_exit']} | {r['bad_flagged']} "
            f"| {r['bad_found']} | {r['found']} | {r['clean_exit']} | {r['clean_flagged']} |"
            for r in found
        ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--only", default="", help="data and model begin with this")
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    parts = {f"{name}, {model}": words for name, models in SETS.items() for model, words in models.items()}
    figures = [json.loads(line) for file in sorted(asked.out.glob("*.jsonl")) for line in file.open()]
    for part, training in parts.items():
        name = part.partition(",")[0]
        manifest = asked.data / name / "manifest.parquet"
        if not part.startswith(asked.only) or not manifest.exists():
            print(f"skipped: {part}" if manifest.exists() else f"skipped: no {manifest}")
            continue
        table = pq.read_table(manifest)
        for seed in range(asked.seeds):
            if any((f["part"], f["seed"]) == (part, seed) for f in figures):
                continue
            here = asked.out / f"{part.replace(', ', '-')}-{seed}"
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir()
            started = time.monotonic()
            figures.append({"part": part, **one_seed(table, name, training, seed, here)})
            figures[-1]["seconds"] = round(time.monotonic() - started)
            print(json.dumps(figures[-1]), flush=True)
            with (asked.out / f"{part.replace(', ', '-')}.jsonl").open("a") as handle:
                handle.write(json.dumps(figures[-1]) + "\n")
            shutil.rmtree(here)
    results = {part: sorted((f for f in figures if f["part"] == part), key=lambda f: f["seed"]) for part in parts}
    (asked.out / "gate.md").write_text(report({part: found for part, found in results.items() if found}))


if __name__ == "__main__":
    main()
