"""A score table joined to the manifest that it scores, verified row by row, and what is asked of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions.protocol import Parity, Scored
from influence_cli.data.classes import class_count
from influence_cli.data.ids import Ids, places_of
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.locators import origin_of, require_found
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import keyed_rows, numbers, read_table, row_keys_of, schema_of, shown
from influence_cli.errors import ManifestError, UsageError
from influence_cli.maths.fairness import TEMPERATURE
from influence_cli.memory import trim_memory
from influence_cli.stages.curate.combining import DEFAULT_RULE, column_named, combine_columns, floats
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.score.combine import combine_options, kind_of
from influence_cli.store.arrow import array_of, values_of
from influence_cli.store.shards import as_arrow

GROUP = "group"  # column of a manifest: the sensitive group of a row


CANARY = "canary"  # column of a score table: the wrong label that the checkpoint was trained on, null elsewhere


@dataclass(eq=False)
class ScoreTable:
    """A score table joined to the manifest it scores, in the order of the manifest's train rows."""

    manifest: Manifest
    train: Rows
    scored: Scored
    provenance: dict[str, Any]
    label: str
    column: str
    table: pa.Table  # every column, in the order of the train rows
    group_columns: tuple[str, ...] = ()  # whose groups are guarded: those of ``scored``


def read_scores(request: CurateRequest, lean: bool = False) -> ScoreTable:
    """A score table and the manifest that it belongs to, verified row by row; ``lean`` without what edits do not use.

    Raises:
        UsageError: no manifest can be found, or the column is not there.
        ManifestError: the manifest is not the one that was scored.
    """
    where, columns = shown(request.scores), _read(request.scores) if lean else None
    table = read_table(request.scores, columns, whole=True)
    for needed in ("id", "row_key"):
        if needed not in table.column_names:
            raise ManifestError(f"no column {needed!r}", where=where, fix="give a table that `score` wrote")
    _refuse_pairs(table, where)
    origin = origin_of(table.schema, request.scores)
    then: dict[str, Any] = origin.get("manifest", {})
    asked = (request.maximise,) if request.maximise is not None else request.by
    by = [column_named(name, table, where) for name in asked]
    locator = require_found(origin, "manifest", where) if request.manifest is None else request.manifest
    if isinstance(locator, str) and locator == "-":
        raise UsageError("the manifest cannot be read from standard input", fix="pass --manifest PATH")
    label = request.label or then.get("label") or "label"
    row_keys_of(table, where, ids_checked=True)  # once they are compared with the manifest's
    manifest = open_manifest(locator, label, request.skip_bad or bool(origin.get("skip_bad")), request.known)
    if manifest.fingerprint == then.get("fingerprint"):
        manifest = manifest.without_ids(origin.get("skipped", []), "left out when it was scored")
    train = manifest.rows("train")
    table = in_manifest_order(table, train, where, manifest.source)
    if request.manifest is None and then.get("fingerprint") not in (None, manifest.fingerprint):
        what = "its target or test rows or its splits have changed since it was scored"
        fix = "run `influence score` again, or pass --manifest to say that you mean it"
        raise ManifestError(what, where=f"{manifest.source}, against {where}", fix=fix)
    _check_classes(origin, manifest, where)
    score, kind, column = _ranking(request, table, by, origin, where)
    first = column in ("score", origin.get("score_is"))
    columns = group_columns_of(train, origin)
    groups = guarded_groups(train, columns)
    other = "other" if "other_label" in table.column_names else "model"  # what it was called before
    scored = Scored(
        score=np.where(planted_labels(table) >= 0, np.nan, score),  # the checkpoint learned these rows otherwise
        kind=kind,
        labels=train.labels,
        weights=train.weights,
        keys=train.row_keys,
        groups=groups[0] if groups else None,
        more_groups=tuple(groups[1:]),
        best_label=proposed_labels(table, "best_label", train) if first else None,
        best_label_gain=floats(table, "best_label_gain") if first and "best_label" in table.column_names else None,
        model_label=proposed_labels(table, f"{other}_label", train),
        model_probability=floats(table, f"{other}_probability") if f"{other}_label" in table.column_names else None,
        parity=parity_of(origin, column),
        classes=manifest.class_names,
        parts=None if manifest.label_kind.holds == CLASSES else train.strata,
    )
    table = _sharing_proposals(table, scored, other)
    trim_memory()  # of the columns' own pieces
    return ScoreTable(manifest, train, scored, origin, label, column, table, columns)


def _read(scores: Any) -> list[str] | None:
    """The columns of a file of scores that say something of edits; None for all, where they are few or in memory."""
    if not isinstance(scores, str | Path):
        return None
    names = schema_of(scores).names
    if len(set(names)) < len(names):
        return None  # which is refused
    passed = {"label", "loss", "margin"}
    passed |= {"model_label", "model_probability"} if "other_label" in names else set()
    return [name for name in names if name not in passed]


