"""A linear classifier of scikit-learn as a model of ours, and a DataFrame as the rows that it was trained on.

What a pipeline does before its classifier is part of the rows: a row's features are what the classifier is given.
scikit-learn itself is not imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.frames import NUMBERED, as_table, index_said, is_frame, name_of
from influence_cli.data.kinds import PAYLOADS, kind_in
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.plain_types import plain_table
from influence_cli.data.sources.protocol import KEPT
from influence_cli.data.tables import provenance, read_table
from influence_cli.errors import ManifestError, ModelError, UsageError, WrongArgument
from influence_cli.events import SILENT, Listener
from influence_cli.model.task import Task

_NAME = "scikit-learn"
_LOGISTIC = ("LogisticRegression", "LogisticRegressionCV", "SGDClassifier")


def is_estimator(model: Any) -> bool:
    """Whether it is a model of scikit-learn's kind."""
    return callable(getattr(model, "predict", None)) and callable(getattr(model, "get_params", None))


_SCORED: dict[str, Any] = {}  # by the rows' fingerprint: the models of the last runs of this program
_MOST = 16


def remember(rows: str, model: Any) -> None:
    """Keep a model at hand for those who ask for its rows again, by the fingerprint of the rows that it scored."""
    if is_estimator(model):
        _SCORED.pop(rows, None)
        _SCORED[rows] = model
        for old in list(_SCORED)[:-_MOST]:
            del _SCORED[old]


def rows_scored(scores: Any, manifest: Any, model: Any, label: str | None) -> Any:
    """The manifest of a score table; where a classifier was scored with a frame, its rows as the classifier had them.

    Raises:
        UsageError: the classifier is not at hand.
    """
    if not is_frame(manifest) or scores is None:
        return manifest
    origin = provenance(read_table(scores).schema)
    then: dict[str, Any] = origin.get("manifest") or {}
    named = str((origin.get("model") or {}).get("name") or "")
    known = model if is_estimator(model) else _SCORED.get(str(then.get("fingerprint")))
    table = as_table(manifest)
    if known is None and _NAME in named and table is not None and kind_in(table.column_names) is None:
        fix = "pass model=MODEL, the fitted model that was scored"
        raise UsageError("the rows were scored as a model of scikit-learn takes them", where=name_of(manifest), fix=fix)
    return manifest if known is None else rows_of(known, manifest, label or then.get("label") or "label")


def with_estimator(manifest: Any, given: dict[str, Any], listener: Listener = SILENT) -> tuple[Any, dict[str, Any]]:
    """Rows and options, with a model of scikit-learn as a task, and its rows as the classifier is given them.

    Raises:
        WrongArgument: the model is neither a name nor such a model.
        UsageError: another model, or its checkpoint, is given beside it.
    """
    model = given.get("model")
    if model is None or isinstance(model, str):
        return manifest, given
    if isinstance(model, type):
        raise WrongArgument(
            f"model is the class {model.__name__}", fix=f"give a fitted one: {model.__name__}().fit(...)"
        )
    if not is_estimator(model):
        fix = "name it, give task=Task(module), or a fitted classifier of scikit-learn"
        raise WrongArgument(f"the model is a {type(model).__name__}", fix=fix)
    task = task_of(model)
    for other in ("checkpoint", "task"):
        if given.get(other) is not None:
            what = f"{other} says which model is scored, and model is a fitted {type(model).__name__}"
            raise UsageError(what, fix=f"leave {other} or model out")
    label, target = given.get("label") or "label", given.get("target")
    if not isinstance(label, str):
        raise WrongArgument(f"label is a {type(label).__name__}", fix="give label as the name of a column")
    rows = {} if target is None else {"target": rows_of(model, target, label, listener)}
    return rows_of(model, manifest, label, listener, trained=True), {**given, **rows, "model": None, "task": task}


def task_of(model: Any) -> Task:
    """The classifier as a linear module; two classes, of which scikit-learn keeps one row, become two.

    Raises:
        ModelError: it is not fitted, or is no classifier whose loss is cross-entropy.
    """
    from torch import from_numpy, nn

    last = _last(model)
    weight, bias = (np.atleast_1d(np.asarray(v, np.float64)) for v in (last.coef_, last.intercept_))
    bias = np.broadcast_to(bias, (len(weight),))
    if len(weight) == 1:  # the logit of the second class against the first
        weight, bias = (np.concatenate([-v / 2, v / 2]) for v in (weight, bias))
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=last.fit_intercept)
    state = {"weight": weight, "bias": bias} if last.fit_intercept else {"weight": weight}
    module.load_state_dict({name: from_numpy(np.array(v, np.float32)) for name, v in state.items()})
    return FittedTask(module, name=f"{_NAME} {type(last).__name__}", estimator=last)


