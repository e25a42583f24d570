"""What trackers are told of results: through the seam, and by the trackers themselves where they are installed."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import influence_cli
from influence_cli import loggers
from influence_cli.errors import InfluenceWarning, UsageError
from influence_cli.events import SILENT
from influence_cli.loggers import LOGGERS, LoggerInfo, log_to, open_loggers, results
from influence_cli.loggers.protocol import Logged, LoggedTraining
from influence_cli.loggers.results import as_csv, flat_numbers, plain_parameters, safe_names
from influence_cli.report.text_table import TextTable
from tests.cases import call_cli

SECRET = "hush-0123456789-hush"


class Recorder:
    """A tracker that keeps what it is told; ``fails`` and ``refuses`` make it one that does not work."""

    told: list[Logged] = []  # noqa: RUF012
    fails = refuses = False

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def check(self) -> None:
        if Recorder.refuses:
            raise UsageError("--log recorder: nobody is there", fix="come back later")

    def log(self, logged: Logged) -> str:
        if Recorder.fails:
            raise ConnectionError("the server is gone")
        Recorder.told.append(logged)
        return "memory"


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorder]]:
    monkeypatch.setitem(LOGGERS, "recorder", LoggerInfo(f"{__name__}:Recorder", "json", folder=True))
    Recorder.told, Recorder.fails, Recorder.refuses = [], False, False
    yield Recorder
    Recorder.told = []


TRAIN = {"model": "mlp:4", "raw_features": True, "epochs": 1}
RETRAIN = ("--model", "mlp:4", "--raw-features", "--epochs", "1", "--isolated", "--log", "recorder")


# ---- through the seam ----------------------------------------------------------------------------------------------


def test_retrain_tells_its_request_its_recipe_and_every_arm_and_seed(tabular: Path, tmp_path: Path) -> None:
    compared = ("retrain", tabular, "--against", tabular, *RETRAIN, "-o", "RUN")
    ran = call_cli(*compared, "--seeds", "2", "--report", "page.html", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "logged to recorder: memory" in ran.err
    (logged,) = Recorder.told
    metrics = json.loads((tmp_path / "RUN" / "metrics.json").read_text())
    assert (logged.command, logged.name) == ("retrain", "retrain RUN")
    wanted = {"model": "mlp:4", "against": str(tabular), "epochs": 1, "lr": 0.05, "optimizer": "sgd", "seeds": 2}
    assert {name: logged.parameters[name] for name in wanted} == wanted
    arms = metrics["arms"]
    assert {(t.arm, t.seed) for t in logged.trainings} == {(arm, seed) for arm in arms for seed in (0, 1)}
    for training in logged.trainings:
        measured = arms[training.arm]["seeds"][str(training.seed)]
        assert training.metrics["accuracy"] == measured["accuracy"]
        assert training.metrics["loss"] == measured["loss"]
        assert (tmp_path / "RUN" / "arms" / str(training.parameters["training"])).is_dir()
        assert training.parameters["lr"] == 0.05
    assert logged.metrics["arms/curated/accuracy/mean"] == arms["curated"]["mean"]["accuracy"]["mean"]
    difference = metrics["comparison"]["curated"]["no edit"]["loss"]["mean"]
    assert logged.metrics["comparison/curated/no edit/loss/mean"] == difference
    assert json.loads(logged.files["metrics.json"]) == metrics
    assert logged.files["page.html"] == (tmp_path / "page.html").read_bytes()
    assert any("accuracy" in " ".join(table.header) for table in logged.tables.values())

    assert call_cli(*compared, "--seeds", "3", cwd=tmp_path).code == 0  # two of three seeds are there
    again = Recorder.told[1]
    states = {(t.arm, t.seed): t.parameters["trained"] for t in again.trainings}
    assert {seed for (_, seed), state in states.items() if state == "earlier"} == {0, 1}
    keys = {(t.arm, t.seed): t.key for t in again.trainings}
    assert {(t.arm, t.seed): t.key for t in logged.trainings}.items() <= keys.items()
    assert len(set(keys.values())) == len(keys)


def test_further_draws_of_a_control_are_trainings_of_their_own(tabular: Path, tmp_path: Path) -> None:
    model = {"model": "linear", "optimizer": "lbfgs", "weight_decay": 0.1}
    influence_cli.retrain(tabular, tmp_path / "SCORED", **model)
    scores = influence_cli.score(str(tabular), checkpoint=str(tmp_path / "SCORED"), method="loss", store=None)
    influence_cli.curate(scores, budget="10%", output=str(tmp_path / "clean.parquet"))
    metrics = influence_cli.retrain(
        tmp_path / "clean.parquet", tmp_path / "RUN", against=str(tabular), log="recorder", **model
    )
    (logged,) = Recorder.told
    control = metrics["arms"]["curated: random trim"]
    found = [t for t in logged.trainings if t.arm == "curated: random trim"]
    assert [t.metrics["loss"] for t in found] == [r["loss"] for r in (*control["seeds"].values(), *control["draws"])]
    assert len({t.key for t in found}) == len(found) == 5


def test_evaluate_tells_its_question_and_its_figures(scored: Path, tmp_path: Path) -> None:
    ran = call_cli("evaluate", scored, "--budget", "10%", "-o", "e.json", "--log", "recorder:x", cwd=tmp_path)
    assert ran.code == 0, ran.err
    (logged,) = Recorder.told
    found = json.loads((tmp_path / "e.json").read_text())
    assert logged.parameters == {"scores": str(scored), "budget": "10%"}
    name = next(iter(found["detection"]))
    assert logged.metrics[f"detection/{name}/auc"] == found["detection"][name]["auc"]
    assert json.loads(logged.files["result.json"]) == found
    influence_cli.evaluate(str(scored), budget="10%", log=["recorder:x"])
    assert Recorder.told[1].metrics == logged.metrics
    assert Recorder.told[1].parameters["budget"] == "10%"


def test_a_tracker_that_fails_after_the_training_loses_nothing(tabular: Path, tmp_path: Path) -> None:
    Recorder.fails = True
    command = ("retrain", tabular, *RETRAIN, "-o", "RUN", "--json")
    ran = call_cli(*command, cwd=tmp_path)
    assert ran.code == 2
    assert "the result is not logged to recorder: ConnectionError: the server is gone" in ran.err
    assert "fix: the result is written" in ran.err
    assert json.loads(ran.out) == json.loads((tmp_path / "RUN" / "metrics.json").read_text())
    Recorder.fails = False
    assert call_cli(*command, cwd=tmp_path).code == 0
    assert [t.parameters["trained"] for t in Recorder.told[0].trainings] == ["earlier"]
    Recorder.fails = True
    against = (*command, "--against", tabular, "--require-improvement")
    ran = call_cli(*against, cwd=tmp_path)
    assert ran.code == 1  # the answer goes before
    assert "warning: the result is not logged to recorder" in ran.err
    with pytest.warns(InfluenceWarning, match="not logged to recorder"):
        metrics = influence_cli.retrain(str(tabular), str(tmp_path / "RUN"), log="recorder", **TRAIN)
    assert metrics["arms"]


def test_one_tracker_that_fails_does_not_keep_others_from_being_told() -> None:
    class Broken(Recorder):
        def log(self, logged: Logged) -> str:
            raise OSError("full")

    failures = log_to({"broken": Broken(), "recorder": Recorder()}, Logged("retrain", "r", {}, {}), SILENT)
    assert failures == ["the result is not logged to broken: OSError: full"]
    assert len(Recorder.told) == 1


def test_what_cannot_be_logged_to_is_refused_before_anything_is_trained(tabular: Path, tmp_path: Path) -> None:
    Recorder.refuses = True
    ran = call_cli("retrain", tabular, *RETRAIN, "-o", "RUN", cwd=tmp_path)
    assert (ran.code, (tmp_path / "RUN").exists()) == (2, False)
    assert "nobody is there" in ran.err
    assert call_cli("retrain", tabular, *RETRAIN, "-o", "RUN", "-n", cwd=tmp_path).code == 0  # a plan reaches nobody


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("mlfow", "did you mean 'mlflow'"),
        ("mlflow:here", "takes no folder"),
        ("recorder:", "pass --log recorder:FOLDER"),
        ("recorder", "pass --log recorder:FOLDER"),
        (("recorder:a", "recorder:b"), "given twice"),
        (3, "give log as text or a list of texts"),
    ],
)
def test_a_tracker_that_cannot_be_meant_is_refused(asked: Any, says: str) -> None:
    with pytest.raises(UsageError) as error:
        open_loggers(asked, None)
    assert says in str(error.value)


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
def test_a_missing_package_is_an_error_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A folder of that name, as W&B makes one where it runs, is no package."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *(p for p in sys.path if not (Path(p) / name).is_dir())])
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    with pytest.raises(UsageError) as error:
        open_loggers([name], "x")
    assert f"pip install 'influence-cli[{name}]'" in str(error.value)


def test_every_tracker_has_an_extra_of_its_name() -> None:
    import tomllib

    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for name, info in LOGGERS.items():
        if name != "recorder":
            (requirement,) = extras["optional-dependencies"][name]
            assert requirement.startswith(info.package)


# ---- what is told --------------------------------------------------------------------------------------------------


def test_numbers_are_flat_and_those_of_rows_are_left_out() -> None:
    found = {
        "a": {"x": 1, "good": True, "none": None, "word": "w"},
        "leave_one_out": {"changes": {"r1": 0.5}, "pearson": 0.25},
        "auc_interval": [0.5, None],
        "list": [1, 2],
        "schema_version": 1,
    }
    assert flat_numbers(found) == {
        "a/x": 1.0, "a/good": 1.0, "leave_one_out/pearson": 0.25, "auc_interval/low": 0.5,
    }  # fmt: skip


def test_addresses_are_logged_without_what_opens_them() -> None:
    given = {
        "manifest": f"s3://key:{SECRET}@bucket/train.parquet",
        "test": f"https://x.org/t.parquet?sig={SECRET}",
        "arm": (("a", "p.parquet"), ("b", f"s3://{SECRET}@b/q.parquet")),
        "task": object(),
        "seeds": 2,
    }
    assert plain_parameters(given) == {
        "manifest": "s3://bucket/train.parquet",
        "test": "https://x.org/t.parquet",
        "arm": "a=p.parquet,b=s3://b/q.parquet",
        "seeds": 2,
    }


def test_the_example_of_flat_numbers_is_right() -> None:
    assert doctest.testmod(results).failed == 0


def test_no_name_stands_for_two_metrics() -> None:
    assert safe_names({"a:b": 1, "a;b": 2, "a/b": 3}) == {"a_b": 1, "a_b 2": 2, "a/b": 3}


# ---- the trackers themselves ---------------------------------------------------------------------------------------


def needs(package: str) -> pytest.MarkDecorator:
    found = importlib.util.find_spec(package)
    here = found is not None and found.origin is not None
    return pytest.mark.skipif(not here, reason=f"{package} is not installed: pip install 'influence-cli[{package}]'")


def png() -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(out, "PNG")
    return out.getvalue()


def result() -> Logged:
    """A result with names that no tracker likes, of two trainings."""
    trainings = tuple(
        LoggedTraining(f"{k:032x}", "a/b: <c>", k, {"arm": "a/b: <c>", "seed": k, "lr": 0.1}, {"accuracy": 0.5 + k / 4})
        for k in range(2)
    )
    table = TextTable("arms | <b>", ["arm", "accuracy"], [["a|b", "50 %"], ["<script>", "75 %"]], ["a note"])
    files = {"metrics.json": b"{}", "page.html": b"<p>page</p>", "figures.png": png()}
    metrics = {"arms/a: <c>/accuracy/mean": 0.625, **{f"more/{k}": float(k) for k in range(1200)}}
    parameters = {"against": "x" * 9000, "seeds": 2, **{f"p{k}": k for k in range(150)}}
    return Logged("retrain", "retrain RUN", parameters, metrics, {"01-arms": table}, files, trainings)


def told(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str | None = None) -> None:
    """Tell a tracker twice, as two comparisons of the same trainings do."""
    monkeypatch.chdir(tmp_path)
    for variable in ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, SECRET)
    made = loggers.open_loggers([name], folder)
    for _ in range(2):
        assert log_to(made, result(), SILENT) == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_a_run_of_the_result_and_one_of_every_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    told("mlflow", monkeypatch, tmp_path)
    client = mlflow.MlflowClient()
    runs = client.search_runs(["0"])
    parents = [run for run in runs if "influence.command" in run.data.tags]
    children = [run for run in runs if "influence.training" in run.data.tags]
    assert (len(parents), len(children)) == (2, 2)  # of the second comparison no training is logged again
    first = min(parents, key=lambda run: run.info.start_time)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {first.info.run_id}
    assert {run.info.run_name: run.data.metrics for run in children} == {
        "a/b: <c>, seed 0": {"accuracy": 0.5}, "a/b: <c>, seed 1": {"accuracy": 0.75},
    }  # fmt: skip
    assert first.data.metrics["arms/a_ _c_/accuracy/mean"] == 0.625
    assert len(first.data.metrics) == 1201
    assert len(first.data.params) == 152
    there = {file.path for file in client.list_artifacts(first.info.run_id)}
    assert there == {"metrics.json", "page.html", "figures.png", "tables"}
    place = mlflow.artifacts.download_artifacts(run_id=first.info.run_id, artifact_path="tables/01-arms.csv")
    assert Path(place).read_text() == as_csv(result().tables["01-arms"])


@needs("mlflow")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import mlflow

    (tmp_path / "file").write_text("")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(UsageError, match="cannot reach the tracking store"):
        open_loggers(["mlflow"], None)


@needs("wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_runs_offline_and_asks_nobody_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    told("wandb", monkeypatch, tmp_path)
    names = [path.name.split("-")[-1] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert sorted(name for name in names if len(name) == 32) == [f"{k:032x}" for k in range(2)]
    assert len(names) == 4  # two comparisons, and two trainings once
    (kept,) = (tmp_path / "wandb").glob(f"offline-run-*-{0:032x}/*.wandb")
    assert b"accuracy" in kept.read_bytes()


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_events_of_the_result_and_of_every_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told("tensorboard", monkeypatch, tmp_path, "events")
    place = tmp_path / "events"
    trainings = sorted((place / "arms").glob("*/*/events.out.*"))
    assert [path.parent.name.split()[1] for path in trainings] == ["0", "1"]
    for k, path in enumerate(trainings):
        events = EventAccumulator(str(path.parent)).Reload()
        assert [event.value for event in events.Scalars("accuracy")] == [0.5 + k / 4]
    told_twice = sorted(place.glob("retrain RUN *"))
    assert len(told_twice) == 2
    events = EventAccumulator(str(told_twice[0])).Reload()
    assert events.Scalars("arms/a: <c>/accuracy/mean")[0].value == 0.625
    assert events.Tags()["images"] == ["figures.png"]
    text = events.Tensors("tables/01-arms/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "&lt;script>" in text
    assert "a\\|b" in text
    assert (told_twice[0] / "page.html").read_bytes() == b"<p>page</p>"
    assert os.listdir(place / "arms") == ["a_b_ _c_"]
