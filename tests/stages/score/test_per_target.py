"""For every target row its most helpful and harmful train rows (``score --per-target``).

Reference: the dense matrix of < grad l_i, P grad l_v > from one backward pass a row in float64, sorted whole.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import influence_cli
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.engines.point import Point
from influence_cli.errors import ManifestError, UsageError
from influence_cli.maths.top_k import NONE, SIDES, TopK
from influence_cli.methods import METHODS
from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.settings import GradSpec
from influence_cli.stages.run import estimate
from influence_cli.stages.score.per_target import products as per_target_product
from influence_cli.stages.score.per_target import table as per_target_table
from influence_cli.stages.score.per_target import tangents as per_target_pass
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import (
    Example,
    Heard,
    call_cli,
    digits_table,
    examples,
    feature_table,
    job_of,
    run_python,
    verify,
    with_column,
    write,
)
from tests.cli.test_cli import WITHOUT_TORCH
from tests.opened import per_target, score
from tests.oracle import (
    Problem,
    column,
    dense_curvature,
    dropped_copy,
    flat,
    make_problem,
    relative_error,
    row_gradients,
    save_checkpoint,
    write_manifest,
)

Pairs = dict[str, dict[str, list[tuple[str, float]]]]  # target id -> side -> (id, score), by rank
NETS = {"mlp": ("mlp:7", (5,), 40, 12), "conv": ("test_resnet", (3, 32, 32), 6, 4)}  # the second has BatchNorm


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    name, shape, train, val = NETS[request.param]
    return make_problem(tmp_path_factory.mktemp(request.param), name, shape, train=train, val=val)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("mlp"), "mlp:7", (5,), classes=3, train=40, val=12)


def stacked(model: nn.Module, problem: Problem, split: str) -> NDArray[np.float64]:
    """Gradients of a split's rows [n, d], tensors by name."""
    return torch.stack([flat(g) for g in row_gradients(model, *problem.part(split))]).numpy()


@functools.cache
def of_its_model(problem: Problem) -> NDArray[np.float64]:
    """Every score [m, n] by the problem's own model."""
    return stacked(problem.model, problem, "val") @ stacked(problem.model, problem, "train").T


def matrix(problem: Problem, models: list[nn.Module] | None = None) -> NDArray[np.float64]:
    """Every score [m, n], the mean over models."""
    if models is None:
        return of_its_model(problem)
    every = [stacked(model, problem, "val") @ stacked(model, problem, "train").T for model in models]
    return np.mean(every, axis=0)


def ids_of(problem: Problem, split: str) -> list[str]:
    return [i for i, s in zip(problem.ids, problem.splits, strict=True) if s == split]


def sorted_whole(scores: NDArray[np.float64], targets: list[str], rows: list[str], k: int) -> Pairs:
    """The table's content from the dense matrix: by sign, then by size, then by place."""
    found: Pairs = {}
    for v, target in enumerate(targets):
        found[target] = {}
        for side, sign in zip(SIDES, (1.0, -1.0), strict=True):
            of_side = [i for i in range(len(rows)) if sign * scores[v, i] > 0]
            best = sorted(of_side, key=lambda i: (-sign * scores[v, i], i))[:k]
            found[target][side] = [(rows[i], float(scores[v, i])) for i in best]
    return found


def pairs_of(table: pa.Table) -> Pairs:
    """A table's content; checks that ranks count from 1 in the order of the rows."""
    found: Pairs = {}
    for row in table.to_pylist():
        some = found.setdefault(row["target_id"], {side: [] for side in SIDES})[row["side"]]
        some.append((row["id"], row["score"]))
        assert row["rank"] == len(some)
    return found


def assert_same(found: Pairs, expected: Pairs, rounding: float) -> None:
    """The same rows in the same order, scores to ``rounding`` of the largest; ranks may differ where scores do not."""
    largest = max(abs(s) for sides in expected.values() for some in sides.values() for _, s in some)
    assert found.keys() == expected.keys()
    for target, sides in expected.items():
        for side, some in sides.items():
            mine = found[target][side]
            assert [i for i, _ in mine] == [i for i, _ in some], (target, side)
            assert np.allclose([s for _, s in mine], [s for _, s in some], rtol=0, atol=rounding * largest)


def expected_of(problem: Problem, k: int, models: list[nn.Module] | None = None) -> Pairs:
    return sorted_whole(matrix(problem, models), ids_of(problem, "val"), ids_of(problem, "train"), k)


