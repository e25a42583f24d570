"""probe and target-probe against scikit-learn's ridge regression, fold by fold, from the manifest to the table.

python -m pytest tests/methods/test_probe.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.linear_model import Ridge

from influence_cli.data.folds import dealt
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.maths.linear_probe import STRENGTHS, likeliest_scale
from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec
from tests.cases import Example, Heard, column, draw_features, examples, feature_table, job_of, train_run, with_column
from tests.cases import write as written
from tests.methods.test_knn import features
from tests.opened import score
from tests.oracle import save_checkpoint

ROWS = [*examples(train=60, val=30, test=6), Example("twin", draw_features(3), 2)]  # of r003, with another label
TRAIN = [r for r in ROWS if r.split == "train"]
VAL = [r for r in ROWS if r.split == "val"]
LABELS = np.array([r.label for r in TRAIN])
WEIGHTS = np.random.default_rng(1).choice([0.0, 1.0, 2.5], len(ROWS))
FOLDS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    written(feature_table(ROWS), folder / "m.parquet")
    written(with_column(feature_table(ROWS), "weight", WEIGHTS), folder / "weighted.parquet")
    train_run(folder / "m.parquet", folder / "run", "mlp:9,6", raw_features=True)
    return folder


def scored(
    folder: Path, method: str, manifest: str = "m.parquet", run: str = "run", listener: Any = None, more: Any = None,
    **options: Any,
) -> pa.Table:  # fmt: skip
    spec = GradSpec((method,), options={method: {"folds": FOLDS, **options}}, precision="fp64")
    return score(
        job_of(folder / manifest, folder / run, folder / "store", spec=spec, listener=listener, **(more or {}))
    )


def ridge(f: NDArray[Any], y: NDArray[Any], w: NDArray[Any], strength: float, at: NDArray[Any]) -> NDArray[Any]:
    """What scikit-learn's ridge gives for other rows; its penalty is that of the sum, not of the mean."""
    made = Ridge(strength * w.sum(), solver="cholesky").fit(f, y, sample_weight=w)
    return np.asarray(made.predict(at)).reshape(len(at), -1)


def margins(z: NDArray[Any]) -> NDArray[Any]:
    others = z.copy()
    others[np.arange(len(z)), LABELS] = -np.inf
    return z[np.arange(len(z)), LABELS] - others.max(axis=1)


