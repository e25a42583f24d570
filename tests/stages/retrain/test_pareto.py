"""What arms are compared by beside accuracy: groups, collapse, the Pareto report, and arms made from scores.

Reference: gaps and fronts by brute force over pairs, ellipses by their quantile, trims in rounds by scoring by hand.

    python -m pytest tests/stages/retrain/test_pareto.py
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from influence_cli.data.open import open_manifest
from influence_cli.maths.arms import mean_ellipse, non_dominated, non_dominated_share, quadrant
from influence_cli.model.train.recipe import Recipe
from influence_cli.report.page import page
from influence_cli.report.pareto_figures import pareto_panels
from influence_cli.settings import GradSpec, Inputs
from influence_cli.stages.retrain.arm_comparison import beyond_accuracy, cautions_of
from influence_cli.stages.retrain.request import EditsRequest, RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from tests.cases import Example, call_cli, draw_features, examples, feature_table, with_column, write

quick = settings(database=None, deadline=None, derandomize=True, max_examples=60)
SMALL = Recipe(epochs=2, batch_size=16, lr=0.1)


# -- the front ------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_non_dominated_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    x, y = (np.array(v, dtype=float) for v in zip(*points, strict=True))
    for i, found in enumerate(non_dominated(x, y)):
        beaten = any(x[j] >= x[i] and y[j] >= y[i] and (x[j] > x[i] or y[j] > y[i]) for j in range(len(x)))
        assert found == (not beaten)


def test_share_of_bootstrap_draws_is_sure_where_all_seeds_agree_and_split_where_they_do_not() -> None:
    x = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, 3.0, 0.0, 3.0]])
    y = np.zeros((3, 4))
    share = non_dominated_share(x, y, 400, 0)
    assert share[0] == 0.0
    draws = [np.mean(d) for d in itertools.product([0.0, 3.0], repeat=4)]  # all draws of the third, equally likely
    assert share[1] == pytest.approx(np.mean([d <= 2.0 for d in draws]), abs=0.07)
    assert share[1] + share[2] == pytest.approx(1.0)
    assert np.array_equal(share, non_dominated_share(x, y, 400, 0))


def test_the_ellipse_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        x, y = rng.normal(size=(2, 6)) * np.array([[1.0], [3.0]]) + rng.normal(size=6)
        ellipse = mean_ellipse(x, y)
        assert ellipse is not None
        major, minor, angle = ellipse
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        u, v = turn @ -np.array([x.mean(), y.mean()])
        covered += (u / major) ** 2 + (v / minor) ** 2 <= 1.0
    assert covered / 600 == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 600))
    assert mean_ellipse(np.ones(2), np.ones(2)) is None


def test_the_ellipse_is_hotellings() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 5))
    found = mean_ellipse(x, y)
    assert found is not None
    scale = 2 * 4 / (5 * 3) * stats.f.ppf(0.95, 2, 3)
    values = np.linalg.eigvalsh(np.cov(x, y))
    assert np.allclose(sorted(found[:2]), np.sqrt(scale * values))


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (1.0, 1.0, "improvement"),
        (-1.0, -1.0, "deterioration"),
        (1.0, -1.0, "trade-off: x up, y down"),
        (-1.0, 1.0, "trade-off: x down, y up"),
        (0.4, 1.0, "not significant"),
        (1.0, -0.5, "not significant"),
    ],
)
def test_quadrants(dx: float, dy: float, expected: str) -> None:
    assert quadrant(dx, dy, 0.5, 0.5) == expected
    assert quadrant(dx, dy, None, 0.5) == "not significant"


# -- what users look at ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature manifest of two classes with a sensitive group that shifts a feature, 160 / 60 / 120 rows."""
    folder = tmp_path_factory.mktemp("grouped")
    rng = np.random.default_rng(0)
    rows, groups = [], []
    for k, split in enumerate(["train"] * 160 + ["val"] * 60 + ["test"] * 120):
        g = int(rng.integers(2))
        x = np.array(draw_features(k)) + np.array([g, 0, 0, 0, 0])
        label = int(x[0] + x[1] + 0.5 * rng.normal() > 0.5)
        rows.append(Example(f"g{k:03d}", tuple(float(np.float32(v)) for v in x), label, split))
        groups.append("b" if g else "a")
    table = feature_table(rows, group=pa.array(groups))
    write(table.replace_schema_metadata(None), folder / "m.parquet")
    ran = call_cli("retrain", "m.parquet", "--model", "linear", "--epochs", 4, "-o", "RUN", "-q", cwd=folder)
    assert ran.code == 0, ran.err
    asked = ["--method", "exact", "--method", "loss", "--method", "random", "-o", "s.parquet", "-q"]
    assert call_cli("score", "m.parquet", "--checkpoint", "RUN", *asked, cwd=folder).code == 0
    return folder