# -- the running top K ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 50])
def test_top_k_of_blocks_in_any_order_is_that_of_the_whole_sorted_with_ties_by_place(k: int) -> None:
    rng = np.random.default_rng(k)
    scores = rng.integers(-4, 5, (6, 30)).astype(np.float64)  # many ties, many zeros
    scores[0] = 0.0
    scores[1, ::3] = np.nan
    scores[2, 4], scores[2, 5] = np.inf, -np.inf
    for blocks in (1, 5, 30):
        top = TopK(8, k)
        for some in np.array_split(rng.permutation(30), blocks):
            top.add(2, some, scores[:, some])
        assert (top.places[:2] == NONE).all()
        for v in range(6):
            for side, sign in enumerate((1.0, -1.0)):
                s = sign * scores[v]
                best = sorted((i for i in range(30) if np.isfinite(s[i]) and s[i] > 0), key=lambda i: (-s[i], i))[:k]
                assert top.places[v + 2, side].tolist() == best + [NONE] * (k - len(best))
                assert top.scores[v + 2, side, : len(best)].tolist() == scores[v, best].tolist()
                assert np.isnan(top.scores[v + 2, side, len(best) :]).all()


def test_a_top_k_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="k=0"):
        TopK(1, 0)


# -- the numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "rounding"), [("fp64", 1e-10), ("fp32", 1e-5)])
@pytest.mark.parametrize("k", [3, 100])
def test_tables_equal_the_dense_matrix_sorted(net: Problem, precision: str, rounding: float, k: int) -> None:
    """With k above n every row stands on the side of its sign, and on no other."""
    table = per_target(net.job(precision=precision), k)
    assert_same(pairs_of(table), expected_of(net, k), rounding)
    if k == 100:
        assert table.num_rows == len(ids_of(net, "val")) * len(ids_of(net, "train"))


def test_the_mean_over_target_rows_is_the_score(net: Problem) -> None:
    """A K above n lists every pair: per train row the mean over target rows is ``score``'s own."""
    table, scored = per_target(net.job(), 100), score(net.job())
    assert relative_error(mean_by_row(table, scored), column(scored)) < 1e-10


def test_sides_ranks_keys_and_labels_are_those_of_the_rows(mlp: Problem) -> None:
    job = mlp.job()
    table = per_target(job, 4)
    signs = np.where(np.array(table.column("side").to_pylist()) == "helpful", 1.0, -1.0)
    assert (signs * table.column("score").to_numpy() > 0).all()
    assert table.column_names == [
        "target_id", "target_row_key", "target_label", "rank", "side", "id", "row_key", "label", "score",
    ]  # fmt: skip
    for prefix, rows in (("target_", job.target), ("", job.train)):
        keys = dict(zip(rows.ids, (k.tobytes() for k in rows.row_keys), strict=True))
        labels = dict(zip(rows.ids, rows.labels.tolist(), strict=True))
        for row in table.to_pylist():
            assert row[f"{prefix}row_key"] == keys[row[f"{prefix}id"]]
            assert row[f"{prefix}label"] == labels[row[f"{prefix}id"]]
    assert list(dict.fromkeys(table.column("target_id").to_pylist())) == job.target.ids


def with_duplicates(problem: Problem) -> tuple[Path, list[int]]:
    """A manifest in which every train row stands twice more, shuffled: once as it is, once with the next label."""
    rows = np.arange(len(problem.ids))
    train = rows[problem.splits == "train"]
    order = np.random.default_rng(5).permutation(np.concatenate([rows, train, train + len(rows)]))
    place, other = order % len(rows), order >= len(rows)
    labels = (problem.labels.numpy()[place] + other) % problem.spec.num_classes
    path = problem.folder / "duplicates.parquet"
    assert isinstance(problem.payloads, np.ndarray)
    ids = [f"copy-{k:04d}" for k in range(len(order))]
    write_manifest(path, problem.payloads[place], labels, problem.splits[place].tolist(), ids)
    return path, order.tolist()


def test_ties_are_in_the_order_of_the_rows_and_copies_with_other_labels_have_their_own_scores(mlp: Problem) -> None:
    path, order = with_duplicates(mlp)
    n = len(mlp.ids)
    job = mlp.job(manifest=path)
    place = np.array(order)[job.train.index]
    x, y = mlp.inputs[torch.from_numpy(place % n)], torch.from_numpy(job.train.labels)
    gradients = torch.stack([flat(g) for g in row_gradients(mlp.model, x, y)])
    of = {i: k for k, i in enumerate(ids_of(mlp, "val"))}
    targets = [of[mlp.ids[k % n]] for k in np.array(order)[job.target.index].tolist()]
    scores = np.round(stacked(mlp.model, mlp, "val")[targets] @ gradients.numpy().T, 12)  # copies: equal to the bit
    assert len({float(s) for s in scores[0]}) < len(place)
    expected = sorted_whole(scores, job.target.ids, job.train.ids, 7)
    assert_same(pairs_of(per_target(job, 7)), expected, 1e-10)
    assert_same(pairs_of(per_target(mlp.job(manifest=path, batch_size=3), 7)), expected, 1e-10)


def test_members_are_averaged_before_rows_are_ranked(net: Problem) -> None:
    options: Any = {"ip-ensemble": {"members": 3, "p_max": 0.5}}
    job = net.job(methods=("ip-ensemble",), options=options)
    drops = [member.dropout for member in job.members_of["ip-ensemble"]]
    models = [dropped_copy(net.model, net.spec, d.seed, d.member, d.rate) for d in drops if d is not None]
    assert len(models) == 3
    assert_same(pairs_of(per_target(job, 100)), expected_of(net, 100, models), 1e-10)


