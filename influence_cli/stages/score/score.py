"""(2) store -> one score column per method and objective, with what is known of their noise.

A row's score is arithmetic on what the store holds: for a linear method the mean over members of
``sum_c p_c (t_c - t_y)``; for an output method a function of its logits and label; for a row method
of a value of its own gradient.  Positive: the row helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.classes import class_count
from influence_cli.data.tables import with_provenance
from influence_cli.errors import UsageError
from influence_cli.maths.labels import margin, of_label, softmax
from influence_cli.methods.protocol import FreeMethod, Linear, OutputMethod, Preconditioned, RowMethod
from influence_cli.model.run_folder import RunFolder
from influence_cli.stages.grads.curvature_report import effect_weight
from influence_cli.stages.grads.fill import fill
from influence_cli.stages.grads.provenance import base_table, nullable, provenance_of
from influence_cli.stages.run.job import Job, Member
from influence_cli.stages.run.row_values import values_of
from influence_cli.stages.score.combine import check_rule, combine_options, combined, kind_of
from influence_cli.stages.score.noise import direction_noise
from influence_cli.stages.score.relative import divided, is_divided, length_in_scores, note_divided

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Column:
    """One method's scores under one objective [n], with what its members say."""

    name: str
    kind: str
    score: Floats
    members: Floats | None = None  # [M, n]
    labels: Floats | None = None  # [n, C]: the score with each label
    effect: bool = False  # whether score / n estimates an effect of removal


def score(job: Job, per_member: bool = False, combine: str | None = None) -> pa.Table:
    """The score table of a job, after filling the store with what it lacks.

    Columns: id, row_key, label, score (the first method's first objective), effect (score / n with n the sum of the
    fit rows' weights: by how much Phi rises when a row of weight 1 is removed and the divisor of the training
    objective stays n; only where that method estimates one), score_<objective> or
    score_<method>_<objective>, score_std and agreement over members, best_label and best_label_gain, and what the
    model says of the row: loss, margin, model_label and model_probability (its best other label).  Where the
    checkpoint was trained with canaries, ``canary`` is the label planted for the row; scores are of its own label.
    With ``combine`` the first method's objectives become ``score`` (and score_<rule>) by that rule.
    """
    if combine is not None:
        check_rule(combine)
    fill(job)
    columns = [c for name in job.methods for c in _columns(job, name)]
    if combine is not None:
        columns.insert(0, _combined(job, columns, combine))
    note_divided(job)
    table = base_table(job)
    first = columns[0]
    table = table.append_column("score", nullable(first.score))
    if first.effect:
        weight = effect_weight(job, first.name.partition("/")[0])
        table = table.append_column("effect", nullable(first.score / weight))
    for c in columns:
        table = table.append_column(_column_name(job, c.name), nullable(c.score))
    table = _append_members(table, first, per_member, columns, job)
    if first.labels is not None:
        among = first.labels[:, : class_count(job.manifest.classes, job.train.labels)]
        best, gain = among.argmax(axis=1), among.max(axis=1) - first.score
        usable = np.isfinite(first.score)
        table = table.append_column("best_label", pa.array(best.astype(np.int64), mask=~usable))
        table = table.append_column("best_label_gain", nullable(np.maximum(gain, 0.0)))
    if job.members:
        table = _append_model_says(table, job)
    planted = None if job.checkpoint is None else RunFolder.of(job.checkpoint.locator).planted_labels(job.train)
    if planted is not None and (planted >= 0).any():
        table = table.append_column("canary", pa.array(planted, mask=planted < 0))
        job.listener.note(
            f"{int((planted >= 0).sum())} rows are canaries of the checkpoint: `curate` leaves them alone"
        )
    meant = [first] if combine is None else columns[1:]  # lexi gives rows that are no candidates no score
    bad_rows = np.flatnonzero(~np.isfinite(np.stack([c.score for c in meant])).all(axis=0))
    unusable = len(bad_rows)
    if unusable:
        named = [job.train.ids[k] for k in bad_rows[:5].tolist()]
        job.listener.warn(f"{unusable} rows have a non-finite score and are null, never ranked: {', '.join(named)}")
    return with_provenance(
        table,
        {
            **provenance_of(job, "score"),
            "kinds": {_column_name(job, c.name): c.kind for c in columns},
            "score_is": _column_name(job, first.name),
            "kind": first.kind,
            "effect": first.effect,
            **_said_of_columns(job, columns),
            "preconditioned": _preconditioned(job),
            "noise": direction_noise(job),
        },
    )


