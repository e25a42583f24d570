"""What ``--method auto`` is in a run, by what the run is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.manifest import Manifest
from influence_cli.errors import UsageError
from influence_cli.methods import AUTO, METHODS
from influence_cli.methods.protocol import Method
from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.model.losses import loss_of
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec, Inputs
from influence_cli.stages.run.fit_set import refuse_without_curvature
from influence_cli.stages.run.run import Run

OWN_SIZE = "scores are to be divided by what each row does to itself"


def with_auto(
    methods: dict[str, Method], inputs: Inputs, spec: GradSpec, manifest: Manifest, effects: str,
    model: ModelSpec | None = None,
) -> tuple[dict[str, Method], str]:  # fmt: skip
    """The methods, with what ``auto`` is for these rows and objectives in its place, and why where it is of effects.

    ``effects`` is another reason for that, if there is one.
    """
    if AUTO not in methods:
        return methods, ""
    from influence_cli.methods.auto import Question, chosen

    kind, train, val = manifest.label_kind, manifest.rows("train").labels, manifest.rows("val").labels
    classes = 1 if kind.holds == CLASSES and (train == train[:1]).all() else 2
    question = Question(
        spec.objectives, spec.params, kind.holds if model is None else loss_of(model).holds, classes, len(train),
        inputs.target is not None or len(val) > 0, effects or (OWN_SIZE if spec.relative else ""),
    )  # fmt: skip
    made, because = chosen(methods[AUTO], question, spec.options)
    if model is not None and made.fitted_curvature:
        try:
            refuse_without_curvature({AUTO: cast("Preconditioned", made)}, model)
        except UsageError:
            made, because = chosen(methods[AUTO], replace(question, params="all"), spec.options)
    return {**methods, AUTO: made}, because


def planned(run: Run) -> dict[str, Any]:
    """For a plan, before anything is known of the scores: ``method``, and the first of the lines ``why``."""
    name = auto_is(run)
    if name is None:
        return {}
    line = f"auto judges labels by a probe and neighbours on {features_of(run)}" if name == AUTO else taken(run)
    return {"auto": {"method": name, "why": [line]}}


def taken(run: Run) -> str:
    """Which method of effects auto is in a run, and why.

    >>> from types import SimpleNamespace
    >>> from influence_cli.methods.ip import IP
    >>> taken(SimpleNamespace(methods={"auto": IP()}, objectives={"gap": None}, auto_because="that is the question"))
    'auto takes ip, which estimates what a row does to gap: that is the question'
    """
    about = ", ".join(run.objectives)
    return f"auto takes {auto_is(run)}, which estimates what a row does to {about}: {run.auto_because}"


def effects_said(run: Run) -> list[str]:
    """A line on which method of effects auto is in a run, where it is one."""
    return [taken(run)] if auto_is(run) not in (None, AUTO) else []


def auto_is(run: Run) -> str | None:
    """The name of the method that auto is in a run; None in a run without it."""
    method = run.methods.get(AUTO)
    return None if method is None else next(n for n, info in METHODS.items() if info.load() is type(method))


def method_is(run: Run, name: str) -> str:
    """The method that a name stands for in a run."""
    return (auto_is(run) or name) if name == AUTO else name


def called(run: Run) -> str:
    """The names of a run's methods, with what auto is."""
    is_now = auto_is(run)
    return ", ".join(f"{AUTO} ({is_now})" if n == AUTO != is_now else n for n in run.methods)


def features_of(run: Run) -> str:
    """Whose features a run's labels are judged by."""
    return f"features of {run.inputs.features}" if run.backbone is not None else "the model's own features"
