"""What a kind of payload says of itself; nothing outside ``data.kinds`` asks which kind a payload is.

A kind is stored in one or several columns of a manifest.  A row's payload is one value or a dict of them; decoded it is
an array or a dict of arrays by name, a batch stacks these, and the model is given one tensor or a dict of tensors.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.store.keys import payload_key

Payload = Any  # what a row holds: encoded bytes, a vector, or a dict of such values
Decoded = NDArray[Any] | dict[str, NDArray[Any]]
InputSpec = Any  # what a model says of its input: shape, mean, std, interpolation, crop, decoder and task
ANY_NUMBER = (-math.inf, math.inf)
LARGEST_FILE = 1 << 30  # bytes of one payload: more than any image that is decoded
SHOWN = 1500  # characters of a text on a page of many


class BadPayload(ValueError):
    """Why a payload cannot be used, and what to do about it."""

    def __init__(self, what: str, fix: str = "repair the row", position: int | None = None) -> None:
        """``position`` is that of the number at fault, where columns of the source became one vector."""
        super().__init__(what)
        self.fix, self.position = fix, position


class Kind:
    """A kind of payload; the methods here are those of numbers that a model takes as they are."""

    name: ClassVar[str]  # in a manifest, or in a model's description
    columns: ClassVar[tuple[str, ...]] = ()  # of a manifest; a kind without any is in no file
    types: ClassVar[dict[str, pa.DataType]] = {}  # of columns in a manifest that is written
    wanted: ClassVar[str] = "a list of numbers"  # what a column holds, for messages
    domain: ClassVar[str] = ""  # of its keys: equal bytes of two kinds are not the same payload (16 letters at most)
    model_kind: ClassVar[str | None] = None  # what a model that takes it calls its input; None: as the manifest
    pixels: ClassVar[bool] = False  # decoded to an image, which has a size, channels with a mean and a sd, and a file
    as_it_is: ClassVar[bool] = True  # whether a model takes it without being told how it becomes its input
    scaled: ClassVar[bool] = False  # whether a model may take it less a mean, by a sd, number by number
    ragged: ClassVar[bool] = False  # rows are of several lengths, and a batch is filled up to the longest
    own_target: ClassVar[bool] = False  # what a model may learn to predict itself, so that rows need no labels
    threads: ClassVar[bool] = True  # whether decoding leaves the interpreter, so that threads pay
    batch_rows: ClassVar[int] = 1024  # rows that are read at once
    repair: ClassVar[str] = "repair the payload or take the row out"
    bounds: ClassVar[tuple[float, float]] = ANY_NUMBER  # of valid values
    largest_change: ClassVar[float] = 0.1  # of a value under attack, or of a text's embedding over its mean length

    # -- in a manifest -------------------------------------------------------------------------------------------------

    @property
    def column(self) -> str:
        """Its columns as messages name them."""
        return ", ".join(self.columns) or self.name

    @property
    def input_name(self) -> str:
        """What a model that takes it calls its input."""
        return self.model_kind or self.name

    def holds(self, kind: pa.DataType) -> bool:
        """Whether a column of this type can hold it."""
        return is_numbers(kind)

    def stored(self, batch: pa.RecordBatch, folder: Path) -> list[Payload | Path | None]:
        """The payloads of a batch of its columns; a Path where only a path is stored, None where nothing is."""
        raise NotImplementedError

    def paths(self, batch: pa.RecordBatch) -> list[str | None]:
        """The paths that are stored with the payloads of a batch."""
        return [None] * len(batch)

    def by_path(self, schema: pa.Schema) -> bool:
        """Whether rows may name files by path, which change without the manifest."""
        return False

    def fault(self, payload: Payload) -> BadPayload | None:
        """Why a payload cannot be used; None where it can."""
        return None

    def widths(self, payload: Payload) -> dict[str, int]:
        """The numbers in each column, of which all rows have to have the same."""
        return {}

    def raw(self, payload: Payload) -> bytes:
        """The bytes that a payload is named by; encoded bytes are their own."""
        return payload

    def raw_rows(self, batch: pa.RecordBatch) -> NDArray[Any] | None:
        """The payloads of a batch as an array [n, w] whose rows are their ``raw`` bytes, of w numbers each.

        None where a row cannot be used or is of another length, and where rows have to be looked at one by one.
        """
        return None

    def key(self, payload: Payload) -> bytes:
        """16 bytes that name a payload by its content."""
        return payload_key(self.domain, self.raw(payload))

    def moved(self, table: pa.Table, move: Callable[[str | None], str | None]) -> pa.Table:
        """The manifest's table with its relative paths changed by ``move``."""
        return table

    # -- from a source -------------------------------------------------------------------------------------------------

    def file_named(self, row: Mapping[str, Any], folder: Path) -> Path | None:
        """The file that a source's row of plain values names in place of a payload; None where it names none."""
        return None

    def from_source(self, row: Mapping[str, Any], folder: Path) -> Payload:
        """The payload of a source's row of plain values, read and checked.  Raises BadPayload: it cannot be used."""
        columns = {name: pa.array([row[name]], self.types[name]) for name in self.columns}
        (payload,) = self.stored(pa.RecordBatch.from_pydict(columns), folder)
        if payload is None:
            raise BadPayload(f"column {self.column}: the payload is empty")
        bad = self.fault(payload)
        if bad is not None:
            raise bad
        return payload

    def remarks(self, payload: Payload) -> list[str]:
        """What of a usable payload is read otherwise than people may think, as "WHAT: HOW"."""
        return []

    def placed(self, row: dict[str, Any], payload: Payload, embed: bool, folder: Path, output: Path) -> dict[str, Any]:
        """A source's row as the manifest in folder ``output`` holds it."""
        return row

    # -- to a model ----------------------------------------------------------------------------------------------------

    def shape(self, payload: Payload, whole: bool = False) -> tuple[int, ...]:
        """The sizes of a payload's input, for the model's description; with ``whole`` of one that decodes to its end.

        Raises:
            Exception: it does not decode.
        """
        raise NotImplementedError

    def decode(self, payload: Payload, spec: InputSpec) -> Decoded:
        """One row's values.  Raises ValueError: it cannot be decoded, or does not fit; callers add the row's name."""
        raise NotImplementedError

    def decoder(self, spec: InputSpec) -> str | None:
        """Under what name payloads that do not decode are remembered; None: they are not."""
        return None

    def odd(self, values: Sequence[Decoded]) -> int | None:
        """The first of a batch's rows whose shape or type is not that of the first row; None where there is none."""
        forms = [form_of(value) for value in values]
        return next((k for k, form in enumerate(forms) if form != forms[0]), None)

    def lengths(self, decoded: Decoded) -> NDArray[np.int64]:
        """How long each of the rows of a batch [b, T] of a ragged kind is, of what is filled up [b]."""
        raise NotImplementedError

    def collate(self, values: Sequence[Decoded]) -> Decoded:
        """One batch [b, ...] of rows of one form.

        The memory of images stays as decoded, pixel by pixel (channels last), which is what convolutions are fast on.
        """
        first = values[0]
        if isinstance(first, dict):
            return {name: np.stack([value[name] for value in values]) for name in first}  # pyright: ignore[reportCallIssue, reportArgumentType]
        return np.stack(values)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def blank(self, spec: InputSpec, rows: int) -> Decoded | None:
        """A model's input of zeros; None where the model does not say what its input is."""
        return np.zeros((rows, *spec.shape), dtype=np.float32)

    def filled(self, spec: InputSpec) -> tuple[Decoded, Decoded] | None:
        """A row alone [1, ...], and as the first of a batch in which it is filled up; None where rows never are."""
        return None

    def as_numbers(self, decoded: Any, dtype: Any) -> Any:
        """A tensor of decoded values in ``dtype``, in the units in which they are attacked; integers stay."""
        return decoded.to(dtype) if decoded.is_floating_point() else decoded

    def normalised(self, values: Any, spec: InputSpec) -> Any:
        """The model's input, from a tensor of ``as_numbers``; differentiable."""
        return values

    def to_attack(self, decoded: Any, spec: InputSpec, dtype: Any) -> Any:
        """A tensor of decoded values in the units in which they are attacked."""
        return self.as_numbers(decoded, dtype)

    def of_attacked(self, values: Any, spec: InputSpec) -> Any:
        """The model's input, from a tensor of ``to_attack``; differentiable."""
        return self.normalised(values, spec)

    def to_input(self, decoded: Any, spec: InputSpec, dtype: Any) -> Any:
        """The model's input, from a tensor of a decoded batch [b, ...] or a dict of them."""
        if isinstance(decoded, dict):
            return {name: self.to_input(tensor, spec, dtype) for name, tensor in decoded.items()}
        return self.as_numbers(decoded, dtype)

    # -- to people -----------------------------------------------------------------------------------------------------

    def as_values(self, payload: Payload) -> dict[str, Any] | None:
        """Plain values by column, for lines of text; None where text holds no such payload."""
        return None

    def value_name(self, column: str, position: int) -> str:
        """What one number of a column is called where every number has a column of its own."""
        return f"{column}_{position}"

    def shown(self, payload: Payload, where: str) -> dict[str, Any]:
        """What a person who labels it is shown, by name of the column."""
        return self.as_values(payload) or {}

    def card(self, payload: Payload, where: str) -> dict[str, Any]:
        """How a page shows one of many rows: ``picture``, a small data URI, or ``texts`` by column, each cut short."""
        parts = (self.as_values(payload) or {}).items()
        return {"texts": {name: shortened(part) for name, part in parts}}

    def compared(self, payload: Payload) -> NDArray[Any] | None:
        """Its numbers [d], where each means something beside those of other rows; None where none does."""
        return None

    def as_arrays(self, payload: Payload, where: str) -> Decoded:
        """A payload as an array, or as arrays by name; a vector is its own."""
        return payload

    def embedded(self, payload: Payload, path: str | None) -> dict[str, Any]:
        """A payload by column of ``embedded_types``, for a table that can be moved."""
        return self.as_values(payload) or {}

    @property
    def embedded_types(self) -> dict[str, tuple[pa.DataType, dict[str, Any]]]:
        """Columns of a table that can be moved: Arrow's type, and how Hugging Face describes it."""
        numbers = {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}
        return {name: (kind, numbers) for name, kind in self.types.items()}


