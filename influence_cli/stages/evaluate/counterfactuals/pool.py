"""What every counterfactual is drawn from: the train rows in use, their scores, and how often to train on a part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.stages.evaluate.counterfactuals.scores import ScoreColumns
from influence_cli.stages.retrain.arms import draw_order

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Refit:
    """A training: which train rows it has [n], with which seed.

    The loss is a mean over the rows it has; with ``fixed_divisor`` their sum is divided by the weight of all rows in
    use, as if the others had weight 0 (``loo`` in methods of influence; the mean is ``renorm_loo``).
    """

    kept: NDArray[np.bool_]
    seed: int
    fixed_divisor: bool = False


@dataclass(frozen=True, eq=False)
class Outcome:
    """Loss and margin of every target row [m] and test row [t] after a training."""

    target_loss: Floats
    target_margin: Floats
    test_loss: Floats
    test_margin: Floats
    by_class: bool = True  # whether a margin above 0 is a right prediction

    @property
    def phi(self) -> float:
        """The objective: the mean target loss."""
        return float(self.target_loss.mean())

    def by_row(self) -> dict[str, Floats]:
        """By metric the rows' values whose mean it is: loss and accuracy of target rows, and of test rows if any.

        There is no accuracy where labels are no classes.
        """
        found = {"target_loss": self.target_loss, "target_accuracy": (self.target_margin > 0).astype(np.float64)}
        if len(self.test_loss):
            found["test_loss"] = self.test_loss
            found["test_accuracy"] = (self.test_margin > 0).astype(np.float64)
        return {name: v for name, v in found.items() if self.by_class or name.endswith("_loss")}


def phi_of(outcomes: list[Outcome | None]) -> Floats:
    """Phi after each training, nan where there was no time for it."""
    return np.array([np.nan if o is None else o.phi for o in outcomes])


@dataclass(frozen=True, eq=False)
class Pool:
    """Train rows [n] of which ``used`` are trained on, score columns, and seeds."""

    train: Rows
    used: NDArray[np.bool_]
    columns: ScoreColumns
    random: Floats  # the floor: a draw for every train row [n]
    seed: int
    seeds: int
    deterministic: bool

    @property
    def rows(self) -> int:
        """Rows in use."""
        return int(self.used.sum())

    def repeats(self, least: int = 1) -> list[int]:
        """The seeds to train with: one where none matters, otherwise ``seeds``, at least ``least``."""
        return [self.seed + r for r in range(1 if self.deterministic else max(self.seeds, least))]

    def order(self, what: str) -> NDArray[np.int64]:
        """The rows in use in a random order of their own for every ``what``."""
        order = draw_order(self.train.ids, self.seed, what)
        return order[self.used[order]]

    def lowest(self, scores: Floats) -> NDArray[np.int64]:
        """The rows in use, lowest score first, ties by row key."""
        rows = np.flatnonzero(self.used)
        return rows[np.lexsort((*self.train.row_keys[rows].T[::-1], scores[rows]))]

    def without(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The rows in use less some, as a mask [n]."""
        kept = self.used.copy()
        kept[rows] = False
        return kept

    def whole(self, seeds: list[int]) -> list[Refit]:
        """Trainings on all rows in use."""
        return [Refit(self.used, seed) for seed in seeds]

    def predicted(self, scores: Floats) -> Floats:
        """What each row's removal is predicted to add to Phi [n]: w_i s_i / sum w (``effect`` where weights are 1)."""
        weights = self.train.weights
        return weights * scores / float(weights[self.used].sum())
