"""Ragged rows are batched by length: little is filled up, no row is lost, and full batches stay full."""

import numpy as np

from influence_cli.data.kinds import KINDS
from influence_cli.model.examples import FEWEST, FILLED, alike, wasteful


def _batches(lengths: list[int], size: int) -> list[list[int]]:
    kind = KINDS["text"]
    batches, chunk = list[list[int]](), []
    for item in alike([(k, "x" * n) for k, n in enumerate(lengths)], kind, size):
        if wasteful(chunk, item, kind, size):
            batches.append([row for row, _ in chunk])
            chunk = []
        chunk.append(item)
        if len(chunk) == size:
            batches.append([row for row, _ in chunk])
            chunk = []
    return [*batches, [row for row, _ in chunk]]


def test_batches_of_like_length():
    lengths = np.random.default_rng(0).integers(5, 200, 1000).tolist()
    found = _batches(lengths, 64)
    assert sorted(row for rows in found for row in rows) == list(range(1000))
    assert all(len(rows) >= 64 / FEWEST for rows in found[:-1])
    whole = sum(len(rows) * max(lengths[row] for row in rows) for rows in found)
    assert whole / sum(lengths) < 1 + FILLED


def test_rows_of_one_length_fill_their_batches():
    assert [len(rows) for rows in _batches([30] * 200, 64)] == [64, 64, 64, 8]