def test_an_ensemble_whose_members_decide_has_as_many_here_as_for_score(mlp: Problem) -> None:
    options: Any = {"ip-ensemble": {"members": "auto", "max_members": 4, "p_max": 0.3}}
    job = mlp.job(methods=("ip-ensemble",), options=options)
    table = per_target(job, 100)
    scored = score(mlp.job(methods=("ip-ensemble",), options=options))
    assert relative_error(mean_by_row(table, scored), column(scored)) < 1e-10


def mean_by_row(table: pa.Table, scored: pa.Table) -> NDArray[np.float64]:
    """The mean over target rows of every train row's scores, in the order of a score table."""
    total = dict.fromkeys(scored.column("id").to_pylist(), 0.0)
    targets = len(set(table.column("target_id").to_pylist()))
    for row in table.to_pylist():
        total[row["id"]] += row["score"]
    return np.array(list(total.values())) / targets


PRECONDITIONED = [  # source needs kept checkpoints: its pairs are held in its own tests
    name for name in METHODS if issubclass(METHODS[name].load(), Preconditioned) and name != "source"
]


@pytest.mark.parametrize("method", PRECONDITIONED)
def test_every_preconditioned_method_gives_pairs_whose_mean_is_its_score(method: str, mlp: Problem) -> None:
    """P is linear; cg solves every column to its own tolerance."""
    settings: Any = {"methods": (method,), "options": {method: {"damping": 0.1}}}
    table, scored = per_target(mlp.job(**settings), 100), score(mlp.job(**settings))
    assert relative_error(mean_by_row(table, scored), column(scored)) < (1e-3 if method == "cg" else 1e-6)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_exact_equals_the_dense_inverse(precision: str, mlp: Problem) -> None:
    settings: Any = {"methods": ("exact",), "options": {"exact": {"damping": 0.05}}, "precision": precision}
    job = mlp.job(**settings)
    x, y = mlp.part("train")
    order = np.argsort(np.concatenate(named_places(mlp.model)), kind="stable")
    k = dense_curvature(mlp.model, x, y, torch.ones(len(x), dtype=torch.float64), "ggn")
    p = np.linalg.inv(k + 0.05 * np.eye(len(k)))[np.ix_(order, order)]
    scores = stacked(mlp.model, mlp, "val") @ p @ stacked(mlp.model, mlp, "train").T
    expected = sorted_whole(scores, ids_of(mlp, "val"), ids_of(mlp, "train"), 5)
    assert_same(pairs_of(per_target(job, 5)), expected, 1e-9 if precision == "fp64" else 1e-5)


def named_places(model: nn.Module) -> list[NDArray[np.int64]]:
    """For every entry of every parameter, in model order, its place where tensors are sorted by name."""
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    starts, total = {}, 0
    for name in sorted(sizes):
        starts[name], total = total, total + sizes[name]
    return [starts[name] + np.arange(size) for name, size in sizes.items()]


@pytest.mark.parametrize("params", ["last", "linear"])
def test_directions_are_zero_outside_of_the_parameters_chosen(net: Problem, params: str) -> None:
    job = net.job(params=params)
    names = list(Point(net.model, params, None, "fp64", torch.device("cpu")).selected)
    every = [
        torch.stack([flat(g) for g in row_gradients(net.model, *net.part(split), names)]).numpy()
        for split in ("val", "train")
    ]
    expected = sorted_whole(every[0] @ every[1].T, ids_of(net, "val"), ids_of(net, "train"), 4)
    assert_same(pairs_of(per_target(job, 4)), expected, 1e-10)


@pytest.mark.parametrize("engine", ["layerwise", "double-reverse"])
def test_every_engine_gives_the_same_table(net: Problem, engine: str) -> None:
    job = net.job()
    job.runtime = dataclasses.replace(job.runtime, engine=engine)
    assert_same(pairs_of(per_target(job, 5)), expected_of(net, 5), 1e-10)


