"""R10: what methods cost, with and without the passes that all of them share (Table 6)."""

from __future__ import annotations

import shutil
import statistics
import time
from typing import Any

import numpy as np

from tests.reproduction.commands import Commands
from tests.reproduction.datasets import digits, logistic
from tests.reproduction.page import BLUE, ORANGE, Page, table
from tests.reproduction.parts import Part

TITLE = "what methods cost"
PAPER = "Yang et al., arXiv:2405.17490, Table 6 (ResNet-34; no unit, without gradients, which take 61 + 4 s)"
CAPTION = "Processor seconds by method, with and without the passes that all share."
METHODS = (
    "ip",
    "ip-ensemble",
    "tracin",
    "lissa",
    "ekfac",
    "datainf",
    "self-tracin",
    "self-lissa",
    "source",
    "gex",
    "loss",
)
PAPERS = {
    "ip": ".03", "ip-ensemble": ".03 a member", "tracin": ".03 a checkpoint", "gex": ".03 a member", "lissa": "7.67",
    "ekfac": "22.54", "datainf": "11.50", "self-tracin": ".15", "self-lissa": "14.57", "source": "23.98",
}  # fmt: skip
PROBLEMS = ("digits", "logistic")


def parts(sizes: dict[str, Any]) -> list[Part]:
    """A part a problem; nothing else runs beside them."""
    return [Part("R10", p, measure, {"problem": p, "repeats": sizes["repeats"]}, alone=True) for p in PROBLEMS]


def measure(run: Commands, problem: str, repeats: int) -> dict[str, Any]:
    """Seconds of ``score`` by method: from an empty store, and from one that holds an ``ip`` run's passes."""
    if problem == "digits":
        digits(run.folder / "m.parquet", 0, 0.17)
        recipe = ("--model", "mlp:64,64", "--raw-features", "--epochs", 30, "--lr", 0.1, "--keep-checkpoints", 6)
    else:
        logistic(run.folder / "m.parquet", 0, (5000, 500, 100))
        recipe = ("--model", "linear", "--raw-features", "--epochs", 10, "--keep-checkpoints", 6)
    run("retrain", "m.parquet", *recipe, "-o", "RUN")
    run("score", "m.parquet", "--checkpoint", "RUN", "--method", "ip", "--store", "with-ip", "-o", "s.parquet")
    out: dict[str, Any] = {"problem": problem, "seconds": {}}
    for method in METHODS:
        measured: dict[str, list[float]] = {"all": [], "beyond": [], "all cpu": [], "beyond cpu": []}
        for _ in range(repeats):
            for name, filled in (("all", False), ("beyond", True)):
                shutil.rmtree(run.folder / "timed", ignore_errors=True)
                if filled:
                    shutil.copytree(run.folder / "with-ip", run.folder / "timed")
                began, cpu = time.perf_counter(), time.process_time()
                run(
                    "score",
                    "m.parquet",
                    "--checkpoint",
                    "RUN",
                    "--method",
                    method,
                    "--store",
                    "timed",
                    "-o",
                    "s.parquet",
                )
                measured[name].append(time.perf_counter() - began)
                measured[f"{name} cpu"].append(time.process_time() - cpu)
        out["seconds"][method] = {name: statistics.median(values) for name, values in measured.items()}
    shutil.rmtree(run.folder / "timed", ignore_errors=True)
    return out


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """Seconds and factors, by problem."""
    tables = []
    for f in found.values():
        ip, rows = f["seconds"]["ip"], []
        for m in METHODS:
            s = f["seconds"][m]
            rows.append((f"`{m}`", f"{s['beyond cpu']:.3f}", f"{s['beyond cpu'] / ip['beyond cpu']:.1f}",
                         f"{s['all cpu']:.3f}", f"{s['all cpu'] / ip['all cpu']:.1f}", f"{s['all']:.3f}",
                         PAPERS.get(m, "-")))  # fmt: skip
        tables.append(f"{f['problem'].capitalize()}:\n\n" + table(
            ("method", "beyond the shared passes, processor s", "times `ip`", "all, processor s", "times `ip`",
             "all, by the clock, s", "paper, CIFAR-10N, without gradients"), rows))  # fmt: skip
    parted = "\n\n".join(tables)
    body = f"""
Seconds of `influence score` on one thread, median of {sizes["repeats"]}, in a process that is warm. *All* is from an
empty
store; *beyond the shared passes* from one that holds what a run of `ip` leaves: outputs, the direction q and tangents
along it. For `ip` that is reading the store and writing the table, which every method does. Digits: 1,000 train rows,
`mlp:64,64`; logistic: 5,000 train rows, 10 features.

{parted}

The paper counts no gradients; with them, by its own figures (61 + 4 s), its factors shrink to (65 + t) / 65: 1.12 for
LiSSA and 1.35 for EKFAC.
"""
    return Page(body, lambda figure: draw(figure, found), CAPTION, (9, 3.6))


def draw(figure: Any, found: dict[str, Any]) -> None:
    """Seconds by method on a logarithmic axis."""
    at = np.arange(len(METHODS))
    for axes, f in zip(figure.subplots(1, len(found), sharey=True, squeeze=False)[0], found.values(), strict=True):
        for shift, name, colour in ((0.2, "all cpu", BLUE), (-0.2, "beyond cpu", ORANGE)):
            label = "from an empty store" if name == "all cpu" else "beyond the shared passes"
            axes.barh(at + shift, [f["seconds"][m][name] for m in METHODS], height=0.38, color=colour, label=label)
        axes.set(xscale="log", title=f["problem"], xlabel="processor seconds", yticks=at, yticklabels=METHODS)
    figure.axes[0].invert_yaxis()
    figure.axes[0].legend(fontsize=8)
