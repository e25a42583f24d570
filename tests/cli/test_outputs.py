"""No output replaces a file that the run reads, or one that is no earlier output of its kind; and how writing fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli.data import earlier
from influence_cli.data.outputs import Output, check_outputs, writing
from influence_cli.errors import UsageError
from tests.cases import Ran, call_cli, examples, feature_table, png, write

pytest.importorskip("matplotlib")

SCORE = ["score", "m.parquet", "--checkpoint", "run", "--method", "loss", "-q"]
GRADS = ["grads", "m.parquet", "--checkpoint", "run", "--method", "loss", "-q"]
TRIM = ["curate", "s.parquet", "--budget", "3", "-q"]
UNDO = ["curate", "e.parquet", "--undo", "--manifest", "c.parquet", "-q"]
RETRAIN = ["retrain", "m.parquet", "--model", "mlp:4", "--epochs", "1"]
COMMANDS: dict[str, list[str]] = {  # what writes each kind, but for the place
    "g.parquet": [*GRADS, "-o"],
    "g.csv": [*GRADS, "-o"],
    "s.parquet": [*SCORE, "-o"],
    "s.csv": [*SCORE, "-o"],
    "s.jsonl": [*SCORE, "-o"],
    "t.parquet": ["score", "m.parquet", "--checkpoint", "run", "--method", "ip", "--per-target", "-q", "-o"],
    "t.csv": ["score", "m.parquet", "--checkpoint", "run", "--method", "ip", "--per-target", "-q", "-o"],
    "c.parquet": [*TRIM, "-o"],
    "e.parquet": [*TRIM, "--edits"],
    "e.csv": [*TRIM, "--edits"],
    "e.jsonl": [*TRIM, "--edits"],
    "r.parquet": [*UNDO, "-o"],
    "i.parquet": ["manifest", "rows.csv", "-q", "-o"],
    "b.jsonl": ["curate", "s.parquet", "-q", "--write-baseline"],
    "page.html": ["evaluate", "s.parquet", "s2.parquet", "--draws", "20", "-q", "--format", "json", "--report"],
    "plot.png": ["evaluate", "s.parquet", "s2.parquet", "--draws", "20", "-q", "--format", "json", "--plot"],
    "found.json": ["evaluate", "s.parquet", "s2.parquet", "--draws", "20", "-q", "-o"],
}
KINDS = {
    "g": earlier.GRADS, "s": earlier.SCORES, "t": earlier.PER_TARGET, "c": earlier.CURATED, "e": earlier.EDITS,
    "r": earlier.RESTORED, "i": earlier.MADE, "b": earlier.BASELINE, "page": earlier.PAGE, "plot": earlier.PICTURE,
    "found": earlier.RESULT,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tabular: Path, tabular_run: Path) -> Path:
    """A folder with every kind of output, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(tabular, folder / "m.parquet")
    shutil.copytree(tabular_run, folder / "run")
    (folder / "rows.csv").write_text("id,a,label\n" + "".join(f"k{k},{k},{k % 2}\n" for k in range(12)))
    done(*SCORE, "-o", "s2.parquet", cwd=folder)
    for name, command in COMMANDS.items():
        done(*command, name, cwd=folder)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "here")
    return tmp_path / "here"


def done(*asked: Any, cwd: Path) -> Ran:
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


def refused(*asked: Any, cwd: Path, says: str) -> None:
    """The command exits 2 with three lines, and every file in the folder is as it was."""
    before = contents(cwd)
    ran = call_cli(*asked, cwd=cwd)
    assert ran.code == 2, ran.err
    assert says in ran.err
    assert "fix: " in ran.err
    assert contents(cwd) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() and not p.is_symlink() else b""
        for p in sorted(folder.rglob("*"))
    }


