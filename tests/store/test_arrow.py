"""Arrow arrays from numpy's and back: the values that pyarrow's own conversions give, whatever is null or cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from influence_cli.store.arrow import array_of, array_of_texts, is_valid, values_of
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
