"""Influence by conjugate gradients: the solve of ``exact`` without its matrix, for any number of parameters.

    u = (K + l2 I + delta I)^-1 grad Phi(theta),    s_i = < grad l_i(theta), u >

until |A u - grad Phi| <= tolerance |grad Phi|, A = K + (l2 + delta) I, from u = 0.  K is the GGN (which never is
indefinite), or with mode hessian the Hessian, for convex objectives.  Every iteration is one product with K over all
fit rows: rows are never drawn anew between iterations, which would break conjugacy, nor are batches inverted one by
one, since the mean of inverses is not the inverse of the mean.  All directions of a run share the passes.

Hestenes and Stiefel 1952; Koh and Liang 2017 (arXiv:1703.04730), section 3; Martens 2010 for the products with G.
The default delta is 0 where l2 is above 1e-8 of tr K + l2, else 1e-3 of the mean eigenvalue of K + l2 I.

``preconditioner=ekfac``: the solve goes through EKFAC's inverse of A (``methods.shapes.with_ekfac``).  What it solves
is the same, in fewer passes over the fit rows.

Rounding, which differs with batch size and threads, moves where the solve stands when it ends: by as much as the
tolerance leaves open.  With products in float64 the default tolerance is 1e-8, at which scores agree to about 1e-6
whatever moved them; it takes about twice the passes of 1e-4, the default in float32, whose products resolve no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from influence_cli.errors import ModelError
from influence_cli.maths.conjugate_gradients import RECOMPUTE, Solved, conjugate_gradients
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Columns, Facts
from influence_cli.methods.shapes.by_products import MODES
from influence_cli.methods.shapes.preconditioned import Costs
from influence_cli.methods.shapes.with_ekfac import WithEKFAC
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

SINGLE, DOUBLE = (1e-4, 100), (1e-8, 1000)  # default tolerance and most iterations, by the precision of products


@dataclass(frozen=True)
class CG(WithEKFAC):
    """Inverse curvature by conjugate gradients."""

    tolerance: float | None = setting(
        None,
        "largest residual |A u - q| at which the solve ends (default: 1e-8 in fp64, 1e-4 in fp32)",
        "share of |q|",
    )
    max_iterations: int | None = setting(
        None,
        "iterations after which it ends in any case (default: 1000 in fp64, 100 in fp32)",
        "passes over the fit rows",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance} is not between 0 and 1")
        check_options(self, {}, {"max_iterations": 1})

    def ends(self, parameters: int) -> tuple[float, int]:
        """Tolerance and most iterations: those asked for, or what the precision of products is good for."""
        tolerance, most = SINGLE if self.single(parameters) else DOUBLE
        return self.tolerance or tolerance, self.max_iterations or most

    def costs(self, rows: int, parameters: int) -> Costs:
        """One pass an iteration, and one for each residual that is computed anew."""
        most = self.ends(parameters)[1]
        return replace(super().costs(rows, parameters), solve_passes=most + most // RECOMPUTE + 1)

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """A^-1 q, with the largest residual, at the end and on the way, and the most iterations over the columns.

        Raises:
            ModelError: A is not positive definite, or the solve went nowhere.
        """
        damping = self.default_damping(curvature) if self.damping is None else self.damping
        seen, shift = self.seen(curvature, self.fit_sample), (self.l2 or 0.0) + damping
        tolerance, iterations = self.ends(seen.size)
        most = int(self.costs(len(seen.rows), seen.size).solve_passes)
        m = self.inverse(curvature, damping)
        with curvature.listener.progress("curvature (cg)", most, "passes over the fit rows") as progress:

            def product(v: Columns) -> Columns:
                image = seen.product(MODES[self.mode], v) + shift * v
                progress.advance(1)
                return image

            single = self.single(seen.size)
            inverse = None if m is None else partial(m.apply, sizes=curvature.sizes, single=single)
            solved = conjugate_gradients(product, q, tolerance, iterations, curvature.interim, inverse)
        worst = float(solved.residuals.max())
        facts = {
            **self.facts_of(curvature, damping, self.damping is None),
            "residual": worst,
            "tolerance": tolerance,
            "iterations": int(solved.iterations.max()),
            "residual_every": RECOMPUTE,
            "residual_course": [float(f"{r:.4g}") for r in solved.course],
            "converged": bool((solved.residuals <= tolerance).all()),
            **({} if m is None else {"preconditioner": self.preconditioner}),
        }
        self._refuse(solved, facts, shift)
        return solved.x, facts

    def warnings(self, facts: Facts) -> list[str]:
        """That the solve did not converge."""
        if facts.get("converged", True):
            return []
        return [
            f"the solve has not converged: after {facts['iterations']} iterations the residual is "
            f"{facts['residual']:.3g} of the direction, above the tolerance {facts['tolerance']:g}; the scores are not "
            "those of the inverse (raise --set cg.max_iterations, or cg.damping)"
        ]

    def _refuse(self, solved: Solved, facts: Facts, shift: float) -> None:
        """Refuse what is no inverse at all."""
        negative = solved.negative[~np.isnan(solved.negative)]
        if len(negative):
            below = float(negative.min())
            fix = "leave cg.damping out for the default rule, or raise it; or --set cg.precision=fp64"
            if self.mode == "hessian":
                fix = "use --set cg.mode=ggn, which never is indefinite, or --set cg.damping=X with X above "
                fix += f"{facts['damping'] - below:.3g}, and more where the spectrum reaches lower"
            raise ModelError(
                f"negative curvature: after {facts['iterations']} iterations p.Ap is {below:.6g} of p.p, so the "
                f"{self.mode} with {shift:.3g} added to its eigenvalues is not positive definite",
                fix=fix,
            )
        if not facts["residual"] <= 1.0:
            raise ModelError(
                f"the solve went nowhere: after {facts['iterations']} iterations the residual is "
                f"{facts['residual']:.3g} of the direction, more than that of no solve at all",
                fix=f"raise cg.damping (it is {facts['damping']:.3g}) or cg.max_iterations",
            )
