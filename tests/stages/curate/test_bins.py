"""Bins: act, review, abstain or keep, by members and by canaries; and the rows whose review is worth most.

python -m pytest tests/stages/curate/test_bins.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from scipy import integrate, stats

import influence_cli
from influence_cli.errors import UsageError
from influence_cli.stages.curate.bins import _expected_gain, members_of, needs_canaries
from influence_cli.stages.curate.canary_cut import CanaryCut
from influence_cli.stages.curate.curate import curate
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import read_scores
from tests.cases import call_cli, score_with_canaries


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest m of 300 train rows, its run with canaries; table s by five members, each with its scores, and loss."""
    asked = ("--method", "ip-ensemble", "--method", "loss", "--per-member")
    return score_with_canaries(tmp_path_factory.mktemp("bins"), 300, 80, *asked)


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def by_hand(table: pa.Table, budget: int) -> dict[str, str]:
    """Each row's bin by Student's interval over its members' scores."""
    names = [f"score_ip-ensemble_utility_{k}" for k in range(5)]
    members = {
        i: [row[n] for n in names] for i, row in zip(table.column("id").to_pylist(), table.to_pylist(), strict=True)
    }
    usable = {i: m for (i, m), y in zip(members.items(), table.column("canary").to_pylist(), strict=True) if y is None}
    beyond = sorted(usable, key=lambda i: np.mean(usable[i]))[:budget]
    cut, found = max(np.mean(usable[i]) for i in beyond), {}
    for i, scores in usable.items():
        low, high = stats.t.interval(0.95, 4, np.mean(scores), stats.sem(scores))
        if i in beyond and high < 0 and high < cut:
            found[i] = "act"
        elif i in beyond or low <= cut:
            found[i] = "review"
        else:
            found[i] = "abstain" if low <= 0 <= high else "keep"
    return found


def test_bins_by_members_are_those_by_hand_and_only_sure_rows_are_edited(there: Path) -> None:
    table = pq.read_table("s.parquet")
    asked = [
        "--budget",
        "20%",
        "--set",
        "trim.guard=false",
        "--bins",
        "b.csv",
        "--review-budget",
        "12",
        "--edits",
        "e.csv",
    ]
    ran = call_cli("curate", "s.parquet", *asked, cwd=there)
    assert ran.code == 0, ran.err
    bins, expected = pa.csv.read_csv("b.csv").to_pylist(), by_hand(table, 60)
    assert {row["id"]: row["bin"] for row in bins} == expected
    act = sorted(i for i, name in expected.items() if name == "act")
    assert len(set(expected.values())) == 4
    assert sorted(pa.csv.read_csv("e.csv").column("id").to_pylist()) == act
    assert f"{len(act)} act" in ran.err
    marked = [row for row in bins if row["review"]]
    assert [row["review"] for row in marked] == list(range(1, 13))  # they stand first
    others = [row["review_value"] for row in bins[12:] if row["bin"] != "act"]
    assert min(row["review_value"] for row in marked) >= max(others)
    assert all(row["bin"] != "act" for row in marked)
    again = influence_cli.curate("s.parquet", budget="20%", bins="again.parquet", options={"trim": {"guard": False}})
    assert sorted(again.column("id").to_pylist()) == act
    assert call_cli("curate", "s.parquet", *asked, cwd=there).code == 0  # an earlier table of bins is replaced


def test_the_spread_says_the_same_as_the_members_themselves(there: Path) -> None:
    """Column score_std with the number of members in the table's provenance stands for the members' columns."""
    table = pq.read_table("s.parquet")
    alone = table.drop_columns([f"score_ip-ensemble_utility_{k}" for k in range(5)])
    a, b = (curate(CurateRequest(t, manifest="m.parquet", budget="20%", bins="x")).bins for t in (table, alone))
    assert a is not None
    assert b is not None
    assert a.names.tolist() == b.names.tolist()
    assert a.low == pytest.approx(b.low, nan_ok=True)


def test_the_value_of_a_review_is_the_expected_gain() -> None:
    mean, error = np.array([-2.0, -0.1, 0.0, 0.3, 1.0, -1.0, 1.0]), np.array([0.5, 0.2, 1.0, 0.4, 0.0, 0.0, 2.0])
    for m, e, value in zip(mean, error, _expected_gain(mean, error), strict=True):
        if e == 0:
            assert value == max(-m, 0.0)
            continue
        exact = integrate.quad(lambda s, m=m, e=e: -s * stats.norm.pdf(s, m, e), -20, 0, points=[m])[0]
        assert value == pytest.approx(exact, abs=1e-7)


def cut_of(scores: list[float], probability: list[float], apart: float, threshold: float, rows: int) -> CanaryCut:
    """Canaries that say a probability at every score, with an interval about it."""
    value = np.array(probability)
    intervals = {"recall_interval": (0.0, 1.0), "fine_interval": (0.0, 1.0), "wrong_interval": (0.0, 1.0)}
    return CanaryCut(
        "score_loss", "asked for", 50, threshold, rows, 0.5, fine=0.1, wrong_rows=5.0, **intervals,  # type: ignore[arg-type]
        scores=np.array(scores), wrong_at=value, wrong_low=value - apart, wrong_high=value + apart,
    )  # fmt: skip


