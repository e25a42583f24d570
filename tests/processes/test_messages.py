"""What processes hand each other is data: it comes back as it was, and no message makes code run."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from influence_cli.curvature.row_sums import RowSums
from influence_cli.errors import ManifestError, UsageError, WrongArgument
from influence_cli.processes import messages
from influence_cli.processes.group import Job
from influence_cli.processes.messages import LENGTH, BadMessage, packed, unpacked
from influence_cli.settings import GradSpec, Inputs, Runtime
from tests import beside

assert "tests" in messages.OURS, beside


@dataclass(frozen=True)
class Record:
    """Fields of every sort."""

    values: Any
    name: str = "n"


class Pair(NamedTuple):
    """Two values by name."""

    first: Any
    second: Any


class Asks(Job):
    """A job with an argument."""

    def __init__(self, value: Any) -> None:
        self.value = value


def again(value: Any) -> Any:
    """A value after its journey."""
    return unpacked(packed(value))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner)
        | st.builds(Record, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=20,
)


@given(plain)
def test_plain_values_and_records_come_back_as_they_were(value: Any) -> None:
    found = again(value)
    assert found == value
    assert repr(found) == repr(value)  # types too: a list is no tuple, 1 is not 1.0, and -0.0 keeps its sign


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i8", "u1", "?", "<c16", "<U3", "S2", "<M8[s]"])
def test_arrays_come_back_and_can_be_written_to(dtype: str) -> None:
    for shape in ((3, 2), (0, 4), ()):
        value = np.arange(np.prod(shape, dtype=int)).astype(np.int64).astype(dtype).reshape(shape)
        found = again({"a": value})["a"]
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert found.tobytes() == value.tobytes()
        assert found.flags.writeable
    nan = np.array([np.nan, -0.0, np.inf])
    assert again(nan).tobytes() == nan.tobytes()
    assert again(np.float32(0.1)) == np.float32(0.1)
    assert type(again(np.int64(3))) is np.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back(dtype: torch.dtype) -> None:
    for shape in ((2, 3), (0, 3), ()):
        value = torch.ones(shape, dtype=dtype)
        found = again(value)
        assert (found.dtype, found.shape) == (dtype, value.shape)
        assert torch.equal(found, value)
    assert torch.equal(again(torch.arange(6.0).reshape(2, 3).T), torch.arange(6.0).reshape(2, 3).T)


def test_settings_paths_sets_jobs_functions_and_errors_come_back() -> None:
    asked = (Inputs("m.parquet", mean="0.5"), GradSpec(options={"ip": {"k": 3}}), Runtime(), Path("a/b"))
    assert again(asked) == asked
    assert again({frozenset({1}): {2, 3}}) == {frozenset({1}): {2, 3}}
    assert again(MappingProxyType({"a": 1})) == {"a": 1}
    job = Asks(np.ones(2))
    job.here = lambda: None  # of the leader alone
    found = again(job)
    assert type(found) is Asks
    assert found.value.tolist() == [1.0, 1.0]
    assert found.here is None
    of = again(partial(RowSums.product_sums, kind="hessian", columns=np.ones((2, 1))))
    assert of.func is RowSums.product_sums
    assert of.keywords["kind"] == "hessian"
    for error in (
        ManifestError("bad", where="row 3", fix="mend it"), WrongArgument("x", fix="y"), MemoryError("much"),
        OSError(28, "No space left on device", "f"), RuntimeError("r"),
    ):  # fmt: skip
        error.add_note("in process 1")
        found = again(error)
        assert (type(found), str(found), found.__notes__) == (type(error), str(error), ["in process 1"])
        assert vars(found) == vars(error)
    assert again(FileNotFoundError(2, "No such file", "f")).filename == "f"
    assert type(again(KeyError("of nobody's"))) is RuntimeError


@pytest.mark.parametrize("value", [object(), np.array([object()]), lambda: 0, open, json.JSONDecoder(), type])
def test_what_is_no_data_cannot_be_sent(value: Any) -> None:
    with pytest.raises(BadMessage):
        packed([value])


def message(text: Any, content: bytes = b"") -> bytes:
    """A message of somebody else's."""
    encoded = json.dumps(text).encode()
    return len(encoded).to_bytes(LENGTH, "little") + encoded + content


@pytest.mark.parametrize(
    "text",
    [
        ["name", "os:system"],
        ["name", "influence_cli.processes.messages:importlib"],
        ["name", "influence_cli.processes.messages:importlib.import_module"],
        ["name", "influence_cli.store.files:write_json"],  # ours, and not to be sent
        ["name", "influence_cli.cli.main:run"],
        ["name", "influence_cli/x:y"],
        ["name", "influence_cli.processes.messages:may_be_sent.__globals__"],
        ["partial", ["name", "os:system"], ["tuple", "true"], ["dict"]],
        ["record", "subprocess:Popen", ["args", "true"]],
        ["record", "influence_cli.processes.by_torch:TorchGroup"],
        ["record", "pathlib:Path"],
        ["error", "builtins:SystemExit", {"what": "x"}, []],
        ["error", "influence_cli.settings:Inputs", {"what": "x"}, []],
        ["_init__", []], ["value", 1], ["kept", 1], [["list"]], [], {}, {"a": 1},
        ["array", "|O", [1], 8], ["array", "<f8", [2], 8], ["array", "<f8", [-1, -1], 8], ["array", "<f8", [1], 8],
        ["tensor", "load", [1], 8], ["tensor", "float32", [10**12], 4 * 10**12], ["bytes", -1], ["bytes", 5],
        ["record", "influence_cli.settings:Inputs", "x"],
    ],
)  # fmt: skip
def test_a_message_that_names_other_things_is_refused(text: Any) -> None:
    with pytest.raises(BadMessage):
        unpacked(message(text))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused_in_our_words(content: bytes) -> None:
    for raw in (content, message(["list", ["bytes", 3], ["array", "<f4", [2], 8]], content)):
        try:
            unpacked(raw)
        except BadMessage:
            continue
        assert raw is not content or len(content) > LENGTH


def test_a_pickle_is_no_message() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return pytest.fail, ("a pickle ran",)

    with pytest.raises(BadMessage):
        unpacked(pickle.dumps(Evil()))


def test_an_error_of_ours_that_holds_what_is_not_sent_is_still_told() -> None:
    error = UsageError("what", where="where")
    error.more = object()  # type: ignore[attr-defined]
    found = beside.ThreadGroup(1, beside.Meeting(2))._carried(error)
    assert type(found) is RuntimeError
    assert str(found).startswith("UsageError: what")
