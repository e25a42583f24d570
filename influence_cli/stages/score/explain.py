"""(2) The reasons of some rows: their scores among all others, what the model says of them, and ``reasons``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import class_name
from influence_cli.data.label_kinds import CLASSES
from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.maths.labels import softmax
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.reasons import FoundReasons, find_reasons
from influence_cli.stages.score.score import score
from influence_cli.store.arrow import values_of

CLOSE = 3  # ids that are proposed in place of one that is not there
SEARCHED = 20_000  # ids among which they are looked for
KEPT = (  # of the score table
    *("score", "score_std", "agreement", "effect", "best_label", "best_label_gain", "loss", "margin", "prediction"),
    *("model_label", "model_probability", "other_label", "other_probability", "canary"),
)


@dataclass(frozen=True, eq=False)
class Explained:
    """A dict for each row, in the order in which they were asked for, and the run as it is then."""

    rows: list[dict[str, Any]]
    run: Run
    found: FoundReasons
    origin: dict[str, Any]


def explain(run: Run, session: Session, asked: tuple[str, ...], top: int) -> Explained:
    """The reasons of some train rows, up to ``top`` of each kind, after scores of all rows.

    Raises:
        UsageError: there is no train row with an id.
    """
    chosen_rows(run, asked)
    table, run = score(run, session)
    places = chosen_rows(run, asked)  # of the rows that could be used
    origin, scores = provenance(table.schema), values_of(table.column("score"), np.nan)
    found = find_reasons(run, session, scores, origin["score_is"], places, top)
    kept = table.select([name for name in ("id", "row_key", "label", *KEPT) if name in table.column_names])
    rank, finite = _ranks(scores), int(np.isfinite(scores).sum())
    own = _label_probability(run, session, places)
    rows = list[dict[str, Any]]()
    for j, k in enumerate(places.tolist()):
        row: dict[str, Any] = {
            n: v.hex() if isinstance(v, bytes) else v for n, v in kept.slice(k, 1).to_pylist()[0].items()
        }
        row |= {} if own is None else {"label_probability": own[j]}
        row |= {"score_is": origin["score_is"], "rank": rank[k], "of": finite}
        rows.append(_named(run, {**row, "reasons": asdict(found.rows[run.train.ids[k]])}))
    return Explained(rows, run, found, origin)


def chosen_rows(run: Run, asked: tuple[str, ...]) -> NDArray[np.int64]:
    """Places of the rows among the train rows: each text is an id, or several with commas between.

    Raises:
        UsageError: there is no train row with an id.
    """
    place = {name: k for k, name in enumerate(run.train.ids)}
    names = [i for text in asked for i in ([text] if text in place else [t for t in text.split(",") if t])]
    for name in names:
        if name not in place:
            raise _unknown(run, name)
    return np.array([place[name] for name in dict.fromkeys(names)], dtype=np.int64)


def _unknown(run: Run, name: str) -> UsageError:
    import difflib

    where = f"{run.manifest.source}, column id"
    if name in run.manifest.ids:
        split = run.manifest.splits[run.manifest.ids.index(name)]
        what = f"row {name!r} is no train row (its split is {split}), and only these have a score"
        return UsageError(what, where=where, fix="give the id of a train row")
    ids = run.train.ids[:SEARCHED]
    close = difflib.get_close_matches(name, ids, n=CLOSE, cutoff=0.5)
    fix = "did you mean " + " or ".join(map(repr, close)) + "?" if close else f"ids look like {', '.join(ids[:CLOSE])}"
    return UsageError(f"no train row has the id {name!r}", where=where, fix=fix)


def _ranks(scores: NDArray[np.float64]) -> list[int | None]:
    """The place of each finite score from the lowest, from 1; equal scores have the same, that of the first."""
    finite = np.isfinite(scores)
    at = np.searchsorted(np.sort(scores[finite]), scores) + 1
    return [int(r) if ok else None for r, ok in zip(at, finite, strict=True)]


def _label_probability(run: Run, session: Session, places: NDArray[np.int64]) -> list[float | None] | None:
    """The model's probability of each row's own label; None where labels are no classes, or no model was run."""
    if not run.members or not run.row_loss.by_class:
        return None
    rows = run.train.take(places)
    logits = session.outputs(run, run.plain_member()).read(rows.payload_keys)["logits"]
    with np.errstate(invalid="ignore", over="ignore"):
        own = softmax(logits)[np.arange(len(rows)), rows.labels]
    return [float(p) if np.isfinite(p) else None for p in own]


def _named(run: Run, value: Any) -> Any:
    """The same with the names of classes beside their numbers, where classes have names."""
    if isinstance(value, list):
        return [_named(run, one) for one in value]
    if not isinstance(value, dict):
        return value
    names = run.classes if run.manifest.label_kind.holds == CLASSES else None
    made: dict[str, Any] = {}
    for key, one in value.items():
        made[key] = _named(run, one)
        if names is not None and isinstance(one, int) and (key.endswith("label") or key in ("predicted", "canary")):
            made[f"{key}_name"] = class_name(names, one)
    return made


def describe_explain(run: Run, asked: tuple[str, ...]) -> str:
    """What comes after the scores, in a sentence.  Raises UsageError: there is no train row with an id."""
    count = len(chosen_rows(run, asked))
    return (
        f"then the reasons of {count:,} rows: a pass over the target rows, and features as far as they are not stored"
    )
