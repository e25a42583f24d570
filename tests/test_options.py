"""Arguments from Python: unknown names and wrong types are errors that name them, before any work."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import influence_cli
from influence_cli.errors import InfluenceError, InfluenceWarning, ManifestError, UsageError, WrongArgument
from influence_cli.options import checked
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.curate.request import CurateRequest
from tests.cases import Heard

N, TRAIN = 80, 60
RNG = np.random.default_rng(0)
ROWS = pd.DataFrame({"age": RNG.normal(40, 9, N), "job": RNG.choice([*"abc"], N)})
ROWS["bought"] = np.where(ROWS["age"] + RNG.normal(size=N) * 6 > 41, "yes", "no")


def fitted() -> Any:
    columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["job"]))
    return make_pipeline(columns, LogisticRegression()).fit(ROWS.drop(columns="bought"), ROWS["bought"])


def scored(rows: Any = ROWS, **more: Any) -> pa.Table:
    asked = {"target": rows[TRAIN:], "model": fitted(), "label": "bought", "store": None, "overlap": "keep", **more}
    return influence_cli.score(rows[:TRAIN], **{"method": "ip", **asked})


@pytest.mark.parametrize(
    ("argument", "says", "fix"),
    [
        ({"seed": "x"}, "seed is 'x'", "a whole number"),
        ({"seed": True}, "seed is True", "a whole number"),
        ({"store": 3}, "store is 3", "a path or None"),
        ({"workers": "2"}, "workers is '2'", "a whole number"),
        ({"batch_size": 0.5}, "batch_size is 0.5", "a whole number or None"),
        ({"method": ["ip", 3]}, r"method is \['ip', 3\]", "text or a list of texts"),
        ({"options": [1]}, r"options is \[1\]", "a dict"),
        ({"relative": "yes"}, "relative is 'yes'", "True or False"),
        ({"group": ROWS}, "group is a DataFrame", "text"),
        ({"per_member": 3}, "per_member is 3", "True or False"),
        ({"listener": "x"}, "listener is a str", "a Listener"),
        ({"metod": "ip"}, "unknown option 'metod'", "did you mean 'method'"),
        ({"model": LogisticRegression}, "model is the class LogisticRegression", r"LogisticRegression\(\).fit"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_is_expected(argument: Any, says: str, fix: str) -> None:
    with pytest.raises(WrongArgument, match=says) as caught:
        scored(**argument)
    assert isinstance(caught.value, TypeError)
    assert re.search(fix, caught.value.fix)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: influence_cli.manifest(ROWS, "m.parquet", labl="bought"), "unknown option 'labl'.*\n.*'label'"),
        (lambda: influence_cli.manifest(ROWS, 3, label="bought"), "output is 3"),  # pyright: ignore
        (lambda: influence_cli.manifest(ROWS, "m.parquet", features=3), "features is 3"),
        (lambda: influence_cli.retrain("m.parquet", "r", epoch=3), "unknown option 'epoch'.*\n.*'epochs'"),
        (lambda: influence_cli.retrain("m.parquet", "r", epochs="3"), "epochs is '3'"),
        (lambda: influence_cli.retrain("m.parquet", None), "output is None"),  # pyright: ignore
        (lambda: influence_cli.evaluate("s.parquet", draw=3), "unknown option 'draw'.*\n.*'draws'"),
        (lambda: influence_cli.evaluate(), "no score table"),
        (lambda: influence_cli.curate("s.parquet", actoin="trim"), "unknown option 'actoin'.*\n.*'action'"),  # pyright: ignore
        (lambda: influence_cli.curate("s.parquet", by=3), "by is 3"),  # pyright: ignore
        (lambda: influence_cli.per_target("m.parquet", top="x"), "top is 'x'"),  # pyright: ignore
        (lambda: influence_cli.tokens("m.parquet", row_id=3), "row_id is 3"),  # pyright: ignore
        (lambda: influence_cli.curate(3), "a int is no table"),
    ],
)
def test_every_function_checks_its_arguments(call: Any, says: str) -> None:
    with pytest.raises(InfluenceError, match=says):
        call()


def test_values_that_mean_the_same_are_taken() -> None:
    assert checked(GradSpec, "seed", np.int64(3)) == 3
    assert checked(GradSpec, "method", "ip") == ("ip",)
    assert checked(Inputs, "checkpoint", Path("a/b")) == str(Path("a/b"))
    assert checked(Runtime, "rows_limit", 3) == 3.0
    assert checked(CurateRequest, "skip_bad", np.bool_(True)) is True
    with pytest.raises(UsageError, match="seed=-1 is below 0"):
        checked(GradSpec, "seed", -1)


def test_columns_are_named_as_on_the_command_line_too(tmp_path: Path) -> None:
    asked = {"label": "bought", "keep_column": ["job"], "drop_column": "age"}
    made = influence_cli.manifest(ROWS, str(tmp_path / "m.parquet"), **asked)
    assert made.manifest.table.column("job").to_pylist() == ROWS["job"].tolist()
    assert [e.what for e in made.left_out] == ["column age"]


def test_an_error_names_a_frame_by_its_type() -> None:
    for call in (influence_cli.curate, influence_cli.evaluate):
        with pytest.raises(ManifestError) as caught:
            call(ROWS, manifest=ROWS)
        assert caught.value.where == "the DataFrame"


# ---- warnings --------------------------------------------------------------------------------------------------------


def test_warnings_reach_python_where_nobody_listens_once_and_at_the_callers_line() -> None:
    again = pd.concat([ROWS[: TRAIN // 2], ROWS[: TRAIN // 2], ROWS[TRAIN:]])
    with pytest.warns(InfluenceWarning, match="pandas' index repeats, or lacks a value: rows are numbered") as heard:
        influence_cli.score(
            again, method="ip", target=ROWS[TRAIN:], model=fitted(), label="bought", store=None, overlap="keep"
        )
    assert {w.filename for w in heard} == {__file__}
    assert len([w for w in heard if "repeats" in str(w.message)]) == 1
    listener = Heard()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored(again, listener=listener)
    assert any("rows are numbered" in text for text in listener.warnings)


# ---- frames and classifiers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "ids"),
    [
        ([f"p{k}" for k in range(N)], ["p0", "p1"]),
        (pd.RangeIndex(5, 5 + 2 * N, 2), ["5", "7"]),
        (pd.Index([*range(N)], name="customer"), ["0", "1"]),
        (pd.RangeIndex(N), ["row-0", "row-1"]),
        ([0] * N, ["row-0", "row-1"]),
        (pd.MultiIndex.from_arrays([[*range(N)], [0] * N]), ["row-0", "row-1"]),
    ],
)
@pytest.mark.filterwarnings("ignore:pandas' index")
def test_an_index_that_somebody_made_is_the_id(index: Any, ids: list[str], tmp_path: Path) -> None:
    rows = ROWS.set_axis(pd.Index(index) if isinstance(index, list) else index, axis=0)
    assert scored(rows).column("id").to_pylist()[:2] == ids
    made = influence_cli.manifest(rows, str(tmp_path / "m.parquet"), label="bought")
    assert made.manifest.ids[:2] == ids
    if ids[0] != "row-0":
        assert any(text.startswith("the id is pandas' index") for text in made.taken)
    elif not isinstance(rows.index, pd.RangeIndex):
        assert any(text.endswith("rows are numbered") and "pandas' index" in text for text in made.taken)


def test_scores_of_a_pipeline_are_curated_and_judged_with_the_frame(tmp_path: Path) -> None:
    rows = ROWS.set_axis([f"p{k}" for k in range(N)], axis=0)
    scores = scored(rows)
    edits = influence_cli.curate(scores, manifest=rows[:TRAIN], budget=4, output=str(tmp_path / "c.parquet"))
    lowest = scores.sort_by("score").column("id").to_pylist()[:3]
    assert edits.column("id").to_pylist()[:3] == lowest
    assert influence_cli.evaluate(scores, manifest=rows[:TRAIN])["schema_version"] == 1
    with pytest.raises(ManifestError, match="train row id=p1 has changed since it was scored"):
        influence_cli.curate(scores, manifest=rows[:TRAIN].assign(age=lambda f: f["age"] + (f.index == "p1")))


def test_a_classifier_that_another_program_scored_has_to_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = scored()
    monkeypatch.setattr("influence_cli.model.scikit._SCORED", {})
    with pytest.raises(UsageError, match="as a model of scikit-learn takes them") as caught:
        influence_cli.curate(scores, manifest=ROWS[:TRAIN])
    assert "pass model=MODEL" in caught.value.fix
    assert influence_cli.curate(scores, manifest=ROWS[:TRAIN], model=fitted(), budget=5).num_rows == 5


@pytest.mark.parametrize("other", [{"checkpoint": "run"}, {"task": influence_cli.Task(lambda: None)}])  # type: ignore
def test_another_model_beside_a_classifier_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(other))} says which model is scored") as caught:
        scored(**other)
    assert "leave" in caught.value.fix


def test_a_pipeline_that_is_not_fitted_is_named_before_its_rows_are_made() -> None:
    with pytest.raises(InfluenceError, match="the LogisticRegression is not fitted"):
        scored(model=make_pipeline(StandardScaler(), LogisticRegression()))