def test_neither_batches_nor_blocks_nor_kept_rows_change_a_number(
    net: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pairs_of(per_target(net.job(batch_size=64), 5))
    for batch, block, kept in ((1, 1, 0), (3, 2, 1 << 28), (5, 100, 0)):
        monkeypatch.setattr(per_target_pass, "DIRECTIONS", block)
        monkeypatch.setattr("influence_cli.model.decoded.IN_MEMORY_BYTES", kept)
        assert_same(pairs_of(per_target(net.job(batch_size=batch), 5)), expected, 1e-10)


def test_a_confident_target_row_keeps_its_digits_in_float32(tmp_path: Path) -> None:
    """At p_y = 1 - 1e-10 the slope p_y - 1 is 0 in float32, and the scores would all be 0."""
    problem = make_problem(tmp_path, "linear", (3,), classes=2, train=10, val=4)
    with torch.no_grad():
        for p in problem.model.parameters():
            p *= 22.0
    save_checkpoint(problem.checkpoint, problem.model, problem.spec)
    x, y = problem.part("val")
    with torch.no_grad():
        least = float(torch.nn.functional.cross_entropy(problem.model(x), y, reduction="none").min())
    assert 1e-12 < least < 1e-8  # the reference has digits left
    found, expected = pairs_of(per_target(problem.job(precision="fp32"), 10)), expected_of(problem, 10)
    for target, sides in expected.items():
        assert_same({target: found[target]}, {target: sides}, 1e-4)


# -- from stored row gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "rounding"), [("fp64", 1e-10), ("fp32", 1e-5)])
def test_stored_rows_give_the_same_table_as_directions(net: Problem, precision: str, rounding: float) -> None:
    expected = expected_of(net, 4)
    assert_same(pairs_of(per_target(net.job(precision=precision), 4)), expected, rounding)
    table = per_target(net.job(precision=precision, rows="full"), 4)
    assert_same(pairs_of(table), expected, rounding)
    about = provenance(table.schema)["per_target"]
    assert (about["rows"], about["params"], about["exact"]) == ("full", "all", True)


def test_rows_last_is_exact_in_the_head_and_says_so(net: Problem) -> None:
    job = net.job(rows="last")
    job.listener = heard = Heard()
    table = per_target(job, 5)
    assert_same(pairs_of(table), pairs_of(per_target(net.job(params="last"), 5)), 1e-10)
    assert any("the head's parameters alone" in note for note in heard.notes)
    assert provenance(table.schema)["per_target"]["params"] == "last"


@pytest.mark.parametrize("method", PRECONDITIONED)
def test_stored_rows_give_every_preconditioned_method(method: str, mlp: Problem) -> None:
    settings: Any = {"methods": (method,), "options": {method: {"damping": 0.1}}}
    found = pairs_of(per_target(mlp.job(**settings, rows="full"), 5))
    assert_same(found, pairs_of(per_target(mlp.job(**settings), 5)), 1e-4 if method == "cg" else 1e-8)


@pytest.mark.parametrize("rows", [None, "full"])
def test_few_rows_are_scored_without_being_timed(
    rows: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, timed = make_problem(tmp_path, "mlp:7", (5,), train=25, val=4), list[int]()
    rate = estimate._seconds_a_row

    def noted(work: Any, x: Any, most: int) -> tuple[float, float]:
        timed.append(most)
        return rate(work, x, most)

    monkeypatch.setattr(estimate, "_seconds_a_row", noted)
    monkeypatch.setattr(per_target_table, "FEW", 25)
    few = per_target(problem.job(rows=rows, batch_size=3), 5)
    assert timed == []
    monkeypatch.setattr(per_target_table, "FEW", 24)
    assert_same(pairs_of(per_target(problem.job(rows=rows, batch_size=3), 5)), pairs_of(few), 1e-10)
    assert timed


def test_both_ways_share_what_is_stored(mlp: Problem) -> None:
    (mlp.folder / "both").mkdir()
    first = per_target(mlp.job("both"), 4)
    job = mlp.job("both", rows="full")
    job.listener = heard = Heard()
    assert per_target(job, 4).equals(first)
    assert passed(heard) == 0
    assert not (mlp.folder / "both" / "gradients").exists()


def test_neither_blocks_nor_pieces_nor_shards_change_a_number(net: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pairs_of(per_target(net.job(rows="full"), 5))
    for rows, pairs, shard, batch in ((1, 1, 3, 2), (2, 7, 5, 100)):
        monkeypatch.setattr(per_target_product, "BLOCK_ROWS", rows)
        monkeypatch.setattr(per_target_product, "PAIRS", pairs)
        table = per_target(net.job(rows="full", shard_rows=shard, batch_size=batch), 5)
        assert_same(pairs_of(table), expected, 1e-10)


def test_copies_of_rows_have_their_own_places_in_a_product(mlp: Problem) -> None:
    path, _ = with_duplicates(mlp)
    found = pairs_of(per_target(mlp.job(manifest=path, rows="full"), 7))
    assert_same(found, pairs_of(per_target(mlp.job(manifest=path), 7)), 1e-10)


def test_a_sketch_is_marked_and_its_errors_are_as_large_as_it_says(tmp_path: Path) -> None:
    """Over seeds: unbiased, and a standard deviation that is at most what is stated, and not far below."""
    problem = make_problem(tmp_path, "mlp:24,24", (12,), classes=3, train=30, val=6)
    exact = matrix(problem)
    targets, rows = ids_of(problem, "val"), ids_of(problem, "train")
    found, stated = [], np.zeros(exact.shape)
    for seed in range(40):
        table = per_target(problem.job(rows="sketch", sketch_dim=200, seed=seed), 100)
        scores = np.full(exact.shape, np.nan)
        for r in table.to_pylist():
            v, i = targets.index(r["target_id"]), rows.index(r["id"])
            scores[v, i], stated[v, i] = r["score"], r["standard_error"]
        found.append(scores)
    assert np.isfinite(found).all()
    deviation, mean = np.std(found, axis=0, ddof=1), np.mean(found, axis=0)
    assert (np.abs(mean - exact) < 4.0 * stated / 40**0.5).all()
    ratio = deviation / stated
    assert ratio.max() < 1.5  # of 40 draws
    assert np.median(ratio) > 0.3
    about = provenance(table.schema)["per_target"]
    assert (about["rows"], about["exact"], about["sketch_dim"]) == ("sketch", False, 200)
    assert about["median_relative_error"] > 0
    against = about["against_exact"]
    v, i = (np.flatnonzero([r in some for r in every]) for some, every in sampled(problem))
    sample = scores[v][:, i]
    assert against["relative_error"] == pytest.approx(rms(sample - exact[v][:, i]) / rms(exact[v][:, i]), rel=1e-6)
    assert (against["target_rows"], against["train_rows"]) == (4, 30)
    assert 0.3 < against["rank_correlation"] < 1.0


def rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2)))


