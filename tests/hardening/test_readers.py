"""Whatever a reader is given, it gives something or refuses in our words: files that Hypothesis draws and mutates."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import string
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from influence_cli.data.open import open_manifest
from influence_cli.errors import InfluenceError, UsageError
from influence_cli.settings import parse_budget
from tests.hardening import fuzz, readers

QUICK = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MORE = settings(QUICK, max_examples=150)
ODD = st.sampled_from([t.decode(errors="surrogateescape") for t in readers.TRIPS])
TEXT = st.text(max_size=20) | ODD
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
NESTED = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogateescape")


def as_toml(value: Any) -> str:
    """A value as TOML, or as what is nearly that."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {as_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return {True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, str) else json.dumps(value)


def framed(header: Any, rest: bytes) -> bytes:
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text + rest


NAMES = st.sampled_from(["id", "label", "x", "split", "weight", "image", "features", "text", "a b", ""]) | TEXT
ROWS = st.lists(st.dictionaries(NAMES, NESTED, max_size=4), min_size=1, max_size=5)
NUMBERS = st.integers(-3, 2**64) | NESTED
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "U8", "BOOL", "F128", ""]) | NESTED,
        "shape": st.lists(NUMBERS, max_size=3) | NESTED,
        "data_offsets": st.lists(NUMBERS, max_size=3) | NESTED,
    },
)
HEADERS = st.dictionaries(
    st.sampled_from(["w", "keys", "__metadata__", "head.weight"]) | TEXT,
    ENTRIES | NESTED | st.fixed_dictionaries({"influence": NESTED.map(lambda v: as_json(v).decode())}),
    max_size=3,
)
OPTIONS = st.sampled_from(
    ["method", "seed", "batch_size", "store", "score", "method.ip", "crop", "mean", "features_size", "rows"]
)
DRAWN: dict[str, st.SearchStrategy[bytes]] = {
    "jsonl": ROWS.map(lambda rows: b"\n".join(map(as_json, rows))),
    "json": (ROWS | NESTED).map(as_json),
    "csv": st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=5).flatmap(
        lambda rows: st.sampled_from(",;\t|").map(
            lambda mark: "\n".join(mark.join(row) for row in rows).encode(errors="surrogateescape")
        )
    ),
    "toml": st.dictionaries(OPTIONS | st.text(string.ascii_lowercase, min_size=1), NESTED, max_size=4).map(
        lambda table: "\n".join(f"{k} = {as_toml(v)}" for k, v in table.items()).encode(errors="surrogateescape")
    ),
    "set": st.tuples(st.sampled_from(readers.TAKING_OPTIONS), TEXT, TEXT).map(
        lambda parts: "{}.{}={}".format(*parts).encode(errors="surrogateescape")
    ),
    "budget": (TEXT | st.floats().map("{}%".format) | st.integers().map(str)).map(
        lambda text: text.encode(errors="surrogateescape")
    ),
    "weights": st.tuples(HEADERS, st.binary(max_size=40)).map(lambda parts: framed(*parts)),
    "store file": st.tuples(HEADERS, st.binary(max_size=40)).map(lambda parts: framed(*parts)),
    "sealed JSON": NESTED.map(as_json),
    "baseline": st.lists(
        st.fixed_dictionaries({}, optional={"id": NESTED, "row_key": NESTED, "checksum": NESTED}), max_size=3
    ).map(lambda lines: b"\n".join(map(as_json, lines))),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_file_is_read_or_refused_in_our_words(name: str) -> None:
    @QUICK
    @given(data=DRAWN[name])
    def check(data: bytes) -> None:
        readers.read(name, data)

    check()


@pytest.mark.parametrize("name", readers.READERS)
def test_a_good_file_is_read_and_a_mutated_one_read_or_refused_in_our_words(name: str) -> None:
    good = readers.seeds()[name]
    assert readers.read(name, good[0]) is not None

    @QUICK
    @given(st.integers(0, len(good) - 1), st.lists(st.integers(0, 2**31), min_size=16, max_size=16))
    def check(which: int, choices: list[int]) -> None:
        readers.read(name, readers.mutated(good[which], iter(choices)))

    check()


