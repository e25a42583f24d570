"""Rows and models as a Python program has them: frames with plain columns and classifiers of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import influence_cli
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError, ModelError, UsageError

N, TRAIN = 60, 44


def people(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age, job = rng.normal(40, 12, N), rng.choice(["clerk", "nurse", "pilot"], N)
    bought = np.where(age + 9 * (job == "pilot") + rng.normal(size=N) * 4 > 42, "yes", "no")
    return pd.DataFrame({"age": age, "pay": rng.normal(3e4, 1e4, N).round(), "job": job, "bought": bought})


def softmax_gradients(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Gradients [n, C (d + 1)] of cross-entropy in the weights and the bias of a linear model."""
    z = x @ weight.T + bias
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    away = p - np.eye(len(weight))[y]
    return np.concatenate([(away[:, :, None] * x[:, None]).reshape(len(x), -1), away], 1)


def scores_of(model: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """IP of a fitted logistic regression by formulas; two classes have the logits -z/2 and z/2."""
    w, b = model.coef_, model.intercept_
    if len(w) == 1:
        w, b = np.concatenate([-w / 2, w / 2]), np.concatenate([-b / 2, b / 2])
    g = softmax_gradients(w, b, x, y)
    return g[:TRAIN] @ g[TRAIN:].mean(0)


def score(frame: Any, **options: Any) -> np.ndarray:
    options = {"store": None, "label": "bought", "method": "ip", **options}
    target = options.pop("target", frame[TRAIN:])
    return influence_cli.score(frame[:TRAIN], target=target, **{"method": "ip", **options}).column("score").to_numpy()


def test_a_logistic_regression_and_its_frame_are_scored_as_they_are() -> None:
    frame = people()
    x, y = frame[["age"]].to_numpy() - 40, (frame["bought"] == "yes").to_numpy().astype(int)
    scaled = frame.assign(age=frame["age"] - 40)
    model = LogisticRegression(C=10).fit(scaled[["age"]], scaled["bought"])
    assert np.allclose(score(scaled, model=model), scores_of(model, x, y), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 3])
def test_what_a_pipeline_does_first_is_part_of_the_rows(classes: int) -> None:
    frame = people()
    if classes == 3:
        frame["bought"] = np.where(frame["age"] > 50, "later", frame["bought"])
    columns = make_column_transformer((StandardScaler(), ["age", "pay"]), (OneHotEncoder(), ["job"]))
    model = make_pipeline(columns, LogisticRegression()).fit(frame.drop(columns="bought"), frame["bought"])
    last = model.steps[-1][1]
    x = np.asarray(model[:-1].transform(frame), np.float64)
    y = np.searchsorted(last.classes_, frame["bought"])
    assert np.allclose(score(frame, model=model), scores_of(last, x, y), rtol=1e-4, atol=1e-8)


def test_a_model_that_was_fitted_on_arrays_takes_the_columns_of_numbers() -> None:
    frame = (
        people()
        .drop(columns="job")
        .assign(pay=lambda f: f["pay"] / 1e4, bought=lambda f: (f["bought"] == "yes") * 2 - 1)
    )
    model = LogisticRegression().fit(frame[["age", "pay"]].to_numpy(), frame["bought"])
    x, y = frame[["age", "pay"]].to_numpy(), (frame["bought"] == 1).to_numpy().astype(int)
    assert np.allclose(score(frame, model=model), scores_of(model, x, y), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (LinearRegression(), "classifiers are taken"),
        (RandomForestClassifier(n_estimators=2), "no cross-entropy"),
        (SGDClassifier(), "loss 'hinge'"),
        (LogisticRegression(), "not fitted"),
        (object(), "the model is a object"),
    ],
)
def test_other_models_are_refused_with_a_way_out(model: Any, says: str) -> None:
    frame = people()
    if not isinstance(model, LogisticRegression) and hasattr(model, "fit"):
        model.fit(frame[["age"]], frame["bought"] == "yes")
    with pytest.raises((ModelError, UsageError), match=says) as caught:
        score(frame, model=model)
    assert "--" not in str(caught.value)


def test_rows_that_do_not_fit_the_model_are_refused() -> None:
    frame = people()
    model = LogisticRegression().fit(frame[["age"]], frame["bought"])
    with pytest.raises(ManifestError, match="no column 'age'"):
        score(frame.rename(columns={"age": "years"}), model=model)
    with pytest.raises(ManifestError, match="label 'perhaps'"):
        score(frame.assign(bought="perhaps"), model=model)
    with pytest.raises(ManifestError, match="no column 'label'") as caught:
        score(frame, model=model, label="label")
    assert "label=COLUMN" in caught.value.fix


def test_a_frame_of_plain_columns_is_read_as_a_table_of_a_file_is(tmp_path: Any) -> None:
    frame = people()
    frame.loc[3, "pay"] = np.nan
    split = np.where(np.arange(N) < TRAIN, "train", "val")
    made = influence_cli.manifest(frame.assign(split=split), str(tmp_path / "m.parquet"), label="bought")
    influence_cli.retrain(
        str(tmp_path / "m.parquet"), str(tmp_path / "run"), model="linear", epochs=2, test=str(tmp_path / "m.parquet")
    )
    options = {"checkpoint": str(tmp_path / "run"), "store": None, "method": ["ip", "loss"]}
    want = influence_cli.score(str(tmp_path / "m.parquet"), **options).column("score").to_numpy()
    for rows in (frame, pa.Table.from_pandas(frame)):
        one, two = (
            rows[:TRAIN] if rows is frame else rows.slice(0, TRAIN),
            rows[TRAIN:] if rows is frame else rows.slice(TRAIN),
        )
        found = influence_cli.score(one, target=two, label="bought", **options)  # target rows as the train rows
        assert np.array_equal(found.column("score").to_numpy(), want)
    assert made.manifest.classes == ("no", "yes")
    assert open_manifest(frame, "bought").table.column("job").to_pylist() == frame["job"].tolist()  # for --group
