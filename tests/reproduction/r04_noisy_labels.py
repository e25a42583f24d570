"""R4: trims by every method on digits with wrong labels (Table 1, reduced), with loss and random rows beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.reproduction.commands import Commands, words
from tests.reproduction.datasets import digits
from tests.reproduction.page import BLUE, GREY, ORANGE, Page, edits_table, mean, table
from tests.reproduction.parts import Part

TITLE = "trims by every method, under 9, 17 and 40 % wrong labels"
PAPER = "Yang et al., arXiv:2405.17490, Table 1 (ResNet-34 on CIFAR-10N; here an MLP on digits)"
CAPTION = "AUC of wrong labels by method, mean over seeds; in orange what the paper's table has no line for."
RECIPE = ("--model", "mlp:64,64", "--raw-features", "--epochs", 30, "--lr", 0.1, "--keep-checkpoints", 6)
SIGNED = ("ip", "ip-ensemble", "tracin", "source", "lissa", "ekfac", "datainf", "gex")
RANKING = ("self-tracin", "self-lissa", "loss", "margin", "aum", "random")
PAPERS = {  # accuracy on CIFAR-10N a, r, w
    "no edit": "91.62 / 90.25 / 85.66", "lissa": "92.13 / 90.98 / 85.97", "tracin": "90.48 / 88.09 / 85.18",
    "ekfac": "91.76 / 90.47 / 83.25", "datainf": "91.88 / 90.79 / 86.22", "self-tracin": "92.03 / 90.43 / 86.00",
    "self-lissa": "91.91 / 90.66 / 85.73", "source": "91.95 / 89.87 / 84.02", "gex": "91.81 / 90.68 / 85.64",
    "ip": "92.42 / 90.82 / 86.31", "ip-ensemble": "92.26 / 91.28 / 86.50",
}  # fmt: skip


def column(method: str) -> str:
    """The column of a method in a table with one objective, without 'score_'."""
    return f"{method}_utility" if method in SIGNED else method


def parts(sizes: dict[str, Any]) -> list[Part]:
    """A part for every share of wrong labels and seed."""
    return [
        Part("R4", f"noise {n}%, seed {s}", measure, {"noise": n, "seed": s})
        for s in range(sizes["seeds"])
        for n in sizes["noise"]
    ]


def measure(run: Commands, noise: int, seed: int) -> dict[str, Any]:
    """A model trained and scored, and trained again without the lowest 5 % and without as many as are wrong."""
    digits(run.folder / "m.parquet", seed, noise / 100)
    recipe = (*RECIPE, "--seed", seed)
    run("retrain", "m.parquet", *recipe, "--record", "epochs", "-o", "RUN")
    methods = (*SIGNED, *RANKING)
    scores = run.scores("m.parquet", "--checkpoint", "RUN", *words("--method", methods), "--seed", seed)
    by = words("--by", [f"score_{column(m)}" for m in methods])
    arms = run.arms("m.parquet", *recipe, "--scores", "scores.parquet", *by, "--budget", f"5%,{noise}%", "-o", "RUN")
    rows = pq.read_table(run.folder / "m.parquet").slice(0, 1000)
    wrong = np.not_equal(rows["label"].to_numpy(), rows["clean_label"].to_numpy())
    return {
        "noise": noise,
        "auc": {m: float(roc_auc_score(wrong, -scores[m])) for m in methods},
        "ap": {m: float(average_precision_score(wrong, -scores[m])) for m in methods},
        "arms": arms,
    }


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """Detection, then trims of 5 % and of the noise rate beside controls."""
    groups = {n: [f for f in found.values() if f["noise"] == n] for n in sizes["noise"]}
    methods = (*SIGNED, *RANKING)
    base = " / ".join(mean([f["arms"]["no edit"]["accuracy"] for f in of], 100) for of in groups.values())
    detection = table(
        ("method", *(f"AUC, {n} % wrong" for n in groups), *(f"average precision, {n} %" for n in groups)),
        [
            (f"`{m}`", *(mean([f["auc"][m] for f in of]) for of in groups.values()),
             *(mean([f["ap"][m] for f in of]) for of in groups.values()))
            for m in methods
        ],
    )  # fmt: skip
    tables = []
    for n, of in groups.items():
        for budget in ("5%", f"{n}%"):
            named = {f"`{m}`": f"{column(m)} trim {budget}" for m in methods}
            tables.append(f"{n} % wrong, trim of the lowest {budget[:-1]} %:\n\n"
                          + edits_table([f["arms"] for f in of], named, {"accuracy": True}))  # fmt: skip
    paper = table(("method", "accuracy in the paper, CIFAR-10N a / r / w"), list(PAPERS.items()))
    body = f"""
Digits, 1,000 train rows of which a share has a random other label, 297 target rows with right labels, 500 test rows;
`mlp:64,64`, SGD with rate 0.1, 30 epochs. Every seed draws data, trains, scores and trains again; intervals are 95 %
over
{sizes["seeds"]} seeds, differences are paired. No correction for the number of methods is made: of 14 methods a few are
"better" by chance. Accuracy without edits: {base} %.

{detection}

{chr(10).join(t + chr(10) for t in tables)}
What the paper has, on other data, without random rows and without loss (5 % trimmed, its SDs are .1 to .5, of TracIn
and
w more; the SD of its first line is not given):

{paper}
"""
    return Page(body, lambda figure: draw(figure, groups), CAPTION, (9, 4.2))


def draw(figure: Any, groups: dict[int, list[Any]]) -> None:
    """AUC by method, a panel for every share of wrong labels."""
    methods = (*SIGNED, *RANKING)[::-1]
    for axes, (n, of) in zip(
        figure.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups.items(), strict=True
    ):
        colours = [BLUE if m in PAPERS else ORANGE for m in methods]
        axes.barh(methods, [np.mean([f["auc"][m] for f in of]) for m in methods], color=colours)
        axes.axvline(0.5, color=GREY, linewidth=1)
        axes.set(title=f"{n} % wrong", xlabel="AUC", xlim=(0, 1))
