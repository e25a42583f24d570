"""What can go wrong, as a tree.  The library raises these; only ``cli.main`` prints them.

InfluenceError          exit code 2: the person at the keyboard can fix it
├── UsageError          a flag, a setting, a contradiction between stages
│   └── WrongArgument   an argument from Python that is unknown, or of another type (a TypeError too)
├── ManifestError       a table or a payload in it
├── ModelError          a checkpoint, an architecture, an output that is not logits
│   ├── DamagedModel    a run folder or weights that are not as they were written
│   ├── NoFeatures      a model whose rows have no features that a method can look at
│   ├── NoDerivative    a model that one way to its derivatives cannot take (a RuntimeError too)
│   └── UserCodeError   code of the user's own that ends the program
└── StoreError          a store that cannot be read or written
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterable

_SAYS_FULL = ("no space left on device", "os error 28", "storagefull", "disk quota exceeded")


class InfluenceError(Exception):
    """An error that says what happened, where (file, row, column), and how to fix it."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        parts = [printable(self.what)]
        if self.where:
            parts.append(f"in: {printable(self.where)}")
        if self.fix:
            parts.append(f"fix: {printable(self.fix)}")
        return "\n".join(parts)


class UsageError(InfluenceError):
    """A flag, a setting or a combination of stages that cannot work."""


class WrongArgument(UsageError, TypeError):
    """An argument from Python that is unknown, or of another type than it takes."""


class ManifestError(InfluenceError):
    """A manifest, a score table, or a payload that cannot be used."""


class ModelError(InfluenceError):
    """A checkpoint or architecture that cannot be used."""


class NoDerivative(ModelError, RuntimeError):
    """A model that one way to its derivatives cannot take; where there are others, they are tried."""


class NoFeatures(ModelError):
    """A model whose rows have no features that a method can look at."""


class UserCodeError(ModelError):
    """Code of the user's own that does what no part of a run may do."""


class DamagedModel(ModelError):
    """A run folder or weights that are there and are not as they were written."""


class StoreError(InfluenceError):
    """A store that cannot be read or written."""


class InfluenceWarning(UserWarning):
    """What a Python program is warned of, where no listener hears it."""


def disk_full(error: BaseException) -> bool:
    """Whether something failed for want of space; libraries that write in C or Rust say it in words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    try:
        text = str(error).lower()
    except Exception:  # of a class of the user's
        return False
    return not isinstance(error, InfluenceError) and any(word in text for word in _SAYS_FULL)


def printable(text: str) -> str:
    """The text on one line, control characters escaped: an id or a path cannot write a line or colour of its own."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shell_word(word: object) -> str:
    """A word as a shell takes it, all of it printable: what cannot be printed in bash's own form, $'...'.

    >>> shell_word("plain"), shell_word("a b")
    ('plain', "'a b'")
    """
    text = str(word)
    return shlex.quote(text) if text.isprintable() else "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(c: str) -> str:
    """A character within $'...': what cannot be printed by its bytes, of which a name may have any."""
    if c.isprintable():
        return f"\\{c}" if c in "\\'" else c
    if c in "\n\t":
        return {"\n": "\\n", "\t": "\\t"}[c]
    escaped = 0xDC80 <= ord(c) <= 0xDCFF  # a byte that is no UTF-8; of any other surrogate there is no name
    return "".join(f"\\x{b:02x}" for b in c.encode("utf-8", "surrogateescape" if escaped else "surrogatepass"))


def shell_line(words: Iterable[object]) -> str:
    """A command as a shell takes it."""
    return " ".join(map(shell_word, words))


def nearest(name: str, known: list[str]) -> str:
    """'did you mean X?' for the closest of ``known`` names, or a list of all of them."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(sorted(known))
