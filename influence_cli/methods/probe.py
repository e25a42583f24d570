"""Probe: how likely a row's label is to a linear probe that was fitted without the row; ranking only.

Rows are dealt into K folds by payload, class by class.  The probe of a fold is fitted on the train rows of all others
(``methods.shapes.by_probe`` has its equation), at the strength of least squared error on the next fold for a probe
that is fitted on the remaining K - 2.  Mean and sd of features, which know no label, are those of all train rows.

Linear probes: Alain and Bengio, arXiv:1610.01644.  Columns ``other_label`` and ``other_probability`` of the table are
those of this probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import class_count
from influence_cli.data.folds import dealt
from influence_cli.maths.linear_probe import Sums, predicted, scaled, squared_errors, sums
from influence_cli.methods.protocol import Floats, Scores
from influence_cli.methods.shapes.by_probe import ByProbe, refuse_wide, targets_of

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.methods.stored import Stored
    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class Probe(ByProbe):
    """Rows whose label the rows like them contradict come last."""

    def depends_on_others(self) -> bool:
        """Yes: they are what the probe is fitted on."""
        return True

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """The log-likelihood of each row's label, or minus its squared error.

        Raises:
            UsageError: there are fewer distinct payloads than folds, or features are too wide.
        """
        (member,) = stored.members
        features, weights = stored.read("features", member)["features"], rows.weights
        refuse_wide(features, "probe")
        known = np.isfinite(features).all(axis=1)
        fitted = known & (weights > 0)
        fold = np.where(known, dealt(rows, fitted, self.folds, self.seed, "--set probe.folds="), -1)
        targets = targets_of(rows.labels, loss, class_count(rows.manifest.classes, rows.labels) if loss.by_class else 0)
        given, chosen = self._out_of_fold(features, targets, np.where(fitted, weights, 0.0), fold, stored)
        facts = {"rows": int(known.sum()), "strengths": chosen}
        held_out = (given, rows.labels, np.where(fitted, weights, 0.0))
        return [self.judged(given, rows.labels, loss, held_out, targets[fitted].sum(axis=0), facts)]

    def _out_of_fold(
        self, features: NDArray[np.floating], targets: Floats, weights: Floats, fold: NDArray[np.int64], stored: Stored
    ) -> tuple[Floats, list[float]]:
        """What the probe of its fold gives for each row [n, m], NaN in fold -1; and the strength of each fold."""
        own = [np.flatnonzero(fold == k) for k in range(self.folds)]
        scale, given, chosen = scaled(features[fold >= 0]), np.full(targets.shape, np.nan), list[float]()
        with stored.progress("probe: folds", 2 * self.folds) as progress:
            parts = list[Sums]()
            for rows in own:
                parts.append(sums(features[rows], targets[rows], weights[rows], scale))
                progress.advance(1)
            for k, rows in enumerate(own):
                following = (k + 1) % self.folds
                others = [part for j, part in enumerate(parts) if j not in (k, following)]
                best = self._chosen(features, targets, weights, own[following], _added(others), scale)
                probe = _added([*others, parts[following]]).solved(best)
                given[rows] = predicted(features[rows], [probe], scale)[0]
                chosen.append(best)
                progress.advance(1)
        return given, chosen

    def _chosen(self, features, targets, weights, rows, fitted, scale) -> float:
        """The strength of least squared error on some rows."""
        if len(self.strengths) == 1:
            return self.strengths[0]
        errors = squared_errors(features[rows], targets[rows], weights[rows], fitted, scale, self.strengths)
        return self.strengths[int(np.argmin(errors))]


def _added(parts: list[Sums]) -> Sums:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
