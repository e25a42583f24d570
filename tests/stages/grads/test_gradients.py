"""Rows' own gradients in the store: against the loop, under the memo law, and read a shard at a time.

Reference: one backward pass a row in float64.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from influence_cli import api
from influence_cli.data.tables import provenance
from influence_cli.errors import InfluenceError, StoreError, UsageError
from influence_cli.model.task import Task
from influence_cli.settings import GradSpec
from influence_cli.stages.grads import shard_writer
from influence_cli.stages.grads.row_gradients import StoredGradients
from influence_cli.store import GradientFolder
from influence_cli.store import gradients as shards
from influence_cli.store.gradients import READ
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import (
    Example,
    Heard,
    call_cli,
    column,
    digits_table,
    draw_features,
    examples,
    feature_table,
    job_of,
    run_without_torch,
    verify,
    with_column,
    write,
)
from tests.methods.test_self_tracin import NETS
from tests.opened import Opened, describe_plan, fill, missing_work, open_gradients, score
from tests.oracle import Problem, make_problem, relative_error, row_gradients, save_checkpoint, write_manifest

N, V = 40, 12  # train and target rows of ``examples()``
KINDS = ("full", "last", "sketch")


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A residual network with BatchNorm, a vision transformer, and a small perceptron."""
    name, shape = NETS[request.param]
    return make_problem(tmp_path_factory.mktemp(request.param), name, shape, train=6, val=3)


