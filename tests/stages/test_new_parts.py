"""A new quantity, a method that takes it, and one that averages two checkpoints: one class and one row each.

python -m pytest tests/stages/test_new_parts.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.methods import METHODS, MethodInfo
from influence_cli.methods.protocol import Kind, Linear, Method, Scores
from influence_cli.methods.stored import Place, Stored
from influence_cli.stages.curate.combining import combine_columns
from influence_cli.stages.run.quantities import QUANTITIES, OfRows, Quantity, register
from influence_cli.stages.score.combine import combine_options
from influence_cli.store import layout
from tests.cases import call_cli, column, examples, feature_table, train_run, write

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.data.manifest import Rows
    from influence_cli.engines.point import Point
    from influence_cli.model.checkpoints import Trajectory
    from influence_cli.model.losses import RowLoss
    from influence_cli.stages.run.run import Run


class InputNorms(Quantity):
    """The length of every row's input, and that of its logits."""

    name, key = "input_norms", "payload"

    def of_rows(self, run: Run, point: Point) -> OfRows:
        def norms(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"input": x.flatten(1).norm(dim=1), "logits": point.outputs(x, [])[0].norm(dim=1)}

        return norms

    def row_bytes(self, run: Run) -> int:
        return 16 + 8


@dataclass(frozen=True)
class ShortFirst(Method):
    """Rows with short inputs are suspicious."""

    needs: ClassVar[str] = "input_norms"
    kind: ClassVar[Kind] = "ranking"

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        return [Scores(stored.read("input_norms", stored.members[0])["input"].astype(np.float64))]


@dataclass(frozen=True)
class TwoCheckpoints(Linear):
    """IP at the first recorded checkpoint and, with three times its weight, at the final one."""

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        return [Place(trajectory.recorded[0].checkpoint, weight=1.0), Place(trajectory.final, weight=3.0)]


@dataclass(frozen=True)
class Halved(Linear):
    """Half of IP, by a score of its own."""

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        return [Scores(s.values / 2, s.objective) for s in super().score(stored, rows, loss)]


