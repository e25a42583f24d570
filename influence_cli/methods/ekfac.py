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

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import ModelError
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Columns, Facts, OfBlocks, RowValue
from influence_cli.methods.self_lissa import self_influence
from influence_cli.methods.shapes.by_layers import OTHER, ByLayers
from influence_cli.methods.shapes.preconditioned import DRAWS, PRECISIONS, Costs, Factor
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.maths.kronecker import KroneckerInverse

MODES = ("ekfac", "kfac")
LABELS = ("sampled", "exact")


@dataclass(frozen=True)
class EKFAC(ByLayers):
    """Kronecker-factored inverse curvature with corrected eigenvalues."""

    relative: ClassVar[bool] = True
    name: ClassVar[str] = "ekfac"
    made_of: ClassVar[str] = DRAWS
    without_block: ClassVar[str] = "no Kronecker factors"

    mode: str = setting("ekfac", "eigenvalues in the Kronecker basis: " + ", ".join(MODES))
    labels: str = setting("sampled", "of the Fisher: sampled from the model, or exact: a backward pass for every class")
    draws: int = setting(1, "sampled labels", "a row")
    fit_sample: int | None = setting(5000, "look at so many of the fit rows, chosen by their keys", "rows")
    seed: int = setting(0, "of sampled labels, which are drawn by row key")

    def __post_init__(self) -> None:
        choices = {"mode": MODES, "labels": LABELS, "precision": PRECISIONS, "other": OTHER}
        check_options(self, choices, {"draws": 1, "fit_sample": 1, "seed": 0})

    def fitted(self) -> dict[str, Any]:
        """Bases and both kinds of eigenvalues: modes, dampings and l2 share them."""
        sampled = {"draws": self.draws, "seed": self.seed} if self.labels == "sampled" else {}
        about = {"precision": self.precision, "fit_sample": self.fit_sample, "labels": self.labels, **sampled}
        return {"kind": "kronecker", "revision": 1, **about}

    def costs(self, rows: int, parameters: int) -> Costs:
        """Two passes; bases are about as large as ten times the parameters, or their square where they are few."""
        size = parameters * 8 + min(10 * parameters, parameters**2) * (4 if self.single(parameters) else 8)
        return Costs(min(rows, self.fit_sample or rows), size, fit_passes=2)

    def fit(self, curvature: Curvature) -> Factor:
        """Bases and eigenvalues of every layer.

        Raises:
            UsageError: parameters have none, and ``other`` is refuse.
        """
        from influence_cli.curvature.kronecker import KroneckerFit

        fit = KroneckerFit(self.seen(curvature, self.fit_sample), self.labels, self.draws, self.seed)
        self.check_left_over(fit.others)
        return Factor(fit.arrays(), {"factored": fit.factored, "others": fit.others})

    def fit_some(self, curvature: Curvature) -> int:
        """Both passes, with bases that cost nothing."""
        from influence_cli.curvature.kronecker import KroneckerFit

        KroneckerFit(self.seen(curvature, self.fit_sample), self.labels, self.draws, self.seed).try_passes()
        return 2

    def decomposed(self, curvature: Curvature) -> list[int]:
        """Two matrices a layer."""
        from influence_cli.curvature.kronecker import KroneckerFit

        return KroneckerFit(self.seen(curvature, self.fit_sample), self.labels, self.draws, self.seed).sizes()

    def decompose(self, matrix: NDArray[np.float64]) -> None:
        """Its eigenvectors."""
        import torch

        from influence_cli.maths.kronecker import eigenbasis

        eigenbasis(torch.as_tensor(matrix))

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """Every layer's q in its basis over eigenvalues, l2 and delta.

        Raises:
            ModelError: a layer's Fisher is singular, and nothing is damped.
            UsageError: parameters have no factors, and ``other`` is refuse.
        """
        inverse, facts = self._inverse(curvature)
        return inverse.apply(q, curvature.sizes), facts

    def row_value(self, relative: bool = False) -> RowValue | None:
        """g_i^T P g_i, where it is asked for."""
        return self_influence("ekfac") if relative else None

    def form(self, curvature: Curvature) -> tuple[OfBlocks, Facts]:
        """The same by layer, a weighted sum of squares in the layer's basis; errors as of ``precondition``."""
        from influence_cli.curvature.kronecker import KroneckerForm

        inverse, facts = self._inverse(curvature)
        return KroneckerForm(inverse, list(curvature.layout)), facts

    def _inverse(self, curvature: Curvature) -> tuple[KroneckerInverse, Facts]:
        """The damped inverse, and what is worth saying of it."""
        from influence_cli.maths.kronecker import KroneckerInverse

        factor, names, l2 = curvature.factor, list(curvature.layout), self.l2 or 0.0
        left = [names[int(place)] for place, _ in factor["others"]]
        self.check_left_over(left)
        inverse = KroneckerInverse.of(factor, self.mode == "kfac", l2, self.damping, self.other == "identity")
        if inverse.smallest <= 0.0:
            raise ModelError(
                "the Fisher of a layer is singular, and nothing was damped further",
                fix="leave ekfac.damping out for the default rule, or --set ekfac.damping=X with X above 0",
            )
        return inverse, {
            "mode": self.mode,
            "labels": self.labels,
            "l2": l2,
            "smallest_damping": min(inverse.dampings),
            "largest_damping": max(inverse.dampings),
            "damping_by_rule": self.damping is None,
            "precision": self.precision_at(curvature.size),
            "product_rows": self.costs(len(curvature.rows), curvature.size).rows,
            "layers": len(inverse.layers),
            "covered": inverse.size,
            "others": left,
            "other": self.other,
            "condition_number": inverse.condition_number,
        }
