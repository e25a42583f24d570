"""SIGKILL at 20 seeded moments of ``grads`` and ``score``: nothing is wrong afterwards, and what was finished is kept.

A moment is a batch that was computed, a file half written, a file before its rename, or a file after it.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from influence_cli.settings import GradSpec
from influence_cli.stages.run.plan import missing_work
from influence_cli.store.files import read_tensors
from tests.cases import call_cli, column, job_of, run_process

KILLS = 20
METHODS = ("ip", "ip-ensemble")
FLAGS = ("--method", "ip", "--method", "ip-ensemble", "--set", "ip-ensemble.members=2", "--batch-size", "9")
SPEC = GradSpec(METHODS, options={"ip-ensemble": {"members": "2"}})

CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from influence_cli.cli.main import run
from influence_cli.engines import point
from influence_cli.settings import Runtime

torch.set_num_threads(1)
Runtime.__init__.__defaults__ = (*Runtime.__init__.__defaults__[:-1], 20)  # rows a shard

class Moments:
    def __init__(self, at):
        self.at, self.seen = at, 0

    def passed(self):
        self.seen += 1
        if self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

def watch(moments):
    outputs, replace, write = point.Point.outputs, os.replace, Path.write_bytes

    def counted_outputs(*given, **named):
        out = outputs(*given, **named)
        moments.passed()
        return out

    def counted_replace(*given, **named):
        moments.passed()
        replace(*given, **named)
        moments.passed()

    def counted_write(path, data):
        with open(path, "wb") as handle:
            handle.write(data[: len(data) // 2])
            handle.flush()
            moments.passed()
            handle.write(data[len(data) // 2 :])

    point.Point.outputs, os.replace, Path.write_bytes = counted_outputs, counted_replace, counted_write

def child(arguments, at):
    moments = Moments(at)
    watch(moments)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    code = run(arguments)
    print(moments.seen if code == 0 else -code)
    sys.stdout.flush()
    os._exit(0)

for line in sys.stdin:
    at, *arguments = line.rstrip("\\n").split("\\t")
    pid = os.fork()
    if pid == 0:
        child(arguments, int(at))
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        print("signal", os.WTERMSIG(status))
    sys.stdout.flush()
"""


def shards(store: Path) -> dict[Path, tuple[int, bytes]]:
    """Every whole file of the store, with its time of change and its bytes."""
    return {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.rglob("*.safetensors") if not p.name.startswith(".")
    }


def run_children(folder: Path, lines: list[tuple[int, list[str]]]) -> list[str]:
    """What each run printed: the number of its moments, or the signal that ended it."""
    stdin = "\n".join("\t".join([str(at), *arguments]) for at, arguments in lines) + "\n"
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = run_process([sys.executable, "-c", CHILD], folder, env, stdin.encode())
    assert done.code == 0, done.err
    return done.text.splitlines()


@pytest.mark.parametrize("stage", ["grads", "score"])
def test_a_run_that_is_killed_at_any_moment_is_continued_by_the_same_command(
    stage: str, tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    def asked(store: str) -> list[str]:
        return [stage, str(digits), "--checkpoint", str(digits_run), *FLAGS, "--store", store, "-o", f"{store}.parquet"]

    (moments,) = run_children(tmp_path, [(0, asked("whole"))])
    total = int(moments)
    assert total > 60
    rng = np.random.default_rng({"grads": 11, "score": 12}[stage])
    at = sorted(rng.choice(np.arange(1, total + 1), KILLS, replace=False).tolist())
    ended = run_children(tmp_path, [(k, asked(f"killed-{k}")) for k in at])
    assert ended == [f"signal {int(signal.SIGKILL)}"] * KILLS
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
        again = call_cli(*asked(str(store)), cwd=tmp_path)
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
        scored = call_cli(*score, "--store", store, "-o", "t.parquet", cwd=tmp_path)
        assert scored.code == 0, scored.err
        found = pq.read_table(tmp_path / "t.parquet")
        for name in ("score", "score_ip_utility", "score_ip-ensemble_utility"):
            a, b = column(found, name), column(expected, name)
            assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
        plan = call_cli(*score, "--store", store, "-n", cwd=tmp_path)
        assert json.loads(plan.out)["rows_to_compute"] == 0
    assert kept_some >= KILLS // 2


def test_row_gradients_and_factors_that_are_killed_at_any_moment_are_continued(
    tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    about = [str(digits), "--checkpoint", str(digits_run), "--params", "last", "--batch-size", "9"]

    def asked(store: str) -> list[str]:
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

    (moments,) = run_children(tmp_path, [(0, asked("whole"))])
    expected = results("whole")
    rng, last = np.random.default_rng(13), int(moments) * 9 // 10  # row gradients are written at the end
    at = rng.choice(np.arange(1, last), 5, replace=False).tolist()
    at = sorted([*at, *rng.choice(np.arange(last, int(moments) + 1), 3, replace=False).tolist()])
    ended = run_children(tmp_path, [(k, asked(f"killed-{k}")) for k in at])
    assert ended == [f"signal {int(signal.SIGKILL)}"] * len(at)
    kept = 0
    for k in at:
        store = tmp_path / f"killed-{k}"
        before = shards(store)
        for path in before:
            read_tensors(path)  # whole, or not there
        again = call_cli(*asked(str(store)), cwd=tmp_path)
        assert again.code == 0, again.err
        after = shards(store)
        kept += any(path.parts[len(store.parts)] == "gradients" for path in before)
        for path, (_, content) in before.items():
            assert after[path][1] == content
        for a, b in zip(results(str(store)), expected, strict=True):
            assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()
    assert kept >= 2
