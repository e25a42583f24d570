"""What rows, classes and members take: constants measured here, the table that they make, and 1e9 rows on paper.

    python tests/benchmarks/capacity.py -o tests/benchmarks/results/capacity.md     about 15 minutes of one core
    python tests/benchmarks/capacity.py --quick                                     small, to see that it works

Measured: CPU seconds and peak memory a row (score of features at a linear model, from 100,000 to 400,000 rows), forward
passes that a pass with tangents costs (interleaved with forward passes), seconds to decode an image, and how far the
memory that ``-n`` says is from real peaks.  Estimated, since no GPU was measured: hours, from the floating-point
operations of a forward pass, that ratio, and the share of an H100's arithmetic that is reached.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from influence_cli.engines.engine import Engine
from influence_cli.engines.point import Point
from influence_cli.store.keys import KEY_BYTES
from influence_cli.store.parquet import write_sealed

ROOT = Path(__file__).parents[2]
PEAK = 67e12  # operations a second of an H100 SXM in float32 (data sheet); scoring takes no TF32
SHARE = 0.4  # of it that is reached: an assumption
CLASSES = (10, 200)  # of the rows that tell what a class takes
HAVE = {"host memory": 1e12, "disk": 100e12, "H100": 8.0, "cores": 192.0}  # one day of a large machine
CASES = (("resnet18", 32, 10), ("resnet50", 224, 1000), ("vit_base_patch16_224", 224, 1000))


# what the system says of a child at its end counts the parent's memory too
MEASURED = """
import resource, sys
from pathlib import Path
from influence_cli.cli.main import run
code = run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(used.ru_utime + used.ru_stime, int(peak) * 1024)
sys.exit(code)
"""


@dataclass(frozen=True)
class Cost:
    """What a process took: CPU seconds and bytes at its peak."""

    seconds: float
    memory: int


def cost(*command: Any) -> Cost:
    """Of one run of the command line, whose output goes nowhere."""
    words = [sys.executable, "-c", MEASURED, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"influence {' '.join(words[3:])}: {done.stderr}")
    seconds, memory = done.stdout.split()[-2:]
    return Cost(float(seconds), int(memory))


def write(columns: dict[str, Any], classes: int, path: Path) -> Path:
    """A manifest."""
    table = pa.table(columns).replace_schema_metadata({"classes": json.dumps([str(c) for c in range(classes)])})
    with pa.OSFile(
        str(path), "wb"
    ) as sink:  # in groups of rows as `influence manifest` has them: one is read at a time
        write_sealed(table, sink)
    return path


def splits(n: int, other: int = 300) -> list[str]:
    """``n`` train rows and a few others."""
    return ["train"] * n + ["val"] * (other // 2) + ["test"] * (other - other // 2)


def features(n: int, path: Path, classes: int = 10) -> Path:
    """Rows of 16 features."""
    rng, rows = np.random.default_rng(0), n + 300
    values = rng.normal(size=(rows, 16)).astype(np.float32)
    ids, labels = [f"r{k}" for k in range(rows)], rng.integers(0, classes, rows)
    vectors = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * 16), pa.array(values.ravel()))
    return write({"id": ids, "features": vectors, "label": labels, "split": splits(n)}, classes, path)


def images(n: int, size: int, path: Path, classes: int = 10) -> Path:
    """Rows of images of noise."""
    rng, rows = np.random.default_rng(0), n + 300
    encoded = [picture(rng.integers(0, 256, (size, size, 3), dtype=np.uint8), "PNG") for _ in range(rows)]
    ids, labels = [f"r{k}" for k in range(rows)], rng.integers(0, classes, rows)
    columns = {"id": ids, "image": pa.array(encoded, pa.binary()), "label": labels, "split": splits(n)}
    return write(columns, classes, path)


def picture(pixels: np.ndarray, form: str) -> bytes:
    """An encoded image."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


# ---- what is measured -----------------------------------------------------------------------------------------------


