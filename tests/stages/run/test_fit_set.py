"""The fit set under the memo law: what refits curvature, what does not, what the plan says, and who shares a factor.

Rows appended, deleted, relabelled or given another weight make another fit set, so a new factor and new tangents along
u; rows renamed or reordered make none.  ``--fit-rows`` pins it.  Cold, warm, killed and grown: the same scores.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influence_cli.curvature.curvature import Curvature
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.methods.exact import Exact
from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from influence_cli.stages.run.fit_set import FitSet
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import (
    Example,
    Heard,
    Ran,
    call_cli,
    column,
    examples,
    feature_table,
    job_of,
    run_python,
    same_scores,
    so_many,
    verify,
    with_column,
    write,
)
from tests.cli.test_cli import WITHOUT_TORCH
from tests.forked import run_forked
from tests.opened import Opened, describe_plan, fill, missing_work, opened, score
from tests.oracle import save_checkpoint, write_manifest
from tests.stages.grads.test_memo import (
    STEP,
    Bench,
    append,
    delete,
    duplicate,
    edited,
    relabel,
    rename,
    reorder,
    swap_payloads,
    with_unique_ids,
)

N = 40
EXACT = GradSpec(("exact",), options={"exact": {"damping": 0.01}}, precision="fp64")
BOTH = dataclasses.replace(EXACT, methods=("ip", "exact"))


@pytest.fixture
def bench(tmp_path: Path, tabular_run: Path) -> Bench:
    return Bench(tmp_path, tabular_run)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every dense matrix that is fitted from now on."""
    rows: list[int] = []
    dense = Curvature.dense

    def counted(self: Curvature, kind: Any) -> Any:
        rows.append(len(self.rows))
        return dense(self, kind)

    monkeypatch.setattr(Curvature, "dense", counted)
    return rows


def factors(store: Path) -> list[Path]:
    return sorted(p for p in (store / "factors").glob("*.safetensors") if not p.name.startswith("."))


# ---- what refits and what does not ---------------------------------------------------------------------------------


REFITS = {append: (7, 0), delete: (0, 5), relabel: (3, 3), duplicate: (7, 0)}


@pytest.mark.parametrize("edit", list(REFITS), ids=lambda e: e.__name__)
def test_other_train_rows_refit_and_recompute_every_tangent_and_the_plan_says_so(
    edit: Callable[[list[Example]], tuple[list[Example], int]], bench: Bench, fitted: list[int]
) -> None:
    bench.warm(examples(), spec=EXACT)
    rows, _ = edit(examples())
    job = job_of(bench.manifest(rows), bench.run, bench.store, spec=EXACT)
    (step,) = describe_plan(job, missing_work(job))["steps"]
    (fit,) = step["fits"]
    train = [r for r in rows if r.split == "train"]
    new, gone = REFITS[edit]
    assert (fit["method"], fit["rows"], fit["passes"]) == ("exact", len(train), 1)
    assert fit["why"].startswith(
        f"its fit set has changed: {new} rows are not those of the stored factor, {gone} of its rows are gone"
    )
    assert fit["why"] in step["why"]
    assert step["rows_to_compute"] == len({r.features for r in train})
    assert step["target_rows_to_pass"] == 0
    computed, warm = bench.warm(rows, spec=EXACT)
    assert computed == step["rows_to_compute"]
    assert fitted == [N, len(train)]
    assert abs(fit["bytes"] - factors(bench.store)[-1].stat().st_size) < 4000  # header and alignment
    assert same_scores(warm, bench.cold(rows, spec=EXACT), 1e-9)
    assert bench.warm(rows, spec=EXACT)[0] == 0
    assert bench.warm(examples(), spec=EXACT)[0] == 0  # the first factor and its tangents are still there


