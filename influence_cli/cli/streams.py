"""The standard streams, so that none of them decides an exit code: what cannot be said is lost, output never is."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any

from influence_cli.errors import UsageError


class _Forgiving(io.RawIOBase):
    """Standard error as it is, but that what cannot be written (a full disk, a closed pipe) is lost without a word."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        try:
            return os.write(self.descriptor, data)
        except OSError:
            return len(data)


class _Closed(io.RawIOBase):
    """Standard output that was closed before the start: to have nothing to write is no error, to write is."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        raise UsageError("standard output is closed", fix="pass -o FILE, or leave standard output open")


def prepare() -> None:
    """Replace standard streams that are closed, and let no failure to write a message be an error."""
    for descriptor, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            _occupy(descriptor)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = _text(_Closed())
    if sys.stderr is None:
        sys.stderr = _text(_Forgiving(2))
    elif sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Forgiving(sys.stderr.fileno()), sys.stderr.encoding)


def _occupy(descriptor: int) -> None:
    """Open the null device under a number that is free: a file of ours would become the stream of a library in C."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def _text(raw: io.RawIOBase, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=isinstance(raw, _Forgiving)
    )


def write_line(text: str) -> None:
    """A line on standard error; where that cannot be written, the line is lost and nothing else."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()


def let_go() -> None:
    """What standard output could not take is given up, or closing it at exit would make an exit code of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except Exception:
        drop_stdout()


def is_unread() -> bool:
    """Whether standard output is a pipe or socket whose reader is gone."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no stream of the system's, or no poll: then it is believed
        return True


def drop_stdout() -> None:
    """Point standard output at the null device."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        sys.stdout.flush()
    except (OSError, ValueError, UsageError):  # it is no file
        sys.stdout = None  # pyright: ignore[reportAttributeAccessIssue]