def sampled(problem: Problem) -> list[tuple[list[str], list[str]]]:
    """The ids of the target and the train rows that are scored both ways, and of all: those of the least keys."""
    job = problem.job()
    order = sorted(range(len(job.target)), key=lambda k: job.target.row_keys[k].tobytes())[:4]
    return [([job.target.ids[k] for k in order], job.target.ids), (job.train.ids, job.train.ids)]


def test_bf16_is_held_against_float32(mlp: Problem) -> None:
    job = mlp.job(precision="bf16")
    job.listener = heard = Heard()
    table = per_target(job, 100)
    about = provenance(table.schema)["per_target"]
    assert not about["exact"]
    against, exact = about["against_exact"], matrix(mlp)
    targets, rows = ids_of(mlp, "val"), ids_of(mlp, "train")
    scores = np.zeros(exact.shape)
    for r in table.to_pylist():
        scores[targets.index(r["target_id"]), rows.index(r["id"])] = r["score"]
    v = np.flatnonzero([i in sampled(mlp)[0][0] for i in targets])
    assert against["relative_error"] == pytest.approx(rms(scores[v] - exact[v]) / rms(exact[v]), rel=0.02)
    assert 1e-4 < against["relative_error"] < 0.05
    assert against["rank_correlation"] > 0.98
    assert any(note.startswith("scores are estimates in bf16") for note in heard.notes)
    assert provenance(per_target(mlp.job(precision="bf16", rows="full"), 3).schema)["per_target"]["exact"]


def test_a_sketch_as_wide_as_the_gradient_is_exact_and_has_no_error(mlp: Problem) -> None:
    table = per_target(mlp.job(rows="sketch", sketch_dim=4096), 5)
    assert_same(pairs_of(table), expected_of(mlp, 5), 1e-10)
    assert max(table.column("standard_error").to_pylist()) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("ip-ensemble",), "rows": "full"}, "where parameters are dropped"),
        ({"methods": ("ekfac",), "rows": "sketch"}, "stores sketches"),
        ({"methods": ("exact",), "rows": "last"}, "those of the head alone"),
    ],
)
def test_methods_that_the_stored_rows_do_not_give_are_refused(
    settings: dict[str, Any], message: str, mlp: Problem
) -> None:
    with pytest.raises(UsageError, match=message):
        per_target(mlp.job(**settings))


# -- what is stored -------------------------------------------------------------------------------------------------


def run(rows: list[Example], tmp_path: Path, tabular_run: Path, heard: Heard | None = None, **more: Any) -> pa.Table:
    """The table of a feature manifest with a store of its own, one target row a block."""
    manifest = write(feature_table(rows), tmp_path / "m.parquet")
    return per_target(job_of(manifest, tabular_run, tmp_path / "store", listener=heard, **more), 3)


def passed(heard: Heard) -> int:
    """Pairs that were run through the model."""
    return sum(total for what, total in heard.spans if what.startswith("train rows for target rows"))


def test_finished_blocks_are_kept_and_a_table_is_the_same_cold_warm_and_continued(
    tmp_path: Path, tabular_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_target_pass, "DIRECTIONS", 5)
    rows = examples()  # 40 train and 12 target rows: three blocks
    cold = run(rows, tmp_path / "cold", tabular_run, batch_size=10)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(rows, tmp_path, tabular_run, Heard(stop, stop_at=6, stop_in="train rows for"), batch_size=10)
    heard = Heard()
    continued = run(rows, tmp_path, tabular_run, heard, batch_size=10)
    assert passed(heard) == 40 * 7  # the first block of 5 was finished, at 4 batches; the second was not
    assert continued.equals(cold)
    warm = Heard()
    assert run(rows, tmp_path, tabular_run, warm).equals(cold)
    assert passed(warm) == 0


