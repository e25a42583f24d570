"""Conjugate gradients for a symmetric matrix A [d, d] that is seen through products alone; in float64.

A preconditioner M [d, d], symmetric and positive definite, is an approximate inverse of A: the better it is, the fewer
products with A it takes (Hestenes and Stiefel 1952; Golub and Van Loan, section 11.5).  It moves no solution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.iterative import FORGETFUL, Floats, Interim, State, dots, norms

Product = Callable[[Floats], Floats]  # columns V [d, k] to A V

RECOMPUTE = 20  # iterations after which the residual is computed anew from its definition


@dataclass(frozen=True)
class Solved:
    """What conjugate gradients reached for each of k right-hand sides."""

    x: Floats  # [d, k]
    residuals: Floats  # [k]: |b - A x| / |b|, from its definition wherever the solve ended by itself
    iterations: NDArray[np.int64]  # [k]
    negative: Floats  # [k]: p.Ap / p.p where it was not positive and the solve stopped; NaN elsewhere
    course: Floats  # [m]: the largest of the residuals after every ``RECOMPUTE`` iterations


def conjugate_gradients(
    product: Product,
    b: Floats,
    tolerance: float = 1e-4,
    most: int = 100,
    interim: Interim = FORGETFUL,
    inverse: Product | None = None,
) -> Solved:
    """Columns x with |b - A x| <= tolerance |b| for those of b [d, k], by conjugate gradients from x = 0.

        alpha = r.r / p.Ap,  x += alpha p,  r -= alpha A p,  p = r' + (r'.r' / r.r) p

    With ``inverse``, products with M, z = M r takes the place of r in the inner products' second factor and in p.
    Columns go through A together and each has its own scalars; one that is done takes part no more.  Every 20
    iterations, and before a column ends, r = b - A x.  A column stops at p.Ap <= 0, where A is not positive definite.

    >>> solved = conjugate_gradients(lambda v: np.diag([1.0, 4.0]) @ v, np.array([[1.0], [8.0]]), 1e-12)
    >>> solved.x.round(12).ravel().tolist(), solved.iterations.tolist()
    ([1.0, 2.0], [2])
    """
    size = norms(b)
    kept = interim.load()
    s: State = _start(b, size, inverse) if kept is None else {"course": np.empty(0), **kept}  # older ones had none
    divisor = np.where(size > 0, size, 1.0)
    while True:
        going = (s["residuals"] > tolerance) & np.isnan(s["negative"]) & (s["iterations"] < most)
        if not going.any():
            return Solved(s["x"], s["residuals"], s["iterations"], s["negative"], s["course"])
        s = {name: array.copy() for name, array in s.items()}  # what was offered stays as it is
        on = np.flatnonzero(going)
        p = s["p"][:, on]
        ap = product(p)
        curvature = dots(p, ap)
        s["negative"][on] = np.where(curvature <= 0, curvature / dots(p, p), np.nan)
        good = curvature > 0
        on, p, ap, curvature = on[good], p[:, good], ap[:, good], curvature[good]
        if len(on):
            _step(product, b, s, on, (p, ap, curvature), divisor, tolerance, most, inverse)
            if s["iterations"].max() % RECOMPUTE == 0:
                s["course"] = np.append(s["course"], s["residuals"].max())
        interim.offer(lambda s=s: s)


def _start(b: Floats, size: Floats, inverse: Product | None) -> State:
    """The state before the first iteration for columns of these norms."""
    p = b.copy() if inverse is None else inverse(b)
    return {
        "x": np.zeros_like(b),
        "r": b.copy(),
        "p": p,
        "residuals": (size > 0).astype(np.float64),
        "iterations": np.zeros(b.shape[1], dtype=np.int64),
        "negative": np.full(b.shape[1], np.nan),
        "course": np.empty(0),
        **({} if inverse is None else {"rz": dots(b, p)}),
    }


def _step(
    product: Product,
    b: Floats,
    s: State,
    on: NDArray[np.intp],
    along: tuple[Floats, Floats, Floats],
    divisor: Floats,
    tolerance: float,
    most: int,
    inverse: Product | None,
) -> None:
    """One iteration of the columns ``on``, whose p, A p and p.Ap are ``along``."""
    p, ap, curvature = along
    r = s["r"][:, on]
    before = dots(r, r) if inverse is None else s["rz"][on]
    alpha = before / curvature
    x, r = s["x"][:, on] + alpha * p, r - alpha * ap
    s["iterations"][on] += 1
    steps = s["iterations"][on]
    small = norms(r) <= tolerance * divisor[on]
    anew = np.flatnonzero(small | (steps % RECOMPUTE == 0) | (steps == most))
    if len(anew):
        r[:, anew] = b[:, on[anew]] - product(x[:, anew])
    s["residuals"][on] = norms(r) / divisor[on]
    z = r if inverse is None else inverse(r)
    after = dots(r, z)
    if inverse is not None:
        s["rz"][on] = after
    beta = after / before
    beta[small] = 0.0  # where the residual was only thought to be small, conjugacy is lost: start again from here
    s["x"][:, on], s["r"][:, on], s["p"][:, on] = x, r, z + beta * p
