"""(3) scores -> edits under a budget, and the curated manifest, payload included, written by streaming."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from influence_cli.actions import make_action
from influence_cli.actions.protocol import Edits, Scored
from influence_cli.data.manifest import Manifest, Rows, open_manifest
from influence_cli.data.sources.origin import moved_origin
from influence_cli.data.tables import provenance, read_schema, read_table, shown, with_provenance
from influence_cli.errors import ManifestError, UsageError, nearest
from influence_cli.settings import Options
from influence_cli.stages.arms import PROPOSAL
from influence_cli.stages.edited import Edited, apply_edits, rebased
from influence_cli.store.files import replacing
from influence_cli.store.shards import as_arrow


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


@dataclass(eq=False)
class Curated:
    """Edits of a manifest's train rows."""

    scores: ScoreTable
    edits: Edits
    request: CurateRequest

    def table(self) -> pa.Table:
        """One row per edit, most harmful first: what the row was, what it is, its score, and why."""
        scored, edits = self.scores.scored, self.edits
        chosen = set(edits.edited.tolist())
        order = np.array([i for i in scored.ascending().tolist() if i in chosen], dtype=np.int64)
        table = pa.table(
            {
                "id": pa.array([self.scores.train.ids[i] for i in order]),
                "row_key": as_arrow(self.scores.train.row_keys[order]),
                "action": pa.array([edits.action] * len(order)),
                "label_was": pa.array(scored.labels[order]),
                "label": pa.array(edits.labels[order]),
                "weight_was": pa.array(scored.weights[order]),
                "weight": pa.array(edits.weights[order]),
                "score": pa.array(scored.score[order]),
                "reason": pa.array([edits.reason[i] for i in order], pa.string()),
            }
        )
        return with_provenance(table, self.provenance())

    def after(self) -> Edited:
        """Every row of the manifest as it is after the edits."""
        return apply_edits(self.scores.manifest, self.scores.train, self.edits)

    def provenance(self) -> dict[str, Any]:
        """The score table's provenance, with the action."""
        return {
            **self.scores.provenance,
            "stage": "curate",
            "action": {
                "name": self.edits.action,
                "budget": self.request.budget,
                "by": self.request.by,
                "options": self.request.options.get(self.request.action, {}),
                "edited": len(self.edits.edited),
            },
        }


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


def parse_budget(text: str, n: int, flag: str = "--budget") -> int:
    """'5%' of n rows, rounded down, or a number of rows.

    Raises:
        UsageError: neither, or outside 0 to n.
    """
    try:
        rows = int(float(text[:-1]) / 100 * n + 1e-9) if text.endswith("%") else int(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{flag} {text!r} is neither a share nor a count", fix="write 5% or 200") from error
    if not 0 <= rows <= n:
        raise UsageError(f"{flag} {text} is outside 0 to {n} rows", fix="write 5% or 200")
    return rows


def parse_share(text: str, flag: str) -> float:
    """'5%' or 0.05 as a number between 0 and 1.

    Raises:
        UsageError: it is neither, or outside.
    """
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} is no share", fix="write 5%") from error
    if not 0 < value < 1:
        raise UsageError(f"{flag} {text} is not between 0 and 100%", fix="write 5%")
    return value


def curate(request: CurateRequest) -> Curated:
    """Decide edits; writes nothing.

    Raises:
        InfluenceError: the table, the action or the budget cannot work.
    """
    action = make_action(request.action, request.options)
    scores = read_scores(request)
    if request.action == "reweight" and request.budget is not None:
        raise UsageError("reweight touches every scored row and takes no budget", fix="leave --budget out")
    budget = parse_budget(request.budget or "5%", len(scores.train))
    return Curated(scores, action.propose(scores.scored, budget), request)