def test_gaps_are_differences_of_group_means(grouped: Path) -> None:
    test = open_manifest(str(grouped / "m.parquet")).rows("test")
    groups = np.array(test.manifest.table["group"].to_pylist())[test.index]
    logits = np.random.default_rng(0).normal(size=(120, 2)) + np.where(groups == "b", 1.0, 0.0)[:, None] * [0, 1]
    found = beyond_accuracy(logits, test, test.labels)
    p = np.exp(logits[:, 1]) / np.exp(logits).sum(axis=1)
    hard, y = (logits[:, 1] > logits[:, 0]).astype(float), test.labels

    def gap(h: Any, rows: Any) -> float:
        return abs(h[rows & (groups == "a")].mean() - h[rows & (groups == "b")].mean())

    for suffix, h in (("", hard), ("_soft", p)):
        assert found[f"dp_gap{suffix}"] == pytest.approx(gap(h, np.ones(120, dtype=bool)), abs=1e-12)
        assert found[f"eo_gap{suffix}"] == pytest.approx(gap(h, y == 1) + gap(h, y == 0), abs=1e-12)
    assert found["positive_rate"] == hard.mean()
    majority = np.bincount(y).argmax()
    assert found["majority_share"] == (logits.argmax(axis=1) == majority).mean()


def test_rows_without_a_group_and_manifests_without_groups_have_no_gaps(tmp_path: Path, grouped: Path) -> None:
    table = pq.read_table(grouped / "m.parquet")
    groups = [g if k % 2 else None for k, g in enumerate(table["group"].to_pylist())]
    write(with_column(table, "group", pa.array(groups)), tmp_path / "some.parquet")
    write(with_column(table, "group", pa.array(["a"] * 340)), tmp_path / "one.parquet")
    logits = np.random.default_rng(0).normal(size=(120, 2))
    some = open_manifest(str(tmp_path / "some.parquet")).rows("test")
    half = some.take(np.array([g is not None for g in groups[220:]]))
    every = beyond_accuracy(logits, some, some.labels)
    known = beyond_accuracy(logits[1::2], half, half.labels)
    assert every["dp_gap"] == known["dp_gap"]
    assert every["eo_gap_soft"] == known["eo_gap_soft"]
    one = open_manifest(str(tmp_path / "one.parquet")).rows("test")
    assert set(beyond_accuracy(logits, one, one.labels)) == {"majority_share", "positive_rate"}
    assert "positive_rate" not in beyond_accuracy(np.ones((120, 3)), one, one.labels)


def test_an_arm_that_is_all_but_constant_is_a_caution() -> None:
    metrics = {"arms": {n: {"mean": {"majority_share": {"mean": v}}} for n, v in (("x", 0.995), ("y", 0.9))}}
    assert [line.split()[0] for line in cautions_of(metrics)] == ["x"]


