"""(2) What a page shades the tokens of a few train rows by: one number for each token of their texts.

Of a language model whose scores have parts by token, it is the token's part of the row's score; of another one minus
the token's own loss.  A classifier, or a model of numbers, predicts no tokens, and its score is no sum over them:
there it is minus gradient times embedding (``engines.token_slopes``), which says what the row's loss depends on.  So
above 0 the token helps, is expected, or speaks for the row's label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds.text import MASK, TOKENS
from influence_cli.data.manifest import Rows
from influence_cli.methods.protocol import Linear
from influence_cli.model.text_input import TextInput
from influence_cli.model.token_spans import spans_of_texts, special_names
from influence_cli.stages.grads.member_model import MemberModel, Models
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Batch, Session
from influence_cli.stages.score.tokens.request import LOSS
from influence_cli.stages.score.tokens.table import check_sums, column_of_tokens, stored_tokens, token_texts
from influence_cli.stages.score.tokens.token_pass import fill_tokens

Floats = NDArray[np.float64]
SCORE_PARTS, TOKEN_LOSSES, SLOPES = "score", "loss", "gradient"  # what the numbers are


@dataclass(frozen=True)
class TokenValue:
    """A token of a text: its characters from ``start`` up to ``end``, none of one that was added, and its number."""

    start: int
    end: int
    name: str
    value: float


@dataclass(frozen=True)
class Shading:
    """The tokens of rows, by id and column of text, and what their numbers are."""

    what: str
    rows: dict[str, dict[str, list[TokenValue]]]


def shading_of(
    run: Run, session: Session, method: str | None, objective: str | None, places: NDArray[np.int64], scores: Floats
) -> Shading | None:
    """What the tokens of the train rows at some places are shaded by; None where rows are no texts.

    ``scores`` [n] are those of all train rows by this method and objective.

    Raises:
        ModelError: the model does not say where its embedding is, or the tokenizer not where its tokens stand.
    """
    if run.model is None or run.model.text is None or not run.members or not len(places):
        return None
    rows = run.train.take(places)
    if not run.model.is_language:
        return Shading(SLOPES, _slopes(run, session, rows))
    if method is None or objective is None or not _has_parts(run, method):
        return Shading(TOKEN_LOSSES, _losses(run, session, rows))
    finite = places[np.isfinite(scores[places])]
    return Shading(SCORE_PARTS, _parts(run, session, method, objective, finite, scores[finite]))


def _has_parts(run: Run, method: str) -> bool:
    """Whether the scores of tokens are stored along directions; chains of draws would all be drawn again."""
    return run.methods[method].needs == "tangents" and type(run.methods[method]).score is Linear.score


def _parts(
    run: Run, session: Session, method: str, objective: str, places: NDArray[np.int64], scores: Floats
) -> dict[str, dict[str, list[TokenValue]]]:
    """Each token's part of its row's score, of the train rows at some places."""
    of = replace(
        run, methods={method: run.methods[method]}, members_of={method: run.members_of[method]},
        objectives={objective: run.objectives[objective]},
    )  # fmt: skip
    rows = of.train.take(places)
    fill_tokens(of, session, of.train.take(np.sort(places)), LOSS)
    column = column_of_tokens(of, session, rows, method, objective, LOSS)
    check_sums(of, rows, [column], {column.name: scores})
    shared = stored_tokens(of, session, rows, LOSS)
    called = iter(token_texts(of, session, rows, shared))
    (text,) = rows.manifest.payload_kind.columns
    found: dict[str, dict[str, list[TokenValue]]] = {}
    for name, start, end, values in zip(rows.ids, shared["start"], shared["end"], column.rows, strict=True):
        tokens = zip(start.tolist(), end.tolist(), values.tolist(), strict=True)
        found[name] = {text: [TokenValue(a, b, next(called), v) for a, b, v in tokens]}
    return found


def _slopes(run: Run, session: Session, rows: Rows) -> dict[str, dict[str, list[TokenValue]]]:
    """Minus gradient times embedding of each token, at the checkpoint itself."""
    from influence_cli.engines.token_slopes import loss_by_token

    def values(at: MemberModel, batch: Batch) -> Any:
        x: Any = batch.on(at.exact)
        labels = batch.labels_on(at.exact)
        return -loss_by_token(at.exact.model, require_model(run)[0], x, labels, run.row_loss)

    return _by_batches(run, session, rows, values)


def _losses(run: Run, session: Session, rows: Rows) -> dict[str, dict[str, list[TokenValue]]]:
    """Minus the loss of each token, at the checkpoint itself; 0 for a text's first one, which has none."""
    from influence_cli.model.next_token import by_token

    def values(at: MemberModel, batch: Batch) -> Any:
        with by_token(at.exact.model):
            return -at.exact.outputs(batch.on(at.exact), [])[0]

    return _by_batches(run, session, rows, values)


def _by_batches(run: Run, session: Session, rows: Rows, values: Any) -> dict[str, dict[str, list[TokenValue]]]:
    """The tokens of rows by id and column, with what ``values`` [b, T] gives for each batch."""
    model = require_model(run)[0]
    at, found = Models(run, session).at(run.plain_member()), dict[str, dict[str, list[TokenValue]]]()
    payloads, text, kind = dict(rows.manifest.payloads(rows.index)), model.text, rows.manifest.payload_kind
    assert text is not None
    names = special_names(text)
    with session.listener.progress("tokens", len(rows)) as progress:
        for batch in session.rows(model, rows, session.batch_size(model), keep=False):
            numbers = values(at, batch).double().cpu().numpy()
            x: Any = batch.on(at.exact)
            tensors = x.tensors
            for k, row in enumerate(batch.index.tolist()):
                length = int(tensors[MASK][k].sum())
                by_column = kind.as_values(payloads[row]) or {}
                ids = tensors[TOKENS][k, :length].tolist()
                found[rows.manifest.ids[row]] = _placed(text, by_column, ids, names, numbers[k, :length].tolist())
            progress.advance(len(batch.index))
    return found


def _placed(
    text: TextInput, by_column: dict[str, str], ids: Sequence[int], names: dict[str, str], values: Sequence[float]
) -> dict[str, list[TokenValue]]:
    """A row's tokens by column; those that were added stand in the column of the token before them."""
    made: dict[str, list[TokenValue]] = {column: [] for column in by_column}
    columns, texts = list(by_column), tuple(by_column.values())
    last = 0
    for (of, start, end), number, value in zip(spans_of_texts(text, texts).tolist(), ids, values, strict=True):
        added = of < 0 or end <= start
        last = last if of < 0 else of
        here = made[columns[last]]
        at = here[-1].end if here else 0
        name = names.get(str(number), "") if added else texts[of][start:end]
        here.append(TokenValue(at if added else start, at if added else end, name, value))
    return made