def likelihoods(z: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(log_softmax(z, axis=1))[np.arange(len(z)), LABELS]


VALUES = {"margin": margins, "likelihood": likelihoods}


def out_of_fold(
    f: NDArray[Any], y: NDArray[Any], w: NDArray[Any], fold: NDArray[Any]
) -> tuple[NDArray[Any], list[Any]]:
    """By the rule: the strength of least squared error on the next fold, without both; then a fit without one."""
    given, chosen = np.empty(y.shape), list[float]()
    for k in range(FOLDS):
        following = fold == (k + 1) % FOLDS
        rest = (fold != k) & ~following
        errors = [
            (w[following] * ((ridge(f[rest], y[rest], w[rest], s, f[following]) - y[following]) ** 2).sum(1)).sum()
            for s in STRENGTHS
        ]
        chosen.append(STRENGTHS[int(np.argmin(errors))])
        given[fold == k] = ridge(f[fold != k], y[fold != k], w[fold != k], chosen[-1], f[fold == k])
    return given, chosen


@pytest.mark.parametrize(("manifest", "value"), [("m.parquet", "margin"), ("weighted.parquet", "likelihood")])
def test_probe_is_what_a_ridge_fitted_on_the_other_folds_says(folder: Path, manifest: str, value: str) -> None:
    rows = open_manifest(str(folder / manifest), "label").rows("train")
    w = np.array([WEIGHTS[k] for k, r in enumerate(ROWS) if r.split == "train"])
    w = w if manifest == "weighted.parquet" else np.ones(len(TRAIN))
    f = features(folder, TRAIN)
    f = (f - f.mean(axis=0)) / np.where(f.std(axis=0) > 0, f.std(axis=0), 1.0)
    fold = dealt(rows, w > 0, FOLDS, 0)
    expected, chosen = out_of_fold(f, (LABELS[:, None] == np.arange(3)).astype(float), w, fold)
    table = scored(folder, "probe", manifest, value=value)
    facts = provenance(table.schema)["facts"]["score_probe"]
    np.testing.assert_allclose(column(table), VALUES[value](facts["beta"] * expected), rtol=1e-6, atol=1e-9)
    assert facts["beta"] == pytest.approx(likeliest_scale(expected, LABELS, w), rel=1e-6)
    assert facts["strengths"] == pytest.approx(chosen)
    assert len(set(chosen)) > 1  # so that a rule which takes one for all would be seen
    expected[np.arange(len(TRAIN)), LABELS] = -np.inf
    assert table.column("other_label").to_pylist() == expected.argmax(axis=1).tolist()


def test_rows_of_one_payload_are_judged_by_one_probe_that_has_seen_neither(folder: Path) -> None:
    rows = open_manifest(str(folder / "m.parquet"), "label").rows("train")
    fold = dict(zip(rows.ids, dealt(rows, np.ones(len(rows), dtype=bool), FOLDS, 0).tolist(), strict=True))
    assert fold["twin"] == fold["r003"]
    table = scored(folder, "probe", strength=0.1)
    assert provenance(table.schema)["facts"]["score_probe"]["strengths"] == [0.1] * FOLDS


@pytest.mark.parametrize("overlap", [False, True])
def test_target_probe_is_what_a_ridge_fitted_on_target_rows_says(folder: Path, overlap: bool) -> None:
    """Target rows that are train rows, which --overlap keep leaves in the target, are no part of the fit."""
    target = [*VAL, *TRAIN[:3]] if overlap else VAL
    written(feature_table(target).drop_columns(["split"]), folder / "target.parquet")
    more = {"target": str(folder / "target.parquet"), "overlap": "keep"}
    table = scored(folder, "target-probe", more=more)
    f = features(folder, VAL)
    mean, sd = f.mean(axis=0), np.where(f.std(axis=0) > 0, f.std(axis=0), 1.0)
    y, w = (np.array([r.label for r in VAL])[:, None] == np.arange(3)).astype(float), np.ones(len(VAL))
    rows = open_manifest(str(folder / "m.parquet"), "label").rows("val")
    fold, f = dealt(rows, w > 0, FOLDS, 0), (f - mean) / sd
    errors = np.zeros(len(STRENGTHS))
    for k in range(FOLDS):
        for s, strength in enumerate(STRENGTHS):
            z = ridge(f[fold != k], y[fold != k], w[fold != k], strength, f[fold == k])
            errors[s] += ((z - y[fold == k]) ** 2).sum()
    best = STRENGTHS[int(np.argmin(errors))]
    given = ridge(f, y, w, best, (features(folder, TRAIN) - mean) / sd)
    facts = provenance(table.schema)["facts"]["score_target-probe"]
    assert (facts["rows"], facts["left_out_as_train_rows"], facts["strength"]) == (len(VAL), 3 * overlap, best)
    np.testing.assert_allclose(column(table), likelihoods(facts["beta"] * given), rtol=1e-6, atol=1e-9)


def test_rows_of_a_class_that_no_target_row_has_get_no_score(folder: Path) -> None:
    written(feature_table([r for r in VAL if r.label != 1]).drop_columns(["split"]), folder / "two.parquet")
    heard = Heard()
    found = column(scored(folder, "target-probe", listener=heard, more={"target": str(folder / "two.parquet")}))
    np.testing.assert_array_equal(np.isnan(found), LABELS == 1)
    assert any("are of a class that no row of the fit has" in text for text in heard.warnings)


@pytest.mark.parametrize("task", ["regression", "multi-label"])
@pytest.mark.parametrize("method", ["probe", "target-probe"])
def test_other_labels_have_minus_the_mean_squared_error(tmp_path: Path, task: str, method: str) -> None:
    """Of a linear model features are the row's own values."""
    x, train, numbers = np.array([r.features for r in ROWS[:-1]]), len(TRAIN) - 1, task == "regression"
    exact = x @ np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    labels = exact if numbers else np.stack([exact > 0, x[:, 0] > 0], axis=1).astype(np.int8)
    kind = pa.float64() if numbers else pa.list_(pa.int8())
    table = with_column(feature_table(ROWS[:-1]), "label", pa.array(labels.tolist(), kind))
    written(table.replace_schema_metadata({b"task": task.encode()}), tmp_path / "m.parquet")
    spec = ModelSpec("linear", 1 if numbers else 2, "features", (5,), loss="squared" if numbers else "binary")
    save_checkpoint(tmp_path / "w.safetensors", build_model(spec), spec)
    asked = GradSpec((method,), options={method: {"folds": FOLDS, "strength": 0.1}}, precision="fp64")
    found = column(score(job_of(tmp_path / "m.parquet", tmp_path / "w.safetensors", None, spec=asked)))
    y, of = labels.reshape(len(labels), -1).astype(float), slice(0, train)
    of = of if method == "probe" else slice(train, train + len(VAL))
    f, given = (x - x[of].mean(axis=0)) / x[of].std(axis=0), np.empty((train, y.shape[1]))
    if method == "probe":
        rows = open_manifest(str(tmp_path / "m.parquet"), "label").rows("train")
        fold = dealt(rows, np.ones(train, dtype=bool), FOLDS, 0)
        for k in range(FOLDS):
            out = np.flatnonzero(fold != k)
            given[fold == k] = ridge(f[out], y[out], np.ones(len(out)), 0.1, f[:train][fold == k])
    else:
        given = ridge(f[of], y[of], np.ones(len(VAL)), 0.1, f[:train])
    np.testing.assert_allclose(found, -((given - y[:train]) ** 2).mean(axis=1), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("probe", {"folds": 2}, "folds=2 is below 3"),
        ("probe", {"strength": 0.0}, "strength=0.0 is not positive"),
        ("probe", {"value": "x"}, "value 'x' is unknown; use one of likelihood, margin"),
        ("probe", {"seed": -1}, "seed=-1 is below 0"),
        ("probe", {"folds": 62}, "probe.folds=62 of 61 train rows"),
        ("probe", {"folds": 61}, "--set probe.folds=61 of 60 distinct rows"),
        ("target-probe", {"folds": 31}, "target-probe.folds=31 of 30 target rows"),
    ],
)
def test_what_no_probe_can_be_fitted_on_is_refused(folder: Path, method: str, options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", "\\(")) as found:
        scored(folder, method, **options)
    assert found.value.fix


def test_progress_counts_rows(folder: Path) -> None:
    heard = Heard(stop_in="probe", stop_at=99)
    scored(folder, "probe", listener=heard)
    assert ("probe: folds", len(TRAIN)) in heard.spans
    assert heard.advances == FOLDS


def test_the_seed_deals_other_folds(folder: Path) -> None:
    assert np.abs(column(scored(folder, "probe", seed=1)) - column(scored(folder, "probe"))).max() > 1e-6
