"""Do canaries foretell what a cut finds?  Recall, the share of fine rows and bins, as canaries say and as they are.

Labels of the digits and of bank are flipped anew for every seed (10 % of the train rows), 5 % are canaries; CIFAR-10N
has its human labels and one seed.

    python tests/benchmarks/canary_cut.py OUT [--data ../shared/data] [--seeds 5] [--only digits,bank,cifar10n]

writes results/canary_cut.md beside this file.  A few minutes for digits and bank on one core, ten more for CIFAR-10N.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence_cli.cli.main import run
from influence_cli.maths.canary_cut import cut_for_fine, cut_for_recall
from influence_cli.settings import Runtime
from influence_cli.stages.curate.bins import ABSTAIN, ACT, KEEP, REVIEW
from influence_cli.stages.curate.curate import curate
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.evaluate.canary_cut import measure, with_canaries

HERE = Path(__file__).resolve().parent
CUTS = (0.05, 0.1, 0.2)
RECALLS, SHARES = (0.5, 0.8), (0.1, 0.2, 0.3)
REVIEWS = 100


@dataclass(frozen=True)
class Setting:
    """A data set, what is trained on it, and by what it is scored."""

    manifest: str
    clean: str  # column of the clean labels
    train: tuple[str, ...]
    methods: tuple[str, ...]
    flipped: float = 0.1


SETTINGS = {
    "digits": Setting(
        "digits-noisy", "clean_label", ("--model", "mlp:128", "--epochs", "60"), ("ip", "ip-ensemble", "loss")
    ),
    "bank": Setting(
        "bank",
        "label",
        ("--model", "linear", "--optimizer", "lbfgs", "--weight-decay", "1e-3"),
        ("ip", "exact", "loss"),
    ),
    "bank-mlp": Setting("bank", "label", ("--model", "mlp:64", "--epochs", "10"), ("ip", "ip-ensemble", "loss")),
    "cifar10n": Setting(
        "cifar10n-small",
        "clean_label",
        ("--model", "resnet18", "--epochs", "12", "--augment", "flip-shift"),
        ("ip", "ip-ensemble", "loss"),
        0.0,
    ),
}


@dataclass
class Rows:
    """Lines of the three tables, by seed."""

    recall: list[dict[str, Any]] = field(default_factory=list)
    cuts: list[dict[str, Any]] = field(default_factory=list)
    bins: list[dict[str, Any]] = field(default_factory=list)


def influence(*words: Any) -> None:
    """One command, which has to succeed."""
    code = run([*map(str, words), "--isolated", "-q"])
    if code:
        raise SystemExit(f"influence {' '.join(map(str, words))}: exit code {code}")


def prepare(name: str, data: Path, seed: int) -> None:
    """The manifest m, its run with canaries and its score table s, in the working folder."""
    setting = SETTINGS[name]
    table = pq.read_table(data / setting.manifest / "manifest.parquet")
    clean = table.column(setting.clean).to_numpy()
    if setting.flipped:
        rng, labels = np.random.default_rng(seed), clean.copy()
        train = np.flatnonzero(np.array(table.column("split").to_pylist()) == "train")
        wrong = rng.choice(train, int(setting.flipped * len(train)), replace=False)
        classes = int(clean.max()) + 1
        labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
        table = table.set_column(table.column_names.index("label"), "label", pa.array(labels))
    if "clean_label" not in table.column_names:
        table = table.append_column("clean_label", pa.array(clean))
    pq.write_table(table, "m.parquet")
    influence("retrain", "m.parquet", *setting.train, "--seed", seed, "--canaries", "5%", "-o", "RUN")
    methods = [word for method in setting.methods for word in ("--method", method)]
    each = ["--per-member"] if "ip-ensemble" in setting.methods else []
    influence("score", "m.parquet", "--checkpoint", "RUN", *methods, *each, "-o", "s.parquet")


def of_seed(name: str, seed: int, out: Rows) -> None:
    """What canaries say at one seed, beside the truth."""
    told_by = measure(CurateRequest("s.parquet"), Runtime(".influence"))
    train = told_by.scores.train
    clean = train.manifest.table.column("clean_label").take(pa.array(train.index)).to_numpy()
    others = ~told_by.canary_rows
    wrong = (train.labels != clean)[others]
    for column in told_by.own:
        if column.rsplit("_", 1)[-1].isdigit():
            continue
        told, score = told_by.told[column], told_by.own[column][others]
        for share in CUTS:
            at = np.sort(score)[int(share * len(score)) - 1]
            said, low, high = told.recall(at)
            real = float((score <= at)[wrong].mean())
            plain = float(told.column.found(at)) / len(told.column.canaries)
            out.recall.append(
                {"set": name, "column": column, "cut": share, "plain": plain, "said": said, "real": real}
                | {"inside": low <= real <= high}
            )
        for what, asked in (*(("recall", r) for r in RECALLS), *(("fine", f) for f in SHARES)):
            found = cut_for_recall(told, asked) if what == "recall" else cut_for_fine(told, asked)
            line: dict[str, Any] = {"set": name, "column": column, "what": what, "asked": asked, "rows": 0}
            if found is not None:
                here = score <= found
                line |= {
                    "rows": int(here.sum()),
                    "got": float(here[wrong].mean() if what == "recall" else (~wrong[here]).mean()),
                }
            out.cuts.append({**line, "wrong_said": told.wrong_rows, "wrong": int(wrong.sum())})
        if seed == 0:
            bins_of(name, column, told_by, wrong, out)


def bins_of(name: str, column: str, told_by: Any, wrong: np.ndarray, out: Rows) -> None:
    """The share of wrong labels in each bin at a budget of 10 %, and what reviewing some rows finds."""
    request = CurateRequest("s.parquet", by=(column,), budget="10%", bins="bins", review_budget=str(REVIEWS))
    others, ways = ~told_by.canary_rows, {"canaries": request.asks_canaries}
    ways = {"canaries": True, **({"members": False} if "ensemble" in column else {})}
    for way, asks in ways.items():
        found = curate(with_canaries(request, Runtime(".influence")) if asks else request)
        assert found.bins is not None
        names, place, score = found.bins.names[others], found.bins.place[others], told_by.own[column][others]
        act, order = names == ACT, np.argsort(score, kind="stable")
        left = order[~act[order]]
        line: dict[str, Any] = {"set": name, "column": column, "way": way}
        for bin_name in (ACT, REVIEW, ABSTAIN, KEEP):
            line[bin_name] = (int((names == bin_name).sum()), int(wrong[names == bin_name].sum()))
        line |= {
            "by value": int(wrong[place > 0].sum()),
            "lowest left": int(wrong[left[: int((place > 0).sum())]].sum()),
            "lowest": int(wrong[order[:REVIEWS]].sum()),
        }
        out.bins.append(line)


def table(header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines)) + "\n"


def groups(lines: list[dict[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The lines by the values of some keys, in their order."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault(tuple(line[k] for k in keys), []).append(line)
    return found


def text_of(out: Rows, command: str, seconds: float) -> str:
    """The page of results."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    recall, cuts, bins = list[list[str]](), list[list[str]](), list[list[str]]()
    for (name, column, cut), of in groups(out.recall, "set", "column", "cut").items():
        gaps = [100 * (line["said"] - line["real"]) for line in of]
        plain = np.mean([100 * (line["plain"] - line["real"]) for line in of])
        said, real = (f"{100 * np.mean([line[k] for line in of]):.1f}" for k in ("said", "real"))
        inside = sum(line["inside"] for line in of)
        by_seed = ", ".join(f"{gap:+.0f}" for gap in gaps)
        recall.append(
            [
                name,
                column,
                f"{cut:.0%}",
                said,
                real,
                f"{np.mean(gaps):+.1f}",
                by_seed,
                f"{plain:+.1f}",
                f"{inside}/{len(of)}",
            ]
        )
    for (name, column, what, asked), of in groups(out.cuts, "set", "column", "what", "asked").items():
        got = [line["got"] for line in of if "got" in line]
        shown = f"{np.mean(got):.2f} ({min(got):.2f} to {max(got):.2f})" if got else "-"
        rows, said, real = (f"{np.mean([line[k] for line in of]):,.0f}" for k in ("rows", "wrong_said", "wrong"))
        cuts.append([name, column, f"{what} {asked:g}", shown, f"{len(of) - len(got)}/{len(of)}", rows, said, real])
    for (name, column, way), of in groups(out.bins, "set", "column", "way").items():
        cells = []
        for bin_name in (ACT, REVIEW, ABSTAIN, KEEP):
            rows, wrong = (sum(line[bin_name][k] for line in of) for k in (0, 1))
            cells.append(f"{wrong / rows:.1%} of {rows / len(of):,.0f}" if rows else "-")
        found = [f"{np.mean([line[k] for line in of]):,.1f}" for k in ("by value", "lowest left", "lowest")]
        bins.append([name, column, way, *cells, *found])
    return f"""# The cut from canaries, and bins

| what | |
|---|---|
| command | `{command}` |
| recorded | commit {head}, {datetime.date.today()} |
| machine | {seconds / 60:.0f} minutes on one core of two that others used too; the processor is not recorded |
| needs | digits-noisy, bank and cifar10n-small of the shared data, which are not part of the repository |

10 % of the train labels of digits and bank are flipped uniformly, anew for every seed, and 5 % of the rows are canaries
with uniform labels.  CIFAR-10N has the labels that people gave, 39 % wrong, and one seed.  No figure counts canaries.

## Recall at three cuts

In percent: what canaries say (`said`), what is (`real`), and said less real, on average and by seed.  `plain` is the
same gap without the correction for canaries planted on rows that were wrong already
(`influence_cli/maths/canary_cut.py`).  `inside`: seeds at which the real recall is within the 95 % interval.

{table(["data", "column", "cut", "said", "real", "gap", "by seed", "plain gap", "inside"], recall)}
## `--target-recall` and `--max-false`

What is reached on average (least to most), at how many seeds the request was refused, how many rows were cut, and how
many wrong labels canaries expect and there are.

{table(["data", "column", "asked", "got", "refused", "rows", "wrong, said", "wrong, real"], cuts)}
## Bins at a budget of 10 %, first seed

The share of wrong labels in each bin, and its rows; then the wrong labels among {REVIEWS} rows reviewed: those of most
value that are not acted on, the lowest of these, and the lowest of all rows (which are rows to act on too).

{table(["data", "column", "by", "act", "review", "abstain", "keep", "by value", "lowest left", "lowest"], bins)}"""


def main() -> None:
    """Run what is asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default=",".join(SETTINGS))
    asked = parser.parse_args()
    sys.path[0] = str(HERE.parents[1])  # beside this file stand modules with names that others import
    out, started = Rows(), time.monotonic()
    data = asked.data.resolve()
    command = f"python tests/benchmarks/canary_cut.py OUT --seeds {asked.seeds} --only {asked.only}"
    for name in asked.only.split(","):
        if not (data / SETTINGS[name].manifest / "manifest.parquet").is_file():
            print(f"skipped: no {SETTINGS[name].manifest} in {asked.data}", file=sys.stderr)
            continue
        for seed in range(asked.seeds if SETTINGS[name].flipped else 1):
            place = (asked.out / f"{name}-{seed}").resolve()
            place.mkdir(parents=True, exist_ok=True)
            os.chdir(place)
            if not Path("s.parquet").exists():
                prepare(name, data, seed)
            of_seed(name, seed, out)
            (HERE / "results" / "canary_cut.md").write_text(text_of(out, command, time.monotonic() - started))
            print(f"{name} {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