def per_row(few: int, many: int, folder: Path) -> list[tuple[str, float, float]]:
    """By command: CPU microseconds and bytes at the peak, a further row."""
    manifests = [features(n, folder / f"{n}.parquet") for n in (few, many)]
    cost("retrain", manifests[0], "--model", "linear", "--epochs", 1, "-o", folder / "RUN")
    found: dict[str, list[Cost]] = {}
    for manifest in manifests:
        scores, store = folder / f"{manifest.stem}-scores.parquet", folder / f"{manifest.stem}-store"
        asked = ("score", manifest, "--checkpoint", folder / "RUN", "--method", "ip", "--store", store, "-o", scores)
        found.setdefault("score, nothing stored", []).append(cost(*asked))
        time.sleep(2.5)  # a manifest that has just been written is hashed again
        cost(*asked)
        found.setdefault("score, all stored", []).append(cost(*asked))
        clean = folder / f"{manifest.stem}-clean.parquet"
        found.setdefault("curate", []).append(cost("curate", scores, "--budget", "5%", "--store", store, "-o", clean))
    more = many - few
    return [
        (name, 1e6 * (b.seconds - a.seconds) / more, (b.memory - a.memory) / more) for name, (a, b) in found.items()
    ]


def per_class(few: int, many: int, folder: Path) -> dict[str, list[float]]:
    """By command: bytes at the peak a further row, with so many classes as ``CLASSES`` says."""
    found: dict[str, list[float]] = {}
    for classes in CLASSES:
        taken: dict[str, list[int]] = {}
        trained = folder / f"RUN-{classes}"
        for n in (few, many):
            place = folder / f"{n}-{classes}"
            manifest = features(n, place.with_suffix(".parquet"), classes)
            if n == few:
                cost("retrain", manifest, "--model", "linear", "--epochs", 1, "-o", trained)
            asked = ("score", manifest, "--checkpoint", trained, "--method", "ip", "--store", place)
            for name in ("score, nothing stored", "score, all stored"):
                taken.setdefault(name, []).append(cost(*asked, "-o", folder / "s.parquet").memory)
        for name, (a, b) in taken.items():
            found.setdefault(name, []).append((b - a) / (many - few))
    return found


def class_table(found: dict[str, list[float]]) -> str:
    """What ``per_class`` has found."""
    return table(["bytes at the peak a further row", *(f"of {classes} classes" for classes in CLASSES)],
                 [[name, *(f"{size:,.0f}" for size in sizes)] for name, sizes in found.items()])  # fmt: skip


def forward_ratio(name: str, size: int, batch: int, repeats: int) -> float:
    """CPU seconds of a pass with the tangents of one direction, in forward passes."""
    model = timm.create_model(name, num_classes=10, **({"img_size": size} if "vit" in name else {})).eval()
    point = Point(model, "all", None, "fp32", torch.device("cpu"))
    engine, x = Engine(point, "forward"), torch.randn(batch, 3, size, size)
    zero = {n: torch.zeros_like(p) for n, p in point.selected.items()}
    works = [lambda: point.outputs(x, []), lambda: engine.outputs(x, [zero])]
    best = [np.inf, np.inf]
    for _ in range(repeats + 1):
        for k, work in enumerate(works):
            started = time.process_time()
            work()
            best[k] = min(best[k], time.process_time() - started)
    return best[1] / best[0]


def operations(name: str, size: int, classes: int) -> float:
    """Floating-point operations of a forward pass of a row."""
    model = timm.create_model(name, num_classes=classes, **({"img_size": size} if "vit" in name else {})).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops())


def decoding(repeats: int) -> float:
    """CPU seconds to decode a JPEG of 500 x 375 pixels and bring it to 224 x 224."""
    data = picture(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8), "JPEG")
    started = time.process_time()
    for _ in range(repeats):
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    return (time.process_time() - started) / repeats


