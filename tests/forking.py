"""A program ``influence`` that starts at once: every run of it is a fork of a process that has imported everything.

For tests of what calls the command line, such as scripts, pipes and launchers, a program on the path is what counts,
and not that Python and torch are started anew each time, which takes longer than most commands do.  Arguments,
environment, working folder, the three standard streams (all open) and the exit code or signal are those of a process of
its own.  What the start itself imports or does is tested by ``run_cli``, ``run_python`` and ``run_without_torch``.
"""

from __future__ import annotations

import atexit
import contextlib
import marshal
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from influence_cli.cli.main import main
from tests.cases import application_of

HEAD = 8  # bytes that say how long what is asked for is
LEAVE = os._exit  # a command refuses it to code of the user's
CLIENT = """#!{python} -IS
import _socket, marshal, posix, sys
asked = marshal.dumps((sys.argv[1:], posix.getcwd(), dict(posix.environ)))
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
server.connect({address!r})
streams = b"".join(k.to_bytes(4, sys.byteorder) for k in range(3))
server.sendmsg([len(asked).to_bytes({head}, "little")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
server.sendall(asked)
for k in range(3):
    posix.close(k)
code = int(server.recv(16) or b"99")
if code < 0:
    posix.kill(posix.getpid(), -code)
posix._exit(code)
"""


@contextlib.contextmanager
def forking_program() -> Iterator[Path]:
    """A program that is called as ``influence`` is; the process that it is a fork of ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="influence-"))  # a socket's path is short
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    listening.listen()
    ends, needed = os.pipe()
    server = os.fork()
    if server == 0:
        os.close(needed)
        try:
            _serve(listening, ends)
        finally:
            LEAVE(0)
    listening.close()
    os.close(ends)
    program = folder / "influence"
    program.write_text(CLIENT.format(python=sys.executable, address=str(folder / "socket"), head=HEAD))
    program.chmod(0o755)
    try:
        yield program
    finally:
        os.close(needed)
        os.waitpid(server, 0)
        shutil.rmtree(folder)


def _serve(listening: socket.socket, ends: int) -> None:
    """Run what is asked for, each in a fork, until nobody holds the other end of ``ends``."""
    for stream in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listening, ends], [], [], 0.005 if running else None)
        if ends in ready:
            return
        if listening in ready:
            client = listening.accept()[0]
            arguments, folder, environment, streams = _asked(client)
            application_of(arguments[0] if arguments else None)  # made once, for all forks
            if (pid := os.fork()) == 0:
                listening.close()
                client.close()
                _run(arguments, folder, environment, streams)
            for stream in streams:
                os.close(stream)
            running[pid] = client
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                with running.pop(pid) as client, contextlib.suppress(OSError):  # its caller may be gone
                    client.sendall(b"%d" % os.waitstatus_to_exitcode(status))


def _asked(client: socket.socket) -> tuple[list[str], str, dict[bytes, bytes], list[int]]:
    """Arguments, working folder, environment and standard streams of a call."""
    head, streams, _, _ = socket.recv_fds(client, HEAD, 3)
    with client.makefile("rb") as told:
        return (*marshal.loads(told.read(int.from_bytes(head, "little"))), streams)


def _run(arguments: list[str], folder: str, environment: dict[bytes, bytes], streams: list[int]) -> NoReturn:
    """Be the command, and end."""
    code: Any = 70
    try:
        for k, stream in enumerate(streams):
            os.dup2(stream, k)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environb.update(environment)
        tempfile.tempdir = None  # TMPDIR may be another
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atexit._clear()  # what the process before registered is not this one's
        sys.argv = ["influence", *arguments]
        with mock.patch("influence_cli.cli.app.build_app", application_of):
            main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        LEAVE(code if isinstance(code, int) else 70)
