"""One table: what exact scores cost on the machine at hand, against training, inference and other libraries.

    python tests/benchmarks/engines.py [--peers-python PYTHON] [--device cuda] > table.md

Prints Markdown: the median of the ratios of at least five alternating runs, their least and greatest, both medians in
seconds, the correlation with the peer's scores, and the bar.  Everything is warm, in float32 unless a row says
otherwise (TF32 off on both sides), on two threads; times of scores have their 1,000 target rows in them, an empty
store, and all from Parquet to the table.  Needs the CIFAR-10N manifests (``--data``); under 40 minutes on two cores.

Peers run in an environment of their own, which ``--peers-python`` names (pip install kronfluence captum timm), on the
same rows, decoded in memory, and the same weights, each at the fastest of the batch sizes tried.  A row that fails is
printed with the reason, and the exit status is 1; a missed bar is printed and is no failure.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
import torch.nn.functional as F
import torch_jvp
from alternating import Ratio, Run, alternate, best, say, seconds
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import influence_cli
from influence_cli.settings import PRECISIONS

MEAN, STD, CLASSES, SIDE = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), 10, 32
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    ratio: Ratio
    unit: str = "x"  # s: the numerator's seconds are the figure
    correlation: float | None = None
    note: str = ""
    what: str | None = None  # another name than the row's


class NotHere(Exception):
    """The machine has no such unit: no failure."""


# ---- what is timed -------------------------------------------------------------------------------------------------


class Bench:
    """The rows and the weights, written once, and what the options ask for."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked, self.folder, self.device = asked, folder, torch.device(asked.device)
        torch.manual_seed(0)
        self.model = timm.create_model(asked.model, num_classes=CLASSES)
        if asked.checkpoint:
            from safetensors.torch import load_file

            self.model.load_state_dict(load_file(asked.checkpoint))
        else:  # nothing measured here depends on what the weights are; normalisation has statistics of its own
            self.model.train()
            with torch.no_grad():
                for _ in range(3):
                    self.model(torch.randn(64, 3, SIDE, SIDE))
        self.model.eval()
        self.weights = folder / "weights.safetensors"
        save_file(self.model.state_dict(), self.weights)
        (folder / "model.json").write_text(json.dumps({"model": asked.model, "classes": CLASSES}))
        self.train, self.y = self._manifest("train", asked.rows)
        self.target, self.target_y = self._manifest("val", asked.targets)
        self.score(min(64, asked.rows))  # warm

    def _manifest(self, name: str, count: int) -> tuple[pa.Table, NDArray[np.int64]]:
        table = pq.read_table(self.asked.data / f"{name}.parquet", columns=["id", "image", "label"]).slice(0, count)
        if table.num_rows < count:
            raise SystemExit(f"{self.asked.data / name}.parquet has {table.num_rows} rows, fewer than {count}")
        return table, table.column("label").to_numpy()

    def manifest(self, count: int) -> str:
        """The first ``count`` training rows with the target rows, as Parquet."""
        path = self.folder / f"rows-{count}.parquet"
        if not path.exists():
            parts = [(self.train.slice(0, count), "train"), (self.target, "val")]
            whole = [t.append_column("split", pa.array([split] * t.num_rows)) for t, split in parts]
            pq.write_table(pa.concat_tables(whole), path)
        return str(path)

    def score(self, count: int, store: Path | None = None, **how: Any) -> pa.Table:
        """Scores of the first rows, from Parquet and an empty store."""
        with tempfile.TemporaryDirectory(dir=self.folder) as empty:
            return influence_cli.score(self.manifest(count), store=str(store or empty), **self.options(), **how)

    def options(self) -> dict[str, Any]:
        """What every run is asked for."""
        return {
            "checkpoint": str(self.weights), "model": self.asked.model, "input_size": SIDE, "num_classes": CLASSES,
            "mean": MEAN, "std": STD, "device": self.asked.device, "workers": self.asked.threads,
            "allow_overlap": True,
        }  # fmt: skip

    def decoded(self, table: pa.Table) -> Tensor:
        """Images [n, 3, 32, 32], normalised."""
        images = [im["bytes"] for im in table.column("image").to_pylist()]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in images])
        values = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
        return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()

    def wait(self) -> None:
        """Let an accelerator finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def point_of(bench: Bench, model: nn.Module, precision: str = "fp32") -> Any:
    """The product's engine at a model's own weights."""
    from influence_cli.engines.point import Point

    return Point(model, "all", None, precision, bench.device)


def direction_like(point: Any, seed: int) -> dict[str, Tensor]:
    """A random direction of the point's parameters."""
    torch.manual_seed(seed)
    return {n: (torch.randn(p.shape) * 1e-2).to(p.device, p.dtype) for n, p in point.selected.items()}


