"""Checks of ``cuda.py`` of what is right: every number on the device against the processor's in fp64."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from cuda_setup import (
    IMAGES,
    TEXTS,
    Asked,
    Check,
    Line,
    at_most,
    image_model,
    image_rows,
    labels,
    manifest,
    relative,
    text_model,
    text_rows,
)
from safetensors.torch import save_file
from torch import Tensor, nn

import influence_cli
from influence_cli.engines.engine import Engine
from influence_cli.engines.layerwise.blocks import Block
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.engines.row_values import RowValues, sum_over
from influence_cli.maths.hashed_draws import drop
from influence_cli.maths.sketch import hash_key, signs
from influence_cli.model.losses import CROSS_ENTROPY
from influence_cli.model.named_tensors import mapped

CPU = torch.device("cpu")
FP32 = 2e-4  # of the largest value: a float32 pass of a deep network against float64
METHODS = ("ip", "ip-ensemble", "ekfac", "datainf", "self-tracin", "loss", "margin")


def right_checks(asked: Asked) -> list[Check]:
    """Every check: its place in the order of worth, its name, and what runs it."""
    rows, found = asked.size(8, 2), list[Check]()
    first = ("resnet18", "vit_tiny_patch16_224")
    for name, side in IMAGES.items():
        made = lambda n=name, s=side: _numbers(asked, image_model(n, s), image_rows(rows, s))  # noqa: E731
        found.append((1 if name in first else 7, f"right {name}", made))
    for name in TEXTS:
        of_text = lambda n=name: _numbers(asked, text_model(n), text_rows(rows, 24))  # noqa: E731
        found.append((1 if name == "bert" else 7, f"right {name}", of_text))
    return [
        *found,
        (0, "right: masks and sketches bit for bit", lambda: _bits(asked)),
        (2, "right: scores", lambda: _scores(asked)),
        (4, "right: a store filled on both", lambda: _both(asked)),
        (4, "right: twice, and in two batch sizes", lambda: _twice(asked)),
        (4, "right: out of memory", lambda: _memory(asked)),
        (4, "right: retrain", lambda: _retrain(asked)),
        (8, "right: dense curvature", lambda: _dense(asked)),
    ]


def _numbers(asked: Asked, model: nn.Module, x: Any) -> Iterator[Line]:
    """Logits, tangents, gradients, and squared norms of rows' gradients, at one point."""
    y = labels(len(x))
    generator = torch.Generator().manual_seed(3)
    u = {n: 0.01 * torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
    exact = _at(CPU, "fp64", model, x, y, u)
    for precision, device, bound in (("fp32", asked.device, FP32), ("fp64", asked.device, 1e-9)):
        found = _at(device, precision, model, x, y, u)
        for part, value in found.items():
            yield at_most(f"{part}, {precision}", relative(value, exact[part]), bound)


def _at(
    device: torch.device, precision: str, model: nn.Module, x: Any, y: Tensor, u: dict[str, Tensor]
) -> dict[str, Tensor]:
    point = Point(copy.deepcopy(model), "all", None, precision, device)
    here = mapped(lambda t: t.to(device, point.dtype) if t.is_floating_point() else t.to(device), x)
    along = {n: t.to(device, point.dtype) for n, t in u.items() if n in point.selected}
    z, (t,) = Engine(point).outputs(here, [along])
    own = point.leaves()
    with torch.enable_grad(), differentiable_kernels(point.recurrent):
        loss = F.cross_entropy(point.logits(here, own), y.to(device))
        gradient = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    flat = torch.cat([g.flatten().double().cpu() for g in gradient if g is not None])

    def norms(block: Block) -> Tensor:
        return block.squared_norms()

    values = RowValues(point, CROSS_ENTROPY, [sum_over(norms)]).of(here, y.to(device))[:, 0]
    return {"logits": z, "tangents": t, "gradient": flat, "squared norms": values}


def _bits(asked: Asked) -> Iterator[Line]:
    """The random draws that everybody has to have alike."""
    value = torch.randn(257, 129, generator=torch.Generator().manual_seed(0))
    masks = [drop("layer.weight", value.to(d), 5, 2, 0.1, True).cpu() for d in (CPU, asked.device)]
    yield Line("masks", str(torch.equal(*masks)), "dropped parameters of a member", torch.equal(*masks))
    drawn = [signs(hash_key(7, "layer", "sign"), (64, 333), d).cpu() for d in (CPU, asked.device)]
    yield Line("sketches", str(torch.equal(*drawn)), "signs of a sketch", torch.equal(*drawn))


class Rows:
    """A manifest and a network with weights, on disk for as long as it is needed."""

    def __init__(self, asked: Asked, model: str = "resnet18", train: int = 256, val: int = 64, side: int = 32) -> None:
        self.asked, self.place = asked, tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name)
        train, val = asked.size(train, 24), asked.size(val, 8)
        self.manifest = manifest(self.folder / "rows.parquet", train, val, side)
        self.model, self.side, self.weights = model, side, self.folder / "weights.safetensors"
        save_file(image_model(model, side).state_dict(), self.weights)

    def score(self, device: torch.device | str, source: Any = None, **how: Any) -> pa.Table:
        """Scores, from a store of its own where none is named."""
        with tempfile.TemporaryDirectory() as empty:
            return influence_cli.score(
                source or self.manifest, checkpoint=str(self.weights), model=self.model, input_size=self.side,
                num_classes=10, mean=(0.5,), std=(0.25,), device=str(device), **{"store": empty, **how},
            )  # fmt: skip


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    names = [n for n in table.column_names if n.startswith("score_") and n != "score_std"]
    return {n: table.column(n).to_numpy(zero_copy_only=False) for n in names}