def write_curated(curated: Curated, output: str) -> int:
    """Stream the edited manifest to a Parquet file, or to "-"; returns the number of train rows written.

    Trimmed train rows are left out; val and test rows are written as they are.
    """
    if not curated.scores.manifest.files:
        raise UsageError("the rows of a Dataset cannot be written as a manifest", fix="take the edits, by row number")
    if output == "-":
        return _stream(curated, pa.PythonFile(sys.stdout.buffer, mode="w"), Path.cwd())
    path = Path(output)
    if path.suffix != ".parquet":
        raise UsageError(
            f"cannot write {output!r}: a manifest is Parquet", fix="use .parquet, or - for standard output"
        )
    with replacing(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        return _stream(curated, sink, path.parent)


def _stream(curated: Curated, sink: Any, folder: Path) -> int:
    writer: pq.ParquetWriter | None = None
    written = 0
    try:
        for table, count in _edited_batches(curated, folder):
            writer = writer or pq.ParquetWriter(sink, table.schema)
            writer.write_table(table)
            written += count
    finally:
        if writer is not None:
            writer.close()
    return written


def _edited_batches(curated: Curated, folder: Path) -> Iterator[tuple[pa.Table, int]]:
    manifest, edits, after = curated.scores.manifest, curated.edits, curated.after()
    proposal = np.full(len(manifest), -1, dtype=np.int64)
    if edits.proposal is not None:
        proposal[curated.scores.train.index] = edits.proposal
    is_train = manifest.splits == "train"
    reweighted = after.weights != manifest.weights()
    schema = moved_origin(read_schema(manifest.files[0]), manifest.folder, folder)
    metadata = with_provenance(schema.empty_table(), curated.provenance()).schema.metadata
    first = 0
    for file in manifest.files:
        with pa.OSFile(str(file)) as handle, pq.ParquetFile(handle) as reader:
            for batch in reader.iter_batches(batch_size=8192):
                here = slice(first, first + batch.num_rows)
                table = rebased(pa.Table.from_batches([batch]), manifest, folder)
                table = _set(table, curated.scores.label, after.labels[here])
                if edits.action == "reweight":
                    table = _set_weights(table, after.weights[here], reweighted[here])
                if edits.proposal is not None:
                    table = _set(table, PROPOSAL, proposal[here], null=proposal[here] < 0)
                table = table.filter(pa.array(after.keep[here])).replace_schema_metadata(metadata)
                yield table, int((after.keep & is_train)[here].sum())
                first += batch.num_rows


def _set(table: pa.Table, name: str, values: NDArray[Any], null: NDArray[np.bool_] | None = None) -> pa.Table:
    array = pa.array(values, mask=null)
    if name in table.column_names:
        position = table.column_names.index(name)
        return table.set_column(position, name, array.cast(table.schema.field(name).type))
    return table.append_column(name, array)


def _set_weights(table: pa.Table, weights: NDArray[np.float64], changed: NDArray[np.bool_]) -> pa.Table:
    """The table with new weights as doubles; what was null and is not edited stays null."""
    if "weight" not in table.column_names:
        return table.append_column("weight", pa.array(weights))
    null = table.column("weight").is_null().to_numpy() & ~changed
    kind = table.schema.field("weight").type
    values = pa.array(weights, mask=null).cast(kind if pa.types.is_floating(kind) else pa.float64())
    return table.set_column(table.column_names.index("weight"), "weight", values)


def summarise(curated: Curated) -> dict[str, Any]:
    """What the edits do: counts, classes, notes, and where clean labels are known their precision."""
    edits, train = curated.edits, curated.scores.train
    edited = edits.edited
    summary: dict[str, Any] = {
        "action": edits.action,
        "train_rows": len(train),
        "edited": len(edited),
        "notes": edits.notes,
        "classes": {
            int(c): {"rows": int((train.labels == c).sum()), "edited": int((train.labels[edited] == c).sum())}
            for c in np.unique(train.labels)
        },
    }
    worst = max(summary["classes"].items(), key=lambda kv: kv[1]["edited"])
    if len(edited) and worst[1]["edited"] > 0.5 * len(edited) and worst[1]["rows"] < 0.25 * len(train):
        share = worst[1]["edited"] / len(edited)
        summary["notes"] = [*edits.notes, f"{share:.0%} of the edits are of class {worst[0]}, a minority"]
    clean = train.clean_labels()
    if clean is not None and len(edited):
        wrong = (clean >= 0) & (clean != train.labels)
        summary["wrong_share_of_edited"] = float(wrong[edited].mean())
        summary["wrong_share_of_all"] = float(wrong.mean())
        if edits.action == "relabel":
            right = edits.labels == clean
            summary["right_after_relabel"] = float(right[edited].mean())
    return summary