# ---- the rows ------------------------------------------------------------------------------------------------------


def whole_data_set(bench: Bench) -> Result:
    """`ip` from Parquet to scores / one epoch of a plain, tight training loop on the decoded rows."""
    x, y = bench.decoded(bench.train).to(bench.device), torch.from_numpy(bench.y.copy()).to(bench.device)

    def epoch(batch: int, channels_last: bool, rows: int) -> None:
        form = torch.channels_last if channels_last else torch.contiguous_format
        model = timm.create_model(bench.asked.model, num_classes=CLASSES).to(bench.device, memory_format=form)
        values = x.to(memory_format=form)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
        order = torch.randperm(rows, device=bench.device)
        bench.wait()
        started = time_now()
        for chosen in order.split(batch):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(values[chosen]), y[chosen]).backward()
            optimizer.step()
        bench.wait()
        took.append(time_now() - started)

    took: list[float] = []
    tried = [(b, c) for b in (128, 256) for c in (False, True)]
    few = min(len(x), 2048)

    def trial(k: int) -> float:
        for _ in range(2):  # the first sets things up
            epoch(*tried[k], few)
        return took[-1]

    chosen = tried[best(list(range(len(tried))), trial)]

    def train() -> float:
        torch.backends.cudnn.benchmark = True  # as a tight loop would
        epoch(*chosen, len(x))
        torch.backends.cudnn.benchmark = False
        return took[-1]

    ratio = ratio_of(bench, lambda: ignore(bench.score(len(x))), train, warm=False)
    form = "channels last" if chosen[1] else "contiguous"
    return Result(ratio, note=f"{len(x):,} rows; epoch at batch {chosen[0]}, {form}")


def time_now() -> float:
    """Seconds, monotonic."""
    return time.perf_counter()


def ratio_of(bench: Bench, a: Run, b: Run, warm: bool = True) -> Ratio:
    """The times of two runs by turns."""
    return Ratio(*alternate([a, b], bench.asked.rounds, warm))


def ignore(_: object) -> None:
    """Nothing: what was timed is timed from outside."""


def batch_of(bench: Bench, side: int = SIDE, count: int | None = None) -> Tensor:
    """A batch of inputs, in the order of memory that the product decodes images to."""
    torch.manual_seed(1)
    return torch.randn(count or bench.asked.batch, side, side, 3).to(bench.device).permute(0, 3, 1, 2)


def tangent_pass(bench: Bench) -> Result:
    """Logits and tangents along one direction / an inference forward pass with BatchNorm folded into convolutions."""
    from torch.fx.experimental.optimization import fuse

    x = batch_of(bench)
    folded, forms = (
        fuse(copy.deepcopy(bench.model)).to(bench.device).eval(),
        [torch.contiguous_format, torch.channels_last],
    )
    point = point_of(bench, copy.deepcopy(bench.model))
    u = direction_like(point, 0)
    held: dict[str, Tensor] = {}

    def infer(form: int) -> None:
        folded.to(memory_format=forms[form])
        values = x.to(memory_format=forms[form])
        with torch.inference_mode():
            for _ in range(bench.asked.repeats):
                held["forward"] = folded(values)
        bench.wait()

    def tangents() -> None:
        for _ in range(bench.asked.repeats):
            held["logits"], (held["tangent"],) = point.outputs(x, [u])
        bench.wait()

    for form in range(2):
        infer(form)  # warm
    faster = best([0, 1], lambda form: seconds(lambda: infer(form)))
    ratio = ratio_of(bench, tangents, lambda: infer(faster))
    r = correlation(held["logits"], held["forward"])
    return Result(
        ratio, correlation=r, note=f"batch {len(x)}; forward {('contiguous', 'channels last')[faster]}; r: logits"
    )


