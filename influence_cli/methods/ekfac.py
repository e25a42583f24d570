"""EKFAC influence: the inverse of the Fisher's layers, each a Kronecker product's eigenbasis with its own eigenvalues.

    u_layer = Q_S [ (Q_S^T q_layer Q_A) / (Lam + l2 + delta_layer) ] Q_A^T,    s_i = < grad l_i(theta), u >

Q_A and Q_S are eigenvectors of the second moments of a layer's inputs [a; 1] and of its output gradients; Lam [O, I] is
the second moment of rows' gradients in that basis (mode ekfac), or the product of the eigenvalues (mode kfac; George
et al. 2018, arXiv:1806.03884; Martens and Grosse 2015, arXiv:1503.05671; Grosse and Martens 2016, arXiv:1602.01407).
Grosse et al. 2023 (arXiv:2308.03296), section 3.2, with their damping: delta_layer is 0.1 of the layer's mean Lam.

Layers are linear layers and convolutions without groups; gradients are of labels that the model gives, never of the
rows' own, summed over a row's positions before they are squared.  It estimates an effect as the other inverses do: the
Fisher of cross-entropy is the Gauss-Newton matrix.  But nothing is taken of what couples two layers, and the damping
is a tenth of the curvature: effects are too small, more than ranks are wrong.

--relative divides by the root of g_i^T P g_i (RelatIF, Barshan et al. 2020, arXiv:2003.11630).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.errors import ModelError
from influence_cli.methods.protocol import Columns, Factor, Facts, OfBlocks, RowValue, check_options
from influence_cli.methods.self_lissa import self_influence
from influence_cli.methods.shapes.by_layers import OTHER, ByLayers
from influence_cli.methods.shapes.by_products import PRECISIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from influence_cli.curvature.curvature import Curvature

MODES = ("ekfac", "kfac")
LABELS = ("sampled", "exact")
SHARE = 0.1  # of a layer's mean eigenvalue: default delta
LEAST = 1e-8  # of the largest layer's mean eigenvalue: the least that a layer is damped by
NO_BLOCK = "no Kronecker factors"


@dataclass(frozen=True)
class EKFAC(ByLayers):
    """Kronecker-factored inverse curvature with corrected eigenvalues."""

    passes: ClassVar[int] = 2
    relative: ClassVar[bool] = True

    mode: str = field(default="ekfac", metadata={"help": "eigenvalues in the Kronecker basis: " + ", ".join(MODES)})
    labels: str = field(
        default="sampled",
        metadata={"help": "of the Fisher: sampled from the model, or exact: a backward pass for every class"},
    )
    draws: int = field(default=1, metadata={"help": "sampled labels", "unit": "a row"})
    fit_sample: int | None = field(
        default=5000, metadata={"help": "look at so many of the fit rows, chosen by their keys", "unit": "rows"}
    )
    seed: int = field(default=0, metadata={"help": "of sampled labels, which are drawn by row key"})

    def __post_init__(self) -> None:
        choices = {"mode": MODES, "labels": LABELS, "precision": PRECISIONS, "other": OTHER}
        check_options(self, choices, {"draws": 1, "fit_sample": 1, "seed": 0})

    def fitted(self) -> dict[str, Any]:
        """Bases and both kinds of eigenvalues: modes, dampings and l2 share them."""
        sampled = {"draws": self.draws, "seed": self.seed} if self.labels == "sampled" else {}
        about = {"precision": self.precision, "fit_sample": self.fit_sample, "labels": self.labels, **sampled}
        return {"kind": "kronecker", "revision": 1, **about}

    def fit_rows(self, rows: int) -> int:
        """At most ``fit_sample``."""
        return rows if self.fit_sample is None else min(rows, self.fit_sample)

    def factor_bytes(self, parameters: int) -> int:
        """Lam, and bases about as large as ten times the parameters, or their square where they are few."""
        return parameters * 8 + min(10 * parameters, parameters**2) * (4 if self.single(parameters) else 8)

    def fit(self, curvature: Curvature) -> Factor:
        """Bases and eigenvalues of every layer.

        Raises:
            UsageError: parameters have none, and ``other`` is refuse.
        """
        from influence_cli.curvature.kronecker import KroneckerFit

        fit = KroneckerFit(self.seen(curvature, self.fit_sample), self.labels, self.draws, self.seed)
        self.check_left_over("ekfac", list(fit.coverage.others), NO_BLOCK)
        facts = {"factored": list(fit.coverage.factored), "others": list(fit.coverage.others)}
        return Factor(fit.arrays(), facts)

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """Every layer's q in its basis over eigenvalues, l2 and delta.

        Raises:
            ModelError: a layer's Fisher is singular, and nothing is damped.
            UsageError: parameters have no factors, and ``other`` is refuse.
        """
        inverse = KroneckerInverse(self, curvature)
        u = inverse.apply(q)
        return u, inverse.facts

    def row_value(self, relative: bool = False) -> RowValue | None:
        """g_i^T P g_i, where it is asked for."""
        return self_influence("ekfac") if relative else None

    def form(self, curvature: Curvature) -> tuple[OfBlocks, Facts]:
        """The same by layer: a weighted sum of squares in the layer's basis.

        Raises:
            ModelError: as ``precondition``.
        """
        inverse = KroneckerInverse(self, curvature)
        return inverse.form(), inverse.facts

    def sentence(self, facts: Facts) -> str:
        """What was factored, on which rows, and how it is damped."""
        low, high = facts["smallest_damping"], facts["largest_damping"]
        rule = " by the default rule" if facts["damping_by_rule"] else ""
        rows, every = facts["product_rows"], facts["fit_rows"]
        over = f"{every:,} fit rows" if rows == every else f"{rows:,} of {every:,} fit rows"
        labels = facts["labels"]
        return (
            f"{facts['mode']} of {facts['covered']:,} of {facts['parameters']:,} parameters in {facts['layers']} "
            f"layers over {over} in {facts['precision']}, {labels} labels, l2 {facts['l2']:g}; damping "
            f"{low:.3g} to {high:.3g} a layer{rule}, condition number of a layer up to {facts['condition_number']:.3g}"
        )

    def warnings(self, facts: Facts) -> list[str]:
        """What is not factored."""
        return self.left_over(facts, NO_BLOCK) if facts else []


class KroneckerInverse:
    """P of a fitted ``EKFAC``: by layer, and a number for every parameter that is in none."""

    def __init__(self, method: EKFAC, curvature: Curvature) -> None:
        self.method, self.curvature, factor = method, curvature, curvature.factor
        count = sum(name.endswith(".lam") for name in factor)
        self.layers = [{n: factor[f"{k}.{n}"] for n in ("q_a", "q_s", "place")} for k in range(count)]
        lams = [self._eigenvalues(factor, k) for k in range(count)]
        others = factor["others"]
        names, l2 = list(curvature.layout), method.l2 or 0.0
        left = [names[int(place)] for place, _ in others]
        method.check_left_over("ekfac", left, NO_BLOCK)
        sizes = sum(lam.size for lam in lams)
        whole = sum(float(lam.sum()) for lam in lams) / sizes if sizes else float("nan")
        self.means = {int(place): whole if np.isnan(mean) else float(mean) for place, mean in others}
        every = [float(lam.mean()) for lam in lams] + [m for m in self.means.values() if np.isfinite(m)]
        self.least = LEAST * max(every, default=0.0)
        dampings = [self._damping(float(lam.mean())) for lam in lams]
        self.shifted = [lam + (l2 + damping) for lam, damping in zip(lams, dampings, strict=True)]
        scalars = {place: m + l2 + self._damping(m) for place, m in self.means.items() if np.isfinite(m)}
        self.scalars = scalars if method.other == "identity" else {}
        if min([float(s.min()) for s in self.shifted] + list(self.scalars.values()), default=1.0) <= 0.0:
            raise ModelError(
                "the Fisher of a layer is singular, and nothing was damped further",
                fix="leave ekfac.damping out for the default rule, or --set ekfac.damping=X with X above 0",
            )
        every = dampings or [self._damping(m) for m in self.means.values()]
        self.facts: Facts = {
            "mode": method.mode,
            "labels": method.labels,
            "l2": l2,
            "smallest_damping": min(every),
            "largest_damping": max(every),
            "damping_by_rule": method.damping is None,
            "precision": "fp32" if method.single(curvature.size) else "fp64",
            "product_rows": method.fit_rows(len(curvature.rows)),
            "layers": count,
            "covered": sizes,
            "others": left,
            "other": method.other,
            "condition_number": max([float(s.max() / s.min()) for s in self.shifted], default=1.0),
        }

    def apply(self, q: Columns) -> Columns:
        """P q for every column of [d, k]."""
        from influence_cli.maths.kronecker import preconditioned

        u, ends = np.zeros_like(q), np.cumsum([0, *self.curvature.sizes])
        for layer, shifted in zip(self.layers, self.shifted, strict=True):
            weight, bias = (int(k) for k in layer["place"])
            tall = len(shifted)
            rows = slice(ends[weight], ends[weight + 1])
            for k in range(q.shape[1]):
                matrix = q[rows, k].reshape(tall, -1)
                if bias >= 0:
                    matrix = np.concatenate([matrix, q[ends[bias] : ends[bias + 1], k][:, None]], axis=1)
                turned = preconditioned(matrix, layer["q_a"], layer["q_s"], shifted)
                if bias >= 0:
                    u[ends[bias] : ends[bias + 1], k], turned = turned[:, -1], turned[:, :-1]
                u[rows, k] = turned.ravel()
        for place, value in self.scalars.items():
            some = slice(ends[place], ends[place + 1])
            u[some] = q[some] / value
        return u

    def form(self) -> OfBlocks:
        """g_i^T P g_i."""
        from influence_cli.curvature.kronecker_form import KroneckerForm, Turned

        names = list(self.curvature.layout)
        layers = {
            names[int(layer["place"][0])]: Turned(layer["q_a"], layer["q_s"], 1.0 / shifted)
            for layer, shifted in zip(self.layers, self.shifted, strict=True)
        }
        shares = {names[place]: 1.0 / self.scalars[place] if place in self.scalars else 0.0 for place in self.means}
        return KroneckerForm(layers, shares)

    def _eigenvalues(self, factor: dict[str, Any], k: int) -> NDArray[np.float64]:
        e_s, e_a, lam = (np.asarray(factor[f"{k}.{name}"], dtype=np.float64) for name in ("e_s", "e_a", "lam"))
        return np.outer(e_s, e_a) if self.method.mode == "kfac" else lam

    def _damping(self, mean: float) -> float:
        return max(SHARE * mean, self.least) if self.method.damping is None else self.method.damping
