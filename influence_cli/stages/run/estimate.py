"""Seconds per row where too few rows were ever measured: batches of zeros are run, and nothing is remembered.

A batch grows until it takes long enough to be timed, or is as large as those of a run: what a call costs whatever its
rows would otherwise be taken for the rows' own cost.  What the first call takes beyond that sets things up, as every
run has to, and counts as a part of its start.  Decoding is timed on some of the rows themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.stages.run.estimate_curvature import curvature_rates
from influence_cli.stages.run.estimate_further import further_rates
from influence_cli.stages.run.gradient_plan import AT_ONCE, describe_rows, row_request
from influence_cli.stages.run.plan import COSTED_APART, Work
from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.rates import START, Rates
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from influence_cli.engines.point import Point
    from influence_cli.model.spec import ModelSpec

ROWS = 8  # rows of the first batch that is timed
LONG = 0.3  # seconds from which a batch is long enough
DECODED = 64  # rows that are decoded to be timed


def estimated_rates(run: Run, session: Session, work: list[Work]) -> Rates:
    """Seconds per training row and per target row at each kind of pass that the work holds.

    A task of the user's own says nothing of its input: its first rows are decoded in place of zeros.
    """
    import torch

    from influence_cli.engines.engine import Engine
    from influence_cli.engines.layerwise.layers import Layers
    from influence_cli.engines.point import Point, differentiable_kernels
    from influence_cli.model.build import build_model
    from influence_cli.model.parameters import pulled

    spec, _ = require_model(run)
    model = build_model(spec).eval()  # its weights do not matter
    start = time.perf_counter() - session.opened if session.cold else 0.0
    point = Point(model, run.spec.params, None, run.spec.precision, session.device)
    x = _inputs(run, spec, point)
    if x is None:
        return {}
    directions = max((len(w.tangents) + len(w.halves) for w in work), default=0)
    zero = {n: torch.zeros_like(p) for n, p in point.selected.items()}
    engine = Engine(point, session.runtime.engine)
    most = min(session.batch_size(spec), max(ROWS, len(run.train), len(run.target)))  # no batch of the run has more

    def target(some: Tensor) -> None:
        selected = {n: p.detach().requires_grad_() for n, p in point.selected.items()}
        with torch.enable_grad(), differentiable_kernels(point.recurrent):
            pulled([point.logits(some, selected).sum()], list(selected.values()), [None])

    def values(some: Tensor) -> None:
        for block in Layers(point, some).of_rows(some, torch.ones_like)[1]:
            block.squared_norms()

    def own(name: str) -> Callable[[Tensor], object]:
        of_rows = QUANTITIES[name].of_rows(run, point)
        return lambda some: of_rows(some, torch.zeros(len(some), dtype=torch.int64, device=point.device))

    by_itself = {name for w in work for name in w.passes} - {"values", *COSTED_APART}
    timed = {name: _seconds_a_row(own(name), x, most) for name in by_itself}
    timed["outputs"] = _seconds_a_row(lambda some: point.outputs(some, []), x, most)
    if any(w.rows_in("values") for w in work):
        timed["values"] = _seconds_a_row(values, x, most)
    if directions:
        timed["tangents"] = _seconds_a_row(lambda some: engine.outputs(some, [zero] * directions), x, most)
    if any(w.directions for w in work):
        timed["target"] = _seconds_a_row(target, x, most)
    curvature, setups = curvature_rates(run, session, model, work)
    decoding = _decoding(run, session, spec)
    curvature |= further_rates(run, session, model, work)
    start += setups + sum(setup for _, setup in timed.values())
    return {**{name: rate + decoding for name, (rate, _) in timed.items()}, **curvature, START: start}


def _decoding(run: Run, session: Session, spec: ModelSpec) -> float:
    """Seconds to read and decode a row."""
    index = run.train.index
    some = run.train.take(np.arange(0, len(index), max(1, len(index) // DECODED))[:DECODED])
    started = time.perf_counter()
    for _ in session.rows(spec, some, DECODED, lambda *_: None, keep=False):
        pass
    return (time.perf_counter() - started) / max(1, len(some))


def planned_gradients(run: Run, session: Session) -> list[dict[str, Any]]:
    """The plan of rows' own gradients (``describe_rows``), with estimates where the store knows too little."""
    planned = describe_rows(run, session)
    if any(g["values"] is None or g["seconds_are"] != "measured" for g in planned):
        planned = describe_rows(run, session, _estimated_gradients(run, session))
    return planned


def _estimated_gradients(run: Run, session: Session) -> dict[str, Any]:
    """Values a row and seconds per row of the rows' own gradients that were asked for."""
    import torch

    from influence_cli.engines.point import Point
    from influence_cli.engines.row_gradients import RowGradients
    from influence_cli.model.build import build_model

    (spec, _), request = require_model(run), row_request(run, session)
    precision = "fp32" if run.spec.precision == "bf16" else run.spec.precision
    point = Point(build_model(spec).eval(), request.params, None, precision, session.device)
    gradients, x = RowGradients(point, run.row_loss, request.sketch_dim, request.seed), _inputs(run, spec, point)
    if x is None or not gradients.ready(x):
        return {"dim": gradients.dim, "rate": None}

    def of_rows(some: Tensor) -> None:
        gradients.of(some, torch.zeros(len(some), dtype=torch.int64, device=point.device))

    most = max(1, min(session.batch_size(spec), AT_ONCE // max(1, gradients.dim)))
    rate = _seconds_a_row(of_rows, x[:most], most)[0] + _decoding(run, session, spec)
    return {"rate": rate, "dim": gradients.layout()["dim"]}


def _seconds_a_row(work: Callable[[Tensor], object], x: Tensor, most: int) -> tuple[float, float]:
    """Of a batch that takes long enough, of at most as many rows as a run's batches have; and of setting things up."""
    import torch

    setup = None
    while True:
        first = _seconds(work, x)
        took = min(_seconds(work, x) for _ in range(2))  # whatever else the machine does adds to it
        setup = max(0.0, first - took) if setup is None else setup
        if took >= LONG or len(x) >= most:
            return took / len(x), setup
        x = x[torch.arange(min(4 * len(x), most), device=x.device) % len(x)]


def _seconds(work: Callable[[Tensor], object], x: Tensor) -> float:
    started = time.perf_counter()
    work(x)
    return time.perf_counter() - started


def _inputs(run: Run, spec: ModelSpec, point: Point) -> Tensor | None:
    """The batch that is timed; None where no row of a task can be decoded."""
    from influence_cli.model.examples import move

    x = sample_input(run, spec, point.dtype)
    return None if x is None else move(x, point.device)


def sample_input(run: Run, spec: ModelSpec, dtype: torch.dtype) -> Any:
    """Input of at most 8 rows, on the host: zeros, or the first rows where how long they are, or a task, matters.

    None where none of them can be decoded.
    """
    from influence_cli.model.examples import batches, blank_input, to_input

    zeros = blank_input(spec, ROWS, dtype)
    if zeros is not None and not spec.payload_kind.ragged:  # how long texts take depends on how long they are
        return zeros
    first = list(run.manifest.payloads(run.train.index[:ROWS]))
    for _, decoded in batches(run.manifest, [first], spec, 1, on_bad=lambda *_: None):
        return to_input(decoded, spec, dtype)
    return None
