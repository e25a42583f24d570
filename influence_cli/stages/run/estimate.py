"""Seconds per row where none were ever measured: one small batch of zeros is run, and nothing is remembered."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from influence_cli.stages.run.gradient_plan import describe_rows, row_request
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.rates import Rates
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.engines.point import Point
    from influence_cli.model.spec import ModelSpec

ROWS = 8  # rows of the batch that is timed; a full batch is a little faster per row


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
    point = Point(model, run.spec.params, None, run.spec.precision, session.device)
    x = _inputs(run, spec, point)
    if x is None:
        return {}
    directions = max((len(w.tangents) + len(w.halves) for w in work), default=0)
    zero = {n: torch.zeros_like(p) for n, p in point.selected.items()}

    engine = Engine(point, session.runtime.engine)

    def target() -> None:
        selected = {n: p.detach().requires_grad_() for n, p in point.selected.items()}
        with torch.enable_grad(), differentiable_kernels(point.recurrent):
            pulled([point.logits(x, selected).sum()], list(selected.values()), [None])

    def values() -> None:
        for block in Layers(point, x).of_rows(x, torch.ones_like)[1]:
            block.squared_norms()

    n, y = len(x), torch.zeros(len(x), dtype=torch.int64, device=point.device)
    by_itself = {name for w in work for name in w.passes} - {"forward", "values"}
    own = {name: _seconds_a_row(partial(QUANTITIES[name].of_rows(run, point), x, y), n) for name in by_itself}
    if any(w.rows_in("values") for w in work):
        own["values"] = _seconds_a_row(values, n)
    return {
        **own,
        "outputs": _seconds_a_row(lambda: point.outputs(x, []), n),
        "tangents": _seconds_a_row(lambda: engine.outputs(x, [zero] * directions), n),
        "target": _seconds_a_row(target, n),
    }


def planned_gradients(run: Run, session: Session) -> list[dict[str, Any]]:
    """The plan of rows' own gradients (``describe_rows``), with estimates where the store knows too little."""
    planned = describe_rows(run, session)
    if any(g["values"] is None or g["seconds"] is None for g in planned):
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
    y = torch.zeros(len(x), dtype=torch.int64, device=point.device)
    return {"rate": _seconds_a_row(partial(gradients.of, x, y), len(x)), "dim": gradients.layout()["dim"]}


def _seconds_a_row(work: Callable[[], object], rows: int) -> float:
    work()  # the first call sets things up
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) / rows


def _inputs(run: Run, spec: ModelSpec, point: Point) -> Tensor | None:
    """The batch that is timed; None where no row of a task can be decoded."""
    from influence_cli.model.examples import batches, blank_input, move, to_input

    zeros = blank_input(spec, ROWS, point.dtype)
    if zeros is not None:
        return zeros.to(point.device)
    first = list(run.manifest.payloads(run.train.index[:ROWS]))
    for _, decoded in batches(run.manifest, [first], spec, 1, on_bad=lambda *_: None):
        return to_input(move(decoded, point.device), spec, point.dtype)
    return None