# ---- kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(COMMANDS))
def test_an_output_is_known_again_and_is_of_one_kind(name: str, made: Path) -> None:
    kind = KINDS[name.partition(".")[0]]
    assert earlier.kind_of(made / name) == kind
    check_outputs([Output("-o", str(made / name), kind)])
    for other in set(KINDS.values()) - {kind}:
        with pytest.raises(UsageError, match=f"is there and is no earlier {other}"):
            check_outputs([Output("-o", str(made / name), other)])


def test_every_command_may_be_run_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # a page says the minute in which it was made
    done(*COMMANDS["page.html"], "page.html", cwd=here)
    for name, command in COMMANDS.items():
        before = (here / name).read_bytes()
        done(*command, name, cwd=here)
        assert (here / name).read_bytes() == before, name


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_file_of_the_users_is_never_replaced(name: str, made: Path, tmp_path: Path) -> None:
    suffix, kind = Path(name).suffix, KINDS[name.partition(".")[0]]
    for content in (b"precious", b"id,row_key,label,score\n1,2,3,4\n", b'{"id": "a", "row_key": "b"}\n', b"{}\n"):
        (tmp_path / f"x{suffix}").write_bytes(content)
        with pytest.raises(UsageError, match="is no earlier"):
            check_outputs([Output("-o", str(tmp_path / f"x{suffix}"), kind)])
    cut = (made / name).read_bytes()[: -len((made / name).read_bytes()) // 2]
    if suffix == ".parquet":  # damaged: nobody knows what it is
        (tmp_path / "cut").write_bytes(cut)
        assert earlier.kind_of(tmp_path / "cut") is None
    (tmp_path / "empty").touch()  # as mktemp or the shell make one
    check_outputs([Output("-o", str(tmp_path / "empty"), kind)])


def test_a_table_with_a_column_of_the_users_is_the_users(here: Path) -> None:
    for name in ("s.csv", "e.csv"):
        head, *rows = (here / name).read_text().splitlines()
        (here / name).write_text("\n".join([f"{head},note", *(f"{row},mine" for row in rows)]) + "\n")
        refused(*COMMANDS[name], name, cwd=here, says="is no earlier")
    lines = [json.loads(line) for line in (here / "b.jsonl").read_text().splitlines()]
    (here / "b.jsonl").write_text("".join(json.dumps({**line, "why": "reviewed"}) + "\n" for line in lines))
    refused(*COMMANDS["b.jsonl"], "b.jsonl", cwd=here, says="is no earlier baseline")


OVER = {  # command -> a file of another kind that it is asked to replace
    "grads over the scores": [*GRADS, "-o", "s2.parquet"],
    "scores over the curated manifest": [*SCORE, "-o", "c.parquet"],
    "pairs over scores": [*COMMANDS["t.parquet"], "s.parquet"],
    "curated over the ingested manifest": [*TRIM, "-o", "i.parquet"],
    "curated over the manifest": [*TRIM, "-o", "m.parquet"],
    "edits over scores": [*TRIM, "--edits", "s2.parquet"],
    "the baseline over edits": [*COMMANDS["b.jsonl"], "e.jsonl"],
    "the baseline over the manifest": [*COMMANDS["b.jsonl"], "m.parquet"],
    "the baseline over the run": [*COMMANDS["b.jsonl"], "run/run.json"],
    "a result over a run's metrics": ["evaluate", "s.parquet", "s2.parquet", "-o", "run/metrics.json"],
    "a result over the source": ["evaluate", "s.parquet", "s2.parquet", "-o", "rows.csv"],
    "undone over the manifest": [*UNDO, "-o", "m.parquet"],
    "undone over the curated manifest": [*UNDO, "-o", "c.parquet"],
    "an ingested manifest over the curated one": ["manifest", "rows.csv", "-o", "c.parquet"],
}


@pytest.mark.parametrize("case", list(OVER))
def test_another_kind_is_not_replaced(case: str, here: Path) -> None:
    refused(*OVER[case], cwd=here, says="error: ")
    dry = [] if OVER[case][0] == "manifest" else ["-n"]
    refused(*OVER[case], *dry, cwd=here, says="error: ")


def test_a_page_and_a_picture_of_the_users_stay(here: Path) -> None:
    (here / "mine.html").write_text("<!DOCTYPE html>\n<html><head><title>mine</title></head></html>\n")
    shutil.copy(Path(__file__).parents[2] / "sample_data" / "canaries.png", here / "mine.png")
    for command, flag, name in (("evaluate", "--report", "mine.html"), ("evaluate", "--plot", "mine.png")):
        refused(command, "s.parquet", "s2.parquet", flag, name, cwd=here, says=f"{flag} '{name}' is there and is no")
    refused(*RETRAIN, "-o", "new", "--report", "mine.html", cwd=here, says="--report 'mine.html' is there")


# ---- what is read -------------------------------------------------------------------------------------------------


def test_what_is_read_is_not_replaced_by_its_own_kind_under_any_name(here: Path) -> None:
    (here / "soft.parquet").symlink_to("s.parquet")
    os.link(here / "s.parquet", here / "hard.parquet")
    (here / "deep").mkdir()
    for name in ("s.parquet", "./s.parquet", "deep/../s.parquet", str(here / "s.parquet"), "soft.parquet"):
        refused("score", "s.parquet", "-o", name, cwd=here, says="is read by this run")
    refused("score", "s.parquet", "-o", "hard.parquet", cwd=here, says="is read by this run")
    refused("score", "soft.parquet", "-o", "s.parquet", cwd=here, says="is read by this run")


READ = {
    "a manifest, read as a source": ["manifest", "i.parquet", "-o", "i.parquet"],
    "a curated manifest": ["curate", "s.parquet", "--manifest", "c.parquet", "-o", "c.parquet"],
    "a target": [*SCORE[:2], "--target", "old.parquet", "--checkpoint", "run", "-o", "old.parquet"],
    "fit rows": [
        *SCORE[:2],
        "--method",
        "ekfac",
        "--fit-rows",
        "old.parquet",
        "--checkpoint",
        "run",
        "-o",
        "old.parquet",
    ],
    "a table that is compared": ["evaluate", "s.parquet", "--against", "found.json", "-o", "found.json"],
    "ids that are wrong": ["evaluate", "s.parquet", "--known-bad", "found.json", "-o", "found.json"],
    "a baseline": ["curate", "s.parquet", "--check", "--baseline", "b.jsonl", "--write-baseline", "b.jsonl"],
    "the settings": ["evaluate", "s.parquet", "s2.parquet", "--config", "empty.toml", "-o", "empty.toml"],
}


@pytest.mark.parametrize("case", list(READ))
def test_every_kind_of_input_is_known_as_one(case: str, here: Path) -> None:
    shutil.copy(here / "s.parquet", here / "old.parquet")
    (here / "empty.toml").touch()
    refused(*READ[case], cwd=here, says="is read by this run")


def test_a_baseline_that_is_only_set_may_be_written_anew(here: Path) -> None:
    (here / "influence.toml").write_text('baseline = "b.jsonl"\n')
    done(*COMMANDS["b.jsonl"], "b.jsonl", cwd=here)


def test_paths_from_settings_and_the_environment_are_checked_too(here: Path) -> None:
    (here / "influence.toml").write_text('[curate]\nedits = "m.parquet"\n')
    refused(*TRIM, "-o", "new/c.parquet", cwd=here, says="--edits 'm.parquet' is")
    (here / "influence.toml").write_text('[curate]\nwrite-baseline = "m.parquet"\n')
    refused("curate", "s.parquet", cwd=here, says="--write-baseline 'm.parquet' is")
    (here / "influence.toml").unlink()
    before = contents(here)
    ran = call_cli("curate", "s.parquet", cwd=here, env={"INFLUENCE_WRITE_BASELINE": "m.parquet"})
    assert ran.code == 2
    assert contents(here) == before


def test_a_folder_that_is_read_gets_no_new_part(here: Path) -> None:
    (here / "parts").mkdir()
    shutil.copy(here / "m.parquet", here / "parts" / "0.parquet")
    shutil.copy(here / "s.parquet", here / "parts" / "old.parquet")
    asked = ["score", "parts", "--method", "random", "-o"]
    refused(*asked, "parts/s.parquet", cwd=here, says="would become a part of what this run reads")
    refused(*asked, "parts/old.parquet", cwd=here, says="is read by this run")
    (here / "parts" / "old.parquet").unlink()
    for name in ("parts/s.csv", "parts/s.jsonl", "parts/.s.parquet"):  # which are not read
        for _ in range(2):
            done(*asked, name, cwd=here)
    (here / "parts" / "link.parquet").symlink_to("../s.parquet")
    refused(*asked, "s.parquet", cwd=here, says="is read by this run")


def test_the_first_table_in_a_folder_is_refused_as_the_second_is(here: Path) -> None:
    """A folder of images with one Parquet file in it is read as Parquet, and its images are not."""
    for name in ("a", "b"):
        (here / "photos" / name).mkdir(parents=True)
        for k in range(8):
            (here / "photos" / name / f"{k}.png").write_bytes(png(np.full((4, 4, 3), 20 * k, np.uint8)))
    asked = ["manifest", "photos", "-q", "-o"]
    for place in ("photos/m.parquet", "photos/a/m.parquet", "photos/new/m.parquet"):
        for _ in range(2):
            refused(*asked, place, cwd=here, says="would become a part of what this run reads")
    with pytest.raises(UsageError, match="would become a part"):
        influence_cli.manifest(str(here / "photos"), str(here / "photos" / "m.parquet"))
    for _ in range(2):
        done(*asked, "p.parquet", cwd=here)
        done(*asked, "photos/.m.parquet", cwd=here)  # which is passed over
        done(*SCORE, "-o", "run/s.parquet", cwd=here)  # no table of a checkpoint's folder is read
        done(*SCORE, "-o", "run/t.parquet", cwd=here)
    done(*TRIM, "--export", "saved", "--export-as", "huggingface", "-o", "x.parquet", cwd=here)
    for _ in range(2):
        done("manifest", "saved", "-q", "-o", "saved/m.parquet", cwd=here)  # Arrow files are read there


def test_nothing_is_written_into_the_store(here: Path) -> None:
    for name in (".influence/s.parquet", ".influence/new/s.parquet", "x/../.influence/s.csv"):
        refused(*SCORE, "-o", name, cwd=here, says="is inside of the store")
    refused("evaluate", "s.parquet", "--store", "st", "--report", "st/r.html", cwd=here, says="inside of the store")
    (here / "other").mkdir()
    (here / "other" / "influence-store").write_text("influence store\nIt says so itself.\n")
    refused(*TRIM, "-o", "other/new/c.parquet", cwd=here, says="inside of the store")
    refused(*TRIM, "--export", "other/out", "--export-as", "csv", cwd=here, says="")
    refused(*RETRAIN, "-o", "other/run", cwd=here, says="inside of the store")


def test_two_outputs_of_a_run_are_two_files(here: Path) -> None:
    (here / "deep").mkdir()
    for one, other in (("x.parquet", "./x.parquet"), ("x.parquet", "deep/../x.parquet")):
        refused(*TRIM, "-o", one, "--edits", other, cwd=here, says="one file")
        refused(*TRIM, "-o", one, "--export", other, "--export-as", "folder", cwd=here, says="are both")
    refused("evaluate", "s.parquet", "-o", "r.html", "--report", "./r.html", cwd=here, says="same name")


# ---- run folders --------------------------------------------------------------------------------------------------


def test_a_run_folder_is_replaced_by_its_own_recipe_alone(here: Path) -> None:
    done(*RETRAIN, "-o", "own", cwd=here)
    done(*RETRAIN, "-o", "own", "--seeds", "2", cwd=here)  # the same recipe
    for more in (["--lr", "0.3"], ["--model", "mlp:5"], ["--optimizer", "adamw"], ["--init", "run"]):
        refused(*RETRAIN, "-o", "own", *more, cwd=here, says="of another recipe")
        refused(*RETRAIN, "-o", "own", *more, "-n", cwd=here, says="of another recipe")


def test_a_folder_with_other_content_is_no_run_folder(here: Path) -> None:
    (here / "photos").mkdir()
    (here / "photos" / "a.png").write_bytes(b"mine")
    refused(*RETRAIN, "-o", "photos", cwd=here, says="is no run folder: it holds a.png")
    refused(*RETRAIN, "-o", "rows.csv", cwd=here, says="it is no folder")
    refused(*RETRAIN, "-o", "/dev/null", cwd=here, says="it is no folder")
    refused(*RETRAIN, "-o", ".", cwd=here, says="is no run folder")
    for content in ("{}", "not json", '{"model": "theirs", "recipe": {}}'):
        (here / "photos" / "run.json").write_text(content)
        refused(*RETRAIN, "-o", "photos", cwd=here, says="is no earlier run of influence")
    (here / "photos" / "arms").mkdir()
    (here / "photos" / "run.json").unlink()
    (here / "photos" / "a.png").rename(here / "photos" / "arms" / "a.png")
    refused(*RETRAIN, "-o", "photos", cwd=here, says="is no run folder: it holds arms")
    (here / "nothing").mkdir()
    done(*RETRAIN, "-o", "nothing", cwd=here)


def test_a_run_that_is_read_is_not_replaced(here: Path) -> None:
    done(*RETRAIN, "-o", "own", cwd=here)
    for init in ("own", "own/model.safetensors", "./own"):
        refused(*RETRAIN, "-o", "own", "--init", init, cwd=here, says="is read by this run")
    refused(*RETRAIN, "-o", "own", "--canaries", "10%", "--canaries-from", "own", cwd=here, says="is read by this run")
    (here / "own" / "model.safetensors").write_bytes(b"mine")
    refused(*RETRAIN, "-o", "own", cwd=here, says="model.safetensors in -o 'own' is no earlier output")


# ---- from Python --------------------------------------------------------------------------------------------------


def test_the_library_refuses_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    before = contents(here)
    for call in (
        lambda: influence_cli.curate("s.parquet", output="m.parquet"),
        lambda: influence_cli.curate(pq.read_table("s.parquet"), output="i.parquet"),
        lambda: influence_cli.curate("s.parquet", manifest="c.parquet", output="c.parquet"),
        lambda: influence_cli.manifest("rows.csv", "m.parquet"),
        lambda: influence_cli.manifest("i.parquet", "i.parquet"),
        lambda: influence_cli.retrain("m.parquet", "run", model="mlp:9"),
        lambda: influence_cli.retrain("m.parquet", "rows.csv", model="mlp:4"),
    ):
        with pytest.raises(UsageError, match=r"is there and is no|is read by|of another recipe|is no folder"):
            call()
    assert contents(here) == before


def test_a_manifest_of_rows_in_memory_is_known_again(tmp_path: Path) -> None:
    table = feature_table(examples())
    for _ in range(2):
        influence_cli.manifest(table, str(tmp_path / "m.parquet"))
    assert earlier.kind_of(tmp_path / "m.parquet") == earlier.MADE
    assert pq.read_schema(tmp_path / "m.parquet").metadata.keys() == {b"classes", b"influence.columns"}  # no mark


# ---- how places are tried, and what is no file ----------------------------------------------------------------------


def test_no_file_beside_an_output_is_touched(here: Path) -> None:
    for name in ("s.parquet.probe", ".s.parquet.probe", "s.parquet.tmp"):
        (here / name).write_text("precious")
    done(*SCORE, "-o", "s.parquet", cwd=here)
    assert all((here / n).read_text() == "precious" for n in ("s.parquet.probe", ".s.parquet.probe", "s.parquet.tmp"))


def test_a_place_that_cannot_be_is_refused_and_nothing_is_created(here: Path) -> None:
    long = "x" * 300
    for name in (f"{long}.parquet", f"new/{long}/s.parquet", "rows.csv/s.parquet", "rows.csv/new/s.parquet"):
        refused(*SCORE, "-o", name, cwd=here, says=f"cannot write -o '{name}'")
    (here / "a.parquet").symlink_to("b.parquet")
    (here / "b.parquet").symlink_to("a.parquet")
    refused(*SCORE, "-o", "a.parquet", cwd=here, says="cannot write -o 'a.parquet'")
    refused(*SCORE, "-o", "new/deep/x.xlsx", cwd=here, says="unknown suffix")
    refused(*SCORE, "-o", "new.parquet/", cwd=here, says="it names a folder")
    (here / "folder").mkdir()
    refused("evaluate", "s.parquet", "s2.parquet", "-o", "folder", cwd=here, says="it is a folder")
    name = "é" * 120 + ".parquet"  # 248 of 255 bytes: it can be written, and so can what it is written by
    done(*SCORE, "-o", name, cwd=here)


def test_a_link_stays_and_what_it_points_to_is_written(here: Path) -> None:
    (here / "there").mkdir()
    (here / "link.parquet").symlink_to("there/s.parquet")  # nothing is there yet
    for _ in range(2):
        done(*SCORE, "-o", "link.parquet", cwd=here)
    assert (here / "link.parquet").is_symlink()
    assert pq.read_table(here / "there" / "s.parquet").equals(pq.read_table(here / "s.parquet"))
    (here / "mine.parquet").symlink_to("m.parquet")
    refused(*SCORE, "-o", "mine.parquet", cwd=here, says="is read by this run")


def test_a_device_and_a_pipe_are_written_through(here: Path) -> None:
    (here / "null.csv").symlink_to("/dev/null")
    os.mkfifo(here / "pipe.jsonl")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((here / "pipe.jsonl").read_bytes()))
    reader.start()
    done(*SCORE, "-o", "pipe.jsonl", cwd=here)
    reader.join(10)
    assert read == [(here / "s.jsonl").read_bytes()]
    assert stat.S_ISFIFO(os.stat(here / "pipe.jsonl").st_mode)
    done(*SCORE, "-o", "null.csv", cwd=here)
    done(*COMMANDS["b.jsonl"], "/dev/null", cwd=here)
    done("evaluate", "s.parquet", "s2.parquet", "--draws", "20", "-o", "/dev/null", cwd=here)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_full_disk_is_the_machines(here: Path) -> None:
    (here / "full.parquet").symlink_to("/dev/full")
    (here / "full.html").symlink_to("/dev/full")
    for asked in ([*SCORE, "-o", "full.parquet"], [*COMMANDS["page.html"], "full.html"]):
        ran = call_cli(*asked, cwd=here)
        assert (ran.code, ran.err.splitlines()[0]) == (3, "error: the disk is full")
        assert "in: full" in ran.err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 3, "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 3, "the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 3, "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied"), 2, "Permission denied"),
    ],
)
def test_an_error_of_writing_names_the_path_and_leaves_nothing(
    error: Exception, code: int, says: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    before = contents(here)
    monkeypatch.setattr("influence_cli.data.write_tables.write_sealed", fail)
    ran = call_cli(*SCORE, "-o", "new.parquet", cwd=here)
    assert ran.code == code
    assert says in ran.err
    assert "new.parquet" in ran.err
    assert {k: v for k, v in contents(here).items() if not k.startswith(".influence")} == {
        k: v for k, v in before.items() if not k.startswith(".influence")
    }


def test_what_came_since_the_check_is_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "s.parquet"
    check_outputs([Output("-o", str(place), earlier.SCORES)])
    write(pa.table({"mine": [1]}), place)
    with pytest.raises(UsageError, match="is no earlier score table"), writing(place, earlier.SCORES):
        pass
    assert pq.read_table(place).column_names == ["mine"]
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]
