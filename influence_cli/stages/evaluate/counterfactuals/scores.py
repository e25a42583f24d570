"""The scores that a counterfactual is held against: columns of a table, and anew those for one target row alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError
from influence_cli.events import SILENT
from influence_cli.methods import AUTO, METHODS
from influence_cli.settings import Runtime
from influence_cli.stages.curate.combining import floats, score_column_names
from influence_cli.stages.curate.score_table import ScoreTable
from influence_cli.stages.evaluate.request import CounterfactualRequest
from influence_cli.stages.run.reopen import reopen, spec_of
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.combine import RULES
from influence_cli.stages.score.score import score

Floats = NDArray[np.float64]

MEASURED = "utility"  # the objective that is measured: the mean target loss
RANDOM = "random"


@dataclass(eq=False)
class ScoreColumns:
    """Scores [n] by name, positive or high where the row helps; ``left_out`` says why a column is in neither."""

    signed: dict[str, Floats] = field(default_factory=dict)  # add up: a sum predicts a change of Phi
    ranking: dict[str, Floats] = field(default_factory=dict)  # order rows and nothing more
    left_out: dict[str, str] = field(default_factory=dict)
    beside: set[str] = field(default_factory=set)  # loss and margin, which stand beside the scores that were asked for

    @property
    def none_asked(self) -> bool:
        """Whether no score column can be measured, be it that loss and margin beside them can."""
        return self.all.keys() <= self.beside

    @property
    def all(self) -> dict[str, Floats]:
        """Every column that orders rows."""
        return {**self.signed, **self.ranking}


def columns_of(scores: ScoreTable, used: NDArray[np.bool_]) -> ScoreColumns:
    """The score columns of a table, with loss and margin where there; members' columns are no scores of their own."""
    table, found = scores.table, ScoreColumns()
    kinds: dict[str, str] = scores.provenance.get("kinds", {})
    others = [o for o in scores.provenance.get("spec", {}).get("objectives", []) if o != MEASURED]
    for name in score_column_names(table):
        member = re.fullmatch(r"(.+)_\d+", name)  # of the column of its mean
        shown, values = name.removeprefix("score_"), floats(table, name)
        if name == "score" or shown == RANDOM or (member is not None and member[1] in table.column_names):
            continue  # the floor is drawn for every table
        objective = next((o for o in others if shown == o or shown.endswith(f"_{o}")), None)
        missing = int((~np.isfinite(values[used])).sum())
        if name not in kinds:
            found.left_out[shown] = "its kind, signed or ranking-only, is not recorded"
        elif shown in RULES and others:
            found.left_out[shown] = "it combines objectives; what is measured is the mean target loss"
        elif objective is not None:
            found.left_out[shown] = f"its objective is {objective}; what is measured is the mean target loss"
        elif missing:
            found.left_out[shown] = f"{missing} rows have no score"
        else:
            (found.signed if kinds[name] == "signed" else found.ranking)[shown] = values
    for name, sign in (("loss", -1.0), ("margin", 1.0)):
        if name in table.column_names and name not in found.ranking:
            values = sign * floats(table, name)
            if np.isfinite(values[used]).all():
                found.ranking[name] = values
                found.beside.add(name)
    return found


def open_scored_run(scores: ScoreTable, request: CounterfactualRequest, remember: bool = True) -> tuple[Run, Session]:
    """The run that a score table came from, reopened with the methods that can score for one target row.

    A target or checkpoint that is asked for is meant; None is the table's.

    Raises:
        UsageError: there is none.
    """
    asked = scores.provenance.get("spec", {}).get("methods", ())
    was = {AUTO: (scores.provenance.get("auto") or {}).get("method", AUTO)}  # auto may have been one that can
    methods = tuple(m for m in asked if m in METHODS and METHODS[was.get(m, m)].load().needs == "tangents")
    if not methods:
        what = "brittleness needs scores for single target rows, and no method of the table has them"
        raise UsageError(what, fix="score with --method ip")
    then = spec_of(scores.provenance)
    options = {name: values for name, values in then.options.items() if name in (*methods, MEASURED)}
    spec = replace(then, methods=methods, objectives=(MEASURED,), options=options)
    runtime = Runtime(request.store, request.training.device, code=request.training.model)
    source = request.scores.scores if isinstance(request.scores.scores, str) else "the score table"
    return reopen(
        scores.provenance, runtime, SILENT, source=source, manifest=scores.manifest, label=scores.label,
        target=request.target, checkpoint=request.checkpoint, spec=spec, another=request.checkpoint is not None,
        class_map=request.training.class_map, remember=remember,
    )  # fmt: skip


def scores_for(run: Run, session: Session, position: int) -> dict[str, Floats]:
    """Each method's scores [n] of all train rows for the target row at ``position``; kept in the store like any."""
    one = replace(run, target=run.target.take(np.array([position])))
    table, _ = score(one, session.silent())
    single = len(run.methods) == 1
    return {m: floats(table, f"score_{MEASURED}" if single else f"score_{m}_{MEASURED}") for m in run.methods}
