"""Why a row has its score: parts by target row that sum to it, rows near by, duplicates, and the command that says it.

python -m pytest tests/stages/score/test_reasons.py
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.tables import provenance
from influence_cli.errors import ModelError
from influence_cli.settings import GradSpec, Runtime
from influence_cli.stages.score import reasons, target_parts
from influence_cli.stages.score.nearby import duplicate_groups
from influence_cli.stages.score.reasons import find_reasons, reasons_of
from influence_cli.stages.score.target_parts import parts_by_target
from tests.cases import call_cli, column, examples, feature_table, job_of, write
from tests.opened import Opened, per_target, score

SOME = np.array([0, 5, 9])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ip", {}),
        ("ip", {"normalise": "cosine"}),
        ("ip-ensemble", {"members": 2}),
        ("exact", {}),
        ("lissa", {"depth": 20, "repeats": 1}),  # whose minibatches come in an order
    ],
)
def test_parts_by_target_row_sum_to_the_score(
    method: str, options: dict[str, Any], tabular: Path, tabular_run: Path
) -> None:
    spec = GradSpec(methods=(method,), options={method: options}, precision="fp64")
    job = job_of(tabular, tabular_run, None, spec=spec)
    scores = column(score(job))[SOME]
    parts = parts_by_target(job.run, job.session, method, job.run.train.take(SOME))
    assert parts.shape == (3, 12)
    assert (parts > 0).any()
    assert (parts < 0).any()
    np.testing.assert_allclose(parts.sum(axis=1), scores, rtol=0, atol=1e-9 * np.abs(parts).sum())


def test_parts_are_those_of_the_table_by_target_row_by_layers_and_by_directions(
    tabular: Path, tabular_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tabular, tabular_run, None, spec=GradSpec(("ip",), precision="fp64"))
    table = per_target(job, 40).to_pylist()
    target, train = job.run.target.ids, job.run.train.ids
    rows = job.run.train.take(SOME)
    by_layers = parts_by_target(job.run, job.session, "ip", rows)

    def refused(*_: Any) -> None:
        raise ModelError("no layers")

    monkeypatch.setattr(target_parts, "_by_products", refused)
    by_directions = parts_by_target(job.run, job.session, "ip", rows)
    expected = np.zeros_like(by_layers)
    for row in table:
        if row["id"] in rows.ids:
            expected[rows.ids.index(row["id"]), target.index(row["target_id"])] = row["score"] / len(target)
    assert train[5] == rows.ids[1]
    np.testing.assert_allclose(by_layers, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(by_directions, expected, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, tabular_run: Path) -> Opened:
    """Rows of which r001 stands twice, r002 also among the target rows, with the run and its scores."""
    here = tmp_path_factory.mktemp("twins")
    rows = examples()
    again = [dataclasses.replace(rows[1], id="twin"), dataclasses.replace(rows[2], id="leak", split="val")]
    manifest = write(feature_table([*rows, *again]), here / "m.parquet")
    return job_of(manifest, tabular_run, here / "store", overlap="keep")


def test_reasons_name_the_rows_that_say_why(twins: Opened) -> None:
    table = score(twins)
    scores, ids = column(table), twins.run.train.ids
    places = np.array([ids.index(i) for i in ("r001", "r002", "twin")])
    found = find_reasons(twins.run, twins.session, scores, "score_utility", places, 4)
    assert found.missing == ()
    assert found.groups == [["r001", "twin"]]
    one = found.rows["r001"]
    assert next((d.id, d.split, d.exact) for d in one.duplicates) == ("twin", "train", True)
    assert ("leak", "target", True) in [(d.id, d.split, d.exact) for d in found.rows["r002"].duplicates]
    labels = dict(zip(ids, twins.run.train.labels.tolist(), strict=True))
    for k, name in zip(places.tolist(), ("r001", "r002", "twin"), strict=True):
        why = found.rows[name]
        assert [p.value for p in why.hurts] == sorted(p.value for p in why.hurts)
        assert all(p.value < 0 for p in why.hurts)
        assert all(p.value > 0 for p in why.helps)
        assert all(n.score is not None and n.score > 0 and n.id != name for n in why.helped_by)
        assert len(why.other_label) == 4
        assert all(n.label != labels[ids[k]] for n in why.other_label)
        near = [n.similarity for n in why.helped_by]
        assert near == sorted(near, reverse=True)


def test_groups_of_duplicates_link_chains_of_features_and_equal_payloads() -> None:
    angles = np.array([0.0, 0.01, 0.02, 1.0, 2.0])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    keys = np.arange(5 * 16, dtype=np.uint8).reshape(5, 16)
    assert duplicate_groups(keys, features, 1e-4) == [[0, 1, 2]]
    assert duplicate_groups(keys, features, 1e-6) == []
    keys[4] = keys[3]
    assert duplicate_groups(keys, None, 0.0) == [[3, 4]]


def test_the_command_explains_rows_from_a_table_of_scores(digits: Path, digits_run: Path, filled_store: Path,
                                                          scored: Path, tmp_path: Path) -> None:  # fmt: skip
    ran = call_cli("score", "--method", "ip", scored, "--explain", "d0003,d0007", "--top", 2, "--json",
                   "--store", filled_store, "-q", cwd=tmp_path)  # fmt: skip
    assert ran.code == 0, ran.err
    table = {r["id"]: r for r in pq.read_table(scored).to_pylist()}
    assert [row["id"] for row in ran.json["rows"]] == ["d0003", "d0007"]
    for row in ran.json["rows"]:
        assert row["score"] == table[row["id"]]["score"]
        assert row["of"] == 200
        assert row["rank"] == 1 + sum(r["score"] < row["score"] for r in table.values())
        assert row["label_name"] == f"class {row['label']}"
        why = row["reasons"]
        assert len(why["hurts"]) == len(why["helped_by"]) == len(why["other_label"]) == 2
        assert why["hurts"][0]["predicted_name"].startswith("class ")
        assert isinstance(row["other_label"], int)
    people = call_cli(
        "score",
        "--method",
        "ip",
        scored,
        "--explain",
        "d0003",
        "--format",
        "table",
        "--store",
        filled_store,
        cwd=tmp_path,
    )
    assert people.code == 0, people.err
    for said in ("row d0003", "lowest of 200", "whose loss it raises most", "nearest train rows that help"):
        assert said in people.text
    lines = call_cli(
        "score", "--method", "ip", scored, "--explain", "d0003", "--store", filled_store, "-q", cwd=tmp_path
    )
    assert json.loads(lines.out)["id"] == "d0003"


def test_rows_that_cannot_be_explained_are_named(digits: Path, filled_store: Path, scored: Path,
                                                 tmp_path: Path) -> None:  # fmt: skip
    def refused(*words: Any) -> str:
        ran = call_cli("score", scored, *words, "--store", filled_store, cwd=tmp_path)
        assert ran.code == 2, ran.err
        return ran.err

    assert "did you mean 'd0" in refused("--explain", "d00033")
    assert "is no train row (its split is val)" in refused("--explain", "d0201")
    assert "two different tables" in refused("--explain", "d0003", "--per-target")
    assert "no place for them" in refused("--explain", "d0003", "--format", "csv")


def test_a_ranking_has_no_target_rows_and_says_so(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    job = job_of(digits, digits_run, tmp_path / "store", spec=GradSpec(methods=("loss",)))
    scores = column(score(job))
    found = find_reasons(job.run, job.session, scores, "score_loss", SOME, 3)
    assert found.missing == ("no target rows are listed: loss is a value of the row itself and looks at none",)
    for why, k in zip(found.rows.values(), SOME.tolist(), strict=True):
        assert why.hurts == []
        assert {n.label for n in why.helped_by} == {int(job.run.train.labels[k])}


def test_rows_of_one_payload_are_found_without_features(twins: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise ModelError("the model has no penultimate features")

    monkeypatch.setattr(reasons, "fill_features", refused)
    ids = twins.run.train.ids
    found = find_reasons(twins.run, twins.session, column(score(twins)), "score_utility", np.array([1]), 3)
    assert found.limit is None
    assert "no penultimate features" in found.missing[0]
    assert [(d.id, d.exact, d.similarity) for d in found.rows[ids[1]].duplicates] == [("twin", True, None)]
    assert len(found.rows[ids[1]].hurts) == 3


def test_a_page_gets_a_sentence_where_the_run_is_gone(scored: Path, filled_store: Path) -> None:
    table: pa.Table = pq.read_table(scored)
    origin = provenance(table.schema)
    lost = {**origin, "checkpoint": {**origin["checkpoint"], "locator": "gone/model.safetensors"}}
    found = reasons_of(table, lost, ["d0003"], Runtime(str(filled_store), "cpu"), source="s.parquet")
    assert found.rows == {}
    assert len(found.missing) == 1
    assert found.missing[0].startswith("no reasons are shown: ")