def planned_and_real(cases: list[tuple[str, int, int]], folder: Path) -> list[list[str]]:
    """By model: the memory that the plan says, and what the run took."""
    rows = []
    for name, size, n in cases:
        manifest = images(n, size, folder / f"{name}-{size}.parquet")
        model = timm.create_model(name, num_classes=10, **({"img_size": size} if "vit" in name else {}))
        save_file(model.state_dict(), weights := folder / f"{name}-{size}.safetensors")
        asked = ["score", manifest, "--model", name, "--checkpoint", weights, "--input-size", size, "--num-classes", 10]
        asked += ["--method", "ip", "--store", folder / f"{name}-{size}-store"]
        words = [sys.executable, "-m", "influence_cli", *map(str, asked), "-n", "--json"]
        said = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)["memory"]["host_bytes"]
        real = cost(*asked, "-o", folder / "s.parquet").memory
        rows.append(
            [f"{name}, {size} pixels", f"{n:,}", f"{said / 1e9:.2f}", f"{real / 1e9:.2f}", f"{said / real:.2f}"]
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


# ---- what follows from it -------------------------------------------------------------------------------------------


def hours(rows: float, flops: float, ratio: float, members: int) -> float:
    """Of one H100, for a pass with the tangents of a direction at every member."""
    return rows * members * flops * ratio / (PEAK * SHARE) / 3600


def stored(rows: float, classes: int, members: int) -> float:
    """Bytes of logits and of the tangents of one direction."""
    return rows * members * 2 * (KEY_BYTES + 4 * classes)


def capacity(ratio: float, memory: float) -> list[list[str]]:
    """Rows, classes and members to hours and bytes; of memory so much a row, whatever its classes."""
    lines = []
    for name, size, classes in CASES:
        flops = operations(name, size, classes)
        for rows in (1e6, 1e7, 1e8, 1e9):
            for members in (1, 5):
                lines.append([
                    f"{name}, {size} pixels", f"{rows:.0e}".replace("e+0", "e"), f"{classes:,}", str(members),
                    number(hours(rows, flops, ratio, members)), number(stored(rows, classes, members) / 1e9),
                    number(rows * memory / 1e9),
                ])  # fmt: skip
    return lines


def on_paper(ratio: float, rows: dict[str, tuple[float, float]], decode: float) -> list[list[str]]:
    """The steps of 1e9 rows at a ResNet-50 of 1,000 classes, what each needs, and how that is to what there is."""
    n, (name, size, classes) = 1e9, CASES[1]
    cold, curate = rows["score, nothing stored"], rows["curate"]
    steps = [
        ("keys, ids and scores of all rows while `score` runs", "host memory", n * cold[1], 1e12, "TB"),
        ("keys, ids and scores of all rows while `curate` runs", "host memory", n * curate[1], 1e12, "TB"),
        ("logits and tangents of one direction", "disk", stored(n, classes, 1), 1e12, "TB"),
        ("images of 110 kB, read once", "disk", n * 110e3, 1e12, "TB"),
        ("passes over the rows", "H100", hours(n, operations(name, size, classes), ratio, 1) / 24, 1.0, "days"),
        ("decoding, once", "cores", n * decode / 86400, 1.0, "days"),
        ("Python and Parquet a row: keys, shards, table", "cores", n * cold[0] / 1e6 / 86400, 1.0, "days"),
    ]
    found = [(need / HAVE[of], what, of, need / unit, HAVE[of] / unit, name) for what, of, need, unit, name in steps]
    return [
        [what, f"{number(need)} {unit} of {of}", f"{number(have)} {unit}", number(times)]
        for times, what, of, need, have, unit in sorted(found, reverse=True)
    ]


def number(value: float) -> str:
    """Two digits, or a whole number.

    >>> number(0.01234), number(3.456), number(12345.6)
    ('0.012', '3.5', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def table(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in rows)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="few rows and small models: figures mean nothing")
    parser.add_argument("--classes", action="store_true", help="what classes take, alone: three minutes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    quick = given.quick
    if given.classes:
        with tempfile.TemporaryDirectory(prefix="influence-capacity-") as at:
            print(class_table(per_class(30_000, 120_000, Path(at))))
        return
    with tempfile.TemporaryDirectory(prefix="influence-capacity-") as at:
        folder = Path(at)
        # both numbers are of more rows than are read at once, whose buffers are no part of what a further row takes
        rows = per_row(*((300, 900) if quick else (100_000, 400_000)), folder)
        (folder / "classes").mkdir()
        of_class = per_class(*((200, 400) if quick else (30_000, 120_000)), folder / "classes")
        ratios = [
            (name, size, forward_ratio(name, size, *((4, 1) if quick else (batch, 8))))
            for name, size, batch in (("resnet18", 32, 64), ("resnet50", 64, 16), ("vit_tiny_patch16_224", 64, 64))
        ]
        decode = decoding(5 if quick else 300)
        cases = [("resnet18", 32, 20)] if quick else [
            ("resnet18", 32, 300), ("resnet18", 64, 260), ("vit_tiny_patch16_224", 64, 260),
        ]  # fmt: skip
        planned = planned_and_real(cases, folder)
    ratio = max(r for _, _, r in ratios)
    by_name = {name: (seconds, memory) for name, seconds, memory in rows}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    page = PAGE.format(
        commit=commit.strip(), date=datetime.datetime.now(datetime.UTC).date(), machine=machine(),
        rows=table(["what is run", "CPU microseconds a row", "bytes at the peak a row"],
                   [[name, f"{seconds:.1f}", f"{memory:,.0f}"] for name, seconds, memory in rows]),
        classes=class_table(of_class),
        ratios=table(["model", "pixels", "forward passes"], [[n, str(s), f"{r:.2f}"] for n, s, r in ratios]),
        decode=f"{1e3 * decode:.1f}", ratio=f"{ratio:.2f}", peak=f"{PEAK / 1e12:.0f}", share=f"{SHARE:.0%}",
        planned=table(["model", "train rows", "planned, GB", "real, GB", "planned / real"], planned),
        capacity=table(["model", "rows", "classes", "members", "hours of an H100", "GB stored", "GB of host memory"],
                       capacity(ratio, max(0.0, by_name["score, nothing stored"][1]))),
        paper=table(["step", "needs", "there is", "times what there is"], on_paper(ratio, by_name, decode)),
    )  # fmt: skip
    if given.output is None:
        print(page)
    else:
        given.output.write_text(page)


def machine() -> str:
    """The processor, as the system calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "a processor")
    return f"one core of {name}, which had other work"


