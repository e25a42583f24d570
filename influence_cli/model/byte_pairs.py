"""Byte-pair encoding of texts (Sennrich et al. 2016, arXiv:1508.07909), learned from the texts that a model trains on.

Number 0 begins a text, 1 to 256 are the bytes of UTF-8, and every further one is a pair of earlier ones: the commonest
pair of its turn.  Pairs do not reach over the borders of words.  Every text has an encoding, and no byte is lost.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from influence_cli.store.keys import fingerprint

Pair = tuple[int, int]
BEGIN, BYTES = 0, 256
FIRST = BEGIN + 1 + BYTES  # the number of the first pair
_WORDS = re.compile(r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+")


def learn(texts: Iterable[str], size: int) -> tuple[Pair, ...]:
    """Up to ``size - 257`` pairs, commonest first; of equally common ones that of the larger numbers.

    Pairs that stand in the texts once are not taken.
    """
    counts = Counter(word for text in texts for word in _WORDS.findall(text))
    words = [(_bytes_of(word), count) for word, count in counts.items()]
    totals, places = Counter[Pair](), defaultdict[Pair, set[int]](set)
    for k, (numbers, count) in enumerate(words):
        for pair in itertools.pairwise(numbers):
            totals[pair] += count
            places[pair].add(k)
    merges = list[Pair]()
    while FIRST + len(merges) < size and totals:
        best = max(totals, key=lambda pair: (totals[pair], pair))
        if totals[best] < 2:
            break
        number = FIRST + len(merges)
        merges.append(best)
        for k in places.pop(best):
            old, count = words[k]
            new = _merged(old, best, number)
            words[k] = new, count
            for pair in itertools.pairwise(old):
                totals[pair] -= count
                places[pair].discard(k)
            for pair in itertools.pairwise(new):
                totals[pair] += count
                places[pair].add(k)
            for pair in {*itertools.pairwise(old)}:
                if totals[pair] <= 0:
                    del totals[pair]
    return tuple(merges)


def _bytes_of(word: str) -> list[int]:
    return [byte + 1 for byte in word.encode()]


def _merged(numbers: Sequence[int], pair: Pair, number: int) -> list[int]:
    """The numbers with every occurrence of a pair, from the left, made one number."""
    found, k = list[int](), 0
    while k < len(numbers):
        both = k + 1 < len(numbers) and (numbers[k], numbers[k + 1]) == pair
        found.append(number if both else numbers[k])
        k += 1 + both
    return found


class BytePairs:
    """Texts to token numbers and back, by learned pairs."""

    def __init__(self, merges: Sequence[Pair]) -> None:
        """``merges`` as ``learn`` gives them."""
        self.ranks = {pair: k for k, pair in enumerate(merges)}
        self.pieces = [b"", *(bytes([byte]) for byte in range(BYTES))]
        for a, b in merges:
            self.pieces.append(self.pieces[a] + self.pieces[b])
        self._known: dict[str, list[int]] = {}

    @property
    def size(self) -> int:
        """How many token numbers there are."""
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Token numbers, the first of which begins the text."""
        found = [BEGIN]
        for word in _WORDS.findall(text):
            if word not in self._known:
                self._known[word] = self._encoded(word)
            found += self._known[word]
        return found

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of token numbers; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.pieces[number] for number in numbers).decode(errors="replace")

    def _encoded(self, word: str) -> list[int]:
        numbers, none = _bytes_of(word), len(self.ranks)
        while len(numbers) > 1:
            best = min(itertools.pairwise(numbers), key=lambda pair: self.ranks.get(pair, none))
            if best not in self.ranks:
                break
            numbers = _merged(numbers, best, FIRST + self.ranks[best])
        return numbers


def digest(merges: Sequence[Pair]) -> str:
    """What an encoding is known by."""
    return fingerprint("byte-pairs", 1, merges=[list(pair) for pair in merges])


def are_merges(value: object) -> bool:
    """Whether a value is a list of pairs, each of earlier numbers, as JSON keeps it."""
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(type(number) is int and 0 < number < FIRST + k for number in pair)
        for k, pair in enumerate(value)
    )
