"""Target probe: how likely a row's label is to a linear probe that was fitted on the target rows; ranking only.

``methods.shapes.by_probe`` has its equation.  Target rows that are train rows too are left out of the fit.  The
strength is that of least squared error over K folds of the fit's rows, each by a probe that was fitted on the others.
Mean and sd of features are those of the fit's rows, so that a row's score depends on no other train row.  Train rows
of a class that no target row has get no score.

Columns ``other_label`` and ``other_probability`` of the table are those of this probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from influence_cli.data.classes import class_count
from influence_cli.data.folds import dealt
from influence_cli.errors import UsageError
from influence_cli.maths.linear_probe import Examples, added, predicted, scaled, squared_errors, sums
from influence_cli.methods.protocol import Scores
from influence_cli.methods.shapes.by_probe import ByProbe, refuse_wide, targets_of
from influence_cli.store.shards import positions

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.methods.stored import Stored
    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class TargetProbe(ByProbe):
    """Rows whose label the target rows contradict come last."""

    def needs_target(self) -> bool:
        """Yes: it is fitted on them."""
        return True

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """The log-likelihood of each row's label, or minus its squared error.

        Raises:
            UsageError: too few target rows are no train rows, or features are too wide.
        """
        (member,) = stored.members
        own = stored.read("features", member)["features"]
        refuse_wide(own.shape[1], "target-probe")
        fit, overlap = _apart(stored.target, rows)
        features = stored.read("features", member, fit)["features"]
        known = np.isfinite(features).all(axis=1) & (fit.weights > 0)
        fit, features = fit.take(np.flatnonzero(known)), features[known]
        fold = dealt(fit, np.ones(len(fit), dtype=bool), self.folds, self.seed, "--set target-probe.folds=")
        classes = max(class_count(r.manifest.classes, r.labels) for r in (rows, fit)) if loss.by_class else 0
        examples, scale = Examples(features, targets_of(fit.labels, loss, classes), fit.weights), scaled(features)
        places = [np.flatnonzero(fold == k) for k in range(self.folds)]
        folds = [examples.at(some) for some in places]
        parts = [sums(some, scale) for some in folds]
        total = added(parts)
        without = [total - part for part in parts]
        errors = sum(squared_errors(f, w, scale, self.strengths) for f, w in zip(folds, without, strict=True))
        best = self.strengths[int(np.argmin(errors))]
        held_out = np.empty(examples.targets.shape)
        for at, some, rest in zip(places, folds, without, strict=True):
            held_out[at] = predicted(some.features, [rest.solved(best)], scale)[0]
        given = predicted(own, [total.solved(best)], scale)[0]
        given[~np.isfinite(own).all(axis=1)] = np.nan
        facts = {"rows": len(fit), "left_out_as_train_rows": overlap, "strength": best}
        known_by = (held_out, fit.labels, fit.weights)
        return [self.judged(given, rows.labels, loss, known_by, examples.targets.sum(axis=0), facts)]


def _apart(target: Rows, train: Rows) -> tuple[Rows, int]:
    """The target rows that are no train rows, and how many others there are.

    Raises:
        UsageError: there are none.
    """
    apart = positions(target.payload_keys, train.payload_keys) < 0
    if not apart.any():
        what = f"target-probe is fitted on target rows that are no train rows, and all {len(target)} are train rows"
        raise UsageError(what, fix="pass --target PATH with other rows, or use --method probe")
    return target.take(np.flatnonzero(apart)), int((~apart).sum())
