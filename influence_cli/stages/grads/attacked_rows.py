"""The attacked target rows V': made once, at the checkpoint itself, and stored; every member and method shares them.

They are made from target rows alone, which are no training rows and no test rows.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.processes.messages import may_be_sent
from influence_cli.stages.grads.attacked_texts import text_inputs
from influence_cli.stages.grads.attacking import make
from influence_cli.stages.run import names
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session
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
    inputs, digest = (text_inputs if spec.payload_kind.ragged else _inputs)(run, session, name, model, payloads)
    return inputs, {"name": names.attack(run, name), "digest": digest, **_how(run, name)}


def _inputs(
    run: Run, session: Session, name: str, model: nn.Module, payloads: dict[int, Payload]
) -> tuple[Attacked, str]:
    """Rows that are stored as they were attacked, a row of values each."""
    from influence_cli.engines.attacked import attacked_input

    spec, _ = require_model(run)
    keys = run.target.row_keys
    lacking = session.attacks(run, name).missing(keys)
    make(run, session, name, model, payloads, [int(k) for k in unique(keys) if lacking[k]], _store)
    stored = session.attacks(run, name).read(keys)["input"]
    place = {row: k for k, row in enumerate(run.target.index.tolist())}

    def inputs(rows: NDArray[np.int64]) -> Tensor:
        import torch

        chosen = np.ascontiguousarray(stored[[place[row] for row in rows.tolist()]])
        return attacked_input(torch.from_numpy(chosen), spec)

    return inputs, _digest(keys, stored)


@may_be_sent
def _store(run: Run, session: Session, name: str, rows: Rows, moved: Tensor) -> None:
    """Keep rows as they were attacked."""
    session.attacks(run, name).write(rows.row_keys, {"input": moved.numpy(), "payload_keys": rows.payload_keys})


def _how(run: Run, name: str) -> dict[str, Any]:
    objective, (spec, _) = run.objectives[name], require_model(run)
    return objective.describe(spec, run.spec.seed)


def _digest(keys: NDArray[np.uint8], stored: NDArray[Any]) -> str:
    """Hash of what every target row became, in order of their keys."""
    digest = hashlib.blake2b(digest_size=16)
    for k in key_order(keys):
        digest.update(keys[k].tobytes() + np.ascontiguousarray(stored[k]).tobytes())
    return digest.hexdigest()
