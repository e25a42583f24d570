"""R5: how many rows to remove, and members and rates of the ensemble (Tables 3 and 4, reduced)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from tests.reproduction.commands import Commands, control_of, words
from tests.reproduction.datasets import digits
from tests.reproduction.page import BLUE, GREY, ORANGE, Page, difference, mean, table
from tests.reproduction.parts import Part
from tests.reproduction.r04_noisy_labels import RECIPE

TITLE = "removal rates, and members and rates of ip-ensemble"
PAPER = "Yang et al., arXiv:2405.17490, Tables 3 and 4 (CIFAR-10N; here an MLP on digits)"
CAPTION = (
    "Left: accuracy over no edit by rows removed. Right: AUC of wrong labels by members and rate. Means over seeds."
)
BUDGETS = ("2.5%", "5%", "7.5%", "10%")
MEMBERS = ((1, 0.01), (5, 0.01), (10, 0.01), (15, 0.01), (20, 0.01), (5, 0.1), (5, 0.5))  # K, p_max
TABLE3 = {"2.5%": "92.29 ± .16", "5%": "92.26 ± .19", "7.5%": "92.50 ± .13", "10%": "92.37 ± .15"}
TABLE4 = {
    (1, 0.01): "92.42 ± .17", (5, 0.01): "92.26 ± .19", (10, 0.01): "92.58 ± .04", (15, 0.01): "92.27 ± .09",
    (20, 0.01): "92.41 ± .15", (5, 0.1): "92.26 ± .19", (5, 0.5): "92.26 ± .19",
}  # fmt: skip
THREE = ("ip-ensemble_utility", "loss", "random")


def parts(sizes: dict[str, Any]) -> list[Part]:
    """A part a seed."""
    return [Part("R5", f"seed {s}", measure, {"noise": sizes["noise"], "seed": s}) for s in range(sizes["seeds"])]


def measure(run: Commands, noise: int, seed: int) -> dict[str, Any]:
    """Trims of several sizes by three columns, and of 5 % by ensembles of several members and rates."""
    digits(run.folder / "m.parquet", seed, noise / 100)
    recipe = (*RECIPE, "--seed", seed)
    run("retrain", "m.parquet", *recipe, "-o", "RUN")
    rows = pq.read_table(run.folder / "m.parquet").slice(0, 1000)
    wrong = np.not_equal(rows["label"].to_numpy(), rows["clean_label"].to_numpy())
    asked = ("m.parquet", "--checkpoint", "RUN", "--seed", seed)
    scores = run.scores(*asked, *words("--method", ("ip", "ip-ensemble", "loss", "random")))
    by = words("--by", [f"score_{c}" for c in ("ip_utility", *THREE)])
    rates = run.arms(
        "m.parquet", *recipe, "--scores", "scores.parquet", *by, "--budget", ",".join(BUDGETS), "-o", "RUN"
    )
    ensembles = []
    for members, p_max in MEMBERS:
        options = ("--set", f"ip-ensemble.members={members}", "--set", f"ip-ensemble.p_max={p_max}")
        one = run.scores(*asked, "--method", "ip-ensemble", *options, output="one.parquet")["utility"]
        arms = run.arms("m.parquet", *recipe, "--scores", "one.parquet", "--budget", "5%", "-o", "RUN")
        name = next(a for a, v in arms.items() if a.endswith("trim 5%") and v["edited"])
        ensembles.append(
            {
                "scores": one.tolist(),
                "spearman": float(spearmanr(one, scores["ip"])[0]),
                "auc": float(roc_auc_score(wrong, -one)),
                "accuracy": arms[name]["accuracy"],
                "random": arms[control_of(arms, name)]["accuracy"],
                "base": arms["no edit"]["accuracy"],
            }
        )
    return {"rates": rates, "ensembles": ensembles, "ip_auc": float(roc_auc_score(wrong, -scores["ip"]))}


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """Both tables, with the paper's beside them."""
    of = list(found.values())
    three = []
    for budget in BUDGETS:
        for c in ("ip_utility", *THREE):
            values = [f["rates"][f"{c} trim {budget}"]["accuracy"] for f in of]
            base = [f["rates"]["no edit"]["accuracy"] for f in of]
            random = [f["rates"][control_of(f["rates"], f"{c} trim {budget}")]["accuracy"] for f in of]
            paper = TABLE3[budget] if c == THREE[0] else "-"
            three.append((budget[:-1], f"`{c.removesuffix('_utility')}`", mean(values, 100), difference(values, base),
                          difference(values, random), paper))  # fmt: skip
    four = []
    for k, (members, p_max) in enumerate(MEMBERS):
        e = [f["ensembles"][k] for f in of]
        values, base, random = ([x[n] for x in e] for n in ("accuracy", "base", "random"))
        four.append((members, p_max, mean([x["spearman"] for x in e]), mean([x["auc"] for x in e], digits=3),
                     mean(values, 100), difference(values, base), difference(values, random),
                     TABLE4[members, p_max]))  # fmt: skip
    same = any(
        f["ensembles"][a]["scores"] == f["ensembles"][b]["scores"] for f in of for a, b in ((1, 5), (1, 6), (5, 6))
    )
    removal = table(("removed, %", "by", "test accuracy, %", "over no edit", "over random rows", "paper"), three)
    ensembles = table(("members", "p_max", "Spearman with `ip`", "AUC of wrong labels", "test accuracy, %",
                       "over no edit", "over random rows", "paper"), four)  # fmt: skip
    body = f"""
The model and data of R4 with {sizes["noise"]} % wrong labels. Intervals are 95 % over {sizes["seeds"]} seeds; the
AUC of
plain `ip` is {mean([f["ip_auc"] for f in of], digits=3)}. The paper's columns are of CIFAR-10N-a, where the base has
91.62.

Table 3, how many rows are removed:

{removal}

Table 4, members and rates, 5 % removed:

{ensembles}

The paper prints the same digits and deviations for the rates .01, .1 and .5 with 5 members. Here the scores of the
three
rates are {"the same in some seed" if same else "different in every seed"}, and so are their ranks: three different
draws
of masks cannot give one line. One member here is one dropped copy; the paper's line for one member is that of plain
`ip`.
"""
    return Page(body, lambda figure: draw(figure, of), CAPTION, (8, 3.4))


def draw(figure: Any, of: list[Any]) -> None:
    """Accuracy by removal rate, and AUC by ensemble."""
    left, right = figure.subplots(1, 2)
    sizes = [float(b[:-1]) for b in BUDGETS]
    for c, colour in zip(THREE, (BLUE, ORANGE, GREY), strict=True):
        gain = [
            100 * np.mean([f["rates"][f"{c} trim {b}"]["accuracy"] - f["rates"]["no edit"]["accuracy"] for f in of])
            for b in BUDGETS
        ]
        left.plot(sizes, gain, "o-", color=colour, label=c.removesuffix("_utility"))
    left.axhline(0, color="black", linewidth=0.5)
    left.set(xlabel="rows removed, %", ylabel="accuracy over no edit, points")
    left.legend(fontsize=8)
    names = [f"K {k}, {p:g}" for k, p in MEMBERS]
    right.barh(
        names[::-1], [np.mean([f["ensembles"][k]["auc"] for f in of]) for k in range(len(MEMBERS))][::-1], color=BLUE
    )
    right.axvline(np.mean([f["ip_auc"] for f in of]), color=ORANGE, label="ip")
    right.set(xlabel="AUC", xlim=(0.4, 1))
    right.legend(fontsize=8)
