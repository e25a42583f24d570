"""Every engine gives the same logits and tangents, and none is believed before it agrees with the loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from influence_cli.data.tables import provenance
from influence_cli.engines import engine as engine_module
from influence_cli.engines.engine import Engine
from influence_cli.engines.point import Point
from influence_cli.errors import ModelError, UsageError
from influence_cli.settings import GradSpec, Runtime
from tests.cases import Heard, call_cli, column, job_of
from tests.engines.test_engine import CPU
from tests.engines.test_layers import EVERY, construct
from tests.opened import fill, score
from tests.oracle import relative_error

BOTH = pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5)])


def _loop_tangents(point: Point, x: Tensor, u: dict[str, Tensor]) -> Tensor:
    """< d z_ic / d theta, u > by one backward for every row and logit, in float64."""
    own = {n: p.detach().double().requires_grad_() for n, p in point.selected.items()}
    rows = []
    for row in x.split(1):
        z = point.logits(row, own)[0]
        gradients = [torch.autograd.grad(v, list(own.values()), retain_graph=True, materialize_grads=True) for v in z]
        rows.append([sum(float((g * u[n]).sum()) for n, g in zip(own, gs, strict=True)) for gs in gradients])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("asked", ["layerwise", "double-reverse", "auto"])
@BOTH
def test_engines_equal_the_loop_on_every_construct(name: str, asked: str, precision: str, tolerance: float) -> None:
    model, x, _ = construct(name)
    point = Point(model, "all", None, "fp64", CPU)
    u = {n: torch.randn(p.shape, dtype=torch.float64) for n, p in point.selected.items()}
    expected = _loop_tangents(point, x, u)
    point = Point(model, "all", None, precision, CPU)
    x = x.to(point.dtype) if x.is_floating_point() else x
    found = Engine(point, asked)
    z, (t, twice) = found.outputs(x, [{n: v.to(point.dtype) for n, v in u.items()}] * 2)
    assert z.dtype == t.dtype == point.dtype
    assert torch.equal(t, twice)
    assert relative_error(t.double().numpy(), expected.numpy()) < tolerance
    assert relative_error(z.double().numpy(), point.outputs(x, [])[0].double().numpy()) < 1e-6
    assert found.checked is not None
    if asked == "auto":  # forward mode has no rule for the one, and moves along the padding token's row in the other
        asked = "layerwise" if name in ("custom function", "padding and mask") else "forward"
    assert found.checked.engine == asked


def test_an_operator_without_a_forward_rule_is_said_and_goes_to_another_engine() -> None:
    model, x, _ = construct("custom function")
    heard = Heard()
    found = Engine(Point(model, "all", None, "fp64", CPU), "auto", heard)
    found.outputs(x, [{n: torch.ones_like(p) for n, p in found.point.selected.items()}])
    assert len(heard.warnings) == 1
    assert heard.warnings[0].startswith("engine layerwise: forward cannot run it")
    asked = Engine(Point(model, "all", None, "fp64", CPU), "forward")
    ones = {n: torch.ones_like(p) for n, p in found.point.selected.items()}
    with pytest.raises(ModelError, match=r"no exact derivative.*forward cannot run it"):
        asked.outputs(x, [ones])


class _Wrong(Point):
    """A forward engine whose tangents are off in one row."""

    def outputs(self, x: Tensor, directions: list[dict[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        z, tangents = super().outputs(x, directions)
        for t in tangents:
            t[0] *= 1.01
        return z, tangents


def test_an_engine_that_differs_from_the_loop_is_left() -> None:
    model, x, _ = construct("layer norm")
    heard = Heard()
    point = _Wrong(model, "all", None, "fp32", CPU)
    found = Engine(point, "auto", heard)
    u = {n: torch.randn_like(p) for n, p in point.selected.items()}
    _, (t,) = found.outputs(x.float(), [u])
    assert found.checked is not None
    assert found.checked.engine == "layerwise"
    assert "off from the per-row loop" in heard.warnings[0]
    assert relative_error(t.numpy(), Point.outputs(point, x.float(), [u])[1][0].numpy()) < 1e-5
    with pytest.raises(ModelError, match="per-row loop"):
        Engine(_Wrong(model, "all", None, "fp32", CPU), "forward").outputs(x.float(), [u])


class _Noisy(nn.Module):
    """Evaluation that draws anew every time."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.dropout(x, 0.5, True))


def test_a_model_that_is_not_deterministic_is_refused() -> None:
    point = Point(_Noisy().eval(), "all", None, "fp32", CPU)
    with pytest.raises(ModelError):
        Engine(point).outputs(torch.randn(8, 4), [{n: torch.randn_like(p) for n, p in point.selected.items()}])


def test_rows_that_are_not_finite_are_not_what_an_engine_is_judged_by() -> None:
    model, x, _ = construct("called twice")
    point = Point(model, "all", None, "fp64", CPU)
    x[0, 0] = float("nan")
    found = Engine(point)
    z, (t,) = found.outputs(x, [{n: torch.randn_like(p) for n, p in point.selected.items()}])
    assert found.checked is not None
    assert found.checked.rows == 5
    assert torch.isnan(z[0]).all()
    assert torch.isfinite(t[1:]).all()


@pytest.mark.parametrize("asked", ["layerwise", "double-reverse"])
def test_scores_do_not_depend_on_the_engine(asked: str, tmp_path: Path, digits: Path, digits_run: Path) -> None:
    tables = []
    for name in ("forward", asked):
        job = job_of(digits, digits_run, tmp_path / name, spec=GradSpec(("ip",), precision="fp32"))
        job.runtime = Runtime(str(tmp_path / name), "cpu", None, 1, engine=name)
        tables.append(score(job))
    expected, found = (column(t) for t in tables)
    assert relative_error(found, expected) < 1e-5
    assert np.array_equal(tables[0].column("best_label").to_numpy(), tables[1].column("best_label").to_numpy())
    (note,) = provenance(tables[1].schema)["engines"]
    assert note["engine"] == asked
    assert note["loop"] < 1e-4
    assert note["rows_checked"] == 16
    assert note["coverage"] == (1.0 if asked == "layerwise" else None)


def test_a_warm_run_checks_nothing_and_says_what_was_found(
    tmp_path: Path, digits: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = score(job_of(digits, digits_run, tmp_path / "store"))

    def refuse(*_: object) -> None:
        raise AssertionError("checked although nothing was computed")

    monkeypatch.setattr(engine_module.Engine, "_check", refuse)
    job = job_of(digits, digits_run, tmp_path / "store")
    assert fill(job) == 0
    assert provenance(score(job).schema)["engines"] == provenance(cold.schema)["engines"]


def test_an_unknown_engine_is_a_usage_error(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    with pytest.raises(UsageError, match="--engine 'ghost'"):
        Runtime(engine="ghost")
    ran = call_cli(
        "score", "--method", "ip", digits, "--checkpoint", digits_run, "--engine", "ghost", "--no-store", cwd=tmp_path
    )
    assert ran.code == 2
    assert "--engine 'ghost' is unknown" in ran.err
