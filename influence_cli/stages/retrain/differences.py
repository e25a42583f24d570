"""By how much two arms differ, and what the interval is over: seeds, or where those all give one model, test rows.

A deterministic training (``lbfgs``, or any whose seeds turn out to change nothing) has one model an arm.  Its intervals
come from the test rows, and a control is trained on several random draws, since one draw could be lucky.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from influence_cli.maths.arms import Floats, paired_difference
from influence_cli.maths.paired_rows import SEEDS, Measured, differences_on_rows
from influence_cli.model.train.recipe import LBFGS
from influence_cli.stages.retrain.arm_comparison import METRICS
from influence_cli.stages.retrain.arms import Arm
from influence_cli.stages.retrain.training_run import TrainingRun

Results = dict[str, dict[str, Any]]  # measures by seed
DRAWS = 5  # random draws of a control where training is deterministic
SAME = 1e-6  # relative difference of mean losses up to which two trainings gave one model


@dataclass(eq=False)
class Differences:
    """Arms by name with their results, and whether every seed gives the same model."""

    run: TrainingRun
    arms: dict[str, Arm]
    results: dict[str, Results]
    same: bool
    draws: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by control: measures of its further draws
    _drawn: dict[str, list[Arm]] = field(default_factory=dict)
    _made: dict[str, list[Measured]] = field(default_factory=dict)
    _found: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: TrainingRun, arms: list[Arm], results: dict[str, Results]) -> Differences:
        """Of trained arms; trains further draws of the controls where seeds change nothing."""
        seeds = len(next(iter(results.values())))
        same = run.recipe.optimizer == LBFGS or (seeds > 1 and all(map(alike, results.values())))
        found = cls(run, {arm.name: arm for arm in arms}, results, same)
        if same and len(arms) > 1:
            if seeds > 1:
                run.listener.warn(f"all {seeds} seeds give the same models: intervals are over test rows, not seeds")
            for arm in arms:
                if arm.again is not None:
                    found._drawn[arm.name] = [arm.again(run.request.seed + d) for d in range(1, DRAWS)]
                    found.draws[arm.name] = [run.train(a, run.request.seed, False) for a in found._drawn[arm.name]]
        return found

    def between(self, a: str, b: str, metric: str) -> dict[str, Any]:
        """Difference of arm a from arm b in a measure, with its interval, what that is over, and a verdict."""
        over_seeds = paired_difference(self.values(a, metric), self.values(b, metric), METRICS[metric])
        if not self.same and over_seeds["half_width"] != 0.0:
            return over_seeds
        on_rows = self._on_rows(a, b).get(metric)
        if on_rows is not None:
            return on_rows
        if self.same:  # no seed says anything, and rows under attack are not kept
            over_seeds |= {"half_width": None, "verdict": "deterministic: not resolved"}
        return over_seeds

    def drawn(self) -> tuple[list[Arm], dict[str, Results]]:
        """The further random draws as arms of their own, and their results by seed."""
        seed, arms, results = str(self.run.request.seed), list[Arm](), dict[str, Results]()
        for name, made in self._drawn.items():
            for k, (arm, measured) in enumerate(zip(made, self.draws[name], strict=True), 1):
                arms.append(replace(arm, name=f"{name}: draw {k}"))
                results[arms[-1].name] = {seed: measured}
        return arms, results

    def values(self, name: str, metric: str) -> Floats:
        """A measure by seed."""
        return np.array([r[metric] for r in self.results[name].values()], dtype=np.float64)

    @property
    def over(self) -> str:
        """What most intervals are over."""
        return "test rows" if self.same else SEEDS

    def _on_rows(self, a: str, b: str) -> dict[str, dict[str, Any]]:
        if (a, b) not in self._found:
            sides = self._models(a), self._models(b)
            self._found[a, b] = differences_on_rows(*sides, METRICS, self.same, self.run.request.seed)
        return self._found[a, b]

    def _models(self, name: str) -> list[Measured]:
        """What the arm's models give the test rows: of its seeds, or of its random draws."""
        if name not in self._made:
            first = str(self.run.request.seed)
            made = [self.run.on_rows(self.arms[name], int(s)) for s in ([first] if self.same else self.results[name])]
            self._made[name] = made + [self.run.on_rows(arm, int(first)) for arm in self._drawn.get(name, ())]
        return self._made[name]


def alike(results: Results) -> bool:
    """Whether the trainings of every seed gave one model, as far as their mean losses and accuracies tell."""
    first, *others = results.values()
    keys = [k for k in ("loss", "accuracy", "train_loss", "target_loss") if k in first]
    return all(abs(o[k] - first[k]) <= SAME * max(abs(o[k]), abs(first[k])) for o in others for k in keys)
