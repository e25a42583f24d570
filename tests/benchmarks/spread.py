"""Several processes under torchrun: their scores, their time, what a killed one costs, and training together.

    python tests/benchmarks/spread.py OUT --page tests/benchmarks/results/spread.md [--data ../shared/data/cifar10n]

Needs the CIFAR-10N manifests (train, val, test).  Every process has one thread.  Prints its tables, writes them to
``--page`` too, and fails where a score or a shard is not what it must be.  An hour and a half on two cores that nothing
else uses; ``--only scores kills training`` names parts of it, ``--rows 300 --val 100 --trained-rows 100 --rounds 1
--epochs 1 --seeds 1 --input-size 16`` shows in minutes that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.alternating import alternate

KILLS = 3
UNMERGED = 512  # rows of a batch, and so of a shard, from which on shards are left as they are and not merged
PARTS = ("scores", "kills", "training")
SHOWN = ("rows", "val", "rounds", "trained_rows", "epochs", "seeds", "input_size", "batch_size")  # of the command
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def command(processes: int, *arguments: object, restarts: int = 0) -> list[str]:
    """The command line by so many processes."""
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = [*launched, "--max-restarts", str(restarts)] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "influence_cli", *map(str, arguments)]


def run(processes: int, *arguments: object, log: Path) -> tuple[float, float]:
    """Seconds of the clock and of processors that a command takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as said:
        done = subprocess.run(command(processes, *arguments), env=ONE_THREAD, stdout=said, stderr=said, check=False)
    assert done.returncode == 0, log.read_text()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def scores_in(path: Path) -> np.ndarray:
    """The scores of a table by id."""
    table = pq.read_table(path)
    return table.column("score").to_numpy()[np.argsort(table.column("id").to_pylist())]


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, as a share of the largest score."""
    return float(np.abs(a - b).max() / np.abs(a).max())


def shards_of(store: Path) -> dict[str, tuple[int, int]]:
    """Every shard that is finished: when it was written, and its inode."""
    found = {}
    for path in store.glob("*/*/*.safetensors"):
        if not path.name.startswith("."):
            found[str(path.relative_to(store))] = (path.stat().st_mtime_ns, path.stat().st_ino)
    return found


def rows_twice(store: Path) -> int:
    """Rows that stand in two shards of one thing: somebody has computed them again."""
    found: dict[Path, list[np.ndarray]] = {}
    for name in shards_of(store):
        found.setdefault((store / name).parent, []).append(load_file(store / name)["keys"])
    every = [np.concatenate(keys) for keys in found.values()]
    return sum(len(keys) - len(np.unique(keys, axis=0)) for keys in every)


def workers_of(launcher: int) -> dict[int, int]:
    """The processes that torchrun has started, by their rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if int(re.search(r"PPid:\s+(\d+)", (entry / "status").read_text())[1]) == launcher:  # type: ignore[index]
                rank = re.search(rb"(?:^|\0)RANK=(\d+)", (entry / "environ").read_bytes())
                if rank is not None:
                    found[int(rank[1])] = int(entry.name)
        except (OSError, TypeError):
            continue
    return found


def by_themselves(out: Path, scoring: list[object]) -> float:
    """Seconds of two processes that know nothing of each other, each with half of the train and target rows."""
    table = pq.read_table(out / "rows.parquet")
    split, running = table.column("split").to_numpy(), []
    for k in range(2):
        place, store = out / f"half-{k}.parquet", out / f"store-half-{k}"
        shutil.rmtree(store, ignore_errors=True)
        mine = np.concatenate([np.flatnonzero(split == name)[k::2] for name in ("train", "val")])
        pq.write_table(table.take(mine), place)
        asked = [place if word == out / "rows.parquet" else word for word in scoring]
        running.append(command(1, *asked, "--store", store, "-o", out / f"by-half-{k}.parquet"))
    started = time.perf_counter()
    with (out / "halves.log").open("w") as said:
        every = [subprocess.Popen(words, env=ONE_THREAD, stdout=said, stderr=said) for words in running]
        assert [process.wait() for process in every] == [0, 0], (out / "halves.log").read_text()
    return time.perf_counter() - started