def half_precision(bench: Bench) -> list[Result]:
    """Tangents of a transformer and of a Mixer in bf16 / in fp32."""
    if bench.device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        raise NotHere("this processor has no bf16 units")
    return [_half_precision(bench, name) for name in bench.asked.transformers]


def _half_precision(bench: Bench, name: str) -> Result:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    side = model.pretrained_cfg["input_size"][-1]
    x = batch_of(bench, side, bench.asked.transformer_batch)
    if "bf16" not in PRECISIONS:
        raise RuntimeError("there is no --precision bf16")
    points = {p: point_of(bench, copy.deepcopy(model), p) for p in ("fp32", "bf16")}
    held: dict[str, Tensor] = {}

    def run(precision: str) -> None:
        point = points[precision]
        u = direction_like(point, 0)
        held[precision] = point.outputs(x.to(point.dtype), [u])[1][0]
        bench.wait()

    ratio = ratio_of(bench, lambda: run("bf16"), lambda: run("fp32"))
    r = correlation(held["bf16"], held["fp32"])
    return Result(ratio, correlation=r, note=f"{name}, batch {len(x)}; r: tangents")


def three_directions(bench: Bench) -> Result:
    """Logits and tangents along three directions / along one."""
    x, point = batch_of(bench), point_of(bench, copy.deepcopy(bench.model))
    us = [direction_like(point, k) for k in range(3)]
    held: dict[str, Tensor] = {}

    def run(count: int) -> None:
        for _ in range(bench.asked.repeats):
            held[str(count)] = point.outputs(x, us[:count])[1][0]
        bench.wait()

    ratio = ratio_of(bench, lambda: run(3), lambda: run(1))
    return Result(ratio, correlation=correlation(held["3"], held["1"]), note=f"batch {len(x)}; r: the first tangents")


def three_scalars(bench: Bench) -> Result:
    """One number a row along three directions / along one: the engine that needs no tangents of logits."""
    from influence_cli.engines.layerwise.layers import Layers, loss_slope

    x, point = batch_of(bench), point_of(bench, copy.deepcopy(bench.model))
    y = torch.randint(0, CLASSES, (len(x),)).to(bench.device)
    us = [direction_like(point, k) for k in range(3)]
    layers, held = Layers(point, x), dict[int, Tensor]()
    slope = loss_slope(lambda logits: F.cross_entropy(logits, y, reduction="none"))

    def run(count: int) -> None:
        for _ in range(bench.asked.repeats):
            _, blocks = layers.of_rows(x, slope)
            for k, u in enumerate(us[:count]):
                held[k] = torch.stack([block.dots(u) for block in blocks]).sum(0)
        bench.wait()

    ratio = ratio_of(bench, lambda: run(3), lambda: run(1))
    z, (t,) = point.outputs(x, us[2:])
    forward = ((z.softmax(1) - F.one_hot(y, CLASSES)) * t).sum(1)
    return Result(ratio, correlation=correlation(held[2], forward), note=f"batch {len(x)}; r: with forward mode")


def ensemble(bench: Bench) -> Result:
    """`ip-ensemble` of five members / `ip`, Parquet to scores."""
    n, held = bench.asked.ensemble_rows, dict[str, pa.Table]()

    def run(method: str) -> None:
        held[method] = bench.score(n, method=method)

    ratio = ratio_of(bench, lambda: run("ip-ensemble"), lambda: run("ip"))
    r = correlation(scores_of(held["ip-ensemble"]), scores_of(held["ip"]))
    return Result(ratio, correlation=r, note=f"{n:,} rows; r: with ip")


