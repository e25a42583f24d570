"""Arrow arrays from numpy's and back: the values that pyarrow's own conversions give, whatever is null or cut."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from influence_cli.store import parquet
from influence_cli.store.arrow import array_of, array_of_texts, is_valid, values_of
from influence_cli.store.shards import as_arrow
from tests.cases import run_python

RNG = np.random.default_rng(7)
KINDS = [np.int8, np.int32, np.int64, np.uint16, np.float32, np.float64]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 8, 37])
def test_numbers_with_nulls_go_both_ways(kind: Any, rows: int) -> None:
    values, null = RNG.integers(0, 100, rows).astype(kind), RNG.random(rows) < 0.4
    array = array_of(values, null)
    array.validate(full=True)
    assert array.equals(pa.array(values, mask=null))
    assert array_of(values).equals(pa.array(values))
    for column in (
        array,
        array[3:],
        pa.chunked_array([array, array[5:21], array[:0]]),
        pa.chunked_array([], array.type),
    ):
        assert np.array_equal(values_of(column, 7), column.fill_null(7).to_numpy(zero_copy_only=False))
        assert values_of(column, 7).dtype == kind
        assert np.array_equal(is_valid(column), column.is_valid().to_numpy(zero_copy_only=False))


def test_texts() -> None:
    texts = ["a", "", "bücher", "\0", "x" * 1000]
    assert array_of_texts(texts).equals(pa.array(texts))
    assert array_of_texts([]).equals(pa.array([], pa.string()))
    assert is_valid(pa.nulls(3)).tolist() == [False] * 3


def test_pandas_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from influence_cli.store.arrow import *; a = array_of(np.ones(3), np.ones(3) > 0);"
        "values_of(a, 0.0); is_valid(a); array_of_texts(['a']); sys.exit('pandas' in sys.modules)"
    )
    assert run_python(code, cwd=tmp_path).code == 0


def _digest_by_hand(name: str, values: list[Any], kind: pa.DataType) -> str:
    raw = [b"" if v is None else v.encode() if isinstance(v, str) else v for v in values]
    parts = [
        np.array([v is not None for v in values], np.uint8).tobytes(),
        np.array([len(v) for v in raw], np.int64).tobytes(),
        b"".join(raw),
    ]
    return json.dumps([name, str(kind), "".join(hashlib.blake2b(p, digest_size=16).hexdigest() for p in parts)])


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.binary(4)])
@pytest.mark.parametrize("nulls", [False, True])
def test_the_digest_of_texts_is_that_of_validity_lengths_and_bytes_whatever_the_chunks(
    kind: pa.DataType, nulls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "BLOCK", 7)
    fixed = pa.types.is_fixed_size_binary(kind)
    made = [b"abcd" if fixed else "ab\u00e4"[: k % 4].encode() for k in range(50)]
    values: list[Any] = [v if pa.types.is_binary(kind) or fixed else v.decode() for v in made]
    values = [None if nulls and k % 3 == 0 else v for k, v in enumerate(values)]
    whole = pa.array([values[0], *values], kind).slice(1)
    expected = _digest_by_hand("c", values, kind)
    for column in (pa.chunked_array([whole]), pa.chunked_array([whole.slice(0, 13), whole.slice(13)])):
        assert parquet.column_digest("c", column) == expected


def test_the_digest_of_a_long_column_takes_no_memory_for_what_stands_before_a_block() -> None:
    keys = np.zeros((400_000, 16), np.uint8)
    column = pa.chunked_array([as_arrow(keys)])
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        parquet.column_digest("row_key", column)
        assert pool.max_memory() < parquet.BLOCK * 16  # a cast of the last block would take 8 bytes for every row
    finally:
        pa.set_memory_pool(before)


def test_whether_values_are_there_is_told_of_a_slice_by_its_own_bits() -> None:
    values = pa.array([None if k % 5 == 0 else k for k in range(100)])
    for first, rows in ((0, 100), (3, 9), (8, 8), (17, 0), (63, 37)):
        assert is_valid(values.slice(first, rows)).tolist() == [k % 5 != 0 for k in range(first, first + rows)]