def _combined(job: Job, columns: list[Column], rule: str) -> Column:
    """The first method's objectives as one column.

    Raises:
        UsageError: there are not two of them.
    """
    method = next(iter(job.methods))
    mine = [c for c in columns if c.name.startswith(f"{method}/")]
    if len(mine) < 2:
        raise UsageError(
            f"--combine {rule} needs two objectives of a method that measures them; {method} gives {len(mine)}",
            fix="--method ip --objective utility --objective fairness",
        )
    options = combine_options(job.spec.options)
    if rule == "linear":
        return _linear_column(job, method, job.method_members[method], rule, options.shares(rule, len(mine)))
    return Column(rule, kind_of(rule), combined(rule, np.stack([c.score for c in mine]), options))


def _said_of_columns(job: Job, columns: list[Column]) -> dict[str, Any]:
    """By column: its objective, lengths of its direction at its members, and what makes its scores an effect, if so."""
    of = {_column_name(job, c.name): c for c in columns if c.name.partition("/")[2] in job.objectives}
    norms = {
        name: [length_in_scores(job, method, m, objective) for m in job.method_members[method]]
        for name, c in of.items()
        for method, _, objective in [c.name.partition("/")]
    }
    return {
        "objective_of": {name: c.name.partition("/")[2] for name, c in of.items()},
        "norms": norms,
        "effect_divisors": {name: effect_weight(job, c.name.partition("/")[0]) for name, c in of.items() if c.effect},
    }


def _preconditioned(job: Job) -> dict[str, Any]:
    """By column, the names of q and of u = P q at every member, where a method has a u of its own."""
    return {
        _column_name(job, f"{name}/{objective}"): [
            {"q": job.direction(member, objective), "u": job.along(name, member, objective)}
            for member in job.method_members[name]
        ]
        for name, method in job.methods.items()
        if isinstance(method, Preconditioned)
        for objective in job.objectives
    }


def _column_name(job: Job, name: str) -> str:
    """``method/objective`` as a column: the method is left out where there is only one."""
    method, _, objective = name.partition("/")
    if len(job.methods) == 1:
        return f"score_{objective or method}"
    return f"score_{method}_{objective}" if objective else f"score_{method}"


def _columns(job: Job, name: str) -> list[Column]:
    method = job.methods[name]
    if isinstance(method, FreeMethod):
        return [Column(name, method.kind, method.score(job.train.ids, job.spec.seed))]
    members = job.method_members[name]
    if isinstance(method, OutputMethod):
        logits = job.outputs(members[0]).read(job.train.payload_keys)["logits"]
        return [Column(name, method.kind, method.score(logits, job.train.labels, job.row_loss))]
    if isinstance(method, RowMethod):
        return [Column(name, method.kind, method.score(values_of(job, name, members[0], job.train.row_keys)))]
    assert isinstance(method, Linear)
    return [_linear_column(job, name, members, objective) for objective in job.objectives]


