"""The gate: p-values against calibration rows, what it refuses to decide, the baseline, and what a CI log may hold."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from influence_cli.errors import UsageError
from influence_cli.stages.curate.baseline import baseline_of, read_baseline
from influence_cli.stages.curate.gate import check
from influence_cli.stages.curate.known_rows import p_values
from influence_cli.stages.curate.request import CurateRequest, GateRequest
from influence_cli.stages.curate.score_table import read_scores
from influence_cli.store.sealed import sealed
from tests.cases import Ran, call_cli, digits_table, train_run, with_column, write


def gate(*asked: Any, cwd: Path) -> Ran:
    """``influence curate --check``."""
    return call_cli("curate", *asked, "--check", cwd=cwd)


@pytest.fixture(scope="module")
def pull_request(tmp_path_factory: pytest.TempPathFactory, digits: Path, calibrated_run: Path) -> Path:
    """A folder with a baseline of the accepted rows, and scores of those rows and of 20 more, 10 of them wrong."""
    folder = tmp_path_factory.mktemp("pull-request")
    asked = ["--checkpoint", calibrated_run, "--method", "loss", "--store", "memo"]
    assert call_cli("score", digits, *asked, "-o", "accepted.parquet", cwd=folder).code == 0
    accept = ["curate", "accepted.parquet", "--write-baseline", "baseline.jsonl"]
    assert call_cli(*accept, cwd=folder).code == 0
    more = digits_table(train=340, val=0, test=0, flipped=0.0).slice(320)
    labels = [(v + 3) % 10 if k < 10 else v for k, v in enumerate(more.column("label").to_pylist())]
    new = with_column(more, "label", pa.array(labels, pa.int64())).replace_schema_metadata(None)
    whole = pa.concat_tables([pq.read_table(digits).replace_schema_metadata(None), new])
    write(whole, folder / "train.parquet")
    ran = call_cli("score", "train.parquet", *asked, "-o", "scores.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    return folder


FLAGS = ["scores.parquet", "--baseline", "baseline.jsonl", "--false-flag", "30%"]


def calibration_of(run: Path) -> set[str]:
    """Ids that the run was not trained on."""
    return set(json.loads((run / "run.json").read_text())["calibration_ids"])


def test_flagged_rows_are_those_with_a_small_conformal_p_value(pull_request: Path, calibrated_run: Path) -> None:
    rows = pq.read_table(pull_request / "scores.parquet").to_pylist()
    out = calibration_of(calibrated_run)
    assert 30 <= len(out) <= 70
    reference = np.array([r["score"] for r in rows if r["id"] in out])
    accepted = set(pq.read_table(pull_request / "accepted.parquet").column("id").to_pylist())
    p = {r["id"]: (1 + np.sum(reference <= r["score"])) / (1 + len(reference)) for r in rows if r["id"] not in accepted}
    assert len(p) == 20
    expected = {i for i, value in p.items() if value <= 0.3}
    assert len(expected) >= 5
    ran = gate(*FLAGS, cwd=pull_request)
    assert ran.code == 1
    assert {r["id"] for r in ran.rows} == expected
    assert all(np.isclose(r["p_value"], p[r["id"]]) for r in ran.rows)
    assert [r["p_value"] for r in ran.rows] == sorted(r["p_value"] for r in ran.rows)
    assert f"gate tripped: {len(expected)} of 20 new rows flagged, 0 allowed" in ran.err
    assert "at most 30% of clean rows are flagged" in ran.err


def test_the_gate_is_clean_where_as_many_are_allowed_and_writes_nothing(pull_request: Path) -> None:
    before = sorted(p.name for p in pull_request.iterdir())
    flagged = len(gate(*FLAGS, cwd=pull_request).rows)
    assert gate(*FLAGS, "--max-flagged", str(flagged), cwd=pull_request).code == 0
    assert gate(*FLAGS, "--max-flagged", str(flagged - 1), cwd=pull_request).code == 1
    assert gate(*FLAGS, "--max-flagged", "100%", cwd=pull_request).code == 0
    assert "gate clean" in gate(*FLAGS, "--max-flagged", "100%", cwd=pull_request).err
    assert gate(*FLAGS, "--max-flagged", "21", cwd=pull_request).code == 0  # more than there are: a small pull request
    assert sorted(p.name for p in pull_request.iterdir()) == before


def test_ties_count_against_being_flagged() -> None:
    calibration = np.array([1.0, 2.0, 2.0, 3.0])
    assert p_values(calibration, np.array([0.0, 1.0, 2.0, 9.0])).tolist() == [0.2, 0.4, 0.8, 1.0]
    assert p_values(np.zeros(9), np.zeros(3)).tolist() == [1.0] * 3


def test_clean_rows_are_flagged_no_more_often_than_was_asked() -> None:
    """New rows drawn like the calibration rows: a share q of them, and not much less, has p <= q."""
    rng = np.random.default_rng(3)
    draws = (rng.normal(size=60) for _ in range(300))
    rates = [np.mean(p_values(scores[:40], scores[40:]) <= 0.1) for scores in draws]
    assert 0.05 <= np.mean(rates) <= 0.1 + 3 * np.std(rates) / np.sqrt(300)


def test_accepted_rows_pass_and_an_edited_one_comes_back(
    tmp_path: Path, digits: Path, calibrated_run: Path, pull_request: Path
) -> None:
    baseline = pull_request / "baseline.jsonl"
    unchanged = gate(pull_request / "accepted.parquet", *FLAGS[1:2], baseline, "--false-flag", "10%", cwd=tmp_path)
    assert (unchanged.code, unchanged.out) == (0, b"")
    assert "0 of 0 new rows" in unchanged.err
    table = pq.read_table(digits)
    trained = next(k for k, i in enumerate(table.column("id").to_pylist()) if i not in calibration_of(calibrated_run))
    labels = table.column("label").to_pylist()
    labels[trained] = (labels[trained] + 5) % 10
    write(with_column(table, "label", pa.array(labels, pa.int64())), tmp_path / "m.parquet")
    asked = ["score", "m.parquet", "--checkpoint", calibrated_run, "--method", "loss", "-o", "s.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    edited = gate("s.parquet", "--baseline", baseline, "--false-flag", "10%", cwd=tmp_path)
    assert "of 1 new rows" in edited.err
    assert {r["id"] for r in edited.rows} <= {table.column("id")[trained].as_py()}


def test_without_calibration_rows_the_rate_is_unknown_and_without_anything_the_gate_refuses(
    tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    asked = ["score", digits, "--checkpoint", digits_run, "--method", "loss", "-o", "s.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    alone = gate("s.parquet", cwd=tmp_path)
    assert alone.code == 2
    assert "retrain --calibration" in alone.err
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    kept = [json.dumps({"id": r["id"], "row_key": r["row_key"].hex()}) for r in rows[:150]]
    (tmp_path / "b.jsonl").write_text("\n".join(kept) + "\n")
    against = gate("s.parquet", "--baseline", "b.jsonl", "--max-flagged", "100%", cwd=tmp_path)
    assert against.code == 0
    assert "of 50 new rows" in against.err
    assert "the rate of false flags is unknown" in against.err


def test_too_few_calibration_rows_for_the_rate_exit_2_and_say_how_many(pull_request: Path) -> None:
    ran = gate("scores.parquet", "--baseline", "baseline.jsonl", "--false-flag", "0.5%", cwd=pull_request)
    assert ran.code == 2
    assert "cannot resolve a rate of 0.5%" in ran.err
    assert "at least 199 calibration rows" in ran.err
    rate = ran.err.rsplit("--false-flag ", 1)[1].strip()
    proposed = gate("scores.parquet", "--baseline", "baseline.jsonl", "--false-flag", rate, cwd=pull_request)
    assert "cannot resolve" not in proposed.err


def with_noise(scores: Path, out: Path, **changes: float | None) -> Path:
    """A score table whose provenance says something else about the noise of its direction."""
    table = pq.read_table(scores)
    provenance = json.loads(table.schema.metadata[b"influence"])
    provenance["noise"]["utility"] |= changes
    return write(table.replace_schema_metadata({"influence": json.dumps(provenance)}), out)


def test_a_direction_that_is_noise_is_refused_and_a_good_one_is_not(
    tmp_path: Path, digits: Path, calibrated_run: Path
) -> None:
    asked = ["score", "--method", "ip", digits, "--checkpoint", calibrated_run, "-o", "s.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    for changes in ({"snr": 1.1, "reliability": 0.9}, {"snr": 30.0, "reliability": 0.1}):
        with_noise(tmp_path / "s.parquet", tmp_path / "noisy.parquet", **changes)
        ran = gate("noisy.parquet", "--false-flag", "10%", cwd=tmp_path)
        assert ran.code == 2
        assert "sampling noise" in ran.err
        assert "--method loss" in ran.err
        assert ran.out == b""
    with_noise(tmp_path / "s.parquet", tmp_path / "good.parquet", snr=30.0, reliability=0.9)
    assert gate("good.parquet", "--false-flag", "10%", cwd=tmp_path).code in (0, 1)


def test_a_threshold_exits_2_for_methods_that_estimate_no_effect(tmp_path: Path, scored: Path) -> None:
    for flags in (["--check"], []):
        ran = call_cli("curate", scored, "--threshold", "0.1", *flags, cwd=tmp_path)
        assert ran.code == 2
        assert "does not estimate" in ran.err
        assert "--false-flag" in ran.err


def test_a_baseline_is_sorted_and_exactly_the_train_rows(pull_request: Path) -> None:
    lines = [json.loads(line) for line in (pull_request / "baseline.jsonl").read_text().splitlines()]
    rows = pq.read_table(pull_request / "accepted.parquet").to_pylist()
    wanted = sorted(({"id": r["id"], "row_key": r["row_key"].hex()} for r in rows), key=lambda v: v["id"])
    assert lines[:-1] == [sealed({**line, "line": k}) for k, line in enumerate(wanted, 1)]
    assert (len(lines), lines[-1]["lines"]) == (201, 200)


def test_every_damaged_byte_of_a_baseline_is_named_or_changes_nothing(tmp_path: Path) -> None:
    raw = baseline_of([("r7", f"{7:032x}"), ("r8", f"{8:032x}")])
    whole, path = {f"{k:032x}" for k in (7, 8)}, tmp_path / "b.jsonl"
    path.write_bytes(raw)
    assert read_baseline(str(path)) == (whole, None)
    refused = 0
    for at in range(len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
            try:
                assert read_baseline(str(path)) == (whole, None)
            except UsageError as error:
                refused += "b.jsonl" in str(error)
    assert refused > 0.9 * 8 * len(raw)  # what is left is white space
    for end in range(len(raw) - 1):  # cut anywhere, even after a line; the last line end means nothing
        path.write_bytes(raw[:end])
        try:
            found, said = read_baseline(str(path))
            assert (found, "a lost line is not noticed" in str(said)) == (set(), True)
        except UsageError as error:
            refused += "b.jsonl" in str(error)


def test_lines_that_are_lost_twice_or_of_another_baseline_are_named(tmp_path: Path) -> None:
    lines = baseline_of([(f"r{k}", f"{k:032x}") for k in range(4)]).decode().splitlines()
    other = baseline_of([(f"r{k}", f"{k:031x}f") for k in range(4)]).decode().splitlines()
    path = tmp_path / "b.jsonl"

    def refused(*rest: str) -> str:
        path.write_text("\n".join(rest) + "\n")
        with pytest.raises(UsageError) as caught:
            read_baseline(str(path))
        return caught.value.what

    assert "line 3 of 4, after id=r1, before id=r3 is missing)" in refused(*lines[:2], *lines[3:])
    assert "line 1 of 4 is missing and 1 more" in refused(*lines[2:])
    assert "line 4 of 4, after id=r2 is missing" in refused(*lines[:3], lines[4])
    assert "its last line, which says how many there are, is missing after line 4" in refused(*lines[:4])
    assert "id=r2 is there twice" in refused(*lines[:3], lines[2], *lines[3:])
    assert "a line is not of this file" in refused(*lines[:2], other[2], *lines[3:])
    assert "says once more" in refused(*lines, lines[-1])
    assert "it is empty: not even the line that says how many there are is left" in refused()
    assert "line 2 is no JSON: " in refused(lines[0], lines[1][:-9])
    for count in (None, "4", 4.0, True, -1, 3):
        last = json.dumps(sealed({"lines": count, "digest": json.loads(lines[-1])["digest"]}))
        assert "does not say how many there are" in refused(*lines[:4], last)
    huge = json.dumps(sealed({"lines": 10**15, "digest": ""}))  # said by a file: nothing is counted up to there
    assert "line 5 of 1,000,000,000,000,000, after id=r3 is missing and" in refused(*lines[:4], huge)
    path.write_text("\n".join([*lines[::-1], json.dumps({"id": "own", "row_key": "f" * 32})]))
    assert read_baseline(str(path)) == ({*(f"{k:032x}" for k in range(4)), "f" * 32}, None)  # a line of one's own


def test_baselines_of_before_are_read_with_a_word(tmp_path: Path) -> None:
    path, line = tmp_path / "b.jsonl", {"id": "r7", "row_key": f"{7:032x}"}
    for written in (line, sealed(line)):
        path.write_text(json.dumps(written) + "\n")
        keys, said = read_baseline(str(path))
        assert keys == {line["row_key"]}
        assert "a lost line is not noticed" in str(said)


@pytest.mark.parametrize("text", ["not json\n", '{"id": "a"}\n', "[1]\n", "3\n"])
def test_a_baseline_that_cannot_be_read_exits_2(text: str, tmp_path: Path, pull_request: Path) -> None:
    (tmp_path / "b.jsonl").write_text(text)
    ran = gate(pull_request / "scores.parquet", "--manifest", pull_request / "train.parquet",
               "--baseline", "b.jsonl", cwd=tmp_path)  # fmt: skip
    assert ran.code == 2, ran.err
    assert "b.jsonl" in ran.err


HOSTILE = ["a\n::error::gotcha", "b\r\n::set-output name=x::y", "::warning file=x::z", "c%0A::error::e", "d,title=t:u"]


def test_github_annotations_cannot_be_forged_by_ids(tmp_path: Path, digits: Path, calibrated_run: Path) -> None:
    table = digits_table(train=220, val=60, test=60)
    ids, labels = table.column("id").to_pylist(), table.column("label").to_pylist()
    chosen = [k for k in range(220) if ids[k] not in calibration_of(calibrated_run)][-len(HOSTILE) :]
    for k, name in zip(chosen, HOSTILE, strict=True):
        ids[k], labels[k] = name, (labels[k] + 4) % 10
    table = with_column(with_column(table, "id", pa.array(ids)), "label", pa.array(labels, pa.int64()))
    write(table, tmp_path / "odd,name%.parquet")
    asked = ["score", "odd,name%.parquet", "--checkpoint", calibrated_run, "--method", "loss", "-o", "s.parquet"]
    assert call_cli(*asked, "--allow-overlap", cwd=tmp_path).code == 0
    ran = gate("s.parquet", "--false-flag", "30%", "--format", "github", cwd=tmp_path)
    assert ran.code == 1, ran.err
    plain = gate("s.parquet", "--false-flag", "30%", "--format", "json", cwd=tmp_path).json["rows"]
    assert len({r["id"] for r in plain} & set(HOSTILE)) >= 3
    lines = ran.text.splitlines()
    assert len(lines) == len(plain) + 1
    assert all(line.startswith("::warning file=odd%2Cname%25.parquet,title=influence::") for line in lines[:-1])
    assert lines[-1].startswith("::error title=influence::gate tripped")
    assert all(line.startswith(("::warning ", "::error ")) for line in lines), "a command stands at the start of a line"
    assert "\r" not in ran.text


def test_github_is_a_format_of_the_gate_alone(tmp_path: Path, scored: Path) -> None:
    ran = call_cli("curate", scored, "--format", "github", cwd=tmp_path)
    assert ran.code == 2, "without --check there is no verdict to annotate"


# ---- --threshold: effect, in the objective's unit --------------------------------------------------------------------


@pytest.fixture(scope="module")
def effects(tmp_path_factory: pytest.TempPathFactory, digits: Path, digits_run: Path) -> Path:
    """A folder with scores by exact of ``digits``, and again after 20 rows more came in, half of them wrong."""
    folder = tmp_path_factory.mktemp("effects")
    asked = ["--checkpoint", digits_run, "--method", "exact", "--params", "last", "--set", "exact.damping=0.01"]
    asked += ["--fit-rows", digits, "--store", "memo"]
    ran = call_cli("score", digits, *asked, "-o", "accepted.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    assert call_cli("curate", "accepted.parquet", "--write-baseline", "baseline.jsonl", cwd=folder).code == 0
    more = digits_table(train=340, val=0, test=0, flipped=0.0).slice(320)
    labels = [(v + 3) % 10 if k < 10 else v for k, v in enumerate(more.column("label").to_pylist())]
    new = with_column(more, "label", pa.array(labels, pa.int64())).replace_schema_metadata(None)
    write(pa.concat_tables([pq.read_table(digits).replace_schema_metadata(None), new]), folder / "train.parquet")
    ran = call_cli("score", "train.parquet", *asked, "--method", "loss", "-o", "scores.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    with_noise(folder / "scores.parquet", folder / "scores.parquet", snr=30.0, reliability=0.9)
    return folder


def test_a_threshold_flags_new_rows_by_effect_and_needs_no_calibration(effects: Path) -> None:
    rows = pq.read_table(effects / "scores.parquet").to_pylist()
    accepted, _ = read_baseline(str(effects / "baseline.jsonl"))
    new = [r for r in rows if r["row_key"].hex() not in accepted]
    assert len(new) == 20
    bound = -float(np.median([r["effect"] for r in new if r["effect"] < 0]))
    expected = sorted((r["effect"], r["id"]) for r in new if r["effect"] < -bound)
    assert 1 <= len(expected) < 20
    flags = ["scores.parquet", "--baseline", "baseline.jsonl", "--threshold", repr(bound)]
    ran = gate(*flags, cwd=effects)
    assert ran.code == 1, ran.err
    assert [(r["effect"], r["id"]) for r in ran.rows] == expected
    assert f"{len(expected)} of 20 new rows flagged, 0 allowed (effect below -" in ran.err
    assert "in the objective's unit" in ran.err
    assert gate(*flags, "--max-flagged", str(len(expected)), cwd=effects).code == 0
    assert gate(*flags[:-1], "1e9", cwd=effects).code == 0
    every = gate("scores.parquet", "--threshold", "0", cwd=effects)  # no baseline: every train row is new
    assert len(every.rows) == sum(r["effect"] < 0 for r in rows) > 20
    github = gate(*flags, "--format", "github", cwd=effects)
    assert github.text.count("::warning ") == github.text.count(", effect -") == len(expected)


def test_a_threshold_is_for_the_column_that_has_an_effect_and_for_sizes(effects: Path) -> None:
    by = gate("scores.parquet", "--by", "score_loss", "--threshold", "0.1", cwd=effects)
    assert by.code == 2
    assert "does not estimate" in by.err
    assert gate("scores.parquet", "--by", "score_exact_utility", "--threshold", "1e9", cwd=effects).code == 0
    negative = gate("scores.parquet", "--threshold=-0.1", cwd=effects)
    assert negative.code == 2
    assert "negative" in negative.err


def test_a_threshold_does_not_trust_a_direction_that_is_noise(effects: Path, tmp_path: Path) -> None:
    with_noise(effects / "scores.parquet", tmp_path / "noisy.parquet", snr=1.0)
    ran = gate("noisy.parquet", "--manifest", effects / "train.parquet", "--threshold", "0.1", cwd=tmp_path)
    assert ran.code == 2
    assert "sampling noise" in ran.err


# ---- what was changed, and what cannot be judged -----------------------------------------------------------------


def scored_again(folder: Path, table: pa.Table, run: Path, *more: Any) -> Path:
    """Scores of a manifest that was changed, in a folder of its own."""
    write(table, folder / "m.parquet")
    ran = call_cli("score", "m.parquet", "--checkpoint", run, "--method", "loss", "-o", "s.parquet", *more, cwd=folder)
    assert ran.code == 0, ran.err
    return folder / "s.parquet"


def test_a_calibration_row_that_was_changed_is_a_new_row(
    tmp_path: Path, digits: Path, calibrated_run: Path, pull_request: Path
) -> None:
    """Another label under its id, or another row's payload: it is judged, and compared with the others alone."""
    table, out = pq.read_table(digits), calibration_of(calibrated_run)
    ids, labels = table.column("id").to_pylist(), table.column("label").to_pylist()
    images, clean = table.column("image").to_pylist(), table.column("clean_label").to_pylist()
    first, second = [k for k, i in enumerate(ids) if i in out and labels[k] == clean[k]][:2]
    labels[first] = (labels[first] + 5) % 10
    images[second] = images[(second + 1) % 200]
    table = with_column(with_column(table, "label", pa.array(labels, pa.int64())), "image", pa.array(images))
    scored_again(tmp_path, table, calibrated_run)
    ran = gate("s.parquet", "--baseline", pull_request / "baseline.jsonl", "--false-flag", "30%", cwd=tmp_path)
    assert "of 2 new rows" in ran.err
    rows = {r["id"]: r["score"] for r in pq.read_table(tmp_path / "s.parquet").to_pylist()}
    reference = np.array([rows[i] for i in out - {ids[first], ids[second]}])
    p = (1 + np.sum(reference <= rows[ids[first]])) / (1 + len(reference))
    assert p <= 0.3
    assert {r["id"]: r["p_value"] for r in ran.rows}[ids[first]] == pytest.approx(p)
    assert ran.code == 1


