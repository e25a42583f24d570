"""The most memory that a run takes at once, for its plan: what its tensors take on a row, and measured constants.

The constants are of ``tests/benchmarks/capacity.py`` and, of rows, of ``tests/benchmarks/scale.py`` up to a million of
them; the table of the first says how far from them real runs were.  What is on an accelerator was not measured: it is
the same part of the same sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from influence_cli.stages.run.curvature_plan import parameter_count
from influence_cli.stages.run.plan import Work
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session
from influence_cli.store.blocks import BLOCK_VALUES
from influence_cli.store.shards import SHARD_BYTES

if TYPE_CHECKING:
    from influence_cli.engines.activations import Activations

MB = 1 << 20
PROGRAM = 750 * MB  # Python with torch and timm
WITHOUT_TORCH = 150 * MB  # a run whose every row is stored
WEIGHTS = 13.0  # times the parameters: the model, directions, and rows of gradients that derivatives are checked with
LIVE = 5.0  # times the largest tensor of a batch, for its value and for each tangent of it
BACKWARD = 1.3  # times the tensors that a backward pass over a batch of target rows keeps
ROW = 100  # bytes of a manifest's row: keys, label, place in the store, score
CLASS = 16.0  # times the bytes of a block of logits: they and their tangents, and scores by label in float64
NARROW = 2.0  # times the bytes of the columns that are in memory: once as they are read, once in the table of scores
FACTORS = 3.0  # times the bytes of a factor, while it is fitted
BUCKETS = 16  # of target rows, which share no batch


def peak_memory(run: Run, session: Session, work: list[Work], tried: dict[str, Any]) -> dict[str, int | None]:
    """Bytes on the host and on the accelerator; None where the model says nothing of its rows.

    ``tried`` keeps what was found for plans of fewer of the same rows.
    """
    manifests = {id(m): m for m in (run.manifest, run.target.manifest)}.values()
    rows = sum(ROW * len(m) + int(NARROW * m.table.nbytes) for m in manifests)
    rows += 0 if run.model is None else _by_class(run)
    if all(w.nothing for w in work) or run.model is None:
        return {"host_bytes": WITHOUT_TORCH + rows, "accelerator_bytes": 0}
    if "activations" not in tried:
        tried["activations"] = _activations(run)
    found: Activations | None = tried["activations"]
    if found is None:
        return {"host_bytes": None, "accelerator_bytes": None}
    of_model = int(_weights(run, session) + _batch(run, session, work, found) + _factors(work))
    if session.device.type == "cpu":
        return {"host_bytes": PROGRAM + rows + of_model, "accelerator_bytes": 0}
    return {"host_bytes": PROGRAM + rows, "accelerator_bytes": of_model}


def _activations(run: Run) -> Activations | None:
    from influence_cli.engines.activations import activations
    from influence_cli.model.build import build_model
    from influence_cli.stages.run.estimate import ROWS, sample_input

    assert run.model is not None
    model = build_model(run.model).eval()
    x = sample_input(run, run.model, next(model.parameters()).dtype)
    return None if x is None else activations(model, x, min(ROWS, len(x)))


def _weights(run: Run, session: Session) -> float:
    return WEIGHTS * parameter_count(run, session, "all") * _value(run)


def _by_class(run: Run) -> int:
    """A block of the train rows' values by class, and the shard that it is read from."""
    assert run.model is not None
    every = run.model.num_classes * len(run.train)
    return int(CLASS * _value(run) * min(BLOCK_VALUES, every)) + min(SHARD_BYTES, _value(run) * every)


def _value(run: Run) -> int:
    return 8 if run.spec.precision == "fp64" else 4


def _batch(run: Run, session: Session, work: list[Work], found: Activations) -> float:
    """Of the larger of a batch of train rows with tangents, and one of target rows with what its backward keeps."""
    size, scale = session.batch_size(run.model), _value(run) / 4
    tangents = max((len(w.tangents) + len(w.halves) for w in work), default=0)
    forward = LIVE * (1 + tangents) * found.largest * min(size, len(run.train))
    of_target = min(size, -(-len(run.target) // BUCKETS)) if any(w.directions for w in work) else 0
    of_fit = min(size, len(run.train)) if any(w.fits or w.solves or w.further for w in work) else 0
    return scale * max(forward, BACKWARD * found.saved * max(of_target, of_fit))


def _factors(work: list[Work]) -> float:
    return FACTORS * max((fit.bytes for w in work for fit in w.fits), default=0)
