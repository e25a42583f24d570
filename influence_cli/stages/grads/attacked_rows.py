"""The attacked target rows V': made once, at the checkpoint itself, and stored; every member and method shares them.

They are made from target rows alone, which are no training rows and no test rows.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.stages.run.job import Job, require_model
from influence_cli.store.shards import key_order, unique

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from influence_cli.data.manifest import Payload
    from influence_cli.engines.direction import Attacked

Made = dict[int, "NDArray[Any]"]  # manifest row -> x', as decoded


def attacked_rows(
    job: Job, name: str, model: nn.Module, payloads: dict[int, Payload], batch_size: int
) -> tuple[Attacked, dict[str, Any]]:
    """The model's inputs of attacked target rows, after making those that are not stored; and what is known of them.

    Raises:
        InfluenceError: the rows cannot be attacked so.
    """
    from influence_cli.engines.attacks import attacked_input

    spec, _ = require_model(job)
    folder = job.attacks(name)
    keys = job.target.row_keys
    lacking = folder.missing(keys)
    missing = [int(k) for k in unique(keys) if lacking[k]]
    if missing:
        _make(job, name, model, payloads, missing, batch_size)
    stored = folder.read(keys)["input"]
    place = {row: k for k, row in enumerate(job.target.index.tolist())}

    def inputs(rows: NDArray[np.int64]) -> Tensor:
        import torch

        chosen = np.ascontiguousarray(stored[[place[row] for row in rows.tolist()]])
        return attacked_input(torch.from_numpy(chosen), spec)

    return inputs, {"name": job.attack(name), "digest": _digest(keys, stored), **_how(job, name)}


def _how(job: Job, name: str) -> dict[str, Any]:
    objective, (spec, _) = job.objectives[name], require_model(job)
    return objective.describe(spec, job.spec.seed)


def _digest(keys: NDArray[np.uint8], stored: NDArray[Any]) -> str:
    """Hash of what every target row became, in order of their keys."""
    digest = hashlib.blake2b(digest_size=16)
    for k in key_order(keys):
        digest.update(keys[k].tobytes() + np.ascontiguousarray(stored[k]).tobytes())
    return digest.hexdigest()


def _make(
    job: Job, name: str, model: nn.Module, payloads: dict[int, Payload], wanted: list[int], batch_size: int
) -> None:
    """Attack the target rows at these places, and store each batch as a shard."""
    import torch

    from influence_cli.engines.attacks import attack
    from influence_cli.model.examples import batches, chunked, move

    spec, _ = require_model(job)
    objective, rows, folder = job.objectives[name], job.target.take(np.array(wanted)), job.attacks(name)
    where, kind = {row: k for k, row in enumerate(rows.index.tolist())}, next(model.parameters())
    labels = torch.from_numpy(job.target.manifest.labels)
    with job.listener.progress(f"attack {objective.kind(spec)}", len(rows), "target rows") as progress:
        chunks = ([(row, payloads[row]) for row in chunk] for chunk in chunked(sorted(where), batch_size))
        for index, decoded in batches(job.target.manifest, chunks, spec, job.runtime.workers):
            places = [where[row] for row in index.tolist()]
            keys = rows.row_keys[places]
            moved = attack(
                model, spec, objective, move(decoded, kind.device), move(labels[torch.from_numpy(index)], kind.device),
                keys, seed=job.spec.seed, loss=job.row_loss, names=[f"row id={rows.ids[p]}" for p in places],
            )  # fmt: skip
            moved = moved.float() if moved.dtype == torch.bfloat16 else moved
            folder.write(keys, {"input": moved.cpu().numpy(), "payload_keys": rows.payload_keys[places]})
            progress.advance(len(index))
