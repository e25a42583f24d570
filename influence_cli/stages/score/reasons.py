"""Why a train row has its score, in rows that a person can look at.

The target rows whose loss it raises most and lowers most, with their parts of the score (``target_parts``), what is
near to it by penultimate features (``nearby``): rows that help, rows of another label, and duplicates; and for a page
of texts, what their tokens are shaded by (``tokens.shading``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.classes import class_count
from influence_cli.data.label_kinds import CLASSES, SEVERAL
from influence_cli.data.manifest import Rows
from influence_cli.errors import InfluenceError
from influence_cli.events import SILENT, Listener
from influence_cli.settings import Runtime
from influence_cli.stages.grads.features import NAME, fill_features, run_of_features
from influence_cli.stages.grads.member_model import Models
from influence_cli.stages.run.curvature_plan import parameter_count
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.nearby import duplicate_groups, most_similar, near_limit, similarities
from influence_cli.stages.score.score import column_name
from influence_cli.stages.score.stored import StoredRows
from influence_cli.stages.score.target_parts import parts_by_target, why_no_parts
from influence_cli.stages.score.tokens.shading import Shading, shading_of
from influence_cli.store.arrow import values_of

Floats = NDArray[np.float64]
SUMS = 1e-3  # how far parts may sum to another number than the score, of the sum of their sizes, without a word
SOLVED = 16  # most rows for which a method solves for each by itself where many are asked for
AT_ONCE = 64  # rows whose similarities to all others are held
ROUNDING = 1e-12  # of a cosine of equal features
TARGET = "target"  # the split of a duplicate among the target rows


@dataclass(frozen=True)
class TargetPart:
    """A target row and its part of a score; labels are as the tables of ``score`` show them."""

    id: str
    label: Any
    predicted: Any  # the model's label, or number; None where a row has several labels, or none
    loss: float
    value: float  # in the score's unit; below 0: training on the row raises the loss of this target row


@dataclass(frozen=True)
class Neighbour:
    """A train row near to another, with the cosine of their features and its own score (None: it has none)."""

    id: str
    label: Any
    similarity: float
    score: float | None


@dataclass(frozen=True)
class Duplicate:
    """A train or target row that is the same payload (``exact``), or up to the limit away by features."""

    id: str
    split: str
    label: Any
    similarity: float | None
    exact: bool


@dataclass(frozen=True)
class Reasons:
    """One train row's reasons; each list begins with the strongest."""

    hurts: list[TargetPart] = field(default_factory=list)
    helps: list[TargetPart] = field(default_factory=list)
    helped_by: list[Neighbour] = field(default_factory=list)  # of a ranking: rows of its own label
    other_label: list[Neighbour] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    duplicates_in_all: int = 0  # of which ``duplicates`` are the nearest


@dataclass(frozen=True)
class FoundReasons:
    """Reasons by row id, groups of duplicates among these rows, and sentences on what there is not."""

    rows: dict[str, Reasons] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)
    limit: float | None = None  # largest 1 - cos of near-duplicates; None: exact ones alone
    missing: tuple[str, ...] = ()
    shading: Shading | None = None  # of a page of texts


def reasons_of(
    table: pa.Table, origin: dict[str, Any], ids: Sequence[str], runtime: Runtime, listener: Listener = SILENT, *,
    source: str, column: str = "score", manifest: Any = None, label: str | None = None, top: int = 3,
) -> FoundReasons:  # fmt: skip
    """Reasons of train rows of a score table, whose run is opened again from its provenance ``origin``.

    Never an error: where the run cannot be opened, or a part cannot be computed, a sentence says why.
    """
    try:
        run, session = reopen(origin, runtime, listener, source=source, manifest=manifest, label=label)
    except (InfluenceError, OSError) as error:
        return FoundReasons(missing=(f"no reasons are shown: {_said(error)}",))
    name = str(origin.get("score_is")) if column == "score" else column
    scores = dict(zip(table.column("id").to_pylist(), values_of(table.column(column), np.nan).tolist(), strict=True))
    own = np.array([scores.get(i, np.nan) for i in run.train.ids], dtype=np.float64)
    place = {i: k for k, i in enumerate(run.train.ids)}
    places = np.array([place[i] for i in ids if i in place], dtype=np.int64)
    return _with_shading(find_reasons(run, session, own, name, places, top), run, session, own, name, places)