def loop(problem: Problem, opened: StoredGradients, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Gradients in the columns' order, and squared norms by layer, one backward pass a row."""
    layers = [[name for name, _ in layer["parameters"]] for layer in opened.layout["layers"]]
    flat, norms = [], []
    for g in row_gradients(problem.model, *problem.part(split)):
        flat.append(torch.cat([g[n].flatten() for own in layers for n in own]).numpy())
        norms.append([sum(float(g[n].square().sum()) for n in own) for own in layers])
    return np.stack(flat), np.array(norms)


# -- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["full", "last"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5)])
def test_whole_gradients_norms_and_losses_of_train_and_target_rows_equal_the_loop(
    net: Problem, rows: str, precision: str, tolerance: float
) -> None:
    job = net.job(rows=rows, precision=precision)
    opened = open_gradients(job)
    assert (opened.rows, opened.computed) == (rows, 9)
    names = {n for layer in opened.layout["layers"] for n, _ in layer["parameters"]}
    last = {n for n, _ in net.model.named_parameters() if n.startswith(("head.", "fc."))}
    assert names == (last if rows == "last" else {n for n, _ in net.model.named_parameters()})
    for part, split in ((job.train, "train"), (job.target, "val")):
        flat, norms = loop(net, opened, split)
        found = opened.read(part.row_keys)
        assert found["value"].dtype == (np.float64 if precision == "fp64" else np.float32)
        assert relative_error(found["value"].astype(np.float64), flat) < tolerance
        assert found["norms"].dtype == np.float64
        assert relative_error(found["norms"], norms) < 10 * tolerance
        x, y = net.part(split)
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(net.model(x), y, reduction="none").numpy()
        assert relative_error(found["loss"], losses) < tolerance
    assert len(opened.layers) == found["norms"].shape[1] == len(opened.columns)
    assert opened.columns[-1][1] == opened.dim == found["value"].shape[1]


def test_inner_products_with_the_target_rows_are_the_scores_of_ip(net: Problem) -> None:
    """One sign: the mean over target rows of <g_i, g_v> is the score of a row for their mean loss."""
    job = net.job(rows="full", methods=("ip",))
    opened = open_gradients(job)
    train, target = (opened.read(part.row_keys)["value"] for part in (job.train, job.target))
    assert relative_error((train @ target.T).mean(1), column(score(job))) < 1e-10


def test_a_sketch_has_exact_norms_and_does_not_depend_on_batches_or_shards(net: Problem) -> None:
    dim = 400
    job = net.job(rows="sketch", sketch_dim=dim)
    opened = open_gradients(job)
    assert opened.dim <= dim
    found = opened.read(job.train.row_keys)
    assert relative_error(found["norms"], loop(net, opened, "train")[1]) < 1e-12
    how = {"rows": "sketch", "sketch_dim": dim}
    again = open_gradients(net.job(**how, batch_size=2, shard_rows=1)).read(job.train.row_keys)
    assert relative_error(again["value"], found["value"]) < 1e-12
    assert relative_error(again["norms"], found["norms"]) < 1e-12
    single = open_gradients(net.job(**how, precision="fp32")).read(job.train.row_keys)
    assert relative_error(single["value"], found["value"]) < 1e-4  # the signs are the same bits
    other = open_gradients(net.job(**how, seed=1)).read(job.train.row_keys)
    if opened.layout["layers"][0]["how"] != "whole":
        assert relative_error(other["value"], found["value"]) > 0.1


def test_the_variance_over_seeds_is_below_its_bound_and_of_its_order(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "mlp:7", (5,), train=6, val=1)
    whole = open_gradients(job := problem.job(rows="full")).read(job.train.row_keys)["value"]
    squares, seeds = np.zeros((6, 6)), 40
    for seed in range(seeds):
        job = problem.job(rows="sketch", sketch_dim=9, seed=seed)
        opened = open_gradients(job)
        found = opened.read(job.train.row_keys)
        squares += (found["value"] @ found["value"].T - whole @ whole.T) ** 2
    bound = opened.variance_bound(found["norms"][:, None], found["norms"][None])
    assert not opened.whole
    assert bound.shape == (6, 6)
    assert bound.sum() / 4 < squares.sum() / seeds < bound.sum()
    exact = open_gradients(problem.job(rows="full"))
    assert exact.whole
    assert not exact.variance_bound(found["norms"][:, None], found["norms"][None]).any()


def test_last_is_full_in_the_heads_parameters_and_shares_its_rows(net: Problem) -> None:
    job = net.job(rows="last")
    assert open_gradients(job).computed == 9
    store = job.store.root.name
    assert open_gradients(net.job(store, rows="full", params="last")).computed == 0


# -- the memo law ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Bench:
    """Manifests of any rows at one checkpoint, with a store."""

    folder: Path
    run: Path
    written: int = 0

    def job(self, rows: list[Example], kind: str | None = "full", store: str | None = "store", **how: object) -> Opened:
        self.written += 1
        manifest = write(feature_table(rows), self.folder / f"m{self.written}.parquet")
        spec = how.pop("spec", GradSpec(("loss",), rows=kind, sketch_dim=20))
        where = None if store is None else self.folder / store
        return job_of(manifest, self.run, where, **{"spec": spec, **how})  # type: ignore[arg-type]

    def values(self, rows: list[Example], **how: object) -> np.ndarray:
        job = self.job(rows, **how)  # type: ignore[arg-type]
        return open_gradients(job).read(job.train.row_keys)["value"]


@pytest.fixture
def bench(tmp_path: Path, tabular_run: Path) -> Bench:
    return Bench(tmp_path, tabular_run)


@pytest.mark.parametrize("kind", KINDS)
def test_relabelling_in_place_computes_exactly_those_rows(bench: Bench, kind: str) -> None:
    assert fill(bench.job(examples(), kind)) == N + N + V  # logits, and gradients of train and target rows
    before = bench.values(examples(), kind=kind)
    rows = [r.relabelled() if k in (0, 4, 17) else r for k, r in enumerate(examples())]
    job = bench.job(rows, kind)
    (planned,) = describe_plan(job, missing_work(job))["row_gradients"]
    assert (planned["rows_stored"], planned["rows_to_compute"]) == (N + V - 3, 3)
    assert (planned["train_rows_to_compute"], planned["target_rows_to_compute"]) == (3, 0)
    assert planned["bytes"] == 3 * (planned["values"] * 4 + 40)
    assert fill(job) == 3
    after = bench.values(rows, kind=kind)
    assert np.flatnonzero((after != before).any(1)).tolist() == [0, 4, 17]
    assert relative_error(after, bench.values(rows, kind=kind, store=None)) < 1e-6
    assert fill(bench.job(rows, kind)) == fill(bench.job(examples(), kind)) == 0


def test_appending_computes_exactly_the_new_rows_and_copies_have_one_entry(bench: Bench) -> None:
    fill(bench.job(examples()))
    again = [dataclasses.replace(r, id=f"again-{r.id}") for r in examples()[:5]]
    twins = [Example("twin-a", draw_features(2000), 0), Example("twin-b", draw_features(2000), 1)]
    targets = [Example("new-target", draw_features(3000), 1, "val")]
    rows = examples() + again + twins + targets
    job = bench.job(rows)
    assert open_gradients(job).computed == 3
    values = bench.values(rows)
    assert np.array_equal(values[:5], values[N : N + 5])
    assert relative_error(values, bench.values(rows, store=None)) < 1e-6


def test_kinds_seeds_and_dimensions_share_nothing_but_losses_and_methods_share_all(bench: Bench) -> None:
    def computed(**how: object) -> int:
        return open_gradients(bench.job(examples(), spec=GradSpec(**{"methods": ("loss",), **how}))).computed  # type: ignore[arg-type]

    assert computed(rows="full") == computed(rows="sketch", sketch_dim=20) == computed(rows="last") == N + V
    assert computed(rows="full", methods=("ip", "random"), seed=5) == 0
    assert computed(rows="sketch", sketch_dim=20, seed=5) == N + V
    assert computed(rows="sketch", sketch_dim=21) == N + V


def test_a_run_that_needs_no_rows_computes_none_and_a_method_may_ask_for_them(bench: Bench) -> None:
    job = bench.job(examples(), None)
    assert fill(job) == N
    assert describe_plan(job, missing_work(job))["row_gradients"] == []
    assert open_gradients(job, "last", target=False).computed == N
    assert open_gradients(job, "last").computed == V
    assert open_gradients(job).rows == "sketch"


def test_a_model_is_opened_for_rows_alone(bench: Bench) -> None:
    """Methods that need no model, and a manifest without target rows."""
    rows = [r for r in examples() if r.split == "train"]
    job = bench.job(rows, spec=GradSpec(("random",), rows="last"))
    assert fill(job) == N
    with pytest.raises(UsageError, match="no model"):
        open_gradients(bench.job(rows, spec=GradSpec(("random",))))


def test_a_stopped_pass_keeps_what_it_finished(bench: Bench) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    heard = Heard(stop, stop_at=3, stop_in="row gradients")
    with pytest.raises(KeyboardInterrupt):
        fill(bench.job(examples(), listener=heard, batch_size=8, shard_rows=5))
    job = bench.job(examples())
    (planned,) = describe_plan(job, missing_work(job))["row_gradients"]
    assert planned["rows_to_compute"] == N + V - 24
    assert fill(job) == N + V - 24
    assert relative_error(bench.values(examples()), bench.values(examples(), store=None)) < 1e-6


def test_another_loss_of_the_users_own_is_another_gradient(tmp_path: Path) -> None:
    """Through the Python API, with a task."""
    model = torch.nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.copy_(torch.arange(15.0).view(3, 5) / 10)
    asked = {"store": str(tmp_path), "method": "loss", "rows": "full", "precision": "fp64"}
    rows = feature_table(examples())

    def double(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 2.0 * torch.nn.functional.cross_entropy(z, y, reduction="none")

    for loss in (None, double):
        api.grads(rows, task=Task(model, None, loss), **asked)
    entries = [e for e in list_entries(tmp_path) if e.kind == "gradients"]
    assert [e.rows for e in entries] == [N + V, N + V]
    one, two = (folder_of(tmp_path, e.name) for e in entries)
    keys = one.stored
    (a,), (b,) = ([v["norms"].sum() for _, v in f.blocks(keys)][:1] for f in (one, two))
    assert sorted([a / b, b / a])[1] == pytest.approx(4.0)


def folder_of(root: Path, name: str) -> GradientFolder:
    return GradientFolder(root / "gradients" / name, {})


# -- reading a shard at a time ---------------------------------------------------------------------------------------


def test_shards_are_bounded_by_bytes_as_well_as_by_rows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_gradients(bench.job(examples(), shard_rows=16))
    sizes = [len(index) for index, _ in opened.blocks(opened.folder.stored)]
    assert sorted(sizes) == [8, 12, 16, 16]
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 7 * opened.dim * 4 + 3)
    opened = open_gradients(bench.job(examples(), store="other", batch_size=10))
    sizes = [len(index) for index, _ in opened.blocks(opened.folder.stored)]
    assert max(sizes) == 7
    assert sum(sizes) == N + V


def test_blocks_cover_every_position_once_and_hold_views_of_one_shard(bench: Bench) -> None:
    job = bench.job(examples(), shard_rows=8, batch_size=8)
    opened = open_gradients(job)
    keys = job.train.row_keys[[3, 0, 3, 39, 21, 3]]
    seen = [(index.tolist(), values["value"].shape) for index, values in opened.blocks(keys)]
    assert sorted(k for index, _ in seen for k in index) == [0, 1, 2, 3, 4, 5]
    assert all(shape == (len(index), opened.dim) for index, shape in seen)
    read = opened.read(keys)["value"]
    assert np.array_equal(read[[0, 0]], read[[2, 5]])
    assert np.array_equal(read, opened.read(job.train.row_keys)["value"][[3, 0, 3, 39, 21, 3]])
    assert list(opened.blocks(keys[:0])) == []
    with pytest.raises(KeyError):
        list(opened.blocks(np.zeros((1, 16), np.uint8)))


@pytest.mark.parametrize("damage", ["a bit of a value", "cut short", "gone"])
def test_a_shard_that_is_damaged_when_it_is_read_is_computed_again(bench: Bench, damage: str) -> None:
    job = bench.job(examples(), shard_rows=8, batch_size=8)
    expected = open_gradients(job).read(job.train.row_keys)["value"]
    heard = Heard()
    job = bench.job(examples(), listener=heard, shard_rows=8, batch_size=8)
    opened = open_gradients(job)
    assert opened.computed == 0
    hurt = sorted((bench.folder / "store" / "gradients").rglob("*.safetensors"))[2]
    raw = bytearray(hurt.read_bytes())
    if damage == "gone":
        hurt.unlink()
    else:
        raw[-5] ^= 1
        hurt.write_bytes(raw if damage == "a bit of a value" else raw[:-100])
    rounds = np.concatenate([index for index, _ in opened.blocks(job.train.row_keys)])
    assert sorted(rounds.tolist()) == list(range(N))
    assert relative_error(opened.read(job.train.row_keys)["value"], expected) < 1e-6
    assert [hurt.name in w for w in heard.warnings] == ([] if damage == "gone" else [True])
    assert open_gradients(bench.job(examples())).computed == 0


def test_rows_that_are_damaged_again_and_again_are_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.job(examples())
    opened = open_gradients(job)

    def broken(self: GradientFolder, shard: Path) -> None:
        raise shards.DamagedFile("bad disk")

    monkeypatch.setattr(GradientFolder, "_read", broken)
    with pytest.raises(StoreError, match="damaged"):
        list(opened.blocks(job.train.row_keys))


def test_a_shard_of_other_layers_is_never_mixed_in(bench: Bench) -> None:
    folder = open_gradients(bench.job(examples())).folder
    _, values = next(folder.blocks(folder.stored, (*READ, "payload_keys")))
    layout = {**(folder.layout or {}), "dim": 1}
    for shard in folder.path.glob("*.safetensors"):
        shard.unlink()
    folder.write(np.full((1, 16), 7, np.uint8), {name: v[:1] for name, v in values.items()}, layout)
    with pytest.raises(StoreError, match="layers") as error:
        fill(bench.job(examples()))
    assert "take that folder out" in str(error.value.fix)


# -- what cannot be used, and what is too much -----------------------------------------------------------------------


def test_rows_without_finite_logits_are_nan_wherever_they_stand(tmp_path: Path) -> None:
    """Alone in the first batch, when no layer is known yet, and among others."""
    problem = make_problem(tmp_path, "mlp:7", (5,), train=12, val=2)
    with torch.no_grad():
        problem.model.get_parameter("layers.0.weight").mul_(1e3)
        problem.model.get_parameter("head.weight").mul_(1e-3)
    save_checkpoint(problem.checkpoint, problem.model, problem.spec)
    features, train = np.asarray(problem.payloads).copy(), np.flatnonzero(problem.splits == "train")
    expected = open_gradients(job := problem.job(rows="full", precision="fp32")).read(job.train.row_keys)
    features[train[[0, 1, 7]]] *= np.float32(1e37)

    def job_of_rows(splits: list[str]) -> Opened:
        write_manifest(problem.manifest, features, problem.labels.numpy(), splits, problem.ids)
        return problem.job("store-nan", rows="full", precision="fp32", batch_size=2)

    (problem.folder / "store-nan").mkdir()
    job = job_of_rows(problem.splits.tolist())
    found = open_gradients(job).read(job.train.row_keys)
    bad = np.isin(np.arange(12), [0, 1, 7])
    for name in ("value", "norms"):
        assert np.array_equal(np.isnan(found[name]).all(1), bad)
        assert relative_error(found[name][~bad], expected[name][~bad]) < 1e-5
    assert not np.isfinite(found["loss"][bad]).any()
    assert open_gradients(job_of_rows(problem.splits.tolist())).computed == 0
    splits = problem.splits.copy()
    splits[train] = "test"
    splits[train[[0, 1, 7]]] = "train"
    job = job_of_rows(splits.tolist())
    with pytest.raises(InfluenceError, match="finite"):
        open_gradients(job, "last", target=False)


def test_rows_that_cannot_be_decoded_are_left_out(tmp_path: Path, digits_run: Path) -> None:
    table = digits_table()
    images = [row[:60] if k in (30, 44) else row for k, row in enumerate(table.column("image").to_pylist())]
    bad = write(with_column(table, "image", pa.array(images, pa.binary())), tmp_path / "bad.parquet")
    job = job_of(bad, digits_run, tmp_path / "store", spec=GradSpec(("random",), rows="last"), skip_bad=True)
    opened = open_gradients(job)
    assert {"d0030", "d0044"} == {b.id for b in job.manifest.bad}
    assert np.isfinite(opened.read(job.train.row_keys)["value"]).all()


def test_too_many_bytes_are_refused_with_what_takes_less(net: Problem, tmp_path: Path) -> None:
    job = net.job(rows="full")
    job.runtime = dataclasses.replace(job.runtime, rows_limit=1e-6)
    (planned,) = describe_plan(job, missing_work(job))["row_gradients"]
    assert planned["bytes"] is None  # nothing says how large the model is, and no model is made for the plan
    with pytest.raises(UsageError, match="GiB") as error:
        open_gradients(job)
    for other in ("--rows last", "--params", "--rows-limit"):
        assert other in str(error.value.fix)
    parameters = sum(p.numel() for p in net.model.parameters())
    assert ("--rows sketch" in str(error.value.fix)) == (parameters > 4096)  # else it takes no less
    assert not (job.store.root / "gradients").exists()
    job = net.job(rows="sketch", sketch_dim=300)
    job.runtime = dataclasses.replace(job.runtime, rows_limit=1e-6)
    with pytest.raises(UsageError, match="GiB") as error:
        open_gradients(job)
    assert "--sketch-dim" in str(error.value.fix)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"rows": "all"}, "--rows"),
        ({"rows": "sketch", "sketch_dim": 0}, "--sketch-dim"),
        ({"rows": "last", "params": "*.weight"}, "--params"),
    ],
)
def test_what_cannot_be_meant_is_refused(how: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        GradSpec(**how)  # type: ignore[arg-type]


# -- the command line ------------------------------------------------------------------------------------------------


def test_the_store_lists_verifies_and_collects_row_gradients(bench: Bench) -> None:
    before = bench.values(examples(), kind="sketch", shard_rows=8, batch_size=8)
    root = bench.folder / "store"
    (entry,) = [e for e in list_entries(root) if e.kind == "gradients"]
    assert (entry.files, entry.rows) == (7, N + V)
    assert "rows sketch" in entry.about
    report = collect(root, None)
    assert (report["rows_dropped"], report["shards_merged"]) == (0, 7)
    assert np.array_equal(bench.values(examples(), kind="sketch"), before)
    job = bench.job(examples(), "sketch")
    assert open_gradients(job).computed == 0
    kept = np.concatenate([job.train.payload_keys[10:], job.target.payload_keys])
    assert collect(root, kept)["rows_dropped"] == 10
    assert open_gradients(bench.job(examples(), "sketch")).computed == 10
    assert collect(root, None)["shards_merged"] == 2
    (shard,) = (root / "gradients").rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert len(verify(root)[1]) == 1
    assert open_gradients(bench.job(examples(), "sketch")).computed == N + V


def test_gc_cuts_what_is_merged_by_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bench.values(examples(), shard_rows=4, batch_size=4)
    opened = open_gradients(bench.job(examples()))
    monkeypatch.setattr(shards, "SHARD_BYTES", 20 * opened.dim * 4)
    collect(bench.folder / "store", None)
    opened = open_gradients(bench.job(examples()))
    sizes = [len(index) for index, _ in opened.blocks(opened.folder.stored)]
    assert sorted(sizes) == [12, 20, 20]
    assert opened.computed == 0
    assert np.array_equal(bench.values(examples()), before)


@pytest.mark.parametrize("command", ["grads", "score"])
def test_the_commands_store_rows_say_so_and_import_no_torch_when_warm(
    tmp_path: Path, tabular: Path, tabular_run: Path, command: str
) -> None:
    asked = [command, tabular, "--checkpoint", tabular_run, "--rows", "sketch", "--sketch-dim", "20"]
    ran = call_cli(*asked, "--dry-run", cwd=tmp_path)
    assert ran.code == 0, ran.err
    (planned,) = ran.json["row_gradients"]
    assert (planned["rows"], planned["rows_to_compute"], planned["refused"]) == ("sketch", N + V, None)
    assert planned["values"] <= 20
    assert planned["seconds"] is not None
    assert ran.json["bytes"] >= planned["bytes"] == (N + V) * (planned["values"] * 4 + 40)
    assert not (tmp_path / ".influence" / "gradients").exists()
    cold = call_cli(*asked, "-o", "cold.parquet", cwd=tmp_path)
    assert cold.code == 0, cold.err
    assert f"row gradients (sketch): {planned['values']} values and" in cold.err
    run_without_torch(*asked, "-o", "warm.parquet", cwd=tmp_path)
    assert (tmp_path / "cold.parquet").read_bytes() == (tmp_path / "warm.parquet").read_bytes()


def test_a_dry_run_says_what_will_be_refused(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    asked = [
        "grads",
        "--method",
        "ip",
        tabular,
        "--checkpoint",
        tabular_run,
        "--rows",
        "full",
        "--rows-limit",
        "0.000001",
    ]
    ran = call_cli(*asked, "--dry-run", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "--rows last" in ran.json["row_gradients"][0]["refused"]
    shown = call_cli(*asked, "--dry-run", "--format", "table", cwd=tmp_path)
    assert b"rows' own gradients" in shown.out
    assert "these will be refused" in shown.err
    ran = call_cli(*asked, cwd=tmp_path)
    assert ran.code == 2
    assert "fix: pass" in ran.err


def test_a_table_of_grads_carries_what_rows_it_stored(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    asked = ["--checkpoint", tabular_run, "--rows", "sketch", "--sketch-dim", "20"]
    assert call_cli("grads", "--method", "ip", tabular, *asked, "-o", "g.parquet", cwd=tmp_path).code == 0
    spec = provenance(pq.read_schema(tmp_path / "g.parquet"))["spec"]
    assert (spec["rows"], spec["sketch_dim"]) == ("sketch", 20)
    ran = call_cli("score", "g.parquet", "-n", cwd=tmp_path)
    assert ran.json["row_gradients"][0]["rows_to_compute"] == 0
