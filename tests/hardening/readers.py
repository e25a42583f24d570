"""Every reader of what others write, as a function of bytes: it gives something, or refuses in our words.

``read(name, data)`` is what Hypothesis (``test_readers``) and a coverage-guided run (``fuzz``) call.  What a reader raises
must be one of ``OURS``, which the command line shows as an error with exit code 2; anything else is a defect.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence_cli.cli.settings.set_options import check_set
from influence_cli.cli.settings.settings import resolve
from influence_cli.data.ingest import make_manifest
from influence_cli.data.open import open_manifest
from influence_cli.data.request import IngestRequest
from influence_cli.errors import InfluenceError
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.settings import parse_budget, parse_numbers, parse_share, parse_sizes
from influence_cli.stages.curate.baseline import read_baseline
from influence_cli.store.files import DamagedFile
from influence_cli.store.sealed import parsed_object
from influence_cli.store.tensors import read_tensors

TAKING_OPTIONS = ("ip-ensemble", "exact", "bif", "lissa")
OURS = (InfluenceError, DamagedFile)  # the second is of the store: its file is named and made again
Reader = Callable[[bytes], Any]


@functools.cache
def _place() -> Path:
    return Path(tempfile.mkdtemp(prefix="readers-"))


def file_of(name: str, data: bytes) -> Path:
    path = _place() / name
    path.write_bytes(data)
    return path


def _source(name: str) -> Reader:
    """A source with this suffix, made into a manifest."""

    def read(data: bytes) -> Any:
        output = _place() / "made.parquet"
        output.unlink(missing_ok=True)
        return make_manifest(IngestRequest(str(file_of(name, data)), str(output))).manifest

    return read


def _text(read: Callable[[str], Any]) -> Reader:
    return lambda data: read(data.decode(errors="surrogateescape"))


def _settings(data: bytes) -> Any:
    path = file_of("influence.toml", data)
    return resolve("score", {"config": str(path)}, "m.parquet")


def _set(text: str) -> Any:
    settings = resolve("score", {"set": [text], "method": list(TAKING_OPTIONS), "isolated": True}, "m.parquet")
    check_set(settings, dict.fromkeys(settings.options, text))
    return settings


def _budget(text: str) -> Any:
    found = []
    for read in (lambda: parse_budget(text, 1000), lambda: parse_share(text, "--max-flagged")):
        with contextlib.suppress(InfluenceError):
            found.append(read())
    for read in (parse_numbers, parse_sizes):
        with contextlib.suppress(InfluenceError):
            found.append(read(text, "--mean"))
    return found


def _ids(data: bytes) -> Any:
    """A manifest whose ids are the lines of a text: those that are read are those that were written."""
    ids = data.decode(errors="replace").split("\n")
    table = pa.table({"id": ids, "features": [[float(k)] for k in range(len(ids))], "label": [0] * len(ids)})
    path = _place() / "ids.parquet"
    pq.write_table(table, path)
    found = open_manifest(path)
    assert found.ids == ids
    return found


def _store_file(data: bytes) -> Any:
    return read_tensors(file_of("a.safetensors", data))


READERS: dict[str, Reader] = {
    "manifest": lambda data: open_manifest(file_of("m.parquet", data)),
    "jsonl": _source("r.jsonl"),
    "json": _source("r.json"),
    "csv": _source("r.csv"),
    "npz": _source("r.npz"),
    "toml": _settings,
    "set": _text(_set),
    "budget": _text(_budget),
    "ids": _ids,
    "weights": lambda data: find_checkpoint(str(file_of("w.safetensors", data))),
    "torch file": lambda data: find_checkpoint(str(file_of("w.pt", data))),
    "store file": _store_file,
    "sealed JSON": parsed_object,
    "baseline": lambda data: read_baseline(str(file_of("b.jsonl", data))),
}


def read(name: str, data: bytes) -> Any:
    """What a reader gives; None where it refuses in our words.

    Raises:
        Exception: it does neither.
    """
    try:
        return READERS[name](data)
    except OURS as error:
        if not str(error).strip():
            raise AssertionError("an error without a word") from error
        return None


# ---- good files, which mutations begin from -------------------------------------------------------------------------


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _safetensors(metadata: dict[str, str] | None = None) -> bytes:
    header = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    text = json.dumps({**({"__metadata__": metadata} if metadata else {}), **header}).encode()
    return struct.pack("<Q", len(text)) + text + np.arange(4, dtype=np.float32).tobytes()


@functools.cache
def seeds() -> dict[str, tuple[bytes, ...]]:
    """Good files of every reader."""
    import torch

    from influence_cli.store.sealed import sealed
    from influence_cli.store.tensors import write_tensors

    rows = [{"id": f"r{k}", "x": k / 3, "t": "a, b", "label": k % 2} for k in range(6)]
    lines = "\n".join(map(json.dumps, rows)).encode()
    comma = "id,x,t,label\n" + "\n".join(f'{r["id"]},{r["x"]},"{r["t"]}",{r["label"]}' for r in rows)
    columns = {"id": [r["id"] for r in rows], "features": [[r["x"], 1.0] for r in rows], "label": [0, 1] * 3}
    table = pa.table(columns).replace_schema_metadata({"classes": '["a", "b"]'})
    archive, weights = io.BytesIO(), io.BytesIO()
    np.savez(archive, x=np.arange(12.0).reshape(6, 2), y=np.arange(6) % 2)
    torch.save({"state_dict": {"w": torch.ones(2, 2)}, "epoch": 3}, weights)
    kept = _place() / "seed.safetensors"
    write_tensors(kept, {"keys": np.zeros((2, 16), np.uint8), "logits": np.ones((2, 3), np.float32)}, {"rows": 2})
    baseline = "\n".join(json.dumps(sealed({"id": f"r{k}", "row_key": f"{k:032x}"})) for k in range(3)).encode()
    return {
        "manifest": (parquet(table), parquet(table.slice(0, 1))), "jsonl": (lines, b'{"x": null, "label": "a"}\n'),
        "json": (json.dumps(rows).encode(), b'{"x": [1, 2], "label": [0, 1]}'), "csv": (comma.encode(), b"a;b\n1,5;x\n2;y"),
        "npz": (archive.getvalue(),), "torch file": (weights.getvalue(),), "store file": (kept.read_bytes(),),
        "toml": (b'[score]\nmethod = ["ip", "loss"]\nseed = 3\n[method.ip-ensemble]\nmembers = 2\n', b"workers = 2\n"),
        "set": (b"ip-ensemble.members=10", b"exact.damping=0.1"), "budget": (b"5%", b"200", b"0.5,0.5", b"224,128"),
        "ids": ("a\nb\nж\n\x1b[31m".encode(),), "weights": (_safetensors(), _safetensors({"influence": '{"model": {}}'})),
        "sealed JSON": (json.dumps(sealed({"a": [1, {"b": None}]})).encode(),), "baseline": (baseline,),
    }  # fmt: skip


TRIPS = (
    b"\0", b"\xff" * 8, b"[" * 64, b'"', b"\n", b"NaN", b"-1", b"1e999", b"\x7f\xff\xff\xff", b"\x80", b",", b"null", b"{}",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"9" * 400, b"\\ud800", b"%", b"=", b".", b"inf",
)  # fmt: skip


def mutated(data: bytes, choices: Iterator[int]) -> bytes:
    """A file changed in a few places, by numbers that are drawn."""
    found = bytearray(data)
    for _ in range(1 + next(choices) % 3):
        at, what, value = next(choices) % max(len(found), 1), next(choices) % 5, next(choices)
        if what == 0 and found:
            found[at] = value % 256
        elif what == 1:
            found[at:at] = TRIPS[value % len(TRIPS)]
        elif what == 2:
            del found[at : at + 1 + value % 30]
        elif what == 3:
            found[at:at] = found[at : at + 1 + value % 200]
        else:
            found[at : at + 8] = struct.pack("<Q", (0, 1, 2**31, 2**63, 2**64 - 1)[value % 5])
    return bytes(found)


CORPUS = Path(__file__).with_name("corpus")  # inputs that once were a defect, ``READER--what.bin``


def kept() -> list[tuple[str, Path]]:
    """What was found, and has to stay mended: the reader and the file."""
    return [(p.name.split("--")[0].replace("_", " "), p) for p in sorted(CORPUS.glob("*.bin"))]
