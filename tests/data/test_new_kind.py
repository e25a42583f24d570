"""A kind of payload of two columns, added as one row of the table: manifest, scores, edits and exports with it.

The kind, its data and its model stand in this file; nothing else knows them.  Scores are compared with loops in float64
that read the columns themselves.

    python -m pytest tests/data/test_new_kind.py
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from influence_cli.data.kinds import KINDS
from influence_cli.data.kinds.features import vectors
from influence_cli.data.kinds.protocol import BadPayload, InputSpec, Kind
from influence_cli.data.open import open_manifest
from influence_cli.model.task import Task
from tests.cases import call_cli, write

Pair = dict[str, NDArray[np.float32]]
LEFT, RIGHT, CLASSES = 4, 3, 3
SPLITS = ["train"] * 24 + ["val"] * 9 + ["test"] * 6


class Pairs(Kind):
    """Two vectors a row."""

    name = "pair"
    columns = ("left", "right")
    types = dict.fromkeys(columns, pa.list_(pa.float32()))
    domain = "test.pair"
    threads = False

    def stored(self, batch: pa.RecordBatch, folder: Path) -> list[Pair | None]:
        both = zip(*(vectors(batch.column(name)) for name in self.columns), strict=True)
        return [None if a is None or b is None else {"left": a, "right": b} for a, b in both]

    def fault(self, payload: Pair) -> BadPayload | None:
        good = all(np.isfinite(v).all() for v in payload.values())
        return None if good else BadPayload("a number is not finite", "repair it")

    def widths(self, payload: Pair) -> dict[str, int]:
        return {name: len(v) for name, v in payload.items()}

    def raw(self, payload: Pair) -> bytes:
        return b"".join(len(v).to_bytes(8, "little") + v.astype("<f4").tobytes() for v in payload.values())

    def shape(self, payload: Pair, whole: bool = False) -> tuple[int, ...]:
        return tuple(len(payload[name]) for name in self.columns)

    def decode(self, payload: Pair, spec: InputSpec) -> Pair:
        return payload

    def blank(self, spec: InputSpec, rows: int) -> Pair:
        return {n: np.zeros((rows, w), np.float32) for n, w in zip(self.columns, spec.shape, strict=True)}

    def as_values(self, payload: Pair) -> dict[str, Any]:
        return {name: v.tolist() for name, v in payload.items()}

    def as_arrays(self, payload: Pair, where: str) -> Pair:
        return payload


class TwoInputs(nn.Module):
    """Logits of both vectors and of their product."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.left, self.right = nn.Linear(LEFT, 5), nn.Linear(RIGHT, 5)
        self.head = nn.Linear(5, CLASSES)
        for p in self.parameters():
            p.data = 0.6 * torch.randn(p.shape, generator=generator)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.head((self.left(x["left"]) * self.right(x["right"])).tanh())


def net() -> nn.Module:
    """What ``python:`` names."""
    return TwoInputs()


def task() -> Task:
    """The same with a transform of its own, whose batches are dicts too."""
    return Task(net, lambda payload: {name: torch.from_numpy(v) for name, v in payload.items()})


def table() -> pa.Table:
    rng = np.random.default_rng(8)
    n = len(SPLITS)
    left, right = rng.normal(size=(n, LEFT)).astype(np.float32), rng.normal(size=(n, RIGHT)).astype(np.float32)
    labels = rng.integers(0, CLASSES, n)
    columns = {"id": [f"r{k}" for k in range(n)], "left": left.tolist(), "right": right.tolist()}
    return pa.table({**columns, "label": labels, "split": SPLITS, "remark": [f"no {k}" for k in range(n)]})


MODEL = f"python:{__name__}:net"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kind is registered, and a source with its columns is there."""
    monkeypatch.setitem(KINDS, "pair", Pairs())
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(table(), tmp_path / "source.parquet")
    ran = call_cli("manifest", "source.parquet", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    return tmp_path


def run(folder: Path, *arguments: Any) -> str:
    ran = call_cli(*arguments, cwd=folder)
    assert ran.code == 0, ran.err
    return ran.out.decode()


def by_hand(split: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses [n] and loss gradients [n, d] of a split's rows, one row at a time, in float64."""
    model, rows = TwoInputs().double(), [r for r in table().to_pylist() if r["split"] == split]
    losses, gradients = [], []
    for row in rows:
        x = {name: torch.tensor([row[name]], dtype=torch.float64) for name in ("left", "right")}
        loss = F.cross_entropy(model(x), torch.tensor([row["label"]]))
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy())
        losses.append(loss.item())
    return np.array(losses), np.array(gradients)


def column(folder: Path, name: str, *arguments: Any, model: str = MODEL) -> NDArray[np.float64]:
    method = () if "--method" in arguments else ("--method", "ip")
    run(folder, "score", "m.parquet", "--model", model, "-o", "s.parquet", *method, *arguments)
    return pq.read_table(folder / "s.parquet").column(name).to_numpy()


def test_the_manifest_holds_both_columns_and_names_rows_by_both(folder: Path) -> None:
    manifest = open_manifest(folder / "m.parquet")
    assert manifest.kind == "pair"
    assert manifest.splits.tolist() == SPLITS
    kept = pq.read_table(folder / "m.parquet")
    assert kept.column("left").to_pylist() == table().column("left").to_pylist()
    keys = {k.tobytes() for k in manifest.payload_keys}
    assert len(keys) == len(SPLITS)
    swapped = table().to_pylist()[0]
    changed = pa.Table.from_pylist([{**swapped, "right": [9.0, *swapped["right"][1:]]}])
    assert open_manifest(changed).payload_keys[0].tobytes() not in keys


