"""R6: a mixer and a network with attention (Table 5, reduced)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy

from tests.reproduction import models
from tests.reproduction.commands import Commands, words
from tests.reproduction.datasets import digits
from tests.reproduction.page import BLUE, GREY, ORANGE, Page, edits_table, mean, table
from tests.reproduction.parts import Part

TITLE = "a mixer and a network with attention"
PAPER = "Yang et al., arXiv:2405.17490, Table 5 (ViT and MLP-Mixer on CIFAR; here width 32 on digits)"
CAPTION = (
    "AUC of wrong labels by method and network, mean over seeds; in orange what the paper's table has no line for."
)
NETWORKS = ("mixer", "attention")
SIGNED, RANKING = ("ip", "ip-ensemble", "tracin", "ekfac", "datainf"), ("self-tracin", "loss", "random")
PAPERS = {  # average accuracy: ViT, mixer
    "no edit": "68.87, 60.91", "tracin": "69.07, 60.78", "ekfac": "68.85, 61.65", "datainf": "69.13, 61.35",
    "self-tracin": "69.36, 62.14", "ip": "69.28, 61.55", "ip-ensemble": "70.06, 62.23",
}  # fmt: skip
METHODS = (*SIGNED, *RANKING)


def column(method: str) -> str:
    """The column of a method, without 'score_'."""
    return f"{method}_utility" if method in SIGNED else method


def parts(sizes: dict[str, Any]) -> list[Part]:
    """A part for every network and seed."""
    return [
        Part("R6", f"{n}, seed {s}", measure, {"network": n, "noise": sizes["noise"], "seed": s})
        for s in range(sizes["seeds"])
        for n in NETWORKS
    ]


def measure(run: Commands, network: str, noise: int, seed: int) -> dict[str, Any]:
    """Detection, trims, and ip against a loop of autograd over single rows."""
    digits(run.folder / "m.parquet", seed, noise / 100)
    model = ("--model", f"python:tests.reproduction.models:{network}")
    recipe = (*model, "--optimizer", "adamw", "--lr", 0.003, "--epochs", 15, "--keep-checkpoints", 4, "--seed", seed)
    run("retrain", "m.parquet", *recipe, "-o", "RUN")
    asked = ("m.parquet", *model, "--checkpoint", "RUN", "--seed", seed)
    scores = run.scores(*asked, *words("--method", METHODS))
    by = words("--by", [f"score_{column(m)}" for m in METHODS])
    arms = run.arms("m.parquet", *recipe, "--scores", "scores.parquet", *by, "--budget", f"5%,{noise}%", "-o", "RUN")
    rows = pq.read_table(run.folder / "m.parquet").to_pydict()
    wrong = np.not_equal(rows["label"], rows["clean_label"])[:1000]
    error = loop_error(run, network, rows, scores["ip"])
    auc = {m: float(roc_auc_score(wrong, -scores[m])) for m in METHODS}
    return {"network": network, "auc": auc, "arms": arms, "error": error}


def loop_error(run: Commands, network: str, rows: dict[str, Any], ip: Any, checked: int = 8) -> float:
    """Largest difference of ip from one backward pass a row in float64, over the largest score."""
    net = getattr(models, network)().double().eval()
    net.load_state_dict({n: w.double() for n, w in load_file(run.folder / "RUN" / "model.safetensors").items()})
    x, y = torch.tensor(rows["features"], dtype=torch.float64), torch.tensor(rows["label"])
    weights = list(net.parameters())
    q = torch.autograd.grad(cross_entropy(net(x[1000:1297]), y[1000:1297]), weights)
    worst = 0.0
    for i in range(0, 1000, 1000 // checked):
        g = torch.autograd.grad(cross_entropy(net(x[i : i + 1]), y[i : i + 1]), weights)
        product = sum(float((a * b).sum()) for a, b in zip(g, q, strict=True))
        worst = max(worst, abs(product - float(ip[i])))
    return worst / float(np.abs(ip).max())


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """Detection, then trims beside controls, by network."""
    groups = {n: [f for f in found.values() if f["network"] == n] for n in NETWORKS}
    detection = table(
        ("method", *(f"AUC of wrong labels, {n}" for n in NETWORKS), "paper, average accuracy: ViT, mixer"),
        [(f"`{m}`", *(mean([f["auc"][m] for f in of]) for of in groups.values()), PAPERS.get(m, "-")) for m in METHODS]
        + [("no edit", "-", "-", PAPERS["no edit"])],
    )
    tables = []
    for n, of in groups.items():
        for budget in ("5%", f"{sizes['noise']}%"):
            named = {f"`{m}`": f"{column(m)} trim {budget}" for m in METHODS}
            tables.append(f"{n}, trim of the lowest {budget[:-1]} %:\n\n"
                          + edits_table([f["arms"] for f in of], named, {"accuracy": True}))  # fmt: skip
    error = max(f["error"] for f in found.values())
    body = f"""
Two blocks of width 32 on 16 patches of the digits of R4, {sizes["noise"]} % wrong labels, AdamW with rate 0.003, 15
epochs.
Intervals are 95 % over {sizes["seeds"]} seeds. `ip` in fp32 differs from one backward pass a row in fp64 by at most
{error:.0e} of the largest score, over 8 rows of every run.

{detection}

{chr(10).join(t + chr(10) for t in tables)}"""
    return Page(body, lambda figure: draw(figure, groups), CAPTION, (8, 3.2))


def draw(figure: Any, groups: dict[str, list[Any]]) -> None:
    """AUC by method, a panel for every network."""
    methods = METHODS[::-1]
    for axes, (n, of) in zip(figure.subplots(1, len(groups), sharey=True), groups.items(), strict=True):
        colours = [BLUE if m in PAPERS else ORANGE for m in methods]
        axes.barh(methods, [np.mean([f["auc"][m] for f in of]) for m in methods], color=colours)
        axes.axvline(0.5, color=GREY, linewidth=1)
        axes.set(title=n, xlabel="AUC", xlim=(0, 1))
