"""Places: a disk without room or inodes, a full TMPDIR, a store that cannot be written, and signals that end a run.

A full disk is a small tmpfs, which takes root to mount: without it these are skipped, and the table says so.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from influence_cli.cli.main import main
from influence_cli.store.maintenance import examine
from tests.hardening import crash, scene
from tests.hardening.harness import Tally, cli, copy_of, files_in, forked

FULL = "the disk is full"


@contextlib.contextmanager
def mounted(options: str, source: str = "tmpfs", kind: tuple[str, ...] = ("-t", "tmpfs")) -> Iterator[Path]:
    """A file system of its own at a temporary place; CalledProcessError where we may not mount."""
    with tempfile.TemporaryDirectory(prefix="hardening-mount-") as place:
        subprocess.run(["mount", *kind, "-o", options, source, place], check=True, capture_output=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True, capture_output=True)


def may_mount() -> bool:
    """Whether this process may mount file systems."""
    try:
        with mounted("size=1m"):
            return True
    except (subprocess.CalledProcessError, FileNotFoundError):
        return False


def _pages(folder: Path) -> tuple[int, int]:
    """Pages of memory and inodes that a folder takes on a tmpfs."""
    every = list(folder.rglob("*"))
    return sum(-(-p.stat().st_size // 4096) for p in every if p.is_file()), len(every) + 2


def full_disks(tally: Tally, count: int, seed: int = 0) -> None:
    """Commands on a disk with room for a seeded part of what they write."""
    crash.small_shards()
    rng = np.random.default_rng(seed)
    names = [n for n in crash.COMMANDS if n not in ("cache gc", "gate")]
    for k in range(count):
        name = names[k % len(names)]
        template, arguments = crash.COMMANDS[name]
        _, wanted, _ = crash.undisturbed(name)
        inodes = k // len(names) % 2 == 1
        with copy_of(template()) as place:
            begin, first = _pages(place)
            assert cli(*arguments, cwd=place).code == 0
            after, last = _pages(place)
        share = float(rng.uniform(0, 0.9))
        size, nodes = (
            (10**6, int(first + share * (last - first)) + 1)
            if inodes
            else (int(begin + share * (after - begin)) + 1, 0)
        )
        with mounted(f"size={size * 4096},nr_inodes={nodes}") as disk:
            place = disk / "work"
            shutil.copytree(template(), place)
            kind = "no inodes left" if inodes else "no room left"
            ended = cli(*arguments, cwd=place)
            wrong = None
            if ended.code not in (0, 3) or (ended.code == 3 and FULL not in ended.err):
                wrong = ended.how
            elif (place / "st" / "influence-store").exists() and (damaged := examine(place / "st").damaged):
                wrong = f"damaged: {damaged[0]}"
            subprocess.run(["mount", "-o", "remount,size=1g,nr_inodes=0", str(disk)], check=True, capture_output=True)
            # an export that there was room for is finished, and not replaced
            again = ended if name == "export" and ended.code == 0 else cli(*arguments, cwd=place)
            if wrong is None and again.code != 0:
                wrong = f"the same command with room again: {again.how}"
            wrong = wrong or crash.difference(crash.snapshot(place), wanted, arguments)
            tally.count(kind, f"{name} with {share:.0%} of its room", wrong, ended.how[:40])


def full_temporary(tally: Tally) -> None:
    """Commands whose TMPDIR has no room."""
    with mounted("size=4k") as full:
        for name, arguments in (
            ("standard input", ("score", "-", *scene.ABOUT[1:], "--method", "loss", "-o", "x.parquet")),
            (
                "no store",
                ("score", *scene.ABOUT[:5], "--device", "cpu", "--method", "ip", "--no-store", "-o", "x.parquet"),
            ),
            ("a stream", ("score", *scene.ABOUT, "--method", "loss", "-o", "-")),
        ):
            with copy_of(scene.bare()) as place:
                data = place / "m.parquet"

                def work(arguments: tuple[str, ...] = arguments, data: Path = data) -> int:
                    os.dup2(os.open(data, os.O_RDONLY), 0)
                    from influence_cli.cli.main import run

                    return run(list(arguments))

                ended = forked(work, place, env={"TMPDIR": str(full)})
                ok = ended.code == 0 or (ended.code == 3 and FULL in ended.err)
                tally.count("TMPDIR full", name, None if ok else ended.how, ended.how[:40])


def read_only(tally: Tally) -> None:
    """A store on a disk that cannot be written."""
    for name in ("grads", "score", "retrain", "cache gc"):
        template, arguments = crash.COMMANDS[name]
        with copy_of(scene.scored() if name != "retrain" else template()) as place:
            target = place / ("st" if name != "retrain" else ".")
            before = files_in(place)
            with _frozen(target):
                ended = cli(*arguments[:1], *_fresh(arguments), cwd=place)
            ok = ended.code == 2 and files_in(place).items() >= before.items()
            tally.count("read-only place", name, None if ok else ended.how, ended.how[:40])


def _fresh(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments of a command with another seed, so that it has something to write."""
    return (*arguments[1:], "--seed", "5") if arguments[0] in ("grads", "score") else arguments[1:]


@contextlib.contextmanager
def _frozen(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True, capture_output=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def signals(tally: Tally, count: int, seed: int = 0) -> None:
    """SIGTERM and SIGHUP at any moment of a run that has copies of payloads: none is left, and the store is whole."""
    rng = np.random.default_rng(seed)
    arguments = ("score", "-", *scene.ABOUT[1:5], "--device", "cpu", "--no-store", *scene.METHODS, "-o", "x.parquet")
    for k in range(count):
        number = (signal.SIGTERM, signal.SIGHUP)[k % 2]
        with copy_of(scene.bare()) as place, tempfile.TemporaryDirectory() as temporary:
            moment = float(rng.uniform(0.05, 1.5))
            work = functools.partial(_whole, arguments, place / "m.parquet")
            send = functools.partial(_send, number=number, seconds=moment)
            ended = forked(work, place, env={"TMPDIR": temporary}, during=send)
            left = [p.name for p in Path(temporary).iterdir()]
            wrong = f"left in TMPDIR: {left}" if left else None
            if ended.code not in (0, 128 + number):
                wrong = ended.how
            tally.count(number.name, f"moment {k}", wrong, ended.how[:40])


def _whole(arguments: tuple[str, ...], data: Path) -> int:
    """A run as of the installed command, with what it does at its exit."""
    import atexit

    atexit._clear()  # what this process registered is not the fork's
    os.dup2(os.open(data, os.O_RDONLY), 0)
    code = 0
    sys.argv = ["influence", *arguments]
    try:
        main()
    except SystemExit as error:
        code = int(error.code or 0)
    atexit._run_exitfuncs()
    return code


def _send(pid: int, number: int, seconds: float) -> None:
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
