"""A score table joined to the manifest that it scores, verified row by row, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.actions.protocol import Scored
from influence_cli.data.manifest import Manifest, Rows, open_manifest
from influence_cli.data.tables import provenance, read_table, shown
from influence_cli.errors import ManifestError, UsageError, nearest
from influence_cli.settings import Options


@dataclass(frozen=True)
class CurateRequest:
    """What to do with a score table."""

    scores: Any  # a path, "-", or a table in memory
    action: str = "trim"
    budget: str | None = None  # "5%" or "200"; default 5 %
    manifest: Any = None  # default: where the provenance says
    label: str | None = None
    by: str = "score"
    options: Options = field(default_factory=dict)
    skip_bad: bool = False


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


def read_scores(request: CurateRequest) -> ScoreTable:
    """A score table and the manifest that it belongs to, verified row by row.

    Raises:
        UsageError: no manifest can be found, or the column is not there.
        ManifestError: the manifest is not the one that was scored.
    """
    table, where = read_table(request.scores), shown(request.scores)
    for needed in ("id", "row_key"):
        if needed not in table.column_names:
            raise ManifestError(f"no column {needed!r}", where=where, fix="give a table that `score` wrote")
    known = [n for n in table.column_names if n == "score" or (n.startswith("score_") and n != "score_std")]
    if request.by not in known:
        raise UsageError(f"no score column {request.by!r}", where=where, fix=nearest(request.by, known))
    origin = provenance(table.schema)
    locator = origin.get("manifest", {}).get("locator") if request.manifest is None else request.manifest
    if locator is None or (isinstance(locator, str) and locator == "-"):
        raise UsageError("the score table does not say where its manifest is", fix="pass --manifest PATH")
    label = request.label or origin.get("manifest", {}).get("label") or "label"
    manifest = open_manifest(locator, label, request.skip_bad or bool(origin.get("skip_bad")))
    if manifest.fingerprint == origin.get("manifest", {}).get("fingerprint"):
        manifest = manifest.without_ids(origin.get("skipped", []), "left out when it was scored")
    train = manifest.rows("train")
    table = in_manifest_order(table, train, where, manifest.source)
    scored_then = origin.get("manifest", {}).get("fingerprint")
    if scored_then is not None and request.manifest is None and scored_then != manifest.fingerprint:
        raise ManifestError(
            "its target or test rows or its splits have changed since it was scored",
            where=f"{manifest.source}, against {where}",
            fix="run `influence score` again, or pass --manifest to say that you mean it",
        )
    kinds = {**origin.get("kinds", {}), "score": origin.get("kind", "ranking")}
    first = request.by in ("score", origin.get("score_is"))
    score, planted = _floats(table, request.by), _ints(table, "canary")
    if planted is not None:  # the checkpoint learned another label for these rows: they are never edited
        score = np.where(planted >= 0, np.nan, score)
    scored = Scored(
        score=score,
        kind=kinds.get(request.by, "ranking"),
        labels=train.labels,
        weights=train.weights,
        keys=[k.tobytes() for k in train.row_keys],
        best_label=_ints(table, "best_label") if first else None,
        best_label_gain=_floats(table, "best_label_gain") if first and "best_label" in table.column_names else None,
        model_label=_ints(table, "model_label"),
        model_probability=_floats(table, "model_probability") if "model_label" in table.column_names else None,
    )
    return ScoreTable(manifest, train, scored, origin, label, request.by, table)


def in_manifest_order(table: pa.Table, train: Rows, scores: str, manifest: str) -> pa.Table:
    """A score table in the order of the train rows, or an error that names a row in which they differ."""
    place = {i: k for k, i in enumerate(table.column("id").to_pylist())}
    keys = [bytes.fromhex(k) if isinstance(k, str) else k for k in table.column("row_key").to_pylist()]
    order: list[int] = []
    for i, key in zip(train.ids, train.row_keys, strict=True):
        k = place.get(i)
        if k is None or keys[k] != key.tobytes():
            what = "is not in the score table" if k is None else "has changed since it was scored"
            raise ManifestError(
                f"train row id={i} {what}",
                where=f"{manifest}, against {scores}",
                fix="run `influence score` again",
            )
        order.append(k)
    if len(order) < len(place):
        gone = next(iter(set(place) - set(train.ids)))
        raise ManifestError(
            f"scored row id={gone} is no train row any more",
            where=f"{manifest}, against {scores}",
            fix="run `influence score` again",
        )
    return table.take(pa.array(order, pa.int64()))


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    return table.column(name).cast(pa.float64()).fill_null(float("nan")).to_numpy()


def _ints(table: pa.Table, name: str) -> NDArray[np.int64] | None:
    if name not in table.column_names:
        return None
    return table.column(name).cast(pa.int64()).fill_null(-1).to_numpy()
