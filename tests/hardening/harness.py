"""Runs of the command line in forks of one process that has imported everything, and what came of faults in them.

A fork costs a few hundredths of a second, in place of the seconds that starting torch takes, and may be killed, limited
or left in any state: the process that counts never is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from influence_cli.cli.main import run
from tests.cases import environment

CPU_SECONDS = 10  # "never a hang": of processor time, which other work on the machine does not lengthen
WALL_SECONDS = 300.0
MEMORY = 12 << 30  # of address space, of which torch alone maps several GiB
OURS = ("error: ", "usage: ")
DEFECT = ("defect of influence", "Traceback (most recent call last)")


@dataclass(frozen=True)
class Ended:
    """How a run came to its end: an exit code or a signal, and what it said."""

    code: int | None
    signal: int | None
    out: bytes
    err: str

    @property
    def how(self) -> str:
        """The end in a few words, with the first line of the error."""
        first = next((line for line in self.err.splitlines() if line.startswith("error")), "")
        end = f"signal {self.signal}" if self.code is None else f"exit {self.code}"
        return f"{end} {first}".strip()


def forked(
    work: Callable[[], int], cwd: Path, *, env: dict[str, str] | None = None, cpu: int = 600, during: Any = None
) -> Ended:
    """Run ``work`` in a fork that stands in ``cwd``; ``during(pid)`` is called while it runs."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _child(work, cwd, env, cpu, out.fileno(), err.fileno())
        if during is not None:
            during(pid)
        status = waited(pid, WALL_SECONDS)
        out.seek(0)
        err.seek(0)
        said, told = out.read(), err.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        return Ended(None, os.WTERMSIG(status), said, told)
    return Ended(os.WEXITSTATUS(status), None, said, told)


def _child(
    work: Callable[[], int], cwd: Path, env: dict[str, str] | None, cpu: int, out: int, err: int
) -> None:  # pragma: no cover - runs in a fork
    code, leave = 99, os._exit
    try:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment(env))
        tempfile.tempdir = None  # TMPDIR may be another
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 5))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        os.write(err, traceback.format_exc().encode())
    finally:
        leave(code)


def waited(pid: int, seconds: float) -> int:
    """How a process ended, which is killed after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def cli(*arguments: Any, cwd: Path, env: dict[str, str] | None = None, cpu: int = 600, during: Any = None) -> Ended:
    """The command line in a fork."""
    given = [str(a) for a in arguments]
    return forked(lambda: run(given), cwd, env=env, cpu=cpu, during=during)


def refused(ended: Ended) -> str | None:
    """None where a run refused what it was given in our words (exit 2), or took it (0 or 1); else what is wrong."""
    if ended.signal in (signal.SIGXCPU, signal.SIGKILL):
        return f"a hang: over {CPU_SECONDS} seconds of the processor"
    if ended.code is None:
        return f"ended by signal {ended.signal}"
    if ended.code not in (0, 1, 2) or any(word in ended.err for word in DEFECT):
        return ended.how + " | " + " ".join(ended.err.split())[-300:]
    if ended.code == 2 and not any(line.startswith(OURS) or "Error" in line for line in ended.err.splitlines()):
        return f"exit 2 without a word: {ended.err[-200:]!r}"
    return None


@dataclass
class Tally:
    """Faults tried and survived of one part, by kind; failures with what is wrong of each."""

    part: str
    tried: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)

    def count(self, kind: str, what: str, wrong: str | None, how: str = "") -> None:
        """One fault of a kind: ``wrong`` says what it did that it must not, None where it was survived."""
        self.tried[kind] += 1
        if how:
            self.ended[how] += 1
        if wrong is not None:
            self.failures.append((kind, what, wrong))
            sys.stderr.write(f"FAULT {self.part}, {kind}: {what}: {wrong}\n")
            sys.stderr.flush()

    def rows(self) -> list[tuple[str, str, int, int]]:
        """(part, kind, tried, survived) of every kind."""
        lost = Counter(kind for kind, _, _ in self.failures)
        return [(self.part, kind, n, n - lost[kind]) for kind, n in sorted(self.tried.items())]


@contextlib.contextmanager
def copy_of(template: Path) -> Iterator[Path]:
    """A folder that begins as ``template`` and goes with the block."""
    with tempfile.TemporaryDirectory(prefix="hardening-") as folder:
        place = Path(folder) / "work"
        shutil.copytree(template, place, symlinks=True)
        yield place


def digest(path: Path) -> str:
    """A short digest of a file's bytes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def files_in(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its path, with a digest of its bytes."""
    return {str(p.relative_to(folder)): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
