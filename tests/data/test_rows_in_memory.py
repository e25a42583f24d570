"""Rows that a program holds: train and target rows of one type, tables that change between calls, rows without a path.

Reference: the gradient of every row in float64, by a loop.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import influence_cli
from influence_cli.data.open import object_key, open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.events import SILENT
from influence_cli.model.decoded import DecodedByKey
from influence_cli.model.examples import batches
from influence_cli.model.losses.own import loss_name
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import Runtime
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.run.usable_rows import left_out_of
from tests.cases import column, write


def rows_of(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs [n, 6] and labels [n] in three classes."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=g), torch.randint(0, 3, (n,), generator=g)


def table_of(x: Tensor, y: Tensor, prefix: str, **columns: Any) -> pa.Table:
    """The rows as a table in memory."""
    ids = [f"{prefix}{k}" for k in range(len(y))]
    features = pa.array(x.tolist(), pa.list_(pa.float32()))
    return pa.table({"id": ids, "features": features, "label": y.tolist(), **columns})


class Held(torch.utils.data.Dataset):
    """The rows as a Dataset."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        return self.x[k], int(self.y[k])


TRAIN, TARGET = rows_of(24, 0), rows_of(10, 1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """A linear model."""
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def gradients(net: nn.Module, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Every row's own gradient [n, p]."""
    model = copy.deepcopy(net).double()
    of = lambda k: cross_entropy(model(x[k : k + 1].double()), y[k : k + 1])  # noqa: E731
    grads = [torch.autograd.grad(of(k), list(model.parameters())) for k in range(len(y))]
    return np.stack([torch.cat([g.flatten() for g in row]).numpy() for row in grads])


KINDS = {
    "table": lambda rows, prefix: table_of(*rows, prefix),
    "frame": lambda rows, prefix: table_of(*rows, prefix).to_pandas(),
    "dataset": lambda rows, _: Held(*rows),
}


@pytest.mark.parametrize("kind", KINDS)
def test_train_rows_are_scored_with_their_own_inputs_whatever_the_target_is_called(kind: str, net: nn.Module) -> None:
    train, target = KINDS[kind](TRAIN, "a"), KINDS[kind](TARGET, "b")
    g, q = gradients(net, *TRAIN), gradients(net, *TARGET).mean(axis=0)
    asked = {"target": target, "task": influence_cli.Task(net), "store": None}
    relative = column(influence_cli.score(train, relative=True, **asked))
    assert relative == pytest.approx(g @ q / np.linalg.norm(g, axis=1), rel=1e-4, abs=1e-6)
    both = influence_cli.score(train, method=["ip", "self-tracin"], **asked)
    assert column(both, "score_ip_utility") == pytest.approx(g @ q, rel=1e-4, abs=1e-6)
    assert column(both, "score_self-tracin") == pytest.approx(-(g * g).sum(axis=1), rel=1e-4)
    kept = {"ip-ensemble": {"members": 2, "p_fixed": 1e-9}}  # members that are the model itself
    ensemble = column(influence_cli.score(train, method="ip-ensemble", options=kept, **asked))
    assert ensemble == pytest.approx(g @ q, rel=1e-4, abs=1e-6)


def test_a_store_that_rows_in_memory_have_filled_serves_the_files_of_the_same_rows(
    tmp_path: Path, net: nn.Module
) -> None:
    train, target = table_of(*TRAIN, "a"), table_of(*TARGET, "b")
    files = [str(write(t, tmp_path / name)) for t, name in ((train, "a.parquet"), (target, "b.parquet"))]
    asked = {"task": influence_cli.Task(net), "relative": True}
    influence_cli.score(train, target=target, store=str(tmp_path / "s"), **asked)
    plan = influence_cli.plan(files[0], target=files[1], store=str(tmp_path / "s"), **asked)
    assert plan["rows_to_compute"] == 0
    found = influence_cli.score(files[0], target=files[1], store=str(tmp_path / "s"), **asked)
    fresh = influence_cli.score(files[0], target=files[1], store=None, **asked)
    assert column(found) == pytest.approx(column(fresh), rel=1e-6)


def test_decoded_rows_are_held_by_content_and_for_one_spec() -> None:
    first, second = (open_manifest(table_of(*rows, "a")) for rows in (TRAIN, TARGET))
    assert first.source == second.source
    spec, other = (ModelSpec("linear", 3, "features", (6,)) for _ in range(2))
    held = DecodedByKey(spec)
    for manifest, rows in ((first, TRAIN), (second, TARGET), (first, TRAIN)):
        chunks = [list(manifest.payloads(np.arange(10)))]
        ((_, values),) = batches(manifest, chunks, spec, held=held)
        assert np.array_equal(values.numpy(), rows[0][:10].numpy())
    key = first.payload_keys[0].tobytes()
    assert held.get(key, spec) is not None
    assert held.get(key, other) is None


def test_a_table_that_changes_between_calls_is_another(tmp_path: Path, net: nn.Module) -> None:
    frame, target = table_of(*TRAIN, "a").to_pandas(), table_of(*TARGET, "b")
    asked = {"target": target, "task": influence_cli.Task(net), "relative": True}
    influence_cli.score(frame, store=str(tmp_path / "s"), **asked)
    frame["features"] = [2 * values for values in frame["features"]]
    again = column(influence_cli.score(frame, store=str(tmp_path / "s"), **asked))
    assert again == pytest.approx(column(influence_cli.score(frame, store=None, **asked)), rel=1e-6)


def test_rows_that_are_left_out_of_two_tables_of_one_type_are_all_listed(tmp_path: Path) -> None:
    tables = [table_of(*rows, prefix) for rows, prefix in ((TRAIN, "a"), (TARGET, "b"))]
    tables = [t.set_column(2, "label", pa.array([None, *t["label"].to_pylist()[1:]])) for t in tables]
    train, target = (open_manifest(t, skip_bad=True) for t in tables)
    listed = left_out_of(train, target)
    assert {name: [row["id"] for row in rows] for name, rows in listed.items()} == {
        "the Table": ["a0"],
        "the Table (2)": ["b0"],
    }
    assert left_out_of(train, train, open_manifest(tables[0], skip_bad=True)) == {"the Table": listed["the Table"]}


def test_fit_rows_in_memory_are_those_of_the_file_and_are_not_taken_for_the_train_rows(
    tmp_path: Path, tabular_run: Path, tabular: Path
) -> None:
    train = open_manifest(tabular)
    fit = pa.table({"id": train.ids, "features": features_of(train), "label": train.labels}).slice(0, 30)
    path = str(write(fit, tmp_path / "fit.parquet"))
    asked = {"checkpoint": tabular_run, "method": "exact", "store": None}
    expected = influence_cli.score(tabular, fit_rows=path, **asked)
    found = influence_cli.score(tabular, fit_rows=fit, **asked)
    assert found.column("score").equals(expected.column("score"))
    with pytest.raises(UsageError, match="rows in memory"):
        reopen(provenance(found.schema), Runtime(None), SILENT, source="s")
    reopen(provenance(expected.schema), Runtime(None), SILENT, source="s")


def features_of(manifest: Any) -> list[list[float]]:
    """Every row's features."""
    return [value.tolist() for _, value in manifest.payloads(manifest.all_rows().index)]


def test_images_with_other_palettes_are_other_rows() -> None:
    pixels = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    one, other = pixels.convert("P"), pixels.convert("P")
    other.putpalette([255 - v for v in one.getpalette() or []])
    assert one.tobytes() == other.tobytes()
    assert object_key(one) != object_key(other)
    out = io.BytesIO()
    one.save(out, "PNG")
    assert object_key(Image.open(out)) == object_key(one)


def test_a_loss_that_changes_between_calls_gets_another_name() -> None:
    class Scaled:
        factor = 1.0

        def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
            return self.factor * cross_entropy(logits, labels, reduction="none")

    loss = Scaled()
    before = loss_name(loss, 3)
    loss.factor = 2.0
    assert loss_name(loss, 3) != before


def test_gaps_of_test_rows_whose_groups_have_changed_are_measured_again(tmp_path: Path) -> None:
    x, y = rows_of(80, 2)
    y = (x[:, 0] > 0).long()
    groups = np.where(x[:, 1].numpy() > 0, "m", "f")
    asked = {"model": "linear", "optimizer": "lbfgs", "weight_decay": 1e-2}

    def gap(groups: NDArray[np.str_], run: str) -> float:
        test = table_of(x[40:], y[40:], "b", group=groups[40:].tolist())
        found = influence_cli.retrain(table_of(x[:40], y[:40], "a"), str(tmp_path / run), test=test, **asked)
        return found["arms"]["all rows"]["mean"]["dp_gap"]["mean"]

    first, by_label = gap(groups, "r"), np.where(y.numpy() > 0, "m", "f")
    again = gap(by_label, "r")
    assert again == pytest.approx(gap(by_label, "fresh"))
    assert again != pytest.approx(first)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_columns_of_categories_are_read_as_they_are(kind: pa.DataType, net: nn.Module) -> None:
    (x, y), (tx, ty) = TRAIN, TARGET
    shades = pa.DictionaryArray.from_arrays(pa.array([k % 2 for k in range(24)], pa.int8()), pa.array(["a", "b"], kind))
    table, target = table_of(x, y, "a", shade=shades), table_of(tx, ty, "b")
    task = influence_cli.Task(net)
    expected = influence_cli.score(table_of(x, y, "a"), method="ip", target=target, task=task, store=None)
    for rows in (table, table.to_pandas()):
        found = influence_cli.score(rows, method="ip", target=target, task=task, store=None)
        assert found.column("score").equals(expected.column("score"))


def test_tables_of_scores_may_be_frames(net: nn.Module) -> None:
    manifest, target = table_of(*TRAIN, "a"), table_of(*TARGET, "b")
    scores = influence_cli.score(manifest, method="ip", target=target, task=influence_cli.Task(net), store=None)
    found, expected = (
        influence_cli.curate(table, manifest=manifest, budget="3") for table in (scores.to_pandas(), scores)
    )
    assert found.column("id").equals(expected.column("id"))
