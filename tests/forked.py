"""Python that runs in a fork of this process, which has imported everything: for tests of what a killed process leaves.

For these it counts what a process had done when it ended, and not that torch is imported anew, which takes longer.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cases import Ran, environment


def forked(work: Callable[[], Any], cwd: Path, out: str = os.devnull, err: str = os.devnull) -> int:
    """The id of a fork that works in a folder, writes to files, and ends; its caller waits for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) != 0:
        return pid
    code = 1
    try:
        for stream, place in ((0, os.devnull), (1, out), (2, err)):
            os.dup2(os.open(place, os.O_RDWR | os.O_CREAT), stream)
        sys.stdin, sys.stdout, sys.stderr = (open(k, mode, closefd=False) for k, mode in enumerate("rww"))  # noqa: SIM115
        os.chdir(cwd)
        changed = environment()
        os.environ.clear()
        os.environ.update(changed)
        work()
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_forked(code: str, *arguments: Any, cwd: Path) -> Ran:
    """Run a Python program given as text in a fork: its exit code (a signal as a negative one), and what it said."""

    def work() -> None:
        sys.argv = ["-c", *map(str, arguments)]
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})

    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        _, status = os.waitpid(forked(work, cwd, str(out), str(err)), 0)
        return Ran(os.waitstatus_to_exitcode(status), out.read_bytes(), err.read_text())
