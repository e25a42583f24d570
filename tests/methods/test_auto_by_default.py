"""Where no method is named, ``auto`` is the one: what it takes then, what it says, and that stages after it go on.

python -m pytest tests/methods/test_auto_by_default.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import influence_cli
from influence_cli.data.tables import provenance
from influence_cli.settings import GradSpec
from tests.cases import Ran, call_cli, column, examples, feature_table, write


class Sum(nn.Module):
    """Logits that no linear layer makes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.other(x**2)


def ok(*words: Any, cwd: Path) -> Ran:
    ran = call_cli(*words, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


def auto_of(path: Path) -> dict[str, Any]:
    return provenance(pq.read_schema(path))["auto"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, digits: Path, digits_run: Path) -> Path:
    """A folder with tables g and s that ``grads`` and ``score`` made without a method, and what score said."""
    folder = tmp_path_factory.mktemp("default")
    ok("grads", digits, "--checkpoint", digits_run, "-o", "g.parquet", cwd=folder)
    (folder / "said.txt").write_text(ok("score", "g.parquet", "-o", "s.parquet", cwd=folder).err)
    return folder


def test_a_score_without_a_method_is_autos(here: Path, digits: Path, digits_run: Path) -> None:
    assert GradSpec().methods == ("auto",)
    named = ok("score", digits, "--checkpoint", digits_run, "--method", "auto", "-o", "-", cwd=here).table
    found = pq.read_table(here / "s.parquet")
    assert {"score", "score_auto", "other_label", "loss", "margin"} <= set(found.column_names)
    assert column(found) == pytest.approx(column(named))
    assert all(line in (here / "said.txt").read_text() for line in auto_of(here / "s.parquet")["why"])


def test_what_grads_stores_is_all_that_score_needs(here: Path) -> None:
    plan = ok("score", "g.parquet", "-n", "--json", cwd=here).json
    assert (plan["rows_to_compute"], plan["methods"], plan["auto"]["method"]) == (0, ["auto"], "auto")
    assert "auto judges labels by a probe and neighbours" in plan["auto"]["why"][0]


def test_quiet_output_and_json_hold_nothing_but_the_result(here: Path) -> None:
    ran = ok("score", "g.parquet", "-q", "--format", "jsonl", cwd=here)
    assert (ran.err, len(ran.rows)) == ("", 200)


def test_the_stages_after_it_take_its_scores(here: Path) -> None:
    assert "next: influence curate s.parquet --budget auto -o clean.parquet" in (here / "said.txt").read_text()
    ok("curate", "s.parquet", "--budget", "auto", "-o", "clean.parquet", cwd=here)
    ok("curate", "s.parquet", "--budget", "5%", "--action", "relabel", "--edits", "e.parquet", cwd=here)
    assert pq.read_table(here / "e.parquet").num_rows == 10
    found = ok("evaluate", "s.parquet", "--budget", "10%", "--json", cwd=here).json["detection"]
    assert found["auto"]["auc"] > 0.9 > 0.6 > found["random"]["auc"]
    ran = ok("score", "s.parquet", "--explain", "d0003", "--format", "table", cwd=here)
    assert "--method ip" in ran.err + ran.text  # which lists target rows


def test_scores_that_auto_cannot_give_are_by_ip_and_it_is_said(
    tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    asked = ("score", tabular, "--checkpoint", tabular_run)
    for words, why in (
        (("--per-target",), "scores of pairs of a target and a train row are asked for"),
        (("--relative",), "scores are to be divided by what each row does to itself"),
    ):
        files = [f"{name}{words[0]}.parquet" for name in "ab"]
        ran = ok(*asked, *words, "-o", files[0], cwd=tmp_path)
        ok(*asked, *words, "--method", "ip", "-o", files[1], cwd=tmp_path)
        a, b = (column(pq.read_table(tmp_path / name)) for name in files)
        assert a == pytest.approx(b)
        assert f"auto takes ip, which estimates what a row does to utility: {why}" in ran.err
        assert "(ip)" in ran.err


def test_a_model_without_features_is_scored_by_ip_and_its_table_opens_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write(feature_table(examples()), tmp_path / "m.parquet")
    task, asked = influence_cli.Task(Sum()), {"store": str(tmp_path / "store")}
    one = influence_cli.Task(nn.Linear(5, 3))  # which is the layer that makes its logits
    assert influence_cli.plan(str(tmp_path / "m.parquet"), task=one, store=None)["auto"]["method"] == "auto"
    plan = influence_cli.plan(str(tmp_path / "m.parquet"), task=task, **asked)
    assert plan["auto"]["method"] == "ip"
    found = influence_cli.score(str(tmp_path / "m.parquet"), task=task, **asked)
    wanted = influence_cli.score(str(tmp_path / "m.parquet"), task=task, method="ip", **asked)
    assert column(found) == pytest.approx(column(wanted))
    assert np.isfinite(column(found)).all()
    said = provenance(found.schema)["auto"]
    assert said["method"] == "ip"
    assert said["because"].startswith("the model has no penultimate features")
    with pytest.raises(influence_cli.InfluenceError, match="no penultimate features"):
        influence_cli.score(str(tmp_path / "m.parquet"), task=task, method=["auto", "outlier"], **asked)
    rows = pq.read_table(tmp_path / "m.parquet")
    alone = rows.filter(pa.compute.not_equal(rows["split"], "val"))
    with pytest.raises(influence_cli.InfluenceError, match="no penultimate features"):  # nor rows to say effects on
        influence_cli.score(alone, task=task, **asked)


def test_options_of_a_settings_file_are_those_of_what_auto_takes(
    tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    (tmp_path / "influence.toml").write_text('[method.ip]\nnormalise = "cosine"\n')
    rows = pq.read_table(tabular)
    few = write(rows.filter(pa.array([k < 9 or s != "train" for k, s in enumerate(rows["split"].to_pylist())])),
                tmp_path / "m.parquet")  # fmt: skip
    ok("score", few, "--checkpoint", tabular_run, "-o", "a.parquet", cwd=tmp_path)
    ok("score", few, "--checkpoint", tabular_run, "--method", "ip", "-o", "b.parquet", cwd=tmp_path)
    a, b = (column(pq.read_table(tmp_path / f"{name}.parquet")) for name in "ab")
    assert a == pytest.approx(b)
    assert np.abs(a).max() <= 1.0 + 1e-6
    ran = call_cli("score", few, "--checkpoint", tabular_run, "--set", "ip.normalise=none", cwd=tmp_path)
    assert ran.code == 2
    assert "add --method ip" in ran.err
