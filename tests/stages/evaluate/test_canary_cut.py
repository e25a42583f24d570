"""``curate --target-recall``, ``--max-false`` and ``--by auto``: edits as predicted, and what is refused and why.

python -m pytest tests/stages/evaluate/test_canary_cut.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli.cli.show.canary_cut import cut_lines
from influence_cli.data.tables import PROVENANCE_KEY
from influence_cli.errors import UsageError
from influence_cli.settings import Runtime
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.evaluate.canary_cut import measure, with_canaries
from tests.cases import call_cli, score_with_canaries, with_column, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest m of 500 train rows, its run with 50 canaries, and a table s of three methods."""
    asked = ("--method", "ip", "--method", "loss", "--method", "random")
    return score_with_canaries(tmp_path_factory.mktemp("cut"), 500, 100, *asked)


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def asked_of(**asked: Any) -> CurateRequest:
    """The request after canaries were asked."""
    return with_canaries(CurateRequest("s.parquet", **asked), Runtime(".influence"))


def test_canaries_are_scored_as_planted_and_rows_as_they_are(there: Path) -> None:
    """The planted score of a loss is the log of the probability of the planted label."""
    found = measure(CurateRequest("s.parquet"), Runtime(".influence"))
    table = pq.read_table("s.parquet")
    assert found.canary.sum() == 50
    assert set(found.own) == {"score_ip_utility", "score_loss", "score_random"}
    assert np.array_equal(found.own["score_loss"], table.column("score_loss").to_numpy())
    rows = found.scores.train
    planted = np.where(found.canary, table.column("canary").fill_null(-1).to_numpy(), rows.labels)
    names = table.column("id").to_pylist()
    relabelled = pq.read_table("m.parquet")
    labels = dict(zip(names, planted.tolist(), strict=True))
    ids, was = relabelled.column("id").to_pylist(), relabelled.column("label").to_pylist()
    write(
        with_column(relabelled, "label", pa.array([labels.get(i, y) for i, y in zip(ids, was, strict=True)])),
        Path("p.parquet"),
    )
    again = influence_cli.score("p.parquet", checkpoint="run", method="loss", store=None)
    assert again.column("score_loss").to_numpy() == pytest.approx(found.planted["score_loss"], abs=1e-6)


def test_the_edits_are_the_rows_below_the_cut(there: Path) -> None:
    request = asked_of(by=("loss",), target_recall="80%")
    cut, table = request.cut, pq.read_table("s.parquet")
    assert cut is not None
    assert (cut.column, cut.canaries, cut.why) == ("score_loss", 50, "asked for")
    low, high = cut.recall_interval
    assert 0.8 <= cut.recall < 0.95
    assert low < cut.recall < high
    score, canary = table.column("score_loss").to_numpy(), table.column("canary").is_valid().to_numpy()
    below = (score <= cut.threshold) & ~canary
    assert below.sum() == cut.rows
    ran = call_cli("curate", "s.parquet", "--by", "loss", "--target-recall", "0.8", "--set", "trim.guard=false",
                   "--edits", "e.csv", cwd=there)  # fmt: skip
    assert ran.code == 0, ran.err
    edits = pa.csv.read_csv("e.csv")
    assert sorted(edits.column("id").to_pylist()) == sorted(np.array(table.column("id").to_pylist())[below].tolist())
    assert f"50 canaries expect: {cut.rows} rows beyond the cut hold {100 * cut.recall:.1f}%" in ran.err
    wide, narrow = (cut_lines(replace(cut, recall_interval=ends)) for ends in ((0.5, 0.9), (0.7, 0.89)))
    assert "tell the recall to within 20 points, about 200 would to within 10: retrain" in wide[-1]
    assert not any("so few" in line for line in narrow)
    edited = influence_cli.curate(
        "s.parquet", by="loss", target_recall=0.8, options={"trim": {"guard": False}}, store=".influence"
    )
    assert sorted(edited.column("id").to_pylist()) == sorted(edits.column("id").to_pylist())
    kept = json.loads(edited.schema.metadata[PROVENANCE_KEY])["action"]["canaries"]
    assert (kept["rows"], kept["recall"]) == (cut.rows, cut.recall)


