"""Vectors of numbers, which a model takes as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.kinds.protocol import BadPayload, InputSpec, Kind
from influence_cli.store.arrow import values_of

Vector = NDArray[np.float32]


class Features(Kind):
    """One vector a row, in column ``features``."""

    name = "features"
    columns = ("features",)
    types = {"features": pa.list_(pa.float32())}  # noqa: RUF012
    domain = "influence.feat"
    scaled = True
    threads = False  # numbers are there already
    batch_rows = 4096

    def stored(self, batch: pa.RecordBatch, folder: Path) -> list[Any]:
        """Vectors f32."""
        return vectors(batch.column("features"))

    def fault(self, payload: Vector) -> BadPayload | None:
        """Values are finite, and there are some."""
        if not len(payload):
            return BadPayload("the row has no feature", "fill it in or take the row out")
        bad = not np.isfinite(payload).all()
        return BadPayload("a feature is not finite", "impute it or take the row out") if bad else None

    def widths(self, payload: Vector) -> dict[str, int]:
        """The vector's length."""
        return {"features": len(payload)}

    def raw(self, payload: Vector) -> bytes:
        """The values, little-endian."""
        return payload.astype("<f4").tobytes()

    def raw_rows(self, batch: pa.RecordBatch) -> NDArray[Any] | None:
        """The values, where there are some, all are finite and rows are of one length."""
        stacked = _stacked(batch.column("features"))
        if stacked is None or not stacked.size or not bool(np.isfinite(stacked).all()):
            return None
        return stacked.astype("<f4", copy=False)

    def from_source(self, row: Mapping[str, Any], folder: Path) -> Vector:
        """The vector of a list that lacks nothing.  Raises BadPayload: a value is missing or not finite."""
        values = row["features"]
        if values is None:
            raise BadPayload("column features: a value is missing or not finite")
        vector = np.array([np.nan if v is None else v for v in values], np.float32)
        if not len(vector):
            raise BadPayload("column features: the row has no feature", "fill it in or take the row out")
        bad = np.flatnonzero(~np.isfinite(vector))
        if len(bad):
            raise BadPayload("column features: a value is missing or not finite", position=int(bad[0]))
        return vector

    def shape(self, payload: Vector, whole: bool = False) -> tuple[int, ...]:
        """The vector's length."""
        return (len(payload),)

    def decode(self, payload: Any, spec: InputSpec) -> Vector:
        """The vector.  Raises ValueError: it has another length than the model takes."""
        if not isinstance(payload, np.ndarray) or payload.shape != spec.shape:
            what = f"{np.size(payload)} features where the model takes {math.prod(spec.shape)}"
            raise ValueError(f"{what}; a table of the same columns fits when it is read with --like MANIFEST")
        return payload

    def normalised(self, values: Any, spec: InputSpec) -> Any:
        """Less the mean, by the sd, where the model was trained on such; at least in float32, since means are large."""
        if not spec.mean:
            return values
        import torch

        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        mean, std = (torch.tensor(v, dtype=exact.dtype, device=exact.device) for v in (spec.mean, spec.std))
        return ((exact - mean) / std).to(values.dtype)

    def to_input(self, decoded: Any, spec: InputSpec, dtype: Any) -> Any:
        """The values, standardised before they are rounded to the model's precision."""
        if not spec.mean:
            return self.as_numbers(decoded, dtype)
        import torch

        return self.normalised(decoded.to(torch.promote_types(dtype, decoded.dtype)), spec).to(dtype)

    def to_attack(self, decoded: Any, spec: InputSpec, dtype: Any) -> Any:
        """The model's own input: an attack moves every feature by as many sd."""
        return self.to_input(decoded, spec, dtype)

    def of_attacked(self, values: Any, spec: InputSpec) -> Any:
        """What was attacked is the model's input."""
        return values

    def as_values(self, payload: Vector) -> dict[str, Any]:
        """A list of numbers."""
        return {"features": payload.tolist()}

    def card(self, payload: Vector, where: str) -> dict[str, Any]:
        """Nothing: its numbers are shown beside those of other rows."""
        return {}

    def compared(self, payload: Vector) -> Vector:
        """The vector."""
        return payload

    def value_name(self, column: str, position: int) -> str:
        """``feature_0`` and so on."""
        return f"feature_{position}"


def vectors(column: pa.Array) -> list[Vector | None]:
    """Vectors f32 of a column; rows of one buffer where none is null and all are as long, which is quick."""
    stacked = _stacked(column)
    if stacked is not None:
        return list(stacked)
    return [None if v is None else np.asarray(v, dtype=np.float32) for v in column.to_pylist()]


def _stacked(column: pa.Array) -> NDArray[np.float32] | None:
    """The vectors of a column as one array [n, d]; None where one is null or of another length."""
    lengths = column.value_lengths() if not pa.types.is_fixed_size_list(column.type) else None
    values = column.flatten()  # leaves null rows out
    even = lengths is None or (len(lengths) > 0 and lengths.null_count == 0 and len(lengths.unique()) == 1)
    if not len(column) or column.null_count or values.null_count or not even:
        return None
    return values_of(values, 0.0).astype(np.float32, copy=False).reshape(len(column), -1)
