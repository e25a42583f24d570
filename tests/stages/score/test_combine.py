"""Several objectives at once: joint rankings (methods.md 3.6, T53), the blended direction, and gains under constraints.

Reference: rules recomputed from their definitions, a brute force over all choices of rows for the knapsack, and an
objective whose direction is the blend itself.

    python -m pytest tests/stages/score/test_combine.py
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import rankdata

from influence_cli.data.tables import PROVENANCE_KEY, provenance, with_provenance
from influence_cli.errors import UsageError
from influence_cli.maths.combine import lexi, linear, minrank, ranksum, zsum
from influence_cli.maths.knapsack import choose, greatest
from influence_cli.stages.score.combine import RULES, Combine, combined
from tests.cases import call_cli, column, with_column, write

quick = settings(database=None, deadline=None, derandomize=True, max_examples=60)
Floats = NDArray[np.float64]


def two(n: int = 200, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return np.stack([rng.normal(size=n).round(2), rng.standard_cauchy(size=n).round(2)])  # with ties


# -- the rules (T53) -----------------------------------------------------------------------------------------------


def test_ranksum_is_the_sum_of_mid_ranks() -> None:
    a = two()
    assert np.array_equal(ranksum(a), rankdata(a[0]) + rankdata(a[1]))


@quick
@given(st.integers(0, 1000), st.sampled_from([np.exp, np.arctan, lambda x: x**3, lambda x: 7 * x - 2]))
def test_ranksum_does_not_change_under_increasing_transforms(seed: int, transform: Any) -> None:
    a = two(60, seed)
    with np.errstate(over="ignore"):
        moved = np.stack([transform(np.clip(a[0], -50, 50)), a[1]])
    assert np.array_equal(ranksum(np.stack([np.clip(a[0], -50, 50), a[1]])), ranksum(moved))


def test_minrank_is_the_worst_rank_and_a_columns_own_order_where_both_are_equal() -> None:
    a = two()
    assert np.array_equal(minrank(a), np.maximum(rankdata(a[0]), rankdata(a[1])))
    same = np.stack([a[0], a[0]])
    assert np.array_equal(minrank(same), rankdata(a[0]))


def test_minrank_of_opposed_columns_has_to_reach_the_upper_half() -> None:
    n = 101
    worst = minrank(np.stack([np.arange(n, dtype=float), -np.arange(n, dtype=float)]))
    assert worst.min() == (n + 1) / 2


def test_zsum_is_the_weighted_mean_of_clipped_robust_z_scores() -> None:
    a, v = two(), np.array([0.7, 0.3])
    spread = 1.4826 * np.median(np.abs(a - np.median(a, axis=1, keepdims=True)), axis=1, keepdims=True)
    z = np.clip((a - np.median(a, axis=1, keepdims=True)) / spread, -5, 5)
    assert np.abs(zsum(a, v, 5.0) - (0.7 * z[0] + 0.3 * z[1])).max() < 1e-14
    assert np.abs(zsum(a, 10 * v, 5.0) - zsum(a, v, 5.0)).max() < 1e-14


def test_lexi_gives_only_rows_that_harm_the_last_and_do_not_help_the_others() -> None:
    a = two()
    found = lexi(a)
    candidate = (a[1] < 0) & (a[0] <= 0)
    assert np.array_equal(np.isfinite(found), candidate)
    assert np.array_equal(found[candidate], a[1][candidate])


@quick
@given(st.integers(0, 1000), st.floats(0.01, 0.99), st.floats(0.01, 100), st.floats(0.01, 100))
def test_linear_is_additive(seed: int, alpha: float, norm_a: float, norm_b: float) -> None:
    """s(a q1 + b q2) = a s(q1) + b s(q2): scores g @ q of random gradients."""
    rng = np.random.default_rng(seed)
    g, q = rng.normal(size=(40, 6)), rng.normal(size=(2, 6))
    q *= np.array([[norm_a], [norm_b]]) / np.linalg.norm(q, axis=1, keepdims=True)
    blend = alpha * q[0] / norm_a + (1 - alpha) * q[1] / norm_b
    found = linear((g @ q.T).T, np.array([alpha, 1 - alpha]), np.array([norm_a, norm_b]))
    assert np.abs(found - g @ blend).max() < 1e-12


@pytest.mark.parametrize("rule", [r for r in RULES if r != "linear"])
def test_a_row_without_one_of_its_scores_has_none(rule: str) -> None:
    a = two(30)
    a[1, 4] = np.nan
    found = combined(rule, a, Combine())
    assert np.isnan(found[4])
    rest = np.delete(a, 4, axis=1)
    assert np.array_equal(np.delete(found, 4), combined(rule, rest, Combine()), equal_nan=True)


@pytest.mark.parametrize(("rule", "weights"), [("ranksum", "1,2"), ("zsum", "1"), ("zsum", "a,b"), ("zsum", "0,0")])
def test_weights_that_cannot_be_are_refused(rule: str, weights: str) -> None:
    with pytest.raises(UsageError):
        combined(rule, two(30), Combine(weights))


# -- the knapsack --------------------------------------------------------------------------------------------------


def brute(
    gain: Floats, others: Floats, least: Floats, part: NDArray[np.int64], most: list[int], k: int
) -> float | None:
    best = None
    for size in range(k + 1):
        for rows in itertools.combinations(range(len(gain)), size):
            chosen = list(rows)
            held = (others[:, chosen].sum(axis=1) >= least - 1e-12).all()
            inside = np.bincount(part[chosen], minlength=len(most)) if chosen else np.zeros(len(most))
            if held and (inside <= most).all():
                best = max(gain[chosen].sum(), best if best is not None else -np.inf)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_small_knapsacks_are_solved_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gain, others = rng.normal(size=11), rng.normal(size=(2, 11))
    part, most, k = rng.integers(0, 2, 11), [3, 2], int(rng.integers(1, 6))
    least = np.array([0.0, 0.5 * (seed % 3)])
    expected = brute(gain, others, least, part, most, k)
    found = choose(gain, others, least, [(part, most)], k)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.total == pytest.approx(expected, abs=1e-9)
    assert found.bound >= found.total - 1e-9
    assert found.taken.sum() <= k


@pytest.mark.parametrize("seed", range(4))
def test_large_knapsacks_hold_every_bound_and_come_near_the_relaxation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, k = 5000, 250
    gain = rng.standard_t(3, n)
    others = np.stack([-0.8 * gain + rng.normal(size=n), rng.standard_cauchy(n)])  # the first is opposed
    part = rng.integers(0, 3, n)
    found = choose(gain, others, np.zeros(2), [(part, [60, 60, 200])], k)
    assert found is not None
    assert (others[:, found.taken].sum(axis=1) >= 0).all()
    assert found.taken.sum() <= k
    assert (np.bincount(part[found.taken], minlength=3) <= [60, 60, 200]).all()
    assert found.total == pytest.approx(gain[found.taken].sum(), rel=1e-12)
    assert found.bound * (1 - 1e-3) <= found.total <= found.bound * (1 + 1e-9)
    again = choose(gain, others, np.zeros(2), [(part, [60, 60, 200])], k)
    assert again is not None
    assert np.array_equal(found.taken, again.taken)


def test_bounds_that_nothing_meets_are_said_and_bounds_that_all_meet_change_nothing() -> None:
    rng = np.random.default_rng(0)
    gain, other = rng.normal(size=100), rng.normal(size=(1, 100))
    most = greatest(other[0], [], 10)
    assert most == pytest.approx(np.sort(other[0])[-10:].sum())
    assert choose(gain, other, np.array([most + 1e-6]), [], 10) is None
    free = choose(gain, other, np.array([-1e9]), [], 10)
    assert free is not None
    assert set(np.flatnonzero(free.taken)) == set(np.argsort(gain)[-10:])


def test_no_gain_takes_no_row() -> None:
    found = choose(-np.ones(20), np.zeros((1, 20)), np.zeros(1), [], 5)
    assert found is not None
    assert not found.taken.any()


# -- from the shell ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, digits: Path, digits_run: Path) -> Path:
    """A folder with a score table by ip, and a second objective's column beside the first, of known length."""
    folder = tmp_path_factory.mktemp("many")
    asked = ["score", "--method", "ip", digits, "--checkpoint", digits_run, "-o", "one.parquet", "--precision", "fp64"]
    assert call_cli(*asked, cwd=folder).code == 0
    table = pq.read_table(folder / "one.parquet")
    origin = provenance(table.schema)
    rng = np.random.default_rng(3)
    other = rng.normal(size=200) - 0.5 * column(table) / column(table).std()
    origin["kinds"]["score_fairness"] = "signed"
    origin["norms"]["score_fairness"] = [2.5]
    origin["objective_of"]["score_fairness"] = "fairness"
    write(with_provenance(with_column(table, "score_fairness", other), origin), folder / "s.parquet")
    return folder


