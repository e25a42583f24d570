"""(2) store -> one score column per method and objective, with what is known of their noise.

A row's score is arithmetic on what the store holds, by its method's ``score``.  Positive: the row helps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.tables import with_provenance
from influence_cli.errors import UsageError
from influence_cli.memory import trim_memory
from influence_cli.methods.protocol import Scores, is_summed
from influence_cli.model.run_folder import RunFolder
from influence_cli.stages.grads.curvature_report import effect_weight
from influence_cli.stages.grads.fill import fill
from influence_cli.stages.grads.provenance import base_table, nullable, provenance_of, with_later_rows
from influence_cli.stages.run import names
from influence_cli.stages.run.backbone_run import NAME, features_run
from influence_cli.stages.run.rates import note_pairs
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.choice import choice
from influence_cli.stages.score.combine import check_rule, combine_options, combined, kind_of
from influence_cli.stages.score.model_says import append_model_says, append_other
from influence_cli.stages.score.noise import direction_noise
from influence_cli.stages.score.stored import Blend, StoredRows
from influence_cli.store.arrow import array_of, array_of_texts

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Column:
    """One method's scores under one objective, under the name METHOD/OBJECTIVE, or a rule's."""

    name: str
    kind: str
    scores: Scores


def score(run: Run, session: Session, per_member: bool = False, combine: str | None = None) -> tuple[pa.Table, Run]:
    """The score table of a run, after filling the store with what it lacks, and the run as it is then.

    ``data.columns`` says what each column holds.  Where the checkpoint was trained with canaries, ``canary`` is the
    label planted for the row; scores are of its own label.  n, of ``effect``, is the sum of the fit rows' weights.
    With ``combine`` the first method's objectives become ``score`` (and score_<rule>) by that rule.
    """
    if combine is not None:
        check_rule(combine)
    run, _ = fill(run, session)
    columns = [c for name in run.methods for c in _columns(run, session, name)]
    if combine is not None:
        columns.insert(0, _combined(run, session, columns, combine))
    _note_divided(run, session)
    noise = direction_noise(run, session)
    session.forget_folders("tangents")
    trim_memory()
    table = _with_scores(base_table(run), run, session, columns, per_member)
    columns = [replace(c, scores=replace(c.scores, best=None, by_member=None)) for c in columns]  # as large as all
    if run.members:
        table = append_model_says(table, run, session, columns[0].scores.logits)
    elif columns[0].scores.logits is not None and run.row_loss.by_class:
        table = append_other(table, run, columns[0].scores.logits)
    table = with_later_rows(_append_canaries(table, run, session), run)
    _say_no_score(session, columns)
    _warn_of_nulls(run, session, columns if combine is None else columns[1:])  # lexi scores candidates alone
    said = _said_of_columns(run, session, columns)
    about = {
        **provenance_of(run, session, "score"),
        "kinds": {column_name(run, c.name): c.kind for c in columns},
        "score_is": column_name(run, columns[0].name),
        "kind": columns[0].kind,
        **({} if columns[0].scores.logits is None else {"other_label_is": "out of fold"}),
        "effect": columns[0].scores.effect,
        **said,
        **choice(run, said.get("facts", {}), noise),
        "preconditioned": _preconditioned(run),
        "noise": noise,
    }
    return with_provenance(table, about), run


def _with_scores(table: pa.Table, run: Run, session: Session, columns: list[Column], per_member: bool) -> pa.Table:
    """The columns of scores, and what the first of them says of members and of other labels."""
    first = columns[0].scores
    own = nullable(first.values)
    table = table.append_column("score", own)
    if first.effect:
        weight = effect_weight(run, session, columns[0].name.partition("/")[0])
        table = table.append_column("effect", nullable(first.values / weight))
    for c in columns:
        values = own if c.scores is first else nullable(c.scores.values)
        table = table.append_column(column_name(run, c.name), values)
    for c in columns:
        for name, values in c.scores.also.items():
            texts = values.dtype.kind == "U"
            array = array_of_texts(values.tolist()) if texts else array_of(values, null=values < 0)
            table = table.append_column(f"{c.name}_{name}", array)
    table = _append_members(table, first, per_member, columns, run)
    if first.best is not None:
        table = table.append_column("best_label", array_of(first.best.labels, null=~np.isfinite(first.values)))
        table = table.append_column("best_label_gain", nullable(np.maximum(first.best.scores - first.values, 0.0)))
    return table


def _append_canaries(table: pa.Table, run: Run, session: Session) -> pa.Table:
    """The label that was planted for a row where the checkpoint was trained with canaries."""
    planted = None if run.checkpoint is None else RunFolder.of(run.checkpoint.locator).planted_labels(run.train)
    if planted is None or not (planted >= 0).any():
        return table
    count = int((planted >= 0).sum())
    session.listener.note(f"{count} rows are canaries of the checkpoint: `curate` leaves them alone")
    return table.append_column("canary", array_of(planted, null=planted < 0))


def _warn_of_nulls(run: Run, session: Session, columns: list[Column]) -> None:
    """Name the rows of which a method has no score and nothing excuses it; once where several lack the same rows."""
    said = set[bytes]()
    for method in dict.fromkeys(c.name.partition("/")[0] for c in columns):
        mine = [c.scores for c in columns if c.name.partition("/")[0] == method]
        lacking = np.any([~np.isfinite(s.values) & ~_excused(s) for s in mine], axis=0)
        bad = np.flatnonzero(lacking)
        if len(bad) == 0 or lacking.tobytes() in said:
            continue
        said.add(lacking.tobytes())
        named = ", ".join(run.train.ids[k] for k in bad[:5].tolist())
        by = "" if len(run.methods) == 1 else f"{method}: "
        text = f"{by}{len(bad)} rows have a non-finite score and are null, never ranked: {named}"
        if len(bad) == len(run.train):
            text = f"{by}no row has a score: what the scores are made of is not finite (has training diverged?)"
        session.listener.warn(text)


def _excused(scores: Scores) -> NDArray[np.bool_]:
    """Of which rows [n] the method says why they have no score."""
    if not scores.no_score:
        return np.zeros(len(scores.values), dtype=bool)
    return ~np.isfinite(scores.values) if scores.excused is None else scores.excused


def _say_no_score(session: Session, columns: list[Column]) -> None:
    """Count the rows of which some method has no score for a reason of its own."""
    for reason in dict.fromkeys(c.scores.no_score for c in columns if c.scores.no_score):
        rows = np.any([_excused(c.scores) for c in columns if c.scores.no_score == reason], axis=0)
        if rows.any():
            every = [c.name.partition("/")[0] for c in columns if c.scores.no_score == reason]
            by = ", ".join(dict.fromkeys(every))
            session.listener.warn(f"{by}: {int(rows.sum()):,} of {len(rows):,} rows {reason}: their score is null")


def _combined(run: Run, session: Session, columns: list[Column], rule: str) -> Column:
    """The first method's objectives as one column.

    Raises:
        UsageError: there are not two of them.
    """
    method = next(iter(run.methods))
    mine = [c for c in columns if c.name.startswith(f"{method}/")]
    if len(mine) < 2:
        raise UsageError(
            f"--combine {rule} needs two objectives of a method that measures them; {method} gives {len(mine)}",
            fix="--method ip --objective utility --objective fairness",
        )
    options = combine_options(run.spec.options)
    if rule == "linear":
        if run.methods[method].needs != "tangents":
            what = f"--combine linear blends directions of unit length, and {method} has no directions"
            raise UsageError(what, fix="--combine ranksum, or --method ip")
        blend = Blend(run, session, method, rule, options.shares(rule, len(mine)))
        (scores,) = run.methods[method].score(blend, run.train, run.row_loss)
        return Column(rule, "signed", replace(scores, effect=False))
    of_rule = combined(rule, np.stack([c.scores.values for c in mine]), options)
    return Column(rule, kind_of(rule), Scores(of_rule))


def _said_of_columns(run: Run, session: Session, columns: list[Column]) -> dict[str, Any]:
    """By column: its objective, lengths of its direction at its members, and what makes its scores an effect, if so."""
    of = {column_name(run, c.name): c for c in columns if c.scores.objective in run.objectives}
    method_of = {name: c.name.partition("/")[0] for name, c in of.items()}
    directed = [name for name in of if run.methods[method_of[name]].needs == "tangents"]
    summed = [n for n in of if is_summed(run.methods[method_of[n]])]
    facts = {column_name(run, c.name): c.scores.facts for c in columns if c.scores.facts}
    weights = {n: list(c.scores.weights) for n, c in of.items() if len(set(c.scores.weights)) > 1 or n in summed}
    return {
        "objective_of": {name: c.scores.objective for name, c in of.items()},
        "norms": {
            name: _lengths(run, session, method_of[name], str(c.scores.objective))
            for name, c in of.items()
            if name in directed
        },
        "effect_divisors": {n: effect_weight(run, session, method_of[n]) for n, c in of.items() if c.scores.effect},
        **({"facts": facts} if facts else {}),
        **({"member_weights": weights} if weights else {}),
        **({"summed_over_members": summed} if summed else {}),
    }


def _lengths(run: Run, session: Session, method: str, objective: str) -> list[float]:
    """At each member the length of the direction that scores are of: |q|, or 1 where they are of q / |q|."""
    stored, how = StoredRows(run, session, method), run.methods[method]
    found = [stored.length(member, objective) or 0.0 for member in stored.members]
    return [1.0 if how.of_unit_direction() and norm > 0 else norm for norm in found]


def _note_divided(run: Run, session: Session) -> None:
    """Say what is not said of scores that are divided by the size of a row's own gradient."""
    divided = [name for name, method in run.methods.items() if method.needs == "tangents" and name in run.values]
    if divided:
        session.listener.note(
            f"{', '.join(divided)}: over the size of each row's own gradient, so without effect and best label "
            "(another label is another gradient)"
        )