def times(out: Path, scoring: list[object], rounds: int) -> np.ndarray:
    """One and two processes, and two that are not one run, by turns, and once four of them; the scores of one."""
    used: dict[int, list[float]] = {1: [], 2: []}

    def timed(processes: int) -> float:
        shutil.rmtree(out / f"store-{processes}", ignore_errors=True)
        more = ("--store", out / f"store-{processes}", "-o", out / f"by-{processes}.parquet")
        wall, cpu = run(processes, *scoring, *more, log=out / f"by-{processes}.log")
        used[processes].append(cpu)
        return wall

    works = [lambda: timed(1), lambda: timed(2), lambda: by_themselves(out, scoring)]
    one, two, halves = alternate(works, rounds, warm=False)
    ratios, given = ([b / a for a, b in zip(one, some, strict=True)] for some in (two, halves))
    used[4] = []
    timed(4)
    alone = scores_in(out / "by-1.parquet")
    print(
        "\n| processes | seconds | CPU seconds | largest difference of a score from those of one |\n|---|---|---|---|"
    )
    for count, walls in ((1, one), (2, two)):
        worst = apart(alone, scores_in(out / f"by-{count}.parquet"))
        print(f"| {count} | {', '.join(f'{w:.0f}' for w in walls)} | {np.median(used[count]):.0f} | {worst:.1e} |")
        assert worst <= 1e-6
    worst = apart(alone, scores_in(out / "by-4.parquet"))
    print(f"| 4 | | {used[4][0]:.0f} | {worst:.1e} |")
    assert worst <= 1e-6
    by_two, halves_take = (
        f"{np.median(some):.2f} of the time of one ({', '.join(f'{r:.3f}' for r in some)})" for some in (ratios, given)
    )
    print(f"\nTwo processes take {by_two}.")
    print(f"Two that know nothing of each other, each with half of the rows, take {halves_take}.")
    return alone


def kills(out: Path, scoring: list[object], alone: np.ndarray) -> None:
    """A process killed three times: no finished shard is written again, and the scores are those of one process."""
    store = out / "store-killed"
    shutil.rmtree(store, ignore_errors=True)
    arguments = (*scoring, "--store", store, "-o", out / "killed.parquet", "--batch-size", UNMERGED)
    with (out / "killed.log").open("w") as said:
        launcher = subprocess.Popen(command(2, *arguments, restarts=KILLS), env=ONE_THREAD, stdout=said, stderr=said)
        finished: dict[str, tuple[int, int]] = {}
        found = []
        for kill in range(KILLS):
            while len(shards_of(store)) < len(finished) + 4:
                assert launcher.poll() is None, (out / "killed.log").read_text()
                time.sleep(0.2)
            finished = shards_of(store)
            os.kill(workers_of(launcher.pid)[kill % 2], signal.SIGKILL)
            found.append(len(finished))
        code = launcher.wait()
    assert code == 0, (out / "killed.log").read_text()
    after = shards_of(store)
    again = [name for name, written in finished.items() if after.get(name) != written]
    twice = rows_twice(store)
    worst = apart(alone, scores_in(out / "killed.parquet"))
    print(
        f"\nKilled {KILLS} times (SIGKILL, the first process and the second by turns), with "
        f"{', '.join(map(str, found))} files finished: {len(again)} of them written again, {len(after)} files in the "
        f"end, {twice:,} rows computed twice, scores apart by {worst:.1e}."
    )
    assert (again, twice) == ([], 0)
    assert worst <= 1e-6