@pytest.mark.parametrize("edit", [rename, reorder, swap_payloads], ids=lambda e: e.__name__)
def test_renamed_and_reordered_rows_compute_nothing(
    edit: Callable[[list[Example]], tuple[list[Example], int]], bench: Bench, fitted: list[int]
) -> None:
    assert examples()[0].label == examples()[1].label  # the two whose payloads are swapped: so they trade ids alone
    _, before = bench.warm(examples(), spec=EXACT)
    rows, _ = edit(examples())
    computed, after = bench.warm(rows, spec=EXACT)
    assert (computed, fitted) == (0, [N])
    assert sorted(column(after)) == sorted(column(before))
    assert same_scores(after, bench.cold(rows, spec=EXACT), 1e-9)


def weighted(bench: Bench, weights: list[float], name: str) -> Path:
    return write(feature_table(examples(), weight=pa.array(weights)), bench.folder / name)


def test_a_weight_changes_the_fit_set_and_a_row_of_weight_zero_is_not_in_it(bench: Bench, fitted: list[int]) -> None:
    plain, ones = bench.manifest(examples()), weighted(bench, [1.0] * 64, "ones.parquet")
    heavy = weighted(bench, [3.0] + [1.0] * 63, "heavy.parquet")
    none = weighted(bench, [0.0] + [1.0] * 63, "none.parquet")
    for path, rows in ((plain, [N]), (ones, [N]), (heavy, [N, N]), (none, [N, N, N - 1])):
        fill(job_of(path, bench.run, bench.store, spec=EXACT))
        assert fitted == rows
    without = [r for r in examples() if r.id != "r000"]
    deleted = score(job_of(bench.manifest(without), bench.run, bench.store, spec=EXACT))
    assert fitted == [N, N, N - 1]  # deleting the row of weight 0 fits nothing
    kept = column(score(job_of(none, bench.run, bench.store, spec=EXACT)))[1:]
    assert np.array_equal(column(deleted), kept)
    heavier = column(score(job_of(heavy, bench.run, bench.store, spec=EXACT)), "effect")
    table = score(job_of(heavy, bench.run, None, spec=EXACT))
    assert provenance(table.schema)["fit_rows"]["weight"] == 42.0
    assert np.allclose(heavier, column(table) / 42.0, rtol=1e-9)
    assert not np.allclose(heavier, column(score(job_of(ones, bench.run, None, spec=EXACT)), "effect"), rtol=1e-3)


def test_repeated_rows_count_as_often_as_they_stand(bench: Bench) -> None:
    rows = examples()
    twice = [*rows, dataclasses.replace(rows[0], id="again")]
    thrice = [*twice, dataclasses.replace(rows[0], id="once more")]
    sets = [FitSet.of(open_manifest(bench.manifest(r)).rows("train"), None) for r in (rows, twice, thrice)]
    assert len({s.fingerprint for s in sets}) == 3
    assert sets[0].differs_from(sets[2].keys) == (0, 2)
    assert sets[2].differs_from(sets[1].keys) == (1, 0)
    assert sets[1].differs_from(sets[1].keys) == (0, 0)


def test_other_target_rows_make_a_new_direction_from_the_stored_factor(bench: Bench, fitted: list[int]) -> None:
    bench.warm(examples(), spec=EXACT)
    rows = [*examples(), Example("one-more-target", tuple(np.float32([1, 2, 3, 4, 5]).tolist()), 1, "val")]
    job = job_of(bench.manifest(rows), bench.run, bench.store, spec=EXACT)
    (step,) = describe_plan(job, missing_work(job))["steps"]
    assert (step["fits"], step["rows_to_compute"], step["target_rows_to_pass"]) == ([], N, 13)
    computed, warm = bench.warm(rows, spec=EXACT)
    assert (computed, fitted) == (N, [N])
    assert same_scores(warm, bench.cold(rows, spec=EXACT), 1e-9)


