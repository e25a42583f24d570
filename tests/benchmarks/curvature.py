"""One table: what every scoring method costs on CIFAR-10N with a resnet18, and how well it finds wrong labels.

    python tests/benchmarks/curvature.py [--checkpoint RUN] [--params last all] [--out FOLDER] > table.md

A line a method that the table of methods knows, and for a smaller fit set, the cosine of ip and relative scores.  Each
runs in a process of its own and is warm before it is timed:
once on an empty store, and once on a store that an `ip` run has filled (its direction and logits are there; passes
along directions of its own are not).  Both are given as multiples of `ip` on an empty store, and the first also in
seconds of the processor, which other work on the machine changes less.  Peak memory is that of
the process, with torch and the model in it; disk is what the empty store holds afterwards.  AUC and average precision,
with 95 % intervals over rows, and precision at 5 % are against the labels that are really wrong.  A method that takes
more seconds of the processor than ``--limit``, or that refuses so many parameters, is said to; one that fails otherwise
is printed with the reason, and the exit status is 1.
The second run has what the first left of the limit, and its column stays empty where that is not enough.
With ``--out`` what was measured stays in that folder, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import stats

HERE = Path(__file__).parent
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {  # where the defaults are refused
    "last": {"exact": {"max_parameters": 6000}},
    "all": {"arnoldi": {"k": 50, "fit_sample": 1000}},
}
REFERENCES = ("exact", "ekfac")
VARIANTS: dict[str, tuple[str, dict[str, Any], bool]] = {  # name of a line: method, its options, --relative
    "cg, 1,000 fit rows": ("cg", {"fit_sample": 1000}, False),
    "cg through ekfac": ("cg", {"preconditioner": "ekfac"}, False),
    "ip, cosine": ("ip", {"normalise": "cosine"}, False),
    "ip --relative": ("ip", {}, True),
    "ekfac --relative": ("ekfac", {}, True),
    "exact --relative": ("exact", {}, True),
}
HEADER = (
    "method", "time / ip", "CPU time / ip", "after ip's passes / ip", "seconds", "peak memory, MB", "disk, MB", "AUC",
    "average precision", "precision at 5 %", *(f"Spearman with {name}" for name in REFERENCES),
)  # fmt: skip


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


# ---- one method, in a process of its own -----------------------------------------------------------------------------


def measure(job: dict[str, Any]) -> None:
    """Score twice as the job says, and write what it took."""
    import torch

    import influence_cli

    torch.set_num_threads(job["threads"])
    resource.setrlimit(resource.RLIMIT_CPU, (job["limit"], job["limit"] + 60))
    how = {**job["how"], "checkpoint": job["checkpoint"], "method": job["method"]}
    with tempfile.TemporaryDirectory() as folder:  # warm: imports, kernels, the file cache
        few = {**how, "method": "ip", "options": {}, "relative": False, "store": folder, "params": job["how"]["params"]}
        influence_cli.score(job["few"], **few)
    started, processor = time.perf_counter(), time.process_time()
    table = influence_cli.score(job["manifest"], store=job["empty"], **how)
    cold, processor = time.perf_counter() - started, time.process_time() - processor
    pq.write_table(table, job["scores"])
    disk = sum(f.stat().st_size for f in Path(job["empty"]).rglob("*") if f.is_file()) / 2**20
    found = {"cold": cold, "cpu": processor, "peak": peak_memory(), "disk": disk}
    keep(Path(job["result"]), found)
    if job["once"]:
        return
    started = time.perf_counter()
    influence_cli.score(job["manifest"], store=job["filled"], **how)
    keep(Path(job["result"]), {**found, "after": time.perf_counter() - started})


def keep(path: Path, found: dict[str, Any]) -> None:
    """Write JSON whole or not at all: a line that is half written is none."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(path)


