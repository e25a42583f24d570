"""(2) Scores of rows split over their tokens: for the most helpful and most harmful rows, or those asked for by id.

By loss (methods.md 2.6 A) a token's part is that of its own loss, by position (B) what enters the gradient where it
stands.  The parts of a row sum to its score, and that is looked at for every row.  What is found is stored, so that the
same question is answered without a model the next time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.data.tables import provenance, with_provenance
from influence_cli.errors import ModelError
from influence_cli.methods.protocol import times_the_mean, weighted_mean
from influence_cli.stages.run.plan import missing_work
from influence_cli.stages.run.quantities import QUANTITIES, Part
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.score import column_name, score
from influence_cli.stages.score.stored import StoredRows
from influence_cli.stages.score.tokens.choice import check_tokens, chosen_rows, described
from influence_cli.stages.score.tokens.request import LOSS, POSITION, TokenRequest
from influence_cli.stages.score.tokens.token_pass import (
    QUANTITY,
    fill_tokens,
    part_name,
    text_of,
    token_names,
    try_positions,
)
from influence_cli.store.arrow import array_of, array_of_texts, values_of
from influence_cli.store.ragged import ragged
from influence_cli.store.shards import Arrays, as_arrow, positions

Floats = NDArray[np.float64]
SUMS = {"fp64": 1e-8, "fp32": 1e-4, "bf16": 0.2}  # how far parts may sum to another score, of the sum of their sizes
SHOWN_TARGETS = 3  # target texts that go along


@dataclass(frozen=True, eq=False)
class TokenScores:
    """The table, the run as it is then, and the texts that it is about."""

    table: pa.Table
    run: Run
    texts: dict[str, str]  # of the rows, by id
    targets: list[tuple[str, str]]  # id and text of the first target rows


@dataclass(frozen=True)
class TokenColumn:
    """One method's scores of tokens under one objective."""

    name: str
    rows: NDArray[np.object_]  # [n] of [T], float64


def token_scores(run: Run, session: Session, request: TokenRequest, top: int) -> TokenScores:
    """Scores of the tokens of the ``top`` most helpful and most harmful rows, after scores of all rows.

    ``data.columns`` says what each column of the table holds.

    Raises:
        UsageError: the run's scores have no parts by token.
        ModelError: a module joins positions, or parts do not sum to a row's score.
    """
    check_tokens(run, request, top)
    if request.decomposition == POSITION and not all(work.nothing for work in missing_work(run, session)):
        try_positions(run, session)
    scored, run = score(run, session)
    places = chosen_rows(run, values_of(scored.column("score"), np.nan), request, top)
    rows = run.train.take(places)
    fill_tokens(run, session, run.train.take(np.sort(places)), request.decomposition)
    columns = [
        column_of_tokens(run, session, rows, method, objective, request.decomposition)
        for method in run.methods
        for objective in run.objectives
    ]
    row_scores = {c.name: values_of(scored.column(c.name), np.nan)[places] for c in columns}
    largest = check_sums(run, rows, columns, row_scores)
    session.listener.note(f"the tokens' parts of a row sum to its score: off by at most {largest:.1g} of their sizes")
    shared = stored_tokens(run, session, rows, request.decomposition)
    table = _table(run, session, rows, columns, row_scores, shared, request)
    about = {**described(request, top), "score_is": columns[0].name, "largest_gap": largest}
    said = {**provenance(scored.schema), "stage": "tokens", "tokens": about}
    return TokenScores(with_provenance(table, said), run, _texts(rows), list(_texts(run.target, SHOWN_TARGETS).items()))


def describe_tokens(run: Run, session: Session, request: TokenRequest, top: int) -> str:
    """What comes after the scores, in a sentence: rows are chosen by those."""
    check_tokens(run, request, top)
    again = f", for which the chains of {', '.join(run.samplers)} are drawn again" if run.samplers else ""
    rows = str(len(request.row_id)) if request.row_id else f"up to {2 * top}"
    return f"then the tokens of {rows} rows, as far as they are not stored{again}"


def stored_tokens(run: Run, session: Session, rows: Rows, decomposition: str) -> Arrays:
    """What is stored of the rows' tokens where the first method begins; of the checkpoint itself if known."""
    method, objective = next(iter(run.methods)), next(iter(run.objectives))
    members = run.members_of[method]
    member = next((m for m in members if m == run.plain_member()), members[0])
    return _read(run, session, rows, part_name(run, method, member, objective), decomposition)


def _read(run: Run, session: Session, rows: Rows, direction: str, decomposition: str) -> Arrays:
    part = Part(QUANTITY[decomposition], direction, run.members[0])
    return QUANTITIES[part.quantity].folder(run, session, part).read(rows.payload_keys)