def test_bins_by_canaries_are_about_even_odds(there: Path) -> None:
    table = pq.read_table("s.parquet")
    free = table.filter(table.column("canary").is_null())
    scores = sorted(set(free.column("score_loss").to_pylist()))
    probability = np.linspace(1.0, 0.0, len(scores)).tolist()
    cut = cut_of(scores, probability, 0.2, np.inf, 0)
    request = CurateRequest("s.parquet", by=("score_loss",), budget="30", bins="x", cut=cut, review_budget="5",
                            options={"trim": {"guard": False}})  # fmt: skip
    with pytest.raises(UsageError, match="canaries have not been asked"):
        curate(CurateRequest("s.parquet", by=("auto",)))
    found = curate(CurateRequest(**{**vars(request), "cut": cut_of(scores, probability, 0.2, np.inf, 300)}))
    assert found.bins is not None
    of = dict(zip(found.scores.train.ids, found.bins.names.tolist(), strict=True))
    order = free.sort_by("score_loss").column("id").to_pylist()
    odds = dict(zip(scores, probability, strict=True))
    for k, (i, s) in enumerate(zip(order, free.sort_by("score_loss").column("score_loss").to_pylist(), strict=True)):
        expected = "act" if k < 30 and odds[s] > 0.7 else "abstain" if odds[s] < 0.3 else "review"
        assert of[i] == expected
    assert sorted(found.table().column("id").to_pylist()) == sorted(order[:30])
    marked = np.flatnonzero(found.bins.place > 0)
    assert sorted(found.scores.train.ids[k] for k in marked) == sorted(order[30:35])  # the most probable that are left
    canary = [
        i
        for i, y in zip(table.column("id").to_pylist(), table.column("canary").to_pylist(), strict=True)
        if y is not None
    ]
    assert {of[i] for i in canary} == {""}


def test_a_recall_that_is_asked_for_leaves_no_row_beyond_the_cut_alone(there: Path) -> None:
    table = pq.read_table("s.parquet")
    free = table.filter(table.column("canary").is_null()).sort_by("score_loss")
    scores, order = sorted(set(free.column("score_loss").to_pylist())), free.column("id").to_pylist()
    probability = [0.9] * 10 + [0.5] * 10 + [0.1] * (len(scores) - 20)
    found = []
    for rows in (15, 40):
        cut = cut_of(scores, probability, 0.2, free.column("score_loss")[rows - 1].as_py(), rows)
        asked = {"by": ("score_loss",), "bins": "x", "target_recall": "0.5", "options": {"trim": {"guard": False}}}
        bins = curate(CurateRequest("s.parquet", cut=cut, **asked))
        assert bins.bins is not None
        of = dict(zip(bins.scores.train.ids, bins.bins.names.tolist(), strict=True))
        found.append([of[i] for i in order])
    assert found[0] == ["act"] * 10 + ["review"] * 10 + ["abstain"] * (len(order) - 20)
    assert found[1] == ["act"] * 10 + ["review"] * 30 + ["abstain"] * (len(order) - 40)


def test_a_column_without_members_is_told_by_canaries_or_refused(there: Path) -> None:
    ran = call_cli("curate", "s.parquet", "--by", "loss", "--bins", "b.parquet", "--budget", "20%", cwd=there)
    assert ran.code == 0, ran.err
    assert "the probability that the label is wrong, by canaries" in ran.err
    bins = pq.read_table("b.parquet")
    assert set(bins.column("bin").to_pylist()) <= {"act", "review", "abstain"}
    pq.write_table(pq.read_table("s.parquet").drop_columns(["canary"]), "none.parquet")
    ran = call_cli("curate", "none.parquet", "--by", "loss", "--bins", "c.parquet", cwd=there)
    assert ran.code == 2
    assert "neither members nor canaries" in ran.err


@pytest.mark.parametrize("by", ["score", "loss"])
def test_whether_canaries_are_asked_is_known_without_the_manifest(
    there: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = CurateRequest("s.parquet", by=(by,), bins="b.parquet")
    expected = members_of(read_scores(request)) is None
    monkeypatch.setattr("influence_cli.stages.curate.score_table.open_manifest", lambda *_: pytest.fail("opened"))
    assert needs_canaries(request) == expected == (by == "loss")
    assert needs_canaries(replace(request, by=("score", "loss")))
    assert not needs_canaries(replace(request, bins=None))


def refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        curate(CurateRequest("s.parquet", bins="x", **asked))


def test_bins_that_cannot_be_are_refused(there: Path) -> None:
    refused({"action": "reweight"}, "reweight touches every scored row")
    refused({"review_budget": "many"}, "--review-budget 'many' is neither a share nor a count")
    refused({"maximise": "utility", "subject_to": ("utility>=0",)}, "--maximise chooses rows by a sum, and --bins")
