"""The mean of independent Neumann series for A^-1 b, A = K + (l2 + delta) I, from products with minibatches of K."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.neumann import DivergedError, neumann
from influence_cli.maths.series_rules import Product, Rules, Series

Floats = NDArray[np.float64]
State = dict[str, NDArray[Any]]
Counting = Callable[[int], AbstractContextManager[Any]]  # of so many steps: what is told of each by ``advance(1)``

RETRY = 10.0  # times c, where a series diverges


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


class Interim(Protocol):
    """Where a solve leaves its state after every step, and takes it up again."""

    def load(self) -> State | None:
        """The last state that was kept, or None."""
        ...

    def offer(self, state: Callable[[], State]) -> None:
        """The solve can go on from that state."""
        ...


def solve(
    product: Product, b: Floats, rules: Rules, interim: Interim, counting: Counting
) -> tuple[Floats, Series, bool]:
    """The mean over the series for the columns b [d, k]; the series; whether c was raised.

    Where one diverges, all start anew with ten times the scale.

    Raises:
        SeriesDivergedError: one diverges at that scale too.
        ZeroCurvatureError: there is no scale.
    """
    state = interim.load() or start_state(b, *rules.scale_and_damping(product, len(b)))
    while True:
        series, retried = rules.series(state["scale"].item(), state["damping"].item()), bool(state["retried"])
        try:
            return _mean(product, b, series, state, interim, counting), series, retried
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

            u = neumann(image, b, series.scale, series.depth, series.shift, series.tail, state, offered)
            again = start_state(b, series.scale, series.damping, state["retried"].item())
            state = {**again, "run": np.array(run + 1), "sum": state["sum"] + u}
    return state["sum"] / series.repeats


def forms(product: Product, g: Floats, series: Series) -> Floats:
    """g_i^T u_i [k] for the columns g_i of [d, k], u_i the mean over the series for g_i.

    >>> series = Series(scale=2.0, damping=1.0, shift=1.0, depth=2, repeats=1, tail=0.0)
    >>> forms(lambda run, step, v, shift: (1.0 + shift) * v, np.array([[4.0]]), series).tolist()
    [8.0]

    Raises:
        SeriesDivergedError: one diverges.
    """
    u = np.zeros_like(g)
    for run in range(series.repeats):

        def image(step: int, v: Floats, run: int = run) -> Floats:
            return product(1 + run, step, v, 0.0) + series.shift * v

        try:
            u += neumann(image, g, series.scale, series.depth, series.shift, series.tail) / series.repeats
        except DivergedError as error:
            raise SeriesDivergedError(str(error), series) from error
    return (g * u).sum(axis=0)