PAGE = """# What rows, classes and members take

| what | |
|---|---|
| command | `python tests/benchmarks/capacity.py -o tests/benchmarks/results/capacity.md` |
| recorded | commit {commit}, {date} |
| machine | {machine} |

Hours are **estimated, not measured**: no GPU was at hand. They are operations of a forward pass (torch's counter),
times the {ratio} forward passes that a pass with the tangents of one direction took on the CPU (the most of the models
below), over {share} of an H100's {peak} TFLOP/s in float32. That share is an assumption, `--precision bf16` and several
GPUs (`torchrun`) take less, and decoding is apart: {decode} ms of a core for a JPEG of 500 x 375 pixels.

## Capacity

One direction: one objective at one method without curvature. Bytes are of logits and tangents in float32. Host memory
is what was measured a row: logits and tangents are read a block of rows at a time, so that classes do not count.

{capacity}
## 1e9 rows on paper

ResNet-50, 224 pixels, 1,000 classes, one direction, in a day on 8 H100 with 192 cores, 1 TB of memory and 100 TB of
disk that all processes share. The step that is most times above what there is breaks first.

{paper}
## What was measured

A further row, between 100,000 and 400,000 rows of 16 features at a linear model, `--method ip`:

{rows}
The same with few and with many classes, between 30,000 and 120,000 rows (`--classes`):

{classes}
A pass with the tangents of one direction, in forward passes of the same batch, CPU seconds, interleaved:

{ratios}
Memory that `-n` says beforehand, and what the run took at its peak:

{planned}"""


if __name__ == "__main__":
    main()
