"""Payloads into model inputs: decode, resize, normalise, batch; reading runs ahead of compute on threads."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.data.kinds.protocol import Decoded, Kind, Payload, form_of
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.errors import ManifestError, ModelError
from influence_cli.events import Listener, Progress
from influence_cli.model.decoded import DecodedByKey, OddRows, decoded_by_place, rows_at
from influence_cli.model.named_tensors import Inputs, as_argument, as_rows, from_arrays, mapped
from influence_cli.model.spec import ModelSpec
from influence_cli.store.shards import key_order, unique

T = TypeVar("T")
ONE_FORM = "let the task's transform give inputs of one shape and type"
FEWEST, FILLED = 8, 0.1  # of a ragged batch: parts of a full one that it has at least, and share that is filling
WINDOW = 32  # batches among which rows are sorted by length
ASYNCHRONOUS = ("cuda",)  # devices that copy while the host goes on, from memory and into memory that is pinned
FEW = 16  # rows from all over the data, on which whatever is tried is checked


def to_input(decoded: Inputs, spec: ModelSpec, dtype: torch.dtype) -> Any:
    """Model input [n, ...], as the payload's kind makes it."""
    return as_rows(spec.payload_kind.to_input(as_argument(decoded), spec, dtype))


def blank_input(spec: ModelSpec, rows: int, dtype: torch.dtype) -> Any:
    """A model's input of zeros; None where the model does not say what its input is."""
    blank = spec.payload_kind.blank(spec, rows)
    return None if blank is None else mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, from_arrays(blank))


def ahead(items: Iterator[T], depth: int = 3) -> Iterator[T]:
    """The same items, produced up to ``depth`` ahead on a thread; its exceptions arrive here."""
    pool, end = ThreadPoolExecutor(max_workers=1), object()
    try:
        ready = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := ready.popleft().result()) is not end:
            ready.append(pool.submit(next, items, end))
            yield cast(T, item)
    finally:
        pool.shutdown(cancel_futures=True)


