"""The memo law over any sequence of changes: of rows, target, checkpoint, preprocessing and settings.

After every change the run computes exactly the rows that it cannot know yet, and at the end, and at one moment on the
way, the scores from the store are those from an empty one.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec, Inputs, Runtime
from tests.cases import named, png, same_scores, so_many, write
from tests.opened import Opened, describe_plan, fill, missing_work, opened, score

STEPS, EXAMPLES = 20, so_many(200, 20)
PARTS = 4  # of the examples, so that processes can share them
CLASSES = 3


@dataclass(frozen=True)
class Row:
    """A row of an image manifest; the picture is drawn from ``picture``."""

    id: str
    picture: int
    label: int
    split: str = "train"


@functools.lru_cache(maxsize=4096)
def drawn(picture: int) -> bytes:
    return png(np.random.default_rng(picture).integers(0, 256, (2, 3)))


def table_of(rows: list[Row]) -> pa.Table:
    columns = {
        "id": [r.id for r in rows],
        "image": pa.array([drawn(r.picture) for r in rows], pa.binary()),
        "label": [r.label for r in rows],
        "split": [r.split for r in rows],
    }
    return named(pa.table(columns), CLASSES)


@dataclass(frozen=True)
class State:
    """All that a run depends on."""

    rows: tuple[Row, ...]
    target: tuple[Row, ...]
    checkpoint: int = 0
    mean: float = 0.5
    crop: float | None = None
    params: str = "all"
    precision: str = "fp32"
    method: str = "ip"
    dropout: float = 0.0

    def tangents(self) -> tuple[object, ...]:
        """What the tangents depend on, but for the row."""
        target = tuple(sorted((r.picture, r.label) for r in self.target))
        return (*self.outputs(), self.params, target)

    def outputs(self) -> tuple[object, ...]:
        """What the logits depend on, but for the row."""
        dropout = (self.dropout, self.params) if self.method == "ip-ensemble" and self.dropout else None
        return (self.checkpoint, self.mean, self.crop, self.precision, dropout)


ROW_CHANGES = ("append", "delete", "reorder", "rename", "duplicate", "relabel", "repaint")
SETTING_CHANGES = (
    "retarget", "relabel target", "reorder target", "checkpoint", "mean", "crop", "params", "precision", "method",
)  # fmt: skip


def changed_rows(rows: tuple[Row, ...], kind: str, seed: int) -> tuple[Row, ...]:
    """The train rows after one change."""
    rng = np.random.default_rng(seed)
    chosen = set(rng.choice(len(rows), min(len(rows), 1 + seed % 4), replace=False).tolist())
    match kind:
        case "append":
            new = (Row(f"{seed}+{k}", 1000 + (seed + k) % 60, k % CLASSES) for k in range(1 + seed % 4))
            return (*rows, *new)
        case "delete":
            return tuple(r for k, r in enumerate(rows) if k not in chosen) or rows
        case "reorder":
            return tuple(rows[k] for k in rng.permutation(len(rows)))
        case "rename":
            return tuple(dataclasses.replace(r, id=f"{r.id}'") if k in chosen else r for k, r in enumerate(rows))
        case "duplicate":
            return (*rows, *(dataclasses.replace(rows[k], id=f"{rows[k].id}+") for k in sorted(chosen)))
        case "relabel":
            other = lambda r: dataclasses.replace(r, label=(r.label + 1) % CLASSES)  # noqa: E731
            return tuple(other(r) if k in chosen else r for k, r in enumerate(rows))
        case _:  # another picture under the same id and label
            painted = 1000 + seed % 60
            return tuple(dataclasses.replace(r, picture=painted) if k in chosen else r for k, r in enumerate(rows))


def changed(state: State, kind: str, seed: int) -> State:
    """The state after one change; ids stay unique."""
    if kind in ROW_CHANGES:
        return dataclasses.replace(state, rows=with_unique_ids(changed_rows(state.rows, kind, seed)))
    match kind:
        case "retarget":
            kept = state.target[seed % 2 :] if len(state.target) > 4 else state.target
            more = Row(f"t{seed}", 5000 + seed % 40, seed % CLASSES, "val")
            return dataclasses.replace(state, target=with_unique_ids((*kept, more)))
        case "relabel target":
            k = seed % len(state.target)
            new = dataclasses.replace(state.target[k], label=(state.target[k].label + 1) % CLASSES)
            return dataclasses.replace(state, target=(*state.target[:k], new, *state.target[k + 1 :]))
        case "reorder target":
            return dataclasses.replace(state, target=state.target[::-1])
        case "checkpoint":
            return dataclasses.replace(state, checkpoint=seed % 2)
        case "mean":
            return dataclasses.replace(state, mean=(0.5, 0.4)[seed % 2])
        case "crop":
            return dataclasses.replace(state, crop=(None, 0.6)[seed % 2])
        case "params":
            return dataclasses.replace(state, params=("all", "last")[seed % 2])
        case "precision":
            return dataclasses.replace(state, precision=("fp32", "fp64")[seed % 2])
        case _:
            method, dropout = (("ip", 0.0), ("loss", 0.0), ("ip-ensemble", 0.1), ("ip-ensemble", 0.0))[seed % 4]
            return dataclasses.replace(state, method=method, dropout=dropout)


def with_unique_ids(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The same rows, a repeated id told apart by its place."""
    seen: set[str] = set()
    out: list[Row] = []
    for k, r in enumerate(rows):
        name = r.id
        while name in seen:
            name = f"{r.id} at {k}" if name == r.id else name + "~"
        seen.add(name)
        out.append(dataclasses.replace(r, id=name))
    return tuple(out)