def test_copies_of_a_calibration_row_do_not_change_the_others_p_values(
    tmp_path: Path, digits: Path, calibrated_run: Path, pull_request: Path
) -> None:
    plain = gate(*FLAGS, cwd=pull_request).rows
    rows = pq.read_table(pull_request / "scores.parquet").to_pylist()
    worst = min((r for r in rows if r["id"] in calibration_of(calibrated_run)), key=lambda r: r["score"])["id"]
    table = pq.read_table(pull_request / "train.parquet")
    copy = table.filter(pa.compute.equal(table.column("id"), worst))
    more = [with_column(copy, "id", pa.array([f"copy-{k}"])) for k in range(30)]
    scored_again(tmp_path, pa.concat_tables([table, *more]), calibrated_run)
    again = gate("s.parquet", "--baseline", pull_request / "baseline.jsonl", *FLAGS[3:], cwd=tmp_path).rows
    assert again == plain


def test_scores_of_other_weights_than_the_run_folder_holds_are_refused(
    tmp_path: Path, digits: Path, calibrated_run: Path
) -> None:
    """The folder was trained into again since: its calibration rows are not those that the scores know."""
    run = shutil.copytree(calibrated_run, tmp_path / "run")
    scored_again(tmp_path, pq.read_table(digits), run)
    assert gate("s.parquet", "--false-flag", "30%", "--max-flagged", "100%", cwd=tmp_path).code == 0
    shutil.rmtree(run)
    train_run(digits, run, seed=5, calibration=0.2)
    ran = gate("s.parquet", "--false-flag", "30%", "--max-flagged", "100%", cwd=tmp_path)
    assert (ran.code, "other weights than those that were scored" in ran.err) == (2, True)