def _with_shading(
    found: FoundReasons, run: Run, session: Session, scores: Floats, column: str, places: NDArray[np.int64]
) -> FoundReasons:
    """The same with what the tokens of texts are shaded by, or a sentence on why there is nothing."""
    try:
        return replace(found, shading=shading_of(run, session, *_method_of(run, column), places, scores))
    except (InfluenceError, OSError, RuntimeError) as error:
        return replace(found, missing=(*found.missing, f"no tokens are shaded: {_said(error)}"))


def find_reasons(
    run: Run, session: Session, scores: Floats, column: str, places: NDArray[np.int64], top: int
) -> FoundReasons:
    """Reasons of the train rows at some places, from the scores [n] of all train rows in a column of their table."""
    missing, rows = list[str](), run.train.take(places)
    parts: dict[int, tuple[list[TargetPart], list[TargetPart]]] = {}
    try:
        parts = _target_side(run, session, scores, column, places, top, missing)
    except (InfluenceError, OSError, RuntimeError) as error:
        missing.append(f"no target rows are listed: {_said(error)}")
    ranking = run.methods[_method_of(run, column)[0] or next(iter(run.methods))].kind == "ranking"
    try:
        near, limit, features = _near_side(run, session, scores, places, top, ranking, missing)
    except (InfluenceError, OSError, RuntimeError) as error:
        missing.append(f"no rows near by are listed, and exact duplicates alone: {_said(error)}")
        near, limit, features = _exact_alone(run, scores, places, top, ranking), None, None
    found: dict[str, Reasons] = {}
    for name, k in zip(rows.ids, places.tolist(), strict=True):
        hurts, helps = parts.get(k, ([], []))
        n = near[k]
        found[name] = Reasons(hurts, helps, n.helped_by, n.other_label, n.duplicates, n.duplicates_in_all)
    groups = duplicate_groups(rows.payload_keys, features, limit or 0.0)
    return FoundReasons(found, [[rows.ids[k] for k in group] for group in groups], limit, tuple(missing))


def _said(error: Exception) -> str:
    return error.what if isinstance(error, InfluenceError) else " ".join(str(error).split())[:200]


def _method_of(run: Run, column: str) -> tuple[str | None, str | None]:
    """The method and the objective that a column of scores is of; None of a combination."""
    for method in run.methods:
        for objective in run.objectives:
            if column_name(run, f"{method}/{objective}") == column:
                return method, objective
        if column_name(run, method) == column:
            return method, None
    return None, None


def _target_side(
    run: Run, session: Session, scores: Floats, column: str, places: NDArray[np.int64], top: int, missing: list[str]
) -> dict[int, tuple[list[TargetPart], list[TargetPart]]]:
    """By place the target rows that the row hurts and helps most."""
    method, objective = _method_of(run, column)
    if method is None:
        missing.append(f"no target rows are listed: {column} is made of several scores, or is none of this run's")
        return {}
    why = why_no_parts(run, method, objective) or _too_long(run, session, method, len(places))
    if why is not None:
        missing.append(why)
        return {}
    usable = places[np.isfinite(scores[places])]
    if len(usable) < len(places):
        missing.append(f"{len(places) - len(usable):,} of the rows have no score, and so no target rows")
    if not len(usable):
        return {}
    parts = parts_by_target(run, session, method, run.train.take(usable))
    _check_sums(session, run.train.take(usable), parts, scores[usable])
    order = np.argsort(parts, axis=1, kind="stable")
    low, high = order[:, :top], order[:, ::-1][:, :top]
    at, logits = _outputs(run, session, np.unique(np.concatenate([low.ravel(), high.ravel()])))
    described = _described(run, at, logits)

    def listed(row: int, some: NDArray[np.int64], sign: int) -> list[TargetPart]:
        values = parts[row, some]
        return [
            TargetPart(*described[int(t)], float(v)) for t, v in zip(some, values, strict=True) if sign * float(v) > 0
        ]

    return {int(k): (listed(j, low[j], -1), listed(j, high[j], 1)) for j, k in enumerate(usable.tolist())}