def test_groups_of_test_rows_come_from_the_column_that_is_named(tmp_path: Path, grouped: Path) -> None:
    table = pq.read_table(grouped / "m.parquet")
    other = np.random.default_rng(3).integers(3, size=len(table)).astype(str).tolist()
    table = table.append_column("region", pa.array(other)).append_column("same", pa.array(["x"] * len(table)))
    write(table, tmp_path / "m.parquet")
    write(with_column(table, "group", pa.array(other)), tmp_path / "renamed.parquet")
    common = ["--model", "linear", "--epochs", 2, "--attack", "none", "-q"]

    def measured(manifest: str, output: str, *flags: str) -> dict[str, Any]:
        ran = call_cli("retrain", manifest, *common, "-o", output, *flags, cwd=tmp_path)
        assert ran.code == 0, ran.err
        (arm,) = json.loads((tmp_path / output / "metrics.json").read_text())["arms"].values()
        return arm["seeds"]["0"]

    plain = measured("m.parquet", "RUN")
    named = measured("m.parquet", "RUN", "--group", "region")  # trained before, measured again
    renamed = measured("renamed.parquet", "OTHER")
    gaps = ("dp_gap", "dp_gap_soft", "eo_gap", "eo_gap_soft")
    assert [named[g] for g in gaps] == [renamed[g] for g in gaps] != [plain[g] for g in gaps]
    assert len(list((tmp_path / "RUN" / "arms").iterdir())) == 1
    assert not set(gaps) & set(measured("m.parquet", "RUN", "--group", "same"))
    assert measured("m.parquet", "RUN") == plain
    ran = call_cli("retrain", "m.parquet", *common, "-o", "NONE", "--group", "nation", cwd=tmp_path)
    assert ran.code == 2
    assert "no column 'nation' with groups" in ran.err
    assert "region" in ran.err


# -- arms from scores -----------------------------------------------------------------------------------------------


def request(folder: Path, output: Path, **changes: Any) -> RetrainRequest:
    inputs = Inputs(str(folder / "m.parquet"), model="linear")
    return RetrainRequest(inputs, str(output), device="cpu", raw_features=True, **changes)


def test_every_column_action_and_budget_is_an_arm_with_its_control(tmp_path: Path, grouped: Path) -> None:
    edits = EditsRequest(
        str(grouped / "s.parquet"), ("5%", "10%"), ("trim", "relabel"), ("score_exact_utility", "loss"), "ranksum"
    )
    metrics = retrain(request(grouped, tmp_path / "RUN", edits=edits, seeds=3, attack="none"), SMALL)
    arms = {n: a for n, a in metrics["arms"].items() if a["controls"] is None}
    names = [
        f"{m} {a} {b}" for m in ("exact_utility", "loss", "ranksum") for a in ("trim", "relabel") for b in ("5%", "10%")
    ]
    assert list(arms) == ["no edit", *names]
    assert arms["loss trim 10%"]["train_rows"] == 144
    assert arms["loss trim 10%"]["edits"]["trimmed"] == 16
    assert set(metrics["comparison"]) == set(names)
    for name in names:
        assert "no edit" in metrics["comparison"][name]
        assert len(metrics["comparison"][name]) >= (2 if arms[name]["edits"].get("trimmed") else 1)
    ran = call_cli("curate", "s.parquet", "--by", "loss", "--budget", "10%", "-o", tmp_path / "c.parquet", cwd=grouped)
    assert ran.code == 0, ran.err
    by_hand = retrain(
        RetrainRequest(
            Inputs(str(tmp_path / "c.parquet"), model="linear"), str(tmp_path / "RUN"),
            against=str(grouped / "m.parquet"), seeds=3, device="cpu", attack="none", raw_features=True,
        ),
        SMALL,
    )  # fmt: skip
    assert by_hand["arms"]["curated"]["seeds"] == metrics["arms"]["loss trim 10%"]["seeds"]


