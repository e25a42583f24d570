"""Payloads into model inputs: decode, resize, normalise, batch; reading runs ahead of compute on threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.data.manifest import Manifest, Payload, Rows
from influence_cli.errors import ManifestError
from influence_cli.model.decode import decode_row
from influence_cli.model.spec import ModelSpec
from influence_cli.store.shards import key_order, unique

T = TypeVar("T")
FEW = 16  # rows from all over the data, on which whatever is tried is checked


def to_input(decoded: Tensor, spec: ModelSpec, dtype: torch.dtype) -> Tensor:
    """Model input [n, ...]: (pixels / 255 - mean) / sd per channel, or what was decoded; integers of a task stay."""
    if spec.kind == "task":
        return decoded.to(dtype) if decoded.is_floating_point() else decoded
    if spec.kind == "features":
        return decoded.to(dtype)
    shape = (1, -1, 1, 1)
    mean = torch.tensor(spec.mean, dtype=dtype, device=decoded.device).view(shape)
    std = torch.tensor(spec.std, dtype=dtype, device=decoded.device).view(shape)
    values = decoded.to(dtype)
    values = values.clone() if values is decoded else values
    return values.div_(255.0).sub_(mean).div_(std)


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items, produced up to ``depth`` ahead on a thread; its exceptions arrive here."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(entry: tuple[str, Any]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(("item", item)):
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


class Decoded:
    """Decoded payloads that another pass will ask for: as many as fit in so many bytes, the first ones to come.

    They are known by their payload keys, since rows of other manifests have the same places and may have the same
    source's name; and for one spec alone, which says how a payload becomes an input.
    """

    def __init__(self, spec: ModelSpec, most: int = 1 << 28) -> None:
        """Payloads as ``spec`` decodes them, of which ``most`` bytes are held at once."""
        self.spec, self.room, self._rows, self._lock = spec, most, dict[bytes, NDArray[Any]](), threading.Lock()

    def get(self, key: bytes, spec: ModelSpec) -> NDArray[Any] | None:
        """The payload of a key as it was decoded, or None."""
        return self._rows.get(key) if spec is self.spec else None

    def put(self, key: bytes, spec: ModelSpec, value: NDArray[Any]) -> None:
        """Hold a decoded payload where there is room for it."""
        with self._lock:  # rows are decoded on several threads
            if spec is self.spec and key not in self._rows and value.nbytes <= self.room:
                self.room -= value.nbytes
                self._rows[key] = value


def batches(
    manifest: Manifest,
    chunks: Iterable[list[tuple[int, Payload]]],
    spec: ModelSpec,
    workers: int = 2,
    on_bad: Callable[[int, str], None] | None = None,
    held: Decoded | None = None,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """(rows [b], decoded [b, ...]) of each chunk of (row, payload); memory holds a few batches.

    A row that cannot be decoded is an error that names it, or is left out and told to ``on_bad``.  Payloads in ``held``
    are not decoded again, and others are put there while there is room.
    """

    def decoded(item: tuple[int, Payload]) -> NDArray[Any] | None:
        key = manifest.payload_keys[item[0]].tobytes()
        known = None if held is None else held.get(key, spec)
        if known is not None:
            return known
        try:
            value = decode_row(manifest, item[0], item[1], spec)
            if held is not None:
                held.put(key, spec, value)
            return value
        except ManifestError as error:
            if on_bad is None:
                raise
            on_bad(item[0], error.what)
            return None

    def produce() -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            for chunk in chunks:
                # threads pay for images, whose decoding leaves the interpreter, not for vectors
                values = list((map if spec.kind == "features" else pool.map)(decoded, chunk))
                rows = [row for (row, _), value in zip(chunk, values, strict=True) if value is not None]
                good = [value for value in values if value is not None]
                if good:
                    yield np.array(rows, dtype=np.int64), torch.from_numpy(_stacked(good, rows, manifest, spec.kind))

    return ahead(produce())


def from_all_over(rows: Rows, spec: ModelSpec, held: Decoded | None = None) -> Tensor | None:
    """16 decoded rows, chosen by their keys and so from all over the data, or those of fewer that decode; or None."""
    keys = rows.payload_keys
    first = unique(keys)
    chosen = rows.index[first[key_order(keys[first])[:FEW]]]
    parts = batches(rows.manifest, [list(rows.manifest.payloads(chosen))], spec, 1, lambda *_: None, held)
    return next((decoded for _, decoded in parts), None)


def _stacked(values: list[NDArray[Any]], rows: list[int], manifest: Manifest, kind: str) -> NDArray[Any]:
    """One array [b, ...]; refuses inputs of different shapes, which only a task's transform can give.

    Images stay as decoded, pixel by pixel (channels last), which is what convolutions are fast on.  A model of the
    user's own gets its batches as torch's collating makes them, since it may look at their memory with ``view``.
    """
    odd = next((k for k, v in enumerate(values) if v.shape != values[0].shape or v.dtype != values[0].dtype), None)
    if odd is not None:
        raise ManifestError(
            f"its input is {values[odd].dtype} {values[odd].shape}, that of row id={manifest.ids[rows[0]]} "
            f"{values[0].dtype} {values[0].shape}",
            where=f"{manifest.source}, row id={manifest.ids[rows[odd]]}, column {manifest.kind}",
            fix="let the task's transform give inputs of one shape and type",
        )
    return np.ascontiguousarray(np.stack(values)) if kind == "task" else np.stack(values)


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``, through pinned memory and without waiting where there is an accelerator."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def sent_back(tensor: Tensor) -> Callable[[], NDArray[Any]]:
    """Start copying a result to the host, and a function that waits for it: a GPU goes on with the next batch."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> NDArray[Any]:
        done.synchronize()
        return host.numpy()

    return wait