def peak_memory() -> float:
    """Megabytes that this process had in memory at most; getrusage would count the process that started it too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


class Bench:
    """The manifest, the checkpoint, and a folder for what is measured."""

    def __init__(self, asked: argparse.Namespace, folder: Path) -> None:
        self.asked, self.folder = asked, folder
        self.manifest, self.few = folder / "rows.parquet", folder / "few.parquet"
        table = pq.read_table(asked.data)
        split = np.array(table.column("split").to_pylist())
        if asked.rows:
            kept = np.concatenate([np.flatnonzero(split == s)[: asked.rows] for s in ("train", "val", "test")])
            table, split = table.take(pa.array(np.sort(kept))), split[np.sort(kept)]
        pq.write_table(table, self.manifest)
        some = np.concatenate([np.flatnonzero(split == s)[:32] for s in ("train", "val")])
        pq.write_table(table.take(pa.array(some)), self.few)
        self.rows = int((split == "train").sum())
        self.checkpoint = asked.checkpoint or self._train()

    def _train(self) -> str:
        """Weights as ``cifar10n_small.sh`` trains them, with what methods of trajectories and folds need."""
        import influence_cli

        say(f"training {self.asked.model} for {self.asked.epochs} epochs")
        run = str(self.folder / "RUN")
        if (self.folder / "RUN" / "metrics.json").exists():
            return run
        how = {"model": self.asked.model, "epochs": self.asked.epochs, "augment": "flip-shift"}
        influence_cli.retrain(str(self.manifest), run, keep_checkpoints=4, folds=5, **how)
        return run

    def run(self, name: str, params: str, filled: Path | None) -> dict[str, Any]:
        """What one line takes, or why it gives nothing: ``failed``; kept for the next run of the same command."""
        place = self.folder / f"{params}-{name.replace(' ', '-').replace(',', '')}"
        kept = place / "line.json"
        if not kept.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            keep(kept, self._run(name, params, filled, place))
        return {**json.loads(kept.read_text()), "store": place / "empty", "scores": place / "scores.parquet"}

    def _run(self, name: str, params: str, filled: Path | None, place: Path) -> dict[str, Any]:
        method, own, relative = VARIANTS.get(name, (name, {}, False))
        empty, full = place / "empty", place / "filled"
        if filled is not None:
            shutil.copytree(filled, full)
        options = {method: {**OPTIONS.get(params, {}).get(method, {}), **own}}
        options = {k: v for k, v in options.items() if v}
        how = {"params": params, "options": options, "device": self.asked.device, "relative": relative}
        job = {
            "manifest": str(self.manifest), "few": str(self.few), "checkpoint": self.checkpoint, "method": method,
            "how": how, "threads": self.asked.threads, "empty": str(empty), "filled": str(full if filled else empty),
            "scores": str(place / "scores.parquet"), "result": str(place / "result.json"), "once": self.asked.once,
            "limit": int(self.asked.limit * self.asked.threads),
        }  # fmt: skip
        count = str(self.asked.threads)
        env = {**os.environ, "OMP_NUM_THREADS": count, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, str(HERE / "curvature.py"), "--measure", json.dumps(job)]
        ran = subprocess.run(command, capture_output=True, text=True, env=env)
        if ran.returncode == -signal.SIGXCPU:
            if not Path(job["result"]).exists():
                return {"failed": f"over {self.asked.limit:,g} s"}
        elif ran.returncode:
            said = [line for line in ran.stderr.strip().splitlines() if "Error" in line] or [f"exit {ran.returncode}"]
            reason = said[-1].replace("|", "/").replace("influence_cli.errors.UsageError", "refused")
            return {"failed": reason[:200]}
        found = json.loads(Path(job["result"]).read_text())
        shutil.rmtree(full, ignore_errors=True)
        return found


# ---- the table -------------------------------------------------------------------------------------------------------


def scores_of(path: Path) -> NDArray[np.float64]:
    """The column ``score``, nulls as NaN."""
    return pq.read_table(path).column("score").cast(pa.float64()).fill_null(float("nan")).to_numpy()


def detection(bench: Bench, path: Path) -> list[str]:
    """AUC, average precision, and precision among the lowest 5 %, of the column ``score``."""
    import influence_cli

    name = influence_cli_score_name(path)
    result = influence_cli.evaluate(str(path), manifest=str(bench.manifest), budget="5%", draws=200)
    found = (result.get("detection") or {}).get(name)
    if found is None:
        return ["", "", ""]
    ends = {key: " to ".join(map(shown, found[f"{key}_interval"])) for key in ("auc", "average_precision")}
    return [*(f"{shown(found[key])} ({ends[key]})" for key in ends), shown(found["precision_at_budget"])]


def influence_cli_score_name(path: Path) -> str:
    """The column that ``score`` repeats, as ``evaluate`` shows it."""
    from influence_cli.data.tables import provenance

    return provenance(pq.read_schema(path))["score_is"].removeprefix("score_")


def shown(value: Any) -> str:
    """A figure with three digits."""
    return "" if value is None else f"{value:.3f}"


def spearman(a: Path, b: Path | None) -> str:
    """Rank correlation of two tables' scores."""
    if b is None:
        return ""
    x, y = scores_of(a), scores_of(b)
    usable = np.isfinite(x) & np.isfinite(y)
    return shown(float(stats.spearmanr(x[usable], y[usable]).statistic))


