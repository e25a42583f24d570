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

from influence_cli.data.classes import class_count
from influence_cli.data.folds import dealt
from influence_cli.maths.linear_probe import Examples, out_of_fold
from influence_cli.methods.protocol import Scores
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
        refuse_wide(features.shape[1], "probe")
        known = np.isfinite(features).all(axis=1)
        fitted = known & (weights > 0)
        fold = np.where(known, dealt(rows, fitted, self.folds, self.seed, "--set probe.folds="), -1)
        classes = class_count(rows.manifest.classes, rows.labels) if loss.by_class else 0
        examples = Examples(features, targets_of(rows.labels, loss, classes), np.where(fitted, weights, 0.0))
        with stored.progress("probe: folds", int((fold >= 0).sum())) as progress:
            given, chosen = out_of_fold(examples, fold, self.folds, self.strengths, progress.advance)
        facts = {"rows": int(known.sum()), "strengths": chosen}
        held_out = (given, rows.labels, examples.weights)
        return [self.judged(given, rows.labels, loss, held_out, examples.targets[fitted].sum(axis=0), facts)]