def curate(*asked: Any, cwd: Path) -> Any:
    ran = call_cli("curate", *asked, cwd=cwd)
    assert ran.code == 0, ran.err
    return ran


@pytest.mark.parametrize("rule", RULES)
def test_curate_acts_on_the_combined_column(rule: str, many: Path) -> None:
    table = pq.read_table(many / "s.parquet")
    a = np.stack([column(table, "score_utility"), column(table, "score_fairness")])
    norm = provenance(table.schema)["norms"]["score_utility"][0]
    weights, asked = np.array([0.5, 0.5]), ["--combine", rule]
    if rule in ("zsum", "linear"):
        weights = np.array([0.8, 0.2])
        asked += ["--set", "combine.weights=0.8,0.2"]
    expected = linear(a, weights, np.array([norm, 2.5])) if rule == "linear" else combined(
        rule, a, Combine("0.8,0.2" if rule == "zsum" else "")
    )  # fmt: skip
    ran = curate("s.parquet", "--by", "utility", "--by", "score_fairness", *asked, "--budget", "10",
                 "--set", "trim.guard=false", cwd=many)  # fmt: skip
    ids = table.column("id").to_pylist()
    finite = np.flatnonzero(np.isfinite(expected)).tolist()
    order = sorted(finite, key=lambda i: (expected[i], table["row_key"][i].as_py()))
    assert [r["id"] for r in ran.rows] == [ids[i] for i in order[:10]]
    assert np.allclose([r["score"] for r in ran.rows], expected[order[:10]], rtol=1e-12)
    assert f"by column {rule} of score_utility, score_fairness" in ran.err
    if rule == "minrank":
        assert f"largest worst rank among the edited rows: {expected[order[9]]:g} of 200" in ran.err