def test_another_damping_solves_from_the_stored_factor_and_a_limit_computes_nothing(
    bench: Bench, fitted: list[int]
) -> None:
    bench.warm(examples(), spec=EXACT)
    limit = dataclasses.replace(EXACT, options={"exact": {"damping": 0.01, "max_parameters": 4000}})
    assert bench.warm(examples(), spec=limit)[0] == 0
    fisher = dataclasses.replace(EXACT, options={"exact": {"damping": 0.5, "mode": "fisher"}})
    job = job_of(bench.manifest(examples()), bench.run, bench.store, spec=fisher)
    (step,) = describe_plan(job, missing_work(job))["steps"]
    assert step["fits"] == []
    assert "preconditioned" in step["why"]
    assert bench.warm(examples(), spec=fisher)[0] == N
    assert fitted == [N]
    empirical = dataclasses.replace(EXACT, options={"exact": {"mode": "emp"}})
    assert bench.warm(examples(), spec=empirical)[0] == N
    assert fitted == [N, N]


def test_methods_share_a_pass_and_a_direction(bench: Bench, fitted: list[int]) -> None:
    computed, both = bench.warm(examples(), spec=BOTH)
    assert (computed, fitted) == (N, [N])
    assert bench.warm(examples(), spec=dataclasses.replace(EXACT, methods=("ip",)))[0] == 0
    computed, alone = bench.warm(examples(), spec=EXACT)
    assert computed == N  # the half direction is that of score's own method
    assert fitted == [N]
    assert np.array_equal(column(alone), column(both, "score_exact_utility"))
    assert same_scores(alone, bench.cold(examples(), spec=EXACT), 1e-9)


# ---- who may use a factor ------------------------------------------------------------------------------------------


def test_a_factor_is_never_used_for_another_model_selection_or_precision(
    bench: Bench, tabular: Path, fitted: list[int]
) -> None:
    from tests.cases import train_run

    bench.warm(examples(), spec=EXACT)
    bench.warm(examples(), spec=dataclasses.replace(EXACT, params="last"))
    bench.warm(examples(), spec=dataclasses.replace(EXACT, precision="fp32"))
    other = train_run(tabular, bench.folder / "other", "mlp:4", seed=1)
    dataclasses.replace(bench, run=other, written=10).warm(examples(), spec=EXACT)
    assert fitted == [N] * 4
    assert len(factors(bench.store)) == 4


def test_a_factor_under_another_name_is_set_aside(bench: Bench, fitted: list[int]) -> None:
    _, before = bench.warm(examples(), spec=EXACT)
    rows, _ = delete(examples())
    bench.warm(rows, spec=EXACT)
    job = job_of(bench.manifest(examples()), bench.run, bench.store, spec=EXACT)
    mine = bench.store / "factors" / f"{job.factor('exact', job.members[0])}.safetensors"
    (other,) = [p for p in factors(bench.store) if p != mine]
    shutil.copy(other, mine)
    shutil.rmtree(bench.store / "directions")
    shutil.rmtree(bench.store / "tangents")
    heard = Heard()
    computed, after = bench.warm(examples(), spec=EXACT, listener=heard)
    assert (computed, fitted[2:]) == (N, [N])
    assert any("it is a file of" in w for w in heard.warnings)
    assert np.array_equal(column(after), column(before))


