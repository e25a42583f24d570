"""What scoring texts costs, beside inference and beside an epoch of fine-tuning, on one model of transformers.

    python tests/benchmarks/text.py FOLDER MANIFEST [--rows 1024] [--rounds 5]

FOLDER is an encoder or classifier with its tokenizer, MANIFEST has texts (rows with split train are used).  Three
figures: a pass with tangents along one direction over a pass of inference, at 64 tokens a row; `ip` from a cold store
over one epoch of fine-tuning of the same rows; and the most memory that scoring takes for the rows and for a quarter.
Sides of a ratio run by turns, in one process each for the first, as processes for the others.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from alternating import Ratio, alternate

LENGTH, BATCH = 64, 32


def tangents(folder: str, rounds: int) -> str:
    """Seconds of a pass with tangents over one of inference."""
    from influence_cli.engines.point import Point, differentiable_kernels
    from influence_cli.model.hf_folder import spec_values
    from influence_cli.model.named_tensors import NamedTensors
    from influence_cli.model.spec import ModelSpec
    from influence_cli.model.transformers_model import build

    spec = ModelSpec.from_dict(spec_values(Path(folder)) or {})
    point = Point(build(spec).eval(), "all", None, "fp32", torch.device("cpu"))
    ids = torch.randint(5, 1000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    x = NamedTensors({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    u = {n: 0.01 * torch.randn(p.shape) for n, p in point.selected.items()}

    def inference() -> None:
        with torch.no_grad(), differentiable_kernels():
            point.logits(x)  # pyright: ignore[reportArgumentType]

    def along() -> None:
        point.outputs(x, [u])  # pyright: ignore[reportArgumentType]

    ratio = Ratio(*alternate([along, inference], rounds))
    return f"tangents / inference at {LENGTH} tokens, {BATCH} rows: {ratio.median:.2f} (median of {rounds})"


def _run(*arguments: str) -> tuple[float, float]:
    """CPU seconds of a command, and the most memory in MiB that it took."""
    command = [sys.executable, "-m", "influence_cli", *arguments]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode())
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def whole(folder: str, manifest: str, rows: int, rounds: int) -> list[str]:
    """`ip` from a cold store over an epoch of fine-tuning, in CPU seconds; and memory for all rows and a quarter."""
    table = pq.read_table(manifest)
    splits = table.column("split").to_pylist()
    train = [k for k, s in enumerate(splits) if s == "train"][:rows]
    val, test = ([k for k, s in enumerate(splits) if s == split][: rows // 8] for split in ("val", "test"))
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        for file, some in (("few", train[: len(train) // 4]), ("all", train)):
            pq.write_table(table.take(pa.array([*some, *val, *test])), here / f"{file}.parquet")
        made, few = str(here / "all.parquet"), str(here / "few.parquet")
        _run("retrain", made, "--model", f"hf:{folder}", "--epochs", "1", "-o", str(here / "RUN"))
        common = (
            "--checkpoint",
            str(here / "RUN"),
            "--method",
            "ip",
            "--no-store",
            "--overlap",
            "keep",
            "-o",
            str(here / "s.parquet"),
        )
        _, low = _run("score", few, *common)
        scored, trained = [], []
        for k in range(rounds):
            seconds, high = _run("score", made, *common)
            scored.append(seconds)
            seconds, _ = _run("retrain", made, "--model", f"hf:{folder}", "--epochs", "1", "-o", str(here / f"R{k}"))
            trained.append(seconds)
    start, _ = _run("--help")
    ratio = (min(scored) - start) / (min(trained) - start)
    return [
        f"ip, cold / one epoch, {len(train):,} train and {len(val):,} target rows, CPU seconds: {min(scored):.1f} / "
        f"{min(trained):.1f} = {ratio:.2f}",
        f"most memory of scoring: {low:.0f} MiB for {len(train) // 4:,} train rows, {high:.0f} MiB for {len(train):,}",
    ]


def main() -> None:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("manifest")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(tangents(asked.folder, asked.rounds), flush=True)
    for line in whole(asked.folder, asked.manifest, asked.rows, max(1, asked.rounds // 2)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