def shortened(value: Any, most: int = SHOWN) -> str:
    """A value as text of at most so many characters, and how many more there are.

    >>> shortened("a text", 3), shortened([0.5, 1.0])
    ('a t ... (3 more characters)', '0.5, 1.0')
    """
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= most else f"{text[:most]} ... ({len(text) - most:,} more characters)"


def read_file(path: Path) -> bytes:
    """The bytes of a regular file: a pipe would be waited for, and a device may have no end.

    Raises:
        OSError: it is no regular file, is too large, or cannot be read.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "its name has a null character")
    found = os.stat(path)  # before it is opened: to open a device may already do something, and a pipe waits
    if not stat.S_ISREG(found.st_mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for test, name in kinds if test(found.st_mode)), "a device")
        raise OSError(errno.EINVAL, f"{kind}, not a regular file")
    if found.st_size > LARGEST_FILE:
        raise OSError(errno.EFBIG, f"more than {LARGEST_FILE >> 30} GiB")
    return path.read_bytes() if found.st_size else b""  # files of /proc say 0, and may be waited for


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_numbers(kind: pa.DataType) -> bool:
    """Whether a type is a list of numbers."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def form_of(value: Decoded) -> str:
    """The type and shape of decoded values, by name where they have names."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {form_of(part)}" for name, part in sorted(value.items()))
    return f"{value.dtype} {value.shape}"
