"""R9: do scores foretell training on random halves?  The linear datamodeling score (no table in the paper)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.reproduction.commands import Commands, words
from tests.reproduction.datasets import digits, logistic
from tests.reproduction.page import BLUE, GREY, ORANGE, Page, table
from tests.reproduction.parts import Part

TITLE = "scores against training on random halves (LDS)"
PAPER = "no table of Yang et al.; Park et al., arXiv:2303.14186, section 2.4"
METHODS = {
    "logistic": ("exact", "lissa", "ekfac", "datainf", "trak", "ip"),
    "digits": ("cg", "lissa", "ekfac", "datainf", "source", "tracin", "ip", "ip-ensemble", "gex", "trak"),
}
REFERENCE = {"exact": ".980", "datainf": ".834", "ip": ".788", "trak": ".732", "random": "-.002"}


def parts(sizes: dict[str, Any]) -> list[Part]:
    """Logistic regression, and a network on digits where it is asked for."""
    one = Part("R9", "logistic", measure, {"problem": "logistic", "rows": sizes["rows"], "subsets": sizes["subsets"]})
    two = Part("R9", "digits", measure, {"problem": "digits", "rows": 1000, "subsets": sizes["digits subsets"]})
    return [one, two][: 2 if sizes["digits subsets"] else 1]


def measure(run: Commands, problem: str, rows: int, subsets: int) -> dict[str, Any]:
    """LDS by column, with intervals over subsets."""
    if problem == "logistic":
        logistic(run.folder / "m.parquet", 0, (rows, 200, 100))
        recipe = ("--model", "linear", "--raw-features", "--optimizer", "lbfgs", "--weight-decay", 0.02)
        asked = ("--precision", "fp64")
    else:
        digits(run.folder / "m.parquet", 0, 0.2)
        recipe = ("--model", "mlp:64,64", "--raw-features", "--epochs", 30, "--lr", 0.1, "--keep-checkpoints", 6)
        asked = ()
    run("retrain", "m.parquet", *recipe, "-o", "RUN")
    run.scores("m.parquet", "--checkpoint", "RUN", *words("--method", METHODS[problem]), *asked)
    seeds = ("--seeds", 2) if problem == "digits" else ()
    found = run("evaluate", "scores.parquet", "--lds", subsets, *seeds, "--json").json["lds"]
    return {
        "problem": problem,
        "measured": found["measured"],
        "reliability": found["reliability"],
        "ceiling": found["ceiling"],
        "chance": found["chance"],
        "subset_rows": found["subset_rows"],
        "columns": found["columns"],
    }


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """LDS by method."""
    tables = []
    for f in found.values():
        rows = []
        for name, c in sorted(f["columns"].items(), key=lambda item: -item[1]["lds"]):
            method = name.removesuffix("_utility")
            interval = "-" if c["interval"] is None else f"{c['interval'][0]:.3f} to {c['interval'][1]:.3f}"
            reference = REFERENCE.get(method, "-") if f["problem"] == "logistic" else "-"
            rows.append((f"`{method}`", f"{c['lds']:.3f}", interval, reference))
        count = len(f["measured"])
        noise = "the optimum, no noise" if f["ceiling"] in (None, 1.0) else f"2 seeds, noise ceiling {f['ceiling']:.2f}"
        about = f"{count} halves of {f['subset_rows']} rows, {noise}; unrelated columns within ±{f['chance']:.2f}"
        tables.append(f"{f['problem'].capitalize()}, {about}:\n\n"
                      + table(("method", "LDS", "95 % interval over subsets", "earlier reference"), rows))  # fmt: skip
    parted = "\n\n".join(tables)
    body = f"""
The target loss after training on a random half of the rows, against minus the sum of the scores of that half:
Spearman's
correlation over halves. Logistic regression has ten features of deviations 3 to 0.3; digits are those of R4 with 20 %
wrong labels. Methods that only rank (`loss`, `self-tracin`, ...) predict no sum and have no line. The earlier reference
is of 100 halves of another draw of 400 rows.

{parted}

`random` is the floor, and how far it is from 0 is what chance does.
"""
    return Page(body, lambda figure: draw(figure, list(found.values())), "Measured target loss of a half against what "
                "scores predict, standardised.", (8, 3.8))  # fmt: skip


def draw(figure: Any, of: list[Any]) -> None:
    """Measured against predicted, the best method, ip and random."""
    for axes, f in zip(figure.subplots(1, len(of), squeeze=False)[0], of, strict=True):
        best = max(f["columns"], key=lambda c: f["columns"][c]["lds"])
        chosen = dict.fromkeys([best, "ip_utility", "random"])
        for name, colour in zip(chosen, (BLUE, ORANGE, GREY), strict=False):
            predicted = np.array(f["columns"][name]["predicted"])
            label = f"{name.removesuffix('_utility')}, {f['columns'][name]['lds']:.2f}"
            axes.scatter(standard(predicted), standard(np.array(f["measured"])), s=10, color=colour, label=label)
        axes.set(title=f["problem"], xlabel="predicted, standardised", ylabel="measured, standardised")
        axes.legend(fontsize=8, title="LDS", title_fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=3)


def standard(values: Any) -> Any:
    """Less the mean, over the deviation."""
    return (values - values.mean()) / values.std()