def _scores(asked: Asked) -> Iterator[Line]:
    """Every method from Parquet to the table, on the device in fp32 against the processor in fp64."""
    rows = Rows(asked, "test_resnet", train=256, val=32)  # ekfac in fp64 on a processor takes its time
    how: dict[str, Any] = {"method": list(METHODS), "options": {"ip-ensemble": {"members": 3}}}
    exact = _columns(rows.score("cpu", precision="fp64", **how))
    for name, found in _columns(rows.score(asked.device, **how)).items():
        bound = 5e-3 if "ekfac" in name or "datainf" in name else 1e-3  # what curvature makes of rounding
        yield at_most(name.removeprefix("score_"), relative(found, exact[name]), bound, "test_resnet, all parameters")
    half = _columns(rows.score(asked.device, precision="bf16", method="ip"))["score_utility"]
    exact_ip = exact["score_ip_utility"]
    r = float(np.corrcoef(half, exact_ip)[0, 1])
    yield Line("ip in bf16", f"correlation {r:.4f} with fp64", "", r > 0.97)


def _dense(asked: Asked) -> Iterator[Line]:
    """Solves in the last layer, where curvature can be made dense."""
    rows = Rows(asked, "test_resnet", train=128, val=32)
    methods = ["exact", "cg", "lissa", "arnoldi"]
    how: dict[str, Any] = {"method": methods, "params": "last", "options": {m: {"l2": 0.01} for m in methods}}
    how["options"]["lissa"] |= {"depth": asked.size(300, 20), "repeats": 1}
    how["options"]["arnoldi"]["k"] = asked.size(60, 10)
    how["options"]["cg"]["max_iterations"] = asked.size(200, 10)
    how["options"]["exact"]["max_parameters"] = 6000
    exact = _columns(rows.score("cpu", precision="fp64", **how))
    for name, found in _columns(rows.score(asked.device, precision="fp64", **how)).items():
        yield at_most(name.removeprefix("score_"), relative(found, exact[name]), 1e-6, "last layer, fp64 on both")