KINDS: dict[str, Callable[[Any], pa.Array]] = {
    "text": lambda v: pa.array([str(v), None, "b"]), "number": lambda v: pa.array([1.5, float("nan"), None]),
    "whole": lambda v: pa.array([0, -1, 2**62]), "list": lambda v: pa.array([[1.0], [], None]),
    "nested": lambda v: pa.array([[[1]], None, []]), "struct": lambda v: pa.array([{"a": 1}, None, {"a": None}]),
    "null": lambda v: pa.nulls(3), "bytes": lambda v: pa.array([b"\0", None, b"x"]), "date": lambda v: pa.array([datetime.date(1, 1, 1)] * 3),
    "dictionary": lambda v: pa.array(["a", None, "a"]).dictionary_encode(), "half": lambda v: pa.array(np.ones(3, np.float16)),
    "fixed": lambda v: pa.array([[1.0]] * 3, pa.list_(pa.float32(), 1)), "ids": lambda v: pa.array(["a", "b", "c"]), "good": lambda v: pa.array([0, 1, 0]),
}  # fmt: skip


@MORE
@given(
    st.dictionaries(
        st.sampled_from(["id", "label", "split", "weight", "group", "features", "image", "path", "text"]),
        st.sampled_from(sorted(KINDS)),
        min_size=1,
    ),
    st.dictionaries(
        st.sampled_from(["classes", "influence", "task", "influence.columns"]),
        NESTED.map(lambda v: as_json(v).decode()),
        max_size=2,
    ),
    TEXT,
)
@example({"id": "ids", "label": "good", "features": "fixed"}, {}, "")
def test_manifests_of_any_types_are_read_or_refused_in_our_words(
    columns: dict[str, str], metadata: dict[str, str], value: str
) -> None:
    value = value.encode(errors="replace").decode()
    table = pa.table({name: KINDS[kind](value) for name, kind in columns.items()}).replace_schema_metadata(metadata)
    readers.read("manifest", readers.parquet(table))


@MORE
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1, max_size=6, unique=True))
@example(["\0", "\x1b[31m", "\u202e", "a\r\nb", "=cmd|'/c calc'!A0"])
def test_ids_are_those_that_were_written_whatever_stands_in_them(ids: list[str]) -> None:
    features = [[float(k)] for k in range(len(ids))]
    path = readers.file_of("ids.parquet", b"")
    pq.write_table(pa.table({"id": ids, "features": features, "label": [0] * len(ids)}), path)
    try:
        assert open_manifest(path).ids == ids
    except InfluenceError:
        assert "" in ids  # an empty name is none


@MORE
@given(st.one_of(TEXT, st.floats().map("{}%".format), st.integers().map(str)), st.integers(0, 10**6))
def test_a_budget_is_a_number_of_rows_that_there_are_or_refused(text: str, n: int) -> None:
    try:
        rows = parse_budget(text, n)
    except UsageError:
        return
    assert 0 <= rows <= n
    if text.endswith("%"):
        assert abs(rows - float(text[:-1]) / 100 * n) < 1 + 1e-6 * n
    else:
        assert rows == int(text)


@pytest.mark.parametrize(("name", "path"), readers.kept(), ids=lambda part: getattr(part, "stem", str(part)))
def test_what_was_found_is_read_or_refused_in_our_words(name: str, path: Any) -> None:
    readers.read(name, path.read_bytes())


@pytest.mark.skipif(sys.platform == "win32", reason="no such timer")
def test_the_guided_run_keeps_an_input_that_a_reader_does_not_refuse(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(data: bytes) -> None:
        if b"!" in data:
            raise KeyError("no reader raises that")

    monkeypatch.setitem(readers.READERS, "sealed JSON", read)
    tried = fuzz.Tried("sealed JSON", tmp_path / "found")
    for data in (b"a", b"b!", b"c!"):
        tried(data)
    assert (tried.inputs, sum(tried.defects.values())) == (3, 2)
    (kept,) = (tmp_path / "found").iterdir()
    assert kept.read_bytes() == b"b!"
    assert kept.name.startswith("sealed_JSON--")


def test_what_libfuzzer_leaves_itself_lies_where_defects_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[str] = []
    fake = types.ModuleType("atheris")
    fake.__dict__.update(
        instrument_imports=lambda **_: contextlib.nullcontext(), Setup=lambda argv, _: given.extend(argv), Fuzz=list
    )
    monkeypatch.setitem(sys.modules, "atheris", fake)
    fuzz._guided(fuzz.Tried("toml", tmp_path / "found"), 1.0)
    (prefix,) = (option for option in given if option.startswith("-artifact_prefix="))
    assert prefix == f"-artifact_prefix={tmp_path / 'found'}{os.sep}"
    assert (tmp_path / "found").is_dir()
