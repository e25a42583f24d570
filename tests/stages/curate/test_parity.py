"""Edits by scores about groups stop where the gap is predicted to be closed (methods.md 3.2).

Reference: the predicted effect summed by hand over the rows in order of score; rounds by the gaps of their models.

    python -m pytest tests/stages/curate/test_parity.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_cli.actions.protocol import Parity, Scored
from influence_cli.actions.relabel import Relabel
from influence_cli.actions.reweight import Reweight
from influence_cli.actions.trim import Trim
from influence_cli.data.tables import provenance
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import GradSpec, Inputs
from influence_cli.stages.curate.score_table import parity_of
from influence_cli.stages.retrain.request import EditsRequest, RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from influence_cli.stages.retrain.rounds import closed
from tests.actions.test_actions import scored
from tests.cases import Example, call_cli, draw_features, feature_table, write

quick = settings(database=None, deadline=None, derandomize=True, max_examples=60)


def about_groups(n: int, seed: int, room: float, divisor: float | None) -> Scored:
    rng = np.random.default_rng(seed)
    labels, proposed = rng.integers(2, size=n), rng.uniform(0.0, 2.0, n)
    rows = scored(
        rng.normal(size=n), labels, weights=rng.uniform(0.5, 2.0, n), best_label=1 - labels, best_label_gain=proposed
    )
    return dataclasses.replace(rows, parity=Parity("fairness", room, divisor))


# -- one edit -------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 10_000), st.floats(0.0, 0.4), st.integers(1, 40))
def test_a_trim_takes_the_fewest_lowest_rows_that_close_the_gap(seed: int, room: float, budget: int) -> None:
    rows = about_groups(60, seed, room, 60.0)
    trim = Trim(guard=False)
    taken = trim.propose(rows, budget).edited
    order = rows.ascending()
    falls = np.concatenate([[0.0], np.cumsum(-rows.weights[order] * rows.score[order] / 60.0)])
    enough = np.flatnonzero(falls >= room)
    expected = min(budget, int(enough[0]) if len(enough) else 60)
    assert sorted(taken.tolist()) == sorted(order[:expected].tolist())
    ignored = dataclasses.replace(trim, parity="ignore").propose(rows, budget)
    assert sorted(ignored.edited.tolist()) == sorted(order[:budget].tolist())


def test_a_trim_says_how_many_rows_it_took_and_why() -> None:
    rows = about_groups(60, 0, 0.05, 60.0)
    edits = Trim(guard=False).propose(rows, 30)
    taken = len(edits.edited)
    assert 0 < taken < 30
    said = f"stopped at parity: {taken} of the budget's 30 rows are predicted to close the gap of fairness (0.05)"
    assert edits.notes == [said]
    none = dataclasses.replace(rows, parity=Parity("eo-loss", -0.2, 60.0))
    edits = Trim().propose(none, 30)
    assert len(edits.edited) == 0
    assert edits.notes == ["nothing to close: eo-loss is at parity already, or its signed gap is reversed"]


@quick
@given(st.integers(0, 10_000), st.floats(0.0, 0.4))
def test_a_relabel_counts_what_the_new_labels_add(seed: int, room: float) -> None:
    rows = about_groups(60, seed, room, 60.0)
    assert rows.best_label_gain is not None
    whole = Relabel(guard=False, parity="ignore").propose(rows, 20).edited
    order = [i for i in rows.ascending().tolist() if i in set(whole.tolist())]
    falls = np.concatenate([[0.0], np.cumsum((rows.weights * rows.best_label_gain)[order] / 60.0)])
    enough = np.flatnonzero(falls >= room)
    expected = order[: int(enough[0]) if len(enough) else len(order)]
    assert Relabel(guard=False).propose(rows, 20).edited.tolist() == sorted(expected)


def test_weights_are_drawn_back_until_they_are_predicted_to_close_the_gap() -> None:
    free = about_groups(200, 3, 0.01, 200.0)
    ignored = Reweight(parity="ignore").propose(free, 0).weights
    drawn = Reweight().propose(free, 0)

    def fall(weights: Any) -> float:
        return float(((weights - free.weights) * free.score).sum() / 200.0)

    assert fall(ignored) > 0.01
    assert fall(drawn.weights) == pytest.approx(0.01, rel=1e-12)
    assert drawn.notes[0].startswith("stopped at parity: ")
    for c in (0, 1):  # a share of a change that keeps every class's mass keeps it too
        assert drawn.weights[free.labels == c].sum() == pytest.approx(free.weights[free.labels == c].sum())
    wide = dataclasses.replace(free, parity=Parity("fairness", 100.0, 200.0))
    assert np.array_equal(Reweight().propose(wide, 0).weights, ignored)
    assert np.array_equal(Reweight(paper=True).propose(free, 0).weights, Reweight(paper=True).propose(wide, 0).weights)


@pytest.mark.parametrize("action", [Trim(), Relabel(), Reweight()])
def test_scores_that_estimate_no_effect_are_warned_of(action: Any) -> None:
    rows = about_groups(60, 1, 0.01, None)
    edits = action.propose(rows, 10)
    assert "cannot be foreseen" in edits.notes[0]
    assert "--rounds" in edits.notes[0]
    assert "exact" in edits.notes[0]
    alone = action.propose(dataclasses.replace(rows, parity=None), 10)
    assert np.array_equal(edits.weights, alone.weights)
    assert np.array_equal(edits.labels, alone.labels)


def test_another_choice_is_refused() -> None:
    for action in (Trim, Relabel, Reweight):
        with pytest.raises(ValueError, match="use stop or ignore"):
            action(parity="perhaps")


# -- what a table says of it ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two groups that are far apart in a feature and in their labels, 200 / 80 / 60 rows, scored for fairness."""
    folder = tmp_path_factory.mktemp("apart")
    rng = np.random.default_rng(0)
    rows, groups = [], []
    for k, split in enumerate(["train"] * 200 + ["val"] * 80 + ["test"] * 60):
        g = k % 2
        x = np.array(draw_features(k)) + np.array([0.3 * g, 0, 0, 0, 0])
        label = int(x[0] + x[1] + 0.5 * rng.normal() > 0.5)
        rows.append(Example(f"p{k:03d}", tuple(float(np.float32(v)) for v in x), label, split))
        groups.append("b" if g else "a")
    write(feature_table(rows, group=pa.array(groups)).replace_schema_metadata(None), folder / "m.parquet")
    asked = ["--model", "linear", "--epochs", 8, "--weight-decay", "0.01", "-o", "RUN", "-q"]
    ran = call_cli("retrain", "m.parquet", "--raw-features", *asked, cwd=folder)
    assert ran.code == 0, ran.err
    for method in ("exact", "ip"):
        asked = ["--method", method, "--objective", "fairness", "-o", f"{method}.parquet", "-q"]
        ran = call_cli("score", "m.parquet", "--checkpoint", "RUN", *asked, cwd=folder)
        assert ran.code == 0, ran.err
    return folder


