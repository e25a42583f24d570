"""Detection (methods.md 6.1): figures, pairing, verdicts and speed; truth from columns and lists; tables side by side.

python -m pytest tests/stages/evaluate/test_detection.py
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from influence_cli.data.tables import provenance, with_provenance
from influence_cli.errors import UsageError
from influence_cli.stages.evaluate.detection import detect
from influence_cli.stages.evaluate.truth import Truth
from tests.cases import Ran, call_cli, column, digits_table, train_run, with_column, write

Floats = NDArray[np.float64]


def evaluate(*asked: Any, cwd: Path) -> Ran:
    """``influence evaluate``, which has to succeed."""
    ran = call_cli("evaluate", *asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


def simulated(n: int, rate: float, shifts: dict[str, float], seed: int = 0) -> tuple[dict[str, Floats], Truth]:
    """Columns of scores that are normal, lower by a shift where the row is wrong, with a noise in common."""
    rng = np.random.default_rng(seed)
    wrong = np.arange(n) < round(rate * n)
    common = rng.normal(size=n)
    columns = {name: common + rng.normal(size=n) - shift * wrong for name, shift in shifts.items()}
    return columns, Truth(wrong, np.ones(n, dtype=bool), "simulation")


# ---- figures ------------------------------------------------------------------------------------------------------


def test_figures_equal_scikit_learn_and_lie_in_their_intervals() -> None:
    columns, truth = simulated(300, 0.2, {"a": 1.0, "b": 3.0, "c": 0.0})
    columns["c"] = np.round(columns["c"], 1)
    result = detect(columns, truth, 40, 200, 0)
    assert result["reference"] == "b"
    for name, values in columns.items():
        d = result["columns"][name]
        assert d["auc"] == pytest.approx(roc_auc_score(truth.wrong, -values), abs=1e-12)
        assert d["average_precision"] == pytest.approx(average_precision_score(truth.wrong, -values), abs=1e-12)
        assert d["precision_at_wrong"] == d["recall_at_wrong"]
        assert d["recall_at_budget"] == pytest.approx(d["precision_at_budget"] * 40 / 60)
        assert (d["rows"], d["wrong"]) == (300, 60)
        for figure in ("auc", "average_precision", "precision_at_budget", "recall_at_budget", "recall_at_wrong"):
            low, high = d[f"{figure}_interval"]
            assert 0.0 <= low <= d[figure] <= high <= 1.0
            assert high - low > 0.001
    lowest = np.argsort(columns["a"])
    assert result["columns"]["a"]["precision_at_budget"] == pytest.approx(truth.wrong[lowest[:40]].mean())
    assert result["columns"]["a"]["recall_at_wrong"] == pytest.approx(truth.wrong[lowest[:60]].mean())


def test_a_perfect_ranking_has_an_interval_all_the_same() -> None:
    columns, truth = simulated(200, 0.2, {"a": 0.0})
    columns["a"] = -truth.wrong.astype(np.float64)
    d = detect(columns, truth, 10, 50, 0)["columns"]["a"]
    assert (d["auc"], d["average_precision"], d["recall_at_budget"]) == (1.0, 1.0, 0.25)
    assert d["auc_interval"] == pytest.approx([40 / (40 + 1.959964**2), 1.0])
    assert d["precision_at_budget_interval"] == pytest.approx([10 / (10 + 1.959964**2), 1.0])
    assert d["recall_at_budget_interval"][1] == 0.25  # ten rows of forty: no more can be found


def test_the_budget_may_be_nothing_or_everything() -> None:
    columns, truth = simulated(60, 0.3, {"a": 1.0})
    nothing = detect(columns, truth, 0, 50, 0)["columns"]["a"]
    assert (nothing["precision_at_budget"], nothing["recall_at_budget"]) == (None, 0.0)
    everything = detect(columns, truth, 60, 50, 0)["columns"]["a"]
    assert everything["precision_at_budget"] == pytest.approx(0.3)
    assert everything["recall_at_budget"] == 1.0


def test_rows_without_a_score_are_left_out_and_comparisons_are_on_common_rows() -> None:
    columns, truth = simulated(400, 0.25, {"a": 1.0, "b": 1.5})
    columns["a"][::7] = np.nan
    result = detect(columns, truth, 50, 100, 0, "b")["columns"]
    kept = np.isfinite(columns["a"])
    assert result["a"]["rows"] == kept.sum()
    assert result["b"]["rows"] == 400
    assert result["a"]["auc"] == pytest.approx(roc_auc_score(truth.wrong[kept], -columns["a"][kept]), abs=1e-12)
    common = [roc_auc_score(truth.wrong[kept], -columns[n][kept]) for n in ("a", "b")]
    difference = result["a"]["difference"]
    assert difference["rows"] == kept.sum()
    assert difference["auc"]["difference"] == pytest.approx(common[0] - common[1], abs=1e-12)
    unknown = Truth(truth.wrong & kept, kept, "where a is known")
    again = detect({"a": columns["a"]}, unknown, 50, 100, 0)["columns"]["a"]
    assert again["auc"] == result["a"]["auc"]


def test_a_column_that_cannot_tell_has_no_figures_and_stops_nobody() -> None:
    columns, truth = simulated(60, 0.3, {"a": 1.0, "b": 1.0})
    columns["b"][truth.wrong] = np.nan
    columns["none"] = np.full(60, np.nan)
    result = detect(columns, truth, 5, 50, 0)
    assert result["columns"]["b"]["auc"] is None
    assert (result["columns"]["none"]["rows"], result["columns"]["none"]["average_precision"]) == (0, None)
    assert result["columns"]["a"]["auc"] is not None
    with pytest.raises(UsageError, match="no column 'b'"):
        detect(columns, truth, 5, 50, 0, "b")


def test_the_same_seed_gives_the_same_numbers_whatever_the_order_of_columns() -> None:
    columns, truth = simulated(200, 0.2, {"a": 1.0, "b": 1.3, "c": 0.4})
    once = detect(columns, truth, 20, 60, 5)["columns"]
    again = detect(dict(reversed(columns.items())), truth, 20, 60, 5)["columns"]
    assert once == again
    assert detect(columns, truth, 20, 60, 6)["columns"]["a"]["auc_interval"] != once["a"]["auc_interval"]


# ---- verdicts -----------------------------------------------------------------------------------------------------


def test_pairing_resolves_what_separate_intervals_do_not() -> None:
    """Two columns that share most of their noise: intervals overlap, the paired difference is clear."""
    rng = np.random.default_rng(1)
    wrong = np.arange(600) < 120
    common = 3.0 * rng.normal(size=600)
    columns = {name: common + 0.2 * rng.normal(size=600) - shift * wrong for name, shift in (("a", 2.0), ("b", 2.6))}
    result = detect(columns, Truth(wrong, np.ones(600, dtype=bool), ""), 60, 300, 0, "a")["columns"]
    assert result["b"]["auc_interval"][0] < result["a"]["auc_interval"][1]
    assert result["b"]["difference"]["auc"]["verdict"] == "better"
    assert result["b"]["difference"]["auc"]["interval"][0] > 0
    assert (
        detect(columns, Truth(wrong, np.ones(600, dtype=bool), ""), 60, 300, 0, "b")["columns"]["a"]["difference"][
            "auc"
        ]["verdict"]
        == "worse"
    )


def test_equally_good_columns_are_told_apart_one_time_in_twenty() -> None:
    """Under no difference a verdict comes at most about 5 % of the time, three columns against one after Holm."""
    wrongs = dict.fromkeys(("auc", "average_precision", "recall_at_wrong"), 0)
    for seed in range(150):
        columns, truth = simulated(200, 0.25, dict.fromkeys("abcd", 1.5), seed)
        result = detect(columns, truth, 20, 60, seed, "a")["columns"]
        for figure in wrongs:
            said = {result[n]["difference"][figure]["verdict"] for n in "bcd"}
            wrongs[figure] += said != {"not resolved"}
    assert max(wrongs.values()) <= 0.10 * 150  # 5 % and three standard errors
    assert sum(wrongs.values()) > 0  # and it is no stone


def test_holm_asks_more_of_many_columns_than_of_one() -> None:
    columns, truth = simulated(300, 0.2, {"best": 1.5, "near": 1.15})
    alone = detect(columns, truth, 30, 200, 0, "best")["columns"]["near"]["difference"]["auc"]
    many = {**columns, **{f"c{k}": columns["best"] + 1e-3 * np.sin(np.arange(300) * k) for k in range(1, 20)}}
    among = detect(many, truth, 30, 200, 0, "best")["columns"]["near"]["difference"]["auc"]
    assert among["p"] == pytest.approx(alone["p"])
    assert among["p_holm"] > alone["p_holm"] == alone["p"]


def test_five_thousand_rows_and_seven_columns_take_seconds() -> None:
    columns, truth = simulated(5000, 0.15, {f"c{k}": k / 3 for k in range(7)})
    started = time.process_time()
    result = detect(columns, truth, 250, 1000, 0)
    assert time.process_time() - started < 20  # about 3 on an idle core
    assert result["columns"]["c6"]["auc"] > result["columns"]["c0"]["auc"]


# ---- truth --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong_ids(digits: Path) -> list[str]:
    rows = pq.read_table(digits).to_pylist()
    return [r["id"] for r in rows if r["split"] == "train" and r["label"] != r["clean_label"]]


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "json", "objects"])
def test_a_list_of_wrong_ids_stands_in_for_clean_labels(
    kind: str, tmp_path: Path, scored: Path, wrong_ids: list[str]
) -> None:
    text = {
        "txt": "\n".join(wrong_ids) + "\n\n",
        "csv": "note,id\n" + "".join(f'"a, b",{i}\n' for i in wrong_ids),
        "jsonl": "\n".join(json.dumps(i) for i in wrong_ids),
        "json": json.dumps(wrong_ids),
        "objects": "\n".join(json.dumps({"id": i, "why": "seen"}) for i in wrong_ids),
    }[kind]
    path = tmp_path / f"bad.{'jsonl' if kind == 'objects' else kind}"
    path.write_text(text)
    by_list = evaluate(scored, "--known-bad", path, cwd=tmp_path).json
    by_column = evaluate(scored, cwd=tmp_path).json
    assert by_list["wrong_rows"] == 30
    assert by_list["detection"] == by_column["detection"]
    assert by_list["truth"] == str(path)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("d0000\nnobody\n", "bad.txt", "row id=nobody is no train row"),
        ("label\n3\n", "bad.csv", "no column id"),
        ("[1, 2]", "bad.json", "1 is no id"),
        ("{not json", "bad.jsonl", "cannot be read"),
        ("", "bad.txt", "0 of 200 train labels are wrong"),
        (None, "bad.txt", "cannot be read"),
    ],
)
def test_a_list_that_cannot_be_used_exits_2(
    text: str | None, name: str, said: str, tmp_path: Path, scored: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    ran = call_cli("evaluate", scored, "--known-bad", name, cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "fix: " in ran.err


def test_ids_of_rows_without_a_score_are_counted_and_set_aside(tmp_path: Path, digits: Path, scored: Path) -> None:
    rows = pq.read_table(digits, columns=["id", "label", "clean_label", "split"]).to_pylist()
    wrong = [r["id"] for r in rows if r["split"] == "train" and r["label"] != r["clean_label"]]
    others = [r["id"] for r in rows if r["split"] == "val"][:4] + [r["id"] for r in rows if r["split"] == "test"][:3]
    for name, ids in (("train.txt", wrong), ("all.txt", wrong + others), ("val.txt", others)):
        (tmp_path / name).write_text("\n".join(ids))
    alone = evaluate(scored, "--known-bad", "train.txt", cwd=tmp_path)
    ran = evaluate(scored, "--known-bad", "all.txt", cwd=tmp_path)
    assert ran.json["detection"] == alone.json["detection"]
    assert f"7 of {len(wrong) + 7} ids are of rows that have no score (3 test, 4 val)" in ran.err
    assert "no score" not in alone.err
    none = call_cli("evaluate", scored, "--known-bad", "val.txt", cwd=tmp_path)
    assert (none.code, "all 7 are of others (3 test, 4 val)" in none.err) == (2, True)


def test_rows_of_unknown_truth_are_left_out(tmp_path: Path) -> None:
    table = digits_table(train=60, val=5, test=5, flipped=0.3)
    clean = [None if k % 2 else v for k, v in enumerate(table.column("clean_label").to_pylist())]
    write(with_column(table, "clean_label", pa.array(clean, pa.int64())), tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    result = evaluate("s.parquet", cwd=tmp_path).json
    labels = table.column("label").to_pylist()[:60]
    assert (result["train_rows"], result["known_rows"]) == (60, 30)
    assert result["wrong_rows"] == sum(c is not None and c != y for c, y in zip(clean[:60], labels, strict=True))
    assert result["detection"]["random"]["rows"] == 30


def test_without_truth_it_says_what_it_can_and_that_detection_is_missing(tmp_path: Path, digits_run: Path) -> None:
    write(digits_table(train=40, val=20, test=5).drop_columns(["clean_label"]), tmp_path / "m.parquet")
    assert (
        call_cli(
            "score", "--method", "ip", "m.parquet", "--checkpoint", digits_run, "-o", "s.parquet", cwd=tmp_path
        ).code
        == 0
    )
    ran = evaluate("s.parquet", cwd=tmp_path)
    assert (ran.json["detection"], ran.json["wrong_rows"]) == ({}, None)
    assert len(ran.json["order"]["pairs"]) == 3
    assert "no truth is known" in ran.err
    for flags, said in ((["--clean-label", "clean_label"], "no column 'clean_label'"), ([], "")):
        code = call_cli("evaluate", "s.parquet", *flags, cwd=tmp_path)
        assert (code.code, said in code.err) == (2 if flags else 0, True)
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "r.parquet", cwd=tmp_path).code == 0
    nothing = call_cli("evaluate", "r.parquet", cwd=tmp_path)
    assert nothing.code == 2
    assert "--known-bad" in nothing.err
    assert "--canaries" in nothing.err


# ---- tables side by side ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A folder with score tables of three runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed in range(3):
        run = train_run(digits, folder / f"run{seed}", seed=seed)
        asked = ["score", digits, "--checkpoint", run, "--method", "ip", "--method", "loss", "-o", f"s{seed}.parquet"]
        assert call_cli(*asked, "-q", cwd=folder).code == 0
    return folder


def test_several_tables_stand_side_by_side_under_names_that_do_not_clash(
    tmp_path: Path, seeds: Path, digits: Path
) -> None:
    assert call_cli("score", digits, "--method", "random", "--seed", "9", "-o", "r.parquet", cwd=tmp_path).code == 0
    result = evaluate(seeds / "s0.parquet", seeds / "s1.parquet", "r.parquet", cwd=tmp_path).json
    names = {f"s{k}:{n}" for k in (0, 1) for n in ("ip_utility", "loss", "margin")}
    assert names <= set(result["detection"])
    alone = evaluate(seeds / "s1.parquet", cwd=tmp_path).json["detection"]
    for name in ("ip_utility", "loss", "margin"):
        for figure in ("auc", "auc_interval", "average_precision", "average_precision_interval"):
            assert result["detection"][f"s1:{name}"][figure] == alone[name][figure]  # the same draws


def test_a_column_that_is_the_same_in_two_tables_stands_once(tmp_path: Path, scored: Path) -> None:
    table = pq.read_table(scored)
    other = with_column(table, "score_utility", pa.array(-column(table, "score_utility")))
    write(with_provenance(other, provenance(table.schema)), tmp_path / "other.parquet")
    result = evaluate(scored, "other.parquet", cwd=tmp_path).json
    assert set(result["detection"]) == {"scored:utility", "other:utility", "loss", "margin", "random"}
    assert result["detection"]["scored:utility"]["auc"] == pytest.approx(
        1.0 - result["detection"]["other:utility"]["auc"]
    )


def test_rows_in_another_order_are_the_same_table(tmp_path: Path, scored: Path) -> None:
    table = pq.read_table(scored)
    write(table.take(pa.array(np.random.default_rng(0).permutation(200))), tmp_path / "shuffled.parquet")
    result = evaluate(scored, "shuffled.parquet", cwd=tmp_path).json
    assert result["detection"] == evaluate(scored, cwd=tmp_path).json["detection"]


@pytest.mark.parametrize("change", ["relabelled", "missing", "no keys", "other splits"])
def test_tables_of_other_rows_are_refused(change: str, tmp_path: Path, digits: Path, scored: Path) -> None:
    table = digits_table()
    if change == "relabelled":
        labels = table.column("label").to_pylist()
        labels[7] = (labels[7] + 1) % 10
        table = with_column(table, "label", pa.array(labels))
    if change == "missing":
        table = table.slice(1)
    if change == "other splits":
        table = with_column(table, "split", pa.array(["train"] * 200 + ["test"] * 120))
    write(table, tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "b.parquet", cwd=tmp_path).code == 0
    if change == "no keys":
        write(pq.read_table(tmp_path / "b.parquet").drop_columns(["row_key"]), tmp_path / "b.parquet")
    ran = call_cli("evaluate", scored, "b.parquet", cwd=tmp_path)
    assert ran.code == 2, ran.err
    said = {"relabelled": "id=d0007", "missing": "id=d0000", "no keys": "row_key", "other splits": "splits"}
    assert said[change] in ran.err
    assert "b.parquet" in ran.err


def test_a_table_named_twice_and_an_unknown_reference_exit_2(tmp_path: Path, scored: Path) -> None:
    for flags, said in (
        ([scored, scored], "named twice"),
        ([scored, "--reference", "los"], "did you mean 'loss'?"),
        ([scored, "--draws", "3"], "--draws"),
        ([scored, "--stability"], "several tables"),
        ([scored, "--against", scored, "--sentinel", "1%"], "one at a time"),
    ):
        ran = call_cli("evaluate", *flags, cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert said in ran.err


def test_the_reference_is_the_best_column_or_the_one_that_is_named(tmp_path: Path, scored: Path) -> None:
    result = evaluate(scored, "--draws", "50", cwd=tmp_path).json
    known = {n: d["average_precision"] for n, d in result["detection"].items() if n != "random"}
    assert result["reference"] == max(known, key=lambda n: known[n])
    assert "difference" not in result["detection"][result["reference"]]
    named = evaluate(scored, "--draws", "50", "--reference", "random", cwd=tmp_path).json
    assert named["reference"] == "random"
    for name in known:
        assert named["detection"][name]["difference"]["average_precision"]["verdict"] in (
            "better",
            "worse",
            "not resolved",
        )
    text = evaluate(scored, "--draws", "50", "--format", "table", cwd=tmp_path).text
    assert "30 of 200 train labels are wrong" in text
    assert f"AP over {result['reference']}" in text


# ---- order consistency --------------------------------------------------------------------------------------------


def test_order_consistency_equals_the_figures_by_hand(tmp_path: Path, scored: Path) -> None:
    from scipy import stats

    table = pq.read_table(scored)
    order = evaluate(scored, "--budget", "10%", cwd=tmp_path).json["order"]
    assert order["columns"] == ["utility", "loss", "margin"]
    pairs = {(p["a"], p["b"]): p for p in order["pairs"]}
    loss, utility = -column(table, "loss"), column(table, "score_utility")
    p = pairs["utility", "loss"]
    assert p["spearman"] == pytest.approx(stats.spearmanr(loss, utility).statistic, abs=1e-12)
    low = [set(np.argsort(v, kind="stable")[:20].tolist()) for v in (loss, utility)]
    assert p["jaccard"] == pytest.approx(len(low[0] & low[1]) / len(low[0] | low[1]))
    assert p["sign_agreement"] is None  # a ranking has no sign
    said = provenance(table.schema)["noise"]["utility"]["reliability"]
    assert order["halves"] == {"table": {"utility": said}}


def test_members_that_agree_and_angles_of_preconditioned_directions(
    tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    from influence_cli.store import Store

    asked = ["score", digits, "--checkpoint", digits_run, "--method", "ip-ensemble", "--set", "members=3"]
    assert call_cli(*asked, "-o", "s.parquet", cwd=tmp_path).code == 0
    table = pq.read_table(tmp_path / "s.parquet")
    order = evaluate("s.parquet", cwd=tmp_path).json["order"]
    agreement = column(table, "agreement")
    assert order["members"]["table"]["sign_agreement"] == pytest.approx(agreement.mean())
    assert order["members"]["table"]["unanimous"] == pytest.approx((agreement == 1).mean())
    assert "angles" not in order
    store = Store(tmp_path / ".influence")
    q, u = np.array([1.0, 0.0, 1.0], np.float32), np.array([1.0, 1.0, 0.0], np.float32)
    store.directions.write("q", {"w": q[:2], "b": q[2:]}, {})
    store.directions.write("u", {"w": u[:2], "b": u[2:]}, {})
    told = {**provenance(table.schema), "preconditioned": {"score_utility": [{"q": "q", "u": "u"}]}}
    write(with_provenance(table, told), tmp_path / "s.parquet")
    angles = evaluate("s.parquet", cwd=tmp_path).json["order"]["angles"]["table"]
    assert angles["score_utility"]["cosine"] == pytest.approx(0.5)
    gone = {**told, "preconditioned": {"score_utility": [{"q": "q", "u": "elsewhere"}]}}
    write(with_provenance(table, gone), tmp_path / "s.parquet")
    assert "angles" not in evaluate("s.parquet", cwd=tmp_path).json["order"]


def test_stability_over_seeds(tmp_path: Path, seeds: Path) -> None:
    from scipy import stats

    paths = [seeds / f"s{k}.parquet" for k in range(3)]
    ran = evaluate(*paths, "--stability", "--budget", "20", cwd=tmp_path)
    stability = ran.json["stability"]["columns"]
    assert set(stability) == {"ip_utility", "loss", "margin"}
    scores = [column(pq.read_table(p), "score_ip_utility") for p in paths]
    expected = [stats.spearmanr(scores[a], scores[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    found = stability["ip_utility"]
    assert [p["spearman"] for p in found["pairs"]] == pytest.approx(expected, abs=1e-12)
    assert found["spearman"] == pytest.approx(np.mean(expected))
    assert found["least_spearman"] == pytest.approx(min(expected))
    assert all(0.0 <= p["jaccard"] <= 1.0 for p in found["pairs"])
    assert found["pairs"][0]["sign_agreement"] == pytest.approx((np.sign(scores[0]) == np.sign(scores[1])).mean())
    assert stability["loss"]["pairs"][0]["sign_agreement"] is None
    text = evaluate(*paths, "--stability", "--format", "table", cwd=tmp_path).text
    assert "least Spearman" in text
