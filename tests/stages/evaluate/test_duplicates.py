"""Near-duplicates and leaks between splits, against all pairs by brute force, from a score table to the answer.

python -m pytest tests/stages/evaluate/test_duplicates.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.maths.linked import Linked
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec
from influence_cli.stages.evaluate.duplicates import Limit
from tests.cases import Example, call_cli, draw_features, examples, feature_table, train_run, write


def near(row: int, name: str, split: str, label: int, by: float = 1e-3) -> Example:
    """A row that is nearly row ``row``."""
    moved = [float(np.float32(v + by * (k - 2))) for k, v in enumerate(draw_features(row))]
    return Example(name, tuple(moved), label, split)


ROWS = [
    *examples(train=30, val=10, test=8),
    near(0, "near-0", "train", 0),
    near(0, "nearer-0", "train", 1, 2e-3),
    near(1, "leak-val", "val", 0),
    near(2, "leak-test", "test", 0),
    replace(examples()[5], id="copy-5", split="test"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("duplicates")
    write(feature_table(ROWS), folder / "m.parquet")
    write(feature_table(examples(train=30, val=10, test=8)), folder / "clean.parquet")
    train_run(folder / "clean.parquet", folder / "run", "mlp:16", raw_features=True)
    given = ("score", "m.parquet", "--checkpoint", "run", "--method", "loss", "--precision", "fp64", "--store", "store")
    ran = call_cli(*given, "-o", "s.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    return folder


def asked(folder: Path, limit: str, *more: str) -> Any:
    return call_cli("evaluate", "s.parquet", "--duplicates", limit, "--store", "store", *more, cwd=folder)


def distances(folder: Path, rows: list[Example]) -> NDArray[np.float64]:
    """1 - cos of the features of all pairs, by the model's own layers in float64."""
    spec = ModelSpec.from_dict(json.loads((folder / "run" / "run.json").read_bytes())["model"])
    model: Any = load_model(spec, find_checkpoint(str(folder / "run"))[0], torch.float64)
    h = model.layers[0](torch.tensor([r.features for r in rows], dtype=torch.float32).double()).relu()
    unit = (h / h.norm(dim=1, keepdim=True)).detach().numpy()
    found = ((unit[:, None] - unit[None]) ** 2).sum(2) / 2
    np.fill_diagonal(found, np.inf)
    return found


def groups_of(far: NDArray[np.float64], limit: float, ids: list[str]) -> set[frozenset[str]]:
    """What pairs within the limit link, by merging sets."""
    groups = [{k} for k in range(len(ids))]
    for i, j in zip(*np.nonzero(far <= limit), strict=True):
        a, b = (next(g for g in groups if k in g) for k in (i, j))
        if a is not b:
            groups.remove(b)
            a |= b
    return {frozenset(ids[k] for k in g) for g in groups if len(g) > 1}


@pytest.mark.parametrize("limit", ["1%", "40%", "0.0005", "0.05", "0"])
def test_groups_are_those_of_brute_force(folder: Path, limit: str) -> None:
    far = distances(folder, ROWS)
    middle = float(np.median(far.min(axis=1)))
    most = float(limit[:-1]) / 100 * middle if limit.endswith("%") else float(limit)
    ran = asked(folder, limit, "--json")
    assert ran.code == 0, ran.err
    found = ran.json["duplicates"]
    assert found["rows"] == len(ROWS)
    assert found["limit"] == pytest.approx(most, rel=1e-6)
    expected = groups_of(far, most * (1 + 1e-9) + 1e-18, [r.id for r in ROWS])
    assert {frozenset(row["id"] for row in g["rows"]) for g in found["groups"]} == expected
    closest = {r.id: d for r, d in zip(ROWS, far.min(axis=1), strict=True)}
    for group in found["groups"]:
        by_id = {r.id: r for r in ROWS}
        assert group["leak"] == (len({by_id[row["id"]].split for row in group["rows"]}) > 1)
        assert group["labels"] == len({by_id[row["id"]].label for row in group["rows"]})
        for row in group["rows"]:
            assert row["distance"] == pytest.approx(closest[row["id"]], rel=1e-6, abs=1e-15)
    assert found["leaks"] == sum(g["leak"] for g in found["groups"])


def test_leaks_come_first_and_are_told_by_splits(folder: Path) -> None:
    ran = asked(folder, "1%", "--format", "table")
    assert ran.code == 0, ran.err
    assert "3 are leaks between splits (2 test and train, 1 train and val)" in ran.err
    assert "no more of" not in ran.text
    lines = ran.text.splitlines()
    first = [k for k, line in enumerate(lines) if line.startswith("leak")]
    last = [k for k, line in enumerate(lines) if line.startswith("one split")]
    assert len(first) == 3
    assert max(first) < min(last)
    found = asked(folder, "1%", "--json").json["duplicates"]
    copy = next(g for g in found["groups"] if any(row["id"] == "copy-5" for row in g["rows"]))
    assert copy["same_payload"]
    assert found["leaks_between"] == {"test and train": 2, "train and val": 1}
    assert found["groups_with_several_labels"] >= 1


