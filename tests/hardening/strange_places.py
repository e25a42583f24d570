"""Bad places and names, for every command: outputs over what is read, links, devices, addresses, and words of files.

The cases are as those of ``bad_input``, which tries them: a run takes them or refuses them in our words.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

Case = tuple[str, Callable[[Path], Any], tuple[str, ...]]
SCORE = ("score", "m.parquet", "--checkpoint", "run", "--method", "loss", "--no-store")
CURATE = ("curate", "changed.parquet", "-o", "out.parquet")
TRAIN = ("retrain", "m.parquet", "--model", "mlp:4", "--epochs", "1", "-o", "trained")
INGEST = ("-o", "out.parquet")
CHANGED = ("score", "m.parquet", "--checkpoint", "changed", "--method", "loss", "--no-store", "-o", "out.parquet")


def _nothing(place: Path) -> None:
    """Only the command is bad."""


def _file(name: str, text: str) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_text(text)


def _csv(head: str) -> Callable[[Path], Any]:
    return _file("t.csv", head + "\n" + "\n".join(f"a{k},{k},{k % 2}" for k in range(30)))


def _link(name: str, to: str) -> Callable[[Path], Any]:
    return lambda place: (place / name).symlink_to(to)


def _provenance(**change: Any) -> Callable[[Path], None]:
    """A score table whose provenance says something else."""

    def put(place: Path) -> None:
        table = pq.read_table(place / "s.parquet")
        meta = {k: v for k, v in table.schema.metadata.items() if k != b"influence.seal"}
        meta[b"influence"] = json.dumps({**json.loads(meta[b"influence"]), **change}).encode()
        pq.write_table(table.replace_schema_metadata(meta), place / "changed.parquet")

    return put


def _column(name: str) -> Callable[[Path], None]:
    """A score table whose score has another name."""

    def put(place: Path) -> None:
        table = pq.read_table(place / "s.parquet")
        names = [name if n == "score" else n for n in table.column_names]
        pq.write_table(table.rename_columns(names), place / "changed.parquet")

    return put


def _run(**change: Any) -> Callable[[Path], None]:
    """A run folder whose record says something else."""

    def put(place: Path) -> None:
        shutil.copytree(place / "run", place / "changed")
        record = place / "changed" / "run.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), **change}))

    return put


def _weights_of_a_device(place: Path) -> None:
    shutil.copytree(place / "run", place / "changed")
    (place / "changed" / "model.safetensors").unlink()
    (place / "changed" / "model.safetensors").symlink_to("/dev/zero")


def _bomb(place: Path) -> None:
    """An archive of 100 kB that would be an array of 1 GB, and has a fifth of it."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (30_000_000, 4)})
    with zipfile.ZipFile(place / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head.getvalue() + bytes(200_000_000))


def _many_names(place: Path) -> None:
    with zipfile.ZipFile(place / "b.npz", "w") as archive:
        for k in range(3000):
            archive.writestr(f"../../a{k}.npy", b"x")


def commands() -> Iterator[Case]:
    """Every command with places and names that nobody means well by."""
    heads = {
        "of one name but for case": "id,Label,label", "a formula": "id,=cmd|x,label", "a path": "id,../../x,label",
        "controls": "id,\x1b]0;evil\x07,label", "of a million letters": f"id,{'x' * 1_000_000},label",
        "features": "id,features,label", "image": "id,image,label", "keys": "row_key,payload_key,label",
    }  # fmt: skip
    for name, head in heads.items():
        yield f"header {name}", _csv(head), ("manifest", "t.csv", *INGEST)
    yield "archive that grows", _bomb, ("manifest", "b.npz", *INGEST)
    yield "archive of many names", _many_names, ("manifest", "b.npz", *INGEST)
    for name in (
        "m.parquet",
        "run/model.safetensors",
        "/dev/null/x.parquet",
        ".",
        "a\nb.parquet",
        "a" * 300 + ".parquet",
    ):
        yield f"score -o {name[:20]!r}", _nothing, (*SCORE, "-o", name)
        yield f"curate -o {name[:20]!r}", _nothing, ("curate", "s.parquet", "-o", name)
    yield "a NUL in -o", _nothing, ("curate", "s.parquet", "-o", "a\0.parquet")
    yield "a page over the scores", _nothing, ("curate", "s.parquet", "-o", "out.parquet", "--report", "s.parquet")
    yield "a page over the manifest", _nothing, ("curate", "s.parquet", "-o", "o.html", "--report", "o.html")
    yield "an export into a run", _nothing, ("curate", "s.parquet", "--export", "run", "--export-as", "folder")
    yield "a store that is a link to itself", _link("loop", "loop"), (*SCORE[:-1], "--store", "loop", *INGEST)
    yield "a store that is a file", _file("store", "x"), ("cache", "gc", "--store", "store")
    yield "a store that is a run", _nothing, ("cache", "gc", "--store", "run")
    yield (
        "a device as weights",
        _nothing,
        ("score", "m.parquet", "--checkpoint", "/dev/zero", "--model", "mlp:4", *INGEST),
    )
    yield "weights that lead to a device", _weights_of_a_device, CHANGED
    records: tuple[dict[str, Any], ...] = (
        {"num_classes": -3}, {"model": "python:os:system"}, {"calibration": "x"}, {"calibration": float("nan")},
        {"steps": 10**400}, {"input_shape": [10**9] * 4},
    )  # fmt: skip
    for change in records:
        yield f"run.json with {str(change)[:40]}", _run(**change), CHANGED
    for name in ("", "score_a\0b", "score_\n\x1b[2J"):
        yield f"a score called {name!r}", _column(name), CURATE
    for locator in ("/dev/zero", "http://127.0.0.1:1/x", "file:///etc/passwd"):
        yield f"scores of {locator}", _provenance(manifest={"locator": locator}), CURATE
    yield "scores of a list of labels", _provenance(manifest={"locator": "m.parquet", "label": ["a"]}), CURATE
    for address in ("s3://", "s3://u:p@h/x.parquet", "file:///etc/passwd", "ftp://x/y.csv", "hf://datasets/../x"):
        yield f"address {address}", _nothing, ("manifest", address, *INGEST)
    for name, text in {
        "a device": 'manifest = "/dev/zero"\ncheckpoint = "run"\n', "an output": 'output = "run/run.json"\n',
        "another folder": 'manifest = "m.parquet"\ncheckpoint = "../../../etc/passwd"\n', "inf": "[curate]\nbudget = inf\n",
    }.items():  # fmt: skip
        yield f"settings with {name}", _file("influence.toml", text), ("score", "-n")
    for words in (
        ("methods", "../../etc/passwd"), ("guide", "../../../etc/passwd"), ("guide", "\x1b[2J"), ("evaluate", "m.parquet"),
        ("evaluate", "s.parquet", "--clean-label", "score"), ("score", "s.parquet", "--explain", "nope"),
        ("evaluate", "s.parquet", "--clean-label", "label", "--report", "/dev/full"), (*TRAIN, "--lr", "nan"),
        (*TRAIN, "--arm", "../../x=m.parquet"), (*TRAIN, "--batch-size", "999999999999"), (*TRAIN, "--seeds", "-1"),
        ("grads", "m.parquet", "m.parquet", "--checkpoint", "run", *INGEST),
    ):  # fmt: skip
        yield " ".join(words), _nothing, words
    yield "a file in the place of a run", _file("trained", "x"), TRAIN
