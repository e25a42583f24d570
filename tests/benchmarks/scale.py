"""Memory and time as rows become many: ``manifest``, ``grads``, ``score`` and ``curate``, each as a process of its own.

    python tests/benchmarks/scale.py OUT [--rows 10000 100000 1000000] [--repeats 3]   # features; 10 minutes on a core
    python tests/benchmarks/scale.py OUT --images [--rows 2000 20000 200000]           # small pictures; 15 minutes
    python tests/benchmarks/scale.py OUT --appends 50 [--rows 50000]                   # a gate after each; 10 minutes
    python tests/benchmarks/scale.py OUT --marginal [--repeats 3]                      # rows a second alone; 6 minutes

Rows have 16 features, two classes and a linear model, and all of their payloads differ; pictures are of 8 x 8 pixels
and go through an MLP.  ``--method ip`` is named since ``auto`` would look for another one on few rows.  Peak memory is
the process's own (VmHWM of /proc/self/status), CPU seconds are user and system time, which other work on the machine
changes less than it does wall time.  The marginal rows per second at a number of rows are those more than the number
before it, by the seconds that they take more; ``--marginal`` measures those at 100,000 and 1,000,000 rows alone, each
between two numbers of rows so far apart that the start of Python is out of it and some seconds of work are in it, from
the least of several runs.  Everything is made in OUT, which is not cleared.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FEATURES, TARGETS, TRAINED, SHARE = 16, 2000, 5000, 0.02
SCORE = ("--target", "target.parquet", "--checkpoint", "RUN", "--method", "ip")
AROUND = {100_000: (50_000, 150_000), 1_000_000: (600_000, 1_200_000)}  # rows between which their rate is measured
FEW = 500_000  # rows of which each stage takes some seconds at most
FOUR = ("manifest", "grads", "score, warm", "curate")  # a pipeline, each stage once
ENDS = 10  # appends at either end of which medians are compared


@dataclass(frozen=True)
class Ran:
    """What a process took."""

    peak: float  # MB
    cpu: float  # seconds
    wall: float


def inside(report: str, words: Sequence[str]) -> None:
    """Run a command, or ``made``, ``parted`` or ``read`` of this script, in this process, and write what it took."""
    sys.argv = ["influence", *words]
    try:
        if words[0] == "made":
            made(words[1], Path(words[2]), int(words[3]), int(words[4]))
        elif words[0] == "parted":
            parted(Path(words[1]), Path(words[2]), int(words[3]), int(words[4]))
        elif words[0] == "read":
            import pyarrow.parquet as pq

            pq.read_table(words[1])
        else:
            runpy.run_module("influence_cli", run_name="__main__", alter_sys=True)
    finally:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        times = os.times()
        Path(report).write_text(json.dumps([peak / 1024, times.user + times.system]), encoding="ascii")


def run(folder: Path, *words: Any, codes: Sequence[int] = (0,)) -> Ran:
    """Run a command in a folder as a process."""
    report, started = folder / "took.json", time.perf_counter()
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", str(report), *map(str, words)]
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(map(str, words))}: exit {done.returncode}\n{done.stderr}")
    peak, cpu = json.loads(report.read_text(encoding="ascii"))
    return Ran(peak, cpu, time.perf_counter() - started)


def made(kind: str, path: Path, rows: int, seed: int) -> None:
    """Write a source of distinct rows of two classes: CSV of features, or an archive of pictures."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.csv as pc

    rng = np.random.default_rng(seed)
    if kind == "images":
        labels = rng.integers(0, 2, rows)
        pixels = rng.integers(0, 200, (rows, 8, 8, 3), dtype=np.uint8)
        pixels[labels == 1, :4] += np.uint8(40)
        np.savez(path, x=pixels, y=labels)
        return
    x = rng.standard_normal((rows, FEATURES), dtype=np.float32)
    y = (x[:, :4].sum(axis=1) + rng.standard_normal(rows, dtype=np.float32) > 0).astype(np.int64)
    columns = {f"x{k}": pa.array(x[:, k]) for k in range(FEATURES)}
    pc.write_csv(pa.table({**columns, "label": pa.array(y)}), path)


