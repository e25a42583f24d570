"""Parameters that no logit depends on: they move no score, and they are named.

python -m pytest tests/stages/grads/test_unused_parameters.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from influence_cli import api
from influence_cli.curvature.curvature import Curvature
from influence_cli.data.tables import provenance
from influence_cli.methods.exact import Exact
from influence_cli.model.task import Task
from tests.cases import Heard, column, examples, feature_table

METHODS = ["exact", "cg", "lissa", "arnoldi", "ekfac", "datainf", "self-lissa"]


class Net(nn.Module):
    """Two layers; where asked for others that ``forward`` does not call, before, between and behind them."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.before = nn.Linear(7, 9) if unused else nn.Identity()
        self.one = nn.Linear(len(examples()[0].features), 4)
        self.scale = nn.Parameter(torch.ones(5)) if unused else None
        self.two = nn.Linear(4, 3)
        self.behind = nn.BatchNorm1d(6) if unused else nn.Identity()
        for layer in (self.one, self.two):
            for p in layer.parameters():
                nn.init.normal_(p, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class Routed(Net):
    """One of the layers is called where some row's first feature is large: it is in use."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        far = (x[:, :1] > 2.0).float()
        return logits + far * self.before(x[:, :1].expand(-1, 7)).sum(1, keepdim=True) if bool(far.any()) else logits


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return feature_table(examples(40))


@pytest.mark.parametrize("per_target", [False, True])
def test_an_unused_layer_changes_no_score(rows: pa.Table, per_target: bool) -> None:
    of = api.per_target if per_target else api.score
    for method in ["cg"] if per_target else METHODS:
        how = {"method": method, "store": None, "precision": "fp64", "options": {"lissa": {"depth": 20}}}
        how = how if method == "lissa" else how | {"options": {}}
        plain, more = (of(rows, task=Task(Net(unused)), **how) for unused in (False, True))
        a, b = (column(t, "score" if "score" in t.column_names else f"score_{method}") for t in (plain, more))
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12 * np.abs(a).max(), err_msg=method)


def test_unused_parameters_are_named_once_and_kept_in_the_facts(rows: pa.Table) -> None:
    heard = Heard()
    table = api.score(rows, task=Task(Net(True)), method="exact", store=None, listener=heard)
    (said,) = [text for text in heard.notes if "unused" in text]
    assert "89 selected parameters are unused" in said  # 63 + 9, 5, 12
    assert "(scale, before.weight, before.bias, behind.weight, behind.bias)" in said
    facts = provenance(table.schema)["curvature"]["exact"]
    assert (facts["parameters"], facts["unused_parameters"]) == (39, 89)


def test_a_layer_that_some_rows_alone_go_through_is_in_use(rows: pa.Table) -> None:
    features = np.stack(rows["features"].to_numpy(zero_copy_only=False))[:40]
    assert 0 < (features[:, 0] > 2.0).sum() < 4
    table = api.score(rows, task=Task(Routed(True)), method="cg", store=None)
    facts = provenance(table.schema)["curvature"]["cg"]
    assert facts["unused"] == ["scale", "behind.weight", "behind.bias"]


def test_a_factor_of_an_earlier_version_that_holds_unused_parameters_is_fitted_again(
    rows: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"task": Task(Net(True)), "method": "exact", "store": str(tmp_path), "precision": "fp64"}
    with monkeypatch.context() as earlier:
        earlier.setattr(Curvature, "unused", lambda _: [])
        earlier.setattr(Exact, "revision", 1)
        before = column(api.score(rows, **how))
    after = column(api.score(rows, **how))
    assert np.abs(after - before).max() > 1e-3 * np.abs(after).max()
    np.testing.assert_allclose(after, column(api.score(rows, **{**how, "store": None})), rtol=1e-9)