def _preconditioned(run: Run) -> dict[str, Any]:
    """By column, the names of q and of u = P q at every member, where a method has a u of its own."""
    return {
        column_name(run, f"{name}/{objective}"): [
            {
                "q": names.direction(run, names.query(run, name, member), objective),
                "u": names.along(run, name, member, objective),
            }
            for member in run.members_of[name]
        ]
        for name, method in run.methods.items()
        if method.fitted_curvature
        for objective in run.objectives
    }


def column_name(run: Run, name: str) -> str:
    """``method/objective`` as a column: the method is left out where there is only one."""
    method, _, objective = name.partition("/")
    if len(run.methods) == 1:
        return f"score_{objective or method}"
    return f"score_{method}_{objective}" if objective else f"score_{method}"


def _columns(run: Run, session: Session, name: str) -> list[Column]:
    """What a method says of the rows, for each objective or once."""
    method = run.methods[name]
    started = time.perf_counter()
    another = run.backbone is not None and method.needs == NAME
    at = features_run(run, session.runtime) if another else run
    found = method.score(StoredRows(at, session, name, of_another=another), run.train, run.row_loss)
    note_pairs(session, method.pairs(len(run.train), len(run.target)), time.perf_counter() - started)
    return [Column(f"{name}/{s.objective}" if s.objective else name, method.kind, s) for s in found]