def table_of(bench: Bench, params: str) -> tuple[list[str], int]:
    """Lines of Markdown, and how many methods failed (one that takes too long or refuses has not)."""
    from influence_cli.methods import METHODS

    every = bench.asked.methods or [*METHODS, *VARIANTS]
    names = ["ip", *(name for name in every if name != "ip")]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        say(f"{name}, --params {params}")
        found[name] = bench.run(name, params, found["ip"].get("store") if found else None)
        say(f"  {found[name].get('failed') or format(found[name]['cold'], '.3g') + ' s'}")
        if name == "ip" and "failed" in found[name]:
            raise SystemExit(f"ip failed: {found[name]['failed']}")
    ip = found["ip"]
    references = [None if "failed" in found.get(name, {"failed": ""}) else found[name]["scores"] for name in REFERENCES]
    lines = []
    for name, f in found.items():
        if "failed" in f:
            lines.append([name, f["failed"], *[""] * (len(HEADER) - 2)])
            continue
        ratios = (f["cold"] / ip["cold"], f["cpu"] / ip["cpu"], f.get("after", float("nan")) / ip["cold"])
        times = [*("" if ratio != ratio else f"{ratio:.3g}" for ratio in ratios), f"{f['cold']:.3g}"]
        size = [f"{f['peak']:,.0f}", f"{f['disk']:,.1f}"]
        ranks = [spearman(f["scores"], path) for path in references]
        lines.append([name, *times, *size, *detection(bench, f["scores"]), *ranks])
    bad = sum("failed" in f and not f["failed"].startswith(("over ", "refused")) for f in found.values())
    return [f"| {' | '.join(cells)} |" for cells in lines], bad


def check_same(asked: argparse.Namespace) -> None:
    """Refuse a folder whose lines are of other rows, weights or threads."""
    names = ("data", "checkpoint", "model", "epochs", "rows", "threads", "device")
    now = {name: str(getattr(asked, name)) for name in names}
    kept = asked.out / "asked.json"
    if kept.exists() and json.loads(kept.read_text()) != now:
        raise SystemExit(f"{asked.out} has lines of {kept.read_text()}: give another --out")
    kept.write_text(json.dumps(now))


def main() -> int:
    """Measure, and print a table for each choice of parameters; 1 where a method failed."""
    asked = arguments()
    if asked.measure:
        measure(json.loads(asked.measure))
        return 0
    if not asked.data.exists():
        print(f"skipped: no {asked.data} (the data set is not redistributable)", file=sys.stderr)
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="curvature-") as folder:
        if asked.out:
            asked.out.mkdir(parents=True, exist_ok=True)
            check_same(asked)
        bench = Bench(asked, asked.out or Path(folder))
        for params in asked.params:
            lines, bad = table_of(bench, params)
            failed += bad
            print(f"\n`--params {params}`, {asked.model}, {bench.rows:,} rows, {asked.threads} threads\n")
            print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
            print("\n".join(lines), flush=True)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = os.environ.get("DATA") or HERE.parents[2] / "shared/data/cifar10n-small/manifest.parquet"
    parser.add_argument("--data", type=Path, default=Path(usual), help="manifest (default: $DATA, or beside the code)")
    parser.add_argument("--checkpoint", help="weights or a run folder (default: trained first)")
    parser.add_argument("--model", default="resnet18", help="what is trained where no checkpoint is given")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--params", nargs="+", default=["last", "all"])
    parser.add_argument("--methods", nargs="+", help="default: every method")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds of every thread that a method may take")
    parser.add_argument("--once", action="store_true", help="not on the store that ip has filled, which saves half")
    parser.add_argument("--out", type=Path, help="a folder that keeps what was measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, help="of each split, for a small trial")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
