"""Whether the files that rows name by path lie in the folder of their manifest, and whether they may lie elsewhere.

A manifest or a source may be a stranger's, who could name any file that you can read: what is read ends in pages and
exports.  So a path that leaves its folder, by ``..``, as an absolute path or through a link, is refused unless whoever
runs the command says otherwise (``--allow-outside``).  No file can say so itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from influence_cli.data.kinds.protocol import BadPayload

_allowed: ContextVar[bool] = ContextVar("allow_outside", default=False)
FIX = "pass --allow-outside if you trust who wrote the paths, or move the files into that folder, or embed them"


@contextlib.contextmanager
def allowing_outside(allowed: bool) -> Generator[None]:
    """While a command runs: whether rows may name files anywhere.  A block within never forbids what one around allows.

    >>> with allowing_outside(True), allowing_outside(False):
    ...     outside_allowed()
    True
    """
    token = _allowed.set(allowed or _allowed.get())
    try:
        yield
    finally:
        _allowed.reset(token)


def outside_allowed() -> bool:
    """Whether rows may name files outside of their manifest's folder."""
    return _allowed.get()


class Inside:
    """What lies in a folder, links followed; a link in the place of the folder itself is the folder it leads to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, os.path.realpath(folder)
        self._real: dict[str, str] = {}  # folders, as they are named, which many files share

    def holds(self, path: Path) -> bool:
        """Whether a file lies in it, as it is named and as links lead."""
        parent, name = os.path.split(path)
        if "\0" in parent or name in ("", ".", "..") or os.path.islink(path):
            real = os.path.realpath(os.path.join(parent, name).replace("\0", "?"))
        else:
            if parent not in self._real:
                self._real[parent] = os.path.realpath(parent)
            real = os.path.join(self._real[parent], name)
        return real.startswith(self.root.rstrip(os.sep) + os.sep)

    def fault(self, path: Path) -> BadPayload | None:
        """Why a file may not be read; None where it may, or where there is none, which is said by whoever reads it."""
        if outside_allowed() or self.holds(path):
            return None
        from influence_cli.data.kinds.protocol import BadPayload  # every command imports this file, --help too

        named = os.path.abspath(path).startswith(os.path.abspath(self.folder).rstrip(os.sep) + os.sep)
        leads = f" leads by a link to {os.path.realpath(path)}, which" if named else ""
        return BadPayload(f"{path}{leads} is not in the folder of what names it ({self.root})", FIX)
