"""What the checks of ``cuda.py`` share: what is asked, a line of the table, models, and rows of images."""

from __future__ import annotations

import io
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from influence_cli.model.named_tensors import NamedTensors

CLASSES = 10


@dataclass(frozen=True)
class Asked:
    """The device, and whether all is to be small."""

    device: torch.device
    tiny: bool

    def size(self, whole: int, tiny: int) -> int:
        """A count of rows, or the small one."""
        return tiny if self.tiny else whole

    def of(self, whole: str, tiny: str) -> str:
        """The name of a model, or of a small one."""
        return tiny if self.tiny else whole

    def wait(self) -> None:
        """Let an accelerator finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Line:
    """One line: a part of a check, what it came to, how it was got, and whether that is as it has to be."""

    part: str
    came_to: str
    how: str = ""
    passed: bool | None = None

    def row(self, check: str) -> str:
        """As Markdown."""
        verdict = {None: "", True: "pass: ", False: "FAILED: "}[self.passed]
        return f"| {check}{f': {self.part}' if self.part else ''} | {verdict}{self.came_to} | {self.how} |"


Check = tuple[int, str, Callable[[], Iterator[Line]]]  # its place in the order, its name, and what runs it


def at_most(part: str, error: float, bound: float, how: str = "") -> Line:
    """An error that has to be small."""
    return Line(part, f"{error:.1e} (at most {bound:.0e})", how, error <= bound)


def card(device: torch.device) -> str:
    """What the machine is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} processor"


def relative(found: Any, expected: Any) -> float:
    """The largest difference over the largest value."""
    a, b = (
        np.asarray(v.detach().double().cpu() if isinstance(v, Tensor) else v, dtype=np.float64)
        for v in (found, expected)
    )
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


def seconds(asked: Asked, run: Callable[[], Any], rounds: int = 3) -> float:
    """The least of some timings, after one to warm up."""
    run()
    found = []
    for _ in range(rounds):
        asked.wait()
        started = time.perf_counter()
        run()
        asked.wait()
        found.append(time.perf_counter() - started)
    return min(found)


# ---- models ----------------------------------------------------------------------------------------------------------

IMAGES = {
    "resnet18": 32, "resnet34": 32, "vit_tiny_patch16_224": 64, "convnext_atto": 64, "mixer_s32_224": 64,
}  # fmt: skip  # pixels a side
TEXTS = ("bert", "gpt2")


def image_model(name: str, side: int) -> nn.Module:
    """Random weights; normalisation has statistics of its own."""
    torch.manual_seed(0)
    sized = {"img_size": side} if name.startswith(("vit", "mixer")) else {}
    model = timm.create_model(name, num_classes=CLASSES, **sized).train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(32, 3, side, side))
        for p in model.parameters():
            p += 0.02 * torch.randn_like(p)  # some heads begin as zeros
    return model.eval()


def text_model(kind: str, hidden: int = 64, layers: int = 2) -> nn.Module:
    """A classifier of transformers of random weights, called with tensors by name."""
    import transformers

    from influence_cli.model.transformers_model import with_plain_call

    torch.manual_seed(0)
    if kind == "bert":
        config: Any = transformers.BertConfig(
            vocab_size=500, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=max(2, hidden // 64),
            intermediate_size=4 * hidden, num_labels=CLASSES, attn_implementation="eager",
        )  # fmt: skip
        return with_plain_call(transformers.BertForSequenceClassification(config)).eval()
    config = transformers.GPT2Config(
        vocab_size=500, n_embd=hidden, n_layer=layers, n_head=max(2, hidden // 64), num_labels=CLASSES, pad_token_id=0,
        attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    return with_plain_call(transformers.GPT2ForSequenceClassification(config)).eval()


def text_rows(count: int, length: int) -> NamedTensors:
    """Token numbers of rows of several lengths, filled up to the longest."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 500, (count, length), generator=generator)
    lengths = torch.randint(max(2, length // 2), length + 1, (count,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    return NamedTensors({"input_ids": ids * mask, "attention_mask": mask})


def image_rows(count: int, side: int) -> Tensor:
    """Normalised images, in the order of memory that images are decoded to."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, side, side, 3, generator=generator).permute(0, 3, 1, 2)


def labels(count: int) -> Tensor:
    """Labels of as many rows."""
    return torch.randint(0, CLASSES, (count,), generator=torch.Generator().manual_seed(2))


# ---- rows on disk ----------------------------------------------------------------------------------------------------


def manifest(path: Path, train: int, val: int, side: int) -> str:
    """A manifest of PNGs in which colour tells the class, roughly."""
    if path.exists():
        return str(path)
    rng = np.random.default_rng(0)
    total = train + val
    label = rng.integers(0, CLASSES, total)
    blobs = []
    for k in range(total):
        pixels = rng.integers(0, 256, (side, side, 3)).astype(np.int64) // 2 + 12 * int(label[k])
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, format="PNG", compress_level=1)
        blobs.append(out.getvalue())
    table = pa.table(
        {
            "id": [f"r{k}" for k in range(total)], "image": pa.array(blobs, pa.binary()), "label": label,
            "split": ["train"] * train + ["val"] * val,
        }
    )  # fmt: skip
    pq.write_table(table, path)
    return str(path)
