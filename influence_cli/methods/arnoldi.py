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

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import ModelError, UsageError
from influence_cli.methods.protocol import Columns, Factor, Facts
from influence_cli.methods.shapes.by_products import MODES, ByProducts

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

VECTORS = 200
BREAKDOWN = {"fp64": 1e-8, "fp32": 1e-4}
SMALL = 1e-6  # of the largest Ritz value: what is at or below is left out
BLOCK = 16  # basis vectors that are taken to float64 at once


@dataclass(frozen=True)
class Arnoldi(ByProducts):
    """Inverse curvature on the span of its leading Ritz vectors."""

    k: int | None = field(
        default=None,
        metadata={"help": "Lanczos vectors, one pass each (default: min(200, parameters))", "unit": "passes"},
    )
    r: str = field(default="50", metadata={"help": "Ritz pairs to keep, at most: a number, or all"})
    complement: bool = field(
        default=False, metadata={"help": "count directions outside of these as of the smallest curvature kept"}
    )
    keep_negative: bool = field(default=False, metadata={"help": "keep negative Ritz values too (mode hessian)"})
    seed: int = field(default=0, metadata={"help": "of the start vector"})
    max_gigabytes: float = field(
        default=8.0, metadata={"help": "refuse a larger basis: it is held in memory", "unit": "GB", "limit": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r != "all" and not (str(self.r).isdecimal() and int(self.r) >= 1):
            raise ValueError(f"r={self.r} is neither a positive whole number nor all")
        if self.k is not None and self.k < 1:
            raise ValueError(f"k={self.k} is below 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative")
        if not self.max_gigabytes > 0:
            raise ValueError(f"max_gigabytes={self.max_gigabytes} is not positive")

    def fitted(self) -> dict[str, Any]:
        """The Krylov basis of one curvature from one start."""
        about = {"curvature": MODES[self.mode], "k": self.k or VECTORS, "seed": self.seed, **self._seen()}
        return {"kind": "krylov", "revision": 1, **about}

    def vectors(self, parameters: int) -> int:
        """The most Lanczos vectors of so many parameters."""
        return min(self.k or VECTORS, parameters)

    def factor_bytes(self, parameters: int) -> int:
        """The basis, and two vectors."""
        return self.vectors(parameters) * parameters * (4 if self.single(parameters) else 8) + 16 * parameters

    def fit_passes(self, parameters: int) -> int:
        """One a vector, and one for the gradient."""
        return self.vectors(parameters) + 1

    def check_size(self, parameters: int) -> None:
        """Refuse a basis that is larger than ``max_gigabytes``.

        Raises:
            UsageError: it is.
        """
        size, k = self.factor_bytes(parameters), self.vectors(parameters)
        if size > self.max_gigabytes * 1e9:
            fewer = int((self.max_gigabytes * 1e9 - 16 * parameters) / ((size - 16 * parameters) / k))
            raise UsageError(
                f"arnoldi would hold {k} vectors of {parameters:,} parameters, {size / 1e9:.3g} GB, and "
                f"max_gigabytes is {self.max_gigabytes:g}",
                fix=f"--set arnoldi.k={max(1, fewer)}, select fewer parameters (--params last), or raise "
                "arnoldi.max_gigabytes: writing the basis takes twice its size",
            )

    def fit(self, curvature: Curvature) -> Factor:
        """The Krylov basis, the matrix in it, the data term's gradient and the parameters."""
        from influence_cli.maths.krylov import lanczos, ritz

        seen, single = self.seen(curvature), self.single(curvature.size)
        start = np.random.default_rng(self.seed).standard_normal(curvature.size)
        most, tolerance = self.vectors(curvature.size), BREAKDOWN["fp32" if single else "fp64"]
        with curvature.listener.progress("curvature (lanczos)", most + 1, "passes over the fit rows") as progress:
            gradient = seen.quadratic(np.zeros((curvature.size, 0)))[1]
            progress.advance(1)

            def product(v: Columns) -> Columns:
                image = seen.product(MODES[self.mode], v)
                progress.advance(1)
                return image

            found = lanczos(
                product, start.astype(np.float32 if single else np.float64), most, tolerance,
                curvature.interim.load(), curvature.interim.offer,
            )  # fmt: skip
        values = ritz(found.diagonal, found.beside)[0]
        facts = {
            "curvature": MODES[self.mode],
            "vectors": len(found.basis),
            "complete": found.complete,
            "smallest_ritz_value": float(values[0]),
            "largest_ritz_value": float(values[-1]),
            "gradient_norm": float(np.linalg.norm(gradient)),
        }
        arrays = {
            "basis": found.basis, "diagonal": found.diagonal, "beside": found.beside,
            "complete": np.array([float(found.complete)]), "gradient": gradient, "theta": curvature.theta,
        }  # fmt: skip
        return Factor(arrays, facts)

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """U (nu + l2 + delta)^-1 U^T q, and how much of q that saw.

        Raises:
            ModelError: nothing is left to invert, or a negative value and damping cancel.
        """
        from influence_cli.maths.krylov import norms, ritz

        fitted, l2 = curvature.factor, self.l2 or 0.0
        damping = 0.0 if self.damping is None else self.damping
        values, vectors = ritz(fitted["diagonal"], fitted["beside"])
        shifted = values + l2
        kept = self._kept(shifted)
        facts = self.facts_of(curvature, damping, self.damping is None)
        if len(kept) == 0:
            raise ModelError(
                f"no Ritz value can be kept: the largest is {shifted[-1]:.3g}",
                fix="use --set arnoldi.mode=ggn, or another method",
            )
        chosen = shifted[kept] + damping
        if np.abs(chosen).min() <= SMALL * np.abs(chosen).max():
            raise ModelError(
                f"a Ritz value with damping {damping:.3g} is {np.abs(chosen).min():.3g}, which cannot be inverted",
                fix="give another --set arnoldi.damping=X, or leave out arnoldi.keep_negative",
            )
        inside = vectors[:, kept].T @ _project(fitted["basis"], q)  # U^T q [r, k]
        weights = 1.0 / chosen[:, None]
        outside = 1.0 / float(chosen[np.argmin(np.abs(shifted[kept]))]) if self.complement else 0.0
        u = _expand(fitted["basis"], vectors[:, kept] @ ((weights - outside) * inside)) + outside * q
        sizes = norms(q)
        seen = norms(inside) / np.where(sizes > 0, sizes, 1.0)
        residuals = np.abs(fitted["beside"][-1] * vectors[-1, kept]) / np.abs(shifted).max()
        facts |= {
            "vectors": len(values),
            "complete": bool(fitted["complete"][0]),
            "kept": len(kept),
            "negative": int((shifted < -SMALL * np.abs(shifted).max()).sum()),
            "smallest_kept": float(shifted[kept].min()),
            "largest_kept": float(shifted[kept].max()),
            "ritz_residual": float(residuals.max()),
            "share_of_direction": float((seen**2).min()),
        }
        return u, facts

    def sentence(self, facts: Facts) -> str:
        """The matrix, what was kept of its spectrum, and what of the direction that holds."""
        vectors = f"{facts['vectors']} Lanczos vectors" + (" (complete)" if facts["complete"] else "")
        negative = f", {facts['negative']} negative" if facts["negative"] else ""
        beyond = "the rest as if of the smallest" if self.complement else "the rest is left out"
        return (
            f"{self.opening(facts)}; {vectors}, {facts['kept']} Ritz values kept from {facts['smallest_kept']:.3g} "
            f"to {facts['largest_kept']:.3g}{negative}, known to {facts['ritz_residual']:.2g} of the largest; "
            f"{facts['share_of_direction']:.1%} of the direction's square lies in their span, {beyond}; "
            f"gradient norm of the training objective {facts['gradient_norm']:.3g}"
        )

    def _kept(self, shifted: NDArray[np.float64]) -> NDArray[np.intp]:
        """Which Ritz values to keep, the largest by size first."""
        sizes = np.abs(shifted)
        order = np.argsort(-sizes, kind="stable")
        large = sizes > SMALL * sizes.max()
        wanted = large if self.keep_negative else large & (shifted > 0)
        order = order[wanted[order]]
        return order if self.r == "all" else order[: int(self.r)]


def _project(basis: NDArray[Any], columns: Columns) -> Columns:
    """W Q [m, k] for rows W [m, d], in float64 though they be in float32."""
    blocks = range(0, len(basis), BLOCK)
    return np.concatenate([basis[first : first + BLOCK].astype(np.float64) @ columns for first in blocks])


def _expand(basis: NDArray[Any], weights: Columns) -> Columns:
    """W^T A [d, k] for rows W [m, d] and A [m, k]."""
    total = np.zeros((basis.shape[1], weights.shape[1]))
    for first in range(0, len(basis), BLOCK):
        total += basis[first : first + BLOCK].astype(np.float64).T @ weights[first : first + BLOCK]
    return total