@pytest.mark.parametrize("hurt", ["values", "header", "truncated"])
def test_a_damaged_factor_is_named_set_aside_and_fitted_again(hurt: str, bench: Bench, fitted: list[int]) -> None:
    _, before = bench.warm(examples(), spec=EXACT)
    (file,) = factors(bench.store)
    raw = bytearray(file.read_bytes())
    raw[{"values": len(raw) - 40, "header": 60, "truncated": 0}[hurt]] ^= 1
    file.write_bytes(raw[: len(raw) // 2] if hurt == "truncated" else raw)
    shutil.rmtree(bench.store / "tangents")
    assert bench.warm(examples(), spec=EXACT)[0] == N  # u is stored, so the factor is not needed
    assert fitted == [N]
    for part in ("tangents", "directions"):
        shutil.rmtree(bench.store / part)
    heard = Heard()
    computed, after = bench.warm(examples(), spec=EXACT, listener=heard)
    assert (computed, fitted) == (N, [N, N])
    assert any(str(file) in w and "set aside" in w for w in heard.warnings)
    assert (file.parent / f".damaged-{file.name}").exists()
    assert np.array_equal(column(after), column(before))


@pytest.mark.parametrize("lost", ["directions", "factors", "tangents", "outputs"])
def test_any_part_of_the_store_may_be_lost(lost: str, bench: Bench) -> None:
    _, before = bench.warm(examples(), spec=EXACT)
    shutil.rmtree(bench.store / lost)
    computed, after = bench.warm(examples(), spec=EXACT)
    assert computed == (0 if lost in ("directions", "factors") else N)
    assert np.array_equal(column(after), column(before))


@pytest.mark.parametrize("which", ["q", "u", "half q", "half u"])
def test_a_direction_that_is_damaged_is_made_again(which: str, bench: Bench) -> None:
    _, before = bench.warm(examples(), spec=EXACT)
    job = job_of(bench.manifest(examples()), bench.run, bench.store, spec=EXACT)
    (member,) = job.members
    half = which.startswith("half")
    names = {"q": job.direction(member, "utility", half), "u": job.along("exact", member, "utility", half)}
    file = bench.store / "directions" / f"{names[which[-1]]}.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    rows, _ = append(examples())
    _, after = bench.warm(rows, spec=EXACT)
    assert same_scores(after, bench.cold(rows, spec=EXACT), 1e-9)
    shutil.rmtree(bench.store / "tangents")
    file.write_bytes(raw)
    # the solver adds up in an order that goes by where its memory lies: made again, a direction differs by rounding
    assert same_scores(bench.warm(examples(), spec=EXACT)[1], before, 1e-12)


def test_a_target_too_small_to_be_halved_has_no_reliability_and_scores(bench: Bench) -> None:
    rows = [r for r in examples() if r.split == "train"] + [r for r in examples() if r.split == "val"][:1]
    computed, table = bench.warm(rows, spec=EXACT)
    assert computed == N
    assert provenance(table.schema)["noise"]["utility"]["reliability"] is None
    assert np.isfinite(column(table)).all()
    assert bench.warm(rows, spec=EXACT)[0] == 0


# ---- interrupted ---------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[], None]:
    def stop() -> None:
        raise error

    return stop


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("lost")], ids=["Ctrl-C", "crash"])
def test_a_run_interrupted_while_it_fits_loses_only_the_factor(error: BaseException, bench: Bench) -> None:
    heard = Heard(raising(error), 2, "curvature")
    with pytest.raises(type(error)):
        bench.warm(examples(), spec=EXACT, batch_size=7, listener=heard)
    kept = sorted(p.parent.name for p in bench.store.rglob("*.safetensors"))
    assert kept == ["directions", "directions"]  # q, and that of half the target
    job = job_of(bench.manifest(examples()), bench.run, bench.store, spec=EXACT)
    (step,) = describe_plan(job, missing_work(job))["steps"]
    assert (step["target_rows_to_pass"], len(step["fits"])) == (0, 1)
    computed, after = bench.warm(examples(), spec=EXACT)
    assert computed == N
    assert same_scores(after, bench.cold(examples(), spec=EXACT), 1e-9)


KILL = """
import os, signal, sys
from pathlib import Path
from tests.opened import fill
from tests.cases import Heard, job_of
from tests.stages.run.test_fit_set import EXACT

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def after(count, function):
    left = [count]
    def counted(*given, **named):
        left[0] -= 1
        return die() if left[0] == 0 else function(*given, **named)
    return counted

manifest, run, store, what, count = sys.argv[1:]
if what == "rename":
    os.replace = after(int(count), os.replace)
listener = Heard(die if what == "fit" else None, int(count), "curvature")
fill(job_of(Path(manifest), Path(run), Path(store), spec=EXACT, listener=listener, batch_size=9))
"""


@pytest.mark.parametrize(("what", "count"), [("fit", 3), ("rename", 5)], ids=["while fitting", "while writing it"])
def test_sigkill_while_fitting_loses_only_the_factor(what: str, count: int, bench: Bench) -> None:
    manifest = bench.manifest(examples())
    ran = run_forked(KILL, manifest, bench.run, bench.store, what, count, cwd=bench.folder)
    assert ran.code == -int(signal.SIGKILL), ran.err
    assert factors(bench.store) == []
    assert len(list((bench.store / "directions").glob("[!.]*.safetensors"))) == 2
    computed, after = bench.warm(examples(), spec=EXACT)
    assert computed == N
    assert same_scores(after, bench.cold(examples(), spec=EXACT), 1e-9)


