"""The command line's contract: what is imported, exit codes, errors with a fix, crashes, Ctrl-C, formats, dry runs."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from influence_cli.cli import console
from influence_cli.cli.main import Stopped
from tests.cases import Ran, call_cli, digits_table, run_cli, run_python, with_column, write

COMMANDS = ("manifest", "grads", "score", "curate", "retrain", "evaluate", "methods", "cache", "guide")

HELP = """
import json, sys
from influence_cli.cli.main import run
seen = {}
for command in sys.argv[1:]:
    code = run([*command.split(), "--help"])
    seen[command] = [code, sorted({"torch", "pandas", "pyarrow", "timm", "sklearn", "scipy"} & set(sys.modules))]
sys.stderr.write(json.dumps(seen))
"""

WITHOUT_TORCH = """
import sys
from influence_cli.cli.main import run
code = run(sys.argv[1:])
sys.stderr.write("torch imported" if "torch" in sys.modules else "no torch")
sys.exit(code)
"""


def error_parts(ran: Ran) -> dict[str, str]:
    """The lines of an error by their first word."""
    return {name: rest for name, _, rest in (line.partition(": ") for line in ran.err.splitlines())}


# ---- start-up -----------------------------------------------------------------------------------------------------


def test_help_imports_nothing_slow_and_states_the_exit_codes(tmp_path: Path) -> None:
    ran = run_python(HELP, "", *COMMANDS, cwd=tmp_path)
    assert json.loads(ran.err) == {command: [0, []] for command in ("", *COMMANDS)}
    assert ran.text.count("Exit codes: 0 done") == 1 + len(COMMANDS)


def test_help_and_version_exit_0_from_a_shell(tmp_path: Path) -> None:
    ran = run_cli("score", "--method", "ip", "-h", cwd=tmp_path, env={"GITHUB_ACTIONS": "true"})
    assert ran.code == 0
    assert "--per-member" in ran.text
    assert "\x1b" not in ran.text + ran.err


def test_version_exits_0(tmp_path: Path) -> None:
    ran = call_cli("--version", cwd=tmp_path)
    assert (ran.code, ran.text[:10]) == (0, "influence ")


def test_a_warm_score_imports_no_torch(tmp_path: Path, digits: Path, digits_run: Path, filled_store: Path) -> None:
    asked = [
        "score",
        "--method",
        "ip",
        digits,
        "--checkpoint",
        digits_run,
        "--store",
        filled_store,
        "-o",
        "scores.parquet",
    ]
    ran = run_python(WITHOUT_TORCH, *asked, cwd=tmp_path)
    assert (ran.code, ran.err.splitlines()[-1]) == (0, "no torch")


def test_a_score_after_relabelling_in_place_imports_no_torch(
    tmp_path: Path, digits: Path, digits_run: Path, filled_store: Path
) -> None:
    table = pq.read_table(digits)
    labels = table.column("label").to_numpy().copy()
    labels[:100] = (labels[:100] + 1) % 10
    changed = write(with_column(table, "label", labels), tmp_path / "relabelled.parquet")
    asked = [
        "score",
        "--method",
        "ip",
        changed,
        "--checkpoint",
        digits_run,
        "--store",
        filled_store,
        "-o",
        "scores.parquet",
    ]
    ran = run_python(WITHOUT_TORCH, *asked, cwd=tmp_path)
    assert (ran.code, ran.err.splitlines()[-1]) == (0, "no torch")
    assert pq.read_table(tmp_path / "scores.parquet").column("label").to_pylist() == labels[:200].tolist()


# ---- exit code 2: what, where, fix ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "what", "fix"),
    [
        (["score", "--method", "ip", "M", "--bugdet", "3"], "No such option", ""),
        (["scores", "M"], "No such command", ""),
        (["score", "M", "--method", "ip-ensmble"], "unknown method 'ip-ensmble'", "'ip-ensemble'"),
        (["score", "--method", "ip", "M", "--objective", "utilty"], "unknown objective 'utilty'", "'utility'"),
        (["score", "M", "--method", "ip-ensemble", "--set", "membres=3"], "no option 'membres'", "'members'"),
        (["score", "--method", "ip", "M", "--set", "ip.members=3"], "ip has no option 'members'", "normalise"),
        (["score", "M", "--method", "loss", "--set", "loss.members=3"], "loss has no option 'members'", "no options"),
        (["score", "--method", "ip", "M", "--set", "ip-ensmble.members=3"], "ip-ensmble", "'ip-ensemble'"),
        (["score", "--method", "ip", "M", "--set", "members"], "cannot be read", "--set ip-ensemble.members=10"),
        (["score", "M", "--method", "ip", "--method", "loss", "--set", "x=1"], "does not say whose", "--set"),
        (["score", "--method", "ip", "M", "--format", "jsonn"], "--format 'jsonn'", "'json'"),
        (["score", "--method", "ip", "M", "--format", "github"], "--format 'github'", ""),
        (["score", "--method", "ip", "M", "--precision", "fp23"], "--precision 'fp23'", "'fp32'"),
        (["score", "--method", "ip", "M", "--params", "layer9.*"], "selects no parameter", "names look like"),
        (
            ["score", "--method", "ip", "M", "--no-store", "--device", "gpu"],
            "device 'gpu' is not available",
            "--device cpu",
        ),
        (["score", "--method", "ip", "M", "--color", "often"], "--color 'often'", "never"),
        (["score", "--method", "ip", "M", "--model", "mlp:99"], "contradicts the checkpoint", "leave --model out"),
        (
            ["score", "--method", "ip", "M", "--num-classes", "3"],
            "contradicts the checkpoint",
            "leave --num-classes out",
        ),
        (["score", "--method", "ip", "M", "--checkpoint", "gone"], "no such checkpoint", "--checkpoint PATH"),
        (["score", "--method", "ip", "M", "--checkpoint", "M"], "unknown kind of checkpoint", ".safetensors"),
        (["score", "--method", "ip", "M", "--label", "lable"], "no column 'lable'", "--label COLUMN"),
        (["score", "gone.parquet"], "no such file", "check the path"),
        (["score", "--method", "ip", "M", "-o", "scores.xlsx"], "unknown suffix", ".parquet, .csv, .jsonl"),
        (["score", "--method", "ip", "M", "-o", "folder.parquet"], "it is a folder", "file name"),
        (["curate", "S", "--action", "trimm"], "unknown action 'trimm'", "'trim'"),
        (["curate", "S", "--by", "score_utilty"], "no score column", "'score_utility'"),
        (["curate", "S", "--budget", "many"], "--budget 'many'", "5% or 200"),
        (["curate", "S", "--budget", "201"], "outside 0 to 200", "such as 50%, or at most 200"),
        (["curate", "S", "--action", "reweight", "--budget", "5%"], "takes no budget", "leave --budget out"),
        (["curate", "M"], "no column 'row_key'", "`score`"),
        (["curate", "S", "--set", "trim.gaurd=false"], "no option 'gaurd'", "'guard'"),
        (["curate", "S", "-o", "clean.csv"], "a manifest is Parquet", ".parquet"),
        (["retrain", "M", "--model", "mlp:4"], "no run folder", "-o RUN"),
        (["retrain", "M", "-o", "RUN"], "no model", "--model NAME"),
        (["retrain", "M", "--model", "resnet81", "-o", "RUN"], "unknown model 'resnet81'", "resnet"),
        (["retrain", "M", "--model", "mlp:4", "-o", "RUN", "--optimizer", "adam"], "'adam'", "adamw"),
        (["retrain", "M", "--model", "mlp:4", "-o", "RUN", "--arm", "a=M"], "--arm needs --against", "--against"),
        (["methods", "ekfca"], "unknown method 'ekfca'", ""),
    ],
)
def test_what_the_user_can_fix_exits_2_and_says_how(
    asked: list[str],
    what: str,
    fix: str,
    tmp_path: Path,
    digits: Path,
    digits_run: Path,
    filled_store: Path,
    scored: Path,
) -> None:
    (tmp_path / "folder.parquet").mkdir()
    files = {"M": digits, "S": scored}
    command = [files.get(a, a) for a in asked]
    if asked[0] == "score" and "--checkpoint" not in asked:
        command += ["--checkpoint", digits_run]
    if asked[0] == "score":
        command += ["--store", filled_store]
    ran = call_cli(*command, cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert what in ran.err
    assert fix in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == b""
    if not what.startswith("No such"):  # Typer words its own
        assert error_parts(ran).keys() >= {"error", "fix"}


@pytest.mark.parametrize(
    "asked",
    [
        ["score", "--method", "ip", "--batch-size", "-1"],
        ["score", "--method", "ip", "--batch-size", "0"],
        ["score", "--method", "ip", "--batch-size", "many"],
        ["score", "--method", "ip", "--seed", "x"],
        ["score", "--seed", str(10**30), "--method", "random"],
        ["score", "--method", "ip-ensemble", "--set", "members=0"],
        ["score", "--method", "ip-ensemble", "--set", "members=inf"],
        ["score", "--method", "ip-ensemble", "--set", "members=2.5"],
        ["score", "--method", "ip-ensemble", "--set", "p_max=nan"],
        ["score", "--method", "ip-ensemble", "--set", "p_max=1"],
        ["score", "--method", "ip-ensemble", "--set", "rescale=perhaps"],
        ["curate", "--budget", "inf%"],
        ["curate", "--budget", "nan%"],
        ["curate", "--budget", "-1"],
        ["curate", "--check", "--false-flag", "0"],
        ["curate", "--check", "--false-flag", "often"],
        ["curate", "--check", "--baseline", "gone.jsonl"],
        ["curate", "--action", "relabel", "--set", "rule=guess"],
        ["curate", "--action", "reweight", "--set", "temperature=0"],
        ["retrain", "--seeds", "0"],
        ["retrain", "--epochs", "-1"],
        ["retrain", "--lr", "nan"],
        ["retrain", "--batch-size", "-5"],
        ["retrain", "--num-classes", "-3"],
        ["retrain", "--input-size", "-8"],
        ["retrain", "--calibration", "2"],
        ["retrain", "--keep-checkpoints", "-1"],
    ],
    ids=" ".join,
)
def test_values_out_of_range_exit_2(
    asked: list[str], tmp_path: Path, digits: Path, digits_run: Path, filled_store: Path, scored: Path
) -> None:
    rest = {
        "score": [digits, "--checkpoint", digits_run, "--store", filled_store, "-o", "out.parquet"],
        "curate": [scored, "-o", "out.parquet"],
        "retrain": [digits, "--model", "mlp:4", "-o", "RUN"],
    }[asked[0]]
    if asked[0] == "retrain" and "--epochs" not in asked:
        rest = [*rest, "--epochs", "1"]
    if "--check" in asked:
        rest = rest[:1]
    ran = call_cli(*asked, *rest, cwd=tmp_path)
    assert ran.code == 2, f"{ran.code}: {ran.err}"
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_arguments_never_exits_1(command: str, tmp_path: Path) -> None:
    ran = call_cli(command, cwd=tmp_path)
    assert ran.code == (0 if command in ("methods", "cache", "guide") else 2)


def test_influence_alone_prints_help_and_does_not_exit_1(tmp_path: Path) -> None:
    ran = call_cli(cwd=tmp_path)
    assert ran.code in (0, 2)
    assert "Usage: influence" in ran.text + ran.err


@pytest.mark.parametrize(
    "flags",
    [
        ["-o", "-", "--edits", "-"],
        ["--check", "--edits", "edits.parquet"],
    ],
    ids=" ".join,
)
def test_flags_of_curate_that_contradict_each_other_exit_2(flags: list[str], tmp_path: Path, scored: Path) -> None:
    ran = call_cli("curate", scored, *flags, "--by", "score_utility", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert ran.out == b""
    assert "sampling noise" not in ran.err  # refused for the flags, not for the data
    assert list(tmp_path.iterdir()) == []


# ---- outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["score", "curate", "edits", "retrain"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    stage: str, tmp_path: Path, digits: Path, digits_run: Path, scored: Path
) -> None:
    (tmp_path / "there.parquet").mkdir()
    (tmp_path / "file").write_text("mine")
    asked: dict[str, list[Any]] = {
        "score": [
            "score",
            "--method",
            "ip",
            digits,
            "--checkpoint",
            digits_run,
            "--store",
            "store",
            "-o",
            "there.parquet",
        ],
        "curate": ["curate", scored, "--edits", "edits.parquet", "-o", "there.parquet"],
        "edits": ["curate", scored, "--edits", "edits.xlsx", "-o", "clean.parquet"],
        "retrain": ["retrain", digits, "--model", "mlp:4", "--epochs", "1", "-o", "file", "-v"],
    }
    ran = call_cli(*asked[stage], cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there.parquet"]
    assert (tmp_path / "file").read_text() == "mine"
    assert "train all rows" not in ran.err


def test_csv_and_jsonl_hold_the_same_rows_as_parquet_and_can_be_curated(
    tmp_path: Path, digits: Path, digits_run: Path, filled_store: Path
) -> None:
    tables = {}
    for suffix in ("parquet", "csv", "jsonl"):
        asked = [digits, "--checkpoint", digits_run, "--store", filled_store, "-o", f"scores.{suffix}"]
        assert call_cli("score", "--method", "ip", *asked, cwd=tmp_path).out == b""
        name = f"edits-{suffix}.jsonl"
        flags = ["--manifest", digits, "--budget", "10", "--edits", name]
        ran = call_cli("curate", f"scores.{suffix}", *flags, cwd=tmp_path)
        assert ran.code == 0, ran.err
        tables[suffix] = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert [r["id"] for r in tables["parquet"]] == [r["id"] for r in tables["csv"]]
    assert tables["parquet"] == tables["jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    whole = pq.read_table(tmp_path / "scores.parquet")
    assert [r["score"] for r in lines] == whole.column("score").to_pylist()
    assert lines[3]["row_key"] == whole.column("row_key")[3].as_py().hex()


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("style", ["{:03d}", "2024-01-{:02d}"])
def test_ids_that_look_like_numbers_or_dates_survive_text_tables(suffix: str, style: str, tmp_path: Path) -> None:
    table = digits_table(train=20, val=0, test=0)
    ids = [style.format(k + 1) for k in range(20)]
    write(with_column(table, "id", ids), tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", f"s.{suffix}", cwd=tmp_path).code == 0
    ran = call_cli("curate", f"s.{suffix}", "--manifest", "m.parquet", "--budget", "2", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert {r["id"] for r in ran.rows} <= set(ids)


def test_every_stdout_format_of_score(tmp_path: Path, digits: Path) -> None:
    asked = ["score", digits, "--method", "random"]
    by_format = {f: call_cli(*asked, "--format", f, cwd=tmp_path) for f in ("auto", "jsonl", "json", "csv", "table")}
    assert by_format["auto"].out == by_format["jsonl"].out
    rows = by_format["jsonl"].rows
    assert len(rows) == 200
    assert by_format["json"].json == {"schema_version": 1, "rows": rows}
    assert call_cli(*asked, "--json", cwd=tmp_path).out == by_format["json"].out
    assert by_format["csv"].text.splitlines()[0].replace('"', "") == ",".join(rows[0])
    worst = min(rows, key=lambda r: r["score"])
    shown = by_format["table"].text.splitlines()
    header = next(k for k, line in enumerate(shown) if line.startswith("id "))
    assert shown[header + 1].split()[0] == worst["id"]


def test_methods_as_a_table_and_as_json(tmp_path: Path) -> None:
    described = call_cli("methods", cwd=tmp_path).json
    assert described["schema_version"] == 1
    names = [m["name"] for m in described["methods"]]
    assert {"ip", "ip-ensemble", "loss", "margin", "random"} <= set(names)
    table = call_cli("methods", "--format", "table", cwd=tmp_path).text
    assert all(name in table for name in names)
    one = call_cli("methods", "ip-ensemble", "--json", cwd=tmp_path).json["methods"]
    assert [m["name"] for m in one] == ["ip-ensemble"]
    (members,) = [o for o in one[0]["options"] if o["name"] == "members"]
    assert (members["type"], members["default"]) == ("int | Literal['auto']", 5)
    assert members["help"].startswith("number of members M; auto:")


def test_methods_works_beside_a_settings_file_that_names_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "influence.toml").write_text('manifest = "train.parquet"\n')
    ran = call_cli("methods", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err


def test_evaluate_reports_detection_and_honours_its_output_flags(tmp_path: Path, scored: Path) -> None:
    ran = call_cli("evaluate", scored, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.json["wrong_rows"] == 30
    assert set(ran.json["detection"]) == {"utility", "loss", "margin", "random"}
    assert call_cli("evaluate", scored, "-o", "e.json", cwd=tmp_path).out == b""
    assert json.loads((tmp_path / "e.json").read_text()) == ran.json
    assert call_cli("evaluate", scored, "-o", "-", cwd=tmp_path).json == ran.json
    assert call_cli("evaluate", scored, "-n", "-o", "dry.json", cwd=tmp_path).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.json"]


# ---- dry runs -----------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_is_missing_and_writes_no_store(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    asked = ["score", "--method", "ip", digits, "--checkpoint", digits_run]
    plan = call_cli(*asked, "--dry-run", cwd=tmp_path).json
    assert (plan["schema_version"], plan["rows_to_compute"], plan["train_rows"]) == (1, 200, 200)
    assert plan["steps"][0]["target_rows_to_pass"] == plan["target_rows"] == 60
    assert "new direction" in plan["steps"][0]["why"]
    assert plan["bytes"] > 200 * 10 * 4
    assert list(tmp_path.iterdir()) == []
    assert call_cli(*asked, "-o", "scores.parquet", cwd=tmp_path).code == 0
    after = call_cli(*asked, "-n", cwd=tmp_path).json
    assert (after["rows_to_compute"], after["steps"][0]["why"], after["bytes"]) == (0, "all stored", 0)
    people = call_cli(*asked, "-n", "--format", "table", cwd=tmp_path).text
    assert "all stored" in people


def test_a_dry_run_with_no_store_says_that_nothing_is_kept(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    plan = call_cli(
        "score", "--method", "ip", digits, "--checkpoint", digits_run, "--no-store", "-n", cwd=tmp_path
    ).json
    assert "temporary" in plan["store"]
    assert plan["rows_to_compute"] == 200


def test_a_dry_run_of_a_timm_model_writes_no_store(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "bare.safetensors")
    config = {"shape": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    monkeypatch.setattr("influence_cli.model.build.timm_config", lambda name: dict(config))
    asked = ["score", "--method", "ip", digits, "--checkpoint", "bare.safetensors", "--model", "resnet18", "-n"]
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["bare.safetensors"]


@pytest.mark.parametrize("flags", [["-o", "c.parquet", "--edits", "e.parquet"], ["--write-baseline", "b.jsonl"]])
def test_a_dry_run_of_curate_writes_nothing(flags: list[str], tmp_path: Path, scored: Path) -> None:
    ran = call_cli("curate", scored, *flags, "-n", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_retrain_names_every_arm_and_trains_nothing(tmp_path: Path, digits: Path) -> None:
    asked = ["retrain", digits, "--model", "mlp:4", "-o", "RUN", "--seeds", "2", "-n"]
    plan = call_cli(*asked, cwd=tmp_path).json
    assert plan["seeds"] == [0, 1]
    assert plan["recipe"]["epochs"] == 20
    assert list(tmp_path.iterdir()) == []
    assert call_cli("retrain", "gone.parquet", *asked[2:], cwd=tmp_path).code == 2


# ---- crashes and interruptions -------------------------------------------------------------------------------------


def test_a_crash_exits_3_and_shows_a_traceback_only_when_asked(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the stage broke")

    monkeypatch.setattr("influence_cli.stages.score.score.score", broken)
    ran = call_cli("score", digits, "--method", "random", cwd=tmp_path)
    assert ran.code == 3
    assert "error: RuntimeError: the stage broke" in ran.err
    assert "--debug" in ran.err
    assert "Traceback" not in ran.err
    debug = call_cli("score", digits, "--method", "random", "--debug", cwd=tmp_path)
    assert debug.code == 3
    assert "Traceback" in debug.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device", "shard"), 3, "the disk is full"),
        (MemoryError(), 3, "--batch-size"),
        (PermissionError(13, "Permission denied", "there"), 2, "no permission"),
    ],
)
def test_what_the_machine_does_to_us(
    error: Exception, code: int, said: str, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr("influence_cli.stages.score.score.score", broken)
    ran = call_cli("score", digits, "--method", "random", cwd=tmp_path)
    assert ran.code == code
    assert said in ran.err
    assert "fix: " in ran.err


def interrupt(monkeypatch: pytest.MonkeyPatch, what: str, at: int, by: int = signal.SIGINT) -> None:
    """Send Ctrl-C, or stop as another signal does, after the ``at``-th batch of the span that starts with ``what``."""
    advance, seen = console._Plain.advance, []

    def stop(self: Any, rows: int) -> None:
        advance(self, rows)
        if self.what.startswith(what):
            seen.append(rows)
            if len(seen) == at and by != signal.SIGINT:
                raise Stopped(by)  # what its handler raises
            if len(seen) == at:
                signal.raise_signal(by)

    monkeypatch.setattr(console._Plain, "advance", stop)


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_is_stopped_says_what_was_kept_and_keeps_it(
    by: int, code: int, tmp_path: Path, digits: Path, digits_run: Path, scored: Path
) -> None:
    asked = ["score", "--method", "ip", digits, "--checkpoint", digits_run, "--batch-size", "30"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "training rows", at=3, by=by)
        ran = call_cli(*asked, "-o", "scores.parquet", cwd=tmp_path)
    assert ran.code == code
    assert ran.err.splitlines()[-1] == "interrupted: 90 of 200 rows kept; run the same command to continue"
    assert not (tmp_path / "scores.parquet").exists()
    assert call_cli(*asked, "-n", cwd=tmp_path).json["rows_to_compute"] == 110
    assert call_cli(*asked, "-o", "scores.parquet", cwd=tmp_path).code == 0
    ours, cold = (pq.read_table(p).column("score").to_numpy() for p in (tmp_path / "scores.parquet", scored))
    assert np.abs(ours - cold).max() <= 1e-6 * np.abs(cold).max()


def test_what_is_stopped_without_a_store_says_that_nothing_is_kept(
    tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "training rows", at=1)
        ran = call_cli("score", "--method", "ip", digits, "--checkpoint", digits_run, "--no-store", cwd=tmp_path)
    assert ran.code == 130
    assert ran.err.splitlines()[-1].startswith("interrupted: with --no-store nothing is kept")


@pytest.mark.parametrize("span", ["direction", "decode train rows"])
def test_ctrl_c_in_a_pass_that_keeps_nothing_claims_nothing(
    span: str, tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    score = ["score", "--method", "ip", digits, "--checkpoint", digits_run, "--batch-size", "10"]
    train = ["retrain", digits, "--model", "mlp:4", "--epochs", "1", "-o", "RUN"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, span, at=1)
        ran = call_cli(*(score if span == "direction" else train), cwd=tmp_path)
    assert ran.code == 130
    assert "interrupted: " in ran.err
    assert "rows kept" not in ran.err


def test_an_interrupted_retrain_resumes_without_training_finished_arms_again(tmp_path: Path, digits: Path) -> None:
    asked = ["retrain", digits, "--model", "mlp:4", "--epochs", "3", "--seeds", "3", "-o", "RUN", "-v"]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, "train all rows, seed 2", at=2)
        assert call_cli(*asked, cwd=tmp_path).code == 130
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "RUN" / "arms").rglob("model.safetensors")}
    assert len(done) == 2
    again = call_cli(*asked, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "all rows, seed 0: already trained" in again.err
    assert "all rows, seed 1: already trained" in again.err
    assert "all rows, seed 2: already trained" not in again.err
    assert {p: p.stat().st_mtime_ns for p in done} == done
    shutil.copytree(tmp_path / "RUN", tmp_path / "kept")
    shutil.rmtree(tmp_path / "RUN")
    assert call_cli(*asked, cwd=tmp_path).code == 0
    fresh, resumed = ((tmp_path / run / "metrics.json").read_text() for run in ("RUN", "kept"))
    assert fresh == resumed


def test_a_finished_arm_is_not_trained_again_where_more_checkpoints_than_epochs_are_asked(
    tmp_path: Path, digits: Path
) -> None:
    asked = ["retrain", digits, "--model", "mlp:4", "--epochs", "2", "--keep-checkpoints", "5", "-o", "RUN", "-v"]
    assert call_cli(*asked, cwd=tmp_path).code in (0, 2)
    again = call_cli(*asked, cwd=tmp_path)
    assert again.code == 2 or "already trained" in again.err


def test_require_improvement_exits_1_only_where_it_was_asked(tmp_path: Path, digits: Path, scored: Path) -> None:
    assert call_cli("curate", scored, "--budget", "10", "-o", "clean.parquet", cwd=tmp_path).code == 0
    asked = ["retrain", "clean.parquet", "--against", digits, "--model", "mlp:4", "--epochs", "1", "-o", "RUN"]
    assert call_cli(*asked, cwd=tmp_path).code == 0
    assert call_cli(*asked, "--require-improvement", cwd=tmp_path).code == 1  # one seed resolves nothing
    metrics = json.loads((tmp_path / "RUN" / "metrics.json").read_text())
    assert set(metrics["arms"]) == {"curated", "no edit", "curated: random trim"}


def test_the_last_line_of_progress_in_a_pipe_says_where_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    shown = console.Terminal()
    with shown.progress("train", 10, "epochs") as progress:
        for _ in range(10):
            now[0] += 1.0 if now[0] < 6.0 else 0.01
            progress.advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert 1 < len(lines) < 10
    assert lines[-1] == "train: 10 of 10 epochs"
    with shown.progress("quick", 3) as progress:
        progress.advance(3)
    assert capsys.readouterr().err == ""