def batches(
    manifest: Manifest,
    chunks: Iterable[list[tuple[int, Payload]]],
    spec: ModelSpec,
    workers: int = 2,
    on_bad: Callable[[int, str], None] | None = None,
    held: DecodedByKey | None = None,
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """(rows [b], decoded [b, ...]) of each chunk of (row, payload); memory holds a few batches.

    A row that cannot be decoded is an error that names it, or is left out and told to ``on_bad``.  Payloads in ``held``
    are not decoded again, and others are put there while there is room.
    """
    kind = spec.payload_kind

    def decoded(item: tuple[int, Payload]) -> Decoded | None:
        key = manifest.payload_keys[item[0]].tobytes()
        known = None if held is None else held.get(key, spec)
        if known is not None:
            return known
        try:
            value = manifest.decoded(*item, spec)
            if held is not None:
                held.put(key, spec, value)
            return value
        except ManifestError as error:
            if on_bad is None:
                raise
            on_bad(item[0], error.what)
            return None

    def produce() -> Iterator[tuple[NDArray[np.int64], Any]]:
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            for chunk in chunks:
                # threads pay for images, whose decoding leaves the interpreter, not for vectors
                values = list((pool.map if kind.threads else map)(decoded, chunk))
                rows = [row for (row, _), value in zip(chunk, values, strict=True) if value is not None]
                good = [value for value in values if value is not None]
                if good:
                    yield np.array(rows, dtype=np.int64), _stacked(good, rows, manifest, kind)

    return ahead(produce())


def from_all_over(rows: Rows, spec: ModelSpec, held: DecodedByKey | None = None) -> Any:
    """16 decoded rows, chosen by their keys and so from all over the data, or those of fewer that decode; or None."""
    keys = rows.payload_keys
    first = unique(keys)
    chosen = rows.index[first[key_order(keys[first])[:FEW]]]
    parts = batches(rows.manifest, [list(rows.manifest.payloads(chosen))], spec, 1, lambda *_: None, held)
    return next((decoded for _, decoded in parts), None)


def _stacked(values: list[Decoded], rows: list[int], manifest: Manifest, kind: Kind) -> Any:
    """One batch [b, ...]; refuses inputs of different shapes, which only a task's transform can give."""
    odd = kind.odd(values)
    if odd is not None:
        here, there = (form_of(values[k]) for k in (odd, 0))
        what = f"its input is {here}, that of row id={manifest.ids[rows[0]]} {there}"
        raise ManifestError(what, where=manifest.place(rows[odd], manifest.payload_kind.column), fix=ONE_FORM)
    return from_arrays(kind.collate(values))


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    left = iter(items)
    while chunk := list(itertools.islice(left, size)):
        yield chunk


def alike(items: Iterable[tuple[int, Payload]], kind: Kind, batch_size: int) -> Iterable[tuple[int, Payload]]:
    """The same (row, payload), of ragged kinds with rows of like length beside each other, so that less is filled up.

    They are sorted among as many as ``WINDOW`` batches hold, so that memory stays flat.
    """
    if not kind.ragged:
        return items
    return (item for some in chunked(items, WINDOW * batch_size) for item in sorted(some, key=lambda i: _long(kind, i)))


def wasteful(chunk: Sequence[tuple[int, Payload]], more: tuple[int, Payload], kind: Kind, batch_size: int) -> bool:
    """Whether ``more``, the next in length, is better left to another batch than to have all of ``chunk`` filled up.

    A batch has at least one of ``FEWEST`` parts of ``batch_size``, since many small ones cost more than some filling.
    """
    if not kind.ragged or len(chunk) < batch_size / FEWEST:
        return False
    middle = kind.shape(chunk[len(chunk) // 2][1])[0]
    return kind.shape(more[1])[0] > (1 + FILLED) * middle


def _long(kind: Kind, item: tuple[int, Payload]) -> tuple[int, int]:
    """What sorts rows by length; the row's number makes the order one."""
    return kind.shape(item[1])[0], item[0]


def move(rows: Any, device: torch.device) -> Any:
    """Rows on ``device``, through pinned memory and without waiting where there is an accelerator."""
    if device.type in ASYNCHRONOUS:
        return mapped(lambda t: t.pin_memory().to(device, non_blocking=True), rows)
    return rows.to(device)


def sent_back(tensor: Tensor) -> Callable[[], NDArray[Any]]:
    """Start copying a result to the host, and a function that waits for it: a GPU goes on with the next batch."""
    if tensor.device.type not in ASYNCHRONOUS:
        return tensor.cpu().numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> NDArray[Any]:
        done.synchronize()
        return host.numpy()

    return wait


class Examples:
    """Decoded rows [n, ...] with ids, labels and weights, in memory or a mapped file."""

    def __init__(
        self, rows: Rows, spec: ModelSpec, listener: Listener, what: str, instead: Mapping[int, Payload] | None = None
    ) -> None:
        """Decode every row, or by its place in the manifest what stands ``instead`` of its payload.

        Raises:
            ModelError: a task's transform gives inputs of several shapes.
        """
        self.ids, self.labels, self.weights, self.spec = rows.ids, rows.labels, rows.weights, spec
        self.inputs: NDArray[np.float64] | None = None  # kept by ``train.convex``
        self.places: NDArray[np.int64] | None = None  # of some rows alone, where they are among those that are decoded
        place = {row: k for k, row in enumerate(rows.index.tolist())}
        with listener.progress(f"decode {what}", len(rows), "rows decoded") as progress:
            try:
                self.values = decoded_by_place(
                    self._batches(rows, progress, instead or {}), place, ragged=spec.payload_kind.ragged
                )
            except OddRows as error:
                what = f"{error} (from row id={rows.manifest.ids[error.row]} on)"
                raise ModelError(what, fix=ONE_FORM) from error

    def _batches(
        self, rows: Rows, progress: Progress, instead: Mapping[int, Payload]
    ) -> Iterator[tuple[NDArray[np.int64], Any]]:
        payloads = ((row, instead.get(row, own)) for row, own in rows.manifest.payloads(rows.index))
        for index, decoded in batches(rows.manifest, chunked(payloads, 256), self.spec):
            yield index, decoded
            progress.advance(len(index))

    def at(self, places: NDArray[np.int64] | slice) -> Any:
        """The decoded rows at some places."""
        return rows_at(self.values, places if self.places is None else self.places[places])

    def _lengths(self) -> NDArray[np.int64]:
        """How long each row of a ragged kind is."""
        every = self.spec.payload_kind.lengths(self.values)
        return every if self.places is None else every[self.places]

    def batches(self, rows: int, tokens: int | None = None) -> Iterator[NDArray[np.int64]]:
        """Places of all rows, up to so many at a time, and of texts up to so many ``tokens``; one row at least.

        Rows of ragged kinds come by their length, so that little of a batch is filled up; others in their order.
        """
        order = np.arange(len(self), dtype=np.int64)
        if not self.spec.payload_kind.ragged:
            yield from (order[first : first + rows] for first in range(0, len(self), rows))
            return
        lengths = self._lengths()
        order, first = np.argsort(lengths, kind="stable"), 0
        for end, long in enumerate(lengths[order].tolist()):
            more = end + 1 - first  # rows, all of which are filled up to this one's length
            if more > 1 and (more > rows or (tokens is not None and more * long > tokens)):
                yield order[first:end]
                first = end
        yield order[first:]

    def only(self, places: NDArray[np.int64]) -> Examples:
        """Those at some places."""
        some = copy.copy(self)
        some.places, some.inputs = places if self.places is None else self.places[places], None
        some.ids = [self.ids[k] for k in places.tolist()]
        some.labels, some.weights = self.labels[places], self.weights[places]
        return some

    def __len__(self) -> int:
        return len(self.ids)