def last_layer(bench: Bench) -> Result:
    """`ip --params last` / `ip --params all`, Parquet to scores."""
    n = bench.asked.params_rows
    ratio = ratio_of(bench, lambda: ignore(bench.score(n, params="last")), lambda: ignore(bench.score(n)))
    return Result(ratio, note=f"{n:,} rows")


def fully_cached(bench: Bench) -> Result:
    """`influence score` of rows that are all stored, as a command: its seconds, and that torch is not imported."""
    n, store = bench.asked.rows, bench.folder / "filled"
    cold = bench.score(n, store=store)
    out = bench.folder / "cached.parquet"
    how = bench.options()
    flags = [
        "score", bench.manifest(n), "--method", "ip", "--isolated", "--store", str(store), "-o", str(out),
        "--allow-overlap", "-q",
        *("--checkpoint", how["checkpoint"], "--model", how["model"], "--input-size", str(SIDE)),
        *("--num-classes", str(CLASSES), "--device", how["device"], "--workers", str(how["workers"])),
        *("--mean", ",".join(map(repr, MEAN)), "--std", ",".join(map(repr, STD))),
    ]  # fmt: skip
    code = (
        "import sys\nfrom influence_cli.cli.main import run\n"
        f"code = run({flags!r})\nsys.exit(code or (9 if 'torch' in sys.modules else 0))"
    )

    def command() -> None:
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=threads_only(bench))
        if ran.returncode:
            why = "torch was imported" if ran.returncode == 9 else ran.stderr.strip()
            raise RuntimeError(f"exit status {ran.returncode}: {why}")

    (times,) = alternate([command], bench.asked.rounds)
    ratio = Ratio(times, [1.0] * len(times))
    if not np.array_equal(scores_of(pq.read_table(out)), scores_of(cold)):
        raise RuntimeError("the cached scores are not those that were stored")
    return Result(ratio, unit="s", note=f"{n:,} rows; torch was not imported")


def against_peer(peer: str) -> Callable[[Bench], list[Result]]:
    """A library's seconds / ours on the same rows: of the whole of `score`, and of the engine on decoded rows alone."""

    def compare(bench: Bench) -> list[Result]:
        return [result for n in getattr(bench.asked, f"{peer}_rows") for result in of_size(bench, n)]

    def of_size(bench: Bench, n: int) -> list[Result]:
        tried = getattr(bench.asked, f"{peer}_batches")
        x, target = bench.decoded(bench.train.slice(0, n)), bench.decoded(bench.target)
        held: dict[str, Any] = {}
        with Peer(bench, peer, x, target) as other:
            few = min(n, 2 * max(tried)), min(len(target), 2 * max(tried))
            chosen = best(tried, lambda b: other.run(b, *few)[0])

            def theirs() -> float:
                took, held["theirs"] = other.run(chosen, n, len(target))
                return took

            def whole() -> None:
                held["whole"] = scores_of(bench.score(n))

            def engine() -> None:
                held["engine"] = engine_scores(bench, x, target)

            whole(), engine()
            a, b, c = alternate([theirs, whole, engine], bench.asked.rounds, warm=False)
        how = f"{n:,} rows; {peer} at batch {chosen}"
        return [
            Result(Ratio(a, b), correlation=correlation(held["theirs"], held["whole"]), note=how),
            Result(
                Ratio(a, c),
                correlation=correlation(held["theirs"], held["engine"]),
                note="decoded rows in memory on both sides, no store, no noise estimate",
                what=f"{peer} / our engine alone",
            ),
        ]

    return compare