@dataclass(frozen=True, eq=False)
class FittedTask(Task):
    """A fitted classifier's module, which knows what the weights were held small by."""

    estimator: Any = None

    def penalty(self, weight: float) -> dict[str, float]:  # type: ignore[override]
        """The l2 of the mean loss over rows of ``weight`` in all, by parameter.

        scikit-learn minimises C sum_i w_i l_i + |w|^2 / 2, or with SGD the mean of l_i + alpha |w|^2 / 2.  Two classes
        share one w, of which the module has -w/2 and w/2: half the squared norm, so twice the l2.

        Raises:
            UsageError: the penalty is no l2.
        """
        last, l2 = self.estimator, _l2_of(self.estimator, weight) * (2.0 if len(self.estimator.coef_) == 1 else 1.0)
        own = l2 / float(last.intercept_scaling) ** 2 if getattr(last, "solver", "") == "liblinear" else 0.0
        return {"weight": l2, "bias": own} if last.fit_intercept else {"weight": l2}


def _l2_of(last: Any, weight: float) -> float:
    """The l2 on the weights that a classifier was fitted with."""
    kind, given = type(last).__name__, getattr(last, "penalty", "l2")
    ratio = getattr(last, "l1_ratio_", getattr(last, "l1_ratio", None))
    mixed = given == "elasticnet" or given == "deprecated"
    if given == "l1" or (mixed and ratio is not None and np.any(np.asarray(ratio, np.float64) > 0)):
        what = f"a {kind} with an l1 penalty has no curvature where a weight is 0, and no influence function"
        raise UsageError(what, fix="fit it with an l2 penalty, or use method ip; l2=X takes X in place of its penalty")
    if given is None or given == "none":
        return 0.0
    if kind == "SGDClassifier":
        return float(last.alpha)
    strengths = np.unique(np.asarray(last.C_ if kind == "LogisticRegressionCV" else last.C, np.float64))
    if len(strengths) > 1:
        raise UsageError(f"the {kind} has another C for every class", fix="fit LogisticRegression with one C")
    return 1.0 / (float(strengths[0]) * weight)


def _last(model: Any) -> Any:
    """The classifier at the end of a pipeline, or the model itself; checked."""
    last = model.steps[-1][1] if hasattr(model, "steps") else model
    kind, fix = type(last).__name__, "give a fitted LogisticRegression, a pipeline that ends in one, or task=Task(...)"
    if kind not in _LOGISTIC:
        numbers = getattr(last, "_estimator_type", "") == "regressor" or kind in ("LinearRegression", "Ridge", "Lasso")
        why = "of scikit-learn's models classifiers are taken" if numbers else "its loss is no cross-entropy"
        if numbers:
            fix = "give its weights as task=Task(model=torch.nn.Linear(...)), on a manifest of task regression"
        raise ModelError(f"a {kind} cannot be scored: {why}", fix=fix)
    if not hasattr(last, "coef_"):
        raise ModelError(f"the {kind} is not fitted", fix="call its fit")
    if kind == "SGDClassifier" and last.loss not in ("log_loss", "log"):
        raise ModelError(f"a {kind} of loss {last.loss!r} cannot be scored: it is no cross-entropy", fix=fix)
    apart = kind == "SGDClassifier" or last.solver == "liblinear" or getattr(last, "multi_class", "") == "ovr"
    if apart and len(last.classes_) > 2:
        what = f"a {kind} of {len(last.classes_)} classes, each apart from the others, has no softmax"
        raise ModelError(what, fix="fit LogisticRegression with the solver lbfgs")
    return last


