"""Curating: what is edited and what is left alone, edits that can be undone, and manifests that were not scored."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.open import open_manifest
from tests.cases import (
    Example,
    Ran,
    call_cli,
    digits_table,
    draw_features,
    examples,
    feature_table,
    with_column,
    write,
)


def curate(*asked: Any, cwd: Path) -> Ran:
    """``influence curate``, which has to succeed."""
    ran = call_cli("curate", *asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


def by_id(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Rows by id."""
    return {row["id"]: row for row in table.to_pylist()}


def plain(row: dict[str, Any], *but: str) -> dict[str, Any]:
    """A row without some columns."""
    return {name: value for name, value in row.items() if name not in but}


# ---- what is written ----------------------------------------------------------------------------------------------


def test_trim_takes_out_the_lowest_train_rows_and_touches_nothing_else(
    tmp_path: Path, digits: Path, scored: Path
) -> None:
    ran = curate(scored, "--budget", "5%", "-o", "c.parquet", "--edits", "e.parquet", cwd=tmp_path)
    assert "trim: 10 of 200 train rows" in ran.err
    before, after = pq.read_table(digits), pq.read_table(tmp_path / "c.parquet")
    edits = pq.read_table(tmp_path / "e.parquet")
    gone = edits.column("id").to_pylist()
    assert len(gone) == 10
    kept = before.filter(pa.array([i not in set(gone) for i in before.column("id").to_pylist()]))
    assert after.equals(kept)
    assert edits.column("score").to_pylist() == sorted(edits.column("score").to_pylist())
    assert set(edits.column("weight").to_pylist()) == {0.0}
    assert set(edits.column("action").to_pylist()) == {"trim"}
    train = {r["id"] for r in before.to_pylist() if r["split"] == "train"}
    assert set(gone) <= train
    unguarded = curate(scored, "--budget", "5%", "--set", "guard=false", cwd=tmp_path).rows
    lowest = sorted(pq.read_table(scored).to_pylist(), key=lambda r: r["score"])[:10]
    assert [r["id"] for r in unguarded] == [r["id"] for r in lowest]


def test_relabel_gives_the_proposed_labels_and_keeps_everything_else(
    tmp_path: Path, digits: Path, scored: Path
) -> None:
    asked = [scored, "--action", "relabel", "--budget", "20", "-o", "c.parquet", "--edits", "e.parquet"]
    curate(*asked, cwd=tmp_path)
    before, after = by_id(pq.read_table(digits)), by_id(pq.read_table(tmp_path / "c.parquet"))
    edits = by_id(pq.read_table(tmp_path / "e.parquet"))
    assert 0 < len(edits) <= 20
    assert list(after) == list(before)
    for name, row in after.items():
        assert plain(row, "label", "influence_proposal") == plain(before[name], "label")
        assert row["label"] == (edits[name]["label"] if name in edits else before[name]["label"])
    assert all(e["label"] != e["label_was"] == before[i]["label"] for i, e in edits.items())
    assert all(after[i]["influence_proposal"] == e["label"] for i, e in edits.items())
    best = {r["id"]: r["best_label"] for r in pq.read_table(scored).to_pylist()}
    assert all(best[i] == e["label"] for i, e in edits.items())


def test_reweight_gives_train_rows_weights_of_mean_one_and_others_none(
    tmp_path: Path, digits: Path, scored: Path
) -> None:
    asked = [scored, "--action", "reweight", "-o", "c.parquet", "--edits", "e.parquet"]
    curate(*asked, cwd=tmp_path)
    before, after = pq.read_table(digits), pq.read_table(tmp_path / "c.parquet")
    assert after.drop_columns(["weight"]).equals(before)
    manifest = open_manifest(tmp_path / "c.parquet")
    weights = manifest.weights()
    assert np.isclose(weights[manifest.splits == "train"].mean(), 1.0)
    assert np.all(weights[manifest.splits != "train"] == 1.0)
    scores = pq.read_table(scored).column("score").to_numpy()
    first_class = manifest.labels[:200] == 0
    order = np.argsort(scores[first_class])
    assert np.all(np.diff(weights[:200][first_class][order]) >= -1e-12)
    edits = by_id(pq.read_table(tmp_path / "e.parquet"))
    assert len(edits) == 200
    assert [edits[i]["weight"] for i in manifest.ids[:200]] == weights[:200].tolist()