# ---- --fit-rows ----------------------------------------------------------------------------------------------------


def test_pinned_fit_rows_keep_appends_cheap(bench: Bench, fitted: list[int]) -> None:
    accepted = bench.manifest(examples())
    pinned = {"spec": EXACT, "fit_rows": str(accepted)}
    _, before = bench.warm(examples(), spec=EXACT)
    assert bench.warm(examples(), **pinned)[0] == 0  # the same rows, pinned or not
    for edit, new in ((append, 7), (relabel, 0), (delete, 0), (rename, 0)):
        rows, _ = edit(examples())
        computed, warm = bench.warm(rows, **pinned)
        assert (computed, fitted) == (new, [N])
        assert same_scores(warm, bench.cold(rows, **pinned), 1e-9)
        fitted[1:] = []
    rows, _ = append(examples())
    _, after = bench.warm(rows, **pinned)
    assert np.array_equal(column(after)[:N], column(before))
    assert not same_scores(after, bench.cold(rows, spec=EXACT), 1e-3)
    said = provenance(after.schema)["fit_rows"]
    assert (said["locator"], said["rows"], said["weight"]) == (str(accepted), N, 40.0)


def test_only_the_train_rows_of_the_pinning_manifest_are_fitted(bench: Bench) -> None:
    everything = bench.manifest(examples())
    alone = bench.manifest([r for r in examples() if r.split == "train"])
    prints = {
        provenance(bench.cold(examples(), spec=EXACT, fit_rows=str(p)).schema)["fit_rows"]["fingerprint"]
        for p in (everything, alone)
    }
    assert len(prints) == 1


@pytest.mark.parametrize("how", ["no train rows", "weight 0", "class", "names", "width"])
def test_fit_rows_that_cannot_be_fitted_exit_2(how: str, bench: Bench) -> None:
    rows = examples()
    table = feature_table(rows)
    if how == "no train rows":
        table = feature_table([r for r in rows if r.split != "train"])
    elif how == "weight 0":
        table = feature_table(rows, weight=pa.array([0.0] * len(rows)))
    elif how == "class":
        table = with_column(table, "label", pa.array([7, *[r.label for r in rows[1:]]], pa.int64()))
    elif how == "names":
        table = table.replace_schema_metadata({"classes": '["x", "y", "z"]'})
    else:
        table = with_column(table, "features", pa.array([[1.0, 2.0]] * len(rows), pa.list_(pa.float32())))
    path = write(table, bench.folder / "fit.parquet")
    manifest = bench.manifest(rows)
    asked = ["score", manifest, "--checkpoint", bench.run, "--method", "exact", "--fit-rows", path, "-o", "s.parquet"]
    ran = call_cli(*asked, cwd=bench.folder)
    assert ran.code == 2, ran.err
    assert "fit.parquet" in ran.err
    assert "fix: " in ran.err
    assert not (bench.folder / "s.parquet").exists()


@settings(max_examples=so_many(12, 5), deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=1, max_size=4), st.booleans())
def test_any_sequence_of_edits_leaves_warm_equal_to_cold(
    tabular_run: Path, steps: list[tuple[str, int, int | None]], pin: bool
) -> None:
    start = examples(train=14, val=6, test=0)
    rows, target = start[:14], start[14:]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), tabular_run)
        how: dict[str, Any] = {"fit_rows": str(bench.manifest(start))} if pin else {}
        seen: set[tuple[float, ...]] = set()
        for kind, seed, size in steps:
            rows = with_unique_ids(edited(rows, kind, seed))
            now = {r.features for r in rows}
            job = job_of(bench.manifest(rows + target), bench.run, bench.store, spec=EXACT, **how)
            (planned,) = missing_work(job)
            computed, warm = bench.warm(rows + target, spec=EXACT, batch_size=size, shard_rows=size or 1024, **how)
            assert computed == planned.rows
            if pin:
                assert computed == len(now - seen)
            elif planned.fits:
                assert computed == len(now)
            seen |= now
        assert same_scores(warm, bench.cold(rows + target, spec=EXACT, **how), 1e-9)


