"""Several processes come to the scores of one; threads play them, but where torchrun itself is what is tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from influence_cli.data.tables import provenance
from influence_cli.errors import ManifestError
from influence_cli.model.train.recipe import Recipe
from influence_cli.processes.group import Group, Job
from influence_cli.processes.seat import Seat, divides, seat
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.evaluate.counterfactuals import by_processes
from influence_cli.stages.evaluate.counterfactuals.counterfactuals import counterfactuals
from influence_cli.stages.evaluate.request import CounterfactualRequest, Training
from influence_cli.stages.grads import passes, same_run
from influence_cli.stages.grads.same_run import open_ahead
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.score import score
from tests.beside import ThreadGroup, apart, not_of_time, scores_of, together
from tests.cases import call_cli, digits_table, with_column, write
from tests.torchrun import Said, torchrun


class Adds(Job):
    """Every process adds up its units, or fails at one of them."""

    def __init__(self, count: int, bad: int = -1) -> None:
        self.count, self.bad = count, bad

    def part(self, group: Group) -> list[int]:
        own: list[int] = []
        for k in group.units(self.count):
            if k == self.bad:
                raise ManifestError("a row cannot be used", where=f"row {k}", fix="take it out")
            own.append(k)
        return own


def test_every_unit_is_done_once_and_by_whoever_is_free() -> None:
    found, _ = together(3, lambda group: [group.share(Adds(20)), group.share(Adds(7))])
    assert [sorted(k for part in of_job for k in part) for of_job in found] == [list(range(20)), list(range(7))]


def test_an_error_in_any_process_is_the_leaders_and_the_others_wait_for_more() -> None:
    def lead(group: ThreadGroup) -> list[Any]:
        with pytest.raises(ManifestError, match="a row cannot be used") as caught:
            group.share(Adds(500, bad=11))
        assert (caught.value.where, caught.value.fix) == ("row 11", "take it out")
        return group.share(Adds(5))

    found, _ = together(3, lead)
    assert sorted(k for part in found for k in part) == list(range(5))


class Prepares(Job):
    """Others note that they did it, and some cannot."""

    ahead = True

    def part(self, group: Group) -> None:
        group.opened["prepared"] = True
        if group.rank == 2:
            raise ManifestError("not here", where="b.parquet", fix="none")


def test_what_is_announced_is_done_by_the_others_and_what_fails_there_ends_nothing() -> None:
    def lead(group: ThreadGroup) -> list[Any]:
        group.announce(Prepares())
        return group.share(Adds(20))

    found, groups = together(3, lead)
    assert sorted(k for part in found for k in part) == list(range(20))
    assert [group.opened for group in groups] == [{}, {"prepared": True}, {"prepared": True}]
    assert [group.jobs for group in groups] == [2, 2, 2]


def test_a_run_that_was_opened_ahead_is_not_opened_again(
    digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, _ = scores_of(digits, digits_run, tmp_path / "alone", None, ("ip",))
    opened = list[Path]()

    def counted(inputs: Inputs, *more: Any) -> Any:
        opened.append(Path(str(inputs.manifest)))
        return open_run(inputs, *more)

    def lead(group: ThreadGroup) -> pa.Table:
        session = Session.open(Runtime(store=str(tmp_path / "s"), batch_size=16))
        session.group = group
        inputs, spec = Inputs(str(digits), checkpoint=str(digits_run), skip_bad=True), GradSpec(methods=("ip",))
        open_ahead(inputs, spec, session)
        return score(open_run(inputs, spec, session), session)[0]

    monkeypatch.setattr(same_run, "open_run", counted)
    shared, groups = together(3, lead)
    assert apart(alone, shared) <= 1e-6
    assert opened == [digits, digits]  # once in each of the two others
    assert groups[0].jobs > 2


def test_who_a_process_is_comes_from_torchrun_and_each_comes_to_the_same_answer() -> None:
    there = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert seat(there) == Seat(1, 4, 1)
    assert seat({**there, "WORLD_SIZE": "1"}) is None
    assert seat({}) is None
    assert divides(["score", "train.parquet", "-o", "s.parquet"])
    for alone in (["curate", "s.parquet"], ["score", "train.parquet", "-n"], ["score", "--help"], []):
        assert not divides(alone)


@pytest.mark.parametrize("size", [2, 4])
def test_processes_come_to_the_scores_of_one_and_say_what_it_says(
    size: int, digits: Path, digits_run: Path, tmp_path: Path
) -> None:
    methods = ("ip", "self-tracin", "trak")
    alone, heard = scores_of(digits, digits_run, tmp_path / "alone", None, methods)
    (shared, also), groups = together(
        size, lambda group: scores_of(digits, digits_run, tmp_path / "shared", group, methods)
    )
    assert apart(alone, shared) <= 1e-6
    assert not_of_time(also.notes) == not_of_time(heard.notes)
    assert also.warnings == heard.warnings
    assert all(len(group.taken) > group.jobs for group in groups[:2])  # more than one look a job: some found a unit


def test_what_is_stored_is_not_computed_again_by_another_number_of_processes(
    digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, _ = scores_of(digits, digits_run, tmp_path / "s", None, ("ip",))
    monkeypatch.setattr(passes, "loop_over", lambda *_, **__: pytest.fail("a row was run again"))
    (again, _), groups = together(3, lambda group: scores_of(digits, digits_run, tmp_path / "s", group, ("ip",)))
    assert apart(alone, again) == 0.0
    assert groups[0].jobs == 0


def test_rows_that_cannot_be_decoded_are_told_whoever_finds_them(digits_run: Path, tmp_path: Path) -> None:
    table = digits_table()
    images = table.column("image").to_pylist()
    for k in (3, 150):
        images[k] = b"no image"
    field = table.schema.field("image")
    broken = write(
        table.set_column(table.schema.get_field_index("image"), field, pa.array(images, field.type)),
        tmp_path / "b.parquet",
    )
    alone, _ = scores_of(broken, digits_run, tmp_path / "alone", None, ("ip",))
    (shared, _), _ = together(2, lambda group: scores_of(broken, digits_run, tmp_path / "shared", group, ("ip",)))
    assert apart(alone, shared) <= 1e-6
    assert len(shared) == len(table.filter(pa.compute.equal(table.column("split"), "train"))) - 2


def test_curvature_is_summed_up_by_all_and_the_same(
    digits: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ("exact", "ekfac", "datainf", "self-lissa")
    options = {"exact": {"damping": 0.1}}
    alone, heard = scores_of(digits, digits_run, tmp_path / "alone", None, methods, options=options, params="last")
    # no process runs the network in float64: that would be on a copy of it
    monkeypatch.delattr("influence_cli.curvature.curvature.copied")
    (shared, also), _ = together(
        3, lambda g: scores_of(digits, digits_run, tmp_path / "shared", g, methods, options=options, params="last")
    )
    assert apart(alone, shared) <= 1e-6
    assert not_of_time(also.notes) == not_of_time(heard.notes)


def test_products_with_curvature_are_summed_up_by_all(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    options = {"cg": {"damping": 1.0}}
    alone, _ = scores_of(digits, digits_run, tmp_path / "alone", None, ("cg",), options=options, params="last")
    (shared, _), groups = together(
        2, lambda g: scores_of(digits, digits_run, tmp_path / "shared", g, ("cg",), options=options, params="last")
    )
    assert apart(alone, shared) <= 1e-6
    assert groups[0].jobs > 5  # products


@pytest.mark.parametrize("size", [2, 4])
def test_gradients_of_objectives_about_groups_and_of_traks_matrix_are_summed_up_by_all(
    size: int, digits_run: Path, tmp_path: Path
) -> None:
    table = digits_table()
    grouped = write(with_column(table, "group", [f"g{k % 3}" for k in range(len(table))]), tmp_path / "grouped.parquet")
    about = {"objectives": ("utility", "fairness"), "params": "last"}
    alone, heard = scores_of(grouped, digits_run, tmp_path / "alone", None, ("ip", "trak"), **about)
    (shared, also), groups = together(
        size, lambda g: scores_of(grouped, digits_run, tmp_path / "shared", g, ("ip", "trak"), **about)
    )
    assert apart(alone, shared) <= 1e-6
    assert not_of_time(also.notes) == not_of_time(heard.notes)
    noise = [provenance(found.schema)["noise"] for found in (alone, shared)]
    for name, one in noise[0].items():
        assert one["snr"] == pytest.approx(noise[1][name]["snr"], rel=1e-6)
    assert groups[0].jobs >= 4  # of rows' means, of groups, of the matrix, and of the rows' tangents


def test_members_that_are_trained_further_are_walked_by_one_and_their_rows_by_all(
    digits: Path, digits_run: Path, tmp_path: Path
) -> None:
    options = {"gex": {"members": 3, "epochs": 0.5, "rate": 0.01}}
    alone, _ = scores_of(digits, digits_run, tmp_path / "alone", None, ("gex",), options=options, params="last")
    (shared, _), groups = together(
        2, lambda g: scores_of(digits, digits_run, tmp_path / "shared", g, ("gex",), options=options, params="last")
    )
    assert apart(alone, shared) <= 1e-6
    assert groups[0].jobs >= 3  # a pass a member


def test_chains_are_run_by_turn(digits: Path, digits_run: Path, tmp_path: Path) -> None:
    options = {"bif": {"chains": 2, "draws": 4, "burn_in": 2, "damping": 0.5, "step": 2e-5, "nbeta": 10.0}}
    alone, _ = scores_of(digits, digits_run, tmp_path / "alone", None, ("bif",), options=options, params="last")
    (shared, _), groups = together(
        2,
        lambda g: scores_of(digits, digits_run, tmp_path / "shared", g, ("bif",), options=options, params="last"),
    )
    assert apart(alone, shared) <= 1e-6
    assert all(group.taken for group in groups)


def test_trainings_of_evaluate_are_run_by_turn_and_kept_by_whoever_runs_them(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convex = Training({"model": "linear", "optimizer": "lbfgs", "weight_decay": 0.05}, {})

    def measured(store: str, group: Group | None) -> dict[str, Any]:
        monkeypatch.setattr(by_processes, "current", lambda: group)
        return counterfactuals(
            CounterfactualRequest(CurateRequest(str(scored)), convex, lds=4, store=str(tmp_path / store))
        )

    alone = measured("alone", None)
    shared, groups = together(2, lambda group: measured("shared", group))
    assert (shared["trainings_run_now"], shared["trainings_done"]) == (5, 5)
    assert np.allclose(shared["lds"]["measured"], alone["lds"]["measured"], rtol=1e-9)
    assert all(len(group.taken) > 1 for group in groups)
    assert measured("shared", None)["trainings_run_now"] == 0


# ---- torchrun itself ------------------------------------------------------------------------------------------------

SCORE = ("--method", "ip", "--method", "exact", "--params", "last", "--batch-size", "16")
TRAINED = [("mlp:16", 0.1, 1e-5), ("test_resnet", 0.01, 1e-4)]  # model, rate, how near


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, digits: Path, digits_run: Path) -> tuple[Path, dict[str, Said]]:
    """A folder in which two processes of torchrun have scored and trained, and what they said."""
    here = tmp_path_factory.mktemp("launched")
    commands: dict[str, Any] = {
        "score": ("score", digits, "--checkpoint", digits_run, *SCORE, "--store", "s", "-o", "s.parquet")
    }
    for model, lr, _ in TRAINED:
        how = ("--epochs", 3, "--lr", lr, "--batch-size", 32, "--record", "epochs")
        commands[model] = ("retrain", digits, "--model", model, *how, "-o", f"RUN-{model}")
    return here, torchrun(2, commands, here)


def test_torchrun_scores_as_one_process_does_and_says_everything_once(
    launched: tuple[Path, dict[str, Said]], digits: Path, digits_run: Path, tmp_path: Path
) -> None:
    asked = ("score", digits, "--checkpoint", digits_run, *SCORE, "--store", "alone", "-o", "alone.parquet")
    alone = call_cli(*asked, cwd=tmp_path)
    assert alone.code == 0, alone.err
    here, said = launched
    assert apart(pq.read_table(tmp_path / "alone.parquet"), pq.read_table(here / "s.parquet")) <= 1e-6
    assert said["score"].out == ""
    assert said["score"].err.count("200 train rows") == 1  # one leads, and the other is its help


@pytest.mark.parametrize(("model", "lr", "near"), TRAINED)
def test_torchrun_trains_as_one_process_does(
    model: str, lr: float, near: float, launched: tuple[Path, dict[str, Said]], digits: Path, tmp_path: Path
) -> None:
    """Also a network with BatchNorm, which sees the whole of each batch; in it rounding grows with every step."""
    recipe = Recipe(epochs=3, lr=lr, batch_size=32)
    asked = RetrainRequest(Inputs(str(digits), model=model), str(tmp_path / "alone"), device="cpu", record=("epochs",))
    alone = retrain(asked, recipe)
    here, said = launched
    assert said[model].err.count("200 train rows") == 1
    assert "Warning" not in said[model].err
    run = here / f"RUN-{model}"
    shared = json.loads((run / "metrics.json").read_text())
    for name, value in alone["arms"]["all rows"]["seeds"]["0"].items():
        if isinstance(value, float):
            assert shared["arms"]["all rows"]["seeds"]["0"][name] == pytest.approx(value, rel=near)
    (values,) = sorted((tmp_path / "alone" / "epochs").glob("0*.safetensors"))
    for name, of_rows in load_file(values).items():
        found = load_file(run / "epochs" / values.name)[name]
        assert np.allclose(found, of_rows, atol=10 * near), (name, np.abs(found - of_rows).max(axis=0))
