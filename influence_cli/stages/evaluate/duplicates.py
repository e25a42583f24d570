"""Groups of near-duplicates among all rows, by penultimate features at the checkpoint, and leaks between splits.

Two rows are near-duplicates where the cosine distance of their features is no more than a limit: one that is given, or
a share of the median distance of a row to its nearest other one.  Groups are what such pairs link, however long the
chain.  A group with rows of several splits is a leak: what was trained on measures, or is measured, again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.locators import origin_of
from influence_cli.data.manifest import Rows
from influence_cli.data.tables import read_table
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import Listener
from influence_cli.maths.linked import Linked
from influence_cli.maths.neighbours import nearest, pairs_within
from influence_cli.settings import Runtime
from influence_cli.stages.grads.features import fill_features, run_of_features
from influence_cli.stages.run.backbone_run import features_work
from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.reopen import reopen
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

FLAG = "--duplicates"
METRIC = "cosine"
FARTHEST = 2.0  # no two directions are farther apart
TARGET = "target"  # what the split of rows of another manifest is called


@dataclass(frozen=True)
class Limit:
    """Up to which distance rows are near-duplicates: as it is, or a share of the median to the nearest row."""

    distance: float | None = None
    share: float | None = None

    @staticmethod
    def of(text: str) -> Limit:
        """'10%' as a share, '0.01' as a distance.

        Raises:
            UsageError: it is neither, or out of range.
        """
        try:
            value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError as error:
            raise UsageError(f"{FLAG} {text!r} is neither a share nor a distance", fix=f"{FLAG} 10%") from error
        if text.endswith("%"):
            if not 0.0 <= value < 1.0:
                what = f"{FLAG} {text} is not from 0% to below 100% of the median distance to the nearest row"
                raise UsageError(what, fix=f"{FLAG} 10%")
            return Limit(share=value)
        if not 0.0 <= value < FARTHEST:
            raise UsageError(f"{FLAG} {text} is no distance 1 - cos, from 0 to below 2", fix=f"{FLAG} 10%")
        return Limit(distance=value)


def duplicates_run(
    old: str, runtime: Runtime, listener: Listener, *, manifest: Any = None, checkpoint: str | None = None,
    class_map: Any = None, remember: bool = True,
) -> tuple[Run, Session]:  # fmt: skip
    """The run of a score table, opened again, whose rows are all of its manifest's, and those of another target.

    A row of that target which the manifest holds as a val or test row, under the same id, is one row and not its copy.
    """
    run, session = reopen(
        origin_of(read_table(old, ["id"]).schema, old), runtime, listener, source=old, manifest=manifest,
        checkpoint=checkpoint, class_map=class_map, another=checkpoint is not None, remember=remember,
    )  # fmt: skip
    target, measured = run.target, np.flatnonzero(run.manifest.splits != "train")
    held = {(run.manifest.ids[k], run.manifest.payload_keys[k].tobytes()) for k in measured.tolist()}
    keys = zip(target.ids, target.payload_keys, strict=True)
    elsewhere = [k for k, (i, key) in enumerate(keys) if (i, key.tobytes()) not in held]
    if target.manifest.files == run.manifest.files:
        elsewhere = []
    target, another = target.take(np.array(elsewhere, dtype=np.int64)), bool(elsewhere)
    asking = run_of_features(run, session, target=another)
    return replace(asking, train=run.manifest.all_rows(), target=target), session


def describe(run: Run, session: Session) -> dict[str, Any]:
    """What would be done: rows, those whose features are to be computed, and pairs to compare."""
    work, rows = features_work(run, session), len(run.train) + len(run.target)
    return {
        "schema_version": 1,
        "rows": rows,
        "rows_to_compute": sum(map(len, work.lacking.values())),
        "pairs": rows * (rows - 1) // 2,
    }


def duplicates(run: Run, session: Session, limit: Limit) -> dict[str, Any]:
    """Groups of near-duplicates, leaks first, then large ones: ids, splits and labels of their rows, and the limit.

    Raises:
        ModelError: the model has no penultimate features.
        ManifestError: there are fewer than two rows.
    """
    run = fill_features(run, session)
    member, quantity = run.members[0], QUANTITIES["features"]
    folder = quantity.folder(run, session, quantity.parts(run, member)[0])
    every = [run.train, *([run.target] if len(run.target) else [])]
    if sum(map(len, every)) < 2:
        raise ManifestError("a single row has no duplicate", where=run.manifest.source, fix="give more rows")
    keys = np.concatenate([rows.payload_keys for rows in every])
    features = folder.read(keys)["features"]
    with session.listener.progress("near-duplicates", len(keys) * (1 if limit.share is None else 2)) as progress:
        middle = None
        if limit.share is not None:
            own = np.arange(len(keys), dtype=np.int64)
            apart = nearest(features, features, 1, METRIC, own=own, done=progress.advance).distances[:, 0]
            apart = apart[np.isfinite(apart)]
            middle = float(np.median(apart)) if len(apart) else 0.0
        most = float(limit.distance or 0.0) if middle is None else (limit.share or 0.0) * middle
        linked, closest = Linked(len(keys)), np.full(len(keys), np.inf)
        for i, j, distance in pairs_within(features, most, METRIC, done=progress.advance):
            linked.add(i, j)
            np.minimum.at(closest, i, distance)
            np.minimum.at(closest, j, distance)
    groups = _groups(linked.lowest(), closest, every, keys)
    leaks = [g for g in groups if g["leak"]]
    return {
        "schema_version": 1,
        "duplicates": {
            "rows": len(keys),
            "rows_without_features": int((~np.isfinite(features).all(axis=1)).sum()),
            "metric": METRIC,
            "limit": most,
            "share_of_median": limit.share,
            "median_to_nearest": middle,
            "groups": groups,
            "rows_in_groups": sum(len(g["rows"]) for g in groups),
            "leaks": len(leaks),
            "leaks_between": _between(leaks),
            "groups_with_several_labels": sum(g["labels"] > 1 for g in groups),
        },
    }


def _groups(
    lowest: NDArray[np.int64], closest: NDArray[np.float64], every: list[Rows], keys: NDArray[np.uint8]
) -> list[dict[str, Any]]:
    """The rows of every group of two or more, leaks first, then large groups, then in the order of the rows."""
    ids = [i for rows in every for i in rows.ids]
    splits = [s for s in every[0].manifest.splits[every[0].index].tolist()]
    splits += [TARGET] * (len(ids) - len(splits))
    labels = [label for rows in every for label in rows.labels.tolist()]
    told = [
        0 if isinstance(v, float) else tuple(v) if isinstance(v, list) else v for v in labels
    ]  # numbers always differ
    linked = np.flatnonzero(np.bincount(lowest, minlength=len(lowest))[lowest] > 1)
    linked = linked[np.argsort(lowest[linked], kind="stable")]
    found: list[dict[str, Any]] = []
    for _, members in itertools.groupby(linked.tolist(), key=lambda k: int(lowest[k])):
        rows = list(members)
        found.append(
            {
                "leak": len({splits[k] for k in rows}) > 1,
                "same_payload": len({keys[k].tobytes() for k in rows}) == 1,
                "labels": len({told[k] for k in rows}),
                "rows": [
                    {"id": ids[k], "split": splits[k], "label": labels[k], "distance": float(closest[k])} for k in rows
                ],
            }
        )
    return sorted(found, key=lambda g: (not g["leak"], -len(g["rows"])))


def _between(leaks: list[dict[str, Any]]) -> dict[str, int]:
    """How many leaks there are between each two splits."""
    pairs = Counter[str]()
    for group in leaks:
        splits = sorted({row["split"] for row in group["rows"]})
        pairs.update(f"{a} and {b}" for a, b in itertools.combinations(splits, 2))
    return dict(sorted(pairs.items()))
