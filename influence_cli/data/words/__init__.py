"""Texts with words of a list swapped both ways, such as those that say whether somebody is a man or a woman.

The list is data beside this file, known by its hash.  A word keeps its capitals.  Where a word has two partners the
first one is taken, but for "her": it is "his" before a word that could be a noun, an adjective or an adverb, and "him"
before anything else (methods.md 3.4).
"""

from __future__ import annotations

import functools
import hashlib
import re
from importlib.resources import files

_WORD = re.compile(r"[^\W\d_]+(?:['’]s)?")
# what follows "him": words of function, which begin no description of a thing
_FUNCTION_WORDS = (
    "a an the and or but nor if than then as at by for from in into of off on onto out over to up with "
    "without about after before because that this these those is are was were be been being am do does "
    "did has have had will would can could may might must shall should not very so too again away back "
    "down home here there now today tomorrow yesterday yet still just only even who whom whose which what "
    "when where why how he she it they we i you me us them his her my your our their"
)
_AFTER_HIM = frozenset(_FUNCTION_WORDS.split())


@functools.cache
def word_list(name: str = "gender") -> tuple[dict[str, str], str]:
    """The partner of each word of a list, in lower case, and the list's hash."""
    content = files("influence_cli.data.words").joinpath(f"{name}.txt").read_bytes()
    partners: dict[str, str] = {}
    for line in content.decode().splitlines():
        if line and not line.startswith("#"):
            first, second = line.split("\t")
            partners.setdefault(first, second)
            partners.setdefault(second, first)
    return partners, hashlib.blake2b(content, digest_size=16).hexdigest()


def swapped(text: str, name: str = "gender") -> str:
    """The text with every word of the list in place of its partner; the text itself where it has none of them.

    >>> swapped("Her brother saw her. He is HIS hero's son.")
    "His sister saw him. She is HER heroine's daughter."
    """
    partners, _ = word_list(name)
    out, last = list[str](), 0
    for found in _WORD.finditer(text):
        word = found[0]
        stem, end = (word[:-2], word[-2:]) if word[-2:-1] in ("'", "’") else (word, "")
        partner = partners.get(stem.lower())
        if stem.lower() == "her":
            partner = _of_her(text[found.end() :])
        if partner is None:
            continue
        out += [text[last : found.start()], _with_capitals(partner, stem), end]
        last = found.end()
    return "".join([*out, text[last:]]) if out else text


def _of_her(rest: str) -> str:
    """What stands for "her" before the rest of a text: "his" where a thing of hers follows, else "him"."""
    after = re.match(r"[ \t\n]+([^\W\d_]+)", rest)
    return "him" if after is None or after[1].lower() in _AFTER_HIM else "his"


def _with_capitals(word: str, like: str) -> str:
    """A word in the capitals of another."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word.capitalize() if like[:1].isupper() else word