def test_a_row_whose_second_column_is_not_usable_is_named(folder: Path) -> None:
    rows = table().to_pylist()
    rows[2]["right"] = [1.0, float("inf"), 0.0]
    write(pa.Table.from_pylist(rows), folder / "bad.parquet")
    ran = call_cli("score", "--method", "ip", "bad.parquet", "--model", MODEL, "-o", "t.parquet", cwd=folder)
    assert (ran.code, "row id=r2, column left, right" in ran.err) == (2, True)
    rows[2]["right"] = [1.0, 2.0]
    write(pa.Table.from_pylist(rows), folder / "bad.parquet")
    ran = call_cli("score", "--method", "ip", "bad.parquet", "--model", MODEL, "-o", "t.parquet", cwd=folder)
    assert (ran.code, "row id=r2, column right" in ran.err) == (2, True)


@pytest.mark.parametrize("engine", ["auto", "forward", "layerwise", "double-reverse"])
def test_ip_is_the_product_of_gradients(folder: Path, engine: str) -> None:
    found = column(folder, "score", "--precision", "fp64", "--engine", engine)
    (_, train), (_, val) = by_hand("train"), by_hand("val")
    assert found == pytest.approx(train @ val.mean(0), rel=1e-9)


def test_a_transform_may_give_several_tensors(folder: Path) -> None:
    found = column(folder, "score", "--precision", "fp64", model=f"python:{__name__}:task")
    assert found == pytest.approx(column(folder, "score", "--precision", "fp64"), rel=1e-12)


def test_loss_is_the_negative_loss(folder: Path) -> None:
    found = column(folder, "score", "--method", "loss", "--precision", "fp64")
    assert found == pytest.approx(-by_hand("train")[0], rel=1e-9)


def test_curvature_and_row_gradients_take_both(folder: Path) -> None:
    """self-tracin is -|g|^2; exact is g (G + lambda)^-1 q with the empirical Fisher G, whose products cg takes."""
    (_, train), (_, val) = by_hand("train"), by_hand("val")
    norms = column(folder, "score", "--method", "self-tracin", "--precision", "fp64")
    assert norms == pytest.approx(-(train**2).sum(1), rel=1e-9)
    damped = ["--precision", "fp64", "--set", "exact.damping=0.1", "--set", "exact.mode=emp"]
    found = column(folder, "score", "--method", "exact", *damped)
    matrix = train.T @ train / len(train) + 0.1 * np.eye(train.shape[1])
    assert found == pytest.approx(train @ np.linalg.solve(matrix, val.mean(0)), rel=1e-8)
    for method in ("cg", "lissa", "ekfac", "datainf"):
        short = ("--set", "lissa.depth=20", "--set", "lissa.repeats=1") if method == "lissa" else ()
        assert np.isfinite(column(folder, "score", "--method", method, *short)).all()


def test_edits_and_exports_bring_both_columns_out_again(folder: Path) -> None:
    column(folder, "score")
    curate = ["curate", "s.parquet", "--budget", "5", "-o", "clean.parquet"]
    run(folder, *curate, "--export", "out.jsonl", "--export-as", "jsonl")
    clean = pq.read_table(folder / "clean.parquet").to_pylist()
    kept = [row for row in table().to_pylist() if row["id"] in {r["id"] for r in clean}]
    assert len(kept) == len(SPLITS) - 5
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    for rows in (clean, lines):
        found = {row["id"]: (row["left"], row["right"], row["label"]) for row in rows}
        assert found == {row["id"]: (row["left"], row["right"], row["label"]) for row in kept}
    run(folder, *curate[:-2], "--export", "out.csv", "--export-as", "csv")
    (first, *_) = csv.DictReader(io.StringIO((folder / "out.csv").read_text()))
    assert [float(first[f"left_{k}"]) for k in range(LEFT)] == kept[0]["left"]
    assert [float(first[f"right_{k}"]) for k in range(RIGHT)] == kept[0]["right"]
    run(folder, *curate[:-2], "--export", "out.npz", "--export-as", "npz")
    with np.load(folder / "out.npz") as arrays:
        assert arrays["train_right"].tolist() == [row["right"] for row in kept if row["split"] == "train"]
    run(folder, *curate[:-2], "--export", "saved", "--export-as", "huggingface")
    ran = call_cli(*curate[:-2], "--export", "images", "--export-as", "folder", cwd=folder)
    assert (ran.code, "left, right are no images" in ran.err) == (2, True)


def test_a_model_of_both_columns_is_trained_and_scored_again(folder: Path) -> None:
    """The second run finds every row stored."""
    run(folder, "retrain", "m.parquet", "--model", MODEL, "-o", "run", "--epochs", "2")
    first = column(folder, "score", "--checkpoint", "run")
    shards = {p: p.stat().st_mtime_ns for p in (folder / ".influence" / "outputs").rglob("*.safetensors")}
    assert shards
    assert np.array_equal(column(folder, "score", "--checkpoint", "run"), first)
    assert shards == {p: p.stat().st_mtime_ns for p in (folder / ".influence" / "outputs").rglob("*.safetensors")}


def test_the_order_of_names_in_a_row_is_no_form_of_it() -> None:
    """A transform may give its tensors in any order."""
    left, right = np.zeros(3, np.float32), np.zeros(2, np.int64)
    rows = [{"left": left, "right": right}, {"right": right, "left": left}]
    assert KINDS["task"].odd(rows) is None
    assert KINDS["task"].odd([rows[0], {"left": right, "right": left}]) == 1