def test_a_run_that_knows_its_calibration_rows_by_id_alone_is_refused(
    tmp_path: Path, digits: Path, calibrated_run: Path, effects: Path
) -> None:
    shutil.copytree(calibrated_run, tmp_path / "run")
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    for key in ("calibration_keys", "checksum", "weights"):  # as earlier versions wrote it
        del said[key]
    (tmp_path / "run" / "run.json").write_text(json.dumps(said))
    scored_again(tmp_path, pq.read_table(digits), tmp_path / "run")
    ran = gate("s.parquet", "--false-flag", "30%", cwd=tmp_path)
    assert ran.code == 2
    assert "by id alone" in ran.err
    assert "retrain --calibration" in ran.err
    (tmp_path / "run" / "run.json").write_text("{")
    ran = gate("s.parquet", "--false-flag", "30%", cwd=tmp_path)
    assert ran.code == 2
    assert "run.json" in ran.err


def test_a_gate_whose_calibration_rows_are_all_gone_says_so(
    tmp_path: Path, digits: Path, calibrated_run: Path, pull_request: Path
) -> None:
    table, out = pq.read_table(digits), calibration_of(calibrated_run)
    keep = pa.array([i not in out for i in table.column("id").to_pylist()])
    scored_again(tmp_path, table.filter(keep), calibrated_run)
    assert gate("s.parquet", "--false-flag", "30%", cwd=tmp_path).code == 2
    ran = gate("s.parquet", "--baseline", pull_request / "baseline.jsonl", "--false-flag", "30%", cwd=tmp_path)
    assert f"none of the run's {len(out)} calibration rows is there as it was" in ran.err
    assert "the rate of false flags is unknown" in ran.err