ROWS = (
    MethodInfo("halved", f"{__name__}:Halved", "half of ip", "-", "V + T"),
    MethodInfo("short-first", f"{__name__}:ShortFirst", "short inputs", "-", "T"),
    MethodInfo("two-checkpoints", f"{__name__}:TwoCheckpoints", "two checkpoints", "-", "2 (V + T)"),
)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for row in ROWS:
        monkeypatch.setitem(METHODS, row.name, row)
    register(InputNorms())
    yield
    del QUANTITIES["input_norms"]
    layout.SHARDED.remove("input_norms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    manifest = write(feature_table(examples()), folder / "m.parquet")
    train_run(manifest, folder / "run", keep_checkpoints=3, raw_features=True)
    return folder


def scored(folder: Path, method: str, checkpoint: str = "run", *more: str) -> np.ndarray:
    given = ["score", "m.parquet", "--checkpoint", checkpoint, "--method", method, "-o", "s.parquet", *more]
    ran = call_cli(*given, "--store", "store", "--precision", "fp64", cwd=folder)
    assert ran.code == 0, ran.err
    return column(pq.read_table(folder / "s.parquet"))


def test_a_quantity_is_planned_computed_stored_listed_and_kept(folder: Path, registered: None) -> None:
    given = (
        "score",
        "m.parquet",
        "--checkpoint",
        "run",
        "--method",
        "short-first",
        "--store",
        "store",
        "--precision",
        "fp64",
    )
    plan = call_cli(*given, "--dry-run", "--format", "json", cwd=folder).json
    assert plan["steps"][0]["row_values_to_compute"] == {"input_norms": 40}
    assert plan["seconds"] is not None
    logits = 40 * (16 + 3 * 8)
    assert plan["bytes"] == logits + 40 * 24
    found = scored(folder, "short-first")
    rows = open_manifest(str(folder / "m.parquet"), "label").rows("train")
    lengths = [np.linalg.norm(r.features) for r in examples() if r.split == "train"]
    np.testing.assert_allclose(found, lengths, rtol=1e-6)
    listed = call_cli("cache", "ls", "--store", "store", "--format", "json", cwd=folder).json["entries"]
    (entry,) = [e for e in listed if e["kind"] == "input_norms"]
    assert entry["rows"] == len(rows)
    gone = write(feature_table(examples()[:30] + examples()[40:]), folder / "less.parquet")
    call_cli("cache", "gc", "--store", "store", "--keep", gone, cwd=folder)
    again = call_cli(*given, "--dry-run", "--format", "json", cwd=folder).json
    assert again["steps"][0]["row_values_to_compute"] == {"input_norms": 10}


def test_a_method_averages_two_checkpoints_by_weight(folder: Path, registered: None) -> None:
    recorded = json.loads((folder / "run" / "run.json").read_bytes())["checkpoints"][0]["file"]
    first, final = scored(folder, "ip", f"run/{recorded}"), scored(folder, "ip")
    both = scored(folder, "two-checkpoints", "run", "--per-member")
    np.testing.assert_allclose(both, (first + 3 * final) / 4, rtol=1e-12, atol=1e-15)
    assert np.abs(both - final).max() > 1e-3 * np.abs(final).max()
    cut = ("--action", "trim", "--budget", "10%", "--set", "trim.guard=false")
    ran = call_cli("curate", "s.parquet", *cut, "-o", "edited.parquet", "--export", "edited.csv", cwd=folder)
    assert ran.code == 0, ran.err
    lines = (folder / "edited.csv").read_text().splitlines()
    assert len(lines) == 1 + 64 - 4
    worst = {f"r{k:03d}" for k in np.argsort(both)[:4]}
    assert not any(line.split(",")[0] in worst for line in lines)


def test_blends_and_spreads_go_by_the_members_weights(folder: Path, registered: None) -> None:
    """A blend made from the table's columns by member is the one that ``score`` makes."""
    table = feature_table(examples(val=30)).append_column("group", pa.array(["a", "b"] * 41))
    write(table, folder / "g.parquet")
    wide = ("score", "g.parquet", "--checkpoint", "run", "--method", "two-checkpoints", "--precision", "fp64")
    wide = (*wide, "--objective", "utility", "--objective", "fairness", "--store", "store", "--per-member")
    ran = call_cli(*wide, "--combine", "linear", "-o", "blend.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    scores = pq.read_table(folder / "blend.parquet")
    by_member = [column(scores, f"score_utility_{k}") for k in (0, 1)]
    mean = (by_member[0] + 3 * by_member[1]) / 4
    np.testing.assert_allclose(column(scores, "score_utility"), mean, rtol=1e-12)
    origin = provenance(scores.schema)
    assert origin["member_weights"]["score_utility"] == [1.0, 3.0]
    blended = combine_columns(scores, ["score_utility", "score_fairness"], "linear", combine_options({}), origin, "t")
    np.testing.assert_allclose(blended, column(scores, "score"), rtol=1e-9)
    spread = np.sqrt(2 * ((by_member[0] - mean) ** 2 + 3 * (by_member[1] - mean) ** 2) / 4)
    call_cli(*wide[:-1], "-o", "wide.parquet", cwd=folder)
    np.testing.assert_allclose(column(pq.read_table(folder / "wide.parquet"), "score_std"), spread, rtol=1e-9)


def test_pairs_are_refused_of_a_method_that_makes_its_scores_itself(folder: Path, registered: None) -> None:
    """They would be products of gradients under another method's name."""
    given = ("score", "m.parquet", "--checkpoint", "run", "--store", "store", "--precision", "fp64", "--per-target")
    ran = call_cli(*given, "--method", "halved", "-o", "pairs.parquet", cwd=folder)
    assert ran.code == 2
    assert "halved makes its scores in a way of its own" in ran.err
    np.testing.assert_allclose(scored(folder, "halved"), scored(folder, "ip") / 2, rtol=1e-12)
