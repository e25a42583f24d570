"""Texts that need no pattern are read as those that do: whatever stands in the same column."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_cli.data.sources.survey import PLAIN, Survey, as_numbers, texts_in, written_in

WRITTEN = [
    "1", "-1", "+1", "007", "1.", ".5", "1.5", "1.2.3", "-", "--1", "1e5", "1E-5", "e5", "1e", "1e400", "-.5", ".",
    "1-", "nan", "inf", "-Infinity", "", " 1", "1 ", "\t",
    "\x1c1", "\x7f", "\u22121", "1\u22121", "\u00a01", "1,5", "1,234",
    "1_0", "0x1", "\u0661", "12345678901234567890", "a", "ä", "?", "NA", None,
]  # fmt: skip


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@given(written=st.lists(st.sampled_from(WRITTEN), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_text_is_read_alike_beside_whatever_others(kind: pa.DataType, written: list[str | None]) -> None:
    values = pa.array(["1", *written, " 2"], kind)  # spaces: these are read by patterns
    plain = values.slice(1, len(written))
    texts, all_texts = texts_in(plain), texts_in(values)
    assert texts.equals(all_texts.slice(1, len(written)))
    alone, together = (as_numbers(t, PLAIN, False).astype(str).tolist() for t in (texts, all_texts))
    beside_a_sign = as_numbers(texts_in(pa.array(["+1", *written], kind)), PLAIN, False).astype(str).tolist()
    assert alone == together[1:-1] == beside_a_sign[1:]


def test_what_is_written_with_few_letters() -> None:
    digits = b"0123456789"
    assert written_in(pa.array(["1", "20"]), digits)
    assert written_in(pa.array(["x", "1", "20"]).slice(1), digits)
    for other in (["1", ""], ["1", None], ["1", "2."], ["1", "\u0662"], []):
        assert not written_in(pa.array(other, pa.string()), digits)
    assert not written_in(pa.array([b"1"]), digits)


def test_zeros_and_points_are_noticed_among_other_numbers() -> None:
    for texts, padded, pointed in (
        (["12", "7"], False, False),
        (["12", "07"], True, False),
        (["12", "7.5"], False, True),
    ):
        column = Survey("x", 100)
        column.add(pa.array(texts))
        assert (column.padded, column._pointed, column.numbers) == (padded, pointed, 2)
    column = Survey("x", 100)
    column.add(pa.array(["10", "20"]))
    assert not column.padded
    assert (column.low, column.high, column.whole) == (10, 20, True)