# ---- through the command line --------------------------------------------------------------------------------------


ASKED = ["--method", "exact", "--set", "damping=0.01", "--precision", "fp64"]


def cli(bench: Bench, *arguments: Any) -> Ran:
    ran = call_cli(*arguments, cwd=bench.folder)
    assert ran.code == 0, ran.err
    return ran


def test_grads_then_score_carry_the_fit_rows_and_notice_when_they_have_changed(bench: Bench) -> None:
    manifest = bench.manifest(examples())
    pin = write(feature_table(examples()[5:]), bench.folder / "pin.parquet")
    run = ["--checkpoint", bench.run]
    cli(bench, "grads", manifest, *run, *ASKED, "--fit-rows", "pin.parquet", "-o", "g.parquet")
    cli(bench, "score", "g.parquet", *run, "-o", "s.parquet")
    origin = provenance(pq.read_schema(bench.folder / "s.parquet"))
    assert origin["fit_rows"]["locator"] == "pin.parquet"
    assert (origin["fit_rows"]["rows"], origin["effect"]) == (35, True)
    table = pq.read_table(bench.folder / "s.parquet")
    assert np.allclose(column(table, "effect"), column(table) / 35, rtol=1e-15)
    write(feature_table([r.relabelled() if k == 9 else r for k, r in enumerate(examples())][5:]), pin)
    changed = call_cli("score", "g.parquet", *run, "-o", "t.parquet", cwd=bench.folder)
    assert changed.code == 2
    assert "the fit rows have changed since the stage before" in changed.err
    assert "pin.parquet" in changed.err
    cli(bench, "score", "g.parquet", *run, "--fit-rows", "pin.parquet", "-o", "t.parquet")
    weights = weighted(bench, [2.0] + [1.0] * 63, "weighted.parquet")
    cli(bench, "grads", weights, *run, *ASKED, "-o", "w.parquet")
    weighted(bench, [4.0] + [1.0] * 63, "weighted.parquet")  # weights are not in the manifest's fingerprint
    again = call_cli("score", "w.parquet", *run, "-o", "t.parquet", cwd=bench.folder)
    assert again.code == 2
    assert "fit rows" in again.err
    cli(bench, "score", "w.parquet", *run, "--manifest", "weighted.parquet", "-o", "t.parquet")


def test_the_plan_lists_what_would_be_fitted_as_json_and_as_a_table(bench: Bench) -> None:
    manifest, rows = bench.manifest(examples()), append(examples())[0]
    run = ["--checkpoint", bench.run, *ASKED]
    planned = cli(bench, "score", manifest, *run, "-n").json
    assert planned["steps"][0]["fits"][0]["why"] == "no factor of this model with these settings is stored"
    assert planned["bytes"] > planned["steps"][0]["fits"][0]["bytes"] > 39 * 39 * 8
    assert not (bench.folder / ".influence").exists()
    cli(bench, "score", manifest, *run, "-o", "s.parquet")
    table = " ".join(
        cli(bench, "score", bench.manifest(rows), *run, "-n", "--format", "table").text.split()
    )  # unwrapped
    assert "curvature to fit" in table
    assert "7 rows are not those of the stored factor" in table
    warm = cli(bench, "score", manifest, *run, "-n").json
    assert (warm["steps"][0]["fits"], warm["rows_to_compute"]) == ([], 0)
    assert planned["steps"][0]["fits"][0]["seconds"] >= 0  # estimated, as nothing was measured yet
    assert planned["seconds_are"] == "estimated"
    assert cli(bench, "score", bench.manifest(rows), *run, "-n").json["steps"][0]["fits"][0]["seconds"] is not None