def _too_long(run: Run, session: Session, method: str, rows: int) -> str | None:
    """Why so many rows are too many for a method that solves for each of them."""
    if rows <= SOLVED or not run.methods[method].fitted_curvature:
        return None
    solver = run.solvers[method]
    assert run.fit is not None
    if solver.costs(len(run.fit.rows), parameter_count(run, session)).solve_passes <= 0:
        return None
    return (
        f"no target rows are listed: {method} solves a system for each of {rows:,} rows; for some of them use "
        "`influence score --explain ID`"
    )


def _check_sums(session: Session, rows: Rows, parts: Floats, scores: Floats) -> None:
    """Say where parts do not sum to the scores, as those of a solve to a tolerance or of bf16 may not."""
    sizes = np.abs(parts).sum(axis=1)
    gaps = np.abs(parts.sum(axis=1) - scores) / np.where(sizes > 0, sizes, 1.0)
    worst = int(gaps.argmax())
    if gaps[worst] > SUMS:
        session.listener.warn(
            f"the target rows' parts of row {rows.ids[worst]} sum to {parts[worst].sum():.4g}, and its score is "
            f"{scores[worst]:.4g}: off by {gaps[worst]:.1%} of their sizes"
        )


def _outputs(run: Run, session: Session, places: NDArray[np.int64]) -> tuple[list[int], NDArray[np.floating]]:
    """Places of some target rows in the order of their logits [p, C] at the checkpoint."""
    point = Models(run, session).at(run.plain_member()).exact
    rows, model = run.target.take(places), require_model(run)[0]
    place = {int(row): int(k) for k, row in zip(places.tolist(), rows.index.tolist(), strict=True)}
    at, logits = list[int](), list[NDArray[np.floating]]()
    for batch in session.rows(model, rows, session.batch_size(model), keep=False):
        at += [place[int(row)] for row in batch.index]
        logits.append(point.outputs(batch.on(point), [])[0].cpu().numpy())
    return at, np.concatenate(logits)


def _described(run: Run, at: list[int], logits: NDArray[np.floating]) -> dict[int, tuple[str, Any, Any, float]]:
    """By place of a target row its id, label, predicted label and loss."""
    rows = run.target.take(np.array(at, dtype=np.int64))
    losses = run.row_loss.losses(logits, rows.labels)
    if run.row_loss.by_class:
        known = class_count(run.manifest.classes, run.train.labels)
        predicted: list[Any] = logits[:, :known].argmax(axis=1).tolist()
    else:
        said = run.row_loss.says(logits, rows.labels).get("prediction")
        predicted = [None] * len(at) if said is None else said.tolist()
    labels = _labels(run, rows)
    return {k: (rows.ids[j], labels[j], predicted[j], float(losses[j])) for j, k in enumerate(at)}


def _labels(run: Run, rows: Rows) -> list[Any]:
    return rows.manifest.label_kind.shown(rows.labels, run.classes).to_pylist()


