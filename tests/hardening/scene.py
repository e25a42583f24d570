"""A small project of every kind of file: manifests, run folders, a store, tables, edits, a baseline and decisions."""

from __future__ import annotations

import functools
import json
import tempfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq

from tests.cases import call_cli, examples, feature_table, write

TRAIN = (
    "retrain", "m.parquet", "--model", "mlp:4", "--raw-features", "--epochs", "4", "--batch-size", "16", "--lr", "0.1",
    "--seed", "0", "--device", "cpu",
)  # fmt: skip
ABOUT = ("m.parquet", "--checkpoint", "run", "--batch-size", "9", "--store", "st", "--device", "cpu")
METHODS = ("--method", "ip", "--method", "ip-ensemble", "--set", "ip-ensemble.members=2", "--method", "loss")
BIF = (
    "--method", "bif", "--set", "bif.chains=2", "--set", "bif.draws=6", "--set", "bif.burn_in=2", "--set", "bif.batch=8",
    "--set", "bif.thin=1", "--set", "bif.step=1e-4", "--params", "last",
)  # fmt: skip


def done(*arguments: str, cwd: Path) -> None:
    """Run a command of the scene in this process: what it imports is there before forks are made."""
    ran = call_cli(*arguments, cwd=cwd)
    assert ran.code == 0, (arguments, ran.err)


@functools.cache
def bare() -> Path:
    """A folder with a manifest, a source and a run folder: what the first command finds."""
    import torch

    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="hardening-scene-")) / "bare"
    place.mkdir()
    table = feature_table(examples(), note=["a", "b"] * 32)
    write(table, place / "m.parquet")
    write(feature_table(examples()[:30] + examples()[40:]), place / "few.parquet")
    lines = ["id,x,y,label"] + [f"r{k},{k / 7:.3f},{k % 5},{'ab'[k % 2]}" for k in range(30)]
    (place / "source.csv").write_text("\n".join(lines) + "\n")
    done(*TRAIN, "--keep-checkpoints", "2", "--calibration", "25%", "-o", "run", cwd=place)
    return place


@functools.cache
def scored() -> Path:
    """The same with a store, score tables, edits, a baseline and decisions."""
    import shutil

    place = bare().with_name("scored")
    shutil.copytree(bare(), place)
    done("score", *ABOUT, *METHODS, "-o", "s.parquet", cwd=place)
    done("grads", "few.parquet", *ABOUT[1:], "--method", "ekfac", "--params", "last", "-o", "g.parquet", cwd=place)
    done("curate", "s.parquet", "--budget", "10%", "-o", "c.parquet", "--edits", "e.parquet", cwd=place)
    done("score", *ABOUT, "--method", "loss", "-o", "l.parquet", cwd=place)
    done(
        "curate",
        "l.parquet",
        "--check",
        "--write-baseline",
        "b.jsonl",
        "--max-flagged",
        "40",
        "--false-flag",
        "20%",
        cwd=place,
    )
    rows = pq.read_table(place / "s.parquet").to_pylist()[:6]
    said = [
        {"id": row["id"], "row_key": row["row_key"].hex(), "decision": "drop"}
        if k % 2
        else {
            "id": row["id"],
            "row_key": row["row_key"].hex(),
            "decision": "relabel",
            "label": k // 2,
            "label_name": f"class {k // 2}",
        }
        for k, row in enumerate(rows)
    ]
    lines = ["\0".join((d["id"], d["row_key"], d["decision"], str(d.get("label", "")))) for d in said]
    whole = {"rows": 40, "undecided": 40 - len(said), "checksum": f"{zlib.crc32(chr(10).join(lines).encode()):08x}"}
    (place / "d.json").write_text(json.dumps({**whole, "decisions": said}, indent=1))
    return place