def test_the_pareto_report_recomputed(tmp_path: Path, grouped: Path) -> None:
    edits = EditsRequest(str(grouped / "s.parquet"), ("5%", "20%"), by=("score_exact_utility", "random"))
    metrics = retrain(request(grouped, tmp_path / "RUN", edits=edits, seeds=4, attack="none"), SMALL)
    assert json.loads((tmp_path / "RUN" / "metrics.json").read_text())["pareto"].keys() == metrics["pareto"].keys()
    front = metrics["pareto"]["dp_gap"]
    value = {n: {m: np.array([r[m] for r in a["seeds"].values()]) for m in ("accuracy", "dp_gap")}
             for n, a in metrics["arms"].items()}  # fmt: skip
    names = [n for n, a in metrics["arms"].items() if a["controls"] is None]
    keep = non_dominated(
        np.array([value[n]["accuracy"].mean() for n in names]), -np.array([value[n]["dp_gap"].mean() for n in names])
    )
    assert [front["points"][n]["non_dominated"] for n in names] == keep.tolist()
    for name, point in front["points"].items():
        if name == "no edit":
            continue
        d = {m: value[name][m] - value["no edit"][m] for m in ("accuracy", "dp_gap")}
        half = {m: stats.t.ppf(0.975, 3) * stats.sem(v) for m, v in d.items()}
        sure = all(abs(d[m].mean()) > half[m] for m in d)
        up, fairer = d["accuracy"].mean() > 0, d["dp_gap"].mean() < 0
        verdict = {
            (True, True): "improvement", (False, False): "deterioration",
            (True, False): "trade-off: accuracy up, fairness down",
            (False, True): "trade-off: accuracy down, fairness up",
        }[bool(up), bool(fairer)]  # fmt: skip
        assert point["verdict"] == (verdict if sure else "not significant")
        assert point["difference"]["dp_gap"]["mean"] == pytest.approx(d["dp_gap"].mean(), abs=1e-12)
    assert next(p.title for p in pareto_panels(metrics)) == "Accuracy against demographic-parity gap"
    text = page(metrics, "What the edits did")
    assert "Accuracy against demographic-parity gap" in text
    assert text.count("<svg") == 2 + len(metrics["pareto"])  # and how good every arm is, and what the edits change


def test_a_trim_in_rounds_scores_between_trims(tmp_path: Path, grouped: Path) -> None:
    edits = EditsRequest(None, ("10%",), rounds=2, spec=GradSpec(("ip",)), options={"trim": {"guard": "false"}})
    metrics = retrain(request(grouped, tmp_path / "RUN", edits=edits, attack="none"), SMALL)
    twice, once = (metrics["arms"][n] for n in ("ip_utility trim 10% in 2 rounds", "ip_utility trim 10%"))
    assert twice["train_rows"] == once["train_rows"] == 144
    history = twice["edits"]["rounds"]
    assert [h["trimmed"] for h in history] == [8, 16]
    assert history[0]["phi"] == once["edits"]["rounds"][0]["phi"] != history[1]["phi"]

    def lowest(manifest: str, run: str, k: int) -> list[str]:
        asked = ["score", "--method", "ip", manifest, "--checkpoint", run, "-o", "by-hand.parquet", "-q"]
        assert call_cli(*asked, cwd=tmp_path).code == 0
        ran = call_cli(
            "curate", "by-hand.parquet", "--budget", k, "--set", "guard=false", "--set", "group_guard=false",
            "-o", "left.parquet", cwd=tmp_path,
        )  # fmt: skip
        assert ran.code == 0, ran.err
        return [r["id"] for r in pq.read_table(tmp_path / "left.parquet").to_pylist() if r["split"] == "train"]

    # by hand: score at the model of all rows, trim 8, train, score at that model, trim 8 more
    retrain(request(grouped, tmp_path / "ALL"), SMALL)
    lowest(str(grouped / "m.parquet"), "ALL", 8)
    (tmp_path / "left.parquet").rename(tmp_path / "first.parquet")
    retrain(RetrainRequest(Inputs(str(tmp_path / "first.parquet"), model="linear"), str(tmp_path / "ONE"),
                           device="cpu", raw_features=True), SMALL)  # fmt: skip
    kept = lowest("first.parquet", "ONE", 8)
    assert len(kept) == 144
    write(pq.read_table(tmp_path / "left.parquet"), tmp_path / "c.parquet")
    by_hand = retrain(
        RetrainRequest(Inputs(str(tmp_path / "c.parquet"), model="linear"), str(tmp_path / "RUN"),
                       against=str(grouped / "m.parquet"), device="cpu", attack="none", raw_features=True),
        SMALL,
    )  # fmt: skip
    assert by_hand["arms"]["curated"]["seeds"]["0"] == twice["seeds"]["0"]


