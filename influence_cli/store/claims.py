"""Who is at work on what: processes that share a folder share its work, and none does what another is doing.

A claim is a lock on a file, held while the work goes on.  The operating system lets go of it when its process ends,
however that ends, so that the claim of a process that was killed is free at once and nothing has to expire.  Where a
platform or a file system has no such locks, every process does all that is left, as it would by itself: what they write
is the same.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this platform
    fcntl = None

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds between two looks at what others hold
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)

Work = Callable[[], None]


class Claims:
    """Claims by name, each a file of its own; ``path`` says which, and ``ready`` makes their folder fit to write to."""

    def __init__(self, path: Callable[[str], Path], ready: Callable[[], None] = lambda: None) -> None:
        self.path, self._ready = path, ready

    @contextlib.contextmanager
    def attempt(self, name: str) -> Generator[bool]:
        """Whether the claim is ours, while the block runs; False at once where another process holds it."""
        handle, ours = self._locked(name)
        try:
            yield ours
        finally:
            if handle is not None:
                self._let_go(self.path(name), handle)

    @contextlib.contextmanager
    def wait(self, name: str, waiting: Work = lambda: None) -> Generator[None]:
        """The claim, once it is ours; ``waiting`` is called, once, where another process holds it."""
        pauses = _Pauses(waiting)
        while True:
            with self.attempt(name) as ours:
                if ours:
                    yield
                    return
            pauses.wait()

    def share(self, works: Sequence[tuple[str, Work]], waiting: Work = lambda: None) -> None:
        """Do each of some named works while it is claimed; what others are doing comes last, once they have ended.

        A work has to look itself whether anything of it is left to do.
        """
        left, pauses = list(works), _Pauses(waiting)
        while left:
            others: list[tuple[str, Work]] = []
            for name, work in left:
                with self.attempt(name) as ours:
                    if ours:
                        work()
                    else:
                        others.append((name, work))
            if len(others) < len(left):  # something may be free by now
                left = others
                pauses.begin()
            else:
                pauses.wait()

    def _locked(self, name: str) -> tuple[int | None, bool]:
        """(an open file with our lock on it, True), (None, True) where there are no locks, (None, False) if taken."""
        if fcntl is None:
            return None, True
        self._ready()
        path = self.path(name)
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError:  # a place that cannot be written to is told by whoever writes results there
                return None, True
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(handle, path):
                    return handle, True
                os.close(handle)  # its holder took the file away just now
            except OSError as error:
                os.close(handle)
                return None, error.errno not in _TAKEN

    @staticmethod
    def _let_go(path: Path, handle: int) -> None:
        """The file goes before the lock does, so that nobody locks one that is about to go."""
        path.unlink(missing_ok=True)
        os.close(handle)

    def drop_unheld(self, names: Sequence[str]) -> int:
        """Remove the files of claims that nobody holds, which killed processes have left; returns how many."""
        removed = 0
        for name in names:
            with self.attempt(name) as ours:
                removed += ours
        return removed


class _Pauses:
    """Pauses between two looks at what others hold, each twice as long as the one before; the first is told."""

    def __init__(self, waiting: Work) -> None:
        self._waiting, self._said = waiting, False
        self.begin()

    def begin(self) -> None:
        """Start with a short one again."""
        self._next = FIRST_WAIT

    def wait(self) -> None:
        """Say, the first time, that there is something to wait for; and pause."""
        if not self._said:
            self._waiting()
            self._said = True
        time.sleep(self._next)
        self._next = min(2 * self._next, LONGEST_WAIT)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
