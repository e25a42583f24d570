"""R11: scores by draws of the parameters, against what they tend to (no table in the paper)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from tests.reproduction.commands import Commands, Scores
from tests.reproduction.datasets import SHARED, characters, logistic
from tests.reproduction.page import BLUE, GREY, ORANGE, Page, spread, table
from tests.reproduction.parts import Part

TITLE = "scores by draws, and what they tend to"
PAPER = "no table of Yang et al.; Kreer et al. 2025 (4 chains of 500 draws)"
CAPTION = "Seed 0: scores by draws against exact influence of the same damping, at a low and a high nbeta."
DAMPING, THIN = 0.3, 8
NBETAS = (100.0, 1000.0, 10000.0)
FAR = 1000.0  # a damping far above the curvature


def parts(sizes: dict[str, Any]) -> list[Part]:
    """Logistic regression by seed, and a language model where its text is there."""
    logistic_ = [
        Part("R11", f"logistic, seed {s}", measure, {"seed": s, "draws": sizes["draws"]}) for s in range(sizes["seeds"])
    ]
    text = Part("R11", "language", language, {"draws": sizes["draws"], "length": sizes["characters"]})
    return [*logistic_, *([text] if (SHARED / "tinyshakespeare" / "input.txt").exists() else [])]


def bif(run: Commands, asked: tuple[Any, ...], **options: Any) -> Scores:
    """Scores by four chains."""
    flags = [word for name, value in options.items() for word in ("--set", f"bif.{name}={value}")]
    return run.scores(*asked, "--method", "bif", *flags, output="bif.parquet")


def facts(scores: Scores) -> dict[str, float]:
    """What the run says of its own draws."""
    found = scores.provenance["further"]["bif"]["objectives"]["utility"]
    return {"rhat": found["worst_rhat"], "effective": found["effective_draws"], "draws": found["draws"]}


def measure(run: Commands, seed: int, draws: int) -> dict[str, Any]:
    """Against exact influence of the same damping as nbeta grows, and against ip as the damping does."""
    logistic(run.folder / "m.parquet", seed, (300, 100, 50))
    recipe = ("--model", "linear", "--raw-features", "--optimizer", "lbfgs", "--weight-decay", 1e-3)
    run("retrain", "m.parquet", *recipe, "-o", "RUN")
    asked = ("m.parquet", "--checkpoint", "RUN", "--seed", seed)
    exact_options = ("--set", f"exact.damping={DAMPING}", "--set", "exact.l2=0")
    exact = run.scores(*asked, "--method", "exact", *exact_options, output="exact.parquet")["utility"]
    ip = run.scores(*asked, "--method", "ip", output="ip.parquet")["utility"]
    limits = {}
    for nbeta in NBETAS:
        drawn = bif(run, asked, draws=draws, nbeta=nbeta, damping=DAMPING, thin=THIN)
        scores = drawn["utility"]
        slope = float(scores @ exact / (exact @ exact))
        agreement = {"spearman": float(spearmanr(scores, exact)[0]), "pearson": float(pearsonr(scores, exact)[0])}
        limits[str(nbeta)] = {**agreement, "slope": slope, "scores": scores.tolist(), **facts(drawn)}
    far = bif(run, asked, draws=draws, nbeta=NBETAS[-1], damping=FAR, thin=THIN)["utility"] * FAR
    to_ip = {"spearman": float(spearmanr(far, ip)[0]), "slope": float(far @ ip / (ip @ ip))}
    return {"limits": limits, "ip": to_ip, "exact": exact.tolist(), "ip_against_exact": float(spearmanr(ip, exact)[0])}


def language(run: Commands, draws: int, length: int) -> dict[str, Any]:
    """A language model of one layer: what its draws say of themselves, and agreement with ip and ekfac."""
    characters(run.folder / "m.parquet", length)
    run("retrain", "m.parquet", "--model", "gpt:1x32", "--epochs", 20, "-o", "RUN")
    asked = ("m.parquet", "--checkpoint", "RUN")
    others = {m: run.scores(*asked, "--method", m, output=f"{m}.parquet")["utility"] for m in ("ip", "ekfac")}
    drawn = bif(run, asked, draws=draws)
    against = {m: float(spearmanr(drawn["utility"], v)[0]) for m, v in others.items()}
    found = drawn.provenance["further"]["bif"]
    law = {name: float(found[name]) for name in ("nbeta", "damping", "step", "burn_in")}
    return {"language": True, "against": against, "law": law, **facts(drawn)}


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """The limits, and the language model."""
    of = [f for f in found.values() if "limits" in f]
    shown = (("spearman", 3), ("pearson", 3), ("slope", 2), ("rhat", 2), ("effective", 0))
    limits = table(
        ("nbeta", "Spearman with `exact`", "Pearson", "slope on `exact`", "worst R-hat", "effective draws of Phi"),
        [(f"{b:,.0f}", *(spread([f["limits"][str(b)][n] for f in of], d) for n, d in shown)) for b in NBETAS],
    )
    text = "The language model is left out: its text is not here."
    for f in found.values():
        if "language" in f:
            rows = [(f"`{m}`", f"{v:.2f}") for m, v in f["against"].items()]
            law = ", ".join(f"{name.replace('_', '-')} {value:.2g}" for name, value in f["law"].items())
            drew = f"{f['draws']:,} draws, worst R-hat {f['rhat']:.2f}, {f['effective']:.0f} effective draws of Phi."
            said = f"By the rules of `bif`: {law}. {drew}"
            text = table(("`gpt:1x32`, 120 rows", "Spearman with the draws"), rows) + f"\n\n{said}"
    body = f"""
Logistic regression, 300 rows, 10 features, 4 chains of {sizes["draws"]} draws (every {THIN}th step). `exact` has the
same damping, {DAMPING:g}, and no l2; {len(of)} seeds, mean (least to largest). For comparison, Spearman of `ip` with
that `exact`: {spread([f["ip_against_exact"] for f in of])}.

{limits}

With a damping of {FAR:,.0f}, far above the curvature, the scores times it tend to `ip`: Spearman
{spread([f["ip"]["spearman"] for f in of], 3)}, slope {spread([f["ip"]["slope"] for f in of], 2)}.

A language model of one layer on rows of {sizes["characters"]} characters:

{text}
"""
    return Page(body, lambda figure: draw(figure, of[0]), CAPTION, (7, 3.4))


def draw(figure: Any, f: dict[str, Any]) -> None:
    """Draws against exact, at two temperatures."""
    exact = np.array(f["exact"])
    for axes, nbeta, colour in zip(figure.subplots(1, 2), (NBETAS[0], NBETAS[-1]), (ORANGE, BLUE), strict=True):
        limit = f["limits"][str(nbeta)]
        axes.axline((0, 0), slope=1, color=GREY, linewidth=1)
        axes.scatter(exact, limit["scores"], s=10, color=colour)
        axes.set(title=f"nbeta {nbeta:,.0f}, Spearman {limit['spearman']:.3f}", xlabel="exact", ylabel="bif")
