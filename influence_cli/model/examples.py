"""Payloads into model inputs: decode, resize, normalise, batch; reading runs ahead of compute on threads."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from influence_cli.errors import ManifestError
from influence_cli.manifest import Manifest, Payload
from influence_cli.model.spec import ModelSpec

T = TypeVar("T")
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(payload: Payload, spec: ModelSpec) -> NDArray[Any]:
    """Pixels u8 [C, H, W] at the model's size, or features f32 [d].

    Raises:
        ValueError: not decodable, or of another width; callers add the row's name.
    """
    if spec.kind == "features":
        if not isinstance(payload, np.ndarray) or payload.shape != spec.shape:
            raise ValueError(f"{np.shape(payload)} features where the model takes {spec.shape}")
        return payload
    if not isinstance(payload, bytes):
        raise ValueError("features where the model takes images")
    channels, height, width = spec.shape
    try:
        with Image.open(io.BytesIO(payload)) as image:
            image = image.convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), _FILTERS.get(spec.interpolation, Image.Resampling.BICUBIC))
            pixels = np.asarray(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"the image cannot be decoded ({error})") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_row(manifest: Manifest, row: int, payload: Payload, spec: ModelSpec) -> NDArray[Any]:
    """``decode`` with an error that names file, row and column."""
    try:
        return decode(payload, spec)
    except ValueError as error:
        raise ManifestError(
            str(error),
            where=f"{manifest.source}, row id={manifest.ids[row]}, column {manifest.kind}",
            fix="repair the payload or take the row out",
        ) from error


def to_input(decoded: Tensor, spec: ModelSpec, dtype: torch.dtype) -> Tensor:
    """Model input [n, ...]: (pixels / 255 - mean) / sd per channel, or the features themselves."""
    if spec.kind == "features":
        return decoded.to(dtype)
    shape = (1, -1, 1, 1)
    mean = torch.tensor(spec.mean, dtype=dtype, device=decoded.device).view(shape)
    std = torch.tensor(spec.std, dtype=dtype, device=decoded.device).view(shape)
    return (decoded.to(dtype) / 255.0 - mean) / std


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


def batches(
    manifest: Manifest, chunks: Iterable[list[tuple[int, Payload]]], spec: ModelSpec, workers: int = 2
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """(rows [b], decoded [b, ...]) of each chunk of (row, payload); memory holds a few batches."""

    def decoded(item: tuple[int, Payload]) -> NDArray[Any]:
        return decode_row(manifest, item[0], item[1], spec)

    def produce() -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            for chunk in chunks:
                # threads pay for images, whose decoding leaves the interpreter, not for vectors
                stacked = np.stack(list((pool.map if spec.kind == "image" else map)(decoded, chunk)))
                yield np.array([row for row, _ in chunk], dtype=np.int64), torch.from_numpy(stacked)

    return ahead(produce())


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
