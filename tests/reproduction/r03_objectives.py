"""R3: inner products against influence functions for fairness and robustness, on two blobs (Figure 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.stats import pearsonr, spearmanr

from tests.reproduction.commands import Commands, control_of
from tests.reproduction.datasets import blobs
from tests.reproduction.page import GREY, ORANGE, Page, difference, spread, table
from tests.reproduction.parts import Part
from tests.reproduction.r01_blobs import LINEAR, ROWS

TITLE = "ip and exact influence on fairness and robustness"
PAPER = "Yang et al., arXiv:2405.17490, Figure 5 (no numbers)"
OBJECTIVES = ("fairness", "robustness")
TAU, KAPPA, STEP = 1e-3, 1.3, 1e-5
REFERENCE = {"fairness": "0.83 (0.77 to 0.89)", "robustness": "0.89 (0.72 to 0.997)"}


def parts(sizes: dict[str, Any]) -> list[Part]:
    """A part a seed."""
    return [Part("R3", f"seed {s}", measure, {"seed": s}) for s in range(sizes["seeds"])]


def measure(run: Commands, seed: int) -> dict[str, Any]:
    """Scores under both objectives, q against finite differences, and what trims do to gaps and under attack."""
    blobs(run.folder / "blobs.parquet", seed)
    run("manifest", "blobs.parquet", "--keep-column", "group", "-o", "m.parquet")
    run("retrain", "m.parquet", *LINEAR, "-o", "RUN")
    asked = ("--method", "ip", "--method", "exact", "--objective", "fairness", "--objective", "robustness")
    scores = run.scores("m.parquet", "--checkpoint", "RUN", *asked, "--precision", "fp64")
    columns = [f"score_{m}_{o}" for o in OBJECTIVES for m in ("ip", "exact")]
    by = [word for c in columns for word in ("--by", c)]
    arms = run.arms("m.parquet", *LINEAR, "--scores", "scores.parquet", *by, "--budget", "5%", "-o", "RUN")
    out: dict[str, Any] = {"arms": arms}
    for o in OBJECTIVES:
        ip, exact = scores[f"ip_{o}"], scores[f"exact_{o}"]
        out[o] = {
            "ip": ip.tolist(),
            "exact": exact.tolist(),
            "spearman": float(spearmanr(ip, exact)[0]),
            "pearson": float(pearsonr(ip, exact)[0]),
            "sign_agreement": float((np.sign(ip) == np.sign(exact)).mean()),
            "differences": finite_differences(run.folder, o, ip),
        }
    return out


def finite_differences(folder: Path, objective: str, ip: NDArray[Any], rows: int = 3) -> float:
    """Largest relative error of ip = q . g_i against the central difference of Phi along g_i, over some rows.

    Phi is computed here in NumPy from the weights in the run folder, and shares nothing with the package.
    """
    weights = load_file(folder / "RUN" / "model.safetensors")
    matrix = next(w for w in weights.values() if w.shape == (2, 2)).astype(np.float64)
    bias = next(w for w in weights.values() if w.shape == (2,)).astype(np.float64)
    table_ = pq.read_table(folder / "m.parquet").to_pydict()
    x, y = np.array(table_["features"], dtype=np.float32).astype(np.float64), np.array(table_["label"])
    group, split = np.array(table_["group"]).astype(str) == "1", np.array(table_["split"])
    target, train = split == "val", np.flatnonzero(split == "train")[:: ROWS // rows][:rows]
    phi = demographic_parity(x[target], group[target]) if objective == "fairness" else attacked(
        x[target], y[target], matrix, bias
    )  # fmt: skip
    worst = 0.0
    for i in train:
        error = probabilities(x[i : i + 1], matrix, bias)[0] - np.eye(2)[y[i]]
        up, down = (phi(matrix + h * np.outer(error, x[i]), bias + h * error) for h in (STEP, -STEP))
        worst = max(worst, abs((up - down) / (2 * STEP) - ip[i]) / np.abs(ip).max())
    return float(worst)


def probabilities(x: NDArray[Any], matrix: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.float64]:
    """Softmax of the logits [n, 2]."""
    z = x @ matrix.T + bias
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def demographic_parity(x: NDArray[Any], group: NDArray[Any]) -> Any:
    """Phi of fairness, smoothed at 0 by TAU, as a function of weights."""

    def phi(matrix: NDArray[Any], bias: NDArray[Any]) -> float:
        p = probabilities(x, matrix, bias)[:, 1]
        return float(np.hypot(p[group].mean() - p[~group].mean(), TAU))

    return phi


def attacked(x: NDArray[Any], y: NDArray[Any], matrix: NDArray[Any], bias: NDArray[Any]) -> Any:
    """Phi of robustness: the loss of rows that were moved past the boundary of these weights, and stay there."""
    w, b = matrix[1] - matrix[0], bias[1] - bias[0]
    moved = x - KAPPA * ((x @ w + b) / (w @ w))[:, None] * w

    def phi(matrix: NDArray[Any], bias: NDArray[Any]) -> float:
        return float(-np.log(probabilities(moved, matrix, bias)[np.arange(len(y)), y]).mean())

    return phi


def page(found: dict[str, Any], sizes: dict[str, Any]) -> Page:
    """Agreement by objective, then what trims do beside controls."""
    of = list(found.values())
    agreement = table(
        ("objective", "Spearman of ip and exact", "earlier reference", "Pearson", "rows of the same sign",
         "q against finite differences, largest relative error"),
        [
            (
                f"`{o}`",
                spread([f[o]["spearman"] for f in of]),
                REFERENCE[o],
                spread([f[o]["pearson"] for f in of]),
                spread([f[o]["sign_agreement"] for f in of]),
                f"{max(f[o]['differences'] for f in of):.0e}",
            )
            for o in OBJECTIVES
        ],
    )  # fmt: skip
    rows = []
    for o in OBJECTIVES:
        measures = {"dp_gap_soft": False} if o == "fairness" else {"attacked_static": True, "attacked_adaptive": True}
        for m in ("ip", "exact"):
            arm = f"{m}_{o} trim 5%"
            controls = [control_of(f["arms"], arm) for f in of]
            for name, higher in measures.items():
                values = [f["arms"][arm][name] for f in of]
                base = [f["arms"]["no edit"][name] for f in of]
                control = [f["arms"][c][name] for f, c in zip(of, controls, strict=True)]
                edited = spread([f["arms"][arm]["edited"] for f in of], 1)
                rows.append(
                    (f"{m}, `{o}`", edited, name, difference(values, base, higher), difference(values, control, higher))
                )
    trims = table(("trim of the lowest 5 %", "rows out", "measure", "over no edit", "over random trims"), rows)
    high = [f[o]["spearman"] > 0.6 for f in of for o in OBJECTIVES]
    above = f"{sum(high)} of {len(high)}"
    body = f"""