def test_a_row_that_a_guard_spares_is_not_replaced_by_one_beyond_the_cut(there: Path) -> None:
    table = pq.read_table("s.parquet")
    request = asked_of(by=("loss",), target_recall="90%")
    assert request.cut is not None
    edited = influence_cli.curate("s.parquet", by="loss", target_recall="90%", options={"trim": {"per_class": True}})
    scores = dict(zip(table.column("id").to_pylist(), table.column("score_loss").to_pylist(), strict=True))
    assert 0 < edited.num_rows < request.cut.rows
    assert max(scores[i] for i in edited.column("id").to_pylist()) <= request.cut.threshold


def test_a_share_of_fine_rows_is_kept_to_and_a_budget_caps(there: Path) -> None:
    wide, narrow = asked_of(by=("loss",), max_false="40%").cut, asked_of(by=("loss",), max_false="20%").cut
    assert wide is not None
    assert narrow is not None
    assert wide.fine is not None
    assert narrow.fine is not None
    assert wide.rows > narrow.rows > 0
    assert wide.fine <= 0.4
    assert narrow.fine <= 0.2
    capped = asked_of(by=("loss",), max_false="40%", budget="10").cut
    assert capped is not None
    assert (capped.rows, capped.capped) == (10, "10")
    assert capped.recall < wide.recall
    assert influence_cli.curate("s.parquet", by="loss", max_false=0.4, budget=10).num_rows == 10
    both = asked_of(by=("loss",), target_recall="50%", max_false="90%").cut
    alone = asked_of(by=("loss",), target_recall="50%").cut
    assert both is not None
    assert alone is not None
    assert both.threshold == alone.threshold


def test_canaries_choose_the_column(there: Path) -> None:
    request = asked_of(by=("auto",), budget="5%")
    assert request.by == ("score_loss",)
    assert request.cut is not None
    assert "finds canaries best: average precision" in request.cut.why
    assert "against score_ip_utility" in request.cut.why
    by_hand = influence_cli.curate("s.parquet", by="loss", budget="5%")
    chosen = influence_cli.curate("s.parquet", by="auto", budget="5%")
    assert chosen.column("id").to_pylist() == by_hand.column("id").to_pylist()


REFUSED = [
    ({"by": ("random",), "target_recall": "50%"}, "score_random does not find the 50 canaries better than random"),
    ({"by": ("loss",), "target_recall": "99.9%"}, "50 canaries cannot resolve a recall of 0.999"),
    ({"by": ("loss",), "target_recall": "95%", "max_false": "15%"}, "contradict"),
    ({"by": ("loss",), "target_recall": "50%", "action": "reweight"}, "reweight touches every scored row"),
    ({"by": ("ip_utility", "loss"), "target_recall": "50%"}, "canaries have no combined score"),
    ({"maximise": "utility", "target_recall": "50%"}, "--maximise chooses rows by a sum"),
    ({"by": ("loss",), "target_recall": "much"}, "--target-recall 'much' is no share"),
]


@pytest.mark.parametrize(("asked", "said"), REFUSED)
def test_what_canaries_cannot_answer_is_refused(there: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        asked_of(**asked)
    assert error.value.fix


def test_without_canaries_or_with_few_there_is_no_cut(there: Path, tmp_path: Path) -> None:
    table = pq.read_table("s.parquet")
    pq.write_table(table.drop_columns(["canary"]), "none.parquet")
    ran = call_cli("curate", "none.parquet", "--target-recall", "80%", cwd=there)
    assert ran.code == 2
    assert "the table has no canaries" in ran.err
    assert "retrain MANIFEST --canaries 5%" in ran.err
    planted = table.column("canary").to_pylist()
    first = [k for k, y in enumerate(planted) if y is not None][:10]
    few = pa.array([y if k in first else None for k, y in enumerate(planted)], pa.int64())
    pq.write_table(with_column(table, "canary", few), "few.parquet")
    with pytest.raises(UsageError, match="10 canaries are too few"):
        with_canaries(CurateRequest("few.parquet", target_recall="80%"), Runtime(".influence"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--check", "--target-recall", "50%"], "--target-recall is about edits"),
        (["--device", "cpu"], "--device is about a model, and none is run"),
        (["--review-budget", "20"], "--review-budget is about bins"),
        (["--undo", "--bins", "b.csv"], "--bins is about new edits"),
    ],
)
def test_flags_without_effect_are_refused(there: Path, flags: list[str], said: str) -> None:
    ran = call_cli("curate", "s.parquet", *flags, cwd=there)
    assert (ran.code, said in ran.err) == (2, True), ran.err
