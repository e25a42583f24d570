"""Checks of ``cuda.py`` of what is fast: passes from decoded rows beside what the machine could do at most."""

from __future__ import annotations

import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda_setup import (
    Asked,
    Check,
    Line,
    image_model,
    labels,
    manifest,
    relative,
    seconds,
    text_model,
    text_rows,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.flop_counter import FlopCounterMode

import influence_cli
from influence_cli.data.manifest import read_manifest
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.model.examples import batches, chunked, move, sent_back
from influence_cli.model.named_tensors import as_argument, mapped
from influence_cli.model.spec import ModelSpec

BATCHES = (256, 512, 1024, 2048, 4096)


def fast_checks(asked: Asked) -> list[Check]:
    """Every check: its place in the order of worth, its name, and what runs it."""
    small, rows = asked.of("resnet34", "test_resnet"), asked.size(50_000, 64)
    return [
        (3, "fast: the machine", lambda: _machine(asked)),
        (3, "fast resnet34, 50,000 rows of 32x32", lambda: _images(asked, small, 32, rows)),
        (5, "fast: score from Parquet", lambda: _whole(asked)),
        (6, "fast vit_small at 224", lambda: _images(asked, _vit(asked), asked.size(224, 32), asked.size(5_000, 16))),
        (6, "fast encoder at length 128", lambda: _texts(asked, asked.size(20_000, 32))),
    ]


def _vit(asked: Asked) -> str:
    return "vit_tiny_patch16_224" if asked.tiny else "vit_small_patch16_224"


def _rates(asked: Asked) -> dict[str, float]:
    """Operations and bytes a second that the machine reaches, without TF32."""
    size, found = asked.size(8192, 512), {}
    with differentiable_kernels():
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = (torch.randn(size, size, device=asked.device, dtype=dtype) for _ in range(2))
            found[name] = 2 * size**3 / seconds(asked, lambda a=a, b=b: a @ b)
    values = torch.empty(asked.size(1 << 28, 1 << 20), device=asked.device)
    found["bytes"] = 8 * len(values) / seconds(asked, lambda: values.add_(1.0))
    return found


def _machine(asked: Asked) -> Iterator[Line]:
    rates = _rates(asked)
    how = "square products, and adding to memory in place (read and written)"
    what = f"fp32 {rates['fp32'] / 1e12:.1f}, bf16 {rates['bf16'] / 1e12:.1f} TFLOP/s; {rates['bytes'] / 1e12:.2f} TB/s"
    yield Line("", what, how)


class Passed:
    """One model on the device, from decoded rows in the host's memory to scores of rows."""

    def __init__(
        self, asked: Asked, model: nn.Module, rows: Any, to_input: Callable[[Any, torch.dtype], Any], precision: str
    ) -> None:
        self.asked, self.rows, self.to_input = asked, rows, to_input
        self.point = Point(copy.deepcopy(model), "all", None, precision, asked.device)
        generator = torch.Generator().manual_seed(3)
        self.u = {
            n: torch.empty_like(p).copy_(0.01 * torch.randn(p.shape, generator=generator))  # in the order of p's memory
            for n, p in self.point.selected.items()
        }
        self.y = labels(len(rows))
        self.batch = 256

    def batches(self, count: int | None = None) -> Iterator[tuple[Any, Tensor]]:
        """Inputs and labels on the device."""
        total = len(self.rows) if count is None else min(count, len(self.rows))
        for first in range(0, total, self.batch):
            some = self.rows[first : min(total, first + self.batch)]
            y = self.y[first : first + len(some)].to(self.asked.device, non_blocking=True)
            yield self.to_input(move(some, self.asked.device), self.point.dtype), y

    def scores(self, count: int | None = None) -> Tensor:
        """Scores of rows along the direction, as the product computes them from logits and tangents."""
        waiting = []
        for x, y in self.batches(count):
            z, (t,) = self.point.outputs(x, [self.u])
            p = z.double().softmax(1)
            found = (p * (t.double() - t.double().gather(1, y[:, None]))).sum(1)
            waiting.append(sent_back(found))
        return torch.cat([torch.from_numpy(wait()) for wait in waiting])

    def inference(self, count: int | None = None) -> None:
        """A forward pass of the same rows."""
        with torch.no_grad(), differentiable_kernels():
            for x, _ in self.batches(count):
                self.point.logits(x)

    def by_jvp(self, count: int | None = None) -> Tensor:
        """The same tangents by torch's own forward mode."""
        found = []
        with torch.no_grad(), differentiable_kernels():
            for x, _ in self.batches(count):
                run = lambda p, x=x: functional_call(self.point.model, p, (as_argument(x),))  # noqa: E731
                found.append(jvp(run, (self.point.selected,), (self.u,))[1])
        return torch.cat(found)

    def fastest_batch(self) -> int:
        """The batch size that takes least time a row; sizes that do not fit are passed by."""
        found: dict[int, float] = {}
        for size in BATCHES:
            if size > len(self.rows):
                break
            self.batch = size
            count = min(len(self.rows), 2 * size)
            try:
                found[size] = seconds(self.asked, lambda c=count: self.scores(c), 1) / count
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
        self.batch = min(found, key=lambda size: found[size]) if found else min(256, len(self.rows))
        return self.batch


def _operations(passed: Passed) -> float:
    """Operations of a forward pass, a row."""
    x, _ = next(passed.batches(min(8, len(passed.rows))))
    with torch.no_grad(), differentiable_kernels(), FlopCounterMode(display=False) as counter:
        passed.point.logits(x)
    return counter.get_total_flops() / len(x)


def _kernels(asked: Asked, run: Callable[[], Any]) -> tuple[str, str]:
    """The share of a run's time in which a kernel ran, and the kernels that took most of it."""
    if asked.device.type != "cuda":
        return "busy: not measured here", ""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        asked.wait()
        started = time.perf_counter()
        run()
        asked.wait()
        took = time.perf_counter() - started
    kernels = [e for e in found.key_averages() if e.self_device_time_total > 0]
    spent = sum(e.self_device_time_total for e in kernels)
    most = sorted(kernels, key=lambda e: -e.self_device_time_total)[:5]
    named = "; ".join(f"{e.self_device_time_total / spent:.0%} {' '.join(e.key.split())[:60]}" for e in most)
    return f"busy {spent / 1e6 / took:.0%}", f"{sum(e.count for e in kernels):,} kernels: {named}".replace("|", "/")


def _against(asked: Asked, run: Callable[[], Any], ours: float) -> str:
    """How many times ours another way takes; in words where it does not fit."""
    try:
        return f"{seconds(asked, run, 2) / ours:.2f}"
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"


def _timed(asked: Asked, model: nn.Module, rows: Any, to_input: Any, members: tuple[int, ...]) -> Iterator[Line]:
    rates = _rates(asked)
    for precision in ("fp32", "bf16"):
        passed = Passed(asked, model, rows, to_input, precision)
        started = time.perf_counter()
        passed.scores(min(256, len(rows)))
        asked.wait()
        first = time.perf_counter() - started
        batch = passed.fastest_batch()
        floor = 3 * _operations(passed) * len(rows) / rates[precision]
        how = f"{len(rows):,} decoded rows, batch {batch}; floor {floor:.2f} s (3 forward passes at the machine's rate)"
        for k in members:
            started = time.perf_counter()
            for _ in range(k):
                passed.scores()
            asked.wait()
            took = time.perf_counter() - started
            yield Line(f"{precision}, K = {k}", f"{took:.2f} s, {k * len(rows) / took:,.0f} rows/s a member", how)
        yield Line(f"{precision}, set up once", f"{first:.2f} s", "the first batch: kernels are loaded and checked")
        part = min(len(rows), asked.size(4 * batch, 32))
        ours = seconds(asked, lambda p=passed, c=part: p.scores(c))
        ratio = ours / seconds(asked, lambda p=passed, c=part: p.inference(c))
        theirs = _against(asked, lambda p=passed, c=part: p.by_jvp(c), ours)
        try:
            busy, kernels = _kernels(asked, lambda p=passed, c=part: p.scores(c))
        except RuntimeError as error:  # no reason to lose the figures
            busy, kernels = "busy: the profiler failed", " ".join(str(error).split())[:100]
        yield Line(precision, f"tangents / inference {ratio:.2f}; torch's jvp / ours {theirs}; {busy}", kernels)
        yield from _in_order(asked, passed, part, ours, precision)


def _in_order(asked: Asked, passed: Passed, part: int, ours: float, precision: str) -> Iterator[Line]:
    """Whether weights and inputs in channels-last order would be faster."""
    if not isinstance(passed.rows, Tensor) or not any(isinstance(m, nn.Conv2d) for m in passed.point.model.modules()):
        return
    before, to_input = passed.scores(part), passed.to_input
    other = Passed(
        asked, passed.point.model.to(memory_format=torch.channels_last), passed.rows,
        lambda x, dtype: to_input(x, dtype).contiguous(memory_format=torch.channels_last), precision,
    )  # fmt: skip
    other.batch = passed.batch
    off = relative(other.scores(part), before)
    took = seconds(asked, lambda: other.scores(part))
    yield Line(f"{precision}, channels last", f"{took / ours:.2f} of the time", f"scores differ by {off:.0e}")


def _images(asked: Asked, name: str, side: int, count: int) -> Iterator[Line]:
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def to_input(x: Tensor, dtype: torch.dtype) -> Tensor:
        return ((x.float() / 255 - 0.5) / 0.25).to(dtype)

    yield from _timed(asked, image_model(name, side), pixels, to_input, (1, 5) if "resnet" in name else (1,))


def _texts(asked: Asked, count: int) -> Iterator[Line]:
    rows = text_rows(count, asked.size(128, 16))
    model = text_model("bert", asked.size(384, 64), asked.size(6, 2))
    keep = lambda x, dtype: mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, x)  # noqa: E731
    yield from _timed(asked, model, rows, keep, (1,))


