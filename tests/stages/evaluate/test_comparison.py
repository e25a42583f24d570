"""Two score tables row by row, and the sentinel: what is compared, what is counted apart, and what is computed.

python -m pytest tests/stages/evaluate/test_comparison.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from influence_cli.data.tables import provenance, with_provenance
from influence_cli.settings import Runtime
from influence_cli.stages.evaluate.sentinel import sentinel, sentinel_run
from tests.cases import Heard, Ran, call_cli, column, digits_table, train_run, with_column, write


def evaluate(*asked: Any, cwd: Path) -> Ran:
    """``influence evaluate``, which has to succeed."""
    ran = call_cli("evaluate", *asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest m with 300 train rows, runs run0 and run1 of two seeds, and their score tables s0 and s1."""
    here = tmp_path_factory.mktemp("compared")
    write(digits_table(train=300, val=60, test=40), here / "m.parquet")
    for seed in (0, 1):
        train_run(here / "m.parquet", here / f"run{seed}", seed=seed)
        asked = ["score", "m.parquet", "--checkpoint", f"run{seed}", "--method", "ip", "--method", "loss"]
        assert call_cli(*asked, "-o", f"s{seed}.parquet", "-q", cwd=here).code == 0
    return here


# ---- two tables ---------------------------------------------------------------------------------------------------


