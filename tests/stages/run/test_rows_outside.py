"""Fit rows whose loss or gradient is not finite are outside every sum: scores are those of data without them.

python -m pytest tests/stages/run/test_rows_outside.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import influence_cli
from influence_cli.data.tables import provenance
from influence_cli.engines.point import Point, usable_rows
from influence_cli.errors import ManifestError
from tests.cases import Heard, column

HUGE = 3e38  # its logits overflow in float32, which scores are taken in, and not in float64, which curvature is
METHODS: dict[str, dict[str, Any]] = {
    "exact": {"damping": 0.1},
    "cg": {"damping": 0.1, "tolerance": 1e-12},
    "lissa": {"damping": 0.1, "depth": 20, "batch": 8},
    "arnoldi": {"damping": 0.1},
    "ekfac": {"labels": "exact"},
    "datainf": {},
    "self-lissa": {},
}


class Root(nn.Module):
    """Its logits are finite everywhere; where the first value is 0 their gradient is not: the slope of a root at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(1)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) + (x[:, :1] * self.scale).abs().sqrt()


def made(kind: type[nn.Module] | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = (kind() if kind else nn.Sequential(nn.Linear(4, 3))).eval()
        if kind is None:
            with torch.no_grad():
                net[0].weight[:, 0] = torch.tensor([1.5, -2.0, 2.5])  # type: ignore[index,operator]
        return net


def rows(bad: int, value: float, n: int = 36) -> tuple[pa.Table, pa.Table]:
    """Train rows, of which the first ``bad`` are not finite to the model, and target rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + 12, 4)).astype(np.float32)
    x[:bad, 0] = value
    x[:bad, 1:] = np.arange(1, 1 + 3 * bad).reshape(bad, 3) / 10  # payloads of their own
    y = (x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5).astype(int)
    table = pa.table(
        {
            "id": [f"r{k}" for k in range(len(x))],
            "features": pa.array(x.tolist(), pa.list_(pa.float32())),
            "label": y,
        }
    )
    return table.slice(0, n), table.slice(n)


def run(train: pa.Table, target: pa.Table, model: nn.Module, method: str, **asked: Any) -> pa.Table:
    options = {method: {**METHODS[method], **asked.pop("more", {})}}
    asked = {"store": None, "options": options, **asked}
    return influence_cli.score(train, target=target, task=influence_cli.Task(model), method=method, **asked)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "value", "null"),
    [(None, HUGE, True), (Root, 0.0, True), (None, 1e37, False)],
    ids=["overflow", "root", "near"],
)
def test_a_row_that_is_null_moves_no_other(method: str, kind: type[nn.Module] | None, value: float, null: bool) -> None:
    """Near overflow a score may happen to be finite, and curvature is no sounder for it."""
    (train, target), model, heard = rows(2, value), made(kind), Heard()
    found = run(train, target, model, method, listener=heard)
    expected = run(train.slice(2), target, model, method)
    assert not null or np.isnan(column(found)[:2]).all()
    assert np.isfinite(column(expected)).all()
    for name in {"score", "effect"} & set(found.column_names):
        a, b = column(found, name)[2:], column(expected, name)
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
    assert [w for w in heard.warnings if "2 fit rows have" in w and "outside the curvature: r0, r1" in w]
    facts = provenance(found.schema)["curvature"][method]
    assert (facts["fit_rows"], facts["fit_weight"], facts["unusable_rows"]) == (34, 34.0, 2)


def test_a_warm_run_says_so_too_and_gives_the_same(tmp_path: Path) -> None:
    (train, target), model, store = rows(2, HUGE), made(), str(tmp_path / "store")
    heard: list[Heard] = []
    tables = []
    for _ in range(2):
        heard.append(Heard())
        tables.append(run(train, target, model, "ekfac", store=store, listener=heard[-1]))
    assert np.array_equal(column(tables[0])[2:], column(tables[1])[2:])
    said = [[w for w in h.warnings if "outside the curvature" in w] for h in heard]
    assert said[0] == said[1] != []
    # and a solve on the stored factor leaves the same rows out
    more = run(train, target, model, "ekfac", store=store, more={"damping": 0.3})
    expected = run(train.slice(2), target, model, "ekfac", more={"damping": 0.3})
    assert np.abs(column(more)[2:] - column(expected)).max() <= 1e-6 * np.abs(column(expected)).max()


def test_a_sample_of_fit_rows_is_of_usable_ones_and_n_counts_no_other() -> None:
    (train, target), model = rows(6, HUGE), made()
    found = run(train, target, model, "ekfac", more={"fit_sample": 10})
    expected = run(train.slice(6), target, model, "ekfac", more={"fit_sample": 10})
    for name in ("score", "effect"):
        a, b = column(found, name)[6:], column(expected, name)
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


def test_pinned_fit_rows_are_looked_at_as_well() -> None:
    (train, target), model = rows(2, HUGE), made()
    found = run(train.slice(2), target, model, "exact", fit_rows=train)
    expected = run(train.slice(2), target, model, "exact", fit_rows=train.slice(2))
    assert np.allclose(column(found, "effect"), column(expected, "effect"), rtol=1e-9, atol=0)


def test_no_usable_row_is_an_error() -> None:
    (train, target), model = rows(2, HUGE), made()
    with pytest.raises(ManifestError, match="no fit row has finite logits and derivatives"):
        run(train.slice(2), target, model, "exact", fit_rows=train.slice(0, 2))


def test_rows_are_told_apart_within_a_batch() -> None:
    model = made(Root).double()
    point = Point(model, "all", None, "fp64", torch.device("cpu"))
    x = torch.randn(21, 4, generator=torch.Generator().manual_seed(0)).double()
    x[[0, 7, 8, 20], 0] = 0.0
    x[3, 2] = float("inf")
    usable = usable_rows(point, x)
    assert torch.nonzero(~usable).flatten().tolist() == [0, 3, 7, 8, 20]


def test_the_sum_of_large_rows_is_not_taken_for_one_of_them_and_none_hides_another() -> None:
    point = Point(nn.Sequential(nn.Linear(1, 2, bias=False)).eval(), "all", None, "fp32", torch.device("cpu"))
    with torch.no_grad():
        point.model[0].weight.fill_(1e-3)  # type: ignore[union-attr,index,operator]
    assert bool(usable_rows(point, torch.full((9, 1), 5e18)).all())
    x = torch.tensor([[1e30], [1.0], [-1e30], [2.0]])  # with equal weights the two would cancel
    assert usable_rows(point, x).tolist() == [False, True, False, True]
