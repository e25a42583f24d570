"""Seconds of fits and solves that were never timed: some of their passes are run over a few of the fit rows.

What a fit decomposes whatever the rows is timed on a smaller matrix and grows with the cube of its size.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from influence_cli.errors import InfluenceError
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.rates import FIT, FIXED, SOLVE, Rates
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from torch import nn

    from influence_cli.curvature.curvature import Curvature
    from influence_cli.methods.shapes.preconditioned import Preconditioned

ROWS = 8  # of the first trial
LONG = 0.3  # seconds from which a trial is long enough
SIZE = 512  # of a matrix whose decomposition is timed, at most
BYTES = 3e8  # of a factor that are written a second


def curvature_rates(run: Run, session: Session, model: nn.Module, work: list[Work]) -> tuple[Rates, float]:
    """Seconds a row and pass of every fit and solve that was never timed; and seconds of setting all of them up.

    What cannot be tried, as where the rows that would be taken are unusable, is left out.
    """
    fits = {fit.method: fit for w in work for fit in w.fits if fit.seconds is None}
    solves = {solve.method: solve for w in work for solve in w.solves if solve.seconds is None}
    rates, setups = Rates(), 0.0
    for name in dict.fromkeys([*fits, *solves]):
        method = fits[name].solver if name in fits else run.solvers[name]
        at = functools.partial(_curvature, run, session, model)
        try:
            fit, setup = _timed(method.fit_some, at, _most(run, session))
            setups += setup
            if name in fits:
                curvature = at(ROWS)
                rates[FIT + name] = fit
                rates[FIXED + name] = _decompositions(method, curvature) + fits[name].bytes / BYTES
            if name in solves:
                solve, setup = _timed(_solve(method, solves[name].directions), at, _most(run, session), method.fit_some)
                rates[SOLVE + name], setups = solve, setups + setup
        except InfluenceError:
            continue
    return rates, setups


def _solve(method: Preconditioned, directions: int) -> Callable[[Curvature], float]:
    """Some of the passes of preconditioning so many directions, or a few where every row has its own."""
    count = min(directions, ROWS)

    def solve(curvature: Curvature) -> float:
        columns = np.random.default_rng(0).standard_normal((curvature.size, count))
        return method.solve_some(columns, curvature)

    return solve


def _curvature(run: Run, session: Session, model: nn.Module, count: int) -> Curvature:
    from influence_cli.curvature.curvature import Curvature

    assert run.fit is not None
    rows = run.fit.rows.take(np.arange(count))
    return Curvature(
        model, require_model(run)[0], rows, run.spec.params, None, session.device,
        session.batch_size(run.model), session.runtime.workers, loss=run.row_loss,
    )  # fmt: skip


def _most(run: Run, session: Session) -> int:
    assert run.fit is not None
    return min(session.batch_size(run.model), len(run.fit.rows))


def _timed(
    work: Callable[[Curvature], float],
    at: Callable[[int], Curvature],
    most: int,
    before: Callable[[Curvature], object] | None = None,
) -> tuple[float, float]:
    """Seconds a row and pass in a batch of ``most``, and what the first call took beyond them.

    Two numbers of rows, the larger of which take long enough, tell what a row takes from what a batch does.
    """
    sizes, seconds, setup = list[int](), list[float](), None
    while True:
        count = min(4 * sizes[-1] if sizes else ROWS, most)
        curvature = at(count)
        if before is not None:
            before(curvature)
        first, _ = _seconds(work, curvature)
        took, passes = _seconds(work, curvature)
        setup = max(0.0, first - took) if setup is None else setup
        sizes.append(count)
        seconds.append(took / passes)
        if count >= most or (took >= LONG and len(sizes) > 1):
            return seconds_a_row(sizes, seconds, most), setup


def seconds_a_row(sizes: list[int], seconds: list[float], most: int) -> float:
    """Of a batch of ``most`` rows, from the seconds of two smaller ones, or of one.

    >>> round(seconds_a_row([8, 32], [1.8, 4.2], 100), 3), seconds_a_row([8], [4.0], 8)
    (0.11, 0.5)
    """
    if len(sizes) < 2 or seconds[-1] <= seconds[-2]:  # other work on the machine hides what rows take
        return seconds[-1] / sizes[-1]
    row = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
    return row + max(0.0, seconds[-1] - row * sizes[-1]) / most


def _seconds(work: Callable[[Curvature], float], curvature: Curvature) -> tuple[float, float]:
    """Seconds, and how many passes they were of."""
    started = time.perf_counter()
    passes = work(curvature)
    return time.perf_counter() - started, passes


def _decompositions(method: Preconditioned, curvature: Curvature) -> float:
    sizes = method.decomposed(curvature)
    largest = min(SIZE, max(sizes, default=0))
    if largest == 0:
        return 0.0
    values = np.random.default_rng(0).standard_normal((largest, largest))
    matrix = values @ values.T + largest * np.eye(largest)
    method.decompose(matrix[:2, :2])
    started = time.perf_counter()
    method.decompose(matrix)
    took = time.perf_counter() - started
    return sum(took * (size / largest) ** 3 for size in sizes)