def test_cold_and_warm_tables_are_the_same_bytes(bench: Bench) -> None:
    manifest = bench.manifest(examples())
    for name in ("cold", "warm"):
        cli(bench, "score", manifest, "--checkpoint", bench.run, *ASKED, "-o", f"{name}.parquet")
    assert (bench.folder / "cold.parquet").read_bytes() == (bench.folder / "warm.parquet").read_bytes()


def test_a_warm_run_loads_no_model_and_says_the_spectrum_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = bench.manifest(examples())
    asked = ["score", manifest, "--checkpoint", bench.run, *ASKED, "-o", "s.parquet"]
    first = cli(bench, *asked).err

    def refuse(*_: object) -> None:
        raise AssertionError("a model was run")

    monkeypatch.setattr("influence_cli.model.build.load_model", refuse)
    monkeypatch.setattr("influence_cli.stages.grads.fill.precondition", refuse)
    lines = [
        [line for line in text.splitlines() if "condition number" in line] for text in (first, cli(bench, *asked).err)
    ]
    assert len(lines[0]) == 1
    assert lines[0] == lines[1]


def test_a_warm_run_imports_no_torch(bench: Bench) -> None:
    asked = ["score", bench.manifest(examples()), "--checkpoint", bench.run, *ASKED, "-o", "s.parquet"]
    cli(bench, *asked)
    ran = run_python(WITHOUT_TORCH, *asked, cwd=bench.folder)
    assert (ran.code, ran.err.splitlines()[-1]) == (0, "no torch")


def test_methods_exact_shows_what_it_is_and_its_options(bench: Bench) -> None:
    (said,) = cli(bench, "methods", "exact", "--json").json["methods"]
    assert (said["kind"], said["effect"]) == ("signed", True)
    assert {o["name"] for o in said["options"]} == {"mode", "damping", "l2", "max_parameters"}
    assert all(o["help"] for o in said["options"])
    assert "exact.max_parameters" in cli(bench, "methods", "exact", "--format", "table").text


# ---- l2 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "expected"), [("sgd", 0.003), ("adamw", 0.0)])
def test_l2_is_what_the_run_folder_was_trained_with(
    optimizer: str, expected: float, bench: Bench, tabular: Path
) -> None:
    run = bench.folder / "run"
    request = RetrainRequest(Inputs(str(tabular), model="linear"), str(run), device="cpu")
    retrain(request, Recipe(epochs=3, optimizer=optimizer, weight_decay=0.003))
    heard = Heard()
    plain = GradSpec(("exact",), precision="fp64")
    table = score(job_of(tabular, run, bench.store, spec=plain, listener=heard))
    assert provenance(table.schema)["curvature"]["exact"]["l2"] == expected
    assert any("adamw" in w and "exact.l2" in w for w in heard.warnings) == (optimizer == "adamw")
    given = dataclasses.replace(plain, options={"exact": {"l2": expected}})
    quiet = Heard()
    assert fill(job_of(tabular, run, bench.store, spec=given, listener=quiet)) == 0  # the same number, the same name
    assert quiet.warnings == []
    file = score(job_of(tabular, run / "model.safetensors", None, spec=plain))
    assert provenance(file.schema)["curvature"]["exact"]["l2"] == 0.0  # a file alone does not say


# ---- the store's keeper --------------------------------------------------------------------------------------------