def _refuse_pairs(table: pa.Table, where: str) -> None:
    """Refuse (ManifestError) a table of --per-target or of --tokens."""
    if {"position", "token"} <= set(table.column_names):
        fix = "run `influence score` without --tokens"
        raise ManifestError("a table with a score for every token, not one a train row", where=where, fix=fix)
    if "target_row_key" in table.column_names:
        fix = "run `influence score` without --per-target"
        raise ManifestError("a table with one score a pair of rows, not one a train row", where=where, fix=fix)


def in_manifest_order(table: pa.Table, train: Rows, scores: str, manifest: str) -> pa.Table:
    """A score table in the order of the train rows, or an error that names a row in which they differ."""
    _refuse_pairs(table, scores)
    ids = Ids(table.column("id"))
    same = ids == train.ids
    keys = row_keys_of(table, scores, ids_checked=same)
    if same and np.array_equal(keys, train.row_keys):
        return _sharing(table, train)
    if len(ids) == len(train):
        order = places_of(train.ids, ids)
        if (order >= 0).all() and np.array_equal(keys[order], train.row_keys):
            return table.take(array_of(order))
    raise _difference(table, train, scores, manifest)


def _sharing(table: pa.Table, train: Rows) -> pa.Table:
    """The table with the ids and keys of the train rows in the place of its own, which are the same."""
    for name, column in (("id", train.ids.column), ("row_key", as_arrow(train.row_keys))):
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _sharing_proposals(table: pa.Table, scored: Scored, other: str) -> pa.Table:
    """The table with the proposals of its rows in the place of its own columns, which hold the same."""
    labels = {"best_label": scored.best_label, f"{other}_label": scored.model_label}
    numbers = {"best_label_gain": scored.best_label_gain, f"{other}_probability": scored.model_probability}
    shared = {name: array_of(v, v < 0) for name, v in labels.items() if v is not None}
    shared |= {name: array_of(v, np.isnan(v)) for name, v in numbers.items() if v is not None}
    for name, column in shared.items():
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _difference(table: pa.Table, train: Rows, scores: str, manifest: str) -> ManifestError:
    """An error that names a row in which the table and the train rows differ."""
    place = keyed_rows(table, scores)
    for i, key in zip(train.ids, train.row_keys, strict=True):
        _, then = place.get(i, (-1, None))
        if then != key.tobytes():
            what = "is not in the score table" if then is None else "has changed since it was scored"
            return _not_as_scored(f"train row id={i} {what}", manifest, scores)
    gone = min(set(place) - set(train.ids))
    return _not_as_scored(f"scored row id={gone} is no train row any more", manifest, scores)


def _ranking(
    request: CurateRequest, table: pa.Table, by: list[str], origin: dict[str, Any], where: str
) -> tuple[NDArray[np.float64], str, str]:
    """The scores to act on [n], their kind, and what they are called."""
    if len(by) == 1 and request.combine is None:
        kinds = {**origin.get("kinds", {}), "score": origin.get("kind", "ranking")}
        return floats(table, by[0]), kinds.get(by[0], "ranking"), by[0]
    rule = request.combine or DEFAULT_RULE
    score = combine_columns(table, by, rule, combine_options(request.options), origin, where)
    return score, kind_of(rule), f"{rule} of {', '.join(by)}"


def groups_of(train: Rows, column: str = GROUP) -> NDArray[np.int64] | None:
    """A number for the sensitive group of every row [n], -1 where it is null; None where there is no such column."""
    if column not in train.manifest.table.column_names:
        return None
    values = train.manifest.table.column(column).take(array_of(train.index)).combine_chunks()
    if pa.types.is_nested(values.type):
        what, where = f"groups are {values.type}", f"{train.manifest.source}, column {column}"
        raise ManifestError(what, where=where, fix="give every row one group, as text or a number")
    return values_of(values.dictionary_encode().indices.cast(pa.int64()), -1)


def group_names(rows: Rows, column: str) -> list[str]:
    """The groups that rows have in a column, as text; none where there is no such column."""
    table = rows.manifest.table
    if column not in table.column_names:
        return []
    return sorted(str(v) for v in table.column(column).take(rows.index).unique().to_pylist() if v is not None)


def group_columns_of(train: Rows, origin: dict[str, Any]) -> tuple[str, ...]:
    """The columns of the train rows whose groups are guarded: those that the scores were made by, and ``group``."""
    there = train.manifest.table.column_names
    return tuple(c for c in dict.fromkeys((*scored_groups(origin), GROUP)) if c in there)


