"""Git LFS pointers: a few lines of text that stand where a large file has not been downloaded."""

from __future__ import annotations

from pathlib import Path

from influence_cli.errors import InfluenceError, UsageError

POINTER = b"version https://git-lfs.github.com/spec/v1"
WHAT = "it is a Git LFS pointer, not the file itself"
FIX = "run `git lfs pull` where it was cloned, or download the file"


def is_pointer(content: bytes | Path | str) -> bool:
    r"""Whether bytes, or those of a regular file, are a pointer's.

    >>> is_pointer(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), is_pointer(b"PAR1")
    (True, False)
    """
    if isinstance(content, bytes):
        return content.startswith(POINTER)
    path = Path(content)
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as handle:
            return handle.read(len(POINTER)) == POINTER
    except OSError:
        return False  # whoever reads it says why it cannot be read


def refuse_pointer(path: Path | str, error: type[InfluenceError] = UsageError) -> None:
    """Refuse a pointer in place of a file that is read next.

    Raises:
        InfluenceError: it is one; of the kind ``error``.
    """
    if is_pointer(path):
        raise error(WHAT, where=str(path), fix=FIX)