def engine_scores(bench: Bench, x: Tensor, target: Tensor, batch: int = 256) -> NDArray[np.float64]:
    """What a peer is asked for, by the product's engine: scores of decoded rows, summed over target rows."""
    from influence_cli.engines.point import differentiable_kernels
    from influence_cli.maths.labels import label_scores, of_label

    point = point_of(bench, copy.deepcopy(bench.model))
    selected = {n: p.detach().requires_grad_() for n, p in point.selected.items()}
    q = {n: torch.zeros_like(p) for n, p in point.selected.items()}
    labels = torch.from_numpy(bench.target_y.copy()).to(bench.device)
    targets = target.to(bench.device).to(memory_format=torch.channels_last)
    for some, y in zip(targets.split(batch), labels.split(batch), strict=True):
        with torch.enable_grad(), differentiable_kernels():
            loss = F.cross_entropy(point.logits(some, selected), y, reduction="sum")
            for total, g in zip(q.values(), torch.autograd.grad(loss, list(selected.values())), strict=True):
                total += g
    ordered = x.to(bench.device).to(memory_format=torch.channels_last)  # as the product decodes images
    parts = [point.outputs(some, [q]) for some in ordered.split(batch)]
    logits = torch.cat([z for z, _ in parts]).cpu().numpy()
    tangents = torch.cat([t for _, (t,) in parts]).cpu().numpy()
    return of_label(label_scores(logits, tangents), bench.y[: len(x)])


class Peer:
    """A library in a process of its own, with the rows and the weights, warm between runs."""

    def __init__(self, bench: Bench, name: str, x: Tensor, target: Tensor) -> None:
        if bench.asked.peers_python is None:
            raise RuntimeError("no --peers-python: an interpreter with kronfluence, captum and timm")
        rows = {"x": x.numpy(), "y": bench.y[: len(x)], "target_x": target.numpy(), "target_y": bench.target_y}
        np.savez(bench.folder / "rows.npz", **rows)
        self.command = [
            bench.asked.peers_python, str(HERE / "peer_attributors.py"), name, str(bench.folder),
            "--threads", str(bench.asked.threads), "--device", bench.asked.device,
        ]  # fmt: skip
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on leaving
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=threads_only(bench),
        )  # fmt: skip

    def run(self, batch: int, rows: int, targets: int) -> tuple[float, NDArray[np.float64]]:
        """Seconds and scores of the first ``rows``, over the first target rows."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"batch": batch, "rows": rows, "targets": targets}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.log.seek(0)
            raise RuntimeError("the peer ended: " + (self.log.read().strip().splitlines() or ["without a word"])[-1])
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["seconds"], np.load(answer["scores"]).astype(np.float64)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def threads_only(bench: Bench) -> dict[str, str]:
    """The environment of a process with as many threads as ours."""
    count = str(bench.asked.threads)
    return {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONPATH": os.pathsep.join(sys.path)}


def scores_of(table: pa.Table) -> NDArray[np.float64]:
    """The column ``score``."""
    return table.column("score").cast(pa.float64()).to_numpy()


def correlation(a: Any, b: Any) -> float:
    """Pearson's, of all values."""
    flat = [np.asarray(v.float().cpu() if isinstance(v, Tensor) else v, dtype=np.float64).ravel() for v in (a, b)]
    return float(np.corrcoef(*flat)[0, 1])


def against_torch(bench: Bench) -> list[Result]:
    """`torch.func.jvp` or what it is made of, plain and on an fx-fused model / our forward engine, one thread."""
    return [
        Result(c.ratio, correlation=c.correlation, note=c.note, what=c.what)
        for c in torch_jvp.compared(bench.asked.rounds, bench.device, bench.wait)
    ]


