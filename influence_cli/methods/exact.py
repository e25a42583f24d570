"""Exact influence: the inverse of the training objective's curvature, dense, at the checkpoint.

    u = (K + l2 I + delta I)^-1 grad Phi(theta),    s_i = < grad l_i(theta), u >

    mode     K, over the fit rows                                    inverted as
    ggn      G = (1/n) sum w J^T (diag(p) - p p^T) J                 by Cholesky; the Hessian of a linear model
    damp     H = (1/n) sum w hess l                                  by Cholesky; convex objectives
    clamp    H                                                       eigenvalues max(e, 0) + delta
    abs      H                                                       eigenvalues |e| + delta
    fisher   F = (1/n) sum w E_{y ~ p} [g g^T], equal to G for cross-entropy and computed as such
    emp      E = (1/n) sum w g_i g_i^T, with the labels as they are; a diagnostic, not the Fisher

Koh and Liang 2017 (arXiv:1703.04730), Eq. 2, with the sign of removal: s_i / n estimates by how much Phi rises when a
row of weight 1 is taken out and the divisor n = sum w stays.  G is that of Martens 2020 (arXiv:1412.1193), section 8.
The default delta is 0 where the smallest eigenvalue (of K + l2 I as the mode takes it) is above 1e-8 of the largest,
else 1e-3 of the mean.  Curvature is fitted in float64 whatever the run's precision: a matrix that is known to 1e-7
of its largest eigenvalue cannot be inverted beyond that.

--relative divides by the root of g_i^T (K + l2 I + delta I)^-1 g_i (RelatIF, Barshan et al. 2020, arXiv:2003.11630).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.errors import ModelError, UsageError
from influence_cli.methods.protocol import (
    Columns,
    Factor,
    Facts,
    OfBlocks,
    Preconditioned,
    RowValue,
    check_options,
)
from influence_cli.methods.self_lissa import self_influence

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.dense import CurvatureKind

MODES: dict[str, CurvatureKind] = {
    "ggn": "ggn",
    "damp": "hessian",
    "clamp": "hessian",
    "abs": "hessian",
    "fisher": "ggn",
    "emp": "empirical",
}


@dataclass(frozen=True)
class Exact(Preconditioned):
    """Dense inverse curvature, for up to some thousands of parameters."""

    relative: ClassVar[bool] = True

    mode: str = field(default="ggn", metadata={"help": "curvature: " + ", ".join(MODES)})
    max_parameters: int = field(
        default=5000, metadata={"help": "refuse more selected parameters: memory grows with d^2", "limit": True}
    )

    def __post_init__(self) -> None:
        check_options(self, {"mode": tuple(MODES)}, {"max_parameters": 1})

    def fitted(self) -> dict[str, Any]:
        """The dense matrix of one curvature: modes that invert the same matrix share it."""
        return {"kind": "dense", "revision": 1, "curvature": MODES[self.mode]}

    def check_size(self, parameters: int) -> None:
        """Refuse more than ``max_parameters``.

        Raises:
            UsageError: they are more.
        """
        if parameters > self.max_parameters:
            size = f"{self.factor_bytes(parameters) / 1e9:,.3g} GB"
            raise UsageError(
                f"exact inverts a matrix of {parameters:,} by {parameters:,} parameters, and max_parameters is "
                f"{self.max_parameters:,}",
                fix="select fewer (--params last), use another method (ip), "
                f"or --set exact.max_parameters={parameters}: the matrix takes {size}, fitting it four times that",
            )

    def factor_bytes(self, parameters: int) -> int:
        """A float64 matrix and three vectors."""
        return 8 * parameters * (parameters + 3)

    def fit(self, curvature: Curvature) -> Factor:
        """The matrix K, its eigenvalues, the data term's gradient and the parameters."""
        from influence_cli.maths.inverse import condition_number, eigenvalues_of

        matrix, gradient = curvature.dense(MODES[self.mode])
        eigenvalues = eigenvalues_of(matrix)
        facts = {
            "curvature": MODES[self.mode],
            "smallest_eigenvalue": float(eigenvalues[0]),
            "largest_eigenvalue": float(eigenvalues[-1]),
            "condition_number": condition_number(eigenvalues),
            "gradient_norm": float(np.linalg.norm(gradient)),
        }
        arrays = {"matrix": matrix, "eigenvalues": eigenvalues, "gradient": gradient, "theta": curvature.theta}
        return Factor(arrays, facts)

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """(K + l2 I + delta I)^-1 q, and the spectrum of K + l2 I, delta, and |grad R(theta)|.

        Raises:
            ModelError: the matrix is not positive definite and the mode needs it to be.
        """
        from influence_cli.maths import inverse

        facts, matrix = self._taken(curvature)
        if self.mode in ("clamp", "abs"):
            return inverse.solve_spectral(matrix, q, self.mode, facts["damping"]), facts
        try:
            return inverse.solve_positive(inverse.shifted(matrix, facts["damping"]), q), facts
        except inverse.NotPositiveDefiniteError as error:
            raise self._singular(facts) from error

    def row_value(self, relative: bool = False) -> RowValue | None:
        """g_i^T (K + l2 I + delta I)^-1 g_i, where it is asked for."""
        return self_influence("exact") if relative else None

    def form(self, curvature: Curvature) -> tuple[OfBlocks, Facts]:
        """The same in float64, from the rows' whole gradients and one factorisation.

        Raises:
            ModelError: as ``precondition``.
        """
        from influence_cli.engines.row_values import DenseForm
        from influence_cli.maths import inverse

        facts, matrix = self._taken(curvature)
        if self.mode in ("clamp", "abs"):
            form = inverse.spectral_form(matrix, self.mode, facts["damping"])
        else:
            try:
                form = inverse.positive_form(inverse.shifted(matrix, facts["damping"]))
            except inverse.NotPositiveDefiniteError as error:
                raise self._singular(facts) from error
        return DenseForm(list(curvature.layout), form), facts

    def _taken(self, curvature: Curvature) -> tuple[Facts, Columns]:
        """The spectrum of K + l2 I, delta and |grad R(theta)|; and K + l2 I.

        Raises:
            ModelError: damped, and as the mode takes it, it is not positive definite.
        """
        from influence_cli.maths import inverse

        fitted, l2 = curvature.factor, self.l2 or 0.0
        eigenvalues = fitted["eigenvalues"] + l2
        taken = inverse.reshaped(eigenvalues, self.mode)
        damping = inverse.default_damping(taken) if self.damping is None else self.damping
        facts = {
            "mode": self.mode,
            "l2": l2,
            "damping": damping,
            "damping_by_rule": self.damping is None,
            "smallest_eigenvalue": float(eigenvalues[0]),
            "largest_eigenvalue": float(eigenvalues[-1]),
            "condition_number": inverse.condition_number(taken + damping),
            "gradient_norm": float(np.linalg.norm(fitted["gradient"] + l2 * fitted["theta"])),
        }
        if (taken + damping).min() <= inverse.rounding(taken + damping):
            raise self._singular(facts)
        return facts, inverse.shifted(fitted["matrix"], l2)

    def sentence(self, facts: Facts) -> str:
        """Spectrum, damping, l2 and stationarity."""
        rule = " by the default rule" if facts["damping_by_rule"] else ""
        return (
            f"{facts['mode']} of {facts['parameters']:,} parameters over {facts['fit_rows']:,} fit rows, eigenvalues "
            f"{facts['smallest_eigenvalue']:.3g} to {facts['largest_eigenvalue']:.3g} with l2 {facts['l2']:g}; damping "
            f"{facts['damping']:.3g}{rule}, condition number {facts['condition_number']:.3g}, "
            f"gradient norm of the training objective {facts['gradient_norm']:.3g}"
        )

    def _singular(self, facts: Facts) -> ModelError:
        smallest = facts["smallest_eigenvalue"]
        indefinite = self.mode == "damp" and smallest < -1e-12 * abs(facts["largest_eigenvalue"])
        what = "the Hessian is not positive definite" if indefinite else "the curvature is singular"
        fix = "use --set exact.mode=ggn, which never is indefinite, or clamp" if indefinite else "damp it"
        above = f" or --set exact.damping=X with X above {abs(smallest):.3g}"
        return ModelError(
            f"{what}: its smallest eigenvalue is {smallest:.6g}, the largest {facts['largest_eigenvalue']:.6g}, "
            f"and damping is {facts['damping']:.3g}; nothing was damped further",
            fix=fix + above if indefinite else "leave exact.damping out for the default rule," + above,
        )
