"""The pipeline from Python: functions named as the commands, with the commands' options, that return tables.

Rows are a path, an Arrow table, a pandas or polars DataFrame with a manifest's columns, or a torch Dataset of
(input, label); a model is a checkpoint, or a ``Task``.  Nothing is printed; errors are ``InfluenceError``, and warnings
``InfluenceWarning`` where no ``listener`` hears them.  In the folder ``sample_data``:

>>> import influence_cli
>>> scores = influence_cli.score("manifest.parquet", checkpoint="run", method=["ip", "loss"])
>>> scores.num_rows, scores.column_names[:5]
(1078, ['id', 'row_key', 'label', 'score', 'score_ip_utility'])
>>> influence_cli.plan("manifest.parquet", checkpoint="run", method="loss")["rows_to_compute"]
0
>>> edits = influence_cli.curate(scores, by="score_loss", budget="10%", output="out/clean.parquet")
>>> edits.num_rows, edits.column("action")[0].as_py()
(107, 'trim')
>>> found = influence_cli.evaluate(scores, budget="10%")["detection"]
>>> found["loss"]["auc"] > found["ip_utility"]["auc"] > found["random"]["auc"]
True
>>> metrics = influence_cli.retrain("out/clean.parquet", "out/run", model="mlp:32", epochs=3)
>>> metrics["arms"]["all rows"]["train_rows"]
971
>>> influence_cli.score("manifest.parquet", checkpoint="absent")
Traceback (most recent call last):
    ...
influence_cli.errors.ModelError: no such checkpoint
in: absent
fix: pass checkpoint=PATH

A model of one's own, with its own transform, loss and torch Dataset:

>>> import torch
>>> class Stripes(torch.utils.data.Dataset):
...     def __init__(self, first, rows):
...         self.first, self.rows = first, rows
...     def __len__(self):
...         return self.rows
...     def __getitem__(self, k):
...         return [float(self.first + k), 1.0], (self.first + k) % 2
>>> task = influence_cli.Task(
...     model=torch.nn.Linear(2, 2),
...     transform=lambda values: torch.tensor(values) / 100,
...     loss=lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
... )
>>> influence_cli.score(Stripes(0, 30), target=Stripes(30, 10), task=task, store=None).num_rows
30
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict, TypeVar, Unpack

from influence_cli.arguments import speak_of_arguments
from influence_cli.data.outside import allowing_outside
from influence_cli.errors import InfluenceError, UsageError, UserCodeError, WrongArgument
from influence_cli.events import SILENT, Listener, Warnings
from influence_cli.options import as_hinted, build_request, check_call, checked, options_in, place, refuse_unknown, take
from influence_cli.settings import GradSpec, Inputs, Limits, Options, Runtime

if TYPE_CHECKING:
    import pyarrow as pa

    from influence_cli.data.ingest import Ingested
    from influence_cli.model.task import Task
    from influence_cli.stages.run.run import Run
    from influence_cli.stages.run.session import Session


class RunOptions(TypedDict, total=False):
    """Options of ``grads`` and ``score``, with the meaning and the defaults of the command line's."""

    checkpoint: str | None
    task: Task | None
    model: Any  # a name, or a fitted linear classifier of scikit-learn
    target: Any
    features_model: str | None
    features_checkpoint: str | None
    features_size: int | tuple[int, ...] | None
    method: str | list[str]
    objective: str | list[str]
    options: Options
    params: str
    precision: str
    seed: int
    relative: bool
    label: str
    group: str
    input_size: int | None
    max_length: int | None
    num_classes: int | None
    class_map: str | list[str] | dict[str, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: str | None
    crop: float | None
    overlap: str
    allow_overlap: bool  # the older name of overlap="drop"
    skip_bad: bool
    allow_outside: bool
    fit_rows: str | None
    store: str | None  # None: a temporary store
    device: str
    batch_size: int | None
    workers: int
    engine: str
    rows: str | None
    sketch_dim: int
    rows_limit: float
    max_minutes: float | None
    max_disk: float | None
    listener: Listener


_TYPES = {"pa": SimpleNamespace(Table=Any), **dict.fromkeys(("Ingested", "Task", "Run", "Session"), Any)}
P = ParamSpec("P")
T = TypeVar("T")


@functools.cache
def _switches() -> frozenset[str]:
    """Options that are true or false."""
    from influence_cli.data.request import IngestRequest
    from influence_cli.stages.evaluate.request import EvaluateRequest
    from influence_cli.stages.retrain.request import RetrainRequest

    kinds = (Inputs, GradSpec, Runtime, IngestRequest, EvaluateRequest, RetrainRequest)
    return frozenset(o.name for kind in kinds for o in options_in(kind) if o.kind is bool)


def _called_from_python(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with errors that speak of arguments, not flags, and warnings as Python's where nobody listens.

    Code of the user's that ends the program (a model, a Dataset) is an error like any.
    """
    takes = inspect.signature(function).parameters.values()
    listens = any(p.kind is inspect.Parameter.VAR_KEYWORD or p.name == "listener" for p in takes)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        outside = as_hinted("allow_outside", kwargs.pop("allow_outside", False), bool)
        if listens and kwargs.get("listener") is None:
            kwargs["listener"] = Warnings(sys._getframe(1), _switches())
        check_call(function, kwargs, _TYPES)
        if listens and not callable(getattr(kwargs["listener"], "warn", None)):
            raise WrongArgument(f"listener is a {type(kwargs['listener']).__name__}", fix="give a Listener")
        try:
            with allowing_outside(outside):
                return function(*args, **kwargs)
        except InfluenceError as error:
            speak_of_arguments(error, _switches())
            raise
        except (SystemExit, GeneratorExit) as error:
            raise UserCodeError(
                f"the program was ended from inside ({type(error).__name__}: {error}); nothing is finished",
                fix="let your own code return or raise an error",
            ) from error

    return called


def _open(manifest: Any, given: dict[str, Any], effects: str = "") -> tuple[Run, Session]:
    """A run and its session from options by name; WrongArgument where one is unknown or of another type."""
    from influence_cli.model.scikit import remember, with_estimator
    from influence_cli.stages.run.input_said import say_input
    from influence_cli.stages.run.open import open_run
    from influence_cli.stages.run.session import Session
    from influence_cli.stages.run.within_limits import within_limits

    listener, model = given.pop("listener"), given.get("model")
    manifest, given = with_estimator(manifest, given, listener)
    kinds, values = (Inputs, GradSpec, Runtime, Limits), dict[str, Any]()
    named = {"options": (GradSpec, "set"), "task": (Inputs, "task"), "features": (Inputs, "features_model")}
    for kind in kinds:
        named |= {name: (kind, name) for name in (o.name for o in options_in(kind)) if name not in ("manifest", "set")}
    refuse_unknown({name: v for name, v in given.items() if name not in named}, named)
    for name, value in given.items():
        kind, option = named[name]
        values[option] = value if value is None else checked(kind, option, value, name)
    inputs = build_request(Inputs, values, manifest=manifest)
    temporary = {"store": None} if "store" in values and values["store"] is None else {}
    session = Session.open(build_request(Runtime, values, **temporary), listener)
    run = open_run(inputs, build_request(GradSpec, values), session, effects)
    remember(run.manifest.fingerprint, model)
    say_input(run, session)
    insisted = frozenset({"params", "precision"} & values.keys())
    return within_limits(run, session, build_request(Limits, values), insisted, effects), session


@_called_from_python
def manifest(source: Any, output: str, **options: Any) -> Ingested:
    """A checked manifest, written to ``output``, from a folder, a file, an Arrow table or a DataFrame.

    ``options``: ``label``, ``id``, ``image``, ``features``, ``weight``, ``group``, ``keep`` and ``drop`` name columns,
    ``like`` an earlier manifest; ``task`` what labels are ("regression"); ``split`` ("80/10/10"), ``seed``, ``embed``
    and ``skip_bad`` as on the command line.
    The result holds the manifest, what the source was taken to mean, what was left out, notes, and skipped rows.
    """
    from influence_cli.data.ingest import make_manifest
    from influence_cli.data.request import Columns, IngestRequest

    listener = options.pop("listener")
    named, request = take((Columns, IngestRequest), options)
    request = IngestRequest(source, place("output", output), Columns(**named), **request)
    return make_manifest(request, listener)


@_called_from_python
def plan(manifest: Any, **options: Unpack[RunOptions]) -> dict[str, Any]:
    """What ``grads`` or ``score`` would compute and why: rows stored and rows to compute, passes, seconds, bytes."""
    from influence_cli.stages.run.backbone_run import with_features_plan, with_features_there
    from influence_cli.stages.run.plan import describe_plan, missing_work

    run, session = _open(manifest, dict(options))
    run = with_features_there(run, session)
    described = describe_plan(run, session, missing_work(run, session))
    return with_features_plan(described, run, session, estimate=False)


@_called_from_python
def grads(manifest: Any, **options: Unpack[RunOptions]) -> pa.Table:
    """Fill the store with what the rows lack; a row per train row: id, row_key, payload_key, label, loss."""
    from influence_cli.stages.grads.fill import fill
    from influence_cli.stages.score.grads_table import grads_table

    run, session = _open(manifest, dict(options))
    run, _ = fill(run, session)
    return grads_table(run, session)


@_called_from_python
def score(
    manifest: Any, *, per_member: bool = False, combine: str | None = None, **options: Unpack[RunOptions]
) -> pa.Table:
    """One score per train row, positive where the row helps; runs what is missing of ``grads``.

    ``combine`` is the rule that makes one score of several objectives: ranksum, zsum, minrank, lexi or linear.
    """
    from influence_cli.stages.score.score import score as stage

    return stage(*_open(manifest, dict(options)), per_member, combine)[0]


@_called_from_python
def per_target(manifest: Any, *, top: int = 10, **options: Unpack[RunOptions]) -> pa.Table:
    """For each target row its ``top`` most helpful and most harmful train rows, as ``influence score --per-target``.

    A row per pair: target_id, target_row_key, target_label, rank, side, id, row_key, label and score.
    """
    from influence_cli.stages.score.per_target import table

    return table.per_target(*_open(manifest, dict(options), effects=table.PAIRS), top)[0]


@_called_from_python
def tokens(
    manifest: Any, *, top: int = 10, row_id: str | list[str] | tuple[str, ...] = (), decomposition: str = "loss",
    **options: Unpack[RunOptions],
) -> pa.Table:  # fmt: skip
    """Scores by token of the ``top`` most helpful and harmful texts, or of ``row_id``'s, as ``score --tokens``."""
    from influence_cli.stages.score.tokens.request import TokenRequest
    from influence_cli.stages.score.tokens.table import token_scores

    asked = TokenRequest(True, decomposition, (row_id,) if isinstance(row_id, str) else tuple(row_id))
    return token_scores(*_open(manifest, dict(options)), asked, top).table


@_called_from_python
def curate(
    scores: Any, *, manifest: Any = None, model: Any = None, action: str = "trim", budget: str | int | None = None,
    by: str | list[str] = "score", combine: str | None = None, maximise: str | None = None,
    subject_to: str | list[str] | tuple[str, ...] = (), target_recall: str | float | None = None,
    max_false: str | float | None = None, bins: str | None = None, review_budget: str | int | None = None,
    decisions: str | None = None, options: Options | None = None, label: str | None = None, skip_bad: bool = False,
    output: str | None = None, seed: int = 0, store: str | None = ".influence", device: str = "auto",
    listener: Listener | None = None,
) -> pa.Table:  # fmt: skip
    """The edits of a score table (a path or a table) under a budget, most harmful first; or those that a file says.

    Several columns ``by`` are combined, by rank sum unless ``combine`` says otherwise; ``maximise`` an objective
    ``subject_to`` others, such as "fairness>=0", in their place.  With ``output`` the curated manifest is written too.
    ``target_recall`` and ``max_false`` cut where canaries say (``retrain --canaries``), and ``by="auto"`` acts on the
    column that finds canaries best; ``seed``, ``store`` and ``device`` are of these.  ``bins`` is where every row's bin
    is written, ``review_budget`` how many rows are marked there for review.
    ``manifest`` is needed where the scores are of rows in memory, and ``model``, the fitted classifier of scikit-learn,
    where such a one was scored by another program.
    """
    from influence_cli.model.scikit import rows_scored
    from influence_cli.stages.curate.request import CurateRequest
    from influence_cli.stages.evaluate.written_edits import curate_and_write

    numbers = {"budget": budget, "target_recall": target_recall, "max_false": max_false, "review_budget": review_budget}
    asked: dict[str, Any] = {
        "action": action, "by": by, "combine": combine, "maximise": maximise, "subject_to": subject_to, "bins": bins,
        "decisions": decisions, "options": options or {}, "label": label, "skip_bad": skip_bad,
        **{name: None if value is None else str(value) for name, value in numbers.items()},
    }  # fmt: skip
    (values,) = take((CurateRequest,), asked)
    output = None if output is None else place("output", output)
    request = CurateRequest(scores, manifest=rows_scored(scores, manifest, model, label), **values)
    runtime = Runtime(checked(Runtime, "store", store), checked(Runtime, "device", device))
    return curate_and_write(request, runtime, seed, listener or SILENT, output).table()


@_called_from_python
def retrain(manifest: Any, output: str, **options: Any) -> dict[str, Any]:
    """Train and compare, as ``influence retrain``; returns what it writes to ``output``/metrics.json.

    ``options``: ``model`` or ``task``, ``label``, ``group``, ``input_size``, ``num_classes``, ``class_map``, ``mean``,
    ``std``, ``skip_bad``; ``against``, ``arms`` (name -> manifest), ``test``, ``init``, ``seeds``, ``seed``,
    ``calibration``, ``keep_checkpoints``, ``pretrained``, ``device``, ``log``; and a recipe's ``epochs``, ``lr``,
    ``batch_size``, ``optimizer``, ``momentum``, ``weight_decay``, ``schedule``, ``augment``, ``amp``.
    """
    from influence_cli.model.train.recipe import Recipe
    from influence_cli.stages.retrain.logged import retrain_and_log as stage
    from influence_cli.stages.retrain.request import RetrainRequest

    listener, log = options.pop("listener"), options.pop("log", ())
    arms = tuple(dict(options.pop("arms", {})).items())
    recipe, inputs, request = take((Recipe, Inputs, RetrainRequest), options, "log")
    request = {"test_required": False, **request, "arms": arms, "overlap_asked": "overlap" in inputs}
    made = RetrainRequest(Inputs(manifest, **inputs), place("output", output), **request)
    return stage(made, Recipe(**recipe, asked=frozenset(recipe)), listener, log)


@_called_from_python
def evaluate(*scores: Any, **options: Any) -> dict[str, Any]:
    """How far to trust one or more score tables (paths or tables) of the same rows.

    ``options``: ``manifest``, ``label``, ``budget``, ``clean_column``, ``known_bad``, ``reference``, ``draws``,
    ``seed``, ``stability``, ``checkpoint``, ``log`` and ``skip_bad`` as for the command, ``store``, and ``model`` where
    the tables were scored with a ``python:`` model, or by another program with one of scikit-learn.
    """
    from influence_cli.model.scikit import rows_scored
    from influence_cli.stages.evaluate.logged import evaluate_and_log as stage
    from influence_cli.stages.evaluate.request import EvaluateRequest

    if not scores:
        raise UsageError("no score table", fix="give one or more: evaluate(scores)")
    listener, model = options.pop("listener"), options.pop("model", None)
    options["budget"] = str(options.get("budget") or "5%")
    store, log = options.pop("store", ".influence"), options.pop("log", ())
    (values,) = take((EvaluateRequest,), options, "model", "store", "log")
    named = isinstance(model, str) or model is None
    runtime = Runtime(checked(Runtime, "store", store), code=model if named else None)
    rows = rows_scored(scores[0], values.pop("manifest", None), model, values.get("label"))
    return stage(EvaluateRequest(scores, manifest=rows, **{**values, "runtime": runtime}), listener, log)