def test_several_columns_are_a_ranksum_by_default(many: Path) -> None:
    both = ["s.parquet", "--by", "utility", "--by", "fairness"]
    assert curate(*both, cwd=many).out == curate(*both, "--combine", "ranksum", cwd=many).out


def test_a_combined_ranking_has_no_sign(many: Path) -> None:
    asked = ["curate", "s.parquet", "--by", "utility", "--by", "fairness", "--set", "trim.only_negative=true"]
    ran = call_cli(*asked, cwd=many)
    assert ran.code == 2
    assert "ranking-only" in ran.err
    assert call_cli(*asked, "--combine", "linear", cwd=many).code == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--combine", "ranksum"], "two or more"),
        (["--by", "utility", "--by", "utility"], "two or more"),
        (["--by", "utility", "--by", "nothing"], "no score column 'nothing'"),
        (["--by", "utility", "--by", "fairness", "--combine", "sum"], "'sum' is unknown"),
        (["--by", "utility", "--by", "fairness", "--set", "combine.weight=2"], "has no option"),
        (["--maximise", "utility"], "needs a constraint"),
        (["--subject-to", "fairness>=0"], "needs an objective"),
        (["--maximise", "utility", "--subject-to", "fairness<=0"], "cannot be read"),
        (["--maximise", "utility", "--subject-to", "fairness>=nan"], "cannot be read"),
        (["--maximise", "utility", "--subject-to", "fairness>=0.1"], "has no unit"),
        (["--maximise", "utility", "--subject-to", "utility>=0"], "named twice"),
        (["--maximise", "utility", "--subject-to", "fairness>=0", "--by", "utility"], "leave --by"),
        (["--maximise", "utility", "--subject-to", "fairness>=0", "--action", "reweight"], "chooses rows to trim"),
    ],
)
def test_what_cannot_be_is_refused(asked: list[str], said: str, many: Path) -> None:
    ran = call_cli("curate", "s.parquet", *asked, cwd=many)
    assert ran.code == 2, ran.err
    assert said in ran.err


def test_linear_is_refused_where_lengths_are_unknown(many: Path) -> None:
    table = pq.read_table(many / "s.parquet")
    origin = json.loads(table.schema.metadata[PROVENANCE_KEY])
    del origin["norms"]["score_fairness"]
    write(with_provenance(table, origin), many / "unknown.parquet")
    asked = ["--by", "utility", "--by", "fairness", "--combine", "linear"]
    ran = call_cli("curate", "unknown.parquet", *asked, cwd=many)
    assert ran.code == 2
    assert "lengths of the directions" in ran.err