def test_rows_of_another_target_are_compared_too(folder: Path) -> None:
    write(feature_table([near(3, "far-away", "val", 0), *examples()[48:]]), folder / "t.parquet")
    given = (
        "score",
        "--method",
        "ip",
        "m.parquet",
        "--checkpoint",
        "run",
        "--target",
        "t.parquet",
        "--precision",
        "fp64",
    )
    ran = call_cli(*given, "--store", "store", "-o", "other.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    ran = call_cli("evaluate", "other.parquet", "--duplicates", "1%", "--store", "store", "--json", cwd=folder)
    assert ran.code == 0, ran.err
    found = ran.json["duplicates"]
    rows = {row["id"]: row for g in found["groups"] for row in g["rows"]}
    assert rows["far-away"]["split"] == "target"
    assert found["leaks_between"]["target and train"] == 1


def test_a_target_row_that_is_a_val_row_too_is_one_row(folder: Path) -> None:
    """Under the same id; a copy of a train row that has an id of its own is a leak between the two."""
    val = [row for row in ROWS if row.split == "val"]
    write(feature_table([*val, near(3, "far-away", "val", 0), replace(ROWS[4], split="val")]), folder / "v.parquet")
    given = ("score", "m.parquet", "--checkpoint", "run", "--target", "v.parquet", "--precision", "fp64")
    ran = call_cli(*given, "--overlap", "keep", "--method", "loss", "--store", "store", "-o", "o.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    found = asked(folder, "1%", "--json").json["duplicates"]
    more = call_cli("evaluate", "o.parquet", "--duplicates", "1%", "--store", "store", "--json", cwd=folder)
    more = more.json["duplicates"]
    assert more["rows"] == found["rows"] + 2
    assert more["leaks_between"] == {**found["leaks_between"], "target and train": 2}


def test_features_are_stored_and_the_plan_says_what_lacks(folder: Path) -> None:
    fresh = ("--store", "fresh", "--json")
    given = ("evaluate", "s.parquet", "--duplicates", "5%")
    distinct = len({r.features for r in ROWS})
    plan = {"schema_version": 1, "rows": len(ROWS), "rows_to_compute": distinct, "pairs": 53 * 52 // 2}
    assert call_cli(*given, "-n", *fresh, cwd=folder).json == plan
    assert call_cli(*given, *fresh, cwd=folder).code == 0
    assert call_cli(*given, "-n", *fresh, cwd=folder).json["rows_to_compute"] == 0


def test_a_page_has_the_groups(folder: Path) -> None:
    ran = asked(folder, "1%", "--report", "d.html")
    assert ran.code == 0, ran.err
    assert "copy-5" in (folder / "d.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("much",), "--duplicates 'much' is neither a share nor a distance"),
        (("100%",), "is not from 0% to below 100%"),
        (("3",), "is no distance 1 - cos"),
        (("-1",), "is no distance 1 - cos"),
        (("5%", "--sentinel", "1%"), "ask one at a time"),
        (("5%", "--budget", "1%"), "--budget is about score columns"),
        (("5%", "--plot", "p.png"), "--plot is about score columns"),
        (("5%", "--known-bad", "m.parquet"), "this question is about none"),
        (("5%", "--lds", "9"), "two questions"),
    ],
)
def test_what_cannot_be_asked_exits_2(folder: Path, words: tuple[str, ...], said: str) -> None:
    ran = asked(folder, *words)
    assert ran.code == 2
    assert said in ran.err


def test_rows_with_numbers_for_labels_have_groups_too(tmp_path: Path) -> None:
    table = feature_table([replace(e, label=0) for e in ROWS])
    numbers = table.set_column(table.column_names.index("label"), "label", pa.array(np.linspace(0, 1, len(ROWS))))
    write(numbers.replace_schema_metadata({"task": "regression"}), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "run", "mlp:16", raw_features=True)
    ran = call_cli("score", "m.parquet", "--checkpoint", "run", "--method", "loss", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    ran = call_cli("evaluate", "s.parquet", "--duplicates", "5%", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    found = ran.json["duplicates"]["groups"]
    assert any({r["id"] for r in g["rows"]} >= {"copy-5"} for g in found)


def test_a_limit_is_read_as_it_is_written() -> None:
    assert Limit.of("12.5%") == Limit(share=0.125)
    assert Limit.of("0.25") == Limit(distance=0.25)
    with pytest.raises(UsageError):
        Limit.of("nan%")


def test_links_are_the_same_however_many_pairs_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influence_cli.maths.linked.HELD", 3)
    rng = np.random.default_rng(0)
    linked, groups = Linked(40), [{k} for k in range(40)]
    for _ in range(15):
        i, j = rng.integers(0, 40, size=(2, 2))
        linked.add(i.astype(np.int64), j.astype(np.int64))
        for a, b in zip(i, j, strict=True):
            x, y = (next(g for g in groups if k in g) for k in (a, b))
            if x is not y:
                groups.remove(y)
                x |= y
    lowest = {k: min(g) for g in groups for k in g}
    assert linked.lowest().tolist() == [lowest[k] for k in range(40)]
