"""Nothing but the store's own files is renamed or deleted, and no folder is taken for a store that we did not make."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import influence_cli
from influence_cli.errors import InfluenceError, StoreError, UsageError
from influence_cli.store import Store, files
from influence_cli.store.layout import MARKER, TAG, is_ours
from influence_cli.store.maintenance import collect, examine, list_entries
from influence_cli.store.place import check_place, is_marked
from tests.cases import Heard, call_cli, column, job_of, verify
from tests.opened import fill, score

HEX = "0123456789abcdef" * 2
LONG_AGO = 1_700_000_000
TAG_LINE = b"Signature: 8a477f597d28d172789f06886806bc55"


def filled(root: Path) -> Store:
    """A store with two small shards and a direction."""
    store = Store(root)
    for k in range(2):
        keys = np.random.default_rng(k).integers(0, 256, (3, 16), dtype=np.uint8)
        store.folder("outputs", "a" * 32).write(keys, {"logits": np.ones((3, 2), np.float32)})
    store.directions.write("d" * 32, {"w": np.ones(3)}, {"fit": "f" * 32})
    return store


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def put(folder: Path, *names: str) -> None:
    """Files of the user's: weights of their own, and text."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"w": np.arange(4.0)}, path)
        else:
            path.write_text("mine")
        os.utime(path, (LONG_AGO, LONG_AGO))


MINE = (
    "model.safetensors",
    f"{HEX}.safetensors",
    ".damaged-notes.txt",
    ".something.tmp",
    "notes/.damaged-x.safetensors",
    "notes/.a.safetensors.1.ab.tmp",
    "models/model.safetensors",
    "models/notes.json",
    "models/.damaged-notes.json",
    "trainings/model.safetensors",
    f"trainings/{HEX}.safetensors",
    "trainings/.damaged-mine.safetensors",
    f"trainings/.damaged-{HEX}.safetensors",
    "trainings/sub/model.safetensors",
    f"directions/{HEX}.txt",
    "outputs/spec.json",
    "outputs/myrun/model.safetensors",
    f"outputs/myrun/{HEX}.safetensors",
    f"outputs/{'a' * 32}/model.safetensors",
    f"outputs/{'a' * 32}/notes.md",
    f"outputs/{'a' * 32}/.x.1.ab.tmp",
    f"outputs/{'a' * 32}/.notes.md.1.ab.tmp",
    f"outputs/{'a' * 32}/.{HEX}.1.ab.tmp",
    f"outputs/{'a' * 32}/.damaged-{HEX}.txt",
    f"outputs/myrun/.{HEX}.safetensors.1.ab.tmp",
    "directions/.model.safetensors.1.ab.tmp",
    f"directions/.{HEX}.json.1.ab.tmp",
    "engines/.notes.json.1.ab.tmp",
    "engines/.damaged-1-mine.json",
    ".run.json.1.ab.tmp",
    f"outputs/{'a' * 32}/deep/.damaged-{HEX}.safetensors",
    f"gradients/{'b' * 32}/{HEX}.safetensors",
    f"interims/{HEX}.safetensors",
)


def test_only_files_of_the_store_are_renamed_or_deleted(tmp_path: Path) -> None:
    store = filled(tmp_path)
    put(tmp_path, *MINE)
    before = {name: (tmp_path / name).read_bytes() for name in MINE}
    heard = Heard()
    for _ in range(2):
        assert verify(tmp_path, heard)[1] == []
        done = collect(tmp_path, None, heard, fits=set())
        assert done["left_alone"] == len(MINE)
    assert store.directions.meta("d" * 32) is None  # of another fit set
    assert {name: (tmp_path / name).read_bytes() for name in MINE} == before
    said = [w for w in heard.warnings if "left alone" in w]
    assert len(said) == 4
    assert all(w.startswith(f"{len(MINE)} files that are not the store's were left alone: ") for w in said)


def test_reading_leaves_foreign_files_where_they_are(tmp_path: Path) -> None:
    store = filled(tmp_path)
    mine = [f"{kind}/{HEX}.safetensors" for kind in ("directions", "factors", "decisions", "interims", "trainings")]
    mine += [f"outputs/{'a' * 32}/{HEX}.safetensors", f"gradients/{'b' * 32}/{HEX}.safetensors"]
    mine += ["factors/model.safetensors", f"outputs/{'a' * 32}/model.safetensors"]
    put(tmp_path, *mine)
    before = everything(tmp_path)
    keys = np.zeros((1, 16), np.uint8)
    assert store.folder("outputs", "a" * 32).missing(keys).all()
    assert store.gradients("b" * 32).missing(keys).all()
    assert store.factors.known() == {}
    found = [store.directions.read(HEX), store.decisions.meta(HEX), store.interims.read(HEX), store.trainings.read(HEX)]
    assert found == [None] * 4
    assert everything(tmp_path) == before