def _linear_column(job: Job, name: str, members: list[Member], objective: str, shares: Floats | None = None) -> Column:
    """A linear method's scores for an objective; with ``shares`` of all objectives, for the blend of their directions.

    The blend's direction at a member is sum_j share_j q_j / |q_j|; a tangent is linear in its direction, so the
    blend's tangent is the same sum of tangents.
    """
    keys, labels = job.train.payload_keys, job.train.labels
    every: list[Floats] = []
    for member in members:
        logits = job.outputs(member).read(keys)["logits"]
        if shares is None:
            tangents = job.tangents(job.along(name, member, objective)).read(keys)["tangent"]
        else:
            tangents = _blended_tangents(job, name, member, shares)
        with np.errstate(invalid="ignore", over="ignore"):
            every.append(job.row_loss.label_scores(logits, tangents))
    about, own = objective if shares is None else None, job.train.row_keys
    stacked = np.stack(
        [
            divided(job, name, member, about, of_label(scores, labels), own)
            for member, scores in zip(members, every, strict=True)
        ]
    )
    plain = not is_divided(job, name)
    called = f"{name}/{objective}" if shares is None else objective
    effect = job.methods[name].effect and shares is None and plain
    return Column(called, "signed", _mean(list(stacked)), stacked, _mean(every) if plain else None, effect)


def _blended_tangents(job: Job, name: str, member: Member, shares: Floats) -> Floats:
    """Tangents [n, C] along sum_j share_j q_j / |q_j|, in float64.

    Raises:
        UsageError: a direction is zero.
    """
    total: Floats | None = None
    for share, objective in zip(shares.tolist(), job.objectives, strict=True):
        meta = job.store.direction_meta(job.direction(member, objective))
        if meta is None or not meta["norm"] > 0:
            raise UsageError(f"the direction of {objective} is zero: there is nothing to blend", fix="leave it out")
        tangents = job.tangents(job.along(name, member, objective)).read(job.train.payload_keys)["tangent"]
        part = share / meta["norm"] * tangents.astype(np.float64)
        total = part if total is None else total + part
    assert total is not None
    return total


def _mean(members: list[Floats]) -> Floats:
    """The mean over members, exact where they are equal (a plain mean of equal floats is off by an ulp)."""
    first = members[0]
    with np.errstate(invalid="ignore"):
        return first + sum(m - first for m in members[1:]) / len(members)


def _append_members(table: pa.Table, first: Column, per_member: bool, columns: list[Column], job: Job) -> pa.Table:
    """Spread over the first column's members, and with ``per_member`` every member's score."""
    if first.members is not None and len(first.members) > 1:
        with np.errstate(invalid="ignore"):
            table = table.append_column("score_std", nullable(first.members.std(axis=0, ddof=1)))
        positive = (first.members > 0).mean(axis=0)
        positive[~np.isfinite(first.members).all(axis=0)] = np.nan
        table = table.append_column("agreement", nullable(np.maximum(positive, 1.0 - positive)))
    if per_member:
        for c in columns:
            for k, values in enumerate(c.members if c.members is not None else ()):
                table = table.append_column(f"{_column_name(job, c.name)}_{k}", nullable(values))
    return table


def _append_model_says(table: pa.Table, job: Job) -> pa.Table:
    """Loss and margin at the checkpoint (or first member), and the most probable label that the row has not."""
    logits = job.outputs(job.plain_member()).read(job.train.payload_keys)["logits"]
    labels = job.train.labels
    with np.errstate(invalid="ignore", over="ignore"):
        table = table.append_column("loss", nullable(job.row_loss.losses(logits, labels)))
        table = table.append_column("margin", nullable(margin(logits, labels)))
        probability = softmax(logits)
    np.put_along_axis(probability, labels[:, None], -1.0, axis=1)
    among = probability[:, : class_count(job.manifest.classes, labels)]  # a model may have more outputs
    highest = among.max(axis=1)
    other = pa.array(among.argmax(axis=1).astype(np.int64), mask=~np.isfinite(highest) | (highest < 0.0))
    highest = np.where(highest < 0.0, np.nan, highest)  # of a single class there is no other label
    return table.append_column("model_label", other).append_column("model_probability", nullable(highest))
