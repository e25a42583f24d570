"""The attacked target rows V': made once, at the checkpoint itself, and stored; every member and method shares them.

They are made from target rows alone, which are no training rows and no test rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.stages.run import names
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.store.keys import KEY_BYTES
from influence_cli.store.shards import key_order, unique

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from influence_cli.data.manifest import Payload, Rows
    from influence_cli.engines.direction import Attacked


def attacked_rows(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload]
) -> tuple[Attacked, dict[str, Any]]:
    """The model's inputs of attacked target rows, after making those that are not stored; and what is known of them.

    Raises:
        InfluenceError: the rows cannot be attacked so.
    """
    spec, _ = require_model(run)
    inputs, digest = (_texts if spec.payload_kind.ragged else _inputs)(run, session, name, model, payloads)
    return inputs, {"name": names.attack(run, name), "digest": digest, **_how(run, name)}


def _inputs(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload]
) -> tuple[Attacked, str]:
    """Rows that are stored as they were attacked, a row of values each."""
    from influence_cli.engines.attacked import attacked_input

    spec, _ = require_model(run)
    folder = session.attacks(run, name)
    keys = run.target.row_keys
    lacking = folder.missing(keys)
    for rows, moved in _made(run, session, name, model, payloads, [int(k) for k in unique(keys) if lacking[k]]):
        folder.write(rows.row_keys, {"input": moved.numpy(), "payload_keys": rows.payload_keys})
    stored = folder.read(keys)["input"]
    place = {row: k for k, row in enumerate(run.target.index.tolist())}

    def inputs(rows: NDArray[np.int64]) -> Tensor:
        import torch

        chosen = np.ascontiguousarray(stored[[place[row] for row in rows.tolist()]])
        return attacked_input(torch.from_numpy(chosen), spec)

    return inputs, _digest(keys, stored)


def _texts(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload]
) -> tuple[Attacked, str]:
    """Texts, of which the change of every token's embedding is stored under the row's key and the token's number."""
    from influence_cli.data.kinds.text import CHANGE, MASK
    from influence_cli.engines.attacked import attacked_input
    from influence_cli.model.named_tensors import from_arrays

    spec, _ = require_model(run)
    folder, kind = session.attacks(run, name), spec.payload_kind
    keys, manifest = run.target.row_keys, run.target.manifest
    decoded: dict[int, Any] = {row: manifest.decoded(row, payloads[row], spec) for row in run.target.index.tolist()}
    lengths = {row: int(value[MASK].sum()) for row, value in decoded.items()}
    tokens = [_token_keys(key, lengths[row]) for key, row in zip(keys, run.target.index.tolist(), strict=True)]
    missing = [int(k) for k in unique(keys) if folder.missing(tokens[k]).any()]
    for rows, moved in _made(run, session, name, model, payloads, missing):
        counts = [lengths[row] for row in rows.index.tolist()]
        values = [change[:count].numpy() for change, count in zip(moved.tensors[CHANGE], counts, strict=True)]
        ours = np.concatenate([_token_keys(key, count) for key, count in zip(rows.row_keys, counts, strict=True)])
        whose = np.repeat(rows.payload_keys, counts, axis=0)
        folder.write(ours, {"input": np.concatenate(values), "payload_keys": whose})
    stored = folder.read(np.concatenate(tokens))["input"]
    changes = dict(zip(decoded, np.split(stored, np.cumsum([len(some) for some in tokens])[:-1]), strict=True))

    def inputs(rows: NDArray[np.int64]) -> Tensor:
        some = rows.tolist()
        values: Any = kind.collate([decoded[row] for row in some])
        longest = values[MASK].shape[1]
        filled = [np.pad(changes[row], ((0, longest - len(changes[row])), (0, 0))) for row in some]
        return attacked_input(from_arrays({**values, CHANGE: np.stack(filled)}), spec)

    digest = hashlib.blake2b(digest_size=16)
    for k in key_order(keys):
        digest.update(keys[k].tobytes() + changes[int(run.target.index[k])].tobytes())
    return inputs, digest.hexdigest()


def _token_keys(key: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The keys [count, 16] under which what belongs to a row's tokens is stored."""
    row, found = key.tobytes(), bytearray()
    for token in range(count):
        of_token = row + token.to_bytes(4, "little")
        found += hashlib.blake2b(of_token, digest_size=KEY_BYTES, person=b"influence.token").digest()
    return np.frombuffer(bytes(found), dtype=np.uint8).reshape(count, KEY_BYTES)


def _how(run: Run, name: str) -> dict[str, Any]:
    objective, (spec, _) = run.objectives[name], require_model(run)
    return objective.describe(spec, run.spec.seed)


def _digest(keys: NDArray[np.uint8], stored: NDArray[Any]) -> str:
    """Hash of what every target row became, in order of their keys."""
    digest = hashlib.blake2b(digest_size=16)
    for k in key_order(keys):
        digest.update(keys[k].tobytes() + np.ascontiguousarray(stored[k]).tobytes())
    return digest.hexdigest()


def _made(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload], wanted: list[int]
) -> Iterator[tuple[Rows, Any]]:
    """The target rows at these places attacked, a batch at a time: rows and what they became, on the host."""
    import torch

    from influence_cli.engines.attacked import attack
    from influence_cli.model.examples import alike, chunked, move
    from influence_cli.model.named_tensors import mapped

    if not wanted:
        return
    spec, _ = require_model(run)
    objective, rows = run.objectives[name], run.target.take(np.array(wanted))
    where, kind = {row: k for k, row in enumerate(rows.index.tolist())}, next(model.parameters())
    size = session.batch_size(spec)
    with session.listener.progress(f"attack {objective.kind(spec)}", len(rows), "target rows") as progress:
        held = alike(((row, payloads[row]) for row in sorted(where)), rows.manifest.payload_kind, size)
        for batch in session.rows(spec, run.target, chunked(held, size), keep=False):
            some = rows.take(np.array([where[row] for row in batch.index.tolist()]))
            moved = attack(
                model, spec, objective, move(batch.decoded, kind.device),
                move(torch.from_numpy(batch.labels), kind.device), some.row_keys, seed=run.spec.seed,
                loss=run.row_loss, names=[f"row id={i}" for i in some.ids],
            )  # fmt: skip
            yield some, mapped(lambda t: (t.float() if t.dtype == torch.bfloat16 else t).cpu(), moved)
            progress.advance(len(batch.index))
