"""Checks of ``cuda.py`` that hold other libraries against ours, on the same rows, weights and device, in one sitting.

Scores are grad-dot: every row's gradient times the sum of the target rows' gradients, in float32 without TF32.  Rows
are decoded and in the host's memory, everything is warm, and each side takes the fastest of the batch sizes tried.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cuda_fast import Passed
from cuda_setup import CLASSES, Asked, Check, Line, image_model, image_rows, labels
from safetensors.torch import save_file
from torch import Tensor, nn

from influence_cli.engines.point import differentiable_kernels
from influence_cli.model.examples import move

SCRIPT = Path(__file__).parents[1] / "peer_attributors.py"
PEERS = ("kronfluence", "captum")


def peer_checks(asked: Asked) -> list[Check]:
    """Every check: its place in the order of worth, its name, and what runs it."""
    return [(9, f"fast: {peer} against ours", partial(_against, asked, peer)) for peer in PEERS]


def _fastest(run: Callable[[int], float], sizes: tuple[int, ...]) -> tuple[float, int]:
    """The least seconds of some batch sizes, each after a run to warm up, and the size."""
    found: dict[int, float] = {}
    for size in sizes:
        run(size)
        found[size] = run(size)
    best = min(found, key=lambda size: found[size])
    return found[best], best


class Ours:
    """Our scores of the same rows: the target rows' gradient, then tangents along it."""

    def __init__(self, asked: Asked, model: nn.Module, x: Tensor, y: Tensor, target: Tensor, target_y: Tensor) -> None:
        self.asked, self.target, self.target_y = asked, target, target_y
        self.passed = Passed(asked, model, x, lambda rows, dtype: rows.to(dtype), "fp32")
        self.passed.y = y
        self.found = torch.empty(0)

    def __call__(self, size: int) -> float:
        """Seconds with batches of so many rows."""
        passed, device = self.passed, self.asked.device
        passed.batch = size
        self.asked.wait()
        started = time.perf_counter()
        own, total = passed.point.leaves(), dict[str, Tensor]()
        with torch.enable_grad(), differentiable_kernels():
            for rows, y in zip(self.target.split(size), self.target_y.split(size), strict=True):
                loss = F.cross_entropy(passed.point.logits(move(rows, device), own), y.to(device), reduction="sum")
                gradients = torch.autograd.grad(loss, list(own.values()))
                total = {n: total[n] + g if total else g for n, g in zip(own, gradients, strict=True)}
        passed.u = total
        self.found = passed.scores()
        return time.perf_counter() - started


def _against(asked: Asked, peer: str) -> Iterator[Line]:
    if importlib.util.find_spec(peer) is None:
        yield Line("", "not run", f"{peer} is not installed: pip install {peer}")
        return
    count, targets = asked.size(10_000, 24), asked.size(1_000, 8)
    name, sizes = asked.of("resnet34", "test_resnet"), (512, 1024) if not asked.tiny else (8,)
    model, every, y = image_model(name, 32), image_rows(count + targets, 32).contiguous(), labels(count + targets)
    x, target = every[:count], every[count:]
    run = Ours(asked, model, x, y[:count], target, y[count:])
    ours, batch = _fastest(run, sizes)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_file(model.state_dict(), folder / "weights.safetensors")
        (folder / "model.json").write_text(json.dumps({"model": name, "classes": CLASSES}))
        np.savez(
            folder / "rows.npz", x=x.numpy(), y=y[:count].numpy(), target_x=target.numpy(), target_y=y[count:].numpy()
        )
        command = [sys.executable, str(SCRIPT), peer, str(folder), "--threads", "8", "--device", asked.device.type]
        with (
            (folder / "log").open("w") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            try:
                scored: dict[int, str] = {}

                def theirs(size: int) -> float:
                    assert process.stdin is not None
                    assert process.stdout is not None
                    process.stdin.write(json.dumps({"batch": size, "rows": count, "targets": targets}) + "\n")
                    process.stdin.flush()
                    answer = json.loads(process.stdout.readline() or '{"error": "it ended"}')
                    if "error" in answer:
                        raise RuntimeError(f"{answer['error']}: {(folder / 'log').read_text()[-200:]}")
                    scored[size] = answer["scores"]
                    return answer["seconds"]

                took, size = _fastest(theirs, sizes)
                r = float(np.corrcoef(np.load(scored[size]).ravel(), run.found.numpy())[0, 1])
            finally:
                process.kill()
    how = (
        f"{name}, {count:,} rows, {targets:,} target rows; batches of {size} and {batch}; correlation {r:.4f} "
        "(theirs: linear layers and convolutions alone)"
    )
    yield Line("", f"{took / ours:.2f} times ours ({took:.2f} s and {ours:.2f} s)", how, r > 0.99)
