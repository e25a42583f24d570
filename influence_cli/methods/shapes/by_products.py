"""What methods share that see curvature through products alone: which matrix, how precisely, on how many rows.

    A = K + (l2 + delta) I,    K = G (mode ggn) or H (mode hessian) over the fit rows, or over ``fit_sample`` of them

The spectrum of K is not known.  That of K + l2 I lies between l2 and tr K + l2 where K has no negative eigenvalue, so
the default delta is 0 where l2 is above 1e-8 of tr K + l2 (``exact`` would say 0 too), and else a share, which each
method states, of the mean eigenvalue (tr K)/d + l2.  tr K is that of G in both modes: exact up to 128 parameters,
else estimated from 8 random sign vectors v as the mean of v^T G v (Hutchinson 1990).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Columns, Facts
from influence_cli.methods.shapes.preconditioned import PRECISIONS, Costs, Factor, Streamed
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.dense import CurvatureKind

MODES: dict[str, CurvatureKind] = {"ggn": "ggn", "hessian": "hessian"}
EXACT_TRACE = 128  # parameters up to which the trace is exact
PROBES = 8


@dataclass(frozen=True)
class ByProducts(Streamed):
    """A method that needs K v alone; ``fit`` measures what default damping and the summary need to know of K."""

    mode: str = setting("ggn", "curvature: " + ", ".join(MODES))
    fit_sample: int | None = setting(
        None, "look at so many of the fit rows, chosen by their keys (default: all)", unit="rows"
    )

    revision: ClassVar[int] = 2  # 1 took unused parameters into the mean that damping is a share of
    share: ClassVar[float] = 1e-3  # of the mean eigenvalue: default delta where the matrix may be singular

    def __post_init__(self) -> None:
        check_options(self, {"mode": tuple(MODES), "precision": PRECISIONS}, {"fit_sample": 1})

    def fitted(self) -> dict[str, Any]:
        """Trace and gradient: the same for every method and mode."""
        return {"kind": "trace", "revision": 1, **self._seen()}

    def _seen(self) -> dict[str, Any]:
        return {"precision": self.precision, "fit_sample": self.fit_sample}

    def costs(self, rows: int, parameters: int) -> Costs:
        """One pass over ``fit_sample`` rows; the factor is two vectors."""
        return Costs(min(rows, self.fit_sample or rows), 8 * (2 * parameters + 1))

    def fit(self, curvature: Curvature) -> Factor:
        """The trace of G, the data term's gradient and the parameters."""
        d = curvature.size
        exact = d <= EXACT_TRACE
        probes = np.eye(d) if exact else np.random.default_rng(0).choice([-1.0, 1.0], (d, PROBES))
        seen = self.seen(curvature, self.fit_sample)
        with curvature.listener.progress("curvature (trace)", 1, "passes over the fit rows") as progress:
            forms, gradient = seen.quadratic(probes)
            progress.advance(1)
        trace = float(forms.sum() if exact else forms.mean())
        facts = {
            "trace": trace,
            "mean_eigenvalue": trace / d,
            "trace_is_exact": exact,
            "gradient_norm": float(np.linalg.norm(gradient)),
        }
        return Factor({"trace": np.array([trace]), "gradient": gradient, "theta": curvature.theta}, facts)

    def solve_some(self, columns: Columns, curvature: Curvature) -> float:
        """One product with all columns."""
        self.seen(curvature, self.fit_sample).product(MODES[self.mode], columns)
        return 1.0

    def default_damping(self, curvature: Curvature) -> float:
        """Delta where none was given."""
        from influence_cli.maths.inverse import bounded_damping

        return bounded_damping(float(curvature.factor["trace"][0]), curvature.size, self.l2 or 0.0, self.share)

    def facts_of(self, curvature: Curvature, damping: float, by_rule: bool) -> Facts:
        """What is worth saying of the matrix and of how it was seen."""
        return {
            "mode": self.mode,
            "l2": self.l2 or 0.0,
            "damping": damping,
            "damping_by_rule": by_rule,
            "precision": self.precision_at(curvature.size),
            "product_rows": self.costs(len(curvature.rows), curvature.size).rows,
            "gradient_norm": self.objective_gradient_norm(curvature),
        }