def test_blocks_of_a_product_that_were_finished_are_kept(
    tmp_path: Path, tabular_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_target_product, "BLOCK_ROWS", 5)
    cold = run(examples(), tmp_path / "cold", tabular_run, spec=GradSpec(("ip",), rows="full"), shard_rows=10)

    def stop() -> None:
        raise KeyboardInterrupt

    stopped = Heard(stop, stop_at=6, stop_in="train rows for")  # at 4 shards a block, in the second block
    with pytest.raises(KeyboardInterrupt):
        run(examples(), tmp_path, tabular_run, stopped, spec=GradSpec(("ip",), rows="full"), shard_rows=10)
    heard = Heard()
    continued = run(examples(), tmp_path, tabular_run, heard, spec=GradSpec(("ip",), rows="full"), shard_rows=10)
    assert continued.equals(cold)
    assert passed(heard) == 40 * 7


def test_only_new_target_rows_are_run_and_a_changed_train_row_changes_what_it_should(
    tmp_path: Path, tabular_run: Path
) -> None:
    rows = examples()
    before = run(rows[:50], tmp_path, tabular_run)  # 10 target rows
    heard = Heard()
    after = run(rows[:52], tmp_path, tabular_run, heard)
    assert passed(heard) == 40 * 2
    assert after.slice(0, before.num_rows).drop_columns(["score"]).equals(before.drop_columns(["score"]))
    relabelled = [r.relabelled() if k == 7 else r for k, r in enumerate(rows[:52])]
    heard = Heard()
    assert run(relabelled, tmp_path, tabular_run, heard).equals(run(relabelled, tmp_path / "other", tabular_run))
    assert passed(heard) == 40 * 12
    turned = [*rows[39::-1], *rows[40:52]]  # ties are in the order of the rows
    assert run(turned, tmp_path, tabular_run).equals(run(turned, tmp_path / "third", tabular_run))


def test_the_store_lists_verifies_and_collects_what_was_found(tmp_path: Path, tabular_run: Path) -> None:
    run(examples(), tmp_path, tabular_run)
    (entry,) = [e for e in list_entries(tmp_path / "store") if e.kind == "top_rows"]
    assert (entry.rows, entry.about) == (12, "mlp:4, fp32, top 3 by ip, params all")
    assert verify(tmp_path / "store")[1] == []
    manifest = open_manifest(str(tmp_path / "m.parquet"))
    assert collect(tmp_path / "store", manifest.payload_keys)["rows_dropped"] == 0
    assert collect(tmp_path / "store", manifest.rows("train").payload_keys)["rows_dropped"] == 12


# -- memory ---------------------------------------------------------------------------------------------------------


def test_memory_grows_with_the_table_and_not_with_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(tmp_path, "linear", (3,), classes=2, train=3000, val=144)
    largest = 0
    add = TopK.add

    def spy(self: TopK, first: int, places: Any, scores: Any) -> None:
        nonlocal largest
        largest = max(largest, scores.size)
        add(self, first, places, scores)

    monkeypatch.setattr(TopK, "add", spy)

    def peak(target_rows: int) -> int:
        job = problem.job()
        job.target = job.target.take(np.arange(target_rows))
        tracemalloc.start()
        per_target(job, 2)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(16)  # what is imported is there
    few, many = peak(16), peak(144)
    assert many - few < 3000 * (144 - 16) * 8 / 4
    assert largest <= per_target_pass.DIRECTIONS * 256


# -- rows that are not finite, and what is refused ------------------------------------------------------------------


def overflowing(folder: Path, split: str, place: int) -> tuple[Problem, Path, str]:
    """A problem, a manifest in which a row's logits overflow float32, and the row's id."""
    problem = make_problem(folder, "mlp:7", (5,), classes=3, train=20, val=6)
    features = np.asarray(problem.payloads).copy()
    row = int(np.flatnonzero(problem.splits == split)[place])
    weights = problem.model.get_parameter("layers.0.weight")[0].detach().numpy()
    features[row] = 3e38 * np.sign(weights)  # the first unit adds up
    splits = problem.splits.tolist()
    return problem, write_manifest(folder / "huge.parquet", features, problem.labels.numpy(), splits), problem.ids[row]


def test_rows_that_overflow_are_named_and_never_ranked(tmp_path: Path) -> None:
    problem, path, gone = overflowing(tmp_path, "train", 4)
    for _ in range(2):  # as it is computed, and from the store
        job = problem.job("store", manifest=path, precision="fp32")
        job.listener = heard = Heard()
        table = per_target(job, 50)
        assert heard.warnings == [f"1 rows have a non-finite score and are never ranked: {gone}"]
        assert gone not in table.column("id").to_pylist()
        assert table.num_rows == 19 * 6
        assert provenance(table.schema)["per_target"]["non_finite_rows"] == 1


def test_a_target_row_that_is_not_finite_is_an_error_that_names_it(tmp_path: Path) -> None:
    problem, path, row = overflowing(tmp_path, "val", 3)
    with pytest.raises(ManifestError, match="not finite") as error:
        per_target(problem.job(manifest=path, precision="fp32"), 5)
    assert f"row id={row}" in str(error.value)


