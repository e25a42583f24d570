"""SIGKILL at seeded moments of ``grads`` and ``score``: nothing is wrong afterwards, and what was finished is kept.

A moment is a batch that was computed, a file half written, a file before its rename, or a file after it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from influence_cli.cli.main import run
from influence_cli.engines import point
from influence_cli.settings import GradSpec, Runtime
from influence_cli.store.tensors import read_tensors
from tests.cases import call_cli, column, environment, job_of, so_many
from tests.opened import missing_work

KILLS = so_many(20, 8)
METHODS = ("ip", "ip-ensemble")
FLAGS = ("--method", "ip", "--method", "ip-ensemble", "--set", "ip-ensemble.members=2", "--batch-size", "9")
SPEC = GradSpec(METHODS, options={"ip-ensemble": {"members": "2"}})


class Moments:
    """Counts the moments of this process, and kills it at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def passed(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def watch(moments: Moments) -> None:
    """Have this process, which is a fork of its own, pass its moments."""
    outputs, replace = point.Point.outputs, os.replace

    def counted_outputs(*given: Any, **named: Any) -> Any:
        out = outputs(*given, **named)
        moments.passed()
        return out

    def counted_replace(*given: Any, **named: Any) -> None:
        moments.passed()
        replace(*given, **named)
        moments.passed()

    def counted_write(path: Path, data: bytes) -> None:
        with open(path, "wb") as handle:
            handle.write(data[: len(data) // 2])
            handle.flush()
            moments.passed()
            handle.write(data[len(data) // 2 :])

    point.Point.outputs, os.replace, Path.write_bytes = counted_outputs, counted_replace, counted_write  # type: ignore


def told(at: int, arguments: list[str]) -> str:
    """What a run in a fork gives: how many moments it had, an error's exit code, or the signal that ended it."""
    moments, ends = Moments(at), os.pipe()
    if (pid := os.fork()) == 0:
        try:
            watch(moments)
            code = run(arguments)
            os.write(ends[1], str(moments.seen if code == 0 else -code).encode())
        finally:
            os._exit(0)
    os.close(ends[1])
    _, status = os.waitpid(pid, 0)
    with os.fdopen(ends[0]) as said:
        return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said.read()


def serve(asked: IO[str], said: IO[str], errors: Path) -> None:
    """Be the process that runs are forks of; a run that is no fork imports what they need."""
    for stream, place in ((0, os.devnull), (1, os.devnull), (2, errors)):
        os.dup2(os.open(place, os.O_RDWR | os.O_CREAT), stream)
    sys.stdin, sys.stdout, sys.stderr = (open(k, mode, closefd=False) for k, mode in enumerate("rww"))  # noqa: SIM115
    changed = environment()
    os.environ.clear()
    os.environ.update(changed)
    torch.set_num_threads(1)
    Runtime.__init__.__defaults__ = (*Runtime.__init__.__defaults__[:-1], 20)  # type: ignore[misc]  # rows a shard
    for line in asked:
        at, *arguments = line.rstrip("\n").split("\t")
        if at == "here":
            assert run(arguments) == 0
        said.write("done\n" if at == "here" else told(int(at), arguments) + "\n")
        said.flush()


def shards(store: Path) -> dict[Path, tuple[int, bytes]]:
    """Every whole file of the store, with its time of change and its bytes."""
    return {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.rglob("*.safetensors") if not p.name.startswith(".")
    }


class Runs:
    """A fork of this process, which has imported all that a run needs; every run is a fork of it, and may be killed."""

    def __init__(self, folder: Path) -> None:
        self.errors = folder / "errors.txt"
        asks, says = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(asks[1])
            try:
                os.chdir(folder)
                serve(os.fdopen(asks[0]), os.fdopen(says[1], "w"), self.errors)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(asks[0])
        os.close(says[1])
        self.asks, self.says = os.fdopen(asks[1], "w"), os.fdopen(says[0])

    def run(self, at: int | str, arguments: list[str]) -> str:
        """What a run that is killed at its moment ``at`` (0: never) gives: how many moments it had, or its signal."""
        self.asks.write("\t".join([str(at), *arguments]) + "\n")
        self.asks.flush()
        said = self.says.readline()
        assert said, self.errors.read_text()
        return said.rstrip("\n")

    def whole(self, asked: Callable[[str], list[str]]) -> int:
        """The moments of a whole run into the store ``whole``, after one that only imports."""
        assert self.run("here", asked("imports")) == "done"
        return int(self.run(0, asked("whole")))

    def close(self) -> None:
        self.asks.close()
        assert os.waitpid(self.pid, 0)[1] == 0
        self.says.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The process that all of this file's runs are forks of."""
    started = Runs(tmp_path_factory.mktemp("runs"))
    yield started
    started.close()


@pytest.mark.parametrize("stage", ["grads", "score"])
def test_a_run_that_is_killed_at_any_moment_is_continued_by_the_same_command(
    stage: str, tmp_path: Path, digits: Path, digits_run: Path, runs: Runs
) -> None:
    def asked(name: str) -> list[str]:
        about, store = [str(digits), "--checkpoint", str(digits_run), *FLAGS], str(tmp_path / name)
        return [stage, *about, "--store", store, "-o", f"{store}.parquet"]

    total = runs.whole(asked)
    assert total > 60
    rng = np.random.default_rng({"grads": 11, "score": 12}[stage])
    ends = np.linspace(1, total + 1, KILLS + 1).astype(int).tolist()  # a moment in every part of the run
    at = [int(rng.integers(*part)) for part in itertools.pairwise(ends)]
    for k in at:
        assert runs.run(k, asked(f"killed-{k}")) == f"signal {int(signal.SIGKILL)}"
    score = ("score", digits, "--checkpoint", digits_run, *FLAGS)
    whole = call_cli(*score, "--store", "whole", "-o", "s.parquet", cwd=tmp_path)
    assert whole.code == 0, whole.err
    expected = pq.read_table(tmp_path / "s.parquet")
    kept_some = 0
    for k in at:
        store = tmp_path / f"killed-{k}"
        before = shards(store)
        for path, _ in before.items():
            read_tensors(path)  # whole, or not there
        table = tmp_path / f"killed-{k}.parquet"
        assert not table.exists() or pq.read_table(table).num_rows == 200
        planned = sum(w.rows for w in missing_work(job_of(digits, digits_run, store, spec=SPEC)))
        again = call_cli(*asked(store.name), cwd=tmp_path)
        assert again.code == 0, again.err
        after = shards(store)
        for path, (changed, content) in before.items():
            assert after[path][1] == content
            # a direction's pass gives two files: killed between them, it is run again and gives the same bytes
            assert after[path][0] == changed or path.parent.name == "directions", "a finished shard was written again"
        new = [p for p in after if p not in before and p.parent.parent.name == "outputs"]
        rows = sum(len(read_tensors(p)[0]["keys"]) for p in new)
        kept_some += planned < 600
        assert rows <= planned
        if stage == "grads":
            table = tmp_path / "t.parquet"
            scored = call_cli(*score, "--store", store, "-o", table, cwd=tmp_path)
            assert scored.code == 0, scored.err
        found = pq.read_table(table)
        for name in ("score", "score_ip_utility", "score_ip-ensemble_utility"):
            a, b = column(found, name), column(expected, name)
            assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
        plan = call_cli(*score, "--store", store, "-n", cwd=tmp_path)
        assert json.loads(plan.out)["rows_to_compute"] == 0
    assert kept_some >= KILLS // 2


def test_row_gradients_and_factors_that_are_killed_at_any_moment_are_continued(
    tmp_path: Path, digits: Path, digits_run: Path, runs: Runs
) -> None:
    about = [str(digits), "--checkpoint", str(digits_run), "--params", "last", "--batch-size", "9"]

    def asked(name: str) -> list[str]:
        store = str(tmp_path / name)
        return ["grads", *about, "--method", "ekfac", "--rows", "full", "--store", store, "-o", f"{store}.parquet"]

    def results(store: str) -> list[np.ndarray]:
        scored = call_cli("score", *about, "--method", "ekfac", "--store", store, "-o", "s.parquet", cwd=tmp_path)
        assert scored.code == 0, scored.err
        flags = ("--per-target", "--top", "3", "--rows", "full", "--store", store, "-o", "p.parquet")
        of_targets = call_cli("score", *about, *flags, cwd=tmp_path)
        assert of_targets.code == 0, of_targets.err
        plan = json.loads(call_cli(*asked(store), "-n", cwd=tmp_path).out)
        assert plan["rows_to_compute"] == 0
        assert all(entry["rows_to_compute"] == 0 for entry in plan["row_gradients"])
        return [column(pq.read_table(tmp_path / name), "score") for name in ("s.parquet", "p.parquet")]

    moments = runs.whole(asked)
    expected = results("whole")
    rng, last = np.random.default_rng(13), moments * 9 // 10  # row gradients are written at the end
    at = rng.choice(np.arange(1, last), so_many(5, 1), replace=False).tolist()
    at = sorted([*at, *rng.choice(np.arange(last, moments + 1), 3, replace=False).tolist()])
    for k in at:
        assert runs.run(k, asked(f"killed-{k}")) == f"signal {int(signal.SIGKILL)}"
    kept = 0
    for k in at:
        store = tmp_path / f"killed-{k}"
        before = shards(store)
        for path in before:
            read_tensors(path)  # whole, or not there
        again = call_cli(*asked(store.name), cwd=tmp_path)
        assert again.code == 0, again.err
        after = shards(store)
        kept += any(path.parts[len(store.parts)] == "gradients" for path in before)
        for path, (_, content) in before.items():
            assert after[path][1] == content
        for a, b in zip(results(store.name), expected, strict=True):
            assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
    assert kept >= 2