def test_curate_stops_where_the_effects_of_the_table_add_up_to_phi(tmp_path: Path, apart: Path) -> None:
    table = pq.read_table(apart / "exact.parquet")
    origin = provenance(table.schema)
    phi = origin["noise"]["fairness"]["phi"]
    effects = np.sort(table["effect"].to_numpy())
    needed = int(np.flatnonzero(np.cumsum(-effects) >= phi)[0]) + 1
    asked = [apart / "exact.parquet", "--budget", "50%", "--set", "guard=false", "--set", "group_guard=false"]
    ran = call_cli("curate", *asked, "--edits", tmp_path / "e.parquet", cwd=apart)
    assert ran.code == 0, ran.err
    assert 0 < needed < 100
    assert f"stopped at parity: {needed} of the budget's 100 rows" in ran.err
    assert pq.read_table(tmp_path / "e.parquet").num_rows == needed
    ran = call_cli("curate", *asked, "--set", "trim.parity=ignore", "--edits", tmp_path / "e.parquet", cwd=apart)
    assert ran.code == 0, ran.err
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 100
    assert "parity" not in ran.err
    ran = call_cli("curate", apart / "ip.parquet", "--budget", "5%", "--edits", tmp_path / "e.parquet", cwd=apart)
    assert ran.code == 0, ran.err
    assert "cannot be foreseen" in ran.err
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 10
    ran = call_cli("curate", apart / "ip.parquet", "--set", "trim.parity=maybe", cwd=apart)
    assert ran.code == 2
    assert "use stop or ignore" in ran.err


def origin_of(phi: float, gap: float, groups: int = 2, at_parity: bool = False, **options: Any) -> dict[str, Any]:
    term = {"term": "class 1", "gap": gap, "gap_se": 0.01, "groups": {f"g{k}": {} for k in range(groups)}}
    return {
        "score_is": "score_fairness",
        "objective_of": {"score_fairness": "fairness", "score_utility": "utility"},
        "noise": {"fairness": {"phi": phi, "parts": {"terms": [term], "at_parity": at_parity}}, "utility": {"phi": 1}},
        "effect_divisors": {"score_fairness": 50.0},
        "spec": {"options": {"fairness": options}},
    }