def _both(asked: Asked) -> Iterator[Line]:
    """Half of the rows on the processor and half on the device are the rows on one of them."""
    rows = Rows(asked)
    store = str(rows.folder / "store")
    table = pq.read_table(rows.manifest)
    train = sum(s == "train" for s in table.column("split").to_pylist())
    half = table.take(pa.array([k for k in range(table.num_rows) if k < train // 2 or k >= train]))
    pq.write_table(half, rows.folder / "half.parquet")
    rows.score("cpu", str(rows.folder / "half.parquet"), store=store)
    mixed = _columns(rows.score(asked.device, store=store))["score_utility"]
    plan = influence_cli.plan(
        rows.manifest, checkpoint=str(rows.weights), model=rows.model, input_size=rows.side, num_classes=10,
        mean=(0.5,), std=(0.25,), store=store, device=str(asked.device),
    )  # fmt: skip
    pure = _columns(rows.score("cpu"))["score_utility"]
    yield at_most("", relative(mixed, pure), 1e-3, "half of the rows on each, direction from the processor")
    left = plan["steps"][0]["rows_to_compute"] if plan["steps"] else 0
    yield Line("what is stored is used", f"{left} rows to compute", "", left == 0)


def _twice(asked: Asked) -> Iterator[Line]:
    """The same run again, and with another batch size."""
    rows = Rows(asked)
    first, again, other = (
        _columns(rows.score(asked.device, batch_size=size))["score_utility"] for size in (64, 64, 37)
    )
    yield at_most("again", relative(again, first), 1e-5, "resnet18, batches of 64")
    yield at_most("batches of 37", relative(other, first), 1e-4)


def _memory(asked: Asked) -> Iterator[Line]:
    """A batch that does not fit is halved, and scores are the same."""
    if asked.device.type != "cuda":
        yield Line("", "not tried", "a processor's memory is not limited here")
        return
    rows, peaks = Rows(asked, train=4096, val=64), list[int]()
    for size in (256, 4096):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(asked.device)
        whole = _columns(rows.score(asked.device, batch_size=size))["score_utility"]
        peaks.append(torch.cuda.max_memory_reserved(asked.device))
    torch.cuda.empty_cache()
    total, some = torch.cuda.get_device_properties(asked.device).total_memory, sum(peaks) / 2
    torch.cuda.set_per_process_memory_fraction(min(1.0, some / total), asked.device)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            small = _columns(rows.score(asked.device, batch_size=4096))["score_utility"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, asked.device)
    said = any("halved" in str(w.message) for w in heard)
    room, most, least = (size / 2**30 for size in (some, peaks[1], peaks[0]))
    how = f"4,096 rows at once in {room:.2f} GiB; they take {most:.2f}, 256 rows {least:.2f}"
    yield Line("halves the batch", str(said), how, said)
    yield at_most("scores", relative(small, whole), 1e-3)


def _retrain(asked: Asked) -> Iterator[Line]:
    """A training on the device learns what one on the processor does."""
    rows = Rows(asked, train=1024, val=256)
    found = {}
    for device in ("cpu", str(asked.device)):
        table = pq.read_table(rows.manifest)
        split = ["test" if s == "val" else s for s in table.column("split").to_pylist()]
        table = table.set_column(table.column_names.index("split"), "split", pa.array(split))
        pq.write_table(table, rows.folder / "tested.parquet")
        name = rows.folder / f"run-{device.replace(':', '-')}-{len(found)}"
        metrics = influence_cli.retrain(
            str(rows.folder / "tested.parquet"),
            str(name),
            model="resnet18",
            input_size=32,
            device=device,
            epochs=asked.size(2, 1),
        )
        (arm,) = metrics["arms"].values()
        found[len(found)] = next(iter(arm["seeds"].values()))["accuracy"]
    near = abs(found[0] - found[1]) <= 0.1
    yield Line("", f"test accuracy {found[1]:.3f}, on the processor {found[0]:.3f}", "resnet18, one seed", near)