def _append_members(table: pa.Table, first: Scores, per_member: bool, columns: list[Column], run: Run) -> pa.Table:
    """Spread over the first column's members, and with ``per_member`` every member's score."""
    if first.by_member is not None and len(first.by_member) > 1:
        with np.errstate(invalid="ignore"):
            table = table.append_column("score_std", nullable(first.times * _spread(first.by_member, first.weights)))
        positive = np.average(first.by_member > 0, axis=0, weights=first.weights)
        positive[~np.isfinite(first.by_member).all(axis=0)] = np.nan
        table = table.append_column("agreement", nullable(np.maximum(positive, 1.0 - positive)))
    if per_member:
        for c in columns:
            for k, values in enumerate(c.scores.by_member if c.scores.by_member is not None else ()):
                table = table.append_column(f"{column_name(run, c.name)}_{k}", nullable(values))
    return table


def _spread(members: Floats, weights: tuple[float, ...]) -> Floats:
    """The standard deviation over members [M, n], each as often as its weight says."""
    if len(set(weights)) == 1:
        return members.std(axis=0, ddof=1)
    mean = np.average(members, axis=0, weights=weights)
    variance = np.average((members - mean) ** 2, axis=0, weights=weights)
    return np.sqrt(variance * len(members) / (len(members) - 1))
