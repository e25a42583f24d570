"""What is done to rows: trim, relabel, reweight, and budgets (methods.md 5, T50, T51, T52).

Reference: budgets, allowances and weights recomputed from the definitions in methods.md section 5.
Behavioural: guards hold for any scores (Hypothesis), ties go by row key, rows without a score are never touched, and
actions that need the sign refuse scores that have none.

    python -m pytest tests/actions/test_actions.py
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from influence_cli.actions import ACTIONS, make_action
from influence_cli.actions.protocol import Edits, Scored
from influence_cli.actions.relabel import Relabel
from influence_cli.actions.reweight import Reweight
from influence_cli.actions.trim import Trim
from influence_cli.errors import UsageError
from influence_cli.settings import parse_budget
from influence_cli.store.keys import stack

quick = settings(database=None, deadline=None, derandomize=True, max_examples=60)
nan = float("nan")


def scored(
    score: Any,
    labels: Any = None,
    kind: str = "signed",
    weights: Any = None,
    keys: list[bytes] | None = None,
    **proposals: Any,
) -> Scored:
    score = np.asarray(score, dtype=np.float64)
    n = len(score)
    return Scored(
        score,
        kind,
        np.zeros(n, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64),
        np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64),
        stack([k.to_bytes(16, "big") for k in range(n)] if keys is None else keys),
        **{name: np.asarray(values) for name, values in proposals.items()},
    )


def random_scored(n: int, classes: int, seed: int, **changes: Any) -> Scored:
    rng = np.random.default_rng(seed)
    shares = np.linspace(1, 4, classes)
    labels = rng.choice(classes, n, p=shares / shares.sum())
    return scored(rng.normal(size=n) - 0.5 * (labels == 0), labels, **changes)


def edited(edits: Edits) -> list[int]:
    return edits.edited.tolist()


# -- trim (T52) ----------------------------------------------------------------------------------------------------


def test_trim_takes_the_lowest_scores_and_nothing_else() -> None:
    rows = random_scored(200, 1, 0, weights=np.full(200, 2.0))
    edits = Trim().propose(rows, 10)
    assert edited(edits) == sorted(np.argsort(rows.score)[:10].tolist())
    assert np.flatnonzero(edits.weights == 0).tolist() == edited(edits)
    assert (edits.weights[edits.weights > 0] == 2.0).all()
    assert edits.labels.tolist() == rows.labels.tolist()
    assert edits.action == "trim"


def test_trim_changes_nothing_it_was_given() -> None:
    rows = random_scored(60, 2, 0)
    before = rows.score.copy(), rows.labels.copy(), rows.weights.copy()
    Trim().propose(rows, 5)
    Reweight().propose(rows, 0)
    assert all(np.array_equal(a, b) for a, b in zip(before, (rows.score, rows.labels, rows.weights), strict=True))


def test_ties_go_by_row_key_whatever_the_order() -> None:
    rng = np.random.default_rng(5)
    keys = [rng.bytes(16) for _ in range(40)]
    score = np.round(rng.normal(size=40), 0)
    expected = sorted(range(40), key=lambda i: (score[i], keys[i]))[:9]
    for _ in range(4):
        order = rng.permutation(40)
        rows = scored(score[order], keys=[keys[i] for i in order.tolist()])
        found = Trim(guard=False).propose(rows, 9)
        assert sorted(order[found.edited].tolist()) == sorted(expected)
    assert len({score[i] for i in expected}) < 9  # there were ties


@pytest.mark.parametrize("digits", [0, 1, 15])
def test_rows_go_by_score_and_then_by_key(digits: int) -> None:
    rng = np.random.default_rng(digits)
    score = np.concatenate(
        [rng.normal(size=150).round(digits), 1 + rng.integers(0, 9, 50) * 2.0**-52, [0.0, -0.0, nan]]
    )
    keys = [bytes(row) for row in rng.integers(0, 256, (len(score), 16), dtype=np.uint8)]
    wanted = sorted(range(len(score) - 1), key=lambda k: (score[k], keys[k]))
    assert scored(score, keys=keys).ascending().tolist() == wanted


def test_rows_without_a_score_are_never_taken() -> None:
    rows = scored([nan, -5.0, nan, 1.0, -7.0, 2.0] + [3.0] * 20)
    assert Trim(guard=False).propose(rows, 3).edited.tolist() == [1, 3, 4]
    assert Trim(guard=False).propose(scored([nan, 1.0, nan]), 3).edited.tolist() == [1]


@pytest.mark.parametrize(
    ("sizes", "budget", "expected"),
    [
        # all low scores are of class 0; it may lose floor(max(2 q, q + .05) n_0), and must keep max(5, n_0 / 10)
        ([50, 150], 10, 5),  # q = 5 %: share 10 % of 50
        ([50, 150], 2, 2),  # q = 1 %: share 6 % of 50 is 3, the budget is smaller
        ([50, 150], 40, 20),  # q = 20 %: share 40 %
        ([40, 160], 60, 24),  # q = 30 %: share 60 %
        ([8, 192], 120, 3),  # share 100 %, but 5 must stay
        ([100, 100], 160, 90),  # share 100 %, but a tenth must stay
        ([101, 99], 160, 90),  # a tenth, rounded up
        ([4, 196], 20, 0),  # too small to lose any
        ([30, 970], 10, 1),  # q = 1 %: 6 % of 30 is 1.8
    ],
)
def test_class_guard_numbers(sizes: list[int], budget: int, expected: int) -> None:
    labels = np.repeat([0, 1], sizes)
    rows = scored(np.where(labels == 0, -10.0, 10.0) + 1e-3 * np.arange(len(labels)), labels)
    edits = Trim().propose(rows, budget)
    of_zero = int((labels[edits.edited] == 0).sum())
    assert of_zero == expected
    assert edited(edits)[:of_zero] == list(range(expected))  # the lowest of the class
    blocked = sizes[0] - expected if len(edits.edited) > expected else 0
    if blocked:  # the next lowest admissible rows take the places of the blocked ones
        other = edits.edited[of_zero:]
        assert other.tolist() == list(range(sizes[0], sizes[0] + len(other)))
        assert f"the class guard passed over {blocked} lower rows" in edits.notes
    assert int((labels[edits.edited] == 1).sum()) == min(budget - expected, allowance(sizes[1], budget, sum(sizes)))


def allowance(size: int, budget: int, n: int) -> int:
    """max(2 q, q + .05) of a class, leaving max(5, a tenth)."""
    q = budget / n
    return max(0, min(math.floor(max(2 * q, q + 0.05) * size + 1e-9), size - max(5, math.ceil(size / 10))))


@quick
@given(st.integers(1, 80), st.integers(1, 5), st.integers(0, 1000), st.floats(0, 1))
def test_guards_hold_for_any_scores(n: int, classes: int, seed: int, share: float) -> None:
    rows, budget = random_scored(n, classes, seed), int(share * n)
    edits = Trim().propose(rows, budget)
    lost = np.bincount(rows.labels[edits.edited], minlength=classes)
    sizes = np.bincount(rows.labels, minlength=classes)
    for size, gone in zip(sizes.tolist(), lost.tolist(), strict=True):
        assert gone <= allowance(size, budget, n)
    assert lost.sum() == min(budget, sum(allowance(s, budget, n) for s in sizes.tolist()))
    for c in range(classes):  # within a class it is always the lowest that go
        of_class = sorted((rows.score[i], i) for i in np.flatnonzero(rows.labels == c).tolist())
        assert {i for _, i in of_class[: lost[c]]} == set(edits.edited[rows.labels[edits.edited] == c].tolist())


def test_without_the_guard_a_class_may_vanish() -> None:
    rows = scored([-1.0] * 6 + [1.0] * 94, [0] * 6 + [1] * 94)
    assert Trim(guard=False).propose(rows, 6).edited.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("budget", [0, 7, 10, 33])
def test_per_class_takes_the_floor_of_every_class(budget: int) -> None:
    rows = random_scored(100, 3, 1)
    edits = Trim(per_class=True).propose(rows, budget)
    sizes, lost = (np.bincount(y, minlength=3) for y in (rows.labels, rows.labels[edits.edited]))
    assert lost.tolist() == [math.floor(budget * s / 100) for s in sizes.tolist()]
    for c in range(3):
        lowest = sorted((rows.score[i], i) for i in np.flatnonzero(rows.labels == c).tolist())[: lost[c]]
        assert {i for _, i in lowest} <= set(edited(edits))


def test_only_negative_takes_fewer_and_says_so() -> None:
    rows = scored([-3.0, 0.0, -1.0, 2.0, 5.0] + [9.0] * 30)
    edits = Trim(only_negative=True).propose(rows, 4)
    assert edited(edits) == [0, 2]
    assert any("2 of a budget of 4" in note for note in edits.notes)
    assert edited(Trim().propose(rows, 4)) == [0, 1, 2, 3]


def test_only_negative_refuses_scores_whose_sign_means_nothing() -> None:
    rows = scored([-3.0] * 40, kind="ranking")
    with pytest.raises(UsageError, match="ranking-only"):
        Trim(only_negative=True).propose(rows, 2)
    assert len(Trim().propose(rows, 2).edited) == 2  # without it a ranking is enough


def test_reasons_give_the_rank_by_score() -> None:
    """With the guard, the rank of the row, not the place in the list of those taken."""
    labels = np.repeat([0, 1], [50, 150])
    rows = scored(np.where(labels == 0, -10.0, 10.0) + 1e-3 * np.arange(200), labels)
    edits = Trim().propose(rows, 10)
    assert {i: edits.reason[i] for i in edited(edits)} == {
        **{i: f"rank {i + 1} of 200 by score" for i in range(5)},
        **{i: f"rank {i + 1} of 200 by score" for i in range(50, 55)},
    }


@quick
@given(st.integers(20, 120), st.integers(0, 1000), st.floats(0, 0.6))
def test_group_guard_holds_for_any_scores(n: int, seed: int, share: float) -> None:
    """No group loses more than a class may, and every class that a group has keeps a row in it."""
    rng = np.random.default_rng(seed)
    groups = rng.choice([-1, 0, 1, 2], n, p=[0.1, 0.5, 0.3, 0.1])
    rows = random_scored(n, 2, seed, groups=groups)
    rows = dataclasses.replace(rows, score=rows.score - 3.0 * (groups == 2))  # the smallest group scores lowest
    budget = int(share * n)
    gone = np.zeros(n, dtype=bool)
    gone[Trim(guard=False).propose(rows, budget).edited] = True
    assert gone.sum() <= budget
    for g in (0, 1, 2):
        mine = groups == g
        assert gone[mine].sum() <= allowance(int(mine.sum()), budget, n)
        for c in np.unique(rows.labels[mine]):
            assert (mine & ~gone & (rows.labels == c)).any()
    free = Trim(guard=False, group_guard=False).propose(rows, budget)
    assert edited(free) == sorted(sorted(range(n), key=lambda i: rows.score[i])[:budget])


def test_group_guard_says_what_it_passed_over_and_takes_the_next_lowest() -> None:
    groups = np.repeat([0, 1], [20, 80])
    rows = scored(np.arange(100.0), np.arange(100) % 2, groups=groups)
    edits = Trim(guard=False).propose(rows, 10)
    assert edited(edits) == [0, 1, 2, 3, *range(20, 26)]  # 20 % of 20 are 4, and then group 1
    assert "the group guard passed over 16 lower rows" in edits.notes


@quick
@given(st.integers(20, 120), st.integers(0, 1000), st.floats(0, 1), st.sampled_from(["trim", "per class", "relabel"]))
def test_rows_of_weight_0_are_as_if_they_were_not_there(n: int, seed: int, share: float, kind: str) -> None:
    """They spend no budget, and no class or group rests on them."""
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(n) < 0.4, 0.0, 1.0)
    groups, other = rng.choice([-1, 0, 1], n, p=[0.1, 0.5, 0.4]), rng.integers(0, 3, n)
    about = {"groups": groups, "best_label": other, "best_label_gain": np.full(n, 2.0)}
    rows = random_scored(n, 3, seed, weights=weights, **about)
    counts = np.flatnonzero(weights > 0)
    left = scored(rows.score[counts], rows.labels[counts], keys=list(rows.keys[counts]),
                  **{name: values[counts] for name, values in about.items()})  # fmt: skip
    action = {"trim": Trim(), "per class": Trim(per_class=True), "relabel": Relabel()}[kind]
    budget = int(share * len(counts))
    found, expected = action.propose(rows, budget), action.propose(left, budget)
    assert edited(found) == counts[expected.edited].tolist()
    assert [note for note in found.notes if "guard" in note] == [note for note in expected.notes if "guard" in note]


# -- relabel (T50 is in test_engine; here its guards) --------------------------------------------------------------


def relabelling(score: Any, best: Any, gain: Any, labels: Any = None, kind: str = "signed") -> Scored:
    return scored(score, labels, kind, best_label=np.asarray(best, dtype=np.int64), best_label_gain=np.asarray(gain))


def test_influence_rule_needs_a_negative_score_and_a_positive_new_one() -> None:
    rows = relabelling(
        score=[-3.0, -2.0, -1.0, 0.0, 1.0, nan],
        best=[1, 2, 1, 1, 2, -1],
        gain=[3.5, 1.0, 1.0, 4.0, 4.0, nan],  # new scores 0.5, -1, 0, 4, 5
    )
    edits = Relabel(guard=False).propose(rows, 6)
    assert edited(edits) == [0]
    assert edits.labels.tolist() == [1, 0, 0, 0, 0, 0]
    assert edits.weights.tolist() == [1.0] * 6
    assert edits.proposal is not None
    assert edits.proposal.tolist() == [1, 2, 1, 1, 2, -1]  # what a random control may give
    assert any("1 of a budget of 6" in note for note in edits.notes)


def test_influence_rule_takes_the_most_harmful_first() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=60)
    rows = relabelling(score, np.ones(60), np.full(60, 9.0))
    assert edited(Relabel(guard=False).propose(rows, 8)) == sorted(np.argsort(score)[:8].tolist())
    assert edited(Relabel(guard=False).propose(rows, 60)) == np.flatnonzero(score < 0).tolist()


def test_a_row_keeps_a_label_that_is_its_own() -> None:
    rows = relabelling([-1.0, -1.0], best=[0, 1], gain=[5.0, 5.0])
    edits = Relabel(guard=False).propose(rows, 2)
    assert edited(edits) == [1]
    assert edits.proposal is not None
    assert edits.proposal.tolist() == [-1, 1]


@pytest.mark.parametrize("rule", ["auto", "influence"])
def test_influence_rule_refuses_ranking_only_scores(rule: str) -> None:
    rows = relabelling([-1.0], [1], [2.0], kind="ranking")
    with pytest.raises(UsageError, match="ranking-only"):
        Relabel(rule=rule).propose(rows, 1)


@pytest.mark.parametrize("rule", ["influence", "model"])
def test_a_rule_without_its_columns_is_refused(rule: str) -> None:
    with pytest.raises(UsageError, match="the score table has no"):
        Relabel(rule=rule).propose(scored([-1.0, 1.0]), 1)


@pytest.mark.parametrize(("least", "expected"), [(0.5, [0, 3]), (0.9, [3]), (0.0, [0, 1, 3])])
def test_model_rule_needs_a_probable_other_label(least: float, expected: list[int]) -> None:
    rows = scored(
        [-4.0, -3.0, -2.0, 1.0, nan],
        kind="ranking",
        model_label=[1, 2, 0, 2, -1],
        model_probability=[0.5, 0.49, 0.8, 0.95, nan],
    )
    edits = Relabel(rule="model", min_probability=least, guard=False).propose(rows, 5)
    assert edited(edits) == expected
    assert [edits.labels[i] for i in expected] == [[1, 2, 0, 2][i] for i in expected]


def test_auto_is_influence_where_there_is_a_best_label_and_else_the_model() -> None:
    columns = {"model_label": [2], "model_probability": [0.9]}
    both = scored([-1.0], best_label=[1], best_label_gain=[3.0], **columns)
    assert Relabel(guard=False).propose(both, 1).labels.tolist() == [1]
    alone = scored([-1.0], kind="ranking", **columns)
    assert Relabel(guard=False).propose(alone, 1).labels.tolist() == [2]


@pytest.mark.parametrize(("budget", "of_zero", "of_one"), [(10, 3, 7), (20, 5, 15), (1, 1, 0)])
def test_no_class_loses_more_than_the_budgets_share(budget: int, of_zero: int, of_one: int) -> None:
    """ceil(q n_c): 25 rows of class 0, all lower than the 75 of class 1, of which 10 % are 3 and 8."""
    labels = np.repeat([0, 1], [25, 75])
    rows = relabelling(-100.0 + np.arange(100), 1 - labels, np.full(100, 500.0), labels)
    edits = Relabel().propose(rows, budget)
    found = np.bincount(labels[edits.edited], minlength=2).tolist()
    assert found == [of_zero, of_one]
    assert all(lost <= math.ceil(budget / 100 * size) for lost, size in zip(found, (25, 75), strict=True))
    assert edited(edits)[:of_zero] == list(range(of_zero))
    free = Relabel(guard=False).propose(rows, budget)
    assert edited(free) == list(range(budget))


@pytest.mark.parametrize("budget", [1, 4, 40])
def test_relabel_leaves_a_row_in_every_class(budget: int) -> None:
    """A class of one row keeps it, however low it scores, and one of two at least one of them."""
    labels = np.repeat([0, 1, 2], [1, 2, 37])
    rows = relabelling(-100.0 + np.arange(40), np.full(40, 3), np.full(40, 500.0), labels)
    edits = Relabel().propose(rows, budget)
    after = np.bincount(np.where(edits.labels == labels, labels, 3))
    assert (after[0], after[1] >= 1, after[2] >= 1) == (1, True, True)
    assert any("the class guard passed over" in note for note in edits.notes)
    assert len(edits.edited) == {1: 1, 4: 4, 40: 37}[budget]
    assert 0 in Relabel(guard=False).propose(rows, budget).edited


def test_relabel_reports_the_drift_of_class_shares() -> None:
    labels = np.repeat([0, 1], [20, 80])
    rows = relabelling(-100.0 + np.arange(100), 1 - labels, np.full(100, 500.0), labels)
    notes = Relabel(guard=False).propose(rows, 10).notes
    assert notes[0] == "largest change of a class's share: class 0 from 20.0% to 10.0%"


# -- reweight (T51) ------------------------------------------------------------------------------------------------


def effective_size(w: NDArray[np.float64]) -> float:
    return float(w.sum() ** 2 / (w**2).sum())


def robust_softmax(s: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """methods.md 5.3, without guards."""
    spread = 1.4826 * np.median(np.abs(s - np.median(s)))
    e = np.exp(np.clip((s - np.median(s)) / spread, -5, 5) / temperature)
    return len(s) * e / e.sum()


@pytest.mark.parametrize("temperature", [2.0, 3.5, 10.0])
def test_weights_are_the_robust_softmax(temperature: float) -> None:
    rows = random_scored(120, 3, 2)
    plain = robust_softmax(rows.score, temperature)
    edits = Reweight(temperature=temperature, preserve_class_mass=False).propose(rows, 0)
    assert np.abs(edits.weights - plain).max() < 1e-12
    assert edits.weights.mean() == pytest.approx(1.0, abs=1e-12)
    assert effective_size(plain) > 36
    assert np.array_equal(np.argsort(edits.weights, kind="stable"), np.argsort(rows.score, kind="stable"))
    assert not any("raised" in note for note in edits.notes)


def test_every_class_keeps_its_total_weight() -> None:
    rows = random_scored(150, 3, 3)
    edits = Reweight().propose(rows, 0)
    for c in range(3):
        mine = rows.labels == c
        assert edits.weights[mine].sum() == pytest.approx(mine.sum(), abs=1e-12 * 150)
        plain = robust_softmax(rows.score, 2.0)[mine]
        assert np.abs(edits.weights[mine] / edits.weights[mine].sum() - plain / plain.sum()).max() < 1e-14
    assert edits.weights.mean() == pytest.approx(1.0, abs=1e-12)


def test_every_class_keeps_its_total_weight_where_rows_had_weights() -> None:
    given_weights = np.random.default_rng(1).uniform(0.2, 3.0, 150)
    rows = random_scored(150, 3, 3, weights=given_weights)
    edits = Reweight().propose(rows, 0)
    for c in range(3):
        mine = rows.labels == c
        assert edits.weights[mine].sum() == pytest.approx(given_weights[mine].sum(), rel=1e-12)


@quick
@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.1, 0.5]), st.booleans())
def test_effective_sample_size_stays_above_its_bound(seed: int, temperature: float, preserve: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = scored(rng.standard_cauchy(50), rng.integers(0, 3, 50))
    edits = Reweight(temperature=temperature, preserve_class_mass=preserve).propose(rows, 0)
    assert effective_size(edits.weights) >= 0.3 * 50
    assert edits.weights.mean() == pytest.approx(1.0, abs=1e-12)


def test_temperature_is_doubled_just_enough() -> None:
    rows = random_scored(100, 1, 4)
    edits = Reweight(temperature=0.05, preserve_class_mass=False).propose(rows, 0)
    raised = next(t for t in 0.05 * 2.0 ** np.arange(20) if effective_size(robust_softmax(rows.score, t)) >= 30)
    assert raised > 0.05
    assert np.abs(edits.weights - robust_softmax(rows.score, raised)).max() < 1e-12
    assert any(f"raised to {raised:g}" in note for note in edits.notes)


@pytest.mark.parametrize("preserve", [True, False])
def test_equal_scores_and_a_high_temperature_leave_weights_at_one(preserve: bool) -> None:
    equal = scored(np.full(30, -2.5), np.arange(30) % 3)
    assert np.abs(Reweight(preserve_class_mass=preserve).propose(equal, 0).weights - 1).max() < 1e-12
    flat = Reweight(temperature=1e9, preserve_class_mass=preserve).propose(random_scored(30, 3, 0), 0)
    assert np.abs(flat.weights - 1).max() < 1e-8


@pytest.mark.parametrize("outlier", [3.0, 1e3, -1e6])
def test_mostly_tied_scores_are_weighted_without_a_warning(outlier: float) -> None:
    """The median absolute deviation is 0; the outlier is clipped at 5 spreads, and nothing overflows."""
    rows = scored([outlier] * 6 + [0.0] * 24)
    edits = Reweight(preserve_class_mass=False).propose(rows, 0)
    ratio = edits.weights[0] / edits.weights[-1]
    assert ratio == pytest.approx(np.exp(np.sign(outlier) * 5 / 2), rel=1e-12)


def test_paper_option_is_a_softmax_of_the_raw_scores() -> None:
    rows = random_scored(40, 3, 5)
    e = np.exp(rows.score)
    found = Reweight(paper=True, preserve_class_mass=False).propose(rows, 0).weights
    assert np.abs(found - 40 * e / e.sum()).max() < 1e-12
    shifted = scored(rows.score + 1000.0, rows.labels)  # no overflow
    again = Reweight(paper=True, preserve_class_mass=False).propose(shifted, 0).weights
    assert np.abs(again - found).max() < 1e-10


def test_rows_without_a_score_keep_their_weight() -> None:
    rows = scored([nan, 1.0, 2.0, nan, 5.0], weights=[3.0, 1.0, 1.0, 0.5, 1.0])
    edits = Reweight().propose(rows, 0)
    assert edits.weights[[0, 3]].tolist() == [3.0, 0.5]
    assert edited(edits) == [1, 2, 4]
    assert edits.weights[[1, 2, 4]].mean() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, nan])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match=r"not positive|not a number"):
        make_action("reweight", {"reweight": {"temperature": temperature}})


# -- the table of actions, and budgets -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_edits_nothing_for_no_reason(name: str) -> None:
    """An edit is a row with a reason: every other row keeps its label and weight."""
    rows = scored(
        np.random.default_rng(0).normal(size=50),
        np.arange(50) % 2,
        best_label=1 - np.arange(50) % 2,
        best_label_gain=np.full(50, 9.0),
    )
    edits = make_action(name, {}).propose(rows, 5)
    assert edits.action == name
    same = (edits.labels == rows.labels) & (edits.weights == rows.weights)
    assert same[np.setdiff1d(np.arange(50), edits.edited)].all()
    assert not same[edits.edited].all()
    assert 0 < len(edits.edited) <= (50 if name == "reweight" else 5)


@pytest.mark.parametrize(
    ("name", "options"), [("trimm", {}), ("trim", {"trim": {"gard": True}}), ("relabel", {"relabel": {"rule": "best"}})]
)
def test_unknown_actions_and_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_action(name, options)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("5%", 100, 5),
        ("5%", 199, 9),
        ("5%", 19, 0),
        ("2.5%", 400, 10),
        ("29%", 100, 29),  # 0.29 * 100 is 28.999999999999996
        ("100%", 7, 7),
        ("0%", 7, 0),
        ("12", 100, 12),
        ("0", 0, 0),
    ],
)
def test_budgets_are_floored_shares_or_counts(text: str, n: int, expected: int) -> None:
    assert parse_budget(text, n) == expected


@pytest.mark.parametrize("text", ["", "%", "five", "5.5", "-1", "101", "101%", "-5%", "nan%", "inf%", "1e999%", "5 %%"])
def test_impossible_budgets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        parse_budget(text, 100)


@pytest.mark.parametrize("text", ["AUTO", "auto", " Auto"])
def test_a_budget_of_auto_where_there_is_none_says_where_it_is(text: str) -> None:
    with pytest.raises(UsageError, match="neither a share nor a count") as caught:
        parse_budget(text, 100)
    assert "influence curate --budget auto" in caught.value.fix