def test_constraints_hold_and_totals_are_printed(many: Path) -> None:
    table = pq.read_table(many / "s.parquet")
    ids = table.column("id").to_pylist()
    gains = {n: dict(zip(ids, -column(table, f"score_{n}"), strict=True)) for n in ("utility", "fairness")}
    lowest = [r["id"] for r in curate("s.parquet", "--budget", "10", cwd=many).rows]
    assert sum(gains["fairness"][i] for i in lowest) < 0, "the constraint has something to do"
    ran = curate("s.parquet", "--budget", "10", "--maximise", "utility", "--subject-to", "fairness>=0", cwd=many)
    taken = [r["id"] for r in ran.rows]
    total = {n: sum(g[i] for i in taken) for n, g in gains.items()}
    assert 0 < len(taken) <= 10
    assert total["fairness"] >= 0
    assert 0 < total["utility"] <= sum(gains["utility"][i] for i in lowest) + 1e-12
    for figure in (f"{total['utility']:+.4g}", f"{sum(gains['fairness'][i] for i in lowest):+.4g}"):
        assert figure in ran.err
    assert "of a budget of 10 rows: most of utility subject to fairness >= 0" in ran.err


def test_a_constraint_that_cannot_be_met_exits_2_and_says_what_can(many: Path) -> None:
    table = pq.read_table(many / "s.parquet")
    origin = json.loads(table.schema.metadata[PROVENANCE_KEY])
    origin["effect_divisors"] = {"score_utility": 200.0, "score_fairness": 200.0}
    write(with_provenance(table, origin), many / "effect.parquet")
    asked = ["curate", "effect.parquet", "--budget", "10", "--maximise", "utility", "--subject-to"]
    ran = call_cli(*asked, "fairness>=99", cwd=many)
    assert ran.code == 2
    assert "fairness can gain at most 0." in ran.err
    ran = call_cli(*asked, "fairness>=0.05", cwd=many)
    assert ran.code == 0, ran.err
    gain = dict(zip(table["id"].to_pylist(), -column(table, "score_fairness") / 200, strict=True))
    assert sum(gain[r["id"]] for r in ran.rows) >= 0.05


def test_score_combines_objectives_as_curate_does(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    """Two objectives by one method; blended tangents and blended stored columns are the same numbers."""
    from unittest import mock

    from influence_cli import objectives
    from influence_cli.objectives.utility import Utility

    @dataclasses.dataclass(frozen=True)
    class Squared(Utility):
        def rows(self, logits: Any, labels: Any, loss: Any) -> Any:
            return loss.rows(logits, labels) ** 2

    import tests.stages.score.test_combine as here

    here.Squared = Squared  # type: ignore[attr-defined]
    more = {**objectives.OBJECTIVES, "squared": "tests.stages.score.test_combine:Squared"}
    asked = ["score", digits, "--checkpoint", digits_run, "--objective", "utility", "--objective", "squared",
             "--method", "ip-ensemble", "--set", "members=2", "--precision", "fp64", "--per-member"]  # fmt: skip
    with mock.patch.dict(objectives.OBJECTIVES, more):
        for rule in ("linear", "ranksum"):
            ran = call_cli(*asked, "--combine", rule, "-o", f"{rule}.parquet", cwd=tmp_path)
            assert ran.code == 0, ran.err
        one = call_cli("score", "--method", "ip", digits, "--checkpoint", digits_run, "--combine", "ranksum",
                       "-o", "x.parquet", cwd=tmp_path)  # fmt: skip
    assert one.code == 2
    assert "two objectives" in one.err
    for rule in ("linear", "ranksum"):
        table = pq.read_table(tmp_path / f"{rule}.parquet")
        assert table["score"].equals(table[f"score_{rule}"])
        by = ["--by", "utility", "--by", "squared", "--combine", rule, "--budget", "200"]
        rows = curate(f"{rule}.parquet", *by, "--set", "trim.guard=false", cwd=tmp_path).rows
        found = {r["id"]: r["score"] for r in rows}
        expected = dict(zip(table["id"].to_pylist(), column(table), strict=True))
        assert all(abs(found[i] - expected[i]) <= 1e-10 * np.abs(column(table)).max() for i in found)
        assert len(found) == 200
    signed = pq.read_table(tmp_path / "linear.parquet")
    assert provenance(signed.schema)["kind"] == "signed"
    assert isinstance(signed["best_label"], pa.ChunkedArray)
    assert curate("linear.parquet", "--action", "relabel", cwd=tmp_path).rows
