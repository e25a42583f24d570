"""For every target row its most helpful and harmful train rows (``score --per-target``).

Reference: the dense matrix of < grad l_i, P grad l_v > from one backward pass a row in float64, sorted whole.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from influence_cli.maths.top_k import NONE, SIDES, TopK
from influence_cli.stages.per_target import per_target
from influence_cli.stages.score import score
from tests.oracle import (
    Problem,
    column,
    flat,
    make_problem,
    relative_error,
    row_gradients,
)

Pairs = dict[str, dict[str, list[tuple[str, float]]]]  # target id -> side -> (id, score), by rank
NETS = {"mlp": ("mlp:7", (5,), 40, 12), "conv": ("test_resnet", (3, 32, 32), 8, 5)}  # the second has BatchNorm


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


def matrix(problem: Problem, models: list[nn.Module] | None = None) -> NDArray[np.float64]:
    """Every score [m, n], the mean over models."""
    every = [stacked(model, problem, "val") @ stacked(model, problem, "train").T for model in models or [problem.model]]
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
    table = per_target(net.job(), 100)
    scored = score(net.job())
    total = dict.fromkeys(scored.column("id").to_pylist(), 0.0)
    for row in table.to_pylist():
        total[row["id"]] += row["score"]
    found = np.array(list(total.values())) / len(ids_of(net, "val"))
    assert relative_error(found, column(scored)) < 1e-10


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