def _near_side(
    run: Run, session: Session, scores: Floats, places: NDArray[np.int64], top: int, ranking: bool, missing: list[str]
) -> tuple[dict[int, Reasons], float, NDArray[np.floating]]:
    """By place what is near to the row; the limit of near-duplicates, and the rows' features."""
    of = run_of_features(run, session, target=len(run.target) > 0)
    if len(fill_features(of, session).train) < len(run.train):
        raise InfluenceError("some train rows cannot be decoded any more")
    stored, (member,) = StoredRows(of, session, "outlier"), of.members
    train = stored.read(NAME, member)[NAME]
    target = stored.read(NAME, member, run.target)[NAME] if len(run.target) else train[:0]
    limit, near = near_limit(train, run.train), _Near(run, scores, ranking)
    if not near.compared:
        missing.append("no rows of another label are listed: labels are no classes")
    among, found = np.concatenate([train, target]), dict[int, Reasons]()
    for first in range(0, len(places), AT_ONCE):
        some = places[first : first + AT_ONCE]
        for k, cosines in zip(some.tolist(), similarities(train[some], among), strict=True):
            helped_by, other_label = near.neighbours(k, cosines[: len(train)], top)
            found[k] = Reasons([], [], helped_by, other_label, *near.duplicates(k, cosines, limit, top))
    return found, limit, train[places]


def _exact_alone(run: Run, scores: Floats, places: NDArray[np.int64], top: int, ranking: bool) -> dict[int, Reasons]:
    """By place the rows of the same payload, where there are no features."""
    near, unknown = _Near(run, scores, ranking), np.full(len(run.train) + len(run.target), np.nan)
    return {k: Reasons([], [], [], [], *near.duplicates(k, unknown, 0.0, top)) for k in places.tolist()}


class _Near:
    """The train rows of a run, then its target rows, as they are near to one train row."""

    def __init__(self, run: Run, scores: Floats, ranking: bool) -> None:
        self.train, self.target, self.scores, self.ranking = run.train, run.target, scores, ranking
        self.compared = run.manifest.label_kind.holds in (CLASSES, SEVERAL)
        self.labels = _labels(run, run.train), _labels(run, run.target) if len(run.target) else []
        self.keys = np.concatenate([rows.payload_keys for rows in (run.train, run.target) if len(rows)])

    def neighbours(self, k: int, cosines: Floats, top: int) -> tuple[list[Neighbour], list[Neighbour]]:
        """The nearest helpful train rows (of a ranking: of the row's own label), and those of another label."""
        labels, others = self.train.labels, np.arange(len(self.train)) != k
        differ = labels != labels[k] if labels.ndim == 1 else (labels != labels[k]).any(axis=1)
        differ &= self.compared
        helpful = ~differ if self.ranking else self.scores > 0
        helped_by, other_label = (
            [
                Neighbour(self.train.ids[n.place], self.labels[0][n.place], n.similarity, _number(self.scores[n.place]))
                for n in most_similar(cosines, others & some, top)
            ]
            for some in (helpful, differ)
        )
        return helped_by, other_label

    def duplicates(self, k: int, cosines: Floats, limit: float, top: int) -> tuple[list[Duplicate], int]:
        """The nearest duplicates, exact ones first, and how many there are."""
        exact = (self.keys == self.keys[k]).all(axis=1)
        with np.errstate(invalid="ignore"):
            same = exact | (1.0 - cosines <= limit + ROUNDING)
        same[k] = False
        places = np.flatnonzero(same)
        places = places[np.lexsort((-np.nan_to_num(cosines[places], nan=-2.0), ~exact[places]))]
        found = list[Duplicate]()
        for j in places[:top].tolist():
            of, at = (0, j) if j < len(self.train) else (1, j - len(self.train))
            rows = (self.train, self.target)[of]
            found.append(
                Duplicate(
                    rows.ids[at], ("train", TARGET)[of], self.labels[of][at], _number(float(cosines[j])), bool(exact[j])
                )
            )
        return found, len(places)


def _number(value: float) -> float | None:
    """A number (of a cosine, at most 1); None where it is not finite."""
    return float(value) if np.isfinite(value) else None
