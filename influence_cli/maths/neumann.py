"""The truncated Neumann series for A^-1 b with a noisy A, and the scale that it needs; in float64.

    u_0 = b,    u_j+1 = b + u_j - (1/c) A_j u_j,    result u_J / c

A_j is symmetric, positive definite, and an unbiased estimate of A.  With A_j = A an eigenvector of A with eigenvalue h
is multiplied by (1 - (1 - h/c)^(J+1)) / h: it is inverted where h is far above c/J, and multiplied by (J+1)/c where it
is far below.  Truncation damps by about c/J.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from influence_cli.maths.iterative import Floats, State, norms


class DivergedError(Exception):
    """An iterate is larger than any that a converging series could reach."""


def largest_eigenvalue(product: Callable[[Floats], Floats], start: Floats, steps: int) -> float:
    """|A v| for unit v after that many power iterations from ``start`` [d]: at most the largest eigenvalue of A.

    >>> round(largest_eigenvalue(lambda v: np.diag([1.0, 4.0]) @ v, np.ones(2), 20), 6)
    4.0
    """
    v, size = start / np.linalg.norm(start), 0.0
    for _ in range(steps):
        image = product(v[:, None])[:, 0]
        size = float(np.linalg.norm(image))
        if size == 0.0 or not np.isfinite(size):
            return size
        v = image / size
    return size


def tail_start(depth: int, tail: float) -> int:
    """First iterate of the last share ``tail`` of u_1 .. u_J; J where that is none.

    >>> tail_start(10, 0.2), tail_start(10, 0.0), tail_start(3, 0.2)
    (9, 10, 3)
    """
    return min(depth, depth - int(tail * depth) + 1)


def largest_possible(scale: float, floor: float, step: int) -> float:
    """Bound of |u_j| / |b| where every A_j has its eigenvalues in [floor, 2c - floor].

    >>> largest_possible(10.0, 0.5, 5), largest_possible(10.0, 0.5, 1000), largest_possible(10.0, 0.0, 1000)
    (6.0, 21.0, 1001.0)
    """
    forever = scale / floor + 1.0 if floor > 0 else np.inf
    return min(forever, step + 1.0)


def neumann(
    product: Callable[[int, Floats], Floats],
    b: Floats,
    scale: float,
    depth: int,
    floor: float,
    tail: float = 0.0,
    state: State | None = None,
    offer: Callable[[State], None] = lambda _: None,
    slack: float = 1.0,
) -> Floats:
    """The columns u / c for those of b [d, k]; u is u_J, J = ``depth``, or the mean over the last share ``tail``.

    ``product`` maps (j, V) to A_j V, in an array of its own, which is written over.  Where A_j is symmetric in another
    inner product alone, ``slack`` is by how much Euclidean norms may differ from its own.

    >>> neumann(lambda j, v: 2.0 * v, np.ones((1, 1)), 4.0, 1, 0.0).tolist()
    [[0.375]]

    Raises:
        DivergedError: an iterate is not finite, or above what a converging series can reach.
    """
    size = norms(b)
    b = np.asfortranarray(b)  # columns lie in one piece, also of a state that was read
    u, total, first = b, np.zeros_like(b), 0
    if state is not None:
        u, total, first = np.asfortranarray(state["u"]), np.asfortranarray(state["total"]), state["step"].item()
    start = tail_start(depth, tail)
    for j in range(first, depth):
        after = np.asfortranarray(product(j, u))
        after /= -scale  # in place: with many parameters a new array takes as long as a row
        after += u
        after += b
        u = after
        if not bool((norms(u) <= size * slack * largest_possible(scale, floor, j + 1) * (1.0 + 1e-6)).all()):
            raise DivergedError(f"after {j + 1} of {depth} steps")
        if j + 1 >= start:
            total = total + u
        offer({"u": u, "total": total, "step": np.array(j + 1)})
    return total / ((depth - start + 1) * scale) if depth else b / scale