@dataclass
class World:
    """A store, and what it must hold by now."""

    folder: Path
    weights: list[Path]
    known: dict[str, set[tuple[object, ...]]] = field(default_factory=lambda: {"outputs": set(), "tangents": set()})
    runs: int = 0

    def job(self, state: State, store: Path | None, batch_size: int | None) -> Opened:
        self.runs += 1
        manifest = write(table_of([*state.rows, *state.target]), self.folder / f"{self.runs}.parquet")
        asked = Inputs(
            str(manifest), checkpoint=str(self.weights[state.checkpoint]), model="mlp:4", mean=(state.mean,),
            std=(0.5,), crop=state.crop,
        )  # fmt: skip
        options = {"ip-ensemble": {"members": 1, "p_fixed": state.dropout}} if state.method == "ip-ensemble" else {}
        spec = GradSpec((state.method,), options=options, params=state.params, precision=state.precision)
        return opened(asked, spec, Runtime(str(store) if store else None, "cpu", batch_size, 1, batch_size or 1024))

    def expected(self, state: State) -> int:
        """Distinct pictures that a run cannot know yet; afterwards they are known."""
        needs = [("outputs", state.outputs())] + ([("tangents", state.tangents())] if state.method != "loss" else [])
        pictures = {r.picture for r in state.rows}
        new = {p for p in pictures for kind, context in needs if (*context, p) not in self.known[kind]}
        for kind, context in needs:
            self.known[kind] |= {(*context, p) for p in pictures}
        return len(new)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of the same architecture."""
    folder, out = tmp_path_factory.mktemp("weights"), []
    for k in range(2):
        torch.manual_seed(k)
        model = build_model(ModelSpec("mlp:4", CLASSES, "image", (1, 2, 3)))
        torch.save(model.state_dict(), folder / f"{k}.pt")
        out.append(folder / f"{k}.pt")
    return out


STEP = st.tuples(
    st.sampled_from(ROW_CHANGES + ROW_CHANGES + SETTING_CHANGES),
    st.integers(0, 2**16),
    st.sampled_from([None, 1, 3, 8]),  # batch size and rows a shard
)
START = State(
    tuple(Row(f"r{k}", k, k % CLASSES) for k in range(10)),
    tuple(Row(f"v{k}", 4000 + k, k % CLASSES, "val") for k in range(5)),
)


@pytest.mark.parametrize("part", range(PARTS))
def test_any_sequence_of_changes_computes_what_is_new_and_warm_equals_cold(
    part: int, weights: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)  # nothing is asked of what a crash leaves

    @seed(part)
    @settings(max_examples=EXAMPLES // PARTS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEP, min_size=STEPS, max_size=STEPS + 4), st.integers(0, STEPS - 1))
    def holds(steps: list[tuple[str, int, int | None]], moment: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            follow(World(Path(folder), weights), steps, moment)

    holds()


def follow(world: World, steps: list[tuple[str, int, int | None]], moment: int) -> None:
    """Make the changes one by one; compare with a run that knows nothing at one moment and at the end."""
    state = START
    for k, (kind, chance, size) in enumerate(steps):
        state = changed(state, kind, chance)
        job = world.job(state, world.folder / "store", size)
        new = world.expected(state)
        plan = describe_plan(job, missing_work(job))
        assert plan["rows_to_compute"] == new, kind
        assert fill(job) == new, kind
        if k in (moment, len(steps) - 1):
            warm = score(job)
            cold = score(world.job(state, None, None))
            assert warm.column("id").to_pylist() == [r.id for r in state.rows]
            assert same_scores(warm, cold), kind


def test_every_kind_of_change_is_made() -> None:
    for kind in (*ROW_CHANGES, *SETTING_CHANGES):
        assert any(changed(START, kind, seed) != START for seed in range(4)), kind