def training(out: Path, manifest: Path, model: str, epochs: int, seeds: int, *more: object) -> None:
    """Metrics of ``retrain`` by one process and by two, over seeds."""
    found: dict[int, dict[str, list[float]]] = {}
    seconds: dict[int, float] = {}
    for processes in (1, 2):
        folder = out / f"run-{model.replace(':', '-')}-{processes}"
        shutil.rmtree(folder, ignore_errors=True)
        options = ("--model", model, "--epochs", epochs, "--seeds", seeds, "-o", folder, *more)
        seconds[processes], _ = run(processes, "retrain", manifest, *options, log=out / f"{folder.name}.log")
        (arm,) = json.loads((folder / "metrics.json").read_text())["arms"].values()
        every = list(arm["seeds"].values())
        found[processes] = {name: [one[name] for one in every] for name in ("train_accuracy", "accuracy", "loss")}
    for name, one in found[1].items():
        two = found[2][name]
        change, noise = float(np.mean(two) - np.mean(one)), float(np.std(one, ddof=1)) if seeds > 1 else float("nan")
        pairs = [f"{x:.4f}" for x in one], [f"{x:.4f}" for x in two]
        print(f"| {model} | {name} | {', '.join(pairs[0])} | {', '.join(pairs[1])} | {change:+.4f} | {noise:.4f} |")
    print(f"| {model} | seconds | {seconds[1]:.0f} | {seconds[2]:.0f} | {seconds[2] / seconds[1]:.2f} of one | |")


class Both(io.TextIOBase):
    """What is printed, kept too."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text = stream, io.StringIO()

    def write(self, text: str) -> int:
        """To both."""
        self.stream.write(text)
        self.stream.flush()
        return self.text.write(text)


def head(asked: argparse.Namespace) -> str:
    """What the page begins with: how it was made, where and when."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    words = [f"--{name.replace('_', '-')} {value}" for name, value in vars(asked).items() if name in SHOWN and value]
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "a processor")
    return f"""# Several processes under torchrun

| what | |
|---|---|
| command | `python tests/benchmarks/spread.py OUT --page tests/benchmarks/results/spread.md {" ".join(words)}` |
| recorded | commit {commit}, {datetime.datetime.now(datetime.UTC).date()}; parts: {", ".join(asked.only)} |
| machine | {os.cpu_count()} cores of {cpu}, one thread a process |
| needs | the CIFAR-10N manifests |
"""


def main() -> None:
    """Run the parts that are asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10n"))
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument("--val", type=int, help="target rows [default: all]")
    parser.add_argument("--page", type=Path, help="write the tables here, with how they were made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trained-rows", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--input-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, help="of scoring (speed only)")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    asked = parser.parse_args()
    with contextlib.redirect_stdout(Both(sys.stdout)) as said:
        measure(asked)
    if asked.page is not None:
        asked.page.write_text(head(asked) + said.text.getvalue())


def measure(asked: argparse.Namespace) -> None:
    """Run the parts that are asked for, and print their tables."""
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)

    def rows(name: str, split: str, count: int | None = None) -> pa.Table:
        table = pq.read_table(asked.data / f"{name}.parquet", columns=["id", "image", "label"]).slice(0, count)
        return table.append_column("split", pa.array([split] * table.num_rows))

    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), out / "weights.pt")
    pq.write_table(
        pa.concat_tables([rows("train", "train", asked.rows), rows("val", "val", asked.val)]), out / "rows.parquet"
    )
    few = [rows("train", "train", asked.trained_rows), rows("val", "val", 500), rows("test", "test", 2_000)]
    pq.write_table(pa.concat_tables(few), out / "few.parquet")
    scoring: list[object] = ["score", out / "rows.parquet", "--model", "resnet18", "--input-size", asked.input_size]
    scoring += ["--checkpoint", out / "weights.pt", "--method", "ip", "--workers", 1]
    scoring += ["--batch-size", asked.batch_size] if asked.batch_size else []
    if "scores" in asked.only:
        times(out, scoring, asked.rounds)
    if "kills" in asked.only:
        if not (out / "by-1.parquet").exists():
            run(1, *scoring, "--store", out / "store-1", "-o", out / "by-1.parquet", log=out / "by-1.log")
        kills(out, scoring, scores_in(out / "by-1.parquet"))
    if "training" in asked.only:
        print("\n| model | measure | one process, by seed | two processes | difference of means | sd over seeds |")
        print("|---|---|---|---|---|---|")
        training(out, out / "few.parquet", "mlp:64", asked.epochs, asked.seeds)
        training(out, out / "few.parquet", "resnet18", asked.epochs, asked.seeds, "--augment", "flip-shift")


if __name__ == "__main__":
    main()
