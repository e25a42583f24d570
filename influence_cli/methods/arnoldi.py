"""Influence in the sharp directions of curvature: Ritz pairs of a Krylov space, found by Lanczos.

    U nu U^T ~ K,    u = U (nu + l2 + delta)^-1 U^T q  [+ (q - U U^T q) / (nu_min + l2 + delta)],    s_i = < g_i, u >

W holds up to k Lanczos vectors of K from a random start, each made orthogonal to all before it twice; U nu U^T are the
r largest by size among the eigenpairs of W^T K W, less those at or below 1e-6 of the largest and, but for
``keep_negative``, negative ones (l2 included).  The term in brackets is ``complement``: directions outside of U as if
of the smallest curvature kept.  Where the space is complete before k vectors, all that were found are kept.

Without the complement this is no approximation of ``exact`` but its restriction to sharp directions: small eigenvalues,
which dominate an inverse, are left out.  With r=all, and K complete in k vectors, it equals ``exact`` for directions in
the range of K.  An eigenvalue that stands more than once is seen once, in one direction.

Schioppa et al. 2022 (arXiv:2112.03052).  The basis is fitted once, for every objective, damping, l2 and r.  The default
delta is 0: nothing is kept that ``exact`` would damp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.errors import ModelError, UsageError
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Columns, Facts
from influence_cli.methods.shapes.by_products import MODES, ByProducts
from influence_cli.methods.shapes.preconditioned import Costs, Factor
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

VECTORS = 200
BREAKDOWN = {"fp64": 1e-8, "fp32": 1e-4}


@dataclass(frozen=True)
class Arnoldi(ByProducts):
    """Inverse curvature on the span of its leading Ritz vectors."""

    k: int | None = setting(None, "Lanczos vectors, one pass each (default: min(200, parameters))", "passes")
    r: str = setting("50", "Ritz pairs to keep, at most: a number, or all")
    complement: bool = setting(False, "count directions outside of these as of the smallest curvature kept")
    keep_negative: bool = setting(False, "keep negative Ritz values too (mode hessian)")
    seed: int = setting(0, "of the start vector")
    max_gigabytes: float = setting(8.0, "refuse a larger basis: it is held in memory", "GB", limit=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r != "all" and not (str(self.r).isdecimal() and int(self.r) >= 1):
            raise ValueError(f"r={self.r} is neither a positive whole number nor all")
        check_options(self, {}, {"k": 1, "seed": 0}, positive=("max_gigabytes",))

    def fitted(self) -> dict[str, Any]:
        """The Krylov basis of one curvature from one start."""
        about = {"curvature": MODES[self.mode], "k": self.k or VECTORS, "seed": self.seed, **self._seen()}
        return {"kind": "krylov", "revision": 1, **about}

    def vectors(self, parameters: int) -> int:
        """The most Lanczos vectors of so many parameters."""
        return min(self.k or VECTORS, parameters)

    def costs(self, rows: int, parameters: int) -> Costs:
        """A pass for each vector, and one for the gradient; the factor is the basis and two vectors."""
        k = self.vectors(parameters)
        size = k * parameters * (4 if self.single(parameters) else 8) + 16 * parameters
        return replace(super().costs(rows, parameters), fit_passes=k + 1, factor_bytes=size)

    def check_size(self, parameters: int) -> None:
        """Refuse a basis that is larger than ``max_gigabytes``.

        Raises:
            UsageError: it is.
        """
        size, k = self.costs(0, parameters).factor_bytes, self.vectors(parameters)
        if size > self.max_gigabytes * 1e9:
            fewer = int((self.max_gigabytes * 1e9 - 16 * parameters) / ((size - 16 * parameters) / k))
            raise UsageError(
                f"arnoldi would hold {k} vectors of {parameters:,} parameters, {size / 1e9:.3g} GB, and "
                f"max_gigabytes is {self.max_gigabytes:g}",
                fix=f"--set arnoldi.k={max(1, fewer)}, select fewer parameters (--params last), or raise "
                "arnoldi.max_gigabytes",
            )

    def fit(self, curvature: Curvature) -> Factor:
        """The Krylov basis, the matrix in it, the data term's gradient and the parameters."""
        from influence_cli.maths.lanczos import lanczos, ritz

        seen, single = self.seen(curvature, self.fit_sample), self.single(curvature.size)
        start = np.random.default_rng(self.seed).standard_normal(curvature.size)
        most, tolerance = self.vectors(curvature.size), BREAKDOWN["fp32" if single else "fp64"]
        with curvature.listener.progress("curvature (lanczos)", most + 1, "passes over the fit rows") as progress:
            gradient = seen.quadratic(np.zeros((curvature.size, 0)))[1]
            progress.advance(1)

            def product(v: Columns) -> Columns:
                image = seen.product(MODES[self.mode], v)
                progress.advance(1)
                return image

            start = start.astype(np.float32 if single else np.float64)
            found = lanczos(product, start, most, tolerance, curvature.interim)
        values = ritz(found.diagonal, found.beside)[0]
        facts = {"curvature": MODES[self.mode], "vectors": len(found.basis), "complete": found.complete}
        facts |= {"smallest_ritz_value": float(values[0]), "largest_ritz_value": float(values[-1])}
        facts["gradient_norm"] = float(np.linalg.norm(gradient))
        return Factor({**found.arrays(), "gradient": gradient, "theta": curvature.theta}, facts)

    def fit_some(self, curvature: Curvature) -> int:
        """One product with one vector."""
        self.solve_some(np.ones((curvature.size, 1)), curvature)
        return 1

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """U (nu + l2 + delta)^-1 U^T q, and how much of q that saw.

        Raises:
            ModelError: nothing is left to invert, or a negative value and damping cancel.
        """
        from influence_cli.maths.lanczos import RitzPairs

        damping, most = self.damping or 0.0, None if self.r == "all" else int(self.r)
        pairs = RitzPairs.of(curvature.factor, self.l2 or 0.0, most, self.keep_negative)
        kept = pairs.values[pairs.kept]
        if len(kept) == 0:
            raise ModelError(
                f"no Ritz value can be kept: the largest is {pairs.values[-1]:.3g}",
                fix="use --set arnoldi.mode=ggn, or another method",
            )
        if not pairs.invertible(damping):
            raise ModelError(
                f"a Ritz value with damping {damping:.3g} is {np.abs(kept + damping).min():.3g}, which cannot be "
                "inverted",
                fix="give another --set arnoldi.damping=X, or leave out arnoldi.keep_negative",
            )
        u, shares = pairs.inverse(q, damping, self.complement)
        facts = {**self.facts_of(curvature, damping, self.damping is None), **pairs.facts()}
        return u, {**facts, "share_of_direction": float((shares**2).min())}
