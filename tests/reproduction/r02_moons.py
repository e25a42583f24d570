"""R2: inner products and influence functions on a small network, at several dampings (Figure 1 D to F)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from tests.reproduction.commands import Commands, words
from tests.reproduction.datasets import moons
from tests.reproduction.page import BLUE, GREEN, GREY, ORANGE, Page, edits_table, mean, table
from tests.reproduction.parts import Part

TITLE = "ip and influence functions on a network that is not convex"
PAPER = "Yang et al., arXiv:2405.17490, Figure 1 D to F (no numbers; an earlier version: 94.36 degrees from q to u)"
CAPTION = "AUC of flipped rows by damping, mean over seeds; lines without a damping are of methods that have none."
METHODS = ("ip", "ip-ensemble", "loss", "self-tracin", "random")
MODES, DAMPINGS = ("ggn", "clamp", "abs"), (1e-4, 1e-3, 1e-2, 1e-1)
REFERENCE = {
    "ip": ".906 / .85 / .80", "ip-ensemble": ".857 / .77 / -", "loss": ".997 / .91 / .94",
    "self-tracin": ".996 / - / -",
}  # fmt: skip


def parts(sizes: dict[str, Any]) -> list[Part]:
    """A part for every kind of flips, length of training and seed."""
    kinds = [("uniform", sizes["epochs"][0]), ("clustered", sizes["epochs"][0]), ("uniform", sizes["epochs"][1])]
    return [
        Part("R2", f"{kind} flips, {epochs} epochs, seed {s}", measure, {"kind": kind, "epochs": epochs, "seed": s})
        for s in range(sizes["seeds"])
        for kind, epochs in kinds
    ]


def measure(run: Commands, kind: str, epochs: int, seed: int) -> dict[str, Any]:
    """Detection by every method and curvature, angles, and trims of as many rows as are flipped."""
    moons(run.folder / "m.parquet", seed, kind == "clustered")
    recipe = ("--model", "mlp:32,32", "--raw-features", "--optimizer", "adamw", "--lr", 0.01, "--weight-decay", 1e-4,
              "--epochs", epochs, "--batch-size", 200, "--schedule", "constant", "--record", "none",
              "--seed", seed)  # fmt: skip
    run("retrain", "m.parquet", *recipe, "-o", "RUN")
    rows = pq.read_table(run.folder / "m.parquet").slice(0, 200)
    wrong = np.not_equal(rows["label"].to_numpy(), rows["clean_label"].to_numpy())
    asked = ("m.parquet", "--checkpoint", "RUN")
    scores = run.scores(*asked, *words("--method", METHODS), "--seed", seed)
    auc = {m: float(roc_auc_score(wrong, -scores[m])) for m in METHODS}
    spearman, degrees = dict[str, float](), dict[str, float]()
    for mode in MODES:
        for damping in DAMPINGS:
            options = ("--method", "exact", "--set", f"exact.mode={mode}", "--set", f"exact.damping={damping}")
            name = f"{mode} {damping:g}"
            exact = run.scores(*asked, *options, output="exact.parquet")["utility"]
            auc[name] = float(roc_auc_score(wrong, -exact))
            spearman[name] = float(spearmanr(exact, scores["ip"])[0])
            angles = run("evaluate", "exact.parquet", "--json").json["order"]["angles"]["table"]
            degrees[name] = float(np.degrees(np.arccos(next(iter(angles.values()))["cosine"])))
    by = words("--by", ("score_ip_utility", "score_ip-ensemble_utility", "score_loss", "score_random"))
    arms = run.arms("m.parquet", *recipe, "--scores", "scores.parquet", *by, "--budget", 20, "-o", "RUN")
    return {"kind": kind, "epochs": epochs, "auc": auc, "spearman": spearman, "degrees": degrees, "arms": arms}


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """Detection and angles by kind of flips, and trims beside controls."""
    groups: dict[str, list[Any]] = {}
    for f in found.values():
        groups.setdefault(f"{f['kind']} flips, {f['epochs']} epochs", []).append(f)
    curves = [f"{mode} {damping:g}" for mode in MODES for damping in DAMPINGS]
    detection = table(
        ("AUC of flips", *groups, "earlier reference, same columns (uniform / clustered / uniform, long)"),
        [(f"`{m}`", *(mean([f["auc"][m] for f in of], digits=3) for of in groups.values()), REFERENCE.get(m, "-"))
         for m in METHODS]
        + [(f"`exact`, {c}", *(mean([f["auc"][c] for f in of], digits=3) for of in groups.values()), "-")
           for c in curves],
    )  # fmt: skip
    turned = table(
        ("`exact`", *(f"degrees from q to u, {g}" for g in groups), *(f"Spearman with ip, {g}" for g in groups)),
        [
            (c, *(mean([f["degrees"][c] for f in of], digits=0) for of in groups.values()),
             *(mean([f["spearman"][c] for f in of]) for of in groups.values()))
            for c in curves
        ],
    )  # fmt: skip
    named = {"`ip`": "ip_utility trim 20", "`ip-ensemble`": "ip-ensemble_utility trim 20", "`loss`": "loss trim 20",
             "`random`": "random trim 20"}  # fmt: skip
    trims = "\n\n".join(
        f"{g}:\n\n{edits_table([f['arms'] for f in of], named, {'accuracy': True})}" for g, of in groups.items()
    )
    body = f"""
Two moons (noise 0.2), 200 train rows of which 20 are flipped, 100 target and 100 test rows; `mlp:32,32` trained by
AdamW
with rate 0.01. Rows flipped at random, or the ten of a class nearest to one of them. Intervals are 95 % over
{sizes["seeds"]} seeds. `ggn` inverts the Gauss-Newton matrix, `clamp` and `abs` the Hessian with eigenvalues max(e, 0)
and |e|. The earlier reference is of another implementation and other draws.

{detection}

{turned}

Trims of 20 of 200 rows, test accuracy:

{trims}

How well an influence function finds flips depends on its damping and on how its curvature is made positive, so that
one curve of it says little about influence functions. The paper's figure has no line for loss.
"""
    return Page(body, lambda figure: draw(figure, groups), CAPTION, (9, 3.4))


def draw(figure: Any, groups: dict[str, list[Any]]) -> None:
    """AUC by damping, a panel for every kind of flips."""
    for axes, (g, of) in zip(
        figure.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups.items(), strict=True
    ):
        for mode, colour in zip(MODES, (BLUE, GREEN, ORANGE), strict=True):
            axes.plot(DAMPINGS, [np.mean([f["auc"][f"{mode} {d:g}"] for f in of]) for d in DAMPINGS], "o-",
                      color=colour, label=f"exact, {mode}")  # fmt: skip
        for m, style in (("ip", "-"), ("ip-ensemble", "--"), ("loss", ":")):
            axes.axhline(np.mean([f["auc"][m] for f in of]), color="black", linestyle=style, linewidth=1, label=m)
        axes.axhline(0.5, color=GREY, linewidth=0.5)
        axes.set(xscale="log", title=g, xlabel="damping", ylim=(0.3, 1.02))
    figure.axes[0].set_ylabel("AUC")
    figure.axes[-1].legend(fontsize=7, loc="lower right")