# ---- the table -----------------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[str, str, float, Callable[[Bench], Result | list[Result]]]] = {
    "ip": ("`ip`, Parquet to scores / a training epoch", "<=", 0.85, whole_data_set),
    "tangent": ("tangent pass / inference forward pass, both folded", "<=", 3.1, tangent_pass),
    "bf16": ("bf16 / fp32", "<=", 0.5, half_precision),
    "jvp": ("torch.func.jvp / ours, one thread", ">=", 1.0, against_torch),
    "kronfluence": ("kronfluence, aggregated query / ours", ">=", 3.5, against_peer("kronfluence")),
    "captum": ("captum TracInCP / ours", ">=", 60, against_peer("captum")),
    "directions": ("three directions / one, with labels", "<=", 2.4, three_directions),
    "scalars": ("three directions / one, one number a row", "<=", 1.8, three_scalars),
    "ensemble": ("IP Ensemble, K = 5 / IP", "<=", 5.5, ensemble),
    "last": ("`--params last` / `all`", "<=", 0.45, last_layer),
    "cached": ("fully cached `score`, seconds", "<=", 2.0, fully_cached),
}  # fmt: skip


def main() -> int:
    """Measure every row that is asked for, and print the table; 1 where one failed."""
    asked = arguments()
    if not (asked.data / "train.parquet").exists():
        print(f"skipped: no {asked.data} (the data set is not redistributable)", file=sys.stderr)
        return 0
    torch.set_num_threads(asked.threads)
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory(prefix="engines-") as folder:
        bench = Bench(asked, Path(folder))
        lines, failed = [], 0
        for name in asked.only:
            what, side, bar, measure = ROWS[name]
            say(f"== {what}")
            try:
                found = measure(bench)
                lines += [shown(what, side, bar, r) for r in (found if isinstance(found, list) else [found])]
            except NotHere as reason:
                lines.append(f"| {what} | not here | | | | | {side} {bar:g} | {reason} |")
            except Exception as error:
                failed += 1
                reason = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
                lines.append(f"| {what} | failed | | | | | {side} {bar:g} | {reason[:300]} |")
            say(lines[-1])
    device = torch.cuda.get_device_name() if asked.device == "cuda" else f"{cpu_name()}, {asked.threads} threads"
    print(f"{device}; torch {torch.__version__}; {asked.model}, {asked.targets:,} target rows; {asked.rounds} rounds\n")
    print("| what | ratio | least to greatest | first, s | second, s | correlation | bar | |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    return 1 if failed else 0


def shown(what: str, side: str, bar: float, r: Result) -> str:
    """A line of Markdown."""
    met = r.ratio.median <= bar if side == "<=" else r.ratio.median >= bar
    a, b = (f"{float(np.median(times)):.3g}" for times in (r.ratio.a, r.ratio.b))
    cells = [
        r.what or what,
        f"**{r.ratio.median:.3g}**{' s' if r.unit == 's' else ''}",
        f"{min(r.ratio.every):.3g} to {max(r.ratio.every):.3g}",
        a,
        "" if r.unit == "s" else b,
        "" if r.correlation is None else f"{r.correlation:.6f}",
        f"{side} {bar:g}: {'met' if met else 'missed'}",
        r.note,
    ]
    return f"| {' | '.join(cells)} |"


def cpu_name() -> str:
    """What the processor is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared/data/cifar10n")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", help="an interpreter with kronfluence, captum and timm")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows of the table")
    parser.add_argument("--model", default="resnet18", help="a timm name")
    parser.add_argument("--checkpoint", help="its weights as safetensors (default: untrained)")
    parser.add_argument("--transformers", nargs="+", default=["vit_small_patch16_224", "mixer_s32_224"], help="in bf16")
    parser.add_argument("--transformer-batch", type=int, default=32)
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument("--targets", type=int, default=1000)
    parser.add_argument("--kronfluence-rows", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--captum-rows", type=int, nargs="+", default=[512])
    parser.add_argument(
        "--kronfluence-batches", type=int, nargs="+", default=[32, 64, 128], help="tried; the best is used"
    )
    parser.add_argument("--captum-batches", type=int, nargs="+", default=[16, 32], help="whose memory grows with them")
    parser.add_argument("--ensemble-rows", type=int, default=2500)
    parser.add_argument("--params-rows", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=256, help="of the rows that time one pass alone")
    parser.add_argument("--repeats", type=int, default=4, help="passes of each of their timings")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
