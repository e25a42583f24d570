"""Attacked target texts: the change of every token's embedding, stored under the row's key and the token's number.

Rows have as many tokens as they have, so that a shard holds a token in each entry.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.processes.messages import may_be_sent
from influence_cli.stages.grads.attacking import make
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.store.keys import KEY_BYTES
from influence_cli.store.shards import key_order, unique

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from influence_cli.data.manifest import Payload, Rows
    from influence_cli.engines.direction import Attacked


def text_inputs(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload]
) -> tuple[Attacked, str]:
    """The model's inputs of attacked target texts, after making those that are not stored; and a hash of them all."""
    from influence_cli.data.kinds.text import CHANGE, MASK
    from influence_cli.engines.attacked import attacked_input
    from influence_cli.model.named_tensors import from_arrays

    spec, _ = require_model(run)
    kind = spec.payload_kind
    keys, manifest = run.target.row_keys, run.target.manifest
    decoded: dict[int, Any] = {row: manifest.decoded(row, payloads[row], spec) for row in run.target.index.tolist()}
    lengths = {row: int(value[MASK].sum()) for row, value in decoded.items()}
    tokens = [_token_keys(key, lengths[row]) for key, row in zip(keys, run.target.index.tolist(), strict=True)]
    cuts = np.cumsum([len(some) for some in tokens])[:-1]
    lacking = np.split(session.attacks(run, name).missing(np.concatenate(tokens)), cuts)
    missing = [int(k) for k in unique(keys) if lacking[k].any()]
    make(run, session, name, model, payloads, missing, _store)
    stored = session.attacks(run, name).read(np.concatenate(tokens))["input"]
    changes = dict(zip(decoded, np.split(stored, cuts), strict=True))

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


@may_be_sent
def _store(run: Run, session: Session, name: str, rows: Rows, moved: Any) -> None:
    """Keep how the embeddings of rows' tokens were changed."""
    from influence_cli.data.kinds.text import CHANGE, MASK

    counts = [int(count) for count in moved.tensors[MASK].sum(1)]
    values = [change[:count].numpy() for change, count in zip(moved.tensors[CHANGE], counts, strict=True)]
    ours = np.concatenate([_token_keys(key, count) for key, count in zip(rows.row_keys, counts, strict=True)])
    whose = np.repeat(rows.payload_keys, counts, axis=0)
    session.attacks(run, name).write(ours, {"input": np.concatenate(values), "payload_keys": whose})


def _token_keys(key: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The keys [count, 16] under which what belongs to a row's tokens is stored."""
    row, found = key.tobytes(), bytearray()
    for token in range(count):
        of_token = row + token.to_bytes(4, "little")
        found += hashlib.blake2b(of_token, digest_size=KEY_BYTES, person=b"influence.token").digest()
    return np.frombuffer(bytes(found), dtype=np.uint8).reshape(count, KEY_BYTES)
