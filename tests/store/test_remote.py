"""Addresses: the pipeline from and to an S3 server, connections that drop, and no credential anywhere.

python -m pytest tests/store/test_remote.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file

from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.retrain import training_run
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.score import score
from influence_cli.store import mirror, putting, remote
from influence_cli.store.putting import put
from influence_cli.store.remote import fetched
from tests.cases import call_cli, column, environment, run_python
from tests.served import (
    BUCKET,
    KEY,
    SECRET,
    cut_off,
    everything_below,
    google_server,
    hub_server,
    s3_environment,
    s3_server,
)
from tests.served import (
    asking_afresh as asking,
)
from tests.torchrun import torchrun


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def here(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process, as one that may ask the server."""
    with asking(endpoint, monkeypatch):
        yield endpoint


def address(name: str) -> str:
    return f"s3://{BUCKET}/{name}"


def test_the_pipeline_from_and_to_the_server_says_what_it_says_here_and_keeps_no_credential(
    here: str, digits: Path, digits_run: Path, scored: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "rows.csv"
    raw.write_text("a,b,label\n" + "".join(f"{k % 7},{k % 5},{('no', 'yes')[k % 2]}\n" for k in range(60)))
    for path, name in ((raw, "raw/rows.csv"), (digits, "digits.parquet")):
        put(path, address(name))
    for path, data in everything_below(digits_run):
        (copy := tmp_path / "copy").write_bytes(data)
        put(copy, address(f"RUN/{path.relative_to(digits_run)}"))
    work = tmp_path / "work"
    work.mkdir()
    env = environment(s3_environment(here))
    commands = [
        ("manifest", address("raw/rows.csv"), "-o", address("rows.parquet")),
        ("score", address("digits.parquet"), "--checkpoint", address("RUN"), "--method", "ip",
         "-o", address("s.parquet")),
        ("curate", address("s.parquet"), "--budget", "5%", "--edits", address("e.csv"), "-o", address("clean.parquet"),
         "--report", address("page.html")),
    ]  # fmt: skip
    said = [call_cli(*command, cwd=work, env=env) for command in commands]
    assert [ran.code for ran in said] == [0, 0, 0], [ran.err for ran in said]
    made = {
        name: fetched(address(name)) for name in ("rows.parquet", "s.parquet", "e.csv", "clean.parquet", "page.html")
    }
    table = pq.read_table(made["s.parquet"])
    assert np.allclose(column(table), column(pq.read_table(scored)), rtol=0, atol=1e-6 * np.abs(column(table)).max())
    told = provenance(table.schema)
    assert (told["manifest"]["locator"], told["checkpoint"]["locator"]) == (address("digits.parquet"), address("RUN"))
    assert pq.read_table(made["rows.parquet"]).num_rows == 60
    assert pq.read_table(made["clean.parquet"]).num_rows == 310
    secrets = (KEY.encode(), SECRET.encode())
    for path, data in everything_below(work, *(path.parent for path in made.values())):
        assert not any(secret in data for secret in secrets), path
    assert not any(s.decode() in ran.text + ran.err for ran in said for s in secrets)

    again = call_cli(*commands[1], cwd=work, env=env)  # an earlier output of its kind is replaced, nothing else is
    other = call_cli(*commands[1][:-1], address("raw/rows.csv"), cwd=work, env=env)
    assert (again.code, other.code) == (0, 2)
    assert "raw/rows.csv" in other.err


def test_a_connection_that_drops_is_made_again_and_costs_the_part_in_hand(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).bytes(900_000)
    (file := tmp_path / "large").write_bytes(data)
    monkeypatch.setattr(remote, "PART", 1 << 18)
    with asking(endpoint, monkeypatch):
        put(file, address("large"))
    with cut_off(endpoint, cuts=2, after=100_000) as proxy, asking(proxy, monkeypatch):
        assert fetched(address("large")).read_bytes() == data


def test_a_server_that_is_gone_is_an_error_that_says_what_to_do_and_leaves_nothing_half_written(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "f").write_bytes(b"x" * 1000)
    monkeypatch.setattr(remote, "TRIES", 2)

    def cut(*_: object) -> None:
        raise OSError(f"connection dropped while {SECRET} was sent")

    monkeypatch.setattr(putting, "_put", cut)
    with pytest.raises(UsageError, match=r"cannot write it .connection dropped while \*\*\* was sent") as caught:
        put(file, address("gone"))
    kept = Path(caught.value.fix.rpartition(" ")[2])
    assert kept.read_bytes() == b"x" * 1000
    kept.unlink()
    with pytest.raises(UsageError, match="no such file"):
        fetched(address("gone"))


def test_a_folder_is_all_files_below_it_and_what_has_changed_is_fetched_again(here: str, tmp_path: Path) -> None:
    for name in ("a.txt", "deep/b.txt"):
        (file := tmp_path / "f").write_text(name)
        put(file, address(f"folder/{name}"))
    root = fetched(address("folder"))
    assert {str(p.relative_to(root)) for p, _ in everything_below(root)} == {"a.txt", "deep/b.txt"}
    file.write_text("A.txt")
    put(file, address("folder/a.txt"))
    assert (fetched(address("folder")) / "a.txt").read_text() == "A.txt"
    assert remote.called(root / "deep" / "b.txt") == address("folder/deep/b.txt")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (f"s3://{KEY}:{SECRET}@{BUCKET}/x", "with credentials"),
        (f"s3://{BUCKET}/x?token={SECRET}", "a query"),
        ("ftp://host/x", "ftp:// are not known"),
        ("s3://bucket", "no whole address"),
        ("hf://models/x/y", "no whole address"),
    ],
)
def test_addresses_that_cannot_be_meant_are_refused_and_not_repeated_where_they_hold_secrets(
    place: str, says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        fetched(place)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("score", "{digits}", "--method", "random", "-o", "s3://no-such-bucket/s.parquet"), "no such bucket"),
        (
            ("score", "{digits}", "--method", "random", "-o", "hf://datasets/a/b/s.parquet"),
            "nothing is written to hf://",
        ),
        (("cache", "ls", "--store", "s3://no-such-bucket/store"), "no such bucket"),
        (("cache", "gc", "--store", "hf://datasets/a/b/store"), "nothing is written to hf://"),
        (
            ("score", "{digits}", "--method", "random", "--store", "s3://none/store", "-o", "s.parquet"),
            "no such bucket",
        ),
        (("retrain", "{digits}", "--model", "linear", "-o", "s3://no-such-bucket/RUN"), "no such bucket"),
        (("score", f"s3://{KEY}:{SECRET}@data/x.parquet", "--method", "random"), "with credentials"),
        (("score", "s3://data/absent.parquet", "--method", "random"), "no such file"),
    ],
)
def test_what_no_address_can_be_is_refused_before_any_work(
    command: tuple[str, ...], says: str, here: str, digits: Path, tmp_path: Path
) -> None:
    ran = call_cli(*(part.format(digits=digits) for part in command), cwd=tmp_path, env=s3_environment(here))
    assert (ran.code, says in ran.err, SECRET in ran.err) == (2, True, False), ran.err
    assert list(tmp_path.iterdir()) == []