def test_a_target_row_that_nothing_helps_or_harms_is_named(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "linear", (3,), classes=2, train=10, val=4)
    with torch.no_grad():
        for p in problem.model.parameters():
            p *= 1e5  # a loss below the least float32: its gradient is 0
    save_checkpoint(problem.checkpoint, problem.model, problem.spec)
    job = problem.job(precision="fp32")
    job.listener = heard = Heard()
    table = per_target(job, 3)
    absent = [i for i in job.target.ids if i not in table.column("target_id").to_pylist()]
    assert absent
    assert any(f"no row helps or harms {len(absent)} target rows" in w and absent[0] in w for w in heard.warnings)


@pytest.mark.parametrize("method", ["loss", "margin", "random", "self-tracin"])
def test_methods_without_scores_of_pairs_are_refused(
    method: str, tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    asked = ("--checkpoint", digits_run, "--method", method, "--no-store")
    ran = call_cli("score", digits, *asked, "--per-target", cwd=tmp_path)
    assert ran.code == 2
    assert f"{method} is a value of a row alone" in ran.err
    assert "fix: --method ip" in ran.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method", "ip", "--method", "ip-ensemble"), "these are several: ip, ip-ensemble"),
        (("--method", "ip", "--relative"), "as --relative asks for"),
        (("--method", "ip", "--set", "ip.normalise=cosine"), "as ip.normalise=cosine asks for"),
        (("--objective", "robustness"), "robustness is about all of them together"),
        (("--per-member",), "--per-member is about one score a row"),
        (("--combine", "ranksum"), "--combine is about one score a row"),
        (("--top", "0"), "0"),
        (("--set", "ip.x=1"), "has no option"),
    ],
)
def test_what_makes_no_sense_for_pairs_is_refused(
    flags: tuple[str, ...], message: str, tmp_path: Path, digits: Path, digits_run: Path
) -> None:
    ran = call_cli(
        "score", digits, "--checkpoint", digits_run, "--no-store", "--per-target", *flags, cwd=tmp_path
    )  # fmt: skip
    assert ran.code == 2
    assert message in ran.err
    assert ran.out == b""


# -- the command line -----------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_function_returns(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    asked = (digits, "--checkpoint", digits_run, "--store", "store", "--per-target", "--top", "3")
    ran = call_cli("score", *asked, "-o", "p.parquet", cwd=tmp_path)
    assert (ran.code, ran.out) == (0, b""), ran.err
    assert "60 target rows, 16 a pass: 4 passes over 200 train rows" in ran.err
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.num_rows == 60 * 6
    api = influence_cli.per_target(digits, top=3, checkpoint=digits_run, store=str(tmp_path / "store"))
    assert api.equals(table)
    about = provenance(table.schema)
    assert about["stage"] == "per-target"
    assert about["per_target"] == {
        "method": "ip", "top": 3, "rows": None, "params": "all", "exact": True, "non_finite_rows": 0,
    }  # fmt: skip
    assert about["engines"][0]["engine"] == "forward"
    lines = call_cli("score", *asked, cwd=tmp_path).rows
    assert [r["score"] for r in lines] == table.column("score").to_pylist()
    shown = call_cli("score", *asked, "--format", "table", cwd=tmp_path)
    assert shown.text.startswith("5 of 60 target rows, the first 3 of each side")
    assert len(shown.text.splitlines()) == 2 + 5 * 6