def _whole(asked: Asked) -> Iterator[Line]:
    """`ip` and an ensemble of five from Parquet with PNGs to the table, decoding included; and decoding apart."""
    model, cores = asked.of("resnet34", "test_resnet"), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="train accuracy")
        folder, n = Path(name), asked.size(50_000, 32)
        source = manifest(folder / "rows.parquet", n, asked.size(1_000, 8), 32)
        for workers in sorted({1, min(8, cores)}):
            started = time.perf_counter()
            rows = _decoded(source, workers)
            took = time.perf_counter() - started
            yield Line(f"decoding alone, {workers} threads", f"{took:.2f} s", f"{rows:,} PNGs of 32x32")
        save_file(image_model(model, 32).state_dict(), folder / "w.safetensors")
        for method in ("ip", "ip-ensemble"):
            started = time.perf_counter()
            influence_cli.score(
                source, checkpoint=str(folder / "w.safetensors"), model=model, input_size=32, num_classes=10,
                mean=(0.5,), std=(0.25,), device=str(asked.device), method=method, workers=min(8, cores),
                store=str(folder / method), options={"ip-ensemble": {"members": 5}},
            )  # fmt: skip
            took = time.perf_counter() - started
            yield Line(f"{method}, {min(8, cores)} threads", f"{took:.1f} s", f"{n:,} PNGs, {model}, cold store")


def _decoded(source: str, workers: int) -> int:
    """Rows of a manifest, decoded as the row loop decodes them."""
    rows = read_manifest(source, [Path(source)])
    spec = ModelSpec("resnet34", 10, "image", (3, 32, 32), (0.5,), (0.25,))
    chunks = chunked(rows.payloads(np.arange(len(rows.ids))), 256)
    return sum(len(index) for index, _ in batches(rows, chunks, spec, workers))
