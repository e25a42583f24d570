"""The memo law: a store changes no answer, holds what was computed, and computes only what it has not seen.

Cold, warm, grown in pieces, killed and rerun: the same scores, to 1e-6 of the largest (batched kernels round by
position), and bit for bit from the same store.  A relabel in place changes exactly the rows it changed, for free.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influence_cli.settings import GradSpec
from influence_cli.store.tensors import read_tensors
from tests.cases import (
    Example,
    Heard,
    call_cli,
    column,
    draw_features,
    examples,
    feature_table,
    job_of,
    same_scores,
    so_many,
    train_run,
    write,
)
from tests.forked import run_forked
from tests.opened import fill, missing_work, score

N = 40  # train rows of ``examples()``


@dataclasses.dataclass
class Bench:
    """A folder to put manifests and a store in, with the run folder that they are scored at."""

    folder: Path
    run: Path
    written: int = 0

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def manifest(self, rows: list[Example]) -> Path:
        """The rows as a manifest of a new name."""
        self.written += 1
        return write(feature_table(rows), self.folder / f"m{self.written}.parquet")

    def warm(self, rows: list[Example], **how: object) -> tuple[int, pa.Table]:
        """(rows run through the model, scores) with the store as it is."""
        job = job_of(self.manifest(rows), self.run, self.store, **how)  # type: ignore[arg-type]
        return fill(job), score(job)

    def cold(self, rows: list[Example], **how: object) -> pa.Table:
        """Scores from an empty store."""
        return score(job_of(self.manifest(rows), self.run, None, **how))  # type: ignore[arg-type]


@pytest.fixture
def bench(tmp_path: Path, tabular_run: Path) -> Bench:
    return Bench(tmp_path, tabular_run)


# ---- edits of a manifest: (edited rows, how many payloads of theirs are new) ----------------------------------------


def append(rows: list[Example]) -> tuple[list[Example], int]:
    new = [Example(f"new{k}", draw_features(1000 + k), k % 3) for k in range(7)]
    return rows + new, 7


def delete(rows: list[Example]) -> tuple[list[Example], int]:
    return rows[3:9] + rows[11:], 0


def reorder(rows: list[Example]) -> tuple[list[Example], int]:
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[k] for k in order], 0


def rename(rows: list[Example]) -> tuple[list[Example], int]:
    return [dataclasses.replace(r, id=f"renamed-{r.id}") for r in rows], 0


def duplicate(rows: list[Example]) -> tuple[list[Example], int]:
    copies = [dataclasses.replace(r, id=f"again-{r.id}") for r in rows[:5]]
    twins = [Example("twin-a", draw_features(2000), 0), Example("twin-b", draw_features(2000), 1)]
    return rows + copies + twins, 1


def relabel(rows: list[Example]) -> tuple[list[Example], int]:
    return [r.relabelled() if k in (0, 4, 17) else r for k, r in enumerate(rows)], 0


def swap_payloads(rows: list[Example]) -> tuple[list[Example], int]:
    a, b, *rest = rows
    return [dataclasses.replace(a, features=b.features), dataclasses.replace(b, features=a.features), *rest], 0


def everything(rows: list[Example]) -> tuple[list[Example], int]:
    new = 0
    for edit in (delete, append, relabel, duplicate, reorder, rename):
        rows, more = edit(rows)
        new += more
    return rows, new


EDITS = (append, delete, reorder, rename, duplicate, relabel, swap_payloads, everything)


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: e.__name__)
def test_an_edit_computes_exactly_the_distinct_new_payloads(
    edit: Callable[[list[Example]], tuple[list[Example], int]], bench: Bench
) -> None:
    before, _ = bench.warm(examples())
    rows, new = edit(examples())
    computed, warm = bench.warm(rows)
    assert (before, computed) == (N, new)
    assert same_scores(warm, bench.cold(rows))
    again, same = bench.warm(rows)
    assert again == 0
    assert np.array_equal(column(same), column(warm))


def test_the_plan_says_beforehand_what_a_run_computes(bench: Bench) -> None:
    bench.warm(examples())
    rows, new = everything(examples())
    work = missing_work(job_of(bench.manifest(rows), bench.run, bench.store))
    assert [(w.rows, w.directions) for w in work] == [(new, ())]


@pytest.mark.parametrize("methods", [("ip",), ("ip-ensemble",), ("loss",), ("ip", "margin", "random")], ids=str)
def test_cold_and_warm_tables_are_the_same_bytes(
    methods: tuple[str, ...], tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    asked = [tabular, "--checkpoint", tabular_run, *(flag for m in methods for flag in ("--method", m))]
    for stage in ("grads", "score"):
        for name in ("cold", "warm"):
            ran = call_cli(stage, *asked, "-o", f"{stage}-{name}.parquet", cwd=tmp_path)
            assert ran.code == 0, ran.err
        cold, warm = ((tmp_path / f"{stage}-{name}.parquet").read_bytes() for name in ("cold", "warm"))
        assert cold == warm


def test_deleting_the_store_changes_no_answer(bench: Bench) -> None:
    _, before = bench.warm(examples())
    shutil.rmtree(bench.store)
    computed, after = bench.warm(examples())
    assert computed == N
    assert np.array_equal(column(after), column(before))


def test_relabel_in_place_runs_no_model_and_changes_exactly_those_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = bench.warm(examples())
    rows, _ = relabel(examples())
    assert [r.id for r in rows] == [r.id for r in examples()]
    cold = bench.cold(rows)

    def refuse(*_: object) -> None:
        raise AssertionError("a model was run")

    monkeypatch.setattr("influence_cli.stages.grads.passes.forward_pass", refuse)
    monkeypatch.setattr("influence_cli.stages.grads.fill.measure", refuse)
    monkeypatch.setattr("influence_cli.model.build.load_model", refuse)
    computed, after = bench.warm(rows)
    assert computed == 0
    changed = np.flatnonzero(column(after) != column(before))
    assert changed.tolist() == [0, 4, 17]
    assert same_scores(after, cold)


# ---- what makes everything new, and what makes nothing new ---------------------------------------------------------


def retarget(rows: list[Example]) -> list[Example]:
    return [*rows, Example("one-more-target", draw_features(3000), 1, "val")]


def relabel_target(rows: list[Example]) -> list[Example]:
    return [r.relabelled() if r.id == "r041" else r for r in rows]


@pytest.mark.parametrize("edit", [retarget, relabel_target], ids=lambda e: e.__name__)
def test_other_target_rows_make_every_tangent_new_but_no_logits(
    edit: Callable[[list[Example]], list[Example]], bench: Bench
) -> None:
    bench.warm(examples())
    rows = edit(examples())
    (work,) = missing_work(job_of(bench.manifest(rows), bench.run, bench.store))
    assert (work.directions, work.rows, sum(len(k) for p, k in work.lacking.items() if p.quantity == "outputs")) == (
        ("utility",),
        N,
        0,
    )
    computed, warm = bench.warm(rows)
    assert computed == N
    assert same_scores(warm, bench.cold(rows))
    assert not same_scores(warm, bench.cold(examples()))


def test_the_same_target_rows_in_another_order_and_place_are_no_news(bench: Bench) -> None:
    bench.warm(examples())
    target = [dataclasses.replace(r, id=f"t{r.id}") for r in reversed(examples()) if r.split == "val"]
    elsewhere = bench.manifest(target)
    rows = [r for r in examples() if r.split == "train"]
    assert bench.warm(rows, target=str(elsewhere))[0] == 0


@pytest.mark.parametrize(
    ("first", "then", "computed"),
    [
        (GradSpec(("ip",)), GradSpec(("ip",), precision="fp64"), N),
        (GradSpec(("ip",)), GradSpec(("ip",), params="last"), N),
        (GradSpec(("ip",)), GradSpec(("ip-ensemble",)), 5 * N),
        (GradSpec(("ip-ensemble",)), GradSpec(("ip-ensemble",), seed=1), 5 * N),
        (GradSpec(("ip-ensemble",)), GradSpec(("ip-ensemble",), options={"ip-ensemble": {"p_max": 0.2}}), 5 * N),
        (GradSpec(("ip-ensemble",)), GradSpec(("ip-ensemble",), options={"ip-ensemble": {"members": 7}}), 2 * N),
        (GradSpec(("ip-ensemble",)), GradSpec(("ip-ensemble",), options={"ip-ensemble": {"members": 2}}), 0),
        (GradSpec(("ip",)), GradSpec(("ip-ensemble",), options={"ip-ensemble": {"p_max": 0.0}}), 0),
        (GradSpec(("ip",)), GradSpec(("ip",), seed=1), 0),
        (GradSpec(("ip",)), GradSpec(("ip", "loss", "margin", "random")), 0),
        (GradSpec(("loss",)), GradSpec(("ip",)), N),
    ],
    ids=[
        "precision", "params", "method", "seed of the ensemble", "rate", "more members", "fewer members",
        "no dropout", "seed of ip", "methods of the same pass", "tangents after logits",
    ],
)  # fmt: skip
def test_settings_that_change_a_number_compute_anew_and_others_do_not(
    first: GradSpec, then: GradSpec, computed: int, bench: Bench
) -> None:
    bench.warm(examples(), spec=first)
    rows, warm = bench.warm(examples(), spec=then)
    assert rows == computed
    assert same_scores(warm, bench.cold(examples(), spec=then))


def test_another_checkpoint_computes_everything_and_the_same_weights_elsewhere_nothing(
    bench: Bench, tabular: Path
) -> None:
    bench.warm(examples())
    other = train_run(tabular, bench.folder / "other", "mlp:4", seed=1)
    _, theirs = Bench(bench.folder / "b", other).warm(examples())
    computed, ours = dataclasses.replace(bench, run=other, written=10).warm(examples())
    assert computed == N
    assert np.array_equal(column(ours), column(theirs))
    moved = bench.folder / "moved" / "run"
    shutil.copytree(bench.run, moved)
    assert dataclasses.replace(bench, run=moved, written=20).warm(examples())[0] == 0
    weights = dataclasses.replace(bench, run=moved / "model.safetensors", written=30)
    assert weights.warm(examples())[0] == 0


@pytest.mark.parametrize(
    "how", [{"batch_size": 3}, {"shard_rows": 4}, {"workers": 4}, {"batch_size": 7, "shard_rows": 1}], ids=str
)
def test_batch_size_shard_size_and_workers_recompute_nothing_and_change_nothing(
    how: dict[str, int], bench: Bench
) -> None:
    _, before = bench.warm(examples())
    computed, after = bench.warm(examples(), **how)
    assert computed == 0
    assert np.array_equal(column(after), column(before))
    assert same_scores(bench.cold(examples(), **how), before)


def test_a_moved_store_and_a_moved_manifest_recompute_nothing(bench: Bench) -> None:
    _, before = bench.warm(examples())
    shutil.copytree(bench.store, bench.folder / "elsewhere" / "memory")
    moved = Bench(bench.folder / "elsewhere", bench.run)
    shutil.move(moved.folder / "memory", moved.store)
    computed, after = moved.warm(examples())
    assert computed == 0
    assert np.array_equal(column(after), column(before))


def test_a_folder_of_files_is_the_manifest_that_one_file_is(bench: Bench) -> None:
    _, whole = bench.warm(examples())
    rows = examples()
    for k, part in enumerate((rows[:9], rows[9:50], rows[50:])):
        write(feature_table(part), bench.folder / "parts" / f"{k}.parquet")
    job = job_of(bench.folder / "parts", bench.run, bench.store)
    assert fill(job) == 0
    assert score(job).equals(whole)


def test_where_reliability_is_sampled_a_deletion_computes_no_more_than_it_took(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("influence_cli.stages.run.run.HALF_SAMPLE", 10)
    _, before = bench.warm(examples())
    rows, _ = delete(examples())
    computed, after = bench.warm(rows)
    assert computed <= 5
    kept = [i for i, name in enumerate(before.column("id").to_pylist()) if name in {r.id for r in rows}]
    assert np.array_equal(column(after), column(before.take(kept)))


# ---- interrupted runs ---------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[], None]:
    def stop() -> None:
        raise error

    return stop


@pytest.mark.parametrize("moment", sorted(np.random.default_rng(5).choice(np.arange(1, 14), 4, replace=False).tolist()))
@pytest.mark.parametrize(
    ("error", "kept"), [(KeyboardInterrupt(), lambda k: 3 * k), (RuntimeError("lost"), lambda k: 3 * k // 6 * 6)],
    ids=["Ctrl-C", "crash"],
)  # fmt: skip
def test_an_interrupted_run_keeps_what_it_said_and_continues(
    error: BaseException, kept: Callable[[int], int], moment: int, bench: Bench
) -> None:
    how = {"batch_size": 3, "shard_rows": 6}  # shards are written at every other batch
    with pytest.raises(type(error)):
        bench.warm(examples(), listener=Heard(raising(error), moment), **how)
    shards = {p: p.read_bytes() for p in bench.store.rglob("*.safetensors")}
    computed, after = bench.warm(examples(), **how)
    assert computed == N - kept(moment)
    assert {p: p.read_bytes() for p in shards} == shards
    assert same_scores(after, bench.cold(examples()))
    assert not list(bench.store.rglob("*.tmp"))


def test_shards_written_as_rows_come_are_merged_into_large_ones(bench: Bench) -> None:
    computed, first = bench.warm(examples(), batch_size=2, shard_rows=2)
    assert computed == N > 2 * 16  # more shards than are left as they are
    rows = [len(read_tensors(shard)[0]["keys"]) for shard in (bench.store / "outputs").rglob("*.safetensors")]
    assert sum(rows) == N
    assert len(rows) == -(-N // 32)
    computed, again = bench.warm(examples())
    assert computed == 0
    assert np.array_equal(column(again), column(first))


def test_a_run_interrupted_while_it_measures_the_direction_keeps_nothing_wrong(bench: Bench) -> None:
    listener = Heard(raising(KeyboardInterrupt()), 2, "direction")
    with pytest.raises(KeyboardInterrupt):
        bench.warm(examples(), listener=listener, batch_size=2)
    assert list(bench.store.rglob("*.safetensors")) == []
    computed, after = bench.warm(examples())
    assert computed == N
    assert np.array_equal(column(after), column(bench.cold(examples())))


def test_two_writers_at_once_give_the_same_scores(bench: Bench) -> None:
    other = job_of(bench.manifest(examples()), bench.run, bench.store, batch_size=7, shard_rows=9)
    computed, ours = bench.warm(examples(), batch_size=5, shard_rows=6, listener=Heard(lambda: fill(other) and None, 3))
    assert computed == N  # it had planned before the other began
    assert np.array_equal(column(score(other)), column(ours))
    assert same_scores(ours, bench.cold(examples()))


KILL = """
import os, signal, sys
from pathlib import Path
from tests.opened import fill
from tests.cases import Heard, job_of

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def after(count, function, instead):
    left = [count]
    def counted(*given, **named):
        left[0] -= 1
        return instead(*given, **named) if left[0] == 0 else function(*given, **named)
    return counted