def test_schema_metadata_column_types_and_order_stay(tmp_path: Path) -> None:
    table = digits_table(train=40, val=5, test=5)
    table = with_column(table, "label", table.column("label").cast(pa.int8()))
    table = with_column(table, "note", pa.array([f"n{k}" for k in range(50)], pa.large_string()))
    weights = pa.array([1.0 + k % 2 for k in range(50)], pa.float32())
    write(with_column(table, "weight", weights), tmp_path / "m.parquet")
    before = pq.read_schema(tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    for flags in (["--budget", "4", "--set", "guard=false"], ["--action", "reweight"]):
        curate("s.parquet", *flags, "-o", "c.parquet", cwd=tmp_path)
        after = pq.read_schema(tmp_path / "c.parquet")
        assert after.remove_metadata() == before.remove_metadata()
        assert {k: v for k, v in after.metadata.items() if k != b"influence"} == before.metadata
        provenance = json.loads(after.metadata[b"influence"])
        assert (provenance["stage"], provenance["action"]["edited"] > 0) == ("curate", True)


def test_a_folder_of_files_becomes_one_file_in_the_same_order(tmp_path: Path) -> None:
    table = digits_table(train=30, val=5, test=5)
    for k, part in enumerate((table.slice(0, 7), table.slice(7, 20), table.slice(27))):
        write(part, tmp_path / "parts" / f"{k}.parquet")
    assert call_cli("score", "parts", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    trim = ["s.parquet", "--budget", "3", "--set", "guard=false"]
    curate(*trim, "-o", "c.parquet", "--edits", "e.jsonl", cwd=tmp_path)
    gone = {json.loads(line)["id"] for line in (tmp_path / "e.jsonl").read_text().splitlines()}
    assert len(gone) == 3
    kept = table.filter(pa.array([i not in gone for i in table.column("id").to_pylist()]))
    assert pq.read_table(tmp_path / "c.parquet").equals(kept)


def test_a_manifest_is_never_curated_over_itself(tmp_path: Path, digits: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(digits.read_bytes())
    assert call_cli("score", "a.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    refused = call_cli("curate", "s.parquet", "--budget", "9", "-o", "a.parquet", cwd=tmp_path)
    assert refused.code == 2
    assert (tmp_path / "a.parquet").read_bytes() == digits.read_bytes()
    for _ in range(2):  # what was curated before may be curated again
        curate("s.parquet", "--budget", "9", "-o", "c.parquet", cwd=tmp_path)
    again = call_cli("score", "c.parquet", "--method", "random", "-o", "t.parquet", cwd=tmp_path)
    assert again.code == 0
    refused = call_cli("curate", "t.parquet", "--budget", "9", "-o", "c.parquet", cwd=tmp_path)
    assert refused.code == 2  # of the same kind, and read
    assert "is read by this run" in refused.err
    (tmp_path / "a.parquet").write_bytes((tmp_path / "c.parquet").read_bytes())
    again = call_cli("curate", "s.parquet", "--budget", "9", "-o", "d.parquet", cwd=tmp_path)
    assert again.code == 2  # the manifest is no longer the one that was scored


def test_a_class_without_rows_after_the_edits_is_named(tmp_path: Path) -> None:
    rows = [Example(f"r{k}", (float(k), 1.0), int(k == 0)) for k in range(8)]
    manifest = open_manifest(str(write(feature_table(rows), tmp_path / "m.parquet")), "label")
    keys = pa.array([key.tobytes() for key in manifest.row_keys])
    pq.write_table(pa.table({"id": manifest.ids, "row_key": keys, "score": np.arange(8.0)}), tmp_path / "s.parquet")
    asked = ("s.parquet", "--manifest", "m.parquet", "--budget", "1", "--set", "trim.guard=false", "-n")
    assert "warning: no row of class 1 is left" in curate(*asked, cwd=tmp_path).err
    assert "is left" not in curate(*asked[:-3], "-n", cwd=tmp_path).err


def test_a_budget_of_nothing_edits_nothing(tmp_path: Path, digits: Path, scored: Path) -> None:
    for action in ("trim", "relabel"):
        asked = [scored, "--action", action, "--budget", "0", "-o", "c.parquet", "--edits", "e.jsonl"]
        curate(*asked, cwd=tmp_path)
        assert (tmp_path / "e.jsonl").read_bytes() == b""
        columns = pq.read_table(digits).column_names
        assert pq.read_table(tmp_path / "c.parquet").select(columns).equals(pq.read_table(digits))


# ---- edits can be undone ------------------------------------------------------------------------------------------


@pytest.fixture
def weighted(tmp_path: Path, digits_run: Path) -> Path:
    """A folder with a manifest whose rows have weights already, and its score table."""
    table = digits_table(train=60, val=10, test=10)
    weights = [0.5 + k % 3 for k in range(80)]
    write(with_column(table, "weight", pa.array(weights)), tmp_path / "m.parquet")
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", digits_run, "-o", "s.parquet", "-q"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    return tmp_path


@pytest.mark.parametrize("action", ["relabel", "reweight"])
def test_edits_applied_backwards_give_the_original(action: str, weighted: Path) -> None:
    curate("s.parquet", "--action", action, "-o", "c.parquet", "--edits", "e.parquet", cwd=weighted)
    before = by_id(pq.read_table(weighted / "m.parquet"))
    after = by_id(pq.read_table(weighted / "c.parquet"))
    for name, edit in by_id(pq.read_table(weighted / "e.parquet")).items():
        assert (after[name]["label"], after[name]["weight"]) == (edit["label"], edit["weight"])
        assert "weight_was" in edit, "a weight that was there before cannot be given back"
        after[name] |= {"label": edit["label_was"], "weight": edit["weight_was"]}
    assert {i: plain(r, "influence_proposal") for i, r in after.items()} == before


def test_edits_of_a_trim_name_every_row_that_is_gone(weighted: Path, digits_run: Path) -> None:
    table = pq.read_table(weighted / "m.parquet")
    weights = table.column("weight").to_pylist()
    weights[0] = 0.0  # left out by its owner
    write(with_column(table, "weight", pa.array(weights)), weighted / "m.parquet")
    again = ["score", "--method", "ip", "m.parquet", "--checkpoint", digits_run, "-o", "s.parquet"]
    assert call_cli(*again, cwd=weighted).code == 0
    for action in ("trim", "relabel"):
        asked = ["s.parquet", "--action", action, "-o", "c.parquet", "--edits", "e.parquet"]
        curate(*asked, cwd=weighted)
        left = set(pq.read_table(weighted / "c.parquet").column("id").to_pylist())
        edited = pq.read_table(weighted / "e.parquet").column("id").to_pylist()
        gone = set(table.column("id").to_pylist()) - left
        assert gone <= set(edited), f"{gone - set(edited)} went without an edit that says so"


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32(), pa.float64()], ids=str)
def test_reweight_keeps_weights_whatever_their_type(kind: pa.DataType, tmp_path: Path) -> None:
    table = digits_table(train=30, val=5, test=5)
    write(with_column(table, "weight", pa.array([1, 2] * 20, kind)), tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    asked = ["s.parquet", "--action", "reweight", "-o", "c.parquet", "--edits", "e.parquet"]
    curate(*asked, cwd=tmp_path)
    weights = open_manifest(tmp_path / "c.parquet").weights()
    edits = by_id(pq.read_table(tmp_path / "e.parquet"))
    ids = pq.read_table(tmp_path / "c.parquet").column("id").to_pylist()
    assert np.allclose(weights[:30], [edits[i]["weight"] for i in ids[:30]], rtol=1e-6)
    assert weights[30:].tolist() == [1, 2] * 5


def test_weights_that_are_null_stay_null_where_no_row_is_edited(tmp_path: Path) -> None:
    table = digits_table(train=30, val=5, test=5)
    table = with_column(table, "weight", pa.array([None, 2.0] * 20, pa.float64()))
    write(table, tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    curate("s.parquet", "--budget", "0", "-o", "c.parquet", cwd=tmp_path)
    assert pq.read_table(tmp_path / "c.parquet").equals(table)


# ---- truth, where it is known -------------------------------------------------------------------------------------


def test_precision_is_reported_where_clean_labels_are_known(tmp_path: Path, digits: Path, scored: Path) -> None:
    ran = curate(scored, "--budget", "10", "--edits", "e.parquet", cwd=tmp_path)
    rows = by_id(pq.read_table(digits))
    gone = pq.read_table(tmp_path / "e.parquet").column("id").to_pylist()
    wrong = np.mean([rows[i]["label"] != rows[i]["clean_label"] for i in gone])
    assert f"{wrong:.1%} of the edited rows were labelled wrong (all rows: 15.0%)" in ran.err


def test_clean_labels_that_are_unknown_for_some_rows_do_not_count_as_wrong(tmp_path: Path) -> None:
    table = digits_table(train=40, val=5, test=5, flipped=0.0)
    clean = [None if k % 2 else v for k, v in enumerate(table.column("label").to_pylist())]
    write(with_column(table, "clean_label", pa.array(clean, pa.int64())), tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    ran = curate("s.parquet", "--budget", "10", cwd=tmp_path)
    assert "0.0% of the edited rows were labelled wrong (all rows: 0.0%)" in ran.err


def test_clean_labels_that_are_no_numbers_exit_2(tmp_path: Path) -> None:
    table = digits_table(train=40, val=5, test=5)
    write(with_column(table, "clean_label", pa.array(["seven"] * 50)), tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    for stage in ("curate", "evaluate"):
        ran = call_cli(stage, "s.parquet", "--budget", "10", cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert "clean_label" in ran.err


# ---- another manifest than the one that was scored -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("relabelled", "row id=r003 has changed"),
        ("other payload", "row id=r003 has changed"),
        ("appended", "row id=new is not in the score table"),
        ("renamed", "row id=renamed is not in the score table"),
        ("deleted", "r003"),
        ("another target label", "target"),
    ],
)
def test_a_manifest_changed_after_scoring_exits_2_and_writes_nothing(
    change: str, said: str, tmp_path: Path, tabular_run: Path
) -> None:
    rows = examples()
    write(feature_table(rows), tmp_path / "m.parquet")
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", tabular_run, "-o", "s.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    one = rows[3]
    if change == "relabelled":
        rows[3] = one.relabelled()
    elif change == "other payload":
        rows[3] = Example(one.id, draw_features(99), one.label)
    elif change == "appended":
        rows.append(Example("new", draw_features(99), 0))
    elif change == "renamed":
        rows[3] = Example("renamed", one.features, one.label)
    elif change == "deleted":
        del rows[3]
    else:
        rows[45] = rows[45].relabelled()
        assert rows[45].split == "val"
    write(feature_table(rows), tmp_path / "m.parquet")
    ran = call_cli("curate", "s.parquet", "-o", "c.parquet", "--edits", "e.parquet", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "fix: " in ran.err
    assert not (tmp_path / "c.parquet").exists()
    assert not (tmp_path / "e.parquet").exists()


def test_rows_in_another_order_are_the_same_manifest(tmp_path: Path, tabular_run: Path) -> None:
    rows = examples()
    write(feature_table(rows), tmp_path / "m.parquet")
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", tabular_run, "-o", "s.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    before = curate("s.parquet", "--budget", "7", cwd=tmp_path).rows
    write(feature_table(rows[::-1]), tmp_path / "m.parquet")
    assert curate("s.parquet", "--budget", "7", cwd=tmp_path).rows == before


# ---- which column -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_scores(tmp_path_factory: pytest.TempPathFactory, digits: Path, digits_run: Path) -> Path:
    """A score table by ip and by loss."""
    folder = tmp_path_factory.mktemp("two")
    asked = ["score", digits, "--checkpoint", digits_run, "--method", "ip", "--method", "loss", "-o", "s.parquet"]
    assert call_cli(*asked, cwd=folder).code == 0
    return folder / "s.parquet"


def test_a_column_is_used_as_what_it_is(tmp_path: Path, two_scores: Path) -> None:
    table = pq.read_table(two_scores)
    assert {"score", "score_ip_utility", "score_loss"} <= set(table.column_names)
    assert table.column("score").equals(table.column("score_ip_utility"))
    relabel = [two_scores, "--action", "relabel", "--budget", "15"]
    by_ip = curate(*relabel, "--by", "score_ip_utility", cwd=tmp_path).rows
    assert by_ip == curate(*relabel, cwd=tmp_path).rows
    assert all(r["reason"].startswith("score ") for r in by_ip)
    by_loss = curate(*relabel, "--by", "score_loss", cwd=tmp_path).rows
    assert all(r["reason"].startswith("model gives") for r in by_loss)
    model = {r["id"]: r["model_label"] for r in table.to_pylist()}
    assert all(r["label"] == model[r["id"]] for r in by_loss)
    assert 0 < len(by_loss) <= 15


def test_what_needs_a_sign_refuses_a_ranking(tmp_path: Path, two_scores: Path) -> None:
    for flags in (
        ["--action", "relabel", "--set", "relabel.rule=influence"],
        ["--action", "trim", "--set", "trim.only_negative=true"],
    ):
        ran = call_cli("curate", two_scores, "--by", "score_loss", *flags, cwd=tmp_path)
        assert ran.code == 2
        assert "ranking-only" in ran.err
        signed = call_cli("curate", two_scores, "--by", "score_ip_utility", *flags, cwd=tmp_path)
        assert signed.code == 0, signed.err


@pytest.mark.parametrize("column", ["loss", "id", "row_key", "label", "best_label_gain", "model_probability"])
def test_a_column_that_is_no_score_is_refused(column: str, tmp_path: Path, scored: Path) -> None:
    ran = call_cli("curate", scored, "--by", column, "-o", "c.parquet", cwd=tmp_path)
    assert ran.code == 2, "trimming its lowest rows would take out the best ones, or nonsense"
    assert "fix: " in ran.err
    assert not (tmp_path / "c.parquet").exists()


def test_rows_without_a_score_are_never_edited(tmp_path: Path, digits: Path, scored: Path) -> None:
    table = pq.read_table(scored)
    scores = [None if k < 50 else v for k, v in enumerate(table.column("score").to_pylist())]
    write(with_column(table, "score", pa.array(scores, pa.float64())), tmp_path / "s.parquet")
    unscored = set(table.column("id").to_pylist()[:50])
    for flags in (["--budget", "40%"], ["--action", "relabel", "--budget", "40%"], ["--action", "reweight"]):
        edited = curate("s.parquet", *flags, cwd=tmp_path).rows
        assert edited
        assert not unscored & {r["id"] for r in edited}


# ---- payloads by path ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("shape", ["path", "struct", "mixed"])
def test_relative_paths_still_lead_to_the_payload_from_where_the_copy_is(shape: str, tmp_path: Path) -> None:
    table = digits_table(train=20, val=4, test=4)
    ids, images = (table.column(name).to_pylist() for name in ("id", "image"))
    (tmp_path / "data" / "img").mkdir(parents=True)
    for name, image in zip(ids, images, strict=True):
        (tmp_path / "data" / "img" / f"{name}.png").write_bytes(image)
    narrow = table.drop_columns(["image"])
    if shape == "path":
        with_payload = narrow.append_column("path", pa.array([f"img/{i}.png" for i in ids]))
    else:
        inside = [shape == "mixed" and k % 2 == 0 for k in range(28)]
        values = [
            {"bytes": image if here else None, "path": f"img/{i}.png"}
            for i, image, here in zip(ids, images, inside, strict=True)
        ]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        with_payload = narrow.append_column("image", pa.array(values, kind))
    write(with_payload, tmp_path / "data" / "m.parquet")
    before = open_manifest(tmp_path / "data" / "m.parquet")
    asked = ["score", "data/m.parquet", "--method", "random", "-o", "s.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    trim = ["s.parquet", "--budget", "3", "--set", "guard=false"]
    curate(*trim, "-o", "out/deep/c.parquet", cwd=tmp_path)
    after = open_manifest(tmp_path / "out" / "deep" / "c.parquet")
    keys = dict(zip(before.ids, (k.tobytes() for k in before.payload_keys), strict=True))
    assert len(after) == 25
    assert {i: k.tobytes() for i, k in zip(after.ids, after.payload_keys, strict=True)}.items() <= keys.items()
    curate(*trim, "-o", "data/c.parquet", cwd=tmp_path)
    beside = pq.read_table(tmp_path / "data" / "c.parquet")
    kept = with_payload.filter(pa.array([i in set(after.ids) for i in ids]))
    assert beside.equals(kept)


@pytest.mark.usefixtures("outside")
def test_absolute_paths_stay(tmp_path: Path) -> None:
    table = digits_table(train=10, val=0, test=0)
    paths = []
    for name, image in zip(table.column("id").to_pylist(), table.column("image").to_pylist(), strict=True):
        (tmp_path / f"{name}.png").write_bytes(image)
        paths.append(os.fspath(tmp_path / f"{name}.png"))
    by_path = table.drop_columns(["image"]).append_column("path", pa.array(paths))
    write(by_path, tmp_path / "data" / "m.parquet")
    asked = ["score", "data/m.parquet", "--method", "random", "-o", "s.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    curate("s.parquet", "--budget", "1", "--set", "guard=false", "-o", "out/c.parquet", cwd=tmp_path)
    assert len(open_manifest(tmp_path / "out" / "c.parquet")) == 9
