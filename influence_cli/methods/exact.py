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

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import ModelError, UsageError
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Columns, Facts, OfBlocks, RowValue
from influence_cli.methods.self_lissa import self_influence
from influence_cli.methods.shapes.preconditioned import Costs, Factor, Preconditioned
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.dense import CurvatureKind
    from influence_cli.maths.inverse import DenseInverse

Floats = NDArray[np.float64]
MODES: dict[str, CurvatureKind] = {
    "ggn": "ggn", "damp": "hessian", "clamp": "hessian", "abs": "hessian", "fisher": "ggn", "emp": "empirical",
}  # fmt: skip


@dataclass(frozen=True)
class Exact(Preconditioned):
    """Dense inverse curvature, for up to some thousands of parameters."""

    relative: ClassVar[bool] = True
    l2_by_parameter: ClassVar[bool] = True
    revision: ClassVar[int] = 2  # 1 took unused parameters into the mean that damping is a share of

    mode: str = setting("ggn", "curvature: " + ", ".join(MODES))
    max_parameters: int = setting(5000, "refuse more selected parameters: memory grows with d^2", limit=True)

    def __post_init__(self) -> None:
        check_options(self, {"mode": tuple(MODES)}, {"max_parameters": 1})

    def with_l2(self, l2: Mapping[str, float]) -> Preconditioned:
        """The method with the l2 on each parameter."""
        options: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        options |= {"l2": max(l2.values()), "by_parameter": tuple(l2.items())}
        return ExactByParameter(**options)

    def fitted(self) -> dict[str, Any]:
        """The dense matrix of one curvature: modes that invert the same matrix share it."""
        return {"kind": "dense", "revision": 1, "curvature": MODES[self.mode]}

    def costs(self, rows: int, parameters: int) -> Costs:
        """One pass; the factor is a float64 matrix and three vectors."""
        return Costs(rows, 8 * parameters * (parameters + 3))

    def check_size(self, parameters: int) -> None:
        """Refuse more than ``max_parameters``.

        Raises:
            UsageError: they are more.
        """
        if parameters > self.max_parameters:
            size = f"{self.costs(0, parameters).factor_bytes / 1e9:,.3g} GB"
            raise UsageError(
                f"exact inverts a matrix of {parameters:,} by {parameters:,} parameters, and max_parameters is "
                f"{self.max_parameters:,}",
                fix="select fewer (--params last), use another method (ip), "
                f"or --set exact.max_parameters={parameters}: the matrix takes {size}, fitting it four times that",
            )

    def fit(self, curvature: Curvature) -> Factor:
        """The matrix K, its eigenvalues, the data term's gradient and the parameters."""
        from influence_cli.maths.inverse import spectrum

        matrix, gradient = curvature.dense(MODES[self.mode])
        eigenvalues = np.linalg.eigvalsh(matrix).astype(np.float64, copy=False)
        facts = {"curvature": MODES[self.mode], **spectrum(eigenvalues, eigenvalues)}
        facts["gradient_norm"] = float(np.linalg.norm(gradient))
        arrays = {"matrix": matrix, "eigenvalues": eigenvalues, "gradient": gradient, "theta": curvature.theta}
        return Factor(arrays, facts)

    def fit_some(self, curvature: Curvature) -> int:
        """The matrix alone."""
        curvature.dense(MODES[self.mode])
        return 1

    def decomposed(self, curvature: Curvature) -> list[int]:
        """The matrix."""
        return [curvature.size]

    def decompose(self, matrix: Floats) -> None:
        """Its eigenvalues and its inverse."""
        from influence_cli.maths.inverse import DenseInverse

        np.linalg.eigvalsh(matrix)
        DenseInverse(matrix, self.mode, 0.0)

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """(K + l2 I + delta I)^-1 q, and the spectrum of K + l2 I, delta, and |grad R(theta)|.

        Raises:
            ModelError: damped, and as the mode takes it, the matrix is not positive definite.
        """
        inverse, facts = self._inverse(curvature)
        return inverse.solve(q), facts

    def row_value(self, relative: bool = False) -> RowValue | None:
        """g_i^T (K + l2 I + delta I)^-1 g_i, where it is asked for."""
        return self_influence("exact") if relative else None

    def form(self, curvature: Curvature) -> tuple[OfBlocks, Facts]:
        """The same in float64, from rows' whole gradients and one factorisation; errors as of ``precondition``."""
        from influence_cli.engines.row_values import DenseForm

        inverse, facts = self._inverse(curvature)
        return DenseForm(list(curvature.layout), inverse.form), facts

    def _inverse(self, curvature: Curvature) -> tuple[DenseInverse, Facts]:
        """The inverse; the spectrum of K + l2 I, delta and |grad R(theta)|."""
        from influence_cli.maths import inverse

        l2, (matrix, eigenvalues) = self.l2 or 0.0, self._with_l2(curvature)
        taken = inverse.reshaped(eigenvalues, self.mode)
        damping = inverse.default_damping(taken) if self.damping is None else self.damping
        facts = {"mode": self.mode, "l2": l2, "damping": damping, "damping_by_rule": self.damping is None}
        facts |= inverse.spectrum(eigenvalues, taken + damping)
        facts["gradient_norm"] = self.objective_gradient_norm(curvature)
        if not inverse.is_positive(taken + damping):
            raise self._singular(facts)
        try:
            return inverse.DenseInverse(matrix, self.mode, damping), facts
        except inverse.NotPositiveDefiniteError as error:
            raise self._singular(facts) from error

    def _with_l2(self, curvature: Curvature) -> tuple[Floats, Floats]:
        """K + l2 I [d, d] and its eigenvalues [d]."""
        from influence_cli.maths import inverse

        fitted, l2 = curvature.factor, self.l2 or 0.0
        return inverse.shifted(fitted["matrix"], l2), fitted["eigenvalues"] + l2

    def _singular(self, facts: Facts) -> ModelError:
        smallest, largest = facts["smallest_eigenvalue"], facts["largest_eigenvalue"]
        above = f" or --set exact.damping=X with X above {abs(smallest):.3g}"
        what, fix = "the curvature is singular", "leave exact.damping out for the default rule,"
        if self.mode == "damp" and smallest < -1e-12 * abs(largest):
            what = "the Hessian is not positive definite"
            fix = "use --set exact.mode=ggn, which never is indefinite, or clamp"
        return ModelError(
            f"{what}: its smallest eigenvalue is {smallest:.6g}, the largest {largest:.6g}, and damping is "
            f"{facts['damping']:.3g}; nothing was damped further",
            fix=fix + above,
        )