def test_a_dry_run_says_what_is_to_be_done_and_does_nothing(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    asked = (digits, "--checkpoint", digits_run, "--store", "store", "--per-target", "--method", "ekfac")
    plan = call_cli("score", *asked, "--dry-run", cwd=tmp_path).json
    assert not (tmp_path / "store" / "top_rows").exists()
    wanted = {"method": "ekfac", "target_rows_to_compute": 60, "target_rows_a_block": 16, "passes": 4, "top": 10}
    assert wanted.items() <= plan.items()
    assert plan["forward_passes"] == 4 + 2 * 60
    assert [fit["method"] for fit in plan["fits"]] == ["ekfac"]
    assert call_cli("score", *asked, "-o", "p.parquet", cwd=tmp_path).code == 0
    plan = call_cli("score", *asked, "--dry-run", cwd=tmp_path).json
    assert (plan["target_rows_to_compute"], plan["passes"], plan["seconds"], plan["fits"]) == (0, 0, 0.0, [])
    text = call_cli("score", *asked, "--dry-run", "--format", "table", cwd=tmp_path).text
    assert "target rows to compute" in text


def test_curate_takes_no_table_of_pairs(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    asked = (digits, "--checkpoint", digits_run, "--store", "store", "--per-target", "-o", "p.parquet")
    assert call_cli("score", *asked, cwd=tmp_path).code == 0
    for command in ("curate", "evaluate"):
        ran = call_cli(command, "p.parquet", cwd=tmp_path)
        assert ran.code == 2
        assert "one score a pair of rows" in ran.err


def test_stored_rows_and_stored_tables_import_no_torch(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    asked = ("score", digits, "--checkpoint", digits_run, "--store", "store", "--per-target", "-o", "p.parquet")
    rows = (*asked, "--rows", "sketch", "--sketch-dim", "300")
    for command in (asked, rows):
        assert call_cli(*command, cwd=tmp_path).code == 0
        ran = run_python(WITHOUT_TORCH, *command, cwd=tmp_path)
        assert (ran.code, ran.err.splitlines()[-1]) == (0, "no torch"), ran.err
    assert "rank correlation" in ran.err
    other = (*asked, "--rows", "full", "--top", "2")
    assert call_cli(*other, cwd=tmp_path).code == 0
    shutil.rmtree(tmp_path / "store" / "top_rows")  # the product again, of gradients that are stored
    ran = run_python(WITHOUT_TORCH, *other, cwd=tmp_path)
    assert (ran.code, ran.err.splitlines()[-1]) == (0, "no torch"), ran.err


def test_the_plan_of_stored_rows_names_what_is_computed_first(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    asked = (digits, "--checkpoint", digits_run, "--store", "store", "--per-target", "--rows", "full")
    plan = call_cli("score", *asked, "--dry-run", cwd=tmp_path).json
    wanted = {"rows": "full", "exact": True, "row_gradients_to_compute": 260, "passes": 1, "target_rows_a_block": 1024}
    assert wanted.items() <= plan.items()
    ran = call_cli("score", *asked, "-o", "p.parquet", cwd=tmp_path)
    assert "260 row gradients are computed first" in ran.err
    after = call_cli("score", *asked, "--top", "3", "--dry-run", cwd=tmp_path).json
    assert (after["row_gradients_to_compute"], after["target_rows_to_compute"]) == (0, 60)
    assert after["values_a_row"] == plan["values_a_row"]
    assert after["seconds"] is not None
    refused = (digits, "--checkpoint", digits_run, "--no-store", "--per-target", "--rows", "full", "--rows-limit", "0")
    ran = call_cli("score", "--method", "ip", *refused, "--dry-run", "--format", "table", cwd=tmp_path)
    assert (ran.code, "will be refused" in ran.err) == (0, True)
    assert call_cli("score", "--method", "ip", *refused, cwd=tmp_path).code == 2


def test_many_target_rows_are_told_of_stored_gradients(mlp: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**settings: Any) -> bool:
        job = mlp.job(**settings)
        job.listener = heard = Heard()
        per_target(job, 2)
        return any("with --rows full" in note for note in heard.notes)

    assert not said()  # 12 target rows: one block
    monkeypatch.setattr(per_target_pass, "DIRECTIONS", 2)
    assert said()
    assert not said(rows="full")
    assert not said(methods=("ip-ensemble",), options={"ip-ensemble": {"members": 2}})


def test_images_that_cannot_be_decoded_are_left_out(tmp_path: Path, digits_run: Path) -> None:
    table = digits_table(train=30, val=8, test=0)
    images = table.column("image").to_pylist()
    images[3] = images[3][:40]
    broken = write(with_column(table, "image", pa.array(images, pa.binary())), tmp_path / "broken.parquet")
    rest = write(table.filter(pa.array([k != 3 for k in range(38)])), tmp_path / "rest.parquet")
    expected = pairs_of(per_target(job_of(rest, digits_run, tmp_path / "rest"), 4))
    for rows in (None, "full"):
        heard = Heard()
        spec = GradSpec(("ip",), rows=rows)
        job = job_of(broken, digits_run, tmp_path / f"store-{rows}", listener=heard, spec=spec, skip_bad=True)
        table = per_target(job, 4)
        assert_same(pairs_of(table), expected, 1e-5)
        assert [b.id for b in job.manifest.bad] == ["d0003"]
        assert provenance(table.schema)["skipped"] == ["d0003"]
        again = job_of(broken, digits_run, tmp_path / f"store-{rows}", spec=spec, skip_bad=True)
        assert_same(pairs_of(per_target(again, 4)), expected, 1e-5)


def test_a_loss_of_ones_own_is_that_of_both_rows(tmp_path: Path) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def squared(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 0.5 * (logits - torch.nn.functional.one_hot(labels, 3)).square().sum(1)

    rows = examples(20, 5, 0)
    task = influence_cli.Task(model=net, transform=lambda v: torch.tensor(v, dtype=torch.float64), loss=squared)
    path = write(feature_table(rows), tmp_path / "m.parquet")
    gradients = {}
    for r in rows:
        loss = squared(net(torch.tensor(np.float32(r.features)).double()[None]), torch.tensor([r.label]))[0]
        gradients[r.id] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]).numpy()
    train, val = ([r.id for r in rows if r.split == split] for split in ("train", "val"))
    scores = np.array([[gradients[v] @ gradients[i] for i in train] for v in val])
    expected = sorted_whole(scores, val, train, 4)
    for kind in (None, "full"):
        table = influence_cli.per_target(str(path), top=4, task=task, precision="fp64", rows=kind, store=None)
        assert_same(pairs_of(table), expected, 1e-10)