@pytest.mark.parametrize("value", [None, float("nan"), float("-inf")], ids=str)
def test_the_gate_trips_for_a_new_row_that_has_no_score(value: float | None, pull_request: Path) -> None:
    """Whatever is allowed, and in every format; an accepted row without a score is accepted."""
    table = pq.read_table(pull_request / "scores.parquet")
    accepted = set(pq.read_table(pull_request / "accepted.parquet").column("id").to_pylist())
    ids, scores = table.column("id").to_pylist(), table.column("score").to_pylist()
    new = [k for k, i in enumerate(ids) if i not in accepted]
    scores[new[3]], scores[ids.index(next(iter(accepted)))] = value, value
    changed = with_column(table, "score", pa.array(scores, pa.float64())).replace_schema_metadata(table.schema.metadata)
    write(changed, pull_request / "null.parquet")
    asked = ["null.parquet", *FLAGS[1:], "--max-flagged", "100%"]
    ran = gate(*asked, cwd=pull_request)
    assert ran.code == 1
    assert "of 20 new rows flagged" in ran.err
    assert "1 cannot be judged" in ran.err
    first = ran.rows[0]
    assert (first["id"], first["score"], first["p_value"]) == (ids[new[3]], None, None)
    assert "cannot be judged: its score is null" in first["reason"]
    assert all(r["reason"] is None for r in ran.rows[1:])
    assert gate(*asked, "--format", "json", cwd=pull_request).json["rows"][0] == first
    for how in ("github", "table", "csv"):
        shown = gate(*asked, "--format", how, cwd=pull_request)
        assert shown.code == 1
        assert ids[new[3]] in shown.text
        assert "cannot be judged" in shown.text
    (pull_request / "null.parquet").unlink()


