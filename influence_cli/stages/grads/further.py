"""The fit rows as further training sees them: those that are finite, in the precision of scores, with their loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from influence_cli.errors import ManifestError
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import INPUT_VALUES, Session

if TYPE_CHECKING:
    from torch import nn

    from influence_cli.curvature.curvature import Curvature

NAMED = 5  # rows that a warning names
SMALL, MOST_ROWS = 50_000, 4096  # parameters up to which a network is small, and rows that it is run on at once


def rows_a_call(run: Run, session: Session, model: nn.Module) -> int:
    """Rows that the model is run on at once: those of a run's batches, and more where a network is small.

    A small one takes about as long for some thousand rows as for a few, and its steps are many.
    """
    usual, (spec, _) = session.batch_size(run.model), require_model(run)
    if session.runtime.batch_size or sum(p.numel() for p in model.parameters()) > SMALL:
        return usual
    return max(usual, min(MOST_ROWS, INPUT_VALUES // int(np.prod(spec.shape))))


def open_fit_rows(run: Run, session: Session, model: nn.Module) -> Curvature:
    """The fit rows at a model in evaluation mode, without those whose logits or derivatives are not finite.

    Raises:
        ManifestError: none is left.
    """
    from influence_cli.curvature.curvature import Curvature

    assert run.fit is not None
    precision = "fp64" if run.spec.precision == "fp64" else "fp32"
    curvature = Curvature(
        model, require_model(run)[0], run.fit.rows, run.spec.params, None, session.device,
        rows_a_call(run, session, model), session.runtime.workers, precision=precision, loss=run.row_loss,
    )  # fmt: skip
    bad = curvature.unusable()
    if len(bad) == 0:
        return curvature
    rows = run.fit.rows.take(~np.isin(run.fit.rows.index, bad))
    manifest = run.fit.rows.manifest
    if len(rows) == 0:
        raise ManifestError(
            "training cannot go on: no fit row has finite logits and derivatives",
            where=manifest.source,
            fix="standardise the features, or give a checkpoint whose logits are finite",
        )
    some = ", ".join(manifest.ids[row] for row in bad[:NAMED].tolist()) + (", ..." if len(bad) > NAMED else "")
    session.listener.warn(
        f"{len(bad):,} fit rows have logits or derivatives that are not finite, and further training is without them: "
        f"{some}"
    )
    return curvature.over(rows, precision)