READS_AND_MISSES = """
import sys
from influence_cli.cli.main import run
read = run(["score", sys.argv[1], "--method", "random", "-o", "s.parquet"])
sys.stderr.write("\\0")
missed = run(["score", sys.argv[1] + "x", "--method", "random"])
print(read, missed)
"""


def test_a_data_set_of_the_hub_is_read_by_its_protocol(digits: Path, tmp_path: Path) -> None:
    token = "hf_a-token-that-stands-in-no-file"
    with hub_server("someone/digits", {"train.parquet": digits.read_bytes(), "README.md": b"# digits"}) as at:
        env = {
            "HF_ENDPOINT": at, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        named = "hf://datasets/someone/digits/train.parquet"
        ran = run_python(READS_AND_MISSES, named, cwd=tmp_path, env=env)  # where its server is is read at its import
    read, missed = ran.err.split("\0")
    assert (ran.code, ran.text) == (0, "0 2\n"), ran.err
    table = pq.read_table(tmp_path / "s.parquet")
    assert (table.num_rows, provenance(table.schema)["manifest"]["locator"]) == (200, named)
    assert ("no such file" in read, "no such file" in missed) == (False, True), ran.err
    assert not any(token.encode() in data for _, data in everything_below(tmp_path))


def test_a_store_at_an_address_is_one_for_all_who_name_it_and_says_what_one_here_says(
    here: str, digits: Path, digits_run: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(s3_environment(here))
    asked = ("score", digits, "--checkpoint", digits_run, "--method", "ip", "--store", address("store"))
    first = call_cli(*asked, "-o", "first.parquet", cwd=tmp_path, env=env)
    assert first.code == 0, first.err
    monkeypatch.setattr(mirror, "_mirrors", {})  # as on another machine
    planned = call_cli(*asked, "-n", "--json", cwd=tmp_path, env=env)
    plan = json.loads(planned.text)
    assert (plan["rows_to_compute"], plan["store"]) == (0, address("store")), planned.err
    monkeypatch.setattr(mirror, "_mirrors", {})
    again = call_cli(*asked, "-o", "again.parquet", cwd=tmp_path, env=env)
    assert again.code == 0, again.err
    one, other = (pq.read_table(tmp_path / name) for name in ("first.parquet", "again.parquet"))
    assert column(one).tolist() == column(other).tolist()
    assert np.allclose(column(one), column(pq.read_table(scored)), rtol=0, atol=1e-6 * np.abs(column(one)).max())
    names = remote.names_below(address("store"))
    assert {"influence-store", "CACHEDIR.TAG"} <= names.keys()
    assert not any(part.startswith(".") or part == "claims" for name in names for part in name.split("/"))
    assert not any(SECRET.encode() in data for _, data in everything_below(fetched(address("store"))))


def test_a_damaged_file_at_an_address_is_set_aside_and_made_again(
    here: str, digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(s3_environment(here))
    asked = ("score", digits, "--checkpoint", digits_run, "--method", "ip", "--store", address("hurt"))
    assert call_cli(*asked, "-o", "first.parquet", cwd=tmp_path, env=env).code == 0
    shard = next(
        name for name in remote.names_below(address("hurt")) if name.startswith("tangents/") and "json" not in name
    )
    raw = bytearray(fetched(address(f"hurt/{shard}")).read_bytes())
    raw[-1] ^= 1
    (file := tmp_path / "shard").write_bytes(raw)
    put(file, address(f"hurt/{shard}"))
    for said in (True, False):  # what is made again is put in its place
        monkeypatch.setattr(mirror, "_mirrors", {})
        ran = call_cli(*asked, "-o", "again.parquet", cwd=tmp_path, env=env)
        assert (ran.code, "is damaged" in ran.err) == (0, said), ran.err
        one, other = (pq.read_table(tmp_path / name) for name in ("first.parquet", "again.parquet"))
        assert np.allclose(column(one), column(other), rtol=0, atol=1e-6 * np.abs(column(one)).max())


def test_what_is_no_store_is_not_written_to(here: str, digits: Path, tmp_path: Path) -> None:
    (file := tmp_path / "f").write_text("mine")
    put(file, address("others/file.txt"))
    asked = ("score", digits, "--method", "random", "-o", "s.parquet", "--store")
    ran = call_cli(*asked, address("others"), cwd=tmp_path, env=environment(s3_environment(here)))
    assert (ran.code, "no store" in ran.err) == (2, True), ran.err


SHARED = ("--method", "ip", "--batch-size", "16", "--store", address("many"))
TRAINED = ("--model", "mlp:8", "--epochs", 2, "--folds", 2, "-o")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, endpoint: str, digits: Path, digits_run: Path) -> Path:
    """A folder in which two processes of torchrun have scored with a store, and trained a run, at an address."""
    folder = tmp_path_factory.mktemp("launched")
    commands = {
        "score": ("score", digits, "--checkpoint", digits_run, *SHARED, "-o", "s.parquet"),
        "retrain": ("retrain", digits, *TRAINED, address("SHARED")),
    }
    said = torchrun(2, commands, folder, s3_environment(endpoint))
    assert not any(SECRET in one.out + one.err for one in said.values())
    return folder


def test_several_processes_share_a_store_at_an_address(
    here: str, launched: Path, digits: Path, digits_run: Path, scored: Path, tmp_path: Path
) -> None:
    table = pq.read_table(launched / "s.parquet")
    assert np.allclose(column(table), column(pq.read_table(scored)), rtol=0, atol=1e-6 * np.abs(column(table)).max())
    asked = ("score", digits, "--checkpoint", digits_run, *SHARED, "-n", "--json")
    planned = call_cli(*asked, cwd=tmp_path, env=environment(s3_environment(here)))
    assert json.loads(planned.text)["rows_to_compute"] == 0, planned.err  # shards of both are there


def test_manifests_stores_runs_tables_and_exports_at_addresses_of_googles_protocol(
    digits: Path, digits_run: Path, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_copies", {})
    with google_server() as server, mock.patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": server}):
        remote._file_system.cache_clear()
        there, env = f"gs://{BUCKET}", environment({"STORAGE_EMULATOR_HOST": server})
        put(digits, f"{there}/digits.parquet")
        asked = ("score", f"{there}/digits.parquet", "--checkpoint", digits_run, "--method", "ip")
        kept = (*asked, "--store", f"{there}/store", "-o", f"{there}/s.parquet")
        commands = [
            kept,
            ("curate", f"{there}/s.parquet", "--budget", "5%", "--export", f"{there}/out", "--export-as", "folder"),
            ("retrain", f"{there}/digits.parquet", "--model", "linear", "--epochs", 1, "-o", f"{there}/RUN"),
            ("score", digits, "--checkpoint", f"{there}/RUN", "--method", "loss", "-o", "loss.parquet"),
        ]
        ran = [call_cli(*command, cwd=tmp_path, env=env) for command in commands]
        assert [one.code for one in ran] == [0] * len(ran), [one.err for one in ran]
        table = pq.read_table(fetched(f"{there}/s.parquet"))
        exported = remote.names_below(f"{there}/out")
        monkeypatch.setattr(mirror, "_mirrors", {})
        planned = json.loads(call_cli(*kept, "-n", "--json", cwd=tmp_path, env=env).text)
    remote._file_system.cache_clear()
    assert np.allclose(column(table), column(pq.read_table(scored)), rtol=0, atol=1e-6 * np.abs(column(table)).max())
    assert planned["rows_to_compute"] == 0
    assert len(exported) > 300


def test_a_store_at_an_address_is_looked_after(
    here: str, digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(s3_environment(here))
    asked = ("score", digits, "--checkpoint", digits_run, "--method", "ip", "--store", address("kept"))
    session = Session.open(Runtime(store=address("kept"), shard_rows=12, batch_size=12))
    score(open_run(Inputs(str(digits), checkpoint=str(digits_run)), GradSpec(methods=("ip",)), session), session)
    before = {name for name in remote.names_below(address("kept")) if name.endswith(".safetensors")}

    def looked_after(*action: object) -> dict[str, Any]:
        monkeypatch.setattr(mirror, "_mirrors", {})  # as on another machine
        ran = call_cli("cache", *action, "--store", address("kept"), "--json", cwd=tmp_path, env=env)
        assert ran.code == 0, ran.err
        return json.loads(ran.text)

    entries = looked_after("ls")["entries"]
    assert sum(entry["files"] for entry in entries if entry["kind"] == "outputs") > 10
    assert looked_after("verify")["damaged"] in (0, [])
    looked_after("gc", "--keep", digits)
    after = {name for name in remote.names_below(address("kept")) if name.endswith(".safetensors")}
    assert len(after) < len(before) - 20  # shards are merged, and the old ones are there no more
    monkeypatch.setattr(mirror, "_mirrors", {})
    planned = call_cli(*asked, "-n", "--json", cwd=tmp_path, env=env)
    assert json.loads(planned.text)["rows_to_compute"] == 0, planned.err


def test_a_run_folder_at_an_address_is_scored_at_and_trained_on_and_is_that_of_a_run_here(
    here: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(s3_environment(here))
    asked = ("retrain", digits, "--model", "mlp:8", "--epochs", 2, "-o")
    made = call_cli(*asked, address("TRAINED"), cwd=tmp_path, env=env)
    assert made.code == 0, made.err
    assert f"influence score {digits} --checkpoint {address('TRAINED')} " in made.err
    assert call_cli(*asked, "RUN", cwd=tmp_path).code == 0
    here_are = {str(p.relative_to(tmp_path / "RUN")) for p, _ in everything_below(tmp_path / "RUN")}
    there = fetched(address("TRAINED"))
    assert {str(p.relative_to(there)) for p, _ in everything_below(there)} == here_are
    assert (there / "model.safetensors").read_bytes() == (tmp_path / "RUN" / "model.safetensors").read_bytes()
    assert not any(SECRET.encode() in data for _, data in everything_below(there))

    monkeypatch.setattr(mirror, "_runs", {})  # as on another machine, on which no training may be done again
    with monkeypatch.context() as without_training:
        without_training.setattr(training_run.TrainingRun, "_train", lambda *_: pytest.fail("it is trained again"))
        again = call_cli(*asked, address("TRAINED"), cwd=tmp_path, env=env)
    assert again.code == 0, again.err
    more = call_cli(*asked, address("TRAINED"), "--seeds", 2, cwd=tmp_path, env=env)
    assert more.code == 0, more.err
    assert len([n for n in remote.names_below(address("TRAINED")) if n.endswith("/run.json")]) == 2
    other = call_cli(*asked, address("TRAINED"), "--lr", 0.5, cwd=tmp_path, env=env)
    assert (other.code, f"-o '{address('TRAINED')}' holds a run of another recipe" in other.err) == (2, True), other.err
    scores = call_cli(
        "score",
        digits,
        "--checkpoint",
        address("TRAINED"),
        "--method",
        "loss",
        "-o",
        "s.parquet",
        cwd=tmp_path,
        env=env,
    )
    assert scores.code == 0, scores.err


def test_several_processes_train_a_run_at_an_address_as_they_do_one_here(
    here: str, launched: Path, digits: Path, tmp_path: Path
) -> None:
    env = environment(s3_environment(here))
    alone = call_cli("retrain", digits, *TRAINED, "ALONE", cwd=tmp_path)
    assert alone.code == 0, alone.err
    there = fetched(address("SHARED"))
    names = {str(p.relative_to(tmp_path / "ALONE")) for p, _ in everything_below(tmp_path / "ALONE")}
    assert {str(p.relative_to(there)) for p, _ in everything_below(there)} == names
    weights = [load_file(folder / "model.safetensors") for folder in (there, tmp_path / "ALONE")]
    for name, value in weights[1].items():
        assert np.allclose(weights[0][name], value, rtol=0, atol=1e-5), name
    again = call_cli("retrain", digits, *TRAINED, address("SHARED"), cwd=tmp_path, env=env)  # by one: all is trained
    assert again.code == 0, again.err
    assert "train all rows" not in again.err
    assert (fetched(address("SHARED")) / "model.safetensors").read_bytes() == (there / "model.safetensors").read_bytes()


def test_a_run_folder_whose_files_cannot_be_put_is_an_error_and_no_run_is_there(
    here: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TRIES", 2)
    put_one = putting._put

    def cut(source: Path, to: remote.Address) -> None:
        if to.path.endswith("RUN2/model.safetensors"):
            raise OSError(f"connection dropped while {SECRET} was sent")
        put_one(source, to)

    asked = ("retrain", digits, "--model", "mlp:8", "--epochs", 1, "-o", address("RUN2"))
    with monkeypatch.context() as dropping:
        dropping.setattr(putting, "_put", cut)
        ran = call_cli(*asked, cwd=tmp_path, env=environment(s3_environment(here)))
    assert (ran.code, "cannot write it" in ran.err, SECRET in ran.err) == (2, True, False), ran.err
    assert "run.json" not in remote.names_below(address("RUN2"))
    again = call_cli(*asked, cwd=tmp_path, env=environment(s3_environment(here)))
    assert again.code == 0, again.err
    assert {"run.json", "model.safetensors"} <= remote.names_below(address("RUN2")).keys()


def test_an_export_to_an_address_is_the_one_here_or_nothing(
    here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = environment(s3_environment(here))
    for k in range(12):
        folder = tmp_path / "photos" / "train" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 20 * k, np.uint8)).save(folder / f"{k}.png")
    for command in (
        ("manifest", "photos", "-o", "m.parquet"),
        ("score", "m.parquet", "--method", "random", "-o", "s.parquet"),
    ):
        assert call_cli(*command, cwd=tmp_path).code == 0
    asked = ("curate", "s.parquet", "--budget", 2, "--export")
    assert call_cli(*asked, "out", "--link", "copy", cwd=tmp_path).code == 0
    put_one = putting._put

    def cut(source: Path, to: remote.Address) -> None:
        if len(remote.names_below(address("out"))) == 3:
            raise UsageError(f"connection dropped while {SECRET} was sent")
        put_one(source, to)

    with monkeypatch.context() as dropping:
        dropping.setattr(putting, "_put", cut)
        ran = call_cli(*asked, address("out"), cwd=tmp_path, env=env)
    assert (ran.code, SECRET in ran.err) == (2, False), ran.err
    assert remote.names_below(address("out")) == {}
    ran = call_cli(*asked, address("out"), cwd=tmp_path, env=env)
    assert ran.code == 0, ran.err
    assert f"exported as folder to {address('out')}" in ran.err
    there, made = fetched(address("out")), tmp_path / "out"
    files = {str(p.relative_to(there)): data for p, data in everything_below(there)}
    assert files == {str(p.relative_to(made)): data for p, data in everything_below(made)}
    taken = call_cli(*asked, address("out"), cwd=tmp_path, env=env)
    assert (taken.code, taken.err.startswith(f"error: --export {address('out')} is there")) == (2, True), taken.err
    nowhere = call_cli(*asked, "s3://no-such-bucket/out", cwd=tmp_path, env=env)
    # asked for before anything is decided, and so before anything is said
    assert (nowhere.code, nowhere.err.startswith("error: there is no such bucket")) == (2, True), nowhere.err
    named = call_cli(*asked, address("rows.csv"), "--export-as", "csv", cwd=tmp_path, env=env)
    assert (named.code, "names images by their path" in named.err) == (2, True), named.err


@pytest.mark.parametrize(
    ("why", "times"),
    [("curlCode: 6, Could not resolve host: b.example", 1), ("the connection was reset", remote.TRIES)],
)
def test_a_first_look_is_not_repeated_where_another_would_say_the_same(
    why: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def listed(address: remote.Address) -> None:
        looked.append(address.path)
        raise OSError(why)

    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(remote, "_listed", listed)
    with pytest.raises(UsageError, match="cannot look for it"):
        fetched("s3://bucket/train.parquet")
    assert len(looked) == times
