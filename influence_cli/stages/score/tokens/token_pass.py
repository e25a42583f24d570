"""Losses and scores of the tokens of some rows, computed where the store lacks them.

By loss (methods.md 2.6 A): s_it = (d/de) l_it(theta + e u), one pass of the engine over the losses of tokens [b, T].
By position (B): the layerwise formula put in order by position, one forward and one backward pass.  What is stored
holds no padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.kinds.text import MASK
from influence_cli.data.manifest import Rows
from influence_cli.errors import ModelError
from influence_cli.model.token_spans import special_names, token_spans
from influence_cli.stages.grads.fill import fill
from influence_cli.stages.grads.member_model import MemberModel, Models, read_direction
from influence_cli.stages.grads.row_loop import Parts, Speed, Waits, loop_over
from influence_cli.stages.run import names
from influence_cli.stages.run.quantities import QUANTITIES, Part, chain_parts
from influence_cli.stages.run.run import Member, Run, require_model
from influence_cli.stages.run.session import Batch, Session
from influence_cli.stages.score.tokens.request import LOSS, POSITION
from influence_cli.store import Keys, fingerprint
from influence_cli.store.ragged import ragged
from influence_cli.store.shards import Arrays, positions, unique

TRIED = 4  # rows on which the engine is checked again: of rows as a whole it was before
QUANTITY = {LOSS: "tokens", POSITION: "positions"}  # of the store, by decomposition

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Compute = Callable[[Any, Any, list[dict[str, Tensor]]], tuple[Tensor, list[Tensor]]]


def parts_of(run: Run, decomposition: str) -> dict[Member, list[Part]]:
    """What the store is to hold, by member: one part for each direction."""
    found: dict[Member, dict[str, Part]] = {}
    for method, members in run.members_of.items():
        for member in members:
            for objective in run.objectives:
                name = part_name(run, method, member, objective)
                found.setdefault(member, {})[name] = Part(
                    QUANTITY[decomposition], name, member, of=method if method in run.samplers else ""
                )
    return {member: list(parts.values()) for member, parts in found.items()}


def part_name(run: Run, method: str, member: Member, objective: str) -> str:
    """What the scores of tokens are stored under: a direction, or all the chains of a sampler."""
    if method not in run.samplers:
        return names.along(run, method, member, objective)
    return fingerprint("token chains", 1, chains=[part.name for part in chain_parts(run, method, objective)])


def lacking(run: Run, session: Session, rows: Rows, decomposition: str) -> dict[Member, dict[Part, Keys]]:
    """By member and part the keys [n, 16] of the rows' distinct texts that are not stored; members without any are not.

    Where the names of tokens without text are not known, everything is.
    """
    keys = rows.payload_keys[unique(rows.payload_keys)]
    nameless = token_names(run, session) is None
    found: dict[Member, dict[Part, Keys]] = {}
    for member, parts in parts_of(run, decomposition).items():
        for part in parts:
            folder = QUANTITIES[part.quantity].folder(run, session, part)
            missing = keys if nameless else keys[folder.missing(keys)]
            if len(missing):
                found.setdefault(member, {})[part] = missing
    return found


def token_names(run: Run, session: Session) -> dict[str, str] | None:
    """Names of the tokens that stand for no part of a text, by number as text; None where they are not noted."""
    return session.store.read_model_note(_names_note(run))


def _names_note(run: Run) -> str:
    text = require_model(run)[0].text
    assert text is not None
    return fingerprint("token-names", 1, tokenizer=text.tokenizer)


def fill_tokens(run: Run, session: Session, rows: Rows, decomposition: str) -> int:
    """Compute and store what is missing of some train rows; returns how many rows were run.

    Raises:
        ModelError: a module joins positions, of parts by position; or the tokenizer does not tell where tokens stand.
    """
    missing = lacking(run, session, rows, decomposition)
    if not missing:
        return 0
    names_of_parts = [part.name for parts in missing.values() for part in parts if not part.of]
    if any(session.store.directions.read(name) is None for name in names_of_parts):
        fill(run, session)  # its file was damaged or is gone
    text = require_model(run)[0].text
    assert text is not None
    session.store.write_model_note(_names_note(run), special_names(text))
    models, done = Models(run, session), 0
    for k, (member, parts) in enumerate(missing.items()):
        at = models.at(member, f"member {k + 1} of {len(missing)}" if len(missing) > 1 else "model")
        along = {part: keys for part, keys in parts.items() if not part.of}
        done += _at_member(run, session, rows, along, at, decomposition) if along else 0
        for method in dict.fromkeys(part.of for part in parts if part.of):
            drawn = {part: keys for part, keys in parts.items() if part.of == method}
            done += _by_chains(run, session, rows, method, drawn, at)
    session.forget_folders()
    return done


def _at_member(
    run: Run, session: Session, rows: Rows, missing: dict[Part, Keys], at: MemberModel, decomposition: str
) -> int:
    point = at.exact if decomposition == POSITION else at.point
    directions = {part: read_direction(session, part.name, point) for part in missing}
    by_parts = _by_position(run, at) if decomposition == POSITION else _by_loss(session, at)

    def compute(batch: Batch, parts: Parts) -> Waits:
        x: Any = batch.on(point)
        labels = batch.labels_on(point)
        losses, scores = by_parts(x, labels, [directions[part] for part in parts])
        lengths = x.tensors[MASK].sum(1).tolist()
        places = _places(run, batch, x.tensors, lengths)
        shared = {**places, "loss": _cut(losses, lengths)}
        found: dict[Part, Arrays] = {
            part: {**shared, "score": _cut(s, lengths)} for part, s in zip(parts, scores, strict=True)
        }
        return lambda: found

    speed = Speed(lambda: session.batch_size(run.model))
    return loop_over(run, session, rows, missing, compute, f"tokens, {at.called}", speed).rows


def _by_chains(run: Run, session: Session, rows: Rows, method: str, missing: dict[Part, Keys], at: MemberModel) -> int:
    """Scores by a sampler, of whose rows some lack them, and the losses of tokens at the checkpoint itself."""
    from influence_cli.model.next_token import by_token
    from influence_cli.stages.score.tokens.token_chains import scores_of_tokens

    every = np.concatenate(list(missing.values()))
    some = rows.take(np.flatnonzero(positions(rows.payload_keys, every) >= 0))
    some = some.take(np.sort(unique(some.payload_keys)))
    found, plain = scores_of_tokens(run, session, at, method, some), at.exact.anew()
    place = {row: k for k, row in enumerate(some.index.tolist())}
    objective_of = {part_name(run, method, part.member, o): o for part in missing for o in run.objectives}

    def compute(batch: Batch, parts: Parts) -> Waits:
        x: Any = batch.on(plain)
        with by_token(plain.model):
            losses = plain.outputs(x, [])[0]
        lengths = x.tensors[MASK].sum(1).tolist()
        shared = {**_places(run, batch, x.tensors, lengths), "loss": _cut(losses, lengths)}
        scores = {p: ragged(found[objective_of[p.name]][place[row]] for row in batch.index.tolist()) for p in parts}
        arrays: dict[Part, Arrays] = {part: {**shared, "score": values} for part, values in scores.items()}
        return lambda: arrays

    speed = Speed(lambda: session.batch_size(run.model))
    return loop_over(run, session, some, missing, compute, f"tokens, {method}", speed).rows


def _by_loss(session: Session, at: MemberModel) -> Compute:
    """Losses of tokens [b, T] and their derivatives along directions, by an engine that is checked on these."""
    from influence_cli.engines.batch_size import Parts as Pieces
    from influence_cli.engines.engine import Engine
    from influence_cli.model.next_token import by_token

    point, memory = at.point.anew(), Pieces(session.listener.warn)
    point.few = None if point.few is None else point.few[:TRIED]
    engine = Engine(point, session.runtime.engine, session.listener)

    def compute(x: Any, labels: Any, along: list[dict[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        with by_token(point.model):
            losses, scores = memory.run(lambda some: engine.outputs(some, along), x)
        return losses, list(scores)

    return compute


def _by_position(run: Run, at: MemberModel) -> Compute:
    """Losses of tokens [b, T], and the parts of scores that enter at each position."""
    from influence_cli.engines.layerwise.positions import Positions
    from influence_cli.model.next_token import by_token

    positions, plain = Positions(at.exact, run.row_loss), at.exact.anew()

    def compute(x: Any, labels: Any, along: list[dict[str, Tensor]]) -> tuple[Tensor, list[Tensor]]:
        with by_token(plain.model):
            losses = plain.outputs(x, [])[0]
        return losses, [s.to(losses.dtype) for s in positions.of(x, labels, losses.shape[1], along)]

    return compute


def try_positions(run: Run, session: Session) -> None:
    """Refuse (ModelError) a model of which a module joins positions, on two rows, before all are scored."""
    import torch

    from influence_cli.engines.layerwise.positions import Positions

    point = Models(run, session).at(run.members[0]).exact
    if point.few is not None:
        x: Any = point.few[:2]
        labels = torch.zeros(len(x), dtype=torch.int64, device=point.device)
        Positions(point, run.row_loss).of(x, labels, x.tensors[MASK].shape[1], [point.selected])


def _cut(values: Tensor, lengths: list[int]) -> NDArray[np.object_]:
    """Rows [b, T] to as many tokens as each has."""
    array = values.cpu().numpy()
    return ragged(array[k, :length].copy() for k, length in enumerate(lengths))


def _places(run: Run, batch: Batch, tensors: dict[str, Any], lengths: list[int]) -> Arrays:
    """Where the tokens of a batch stand in their texts, and their numbers."""
    from influence_cli.data.kinds.text import TOKENS

    text, kind = require_model(run)[0].text, batch.manifest.payload_kind
    assert text is not None
    payloads = dict(batch.manifest.payloads(batch.index))
    spans = [token_spans(text, text_of(kind, payloads[row])) for row in batch.index.tolist()]
    for row, found, length in zip(batch.index.tolist(), spans, lengths, strict=True):
        if len(found) != length:
            what = f"the tokenizer places {len(found)} tokens where the model is given {length}"
            raise ModelError(what, where=f"row id={batch.manifest.ids[row]}", fix="leave --tokens out")
    ids = tensors[TOKENS].cpu().numpy().astype(np.int32)
    return {
        "start": ragged(found[:, 0] for found in spans),
        "end": ragged(found[:, 1] for found in spans),
        "number": ragged(ids[k, :length].copy() for k, length in enumerate(lengths)),
    }


def text_of(kind: Any, payload: Any) -> str:
    """The text of a payload of one text."""
    return next(iter(kind.as_values(payload).values()))