def column_of_tokens(
    run: Run, session: Session, rows: Rows, method: str, objective: str, decomposition: str
) -> TokenColumn:
    """A method's scores of tokens: their mean or sum over members, each over the size that rows are divided by."""
    stored, how = StoredRows(run, session, method), run.methods[method]
    own = positions(rows.row_keys, run.train.row_keys)
    members, weights = list[NDArray[np.object_]](), list[float]()
    for member in stored.members:
        found = _read(run, session, rows, part_name(run, method, member, objective), decomposition)["score"]
        values, length = stored.values(member), None
        if how.of_unit_direction():
            length = stored.length(member, objective)
        divided = list[Floats]()
        for k, scores in enumerate(found):
            value = None if values is None else np.full(len(scores), values[own[k]])
            divided.append(how.divided(scores.astype(np.float64), value, length))
        members.append(ragged(divided))
        weights.append(member.weight)
    times = times_the_mean(how, weights)
    mean = ragged(times * weighted_mean([m[k] for m in members], weights) for k in range(len(rows)))
    return TokenColumn(column_name(run, f"{method}/{objective}"), mean)


def check_sums(run: Run, rows: Rows, columns: list[TokenColumn], scores: dict[str, Floats]) -> float:
    """How far the parts of a row sum to another score than its own, at most, of the sum of their sizes.

    Raises:
        ModelError: it is more than rounding.
    """
    largest = 0.0
    for c in columns:
        for k, parts in enumerate(c.rows):
            size = float(np.abs(parts).sum())
            gap = abs(float(parts.sum()) - float(scores[c.name][k])) / size if size > 0 else 0.0
            if not gap <= SUMS[run.spec.precision]:
                what = f"the tokens' parts sum to {parts.sum():.6g}, and the row's score is {scores[c.name][k]:.6g}"
                fix = "delete the store's folders tokens and positions and run it again, or pass --precision fp64"
                raise ModelError(what, where=f"row id={rows.ids[k]}, {c.name}", fix=fix)
            largest = max(largest, gap)
    return largest


def _table(
    run: Run, session: Session, rows: Rows, columns: list[TokenColumn], scores: dict[str, Floats], shared: Arrays,
    request: TokenRequest,
) -> pa.Table:  # fmt: skip
    """One row for every token of every row, in the order of the rows."""
    lengths = [len(start) for start in shared["start"]]
    of = np.repeat(np.arange(len(rows)), lengths)
    position = np.concatenate([np.arange(n) for n in lengths]).astype(np.int64)
    first = scores[columns[0].name]
    helpful = first > 0
    rank = np.where(helpful, np.cumsum(helpful), np.cumsum(~helpful))
    side = np.where(helpful, "helpful", np.where(first < 0, "harmful", "neither"))
    parts = [np.concatenate(list(c.rows)) for c in columns]
    unscored = (position == 0) & (request.decomposition == LOSS)
    table: dict[str, pa.Array] = {
        "id": array_of_texts([rows.ids[k] for k in of.tolist()]),
        "row_key": as_arrow(rows.row_keys[of]),
        "side": array_of_texts(side[of].tolist()),
        "rank": array_of(rank[of].astype(np.int64)),
        "row_score": array_of(first[of]),
        "position": array_of(position),
        "token": array_of_texts(token_texts(run, session, rows, shared)),
        "start": array_of(np.concatenate(list(shared["start"])).astype(np.int64)),
        "end": array_of(np.concatenate(list(shared["end"])).astype(np.int64)),
        "loss": array_of(np.concatenate(list(shared["loss"])).astype(np.float64), null=position == 0),
        "score": array_of(parts[0], null=unscored),
    }
    if len(columns) > 1:
        table |= {c.name: array_of(values, null=unscored) for c, values in zip(columns, parts, strict=True)}
    table["decomposition"] = array_of_texts([request.decomposition] * len(of))
    return pa.table(table)


def token_texts(run: Run, session: Session, rows: Rows, shared: Arrays) -> list[str]:
    """The characters of every token; the name of one that stands for none."""
    texts, called = _texts(rows), token_names(run, session) or {}
    found = list[str]()
    for name, start, end, number in zip(rows.ids, shared["start"], shared["end"], shared["number"], strict=True):
        text = texts[name]
        spans = zip(start.tolist(), end.tolist(), number.tolist(), strict=True)
        found += [text[a:b] if b > a else called.get(str(n), "") for a, b, n in spans]
    return found


def _texts(rows: Rows, most: int | None = None) -> dict[str, str]:
    """Texts by id, of the first so many rows, or of all."""
    kind, some = rows.manifest.payload_kind, rows.index[:most]
    payloads = dict(rows.manifest.payloads(some))
    return {rows.manifest.ids[row]: text_of(kind, payloads[row]) for row in some.tolist()}