def test_what_is_damaged_is_set_aside_first_and_removed_the_next_time(tmp_path: Path) -> None:
    store = filled(tmp_path)
    shard = next((tmp_path / "outputs").rglob("*.safetensors"))
    shard.write_bytes(b"rubbish")
    files, damaged = verify(tmp_path)
    assert (files, len(damaged)) == (3, 1)
    aside = shard.with_name(f".damaged-{shard.name}")
    assert aside.read_bytes() == b"rubbish"
    shard.write_bytes(b"again")
    verify(tmp_path)
    assert shard.with_name(f".damaged-1-{shard.name}").read_bytes() == b"again"  # nothing is written over
    assert collect(tmp_path, None)["files_removed"] == 2
    assert list(tmp_path.rglob(".damaged-*")) == []
    assert store.directions.meta("d" * 32) == {"fit": "f" * 32}


def test_rubbish_is_the_stores_by_the_name_inside(tmp_path: Path) -> None:
    store = filled(tmp_path)
    hex_shard = f"outputs/{'a' * 32}/{HEX}.safetensors"
    beside = [files._beside(tmp_path / name) for name in (f"directions/{HEX}.safetensors", hex_shard, "timings.json")]
    mine = tmp_path / "directions" / ".damaged-mine.safetensors"
    ours = tmp_path / "directions" / f".damaged-2-{HEX}.safetensors"
    for path in (*beside, mine, ours):
        path.write_bytes(b"no header can be read")
        os.utime(path, (LONG_AGO, LONG_AGO))
    assert collect(tmp_path, None)["files_removed"] == 4
    assert [path.exists() for path in (*beside, mine, ours)] == [False] * 3 + [True, False]
    assert store.directions.meta("d" * 32) is not None


def test_weights_of_a_run_are_no_file_of_the_store(tmp_path: Path, tabular_run: Path) -> None:
    """They carry metadata of ours, but not the store's."""
    filled(tmp_path)
    for name in (f"{HEX}.safetensors", "model.safetensors", f".damaged-{HEX}.safetensors"):
        (tmp_path / "trainings").mkdir(exist_ok=True)
        shutil.copyfile(tabular_run / "model.safetensors", tmp_path / "trainings" / name)
    before = everything(tmp_path / "trainings")
    assert verify(tmp_path) == (3, [])
    assert collect(tmp_path, None)["left_alone"] == 3
    assert everything(tmp_path / "trainings") == before


def test_every_flipped_bit_of_a_header_leaves_it_the_stores_or_unreadable(tmp_path: Path) -> None:
    filled(tmp_path)
    path = next((tmp_path / "outputs").rglob("*.safetensors"))
    raw = path.read_bytes()
    for position in range(8 + int.from_bytes(raw[:8], "little")):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1 << (position % 8)]) + raw[position + 1 :])
        assert is_ours(path), position


