"""Influence functions of scikit-learn's classifiers: the penalty is the fitted model's, held against real refits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, SGDClassifier

import influence_cli
from influence_cli.errors import UsageError
from tests.cases import Heard

N, TEST = 1000, 200


def rows(classes: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N + TEST, 3))
    z = x @ (0.5 * rng.normal(size=(3, classes))) + np.linspace(0, 1, classes) + rng.gumbel(size=(N + TEST, classes))
    return pd.DataFrame(x, columns=["a", "b", "c"]).assign(label=z.argmax(1))


def test_loss(model: Any, test: pd.DataFrame) -> float:
    p = model.predict_proba(test[["a", "b", "c"]])
    return float(-np.log(p[np.arange(len(test)), test["label"]]).mean())


test_loss.__test__ = False  # type: ignore[attr-defined]


def slope(frame: pd.DataFrame, weight: np.ndarray | None = None, heard: Heard | None = None, **options: Any) -> float:
    """By how much the loss of refits without a row moves, per unit of what ``exact`` says."""
    train, test = frame[:N], frame[N:]
    weight = np.ones(N) if weight is None else weight

    def fitted(keep: np.ndarray, c: float) -> LogisticRegression:
        model = LogisticRegression(**{"tol": 1e-10, "max_iter": 5000, **options, "C": c})
        return model.fit(train[keep][["a", "b", "c"]], train[keep]["label"], sample_weight=weight[keep])

    c, every = options.get("C", 1.0), np.ones(N, bool)
    model = fitted(every, c)
    given = train.assign(weight=weight) if len(np.unique(weight)) > 1 else train
    more = {} if heard is None else {"listener": heard}
    table = influence_cli.score(given, target=test, model=model, method="exact", precision="fp64", store=None, **more)
    base = test_loss(model, test)
    some = np.arange(0, N, 100)
    moved = [test_loss(fitted(np.arange(N) != k, c), test) - base for k in some]
    weight = weight * np.array([options.get("class_weight", {}).get(k, 1.0) for k in train["label"]])
    of_row = table.column("score").to_numpy()[some] * weight[some] / weight.sum()
    return float(np.dot(of_row, moved) / np.dot(of_row, of_row))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_exact_is_what_refits_without_a_row_say(classes: int, c: float) -> None:
    assert 0.98 < slope(rows(classes), C=c) < 1.02


WEIGHTS = np.random.default_rng(1).choice([0.5, 1.0, 3.0], N)


@pytest.mark.parametrize(
    ("weight", "options"),
    [
        (None, {"fit_intercept": False, "C": 0.02}),
        (None, {"class_weight": {0: 3.0}, "C": 0.02}),
        (None, {"solver": "liblinear", "C": 0.02}),
        (None, {"solver": "liblinear", "C": 0.02, "intercept_scaling": 3.0}),
        (WEIGHTS, {"C": 0.02}),
        (None, {"C": np.inf}),
    ],
)
def test_what_else_a_fit_was_told_is_in_it(weight: Any, options: dict[str, Any]) -> None:
    assert 0.98 < slope(rows(2), weight, **options) < 1.02


def score(model: Any, heard: Heard | None = None, **options: Any) -> np.ndarray:
    frame = rows(2)
    listener = {} if heard is None else {"listener": heard}
    options = {"method": "exact", "precision": "fp64", "store": None, **listener, **options}
    return influence_cli.score(frame[:N], target=frame[N:], model=model, **options).column("score").to_numpy()


def fit(model: Any, **how: Any) -> Any:
    train = rows(2)[:N]
    return model.fit(train[["a", "b", "c"]], train["label"], **how)


def test_balanced_class_weights_are_those_of_the_rows_and_alpha_is_the_l2_of_sgd() -> None:
    train = rows(2)[:N]
    each = {k: N / (2 * (train["label"] == k).sum()) for k in (0, 1)}
    how = {"C": 0.05, "tol": 1e-10}
    balanced, told = (score(fit(LogisticRegression(class_weight=w, **how))) for w in ("balanced", each))
    assert np.allclose(balanced, told)
    made = fit(SGDClassifier(loss="log_loss", alpha=0.02))
    same = fit(LogisticRegression(C=1 / (0.02 * N)))
    same.coef_, same.intercept_ = made.coef_, made.intercept_
    assert np.allclose(score(made), score(same))


def test_the_l2_is_said_and_one_that_is_given_stands_for_it() -> None:
    heard, model = Heard(), fit(LogisticRegression(C=0.5))
    own = score(model, heard)
    assert f"exact: the l2 of the fitted model: {2 / (0.5 * N):.3g} on weight, 0 on bias" in " ".join(heard.notes)
    assert not np.allclose(own, score(model, options={"exact": {"l2": 0.5}}))
    score(model, heard, method="cg")
    assert "method exact has it as it was fitted" in " ".join(heard.warnings)


def test_an_l1_penalty_has_no_influence_function() -> None:
    model = fit(LogisticRegression(l1_ratio=1.0, solver="saga", C=0.1))
    with pytest.raises(UsageError, match="l1 penalty"):
        score(model)
    score(model, method="ip")