def scored_groups(origin: dict[str, Any]) -> tuple[str, ...]:
    """The columns of groups that scores were made by, as their provenance says."""
    options, named = origin.get("spec", {}).get("options", {}), origin.get("manifest", {}).get("group")
    by = [options.get(name, {}).get("column") for name in origin.get("spec", {}).get("objectives", ())]
    return tuple(dict.fromkeys(column for column in (*by, named) if column))


def guarded_groups(train: Rows, columns: tuple[str, ...]) -> list[NDArray[np.int64]]:
    """The group of every train row [n] by each column."""
    return [found for column in columns if (found := groups_of(train, column)) is not None]


def _check_classes(origin: dict[str, Any], manifest: Manifest, where: str) -> None:
    """Refuse a manifest whose classes have other names than when it was scored: the numbers of labels say less."""
    then = (origin.get("model") or {}).get("classes")
    matched = (origin.get("model") or {}).get("order") is not None  # then other outputs of the model come last
    if then is not None and manifest.classes is not None and matched:
        then = then[: len(manifest.classes)]
    if then is not None and manifest.classes is not None and tuple(then) != manifest.classes:
        here, there = (", ".join(names[:10]) for names in (manifest.classes, then))
        raise _not_as_scored(f"its classes ({here}) are not those that were scored ({there})", manifest.source, where)


def _not_as_scored(what: str, manifest: str, scores: str) -> ManifestError:
    return ManifestError(what, where=f"{manifest}, against {scores}", fix="run `influence score` again")


def proposed_labels(table: pa.Table, name: str, train: Rows) -> NDArray[np.int64] | None:
    """A column of proposed labels [n], -1 for none: a model may have more outputs than the data have classes."""
    if train.manifest.label_kind.holds != CLASSES:
        return None
    labels, classes = _labels(table, name), class_count(train.manifest.classes, train.labels)
    return None if labels is None else np.where(labels < classes, labels, -1)


def planted_labels(table: pa.Table) -> NDArray[np.int64]:
    """The wrong label [n] that the checkpoint of a score table was trained on, -1 for rows that are no canaries."""
    planted = _labels(table, CANARY)
    return np.broadcast_to(np.int64(-1), (table.num_rows,)) if planted is None else planted


def left_for_later(provenance: dict[str, Any]) -> str:
    """What a row of a run with limits that has no score waits for; empty where the run took all rows.

    >>> left_for_later({"given_up": [{"what": "precision"}]}), left_for_later({"given_up": [{"what": "rows"}]})[:25]
    ('', 'limits left it for later:')
    """
    limited = any(entry["what"] == "rows" for entry in provenance.get("given_up", ()))
    return "limits left it for later: run `influence score` as before to go on" if limited else ""


def said_of_rows_without_score(scores: ScoreTable) -> str | None:
    """How many train rows no edit can be of, canaries aside, and why; None where all have a score."""
    without = ~np.isfinite(scores.scored.score) & (planted_labels(scores.table) < 0)
    if not without.any():
        return None
    why = left_for_later(scores.provenance).replace("left it", "left them")
    rows = f"{int(without.sum()):,} of {len(without):,} train rows"
    return f"{rows} have no score{f' ({why})' if why else ''} and stay as they are; a budget in % is of all rows"


def _labels(table: pa.Table, name: str) -> NDArray[np.int64] | None:
    if name not in table.column_names:
        return None
    return values_of(numbers(table, name, pa.int64()), -1)


def parity_of(origin: dict[str, Any], column: str) -> Parity | None:
    """What a score column can do until the gap is closed; None where it is about no groups."""
    name = origin.get("score_is") if column == "score" else column
    objective = origin.get("objective_of", {}).get(name)
    entry = origin.get("noise", {}).get(objective, {})
    parts = entry.get("parts") or {}
    if not parts.get("terms") or entry.get("phi") is None:
        return None
    options = origin.get("spec", {}).get("options", {}).get(objective, {})
    room = 0.0 if parts["at_parity"] else _room(entry["phi"], parts, options)
    return Parity(objective, room, origin.get("effect_divisors", {}).get(name))


def _room(phi: float, parts: dict[str, Any], options: dict[str, Any]) -> float:
    """What Phi can fall by along its slope until all groups are equal: Phi, where it is a gap."""
    aggregate = options.get("aggregate", "pairs")
    if aggregate == "variance":  # quadratic in the gap: its slope leads to twice its fall
        return 2.0 * phi
    if aggregate == "max":  # the smooth maximum of equal gaps of zero lies above zero
        groups = len(parts["terms"][0]["groups"])
        return phi - TEMPERATURE * math.log(groups * (groups - 1) / 2)
    return phi