def prepared(folder: Path, kind: str) -> str:
    """Make a target and a model in a folder; returns the suffix of sources."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "npz" if kind == "images" else "csv"
    for name, rows, seed, split in (("trained", TRAINED, 1, "60/20/20"), ("target", TARGETS, 2, "0/100/0")):
        run(folder, "made", kind, f"{name}.{suffix}", rows, seed)
        run(folder, "manifest", f"{name}.{suffix}", "--split", split, "--isolated", "-o", f"{name}.parquet")
    model = ("mlp:8", "--epochs", 2) if kind == "images" else ("linear", "--optimizer", "lbfgs")
    run(folder, "retrain", "trained.parquet", "--model", *model, "--isolated", "-o", "RUN")
    return suffix


def stages(folder: Path, kind: str, suffix: str, rows: int, repeats: int) -> dict[str, Ran]:
    """What every stage takes with so many rows; of what is warm the median of the repeats."""
    name = f"rows{rows}"
    table, scores = f"{name}.parquet", f"{name}-scores.parquet"
    store = ("--store", f"{name}-store", "--isolated")
    run(folder, "made", kind, f"{name}.{suffix}", rows, 3)
    found = {
        "manifest": run(folder, "manifest", f"{name}.{suffix}", "--split", "100/0/0", "--isolated", "-o", table),
        "grads": run(folder, "grads", table, *SCORE, *store, "-o", f"{name}-grads.parquet"),
        "score, cold": run(folder, "score", table, *SCORE, "--store", f"{name}-cold", "--isolated", "-o", scores),
    }
    warm = [run(folder, "score", table, *SCORE, *store, "-o", scores) for _ in range(repeats + 1)]
    found["score, warm"] = median(warm[1:])  # the first one remembers the manifest
    edits = ("--budget", "5%", *store)
    found["curate"] = median([run(folder, "curate", scores, *edits, "--edits", f"{name}-e.parquet")
                              for _ in range(repeats)])  # fmt: skip
    found["curate -o"] = run(folder, "curate", scores, *edits, "-o", f"{name}-clean.parquet")
    found["pyarrow reads the manifest"] = run(folder, "read", table)
    return found


def median(every: Sequence[Ran]) -> Ran:
    """The median of each figure; the peak is the highest."""
    cpu, wall = (statistics.median(getattr(r, name) for r in every) for name in ("cpu", "wall"))
    return Ran(max(r.peak for r in every), cpu, wall)


def many_rows(folder: Path, kind: str, sizes: Sequence[int], repeats: int) -> Iterator[str]:
    """The table of stages by numbers of rows, ascending."""
    suffix = prepared(folder, kind)
    by_size: dict[int, dict[str, Ran]] = {}
    for rows in sizes:
        by_size[rows] = stages(folder, kind, suffix, rows, repeats)
        say(f"{rows:,}: " + ", ".join(f"{n} {r.peak:.0f} MB {r.cpu:.2f} s" for n, r in by_size[rows].items()))
    shown = [f"{rows:,}" for rows in sizes]
    yield f"| stage | peak MB at {' / '.join(shown)} | last two | CPU s | wall s | marginal rows per CPU s | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for stage in by_size[sizes[0]]:
        every = [by_size[rows][stage] for rows in sizes]
        rates = [
            (rows - fewer) / (more.cpu - less.cpu) if more.cpu > less.cpu else float("inf")
            for (fewer, less), (rows, more) in zip(
                list(zip(sizes, every, strict=True))[:-1], list(zip(sizes, every, strict=True))[1:], strict=True
            )
        ]
        peaks = " / ".join(f"{r.peak:.0f}" for r in every)
        seconds = (" / ".join(f"{getattr(r, what):.2f}" for r in every) for what in ("cpu", "wall"))
        more = f"{every[-1].peak - every[-2].peak:+.0f}" if len(every) > 1 else ""
        ratio = f"{rates[-1] / rates[-2]:.2f}" if len(rates) > 1 else ""
        marginal = " / ".join(f"{r:,.0f}" for r in rates)
        yield f"| {stage} | {peaks} | {more} | {' | '.join(seconds)} | {marginal} | {ratio} |"


def marginal(folder: Path, kind: str, repeats: int) -> Iterator[str]:
    """Rows a CPU second, start of Python taken out, at each number of rows of ``AROUND``, and their ratio."""
    suffix = prepared(folder, kind)
    least: dict[int, dict[str, float]] = {}
    for _ in range(repeats):
        for few, many in AROUND.values():
            for rows in (few, many) * (1 if many > FEW else 3):  # a second of work takes more runs to be known
                for store in ("store", "cold"):
                    shutil.rmtree(folder / f"rows{rows}-{store}", ignore_errors=True)
                took = {stage: ran.cpu for stage, ran in stages(folder, kind, suffix, rows, 1).items()}
                known = least.setdefault(rows, took)
                least[rows] = {stage: min(cpu, known[stage]) for stage, cpu in took.items()}
                say(f"{rows:,}: " + ", ".join(f"{stage} {cpu:.2f} s" for stage, cpu in took.items()))
    for of_size in least.values():
        of_size["the four together"] = sum(of_size[stage] for stage in FOUR)
    shown = " | ".join(f"at {rows:,}: from {few:,} to {many:,}" for rows, (few, many) in AROUND.items())
    yield f"| stage | {shown} | ratio | CPU s at {' / '.join(f'{rows:,}' for rows in least)} |"
    yield "|---|---|---|---|---|"
    for stage in (*FOUR, "the four together", "score, cold", "curate -o"):
        rates = [(many - few) / (least[many][stage] - least[few][stage]) for few, many in AROUND.values()]
        seconds = " / ".join(f"{of_size[stage]:.2f}" for of_size in least.values())
        yield f"| {stage} | {' | '.join(f'{r:,.0f}' for r in rates)} | {rates[-1] / rates[0]:.2f} | {seconds} |"


def parted(table: Path, folder: Path, rows: int, more: int) -> None:
    """Write a manifest as several: its first rows, and then so many in each."""
    import pyarrow.parquet as pq

    whole, first = pq.read_table(table), 0
    folder.mkdir()
    while first < len(whole):
        some = more if first else rows
        pq.write_table(
            whole.slice(first, some), folder / f"part{(first - rows) // more + 1 if first else 0:03d}.parquet"
        )
        first += some


def appended(folder: Path, rows: int, appends: int) -> Iterator[str]:
    """What ``score`` and a gate take after each of many appends to a folder of Parquet files, and the store's bytes."""
    suffix, more = prepared(folder, "features"), int(rows * SHARE)
    run(folder, "made", "features", f"all.{suffix}", rows + appends * more, 3)
    run(folder, "manifest", f"all.{suffix}", "--split", "100/0/0", "--isolated", "-o", "all.parquet")
    run(folder, "parted", "all.parquet", "parts", rows, more)
    (folder / "data").mkdir()
    (folder / "base.parquet").hardlink_to(folder / "parts" / "part000.parquet")
    taken, sizes, shards = list[float](), list[int](), list[int]()
    options = (*SCORE, "--method", "loss", "--store", "store", "--isolated", "-o", "scores.parquet")
    gate = (
        "--by",
        "loss",
        "--check",
        "--against",
        "base.parquet",
        "--false-flag",
        "1%",
        "--max-flagged",
        "5%",
        "--isolated",
    )
    for k, part in enumerate(sorted((folder / "parts").iterdir())):
        part.rename(folder / "data" / part.name)
        scored = run(folder, "score", "data", *options)
        gated = run(folder, "curate", "scores.parquet", *gate, codes=(0, 1))
        files = list((folder / "store").rglob("*.safetensors"))
        taken.append(scored.cpu + gated.cpu)
        sizes.append(sum(file.stat().st_size for file in files))
        shards.append(len(files))
        said = f"store {sizes[-1] / 1e6:.1f} MB in {len(files)} files"
        say(f"append {k}: score {scored.cpu:.2f} s, gate {gated.cpu:.2f} s, {said}")
    ends = min(ENDS, appends // 2)
    first, last = statistics.median(taken[1 : 1 + ends]), statistics.median(taken[-ends:])
    per_row = (sizes[1] / (rows + more), sizes[-1] / (rows + appends * more))
    yield "| rows | appends | CPU s of the first ones | of the last ones | ratio | store bytes a row | its files |"
    yield "|---|---|---|---|---|---|---|"
    yield (
        f"| {rows:,} + {more:,} each | {appends} | {first:.2f} | {last:.2f} | {last / first:.2f} | "
        f"{per_row[0]:.1f} / {per_row[1]:.1f} | {shards[0]} / {shards[-1]} |"
    )


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run and print."""
    if sys.argv[1:2] == ["--inside"]:
        return inside(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--appends", type=int)
    parser.add_argument("--marginal", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    folder: Path = asked.folder.resolve()
    if asked.marginal:
        lines = marginal(folder, "images" if asked.images else "features", asked.repeats)
    elif asked.appends:
        lines = appended(folder, (asked.rows or [50_000])[0], asked.appends)
    elif asked.images:
        lines = many_rows(folder, "images", asked.rows or [2_000, 20_000, 200_000], asked.repeats)
    else:
        lines = many_rows(folder, "features", asked.rows or [10_000, 100_000, 1_000_000], asked.repeats)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
