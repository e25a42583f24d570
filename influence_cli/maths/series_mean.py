"""The mean of independent Neumann series for A^-1 b, A = K + (l2 + delta) I, from products with minibatches of K.

Their scale, length and number are as given, or by the default rules.  With a preconditioner M ~ A^-1, symmetric and
positive definite, the series is that of A M, whose eigenvalues lie near 1, so that far fewer steps suffice:

    v_0 = b,    v_j+1 = b + v_j - (1/c) A_j M v_j,    result M v_J / c

A_j M is symmetric in the inner product of M.  Wang et al. 2025 (arXiv:2507.14740), ASTRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_cli.maths.iterative import Floats, Interim, State
from influence_cli.maths.neumann import DivergedError, largest_eigenvalue, neumann

Product = Callable[[int, int, Floats, float], Floats]  # (sequence, minibatch, V, shift) to K V + shift V
Counting = Callable[[int], AbstractContextManager[Any]]  # of so many steps: what is told of each by ``advance(1)``

DEEPEST = 5000  # steps of a series by the default rule, unless an epoch has more
SCALE_BATCHES, SCALE_STEPS, SCALE_MARGIN = 10, 20, 1.1
RETRY = 10.0  # times c, where a series diverges


@dataclass(frozen=True)
class Series:
    """Which series are averaged."""

    scale: float  # c
    damping: float  # delta
    shift: float  # l2 + delta
    depth: int  # J
    repeats: int
    tail: float  # the share of a series' iterates, the last ones, whose mean is taken
    slack: float = 1.0  # of norms, where A M is symmetric in another inner product

    def facts(self) -> dict[str, Any]:
        """What is worth saying of them."""
        return {"series_scale": self.scale, "depth": self.depth, "repeats": self.repeats}


@dataclass(frozen=True)
class Preconditioner:
    """M, and what is known of A M."""

    apply: Callable[[Floats], Floats]  # V [d, k] to M V
    shift: float  # l2 + delta of A
    floor: float  # what no eigenvalue of an A_j M is below
    slowest: float  # about the smallest eigenvalue of A M, where M has the eigenvectors of A
    condition: float  # largest eigenvalue of M over its smallest

    def through(self, product: Product) -> Product:
        """Products with A_j M - floor I, in the place of K_j, so that the shift of the series is floor."""

        def image(run: int, step: int, v: Floats, shift: float) -> Floats:
            found = np.asarray(product(run, step, self.apply(v), self.shift), dtype=np.float64)
            return found + (shift - self.floor) * v

        return image


class ZeroCurvatureError(Exception):
    """Nothing tells a scale: no minibatch has an eigenvalue above 0, and nothing is added to them."""


@dataclass(frozen=True)
class Rules:
    """What is given of the series, and the default rule for each of the rest, which are None."""

    rows: int
    batch: int  # rows of a minibatch, at most all
    l2: float
    damping: float | None  # None: ``dampen`` times the scale
    dampen: float
    scale: float | None
    depth: int | None
    repeats: int | None
    tail: float
    seed: int
    m: Preconditioner | None = None  # with it l2 is 0 and damping its floor

    def product(self, product: Product) -> Product:
        """The products of the series: those given, or through M."""
        return product if self.m is None else self.m.through(product)

    def result(self, v: Floats) -> Floats:
        """What the series is for: v, or M v."""
        return v if self.m is None else self.m.apply(v)

    def scale_and_damping(self, product: Product, size: int) -> tuple[float, float]:
        """The scale c and delta, for so many parameters.

        Raises:
            ZeroCurvatureError: c is not a positive number.
        """
        scale = self.scale
        if scale is None:
            start = np.random.default_rng([self.seed, 0]).standard_normal(size)
            scale = default_scale(product, start, self.l2, self.damping, self.dampen)
        if not (scale > 0 and math.isfinite(scale)):
            raise ZeroCurvatureError
        return scale, self.dampen * scale if self.damping is None else self.damping

    def series(self, scale: float, damping: float) -> Series:
        """The series at that scale."""
        slowest = self.l2 + damping if self.m is None else self.m.slowest
        depth = self.depth or default_depth(self.rows, min(self.batch, self.rows), scale, slowest)
        repeats = self.repeats or default_repeats(self.rows, self.batch, depth)
        slack = 1.0 if self.m is None else math.sqrt(self.m.condition)
        return Series(scale, damping, self.l2 + damping, depth, repeats, self.tail, slack)

    def passes_at_most(self) -> tuple[float, float]:
        """Passes over the rows of all series, and of finding the scale, whatever that is."""
        share = min(1.0, self.batch / self.rows)
        depth = self.depth or max(DEEPEST, math.ceil(self.rows / self.batch))
        steps = depth * (self.repeats or default_repeats(self.rows, self.batch, depth))
        return steps * share, 0.0 if self.scale is not None else SCALE_BATCHES * SCALE_STEPS * share


def default_depth(rows: int, batch: int, scale: float, shift: float) -> int:
    """3 c / (l2 + delta) steps, at least those that see every row once, at most 5000.

    >>> default_depth(320, 32, 10.0, 0.5), default_depth(320, 32, 10.0, 0.0), default_depth(320, 32, 1.0, 1.0)
    (60, 5000, 10)
    """
    wanted = 3.0 * scale / shift if shift > 0 else math.inf
    return int(min(DEEPEST, max(math.ceil(rows / batch), math.ceil(min(wanted, 1e9)))))


def default_repeats(rows: int, batch: int, depth: int) -> int:
    """As many series as see every row once between them.

    >>> default_repeats(320, 32, 3), default_repeats(320, 32, 60)
    (4, 1)
    """
    return max(1, math.ceil(rows / (depth * min(batch, rows))))


def default_scale(product: Product, start: Floats, l2: float, damping: float | None, dampen: float) -> float:
    """1.1 times the largest eigenvalue, with l2 and delta, that power iterations find on 10 minibatches.

    Without ``damping`` delta is ``dampen`` times the scale itself.

    >>> round(default_scale(lambda run, batch, v, shift: 2.0 * v, np.ones(3), 0.5, 0.5, 0.0), 12)
    3.3
    """
    found = [largest_eigenvalue(lambda v, b=b: product(0, b, v, 0.0), start, SCALE_STEPS) for b in range(SCALE_BATCHES)]
    if damping is None:  # c = 1.1 (largest + l2 + d c)
        return SCALE_MARGIN * (max(found) + l2) / (1.0 - SCALE_MARGIN * dampen)
    return SCALE_MARGIN * (max(found) + l2 + damping)


class SeriesDivergedError(DivergedError):
    """A series diverged; says after how many steps."""

    def __init__(self, text: str, series: Series) -> None:
        super().__init__(text)
        self.series = series


def start_state(b: Floats, scale: float, damping: float, retried: bool = False) -> State:
    """The state before the first step of the first series; ``retried``: an earlier scale was too small."""
    zero = np.zeros_like(b)
    return {
        "scale": np.array(scale), "damping": np.array(damping), "retried": np.array(retried),
        "run": np.array(0), "sum": zero, "u": b, "total": zero, "step": np.array(0),
    }  # fmt: skip


def solve(
    product: Product, b: Floats, rules: Rules, interim: Interim, counting: Counting
) -> tuple[Floats, Series, bool]:
    """The mean over the series for the columns b [d, k], times M where there is one; the series; whether c was raised.

    Where one diverges, all start anew with ten times the scale.

    Raises:
        SeriesDivergedError: one diverges at that scale too.
        ZeroCurvatureError: there is no scale.
    """
    product = rules.product(product)
    state = interim.load() or start_state(b, *rules.scale_and_damping(product, len(b)))
    while True:
        series, retried = rules.series(state["scale"].item(), state["damping"].item()), bool(state["retried"])
        try:
            return rules.result(_mean(product, b, series, state, interim, counting)), series, retried
        except DivergedError as error:
            if retried:
                raise SeriesDivergedError(f"{error}, also with ten times the first c", series) from error
            state = start_state(b, series.scale * RETRY, series.damping, retried=True)


def _mean(product: Product, b: Floats, series: Series, state: State, interim: Interim, counting: Counting) -> Floats:
    """The mean over the series, from ``state`` on."""
    with counting(series.repeats * series.depth) as progress:
        for run in range(state["run"].item(), series.repeats):

            def image(step: int, v: Floats, run: int = run) -> Floats:
                found = product(1 + run, step, v, series.shift)
                progress.advance(1)
                return found

            def offered(now: State, run: int = run, before: State = state) -> None:
                interim.offer(lambda: {**before, **now, "run": np.array(run)})

            given = series.scale, series.depth, series.shift, series.tail, state, offered, series.slack
            u = neumann(image, b, *given)
            again = start_state(b, series.scale, series.damping, state["retried"].item())
            state = {**again, "run": np.array(run + 1), "sum": state["sum"] + u}
    return state["sum"] / series.repeats


def alone(product: Product, g: Floats, series: Series) -> Floats:
    """u_i [d, k], the mean over the series for every column g_i of [d, k].

    >>> series = Series(scale=2.0, damping=1.0, shift=1.0, depth=2, repeats=1, tail=0.0)
    >>> alone(lambda run, step, v, shift: (1.0 + shift) * v, np.array([[4.0]]), series).tolist()
    [[2.0]]

    Raises:
        SeriesDivergedError: one diverges.
    """
    u = np.zeros_like(g)
    for run in range(series.repeats):

        def image(step: int, v: Floats, run: int = run) -> Floats:
            return product(1 + run, step, v, 0.0) + series.shift * v

        try:
            given = series.scale, series.depth, series.shift, series.tail
            u += neumann(image, g, *given, slack=series.slack) / series.repeats
        except DivergedError as error:
            raise SeriesDivergedError(str(error), series) from error
    return u