@dataclass(frozen=True)
class ExactByParameter(Exact):
    """``exact`` of a softmax model whose l2 differs by parameter, as where none is on the intercept.

    Where a parameter [C, ...] has none, moving it alike for all C classes changes no probability: no gradient lies in
    those directions, and K is made 1/d of its trace there, so that it can be inverted and no score changes.
    """

    by_parameter: tuple[tuple[str, float], ...] = ()

    def _l2(self, curvature: Curvature) -> Floats:
        """The l2 [d] on every parameter."""
        of = dict(self.by_parameter)
        return np.concatenate([np.full(shape.numel(), of[name]) for name, shape in curvature.layout.items()])

    def _with_l2(self, curvature: Curvature) -> tuple[Floats, Floats]:
        fitted, l2, at = curvature.factor, self._l2(curvature), 0
        matrix = fitted["matrix"] + np.diag(l2)
        size = max(float(np.trace(fitted["matrix"])) / len(l2), np.finfo(np.float64).tiny)
        for shape in curvature.layout.values():
            own, classes = slice(at, at + shape.numel()), shape[0]
            if not l2[own].any():
                alike = np.full((classes, classes), size / classes)
                matrix[own, own] += np.kron(alike, np.eye(shape.numel() // classes))
            at += shape.numel()
        return matrix, np.linalg.eigvalsh(matrix).astype(np.float64, copy=False)

    def objective_gradient_norm(self, curvature: Curvature) -> float:
        """|grad R(theta)| with every parameter's own l2."""
        fitted = curvature.factor
        return float(np.linalg.norm(fitted["gradient"] + self._l2(curvature) * fitted["theta"]))