def half_written(path, data):
    with open(path, "wb") as handle:
        handle.write(data[: len(data) // 2])
        handle.flush()
    die()

manifest, run, *moments = sys.argv[1:]
for moment in moments:
    what, count, store = moment.split(":", 2)
    child = os.fork()
    if child == 0:
        listener = Heard(die if what == "batch" else None, int(count))
        if what == "rename":
            os.replace = after(int(count), os.replace, lambda *_: die())
        if what == "write":
            Path.write_bytes = after(int(count), Path.write_bytes, half_written)
        fill(job_of(Path(manifest), Path(run), Path(store), listener=listener, batch_size=4, shard_rows=8))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, flush=True)
"""


def test_sigkill_at_any_moment_loses_only_the_shard_in_hand(bench: Bench) -> None:
    manifest = bench.manifest(examples())
    moments = ["batch:1", "batch:7", "rename:1", "rename:2", "rename:7", "write:1", "write:2", "write:8"]
    stores = [bench.folder / f"store-{k}" for k in range(len(moments))]
    asked = [f"{moment}:{store}" for moment, store in zip(moments, stores, strict=True)]
    ran = run_forked(KILL, manifest, bench.run, *asked, cwd=bench.folder)
    assert ran.text.split() == [str(int(signal.SIGKILL))] * len(moments), ran.err
    cold = bench.cold(examples())
    computed = []
    for store in stores:
        job = job_of(manifest, bench.run, store)
        computed.append(fill(job))
        assert same_scores(score(job), cold)
    assert computed[0] == N
    assert 0 < computed[1] < N  # what was whole at the seventh batch was kept
    assert all(0 < rows <= N for rows in computed[2:])


# ---- any sequence of edits -----------------------------------------------------------------------------------------


STEP = st.tuples(
    st.sampled_from(["append", "delete", "reorder", "rename", "duplicate", "relabel", "retype"]),
    st.integers(0, 2**16),
    st.sampled_from([None, 1, 3, 8]),  # batch size and rows a shard
)


def edited(rows: list[Example], kind: str, seed: int) -> list[Example]:
    """The train rows after one random edit."""
    rng = np.random.default_rng(seed)
    chosen = set(rng.choice(len(rows), min(len(rows), 1 + seed % 4), replace=False).tolist())
    fresh = [Example(f"{seed}-{kind}-{k}", draw_features(10_000 + (seed + k) % 50), k % 3) for k in range(1 + seed % 4)]
    match kind:
        case "append":
            return rows + fresh
        case "delete":
            kept = [r for k, r in enumerate(rows) if k not in chosen]
            return kept or rows
        case "reorder":
            return [rows[k] for k in rng.permutation(len(rows))]
        case "rename":
            return [dataclasses.replace(r, id=f"{r.id}'") if k in chosen else r for k, r in enumerate(rows)]
        case "duplicate":
            return rows + [dataclasses.replace(rows[k], id=f"{rows[k].id}+") for k in sorted(chosen)]
        case "relabel":
            return [r.relabelled() if k in chosen else r for k, r in enumerate(rows)]
        case _:  # another payload under the same id and label
            return [
                dataclasses.replace(r, features=fresh[0].features) if k in chosen else r for k, r in enumerate(rows)
            ]


def with_unique_ids(rows: list[Example]) -> list[Example]:
    """The same rows, a repeated id told apart by its place."""
    seen: set[str] = set()
    out = []
    for k, r in enumerate(rows):
        name = r.id if r.id not in seen else f"place {k}"
        while name in seen:
            name += "~"
        seen.add(name)
        out.append(dataclasses.replace(r, id=name))
    return out


@settings(max_examples=so_many(25, 8), deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=1, max_size=6))
def test_any_sequence_of_edits_leaves_warm_equal_to_cold(
    tabular_run: Path, steps: list[tuple[str, int, int | None]]
) -> None:
    start = examples(train=14, val=6, test=0)
    rows, target = start[:14], start[14:]
    seen: set[tuple[float, ...]] = set()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), tabular_run)
        for kind, seed, size in steps:
            rows = with_unique_ids(edited(rows, kind, seed))
            new = {r.features for r in rows} - seen
            computed, warm = bench.warm(rows + target, batch_size=size, shard_rows=size or 1024)
            assert computed == len(new)
            seen |= new
        assert same_scores(warm, bench.cold(rows + target))


def test_the_score_table_follows_the_order_of_the_manifest(bench: Bench) -> None:
    rows, _ = everything(examples())
    _, warm = bench.warm(rows)
    train = [r for r in rows if r.split == "train"]
    assert warm.column("id").to_pylist() == [r.id for r in train]
    assert warm.column("label").to_pylist() == [r.label for r in train]
    assert pq.read_table(bench.folder / "m1.parquet").num_rows == len(rows)