def test_links_are_not_followed_out_of_the_store(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    filled(root)
    filled(elsewhere)
    put(elsewhere, f"outputs/{'a' * 32}/.damaged-{HEX}.txt")
    (elsewhere / "outputs" / ("a" * 32) / f".damaged-{HEX}.safetensors").write_bytes(b"half")
    next((elsewhere / "outputs").rglob("[!.]*.safetensors")).write_bytes(b"rubbish")
    shutil.rmtree(root / "directions")
    (root / "directions").symlink_to(elsewhere / "directions")
    (root / "outputs" / ("c" * 32)).symlink_to(elsewhere / "outputs" / ("a" * 32))
    (root / "mine").symlink_to(elsewhere)
    before = everything(elsewhere)
    assert verify(root) == (2, [])
    assert collect(root, np.zeros((0, 16), np.uint8), fits=set())["left_alone"] == 3
    assert everything(elsewhere) == before
    (tmp_path / "link").symlink_to(root)
    assert verify(tmp_path / "link") == (0, [])


# ---- which folder is a store ----------------------------------------------------------------------------------------


def folder_of_a_user(root: Path) -> None:
    put(root, "outputs/myrun/model.safetensors", "models/notes.json")


def run_folder(root: Path) -> None:
    put(root, "run.json", "model.safetensors", f"tasks/{HEX}.json")


def weights_by_hash(root: Path) -> None:
    put(root, f"trainings/{HEX}.safetensors")


def our_files_among_others(root: Path) -> None:
    filled(root)
    (root / MARKER).unlink()
    put(root, "thesis.tex")


def our_run_in_outputs(root: Path) -> None:
    filled(root)
    (root / MARKER).unlink()
    put(root, "outputs/myrun/model.safetensors")


def other_marker(root: Path) -> None:
    put(root, MARKER, "data.csv")


FOLDERS = (
    folder_of_a_user,
    run_folder,
    weights_by_hash,
    our_files_among_others,
    our_run_in_outputs,
    other_marker,
    lambda root: put(root, "data.csv"),
    lambda root: put(root, "models/.hidden"),
    lambda root: put(root, f"engines/{HEX}.txt", "timings.json"),
    lambda root: put(root, f"models/{HEX}.json", f"arms/{HEX}/run.json"),
    lambda root: put(root, f"models/{HEX}.json", f"outputs/myrun/{HEX}.safetensors"),
    lambda root: put(root, "outputs/x.json", "timings.json"),
    lambda root: (root / "models").mkdir(parents=True),
    lambda root: (root / "data").mkdir(parents=True),
    lambda root: root.write_text("a file"),
    lambda root: root.symlink_to("nowhere"),
)


@pytest.mark.parametrize("make", FOLDERS, ids=lambda f: f.__name__)
def test_a_folder_that_is_no_store_is_refused_before_anything_is_done(
    make: Callable[[Path], None], tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    root = tmp_path / "place"
    make(root)
    before = everything(tmp_path)
    run = ("--checkpoint", tabular_run, "-o", "out.parquet")
    asked = [("cache", action) for action in ("ls", "verify", "gc")]
    asked += [
        ("grads", "--method", "ip", tabular, *run),
        ("score", "--method", "ip", tabular, *run),
        ("score", "--method", "ip", tabular, *run, "-n"),
    ]
    for command in asked:
        ran = call_cli(*command, "--store", "place", cwd=tmp_path)
        assert ran.code == 2, (command, ran.err)
        assert "place" in ran.err
        assert "--store PATH" in ran.err
    with pytest.raises(StoreError):
        influence_cli.score(str(tabular), method="ip", checkpoint=str(tabular_run), store=str(root))
    assert everything(tmp_path) == before


def test_an_empty_folder_becomes_a_store_and_is_none_to_look_after(
    tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    (tmp_path / "s").mkdir()
    for action in ("verify", "gc"):
        assert call_cli("cache", action, "--store", "s", cwd=tmp_path).code == 2
    assert list((tmp_path / "s").iterdir()) == []
    assert call_cli("cache", "ls", "--store", "s", "--json", cwd=tmp_path).json["entries"] == []
    fill(job_of(tabular, tabular_run, tmp_path / "s"))
    assert is_marked(tmp_path / "s")
    assert (tmp_path / "s" / TAG).read_bytes().startswith(TAG_LINE)
    assert call_cli("cache", "gc", "--store", "s", cwd=tmp_path).json["left_alone"] == 0


@pytest.mark.parametrize("begun", [b"", b"influence"])
def test_a_marker_that_was_begun_by_a_run_that_was_killed_is_finished(begun: bytes, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_bytes(begun)
    check_place(tmp_path)
    filled(tmp_path)
    assert is_marked(tmp_path)
    assert verify(tmp_path) == (3, [])


def test_a_store_of_an_earlier_version_stays_warm_and_is_marked(
    tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    root = tmp_path / "s"
    before = score(job_of(tabular, tabular_run, root))
    for name in (MARKER, TAG):
        (root / name).unlink()
    (root / ".gitignore").write_text("*\n")
    for note in (*root.glob("*/*.json"), root / "timings.json"):
        if note.parent.name in ("models", "engines") or note.parent == root:
            note.write_text(json.dumps(json.loads(note.read_text())["note"]))  # as it was written then
    assert len(list_entries(root)) > 0
    assert verify(root)[1] == []
    assert not is_marked(root)
    job = job_of(tabular, tabular_run, root)
    assert fill(job) == 0
    assert np.array_equal(column(score(job)), column(before))
    Store(root).write_timing("x", 1.0)
    assert is_marked(root)
    assert (root / TAG).read_bytes().startswith(TAG_LINE)
    (root / MARKER).unlink()
    assert collect(root, np.zeros((0, 16), np.uint8))["rows_dropped"] > 0
    assert is_marked(root)


def test_notes_alone_are_a_store_of_an_earlier_version(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    for k, names in enumerate(
        ([f"models/{HEX}.json"], [f"engines/{HEX}.json", f"models/{HEX}.json", "timings.json"], [f"tasks/{HEX}.json"])
    ):
        root = tmp_path / f"s{k}"
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("{}")
        (root / "outputs").mkdir()
        assert verify(root) == (0, [])
        job = job_of(tabular, tabular_run, root)
        assert fill(job) > 0
        assert is_marked(root)
    damaged = tmp_path / "d" / "directions" / f"{HEX}.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no header can be read")
    check_place(tmp_path / "d")


def test_what_does_not_belong_into_a_store_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    for k, strange in enumerate(("thesis.tex", "outputs/myrun", f"directions/{HEX}.safetensors", "timings.json")):
        root = tmp_path / f"s{k}"
        filled(root)
        (root / MARKER).unlink()
        if strange == "timings.json":
            os.mkfifo(root / strange)
        else:
            put(root, strange + ("/notes.md" if strange == "outputs/myrun" else ""))
        for action in ("ls", "gc", "verify"):
            ran = call_cli("cache", action, "--store", root, cwd=tmp_path)
            assert ran.code == 2
            assert f"a store of an earlier version, but '{strange}' in it is not the store's" in ran.err
            assert "fix: move it away" in ran.err


def test_a_pipe_in_place_of_a_file_of_the_store_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MARKER)
    with pytest.raises(StoreError, match="no store"):
        Store(tmp_path).write_timing("x", 1.0)
    (tmp_path / MARKER).unlink()
    store = filled(tmp_path)
    a = "a" * 32
    for name, read in (
        ("timings.json", lambda: store.timing("x")),
        (f"engines/{HEX}.json", lambda: store.engine_note(HEX)),
        (f"models/{HEX}.json", lambda: store.read_model_note(HEX)),
        ("undecodable.json", lambda: store.undecodable("x")),
        (f"directions/{HEX}.safetensors", lambda: store.directions.read(HEX)),
        (f"directions/{HEX}.safetensors", lambda: store.directions.meta(HEX)),
        (f"row_values/{a}/curvature.json", lambda: store.value_facts(a)),
        ("payload-files.parquet", lambda: store.file_keys().find(tmp_path / "x")),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / name)
        with pytest.raises(StoreError, match="no regular file"):
            read()
        assert verify(tmp_path) == (3, [])
        (tmp_path / name).unlink()
    (tmp_path / "outputs" / a / "spec.json").unlink()
    os.mkfifo(tmp_path / "outputs" / a / "spec.json")
    assert [e.about for e in list_entries(tmp_path) if e.kind == "outputs"] == [""]


@pytest.mark.parametrize("how", ["flag", "environment", "settings file", "settings file above", "blank"])
def test_an_empty_name_is_no_store(how: str, tmp_path: Path, tabular: Path) -> None:
    put(tmp_path, "outputs/myrun/model.safetensors")
    (tmp_path / "below").mkdir()
    (tmp_path / "influence.toml").write_text('store = ""\n' if how.startswith("settings") else "")
    flags = {"flag": ["--store", ""], "blank": ["--store", " "]}.get(how, [])
    env = {"INFLUENCE_STORE": ""} if how == "environment" else {}
    before = everything(tmp_path)
    for command in (("cache", "gc"), ("cache", "verify"), ("cache", "ls"), ("score", tabular), ("evaluate", tabular)):
        ran = call_cli(*command, *flags, cwd=tmp_path / ("below" if how.endswith("above") else ""), env=env)
        assert ran.code == 2, ran.err
        assert "the store has an empty name" in ran.err
    assert everything(tmp_path) == before


def test_an_empty_name_is_no_store_in_python(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    for store in ("", "  "):
        with pytest.raises(UsageError, match="empty name"):
            influence_cli.plan(str(tabular), method="ip", checkpoint=str(tabular_run), store=store)
    assert influence_cli.plan(str(tabular), method="ip", checkpoint=str(tabular_run), store=None)["store"].startswith(
        "temporary"
    )


def test_evaluate_refuses_a_folder_that_is_no_store(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    table = score(job_of(tabular, tabular_run, tmp_path / "s"))
    put(tmp_path / "place", "data.csv")
    with pytest.raises(InfluenceError, match="no store"):
        influence_cli.evaluate(table, store=str(tmp_path / "place"))


def test_the_commands_say_what_they_left_alone(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    put(tmp_path / "s", "notes.txt")
    for action in ("verify", "gc"):
        ran = call_cli("cache", action, "--store", "s", "--json", cwd=tmp_path)
        assert ran.code == 0, ran.err
        assert ran.json["left_alone"] == 1
        assert "1 files that are not the store's were left alone: notes.txt" in ran.err
    assert examine(tmp_path / "s").left_alone == 1
    young = tmp_path / "s" / "directions" / f".{HEX}.safetensors.{os.getpid()}.0a0b0c0d.tmp"
    young.write_bytes(b"")
    assert collect(tmp_path / "s", None)["left_alone"] == 1
    assert young.exists()
    yesterday = time.time() - 25 * 3600
    os.utime(young, (yesterday, yesterday))
    assert collect(tmp_path / "s", None)["files_removed"] == 1
