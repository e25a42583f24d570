"""How many members an ensemble has, where its members decide (``members=auto``; methods.md 4.8, T28).

Reference: the stability of the lowest rows against simulated ensembles whose endless mean is known; the number decided
on against the criterion applied to the columns of a fixed ensemble.
Behavioural: what a decision does not depend on, what it is kept for and what makes it anew, damage, limits, the plan.

    python -m pytest tests/stages/run/test_members.py
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.maths.ranking import jaccard, lowest
from influence_cli.maths.stability import lowest_rows_stability, members_needed
from influence_cli.methods import make_methods
from influence_cli.settings import GradSpec
from influence_cli.store.maintenance import list_entries
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
    verify,
    write,
)
from tests.opened import Opened, describe_plan, fill, missing_work, score

N = 40  # train rows of ``examples()``
AUTO = {"members": "auto", "share": 0.25, "stability": 0.5, "p_max": 0.3}
Floats = NDArray[np.float64]


def spec(**options: object) -> GradSpec:
    return GradSpec(("ip-ensemble",), options={"ip-ensemble": {**AUTO, **options}})


@dataclasses.dataclass
class Bench:
    """A folder to put manifests and a store in, with the run folder that they are scored at."""

    folder: Path
    run: Path
    written: int = 0

    def job(self, rows: list[Example] | None = None, store: str | None = "store", **how: object) -> Opened:
        self.written += 1
        path = write(feature_table(rows or examples()), self.folder / f"m{self.written}.parquet")
        where = None if store is None else self.folder / store
        return job_of(path, self.run, where, **{"spec": spec(), **how})  # type: ignore[arg-type]

    def decisions(self, store: str = "store") -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (self.folder / store / "decisions").glob("*.safetensors")}


@pytest.fixture
def bench(tmp_path: Path, tabular_run: Path) -> Bench:
    return Bench(tmp_path, tabular_run)


def decided(table: pa.Table) -> dict[str, object]:
    return provenance(table.schema)["members"]["ip-ensemble"]


def provenance_of(path: Path) -> dict[str, object]:
    return decided(pq.read_table(path))


def criterion(bench: Bench, rows: list[Example], share: float, stability: float, most: int = 20) -> int:
    """The number of members by definition: from the columns of the largest ensemble, rows in order of their keys."""
    fixed = score(bench.job(rows, None, spec=spec(members=most)), per_member=True)
    keys = fixed.column("row_key").to_pylist()
    order = sorted({key: k for k, key in reversed(list(enumerate(keys)))}.items())
    members = np.stack([column(fixed, f"score_utility_{k}") for k in range(most)])[:, [k for _, k in order]]
    for count in range(3, most):
        if lowest_rows_stability(members[:count], share).lower >= stability:
            return count
    return most


# ---- the criterion -------------------------------------------------------------------------------------------------


def simulated(rng: np.random.Generator, count: int, n: int, noise: float) -> tuple[Floats, Floats]:
    """(members [count, n], the mean of endlessly many [n]): noise of a row and noise that rows share."""
    truth = rng.normal(size=n)
    shared = rng.normal(size=(count, 3)) @ rng.normal(size=(3, n))
    return truth + noise * (rng.normal(size=(count, n)) + 0.5 * shared), truth


@pytest.mark.parametrize("count", [4, 8, 20])
@pytest.mark.parametrize("noise", [0.05, 0.4])
def test_stability_foretells_the_set_of_endlessly_many_members(count: int, noise: float) -> None:
    rng = np.random.default_rng(count)
    share, n, trials = 0.1, 500, 120
    true, found = [], []
    for _ in range(trials):
        members, truth = simulated(rng, count, n, noise)
        size = int(share * n)
        true.append(jaccard(lowest(members.mean(axis=0), size), lowest(truth, size)) or 0.0)
        found.append(lowest_rows_stability(members, share, draws=100))
    expected = np.mean([s.expected for s in found])
    covered = np.mean([t >= s.lower for t, s in zip(true, found, strict=True)])
    assert abs(expected - np.mean(true)) < (0.1 if count == 4 else 0.04)  # Student's tails: careful where there are few
    assert expected < np.mean(true) + 0.02
    assert covered >= 0.9  # 0.95 but for chance


def test_stability_rises_with_members_and_is_whole_where_they_are_alike() -> None:
    rng = np.random.default_rng(0)
    members, _ = simulated(rng, 64, 400, 0.3)
    found = [lowest_rows_stability(members[:m], 0.1) for m in (4, 16, 64)]
    assert found[0].lower < found[1].lower < found[2].lower < found[2].expected < 1
    ties = np.tile(np.repeat([0.0, 1.0], 50), (5, 1))
    assert lowest_rows_stability(ties, 0.3).lower == 1.0


def test_stretching_a_member_changes_no_ranking_and_no_stability() -> None:
    scores = np.random.default_rng(1).normal(size=200)
    stretched = np.stack([scores * factor for factor in (0.8, 0.9, 1.0, 1.1, 1.2)])
    found = lowest_rows_stability(stretched, 0.1)
    assert found.expected > 0.99
    assert found.lower == 1.0


def test_the_members_that_would_be_needed_are_about_those_that_suffice() -> None:
    members, _ = simulated(np.random.default_rng(2), 600, 1000, 0.5)
    needed = members_needed(20, lowest_rows_stability(members[:20], 0.1).lower, 0.85)
    assert 40 < needed < 600
    assert abs(lowest_rows_stability(members[:needed], 0.1).lower - 0.85) < 0.06


# ---- the decision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "stability"), [(0.25, 0.5), (0.25, 0.6), (0.5, 0.7)])
def test_members_are_added_until_the_criterion_is_met(share: float, stability: float, bench: Bench) -> None:
    expected = criterion(bench, examples(), share, stability)
    job = bench.job(spec=spec(share=share, stability=stability))
    table = score(job)
    assert 3 <= expected < 20
    assert (decided(table)["members"], decided(table)["stable"]) == (expected, True)
    fixed = score(bench.job(store=None, spec=spec(members=expected)))
    assert np.array_equal(column(table), column(fixed))
    assert np.array_equal(column(table, "score_std"), column(fixed, "score_std"))
    assert isinstance(job.listener, Heard)
    (note,) = [note for note in job.listener.notes if f"{expected} members, decided on {N} rows" in note]
    assert "of these rows now" not in note
    assert not any("maximum" in text for text in job.listener.warnings)


def test_no_pass_is_run_for_members_that_are_not_needed(bench: Bench) -> None:
    computed = fill(job := bench.job())
    assert computed == N * len(job.members_of["ip-ensemble"]) < 20 * N
    assert fill(bench.job()) == 0


@pytest.mark.parametrize("how", [{"batch_size": 3}, {"shard_rows": 4}, {"workers": 3}], ids=str)
def test_a_decision_does_not_depend_on_how_it_is_computed(how: dict[str, int], bench: Bench) -> None:
    ours = decided(score(bench.job()))
    theirs = decided(score(bench.job(store="other", **how)))
    assert (ours["members"], ours["name"]) == (theirs["members"], theirs["name"])


def test_a_decision_does_not_depend_on_the_order_names_or_copies_of_rows(bench: Bench) -> None:
    fill(bench.job())
    order = np.random.default_rng(3).permutation(len(examples()))
    rows = [dataclasses.replace(examples()[k], id=f"renamed-{k}") for k in order]
    rows += [dataclasses.replace(r, id=f"again-{r.id}") for r in examples()[:9]]
    fill(bench.job(rows, "other"))
    assert bench.decisions() == bench.decisions("other")


def test_what_a_smaller_or_a_killed_run_left_is_used_and_changes_nothing(bench: Bench) -> None:
    fill(whole := bench.job(store="other"))
    fill(bench.job(spec=spec(members=2)))
    computed = fill(job := bench.job())
    assert computed == N * (len(job.members_of["ip-ensemble"]) - 2)
    assert job.ensembles["ip-ensemble"].decided == whole.ensembles["ip-ensemble"].decided


# ---- and what it is kept for ---------------------------------------------------------------------------------------


def test_appended_rows_are_the_only_rows_computed(bench: Bench) -> None:
    members = decided(score(bench.job()))["members"]
    before = bench.decisions()
    grown = examples() + [Example(f"new{k}", draw_features(500 + k), k % 3) for k in range(2)]
    job = bench.job(grown)
    assert describe_plan(job, missing_work(job))["rows_to_compute"] == 2 * members  # type: ignore[operator]
    assert fill(job) == 2 * members  # type: ignore[operator]
    assert bench.decisions() == before
    assert isinstance(job.listener, Heard)
    assert any("decided on 40 rows" in note and "of these rows now" in note for note in job.listener.notes)
    assert same_scores(score(job), score(bench.job(grown, None, spec=spec(members=members))))


@pytest.mark.parametrize(
    "other", [{"stability": 0.4}, {"share": 0.5}, {"max_members": 19}, {"p_max": 0.2}, {"seed": 5}], ids=str
)
def test_other_options_make_a_decision_of_their_own(other: dict[str, object], bench: Bench) -> None:
    fill(bench.job())
    (first,) = bench.decisions()
    fill(bench.job(spec=spec(**other)))
    assert len(bench.decisions()) == 2
    assert first in bench.decisions()


def test_other_target_rows_make_a_decision_of_their_own(bench: Bench) -> None:
    fill(bench.job())
    rows = [*examples(), Example("one-more-target", draw_features(3000), 1, "val")]
    job = bench.job(rows)
    assert describe_plan(job, missing_work(job))["members"]["ip-ensemble"]["decided"] is None
    fill(job)
    assert len(bench.decisions()) == 2


def test_the_plan_has_the_most_members_until_their_number_is_decided(bench: Bench) -> None:
    job = bench.job()
    before = describe_plan(job, missing_work(job))
    assert before["members"]["ip-ensemble"] == {"decided": None, "least": 3, "most": 20}
    assert (len(before["steps"]), before["rows_to_compute"]) == (20, 20 * N)
    fill(bench.job())
    job = bench.job()
    after = describe_plan(job, missing_work(job))
    count = after["members"]["ip-ensemble"]["decided"]
    assert (len(after["steps"]), after["rows_to_compute"]) == (count, 0)
    assert 3 <= count < 20


def test_the_maximum_is_said(bench: Bench) -> None:
    job = bench.job(spec=spec(stability=0.999, max_members=4))
    facts = decided(score(job))
    assert (facts["members"], facts["stable"]) == (4, False)
    assert isinstance(job.listener, Heard)
    (warning,) = [text for text in job.listener.warnings if "maximum of 4 members" in text]
    assert "max_members=N" in warning
    again = bench.job(spec=spec(stability=0.999, max_members=4))
    fill(again)
    assert isinstance(again.listener, Heard)
    assert warning in again.listener.warnings


def test_without_dropout_the_fewest_members_are_ip_in_one_pass(bench: Bench) -> None:
    job = bench.job(spec=spec(p_max=0.0))
    assert fill(job) == N
    assert len(job.members_of["ip-ensemble"]) == 3
    assert np.array_equal(column(score(job)), column(score(bench.job(store=None, spec=GradSpec(("ip",))))))


def test_provenance_carries_the_number_to_another_store(bench: Bench, tabular: Path) -> None:
    flags = [f"--set=ip-ensemble.{key}={value}" for key, value in AUTO.items()]
    asked = [tabular, "--checkpoint", bench.run, "--method", "ip-ensemble", *flags]
    ran = call_cli("grads", *asked, "--store", "first", "-o", "grads.parquet", cwd=bench.folder)
    assert ran.code == 0, ran.err
    assert "members, decided on 40 rows" in ran.err
    ran = call_cli("score", "grads.parquet", "--store", "second", "-o", "scores.jsonl", cwd=bench.folder)
    assert ran.code == 0, ran.err
    assert not (bench.folder / "second" / "decisions").exists()
    ran = call_cli("score", *asked, "--store", "first", "-o", "direct.jsonl", cwd=bench.folder)
    assert ran.code == 0, ran.err
    carried, direct = (
        [json.loads(line) for line in (bench.folder / name).read_text().splitlines()]
        for name in ("scores.jsonl", "direct.jsonl")
    )
    assert [r["score"] for r in carried] == pytest.approx([r["score"] for r in direct], rel=1e-6)
    planned = call_cli("score", *asked, "--store", "first", "--dry-run", cwd=bench.folder)
    assert planned.json["members"]["ip-ensemble"]["decided"] == provenance_of(bench.folder / "grads.parquet")["members"]
    planned = call_cli("score", *asked, "--store", "first", "--dry-run", "--format", "table", cwd=bench.folder)
    assert "as decided before" in planned.err


@pytest.mark.parametrize("how", ["cut", "swapped"])
def test_a_damaged_decision_is_set_aside_and_made_again(how: str, bench: Bench) -> None:
    fill(bench.job())
    (file,) = (bench.folder / "store" / "decisions").glob("*.safetensors")
    whole = file.read_bytes()
    if how == "cut":
        file.write_bytes(whole[:-40])
    else:
        fill(bench.job(store="other", spec=spec(seed=9)))
        (other,) = bench.decisions("other").values()
        file.write_bytes(other)
    job = bench.job()
    assert fill(job) == 0
    assert isinstance(job.listener, Heard)
    assert how == "cut" or any("damaged" in text for text in job.listener.warnings)
    assert job.ensembles["ip-ensemble"].decided is not None
    if how == "swapped":
        assert file.read_bytes() == whole


def test_the_store_knows_its_decisions(bench: Bench) -> None:
    fill(bench.job())
    root = bench.folder / "store"
    (entry,) = [e for e in list_entries(root) if e.kind == "decisions"]
    assert (entry.rows, entry.about.split(",")[0]) == (N, "ip-ensemble")
    (file,) = (root / "decisions").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3] + b"xyz")
    assert str(file) in verify(root)[1][0]


def test_a_decision_of_another_run_made_meanwhile_stands(bench: Bench) -> None:
    fill(bench.job(store="other", spec=spec()))
    (name,) = bench.decisions("other")
    job = bench.job()
    meta = job.store.decisions.meta(Path(name).stem)
    assert meta is None
    theirs = {
        "method": "ip-ensemble",
        "members": 11,
        "stable": True,
        "rows": 7,
        "row_set": "",
        "share": 0.25,
        "stability": 0.5,
    }
    theirs |= {"least": 3, "most": 20, "expected": 0.9, "lower": 0.8}
    job.store.keep_decision(Path(name).stem, theirs, {"members": np.array([11])})
    assert decided(score(job))["members"] == 11
    assert len(job.members_of["ip-ensemble"]) == 11


def test_a_value_of_the_wrong_type_is_refused_with_the_usual_one() -> None:
    with pytest.raises(UsageError, match=r"auto\.neighbours='x' is not a whole number") as caught:
        make_methods(GradSpec(("auto",), options={"auto": {"neighbours": "x"}}))
    assert "--set auto.neighbours=50" in caught.value.fix


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": "many"}, "'many' is not a whole number or auto"),
        ({"members": "auto", "max_members": 2}, "max_members=2 is below 3"),
        ({"members": "auto", "share": 0}, "share=0.0 is not between 0 and 1"),
        ({"members": "auto", "stability": 1}, "stability=1.0 is not between 0 and 1"),
    ],
    ids=str,
)
def test_options_that_cannot_be_met_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_methods(GradSpec(("ip-ensemble",), options={"ip-ensemble": options}))