def rows_of(model: Any, source: Any, label: str, listener: Listener = SILENT, trained: bool = False) -> Any:
    """A frame's rows as a table with a manifest's columns: what the classifier is given, and labels by its classes.

    With ``trained`` they are those that it was fitted on, and ``class_weight`` is part of their weights.

    Raises:
        ManifestError: it holds no table, lacks a column, or a label is none of the classifier's.
    """
    table = as_table(source)
    where = name_of(source)
    if table is None:
        fix = "give a DataFrame or an Arrow table"
        raise ManifestError(f"a {type(source).__name__} holds no rows for a model of scikit-learn", fix=fix)
    if NUMBERED in index_said(table):
        listener.warn(index_said(table))
    table = plain_table(table, where)
    if label not in table.column_names:
        fix = f"pass label=COLUMN; columns there are: {', '.join(table.column_names)}"
        raise ManifestError(f"no column {label!r} with labels", where=where, fix=fix)
    values = _given(model, source, table, label, where)
    labels = _numbered(table.column(label), _last(model).classes_, where, label)
    names = table.column_names
    ids = table.column("id").cast(pa.string()) if "id" in names else pa.array([f"row-{k}" for k in range(len(labels))])
    made = {"id": ids, "features": pa.array(list(values), pa.list_(pa.float32())), label: pa.array(labels)}
    made |= {name: table.column(name) for name in names if name not in {*made, *PAYLOADS}}
    if trained and _last(model).class_weight is not None:
        made["weight"] = pa.array(_class_weights(_last(model), made, labels))
    classes = json.dumps([str(c) for c in np.asarray(_last(model).classes_).tolist()])
    return pa.table(made).replace_schema_metadata({"classes": classes})


def _class_weights(last: Any, columns: dict[str, Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row's weight [n]: its own, times that of its class."""
    given, classes = last.class_weight, np.asarray(last.classes_).tolist()
    if given == "balanced":
        fitted = labels
        if "split" in columns:
            fitted = labels[np.array([value in (None, "train") for value in columns["split"].to_pylist()])]
        counts = np.bincount(fitted, minlength=len(classes))
        each = len(fitted) / (len(classes) * np.maximum(counts, 1))
    else:
        each = np.array([float(given.get(c, 1.0)) for c in classes])
    own = np.ones(len(labels))
    if "weight" in columns:
        own = np.array([1.0 if v is None else float(v) for v in columns["weight"].to_pylist()])
    return own * each[labels]


def _given(model: Any, source: Any, table: pa.Table, label: str, where: str) -> NDArray[np.float32]:
    """What the classifier is given [n, d]: the columns that the model was fitted on, through what stands before it."""
    names = getattr(model, "feature_names_in_", None)
    if names is None and hasattr(model, "steps"):
        names = getattr(model.steps[0][1], "feature_names_in_", None)
    if names is None:
        beside = (label, "id", *KEPT)
        names = [f.name for f in table.schema if f.name not in beside and _is_number(f.type)]
    missing = [str(n) for n in names if str(n) not in table.column_names]
    if missing:
        fix = "give the columns that the model was fitted on"
        raise ManifestError(f"no column {missing[0]!r}, which the model was fitted on", where=where, fix=fix)
    frame = source[list(names)] if hasattr(source, "iloc") else table.select([str(n) for n in names]).to_pandas()
    named = hasattr(model, "feature_names_in_") or hasattr(model, "steps")
    try:
        values = frame if named else frame.to_numpy()
        for _, step in getattr(model, "steps", ())[:-1]:
            values = values if step in (None, "passthrough") else step.transform(values)
        values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        values = values.astype(np.float32)
    except (ValueError, TypeError, KeyError) as error:
        fix = "give rows as the model's fit got them"
        raise ManifestError(f"the model cannot take these rows ({error})", where=where, fix=fix) from error
    width = _last(model).coef_.shape[1]
    if values.shape[1] != width:
        fix = "fit the model on a DataFrame, so that it knows its columns, or give those columns alone"
        raise ManifestError(f"{values.shape[1]} features where the model takes {width}", where=where, fix=fix)
    return values


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _numbered(column: pa.ChunkedArray, classes: Any, where: str, label: str) -> NDArray[np.int64]:
    """The place [n] of each label among the classifier's classes."""
    place = {value: k for k, value in enumerate(np.asarray(classes).tolist())}
    if is_text(column.type):
        place = {str(value): k for value, k in place.items()}
    values = column.to_pylist()
    for row, value in enumerate(values):
        if value not in place:
            what = f"label {value!r} is none of the classes that the model was fitted on"
            at = f"{where}, row {row}, column {label}"
            raise ManifestError(what, where=at, fix=f"its classes are {', '.join(map(str, place))}")
    return np.array([place[value] for value in values], dtype=np.int64)
