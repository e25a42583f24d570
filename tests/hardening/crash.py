"""Crashes: runs killed, or failed by the machine, between any two of their writes, and at any moment at all.

A fault point stands before and after every call that changes the disk, and in the middle of every file that is written:
``os.replace``, ``os.rename``, ``os.fsync``, ``os.unlink``, ``os.rmdir``, ``os.mkdir``, ``os.truncate``, the bytes of a
file, a table half written.  At a seeded one the run is killed, its disk is full or broken, or it is interrupted.  After
that, nothing that was whole is damaged; the same command, run again, gives what a run gives that nothing befell; and
what else is left are temporary files, which ``cache gc`` removes from a store once they are old.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import io
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from influence_cli.cli.main import run
from influence_cli.data.open import open_manifest
from influence_cli.store.keys import hex_of
from influence_cli.store.layout import CLAIM, FILE_KEYS, TIMINGS
from influence_cli.store.maintenance import examine
from influence_cli.store.ragged import unflattened
from influence_cli.store.tensors import read_tensors
from tests.hardening import scene
from tests.hardening.harness import Ended, Tally, cli, copy_of, digest, forked

SMALL_SHARDS = 8  # rows a shard, so that there are several
KINDS = ("killed", "disk full", "disk broken", "interrupted")
TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]+\.tmp(/.*)?")
OF_THIS_RUN = ("seconds", "checksum", "trainings_run_now")  # keys that say how long it took, and what was there
ROW = re.compile(r"st/(\w+)/\w+ (\w+)")  # in a shard, by its key
ONCE_MORE: dict[str, Any] = {}
COMMANDS: dict[str, tuple[Callable[[], Path], tuple[str, ...]]] = {
    "manifest": (scene.bare, ("manifest", "source.csv", "-o", "made.parquet")),
    "grads": (scene.bare, ("grads", *scene.ABOUT, *scene.METHODS[:-2], "-o", "g.parquet")),
    "score": (scene.bare, ("score", *scene.ABOUT, *scene.METHODS, "--report", "r.html", "-o", "s.parquet")),
    "score, ekfac and rows": (
        scene.bare,
        ("score", *scene.ABOUT, "--method", "ekfac", "--params", "last", "--rows", "full", "--per-target", "-o", "p.parquet"),
    ),
    "score, cg and self": (
        scene.bare,
        ("score", *scene.ABOUT, "--method", "cg", "--params", "last", "--method", "self-tracin", "-o", "s.parquet"),
    ),
    "score, bif": (scene.bare, ("score", *scene.ABOUT, *scene.BIF, "-o", "s.parquet")),
    "score, gex": (
        scene.bare, ("score", *scene.ABOUT, "--method", "gex", "--set", "gex.members=2", "-o", "s.parquet"),
    ),
    "curate": (
        scene.scored,
        ("curate", "s.parquet", "--budget", "10%", "-o", "cc.parquet", "--edits", "ee.parquet", "--report", "r.html"),
    ),
    "export": (scene.scored, ("curate", "s.parquet", "--budget", "10%", "--export", "out.csv")),
    "gate": (scene.scored, ("curate", "l.parquet", "--check", "--write-baseline", "bb.jsonl", "--max-flagged", "40", "--false-flag", "20%")),
    "retrain": (
        scene.bare, (*scene.TRAIN, "--keep-checkpoints", "2", "--folds", "2", "--record", "epochs", "-o", "again"),
    ),
    "retrain, compared": (
        scene.scored, ("retrain", "c.parquet", *scene.TRAIN[2:], "--against", "m.parquet", "-o", "compared"),
    ),
    "evaluate, lds": (
        scene.scored,
        ("evaluate", "s.parquet", "--lds", "3", *scene.TRAIN[2:], "--store", "st", "-o", "v.json"),
    ),
    "cache gc": (scene.scored, ("cache", "gc", "--store", "st", "--keep", "few.parquet")),
}  # fmt: skip


class Points:
    """Counts the fault points of a run; at the one it is armed for it does what was asked."""

    def __init__(self, at: int, kind: str, seen: Path) -> None:
        self.at, self.kind, self.count, self.seen = at, kind, 0, seen

    def passed(self, path: Any = None) -> None:
        self.count += 1
        if self.count == self.at:
            self._strike(path)

    def _strike(self, path: Any) -> None:
        if self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "interrupted":
            raise KeyboardInterrupt
        number = errno.ENOSPC if self.kind == "disk full" else errno.EIO
        raise OSError(number, os.strerror(number), None if path is None else str(path))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "truncate", "symlink"):
            setattr(os, name, self._around(getattr(os, name)))
        opened = builtins.open
        watched = functools.partial(self._open, opened)
        builtins.open = watched  # type: ignore[assignment]
        io.open = watched  # type: ignore[assignment]
        yield

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *more: Any, **named: Any) -> Any:
            self.passed(path)
            done = call(path, *more, **named)
            self.passed(path)
            return done

        return counted

    def _open(self, opened: Callable[..., Any], file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        handle = opened(file, mode, *more, **named)
        if not isinstance(file, int) and "b" in mode and set("wax+") & set(mode) and not str(file).startswith("/dev/"):
            return _Halved(handle, functools.partial(self.passed, file))
        return handle


class _Halved:
    """A file that passes a fault point in the middle of every write."""

    def __init__(self, handle: Any, passed: Callable[[], None]) -> None:
        self._handle, self._passed = handle, passed

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = len(view) // 2
        self._handle.write(view[:half])
        self._handle.flush()
        self._passed()
        self._handle.write(view[half:])
        return len(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> _Halved:
        return self

    def __exit__(self, *error: Any) -> None:
        self._handle.close()

    def __iter__(self) -> Any:
        return iter(self._handle)


def armed(arguments: tuple[str, ...], cwd: Path, at: int, kind: str, seen: Path) -> Ended:
    """The command with a fault at its point ``at`` (0: none); how many points it passed goes to the file ``seen``."""

    def work() -> int:
        points = Points(at, kind, seen)
        with points.watching():
            try:
                return run(list(arguments))
            finally:
                descriptor = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.write(descriptor, str(points.count).encode())

    return forked(work, cwd)


# ---- what a folder comes to -----------------------------------------------------------------------------------------


def snapshot(place: Path) -> dict[str, Any]:
    """All that a command leaves, by path: tensors by row, tables by column, all else by its bytes.

    A claim of a process that was killed is free, and its file goes with the temporary ones.
    """
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
        measured = path.name == TIMINGS or path.parent.name == "engines"  # engines are chosen by how long they take
        if hidden or not path.is_file() or measured or path.suffix == CLAIM or path.name in (FILE_KEYS, "spec.json"):
            continue
        if path.suffix == ".safetensors" and name.startswith("st/") and len(path.relative_to(place).parts) == 4:
            folder = "/".join(name.split("/")[:3])
            tensors = unflattened(read_tensors(path)[0])
            for k, key in enumerate(tensors["keys"]):
                found.setdefault(
                    f"{folder} {key.tobytes().hex()}", {n: v[k] for n, v in tensors.items() if n != "keys"}
                )
        elif path.suffix == ".safetensors" and name.startswith("st/"):
            found[name] = read_tensors(path)[0]
        else:
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".parquet":
        return {
            n: c.to_pylist() for n, c in zip(*(lambda t: (t.column_names, t.columns))(pq.read_table(path)), strict=True)
        }
    if path.suffix in (".html", ".png") or path.name == "metrics.json":
        return "there"  # they say when they were made, or how long it took
    if path.name in ("run.json", "v.json"):
        return {k: v for k, v in json.loads(path.read_bytes()).items() if k not in OF_THIS_RUN}
    return digest(path)


def difference(found: dict[str, Any], wanted: dict[str, Any], arguments: tuple[str, ...]) -> str | None:
    """What differs between two snapshots, in a few words; None where nothing does.

    A run gives what it gives undisturbed, to the last row of the store, but for one thing: ``gex`` that goes on may
    store outputs of target rows at a member, which one that was not stopped does not need.  No score can differ by
    them: what is stored is named by the member's weights and the row's payload, so that it is what any run would
    compute of that row and is read for no other; and every time it has to be the same (``ONCE_MORE``).
    """
    more = {name for name in found.keys() - wanted.keys() if "gex" in arguments and _of_target(name)}
    if found.keys() - more != wanted.keys():
        return f"other files or rows: {sorted((found.keys() - more) ^ wanted.keys())[:3]}"
    for name in more:
        if not _same(found[name], ONCE_MORE.setdefault(name, found[name])):
            return f"{name}, which is not wanted, differs from an earlier time"
    for name, value in wanted.items():
        if not _same(found[name], value):
            return f"{name} differs"
    return None


@functools.cache
def _target_keys() -> frozenset[str]:
    manifest = open_manifest(scene.bare() / "m.parquet")
    return frozenset(hex_of(manifest.payload_keys[manifest.splits == "val"]))


def _of_target(name: str) -> bool:
    """Whether what a snapshot calls so are the outputs of a target row in a store."""
    row = ROW.fullmatch(name)
    return row is not None and row[1] == "outputs" and row[2] in _target_keys()


def _same(a: Any, b: Any, of: float = 0.0) -> bool:
    """Whether two results are the same to rounding, of their largest number or of ``of``."""
    if isinstance(a, dict):
        # members differ by little: the spread of their scores is known to the rounding of the scores
        scores = np.nan_to_num(np.array(a.get("score", []), float))
        largest = np.abs(scores).max(initial=0.0) if "score_std" in a else 0.0
        return a.keys() == b.keys() and all(_same(a[k], b[k], largest if k == "score_std" else 0.0) for k in a)
    if isinstance(a, list) and a and isinstance(a[0], float):
        a, b = np.array(a, float), np.array(b, float)
    if isinstance(a, (np.ndarray, np.generic)):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.kind != "f":
            return bool(np.array_equal(a, b))
        scale = np.abs(b[np.isfinite(b)]).max(initial=of)
        apart = 1e-5 if a.dtype == np.float32 else 1e-6
        return bool(np.allclose(a, b, rtol=0, atol=apart * scale, equal_nan=True))
    return bool(a == b)


def temporary_files(place: Path) -> list[Path]:
    """Files and folders that a run has left under a temporary name."""
    return [p for p in place.rglob(".*") if TEMPORARY.fullmatch(p.name)]


# ---- the faults -----------------------------------------------------------------------------------------------------


def small_shards() -> None:
    """Shards of a few rows, in this process and its forks."""
    from influence_cli.settings import Runtime

    Runtime.__init__.__defaults__ = (*Runtime.__init__.__defaults__[:-1], SMALL_SHARDS)  # type: ignore[misc]


def strike(tally: Tally, name: str, kind: str, at: int, wanted: dict[str, Any], timed: float | None = None) -> None:
    """One fault, and what has to hold after it; with ``timed`` a SIGKILL after so many seconds."""
    template, arguments = COMMANDS[name]
    with copy_of(template()) as place:
        seen = place.with_name("seen")
        before = {p: digest(p) for p in place.rglob("*") if p.is_file()}
        if timed is None:
            ended = armed(arguments, place, at, kind, seen)
        else:
            ended = cli(*arguments, cwd=place, during=lambda pid: (time.sleep(timed), _kill(pid)))
        what = f"{name}, point {at}" if timed is None else f"{name}, after {timed:.3f} s"
        wrong = _wrong(ended, kind, place, before, arguments, wanted)
        tally.count(kind if timed is None else "SIGKILL at any moment", what, wrong)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _wrong(
    ended: Ended, kind: str, place: Path, before: dict[Path, str], arguments: tuple[str, ...], wanted: dict[str, Any]
) -> str | None:
    if kind == "killed" and ended.signal not in (None, signal.SIGKILL):
        return f"ended by signal {ended.signal}"
    expected = {"disk full": (0, 3), "disk broken": (0, 2, 3), "interrupted": (0, 130)}
    if kind in expected and ended.code not in expected[kind]:
        return f"a run whose disk or user stops it: {ended.how}"
    if kind == "disk full" and ended.code == 3 and "the disk is full" not in ended.err:
        return f"does not say that the disk is full: {ended.how}"
    gone = [p for p in before if arguments[:2] != ("cache", "gc") and not p.exists()]
    changed = [p for p in before if p.exists() and p.suffix != ".json" and digest(p) != before[p]]
    changed = [p for p in changed if p.name != FILE_KEYS]
    if gone or changed:
        return f"{(gone + changed)[0].name} of before is lost or changed"
    if (place / "st" / "influence-store").exists() and (damaged := examine(place / "st").damaged):
        return f"damaged: {damaged[0]}"
    again = cli(*arguments, cwd=place)
    whole = difference(snapshot(place), wanted, arguments) is None
    if again.code != 0 and not (
        whole and "is there already" in again.err
    ):  # an export that was finished is not replaced
        return f"the same command again: {again.how}"
    apart = difference(snapshot(place), wanted, arguments)
    if apart is not None:
        return f"the same command again: {apart}"
    return _litter(place)


def _litter(place: Path) -> str | None:
    """Whether anything but temporary files is hidden in the folder, and whether old ones go."""
    long_ago = time.time() - 3 * 86400
    left = temporary_files(place)
    for path in left:
        os.utime(path, (long_ago, long_ago))
    if (place / "st").is_dir():
        gc = cli("cache", "gc", "--store", "st", cwd=place)
        if gc.code != 0:
            return f"cache gc: {gc.how}"
        if kept := [*temporary_files(place / "st"), *(place / "st").rglob(f"*{CLAIM}")]:
            return f"cache gc leaves {kept[0]}"
    strange = [p for p in place.rglob(".*") if not TEMPORARY.fullmatch(p.name) and p.name != ".influence"]
    return f"{strange[0]} is left" if strange else None


def undisturbed(name: str) -> tuple[int, dict[str, Any], float]:
    """How many fault points a command has, what it leaves, and how many seconds it takes."""
    template, arguments = COMMANDS[name]
    with copy_of(template()) as place:
        seen = place.with_name("seen")
        ended = armed(arguments, place, 0, "", seen)
        assert ended.code == 0, (name, ended)
        points, wanted = int(seen.read_text()), snapshot(place)
    with copy_of(template()) as place:
        begun = time.monotonic()
        cli(*arguments, cwd=place)
        return points, wanted, time.monotonic() - begun


def crashes(tally: Tally, faults: int, kills: int, seed: int = 0, names: tuple[str, ...] = tuple(COMMANDS)) -> None:
    """So many faults at fault points, shared among the commands, and so many kills at any moment."""
    small_shards()
    rng = np.random.default_rng(seed)
    known = {name: undisturbed(name) for name in names}
    for k in range(faults):
        name = names[k % len(names)]
        points, wanted, _ = known[name]
        kind = KINDS[(k // len(names)) % len(KINDS)]
        strike(tally, name, kind, int(rng.integers(1, points + 1)), wanted)
    for k in range(kills):
        name = names[k % len(names)]
        _, wanted, seconds = known[name]
        strike(tally, name, "killed", 0, wanted, timed=float(rng.uniform(0.05, 1)) * seconds)
