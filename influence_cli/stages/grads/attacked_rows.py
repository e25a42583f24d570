"""The attacked target rows V': made once, at the checkpoint itself, and stored; every member and method shares them.

They are made from target rows alone, which are no training rows and no test rows.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.stages.run import names
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.store.shards import key_order, unique

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from influence_cli.data.manifest import Payload
    from influence_cli.engines.direction import Attacked

Made = dict[int, "NDArray[Any]"]  # manifest row -> x', as decoded


def attacked_rows(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload]
) -> tuple[Attacked, dict[str, Any]]:
    """The model's inputs of attacked target rows, after making those that are not stored; and what is known of them.

    Raises:
        InfluenceError: the rows cannot be attacked so.
    """
    from influence_cli.engines.attacked import attacked_input

    spec, _ = require_model(run)
    folder = session.attacks(run, name)
    keys = run.target.row_keys
    lacking = folder.missing(keys)
    missing = [int(k) for k in unique(keys) if lacking[k]]
    if missing:
        _make(run, session, name, model, payloads, missing)
    stored = folder.read(keys)["input"]
    place = {row: k for k, row in enumerate(run.target.index.tolist())}

    def inputs(rows: NDArray[np.int64]) -> Tensor:
        import torch

        chosen = np.ascontiguousarray(stored[[place[row] for row in rows.tolist()]])
        return attacked_input(torch.from_numpy(chosen), spec)

    return inputs, {"name": names.attack(run, name), "digest": _digest(keys, stored), **_how(run, name)}


def _how(run: Run, name: str) -> dict[str, Any]:
    objective, (spec, _) = run.objectives[name], require_model(run)
    return objective.describe(spec, run.spec.seed)


def _digest(keys: NDArray[np.uint8], stored: NDArray[Any]) -> str:
    """Hash of what every target row became, in order of their keys."""
    digest = hashlib.blake2b(digest_size=16)
    for k in key_order(keys):
        digest.update(keys[k].tobytes() + np.ascontiguousarray(stored[k]).tobytes())
    return digest.hexdigest()


def _make(
    run: Run,
    session: Session,
    name: str,
    model: nn.Module,
    payloads: dict[int, Payload],
    wanted: list[int],
) -> None:
    """Attack the target rows at these places, and store each batch as a shard."""
    import torch

    from influence_cli.engines.attacked import attack
    from influence_cli.model.examples import chunked, move

    spec, _ = require_model(run)
    objective, rows, folder = run.objectives[name], run.target.take(np.array(wanted)), session.attacks(run, name)
    where, kind = {row: k for k, row in enumerate(rows.index.tolist())}, next(model.parameters())
    size = session.batch_size(spec)
    with session.listener.progress(f"attack {objective.kind(spec)}", len(rows), "target rows") as progress:
        chunks = ([(row, payloads[row]) for row in chunk] for chunk in chunked(sorted(where), size))
        for batch in session.rows(spec, run.target, chunks, keep=False):
            places = [where[row] for row in batch.index.tolist()]
            keys, y = rows.row_keys[places], move(torch.from_numpy(batch.labels), kind.device)
            moved = attack(
                model, spec, objective, move(batch.decoded, kind.device), y, keys, seed=run.spec.seed,
                loss=run.row_loss, names=[f"row id={rows.ids[p]}" for p in places],
            )  # fmt: skip
            moved = moved.float() if moved.dtype == torch.bfloat16 else moved
            folder.write(keys, {"input": moved.cpu().numpy(), "payload_keys": rows.payload_keys[places]})
            progress.advance(len(batch.index))
