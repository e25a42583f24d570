"""Rates of plans: batches after the first, of enough rows; small samples neither replace large ones nor are measured.

python -m pytest tests/stages/run/test_rates.py
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from influence_cli.model.build import build_model
from influence_cli.settings import GradSpec
from influence_cli.stages.run import estimate_curvature
from influence_cli.stages.run.estimate_curvature import curvature_rates
from influence_cli.stages.run.plan import describe_plan, missing_work
from influence_cli.stages.run.rates import ENOUGH_ROWS, Stopwatch, is_measured, known_rates, pass_key, remember_rate
from influence_cli.store import Store
from tests.cases import call_cli, examples, feature_table, job_of, train_run, write


@pytest.fixture
def session(tmp_path: Path) -> Any:
    return SimpleNamespace(store=Store(tmp_path / "store"), timed=0.0)


def test_the_first_batch_is_apart(session: Any) -> None:
    watch = Stopwatch([(256, 5.0), (256, 0.5), (488, 1.0)])
    watch.remember(session, "k")
    assert session.store.timing("k") == pytest.approx(1.5 / 744)
    assert is_measured(session, "k")


def test_few_rows_are_not_measured_unless_they_took_long(session: Any) -> None:
    remember_rate(session, "short", 15, 0.4)
    remember_rate(session, "long", 15, 4.0)
    Stopwatch([(1000, 0.3)]).remember(session, "first batch alone")
    assert [is_measured(session, k) for k in ("short", "long", "first batch alone", "never")] == [
        False,
        True,
        False,
        False,
    ]
    session.store.write_timing("earlier version", 0.1)
    assert not is_measured(session, "earlier version")


def test_a_small_sample_replaces_no_large_one(session: Any) -> None:
    remember_rate(session, "k", 5000, 5.0)
    remember_rate(session, "k", 15, 1.5)
    assert session.store.timing("k") == pytest.approx(1e-3)
    remember_rate(session, "k", ENOUGH_ROWS, 0.512)
    assert session.store.timing("k") == pytest.approx(2e-3)  # the newest of enough rows


def test_a_plan_after_a_run_of_few_rows_is_estimated_and_after_one_of_many_measured(tmp_path: Path) -> None:
    manifest = write(feature_table(examples(40)), tmp_path / "m.parquet")
    run = train_run(manifest, tmp_path / "RUN")
    job = job_of(manifest, run, tmp_path / "store")
    remember_rate(job.session, pass_key(job.run, job.session, "tangents"), 15, 15.0 / 10)
    remember_rate(job.session, pass_key(job.run, job.session, "target"), 15, 15.0 / 10)
    assert known_rates(job.run, job.session) == {}
    work = missing_work(job.run, job.session)
    assert describe_plan(job.run, job.session, work)["seconds_are"] == "estimated"
    own = {"tangents": 0.01, "target": 0.02}
    assert describe_plan(job.run, job.session, work, own)["seconds"] == pytest.approx(40 * 0.01 + 12 * 0.02, abs=0.05)
    for kind, rate in (("tangents", 0.1), ("target", 0.2)):
        remember_rate(job.session, pass_key(job.run, job.session, kind), 300, 300 * rate)
    described = describe_plan(job.run, job.session, work, own)
    assert described["seconds_are"] == "measured"
    assert described["seconds"] == pytest.approx(40 * 0.1 + 12 * 0.2, abs=0.05)


def test_a_start_that_was_measured_is_in_the_total(tmp_path: Path) -> None:
    from influence_cli.stages.run.rates import start_key

    manifest = write(feature_table(examples(40)), tmp_path / "m.parquet")
    job = job_of(manifest, train_run(manifest, tmp_path / "RUN"), tmp_path / "store")
    own, work = {"tangents": 0.01, "target": 0.02}, missing_work(job.run, job.session)
    before = describe_plan(job.run, job.session, work, own)["seconds"]
    job.store.write_timing(start_key(job.run, job.session), 7.0, 256)
    after = describe_plan(job.run, job.session, work, own)
    assert (after["start_seconds"], after["seconds"]) == (7.0, pytest.approx(before + 7.0))


def test_a_plan_by_target_row_is_near_what_it_takes(tmp_path: Path) -> None:
    write(feature_table(examples(300, 40, 10)), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "RUN")
    asked = ["score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "--per-target"]
    planned = call_cli(*asked, "-n", "--json", cwd=tmp_path).json
    assert planned["seconds_are"] == "estimated"
    assert planned["seconds"] < 20  # of a tenth of a second: a call's own cost is not the rows'


def test_what_is_set_up_once_is_no_part_of_a_rate(session: Any) -> None:
    Stopwatch([(256, 5.0), (256, 0.5), (488, 1.0)]).remember(session, "k")
    assert session.timed == pytest.approx(1000 * 1.5 / 744)  # the other seconds of the first batch are the start's
    Stopwatch([(100, 3.0)]).remember(session, "a first batch alone")
    assert session.timed == pytest.approx(1000 * 1.5 / 744)


def test_curvature_is_estimated_from_some_of_its_passes_and_what_it_takes_whatever_the_rows(tmp_path: Path) -> None:
    manifest = write(feature_table(examples(40)), tmp_path / "m.parquet")
    run = train_run(manifest, tmp_path / "RUN", "mlp:4")
    methods = ("exact", "cg", "lissa", "arnoldi", "ekfac", "datainf")
    job = job_of(manifest, run, tmp_path / "store", spec=GradSpec(methods=methods))
    work = missing_work(job.run, job.session)
    known = {"tangents": 0.0, "target": 0.0, "fit ekfac": 0.01, "fixed ekfac": 30.0, "solve cg": 0.001, "outputs": 0.0}
    described = describe_plan(job.run, job.session, work, known)
    (step,) = described["steps"]
    fits, solves = ({part["method"]: part for part in step[kind]} for kind in ("fits", "solves"))
    assert fits["ekfac"]["seconds"] == pytest.approx(40 * 2 * 0.01 + 30.0)
    assert solves["cg"]["seconds"] == pytest.approx(40 * solves["cg"]["passes"] * 0.001, abs=0.05)
    assert described["seconds"] == pytest.approx(fits["ekfac"]["seconds"] + solves["cg"]["seconds"], abs=0.1)
    rates, setups = curvature_rates(job.run, job.session, build_model(job.run.model).eval(), work)
    assert setups > 0.0
    assert set(rates) == {
        *(f"{kind} {name}" for name in fits for kind in ("fit", "fixed")),
        *(f"solve {name}" for name in ("cg", "lissa", "datainf")),
    }
    assert all(rate > 0.0 for rate in rates.values())


def test_a_decomposition_grows_with_the_cube_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(sizes: list[int]) -> float:
        taken = iter([0.0, 2.0])
        monkeypatch.setattr(estimate_curvature.time, "perf_counter", lambda: next(taken))
        method = SimpleNamespace(decomposed=lambda _: sizes, decompose=lambda _: None)
        return estimate_curvature._decompositions(cast(Any, method), cast(Any, None))

    assert seconds([512]) == 2.0
    assert seconds([1024, 512]) == 2.0 * 8 + 2.0
    assert seconds([10, 20]) == pytest.approx(2.0 + 2.0 / 8)
    assert seconds([]) == 0.0