def test_room_is_what_the_slope_promises_until_the_gap_is_closed() -> None:
    def room(*given: Any, **options: Any) -> float:
        found = parity_of(origin_of(*given, **options), "score")
        assert found is not None
        assert (found.objective, found.divisor) == ("fairness", 50.0)
        return found.room

    assert room(0.2, 0.2) == 0.2
    assert room(-0.2, -0.2, signed=True) == -0.2
    assert room(0.04, 0.2, aggregate="variance") == 0.08
    assert room(0.3, 0.2, 3, aggregate="max") == pytest.approx(0.3 - 0.02 * np.log(3))
    assert room(1e-3, 1e-4, 2, True) == 0.0
    assert parity_of(origin_of(0.2, 0.2), "score_utility") is None
    assert parity_of({}, "score") is None


# -- rounds ---------------------------------------------------------------------------------------------------------


def test_rounds_are_over_where_the_sign_flips_or_the_gap_is_within_its_error() -> None:
    def noise(*gaps: float) -> dict[str, Any]:
        return {"parts": {"terms": [{"gap": g, "gap_se": 0.01} for g in gaps]}}

    assert closed(noise(0.2), noise(0.1)) is None
    flipped, small = closed(noise(0.2), noise(-0.1)), closed(noise(0.2), noise(0.005))
    assert flipped is not None
    assert "sign of D has changed (D 0.2 -> -0.1" in flipped
    assert small is not None
    assert "below its standard error" in small
    assert closed(noise(0.2, 0.2), noise(-0.1, 0.1)) is None
    assert closed(noise(0.2, 0.2), noise(-0.1, 0.004)) is not None
    assert closed({"phi": 1.0}, {"phi": 0.5}) is None


def test_retraining_in_rounds_stops_at_parity_and_says_so(tmp_path: Path, apart: Path) -> None:
    def run(output: str, **trim: str) -> list[dict[str, Any]]:
        options: dict[str, Any] = {"trim": {"guard": "false", "group_guard": "false", **trim}}
        spec = GradSpec(("ip",), ("fairness",))
        edits = EditsRequest(None, ("60%",), rounds=6, spec=spec, options=options)
        inputs = Inputs(str(apart / "m.parquet"), model="linear")
        asked = RetrainRequest(inputs, str(tmp_path / output), device="cpu", edits=edits, attack="none")
        arms = retrain(asked, Recipe(epochs=8, batch_size=32, lr=0.05, weight_decay=0.01))["arms"]
        return arms["ip_fairness trim 60% in 6 rounds"]["edits"]["rounds"]

    history, whole = run("RUN"), run("ALL", parity="ignore")
    assert [h["trimmed"] for h in whole] == [20, 40, 60, 80, 100, 120]
    *rounds, last = history
    first = rounds[0]["gaps"][0]
    assert len(rounds) < 6
    assert all(r["gaps"][0] * first > 0 for r in rounds)
    assert last["trimmed"] == rounds[-1]["trimmed"] == 20 * len(rounds)
    assert last["gaps"] == whole[len(rounds)]["gaps"]
    assert ("sign" in last["stopped"]) == (last["gaps"][0] * first < 0)


def test_constraints_that_are_predicted_to_overshoot_say_so(tmp_path: Path, apart: Path) -> None:
    both = tmp_path / "both.parquet"
    asked = ["--method", "exact", "--objective", "fairness", "--objective", "utility", "-o", both, "-q"]
    assert call_cli("score", "m.parquet", "--checkpoint", "RUN", *asked, cwd=apart).code == 0
    table = pq.read_table(both)
    phi = provenance(table.schema)["noise"]["fairness"]["phi"]
    asked = ["--maximise", "fairness", "--subject-to", "utility>=-9", "--edits", tmp_path / "e.parquet"]
    for budget, over in (("60%", True), ("1", False)):
        ran = call_cli("curate", both, *asked, "--budget", budget, "--set", "guard=false", cwd=apart)
        assert ran.code == 0, ran.err
        gained = provenance(pq.read_table(tmp_path / "e.parquet").schema)["action"]["predicted"][0]["gain"]
        assert (gained > phi) == over == ("past parity" in ran.err)