def test_the_gate_trips_for_new_rows_without_an_effect(effects: Path, tmp_path: Path) -> None:
    table = pq.read_table(effects / "scores.parquet")
    none = with_column(table, "effect", pa.nulls(table.num_rows, pa.float64()))
    write(none.replace_schema_metadata(table.schema.metadata), tmp_path / "s.parquet")
    asked = ["s.parquet", "--manifest", effects / "train.parquet", "--baseline", effects / "baseline.jsonl"]
    ran = gate(*asked, "--threshold", "1e9", cwd=tmp_path)
    assert ran.code == 1
    assert "0 of 20 new rows flagged" in ran.err
    assert "20 cannot be judged" in ran.err
    scores = read_scores(CurateRequest(str(tmp_path / "s.parquet"), manifest=str(effects / "train.parquet")))
    for threshold in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="no size"):
            check(scores, GateRequest(threshold=threshold))


def test_the_gate_trips_for_new_rows_that_were_left_out_when_scored(
    tmp_path: Path, calibrated_run: Path, pull_request: Path
) -> None:
    """A damaged image and a label outside of the classes, in train rows; one in a val row is no matter of the gate."""
    table = pq.read_table(pull_request / "train.parquet")
    images, labels, splits = (table.column(n).to_pylist() for n in ("image", "label", "split"))
    ids = table.column("id").to_pylist()
    last, val = len(ids) - 1, splits.index("val")
    images[last], images[val], labels[last - 1] = b"no image", b"none", 99
    table = with_column(with_column(table, "image", pa.array(images)), "label", pa.array(labels, pa.int64()))
    scored_again(tmp_path, table, calibrated_run, "--skip-bad")
    ran = gate("s.parquet", "--baseline", pull_request / "baseline.jsonl", *FLAGS[3:], "--max-flagged", "100%",
               cwd=tmp_path)  # fmt: skip
    assert ran.code == 1
    assert "of 20 new rows flagged" in ran.err
    assert {r["id"] for r in ran.rows if r["reason"]} == {ids[last - 1], ids[last]}


def test_the_gate_says_what_it_did_not_look_at_and_how_coarse_it_is(pull_request: Path) -> None:
    ran = gate("scores.parquet", "--baseline", "baseline.jsonl", "--false-flag", "3%", cwd=pull_request)
    assert ran.code in (0, 1), ran.err
    assert "not looked at: 60 val and 60 test rows, since only train rows have scores, old and new (with" in ran.err
    few = re.search(r"few rows to compare with: at 3% .* only below all of (\d+); (\d+) would do", ran.err)
    assert few is not None
    assert 33 <= int(few[1]) < 66
    assert int(few[2]) == 166  # (1 + 166) 3 % = 5
    assert "few rows" not in gate(*FLAGS, cwd=pull_request).err