def test_guards_count_over_all_rounds(tmp_path: Path) -> None:
    """Class 0 has 20 of 100 rows and the lowest scores: two rounds of 5 % may take 15 % of it, not twice 10 %."""
    from influence_cli.actions.trim import Trim
    from tests.actions.test_actions import scored

    labels = np.repeat([0, 1], [20, 80])
    rows = scored(np.arange(100.0), labels)
    first = Trim().propose(rows, 5).edited
    gone = np.zeros(100, dtype=bool)
    gone[first] = True
    second = Trim().propose(scored(np.where(gone, np.nan, rows.score), labels), 5, gone).edited
    whole = Trim().propose(rows, 10).edited
    assert sorted([*first, *second]) == sorted(whole)
    assert (labels[whole] == 0).sum() == 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budget", "5%"], "--budget is about edits made from scores"),
        (["--by", "loss"], "--by is about edits made from scores"),
        (["--scores", "s.parquet", "--rounds", "2"], "leave out one of the two"),
        (["--rounds", "2", "--action", "relabel"], "--rounds trims"),
        (["--rounds", "2", "--budget", "1"], "fewer than 2 rounds"),
        (["--rounds", "2", "--method", "ip", "--method", "loss"], "--rounds trims, by one method"),
        (["--scores", "s.parquet", "--by", "loss", "--by", "loss"], "two arms have the same name"),
        (["--scores", "s.parquet", "--calibration", "5%"], "two questions"),
        (["--rounds", "2", "--calibration", "5%"], "--calibration and --rounds are two questions"),
        (["--scores", "s.parquet", "--canaries", "5%"], "canaries"),
        (["--scores", "s.parquet", "--attack", "magic"], "'magic' is unknown"),
        (["--scores", "s.parquet", "--report", "page.txt"], "no .html file"),
    ],
)
def test_what_cannot_be_compared_is_refused(flags: list[str], said: str, grouped: Path) -> None:
    ran = call_cli("retrain", "m.parquet", "--model", "linear", *flags, "-o", "REFUSED", cwd=grouped)
    assert ran.code == 2, ran.err
    assert said in ran.err


def test_from_the_shell_with_a_page_and_a_picture(tmp_path: Path, grouped: Path) -> None:
    ran = call_cli(
        "retrain", grouped / "m.parquet", "--model", "linear", "--epochs", 2, "--scores", grouped / "s.parquet",
        "--by", "loss", "--budget", "5%,10%", "--seeds", 3, "--attack", "none", "-o", "RUN",
        "--report", "page.html", "--plot", "front.png", cwd=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert ran.out == b""
    assert "accuracy against demographic-parity gap" in ran.err
    assert "predicting the majority class alone" in ran.err
    html = (tmp_path / "page.html").read_text()
    assert "<h1>Do the edits loss trim 5% and loss trim 10% of m.parquet help?</h1>" in html
    assert "loss trim 10%" in html
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_an_older_result_is_measured_again_and_not_trained_again(tmp_path: Path, grouped: Path) -> None:
    asked = request(grouped, tmp_path / "RUN", attack="none")
    first = retrain(asked, SMALL)
    (kept,) = (tmp_path / "RUN" / "arms").glob("*/metrics.json")
    old = {k: v for k, v in json.loads(kept.read_text()).items() if k not in ("measured", "dp_gap", "positive_rate")}
    kept.write_text(json.dumps(old))
    weights = (kept.parent / "model.safetensors").stat().st_mtime_ns
    again = retrain(asked, SMALL)
    assert (kept.parent / "model.safetensors").stat().st_mtime_ns == weights
    a, b = (m["arms"]["all rows"]["seeds"]["0"] for m in (first, again))
    assert a.keys() == b.keys()
    assert all(a[k] == pytest.approx(b[k], rel=1e-5) for k in a if isinstance(a[k], float))


def test_three_classes_have_gaps_too(tmp_path: Path) -> None:
    rows = examples(train=20, val=5, test=40)
    table = feature_table(rows, group=pa.array([k % 3 for k in range(65)]))
    write(table, tmp_path / "m.parquet")
    test = open_manifest(str(tmp_path / "m.parquet")).rows("test")
    logits = np.random.default_rng(0).normal(size=(40, 3))
    found = beyond_accuracy(logits, test, test.labels)
    groups, hard = np.array([k % 3 for k in range(65)])[25:], logits.argmax(axis=1)
    gaps = [
        np.mean([abs((hard[groups == a] == c).mean() - (hard[groups == b] == c).mean())
                 for a, b in itertools.combinations(range(3), 2)])
        for c in range(3)
    ]  # fmt: skip
    assert found["dp_gap"] == pytest.approx(np.mean(gaps), abs=1e-12)