def test_figures_equal_scipy_and_hand_counts(folder: Path) -> None:
    result = evaluate("s0.parquet", "--against", "s1.parquet", "--budget", "10%", cwd=folder).json
    assert (result["rows"], result["only_in_a"], result["only_in_b"], result["changed"]) == (300, 0, 0, 0)
    assert set(result["comparison"]) == {"ip_utility", "loss", "margin"}
    tables = [pq.read_table(folder / f"s{k}.parquet") for k in (0, 1)]
    a, b = (column(t, "score_ip_utility") for t in tables)
    c = result["comparison"]["ip_utility"]
    assert c["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert c["kendall"] == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)
    assert c["spearman_interval"][0] < c["spearman"] < c["spearman_interval"][1]
    low = [set(np.argsort(v, kind="stable")[:30].tolist()) for v in (a, b)]
    assert c["overlap"] == len(low[0] & low[1])
    assert c["jaccard"] == pytest.approx(len(low[0] & low[1]) / len(low[0] | low[1]))
    assert c["sign_agreement"] == pytest.approx((np.sign(a) == np.sign(b)).mean())
    assert result["comparison"]["loss"]["sign_agreement"] is None
    rank_a, rank_b = stats.rankdata(a), stats.rankdata(b)
    moved = np.abs(rank_a - rank_b)
    assert len(c["movers"]) == 10
    assert [abs(m["rank_a"] - m["rank_b"]) for m in c["movers"]] == sorted(moved, reverse=True)[:10]
    ids = tables[0].column("id").to_pylist()
    for m in c["movers"]:
        k = ids.index(m["id"])
        assert (m["score_a"], m["score_b"], m["rank_a"], m["rank_b"]) == (a[k], b[k], rank_a[k], rank_b[k])


def test_a_table_against_itself_and_against_its_opposite(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "s0.parquet")
    turned = with_column(table, "score_ip_utility", pa.array(-column(table, "score_ip_utility")))
    write(with_provenance(turned, provenance(table.schema)), tmp_path / "turned.parquet")
    same = evaluate(folder / "s0.parquet", "--against", folder / "s0.parquet", cwd=tmp_path).json["comparison"]
    for c in same.values():
        assert (c["spearman"], c["kendall"], c["jaccard"], c["movers"]) == (1.0, pytest.approx(1.0), 1.0, [])
        assert c["spearman_interval"] == [1.0, 1.0]
    opposite = evaluate(folder / "s0.parquet", "--against", "turned.parquet", cwd=tmp_path).json["comparison"]
    c = opposite["ip_utility"]
    assert (c["spearman"], c["kendall"], c["sign_agreement"]) == (pytest.approx(-1.0), pytest.approx(-1.0), 0.0)
    assert c["jaccard"] == 0.0


def test_rows_that_differ_are_counted_apart_and_the_manifest_is_not_needed(folder: Path, tmp_path: Path) -> None:
    a = pq.read_table(folder / "s0.parquet")
    keys = a.column("row_key").to_pylist()
    keys[5], keys[6] = b"x" * 16, b"y" * 16
    b = with_column(a, "row_key", pa.array(keys, pa.binary(16))).slice(0, 290)
    ids = b.column("id").to_pylist()
    ids[0] = "new"
    write(with_column(b, "id", pa.array(ids)), tmp_path / "b.parquet")
    write(a.drop_columns(["score_loss"]).replace_schema_metadata({}), tmp_path / "a.parquet")
    result = evaluate("a.parquet", "--against", "b.parquet", cwd=tmp_path).json
    counts = {k: result[k] for k in ("rows", "only_in_a", "only_in_b", "changed")}
    assert counts == {"rows": 287, "only_in_a": 11, "only_in_b": 1, "changed": 2}
    assert result["comparison"]["ip_utility"]["spearman"] == 1.0
    text = evaluate("a.parquet", "--against", "b.parquet", "--format", "table", "-v", cwd=tmp_path)
    assert "2 with another payload or label" in text.err
    as_text = ["s0.csv", "--against", "b.parquet"]
    from influence_cli.data.write_tables import write_table

    write_table(a, str(tmp_path / "s0.csv"))
    assert evaluate(*as_text, cwd=tmp_path).json["comparison"] == {
        **result["comparison"],
        "loss": evaluate(*as_text, cwd=tmp_path).json["comparison"]["loss"],
    }


def test_rows_without_a_score_in_either_are_left_out(folder: Path, tmp_path: Path) -> None:
    a = pq.read_table(folder / "s0.parquet")
    scores = [None if k < 40 else v for k, v in enumerate(column(a, "score_ip_utility"))]
    write(with_column(a, "score_ip_utility", pa.array(scores, pa.float64())), tmp_path / "a.parquet")
    c = evaluate("a.parquet", "--against", folder / "s1.parquet", cwd=tmp_path).json["comparison"]
    assert c["ip_utility"]["rows"] == 260
    assert c["loss"]["rows"] == 300


def test_tables_with_nothing_in_common_exit_2(folder: Path, tmp_path: Path) -> None:
    a = pq.read_table(folder / "s0.parquet")
    write(a.select(["id", "row_key", "label"]), tmp_path / "bare.parquet")
    write(with_column(a, "id", pa.array([f"x{k}" for k in range(300)])), tmp_path / "other.parquet")
    for other, said in (("bare.parquet", "no score column in common"), ("other.parquet", "no row in common")):
        ran = call_cli("evaluate", folder / "s0.parquet", "--against", other, cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert said in ran.err


# ---- the sentinel -------------------------------------------------------------------------------------------------


def test_the_sentinel_computes_its_rows_and_no_other(folder: Path, tmp_path: Path) -> None:
    heard = Heard()
    runtime = Runtime(str(tmp_path / "store"), "cpu", None, 1)
    old = str(folder / "s0.parquet")
    run, session = sentinel_run(old, "1%", str(folder / "run1"), runtime, 0, heard, manifest=str(folder / "m.parquet"))
    assert len(run.train) == 200
    result = sentinel(run, session, old, "5%", 100, 0)
    assert [(what, n) for what, n in heard.spans if what.startswith("training rows")] == [("training rows, model", 200)]
    stored = session.outputs(run, run.members[0]).load_all()[0]
    assert len(stored) == 200
    assert result["rows"] == 200
    whole = column(pq.read_table(folder / "s1.parquet"), "score_ip_utility")
    ids = pq.read_table(folder / "s1.parquet").column("id").to_pylist()
    chosen = [ids.index(i) for i in run.train.ids]
    before = column(pq.read_table(old), "score_ip_utility")[chosen]
    expected = stats.spearmanr(before, whole[chosen]).statistic
    assert result["comparison"]["ip_utility"]["spearman"] == pytest.approx(expected, abs=1e-6)


def test_the_sentinel_says_no_at_the_same_checkpoint_and_yes_at_another_model(folder: Path, tmp_path: Path) -> None:
    asked = ["s0.parquet", "--sentinel", "1%", "--no-store"]
    same = evaluate(*asked, "--checkpoint", "run0", cwd=folder)
    assert same.json["recompute"] is False
    assert "full recompute needed: no" in same.err
    assert "the checkpoint is the one that the table was scored at" in same.err
    train_run(folder / "m.parquet", tmp_path / "odd", model="linear", seed=3)
    other = evaluate(*asked, "--checkpoint", tmp_path / "odd", "--format", "table", cwd=folder)
    assert "full recompute needed: yes (" in other.err
    verdict = evaluate(*asked, "--checkpoint", tmp_path / "odd", cwd=folder).json
    assert verdict["recompute"] is True
    assert verdict["bounds"] == {"spearman_low": 0.9, "jaccard": 0.5}
    for name, needed in verdict["recompute_by_column"].items():
        c = verdict["comparison"][name]
        assert needed == (c["spearman_interval"][0] < 0.9 or c["jaccard"] < 0.5)
    assert set(verdict["recompute_by_column"]) == {"ip_utility", "loss"}  # margin was asked for by nobody


def test_the_sentinel_is_seeded_and_passes_over_rows_that_changed(folder: Path, tmp_path: Path) -> None:
    runtime = Runtime(None, "cpu", None, 1)
    old = str(folder / "s0.parquet")
    table = digits_table(train=300, val=60, test=40)
    labels = table.column("label").to_pylist()
    labels[:80] = [(y + 1) % 10 for y in labels[:80]]
    write(with_column(table, "label", pa.array(labels)), tmp_path / "m.parquet")

    def sample(share: str, seed: int, manifest: Path) -> list[str]:
        asked = (old, share, str(folder / "run1"), runtime, seed, Heard())
        return sentinel_run(*asked, manifest=str(manifest))[0].train.ids

    here = folder / "m.parquet"
    assert sample("1%", 0, here) == sample("1%", 0, here) != sample("1%", 1, here)
    assert len(sample("90%", 0, here)) == 270
    assert set(sample("1%", 0, here)) <= set(sample("90%", 0, here))
    changed = sample("90%", 0, tmp_path / "m.parquet")
    assert len(changed) == 200  # at least 200 of the 220 that are as they were
    assert not {f"d{k:04d}" for k in range(80)} & set(changed)


def test_a_dry_run_of_the_sentinel_is_a_plan_for_its_rows(folder: Path) -> None:
    before = {p.name for p in folder.iterdir()}
    asked = ["s0.parquet", "--sentinel", "1%", "--checkpoint", "run1", "--store", "fresh", "-n"]
    plan = evaluate(*asked, cwd=folder).json
    assert (plan["rows_to_compute"], plan["train_rows"]) == (200, 200)
    assert {p.name for p in folder.iterdir()} == before


def test_what_a_sentinel_cannot_do_exits_2(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "s0.parquet")
    write(table.replace_schema_metadata({}), tmp_path / "bare.parquet")
    manifest = ["--manifest", folder / "m.parquet"]
    assert call_cli("score", folder / "m.parquet", "--method", "random", "-o", "r.parquet", cwd=tmp_path).code == 0
    checkpoint = ["--checkpoint", folder / "run1"]
    for flags, said in (
        ([folder / "s0.parquet", "--sentinel", "1%"], "--sentinel needs a new checkpoint"),
        (["bare.parquet", "--sentinel", "1%", *checkpoint, *manifest], "does not say how it was made"),
        (["r.parquet", "--sentinel", "1%", *checkpoint, *manifest], "no method of the table needs a model"),
        ([folder / "s0.parquet", "--sentinel", "much", *checkpoint, *manifest], "--sentinel 'much' is no share"),
    ):
        ran = call_cli("evaluate", *flags, cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert said in ran.err
