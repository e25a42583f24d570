"""Checks of ``cuda.py`` of what is fast: passes from decoded rows beside what the machine could do at most."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cuda_setup import Asked, Line, image_model, labels, manifest, seconds, text_model, text_rows
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.flop_counter import FlopCounterMode

import influence_cli
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.model.examples import move, sent_back
from influence_cli.model.named_tensors import as_argument, mapped

BATCHES = (256, 512, 1024, 2048, 4096)


def fast_checks(asked: Asked) -> list[tuple[str, Callable[[], Iterator[Line]]]]:
    """Every check by its name."""
    small = asked.size(32, 32)
    return [
        ("fast: the machine", lambda: _machine(asked)),
        ("fast resnet34, 50,000 rows of 32x32", lambda: _images(asked, "resnet34", small, asked.size(50_000, 256))),
        (
            "fast vit_small at 224, 5,000 rows",
            lambda: _images(asked, _vit(asked), asked.size(224, 32), asked.size(5_000, 32)),
        ),
        ("fast encoder at length 128, 20,000 rows", lambda: _texts(asked, asked.size(20_000, 32))),
        ("fast: score from Parquet", lambda: _whole(asked)),
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
            n: (0.01 * torch.randn(p.shape, generator=generator)).to(asked.device, self.point.dtype)
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


def _busy(asked: Asked, run: Callable[[], Any]) -> float | None:
    """The share of a run's time in which a kernel ran."""
    if asked.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        asked.wait()
        started = time.perf_counter()
        run()
        asked.wait()
        took = time.perf_counter() - started
    return sum(e.self_device_time_total for e in found.key_averages()) / 1e6 / took


def _operations(passed: Passed) -> float:
    """Operations of a forward pass, a row."""
    x, _ = next(passed.batches(min(8, len(passed.rows))))
    with torch.no_grad(), differentiable_kernels(), FlopCounterMode(display=False) as counter:
        passed.point.logits(x)
    return counter.get_total_flops() / len(x)


def _timed(asked: Asked, model: nn.Module, rows: Any, to_input: Any, members: tuple[int, ...]) -> Iterator[Line]:
    rates = _rates(asked)
    for precision in ("fp32", "bf16"):
        passed = Passed(asked, model, rows, to_input, precision)
        batch = passed.fastest_batch()
        part = min(len(rows), asked.size(8 * batch, 64))
        ratio = seconds(asked, lambda p=passed, c=part: p.scores(c)) / seconds(
            asked, lambda p=passed, c=part: p.inference(c)
        )
        theirs = seconds(asked, lambda p=passed, c=part: p.by_jvp(c), 2) / seconds(
            asked, lambda p=passed, c=part: p.scores(c), 2
        )
        busy = _busy(asked, lambda p=passed, c=part: p.scores(c))
        took = seconds(asked, passed.scores, 2)
        floor = 3 * _operations(passed) * len(rows) / rates[precision]
        said = f"busy {busy:.0%}" if busy is not None else "busy: not measured here"
        how = f"{len(rows):,} rows, batch {batch}; floor {floor:.2f} s (3 forward passes at the machine's rate)"
        for k in members:
            yield Line(f"{precision}, K = {k}", f"{k * took:.2f} s, {len(rows) / took:,.0f} rows/s a member", how)
        yield Line(precision, f"tangents / inference {ratio:.2f}; torch's jvp / ours {theirs:.2f}; {said}", "")


def _images(asked: Asked, name: str, side: int, count: int) -> Iterator[Line]:
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    def to_input(x: Tensor, dtype: torch.dtype) -> Tensor:
        return ((x.float() / 255 - 0.5) / 0.25).to(dtype)

    yield from _timed(asked, image_model(name, side), pixels, to_input, (1, 5) if side == 32 else (1,))


def _texts(asked: Asked, count: int) -> Iterator[Line]:
    rows = text_rows(count, asked.size(128, 16))
    model = text_model("bert", asked.size(384, 64), asked.size(6, 2))
    keep = lambda x, dtype: mapped(lambda t: t.to(dtype) if t.is_floating_point() else t, x)  # noqa: E731
    yield from _timed(asked, model, rows, keep, (1,))


def _whole(asked: Asked) -> Iterator[Line]:
    """`ip` and an ensemble of five from Parquet with PNGs to the table, decoding included."""
    with tempfile.TemporaryDirectory() as name:
        folder, n = Path(name), asked.size(50_000, 64)
        source = manifest(folder / "rows.parquet", n, asked.size(1_000, 8), 32)
        save_file(image_model("resnet34", 32).state_dict(), folder / "w.safetensors")
        for method in ("ip", "ip-ensemble"):
            for workers in (2, 8):
                started = time.perf_counter()
                influence_cli.score(
                    source, checkpoint=str(folder / "w.safetensors"), model="resnet34", input_size=32, num_classes=10,
                    mean=(0.5,), std=(0.25,), device=str(asked.device), method=method, workers=workers,
                    store=str(folder / f"{method}-{workers}"),
                )  # fmt: skip
                took = time.perf_counter() - started
                yield Line(
                    f"{method}, {workers} threads", f"{took:.1f} s", f"{n:,} PNGs of 32x32, resnet34, cold store"
                )