def test_ls_verify_and_gc_know_factors(bench: Bench) -> None:
    first = bench.manifest(examples())
    _, before = bench.warm(examples(), spec=BOTH)
    rows, _ = append(examples())
    bench.warm(rows, spec=BOTH)
    entries = [e for e in list_entries(bench.store) if e.kind == "factors"]
    assert sorted(e.rows or 0 for e in entries) == [40, 47]
    assert all("dense" in e.about and "ggn" in e.about for e in entries)
    made = [e.about for e in list_entries(bench.store) if e.kind == "directions"]
    assert sum("preconditioned by exact" in about for about in made) == 2
    assert "damaged" not in made
    assert verify(bench.store)[1] == []
    assert collect(bench.store, None)["files_removed"] == 0
    assert len(factors(bench.store)) == 2
    freed = cli(bench, "cache", "gc", "--store", bench.store, "--keep", first).json
    assert freed["files_removed"] == 4  # the factor of the 47 rows, its u, that u's tangents and what they say
    assert len(factors(bench.store)) == 1
    computed, after = bench.warm(examples(), spec=BOTH)
    assert computed == 0
    assert np.array_equal(column(after, "score_exact_utility"), column(before, "score_exact_utility"))
    raw = bytearray(factors(bench.store)[0].read_bytes())
    raw[-1] ^= 1
    factors(bench.store)[0].write_bytes(raw)
    files, damaged = verify(bench.store)
    assert files > 4
    assert ["factors" in d for d in damaged] == [True]
    assert factors(bench.store) == []


# ---- names that stores depend on -------------------------------------------------------------------------------------


def test_members_and_directions_of_methods_without_curvature_keep_their_names(tmp_path: Path) -> None:
    """Literal names: a store that holds them stays valid.

    Those of members are from before there was curvature; those of directions are of revision 2.
    """
    spec = ModelSpec("mlp:3", 2, "features", (2,))
    model = build_model(spec)
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_((torch.arange(p.numel(), dtype=torch.float32).reshape(p.shape) - k) / 8)
    features = (np.arange(20, dtype=np.float32).reshape(10, 2) - 7) / 4
    path = write_manifest(tmp_path / "m.parquet", features, [k % 2 for k in range(10)], ["train"] * 6 + ["val"] * 4)
    checkpoint = save_checkpoint(tmp_path / "c.safetensors", model, spec, torch.float32)

    def run_of(*methods: str) -> Opened:
        asked = GradSpec(methods, options={"ip-ensemble": {"members": 2}})
        return opened(Inputs(str(path), checkpoint=str(checkpoint)), asked, Runtime(str(tmp_path / "s"), "cpu"))

    names = [
        ("f614eac716c1cfd0149d14f4c00afecf", "402e2c578e04c472444c9311fd33a630", "13a07336758bce871ea7b82c1674f30a"),
        ("3ad2b1deddccea2268b698860c0dbb0f", "b54dd71b70d986bc6e7ba453954b6a04", "6e906e474d102cb8c182e3f6b37dd5a7"),
        ("86cd85e443c1f77c83d2794c0e05c4e4", "a38872ab1192c2e62ec68b68a8d69409", "2287c08f7ec98449547391f1ea1f254e"),
    ]
    for job in (run_of("ip", "ip-ensemble"), run_of("ip", "ip-ensemble", "exact")):
        found = [(m.name, job.direction(m, "utility"), job.direction(m, "utility", half=True)) for m in job.members]
        assert found == names
        for m in job.members:
            along = {job.along(name, m, "utility") for name in job.methods_at(m) if name != "exact"}
            assert along == {job.direction(m, "utility")}
    precise = run_of("exact")
    (member,) = precise.members
    assert member.name == names[0][0]
    assert precise.along("exact", member, "utility") not in {n for row in names for n in row}


def test_a_stored_run_of_another_method_is_untouched_by_curvature(bench: Bench) -> None:
    plain = GradSpec(("ip",), precision="fp64")
    bench.warm(examples(), spec=plain)
    files = {p: p.read_bytes() for p in bench.store.rglob("*.safetensors")}
    bench.warm(examples(), spec=EXACT)
    assert {p: p.read_bytes() for p in files} == files
    assert bench.warm(examples(), spec=plain)[0] == 0


def test_what_changes_u_and_what_changes_the_factor_are_told_apart() -> None:
    plain = Exact(damping=0.1, l2=0.0)
    assert plain.describe() == dataclasses.replace(plain, max_parameters=7).describe()
    for change in ({"damping": 0.2}, {"l2": 0.1}, {"mode": "abs"}, {"damping": None}):
        assert dataclasses.replace(plain, **change).describe() != plain.describe()
    assert plain.fitted() == Exact(mode="fisher", l2=1.0).fitted() != Exact(mode="emp").fitted()