Blobs as in R1 with a sensitive attribute that is no feature (three quarters of class 1 have it, a quarter of class 0);
demographic parity and the linear attack with kappa {KAPPA}. Intervals are 95 % over {len(of)} seeds, differences in
points. Finite differences are of Phi written anew in NumPy, along the gradients of three train rows.

{agreement}

{trims}

`attacked_static` is against attacks made for the model without edits, `attacked_adaptive` against attacks made for the
trimmed model. Spearman's
correlation is above 0.6 in {above} seeds and objectives. A gain against static attacks is none against attacks that are
made for the trimmed model.
"""
    return Page(
        body, lambda figure: draw(figure, of[0]), "Seed 0: ip against exact under the two objectives.", (7, 3.4)
    )


def draw(figure: Any, f: dict[str, Any]) -> None:
    """One score against the other, by objective."""
    for axes, o in zip(figure.subplots(1, 2), OBJECTIVES, strict=True):
        ip, exact = np.array(f[o]["ip"]), np.array(f[o]["exact"])
        opposite = np.sign(ip) != np.sign(exact)
        axes.scatter(ip[~opposite], exact[~opposite], s=10, color=GREY, label="same sign")
        axes.scatter(ip[opposite], exact[opposite], s=14, color=ORANGE, label="opposite sign")
        axes.axhline(0, color="black", linewidth=0.5)
        axes.axvline(0, color="black", linewidth=0.5)
        axes.set(title=f"{o}, Spearman {f[o]['spearman']:.2f}", xlabel="score by ip", ylabel="score by exact")
        axes.legend(fontsize=8)
