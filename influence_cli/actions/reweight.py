"""Reweight: a robust softmax of the scores, mean one (methods.md 5.3).

z_i = clip((s_i - median s) / (1.4826 MAD), -5, 5),   w_i = n exp(z_i / T) / sum_j exp(z_j / T)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from influence_cli.actions.parity import HELP, check_parity, closing
from influence_cli.actions.protocol import Edits, Floats, Scored


@dataclass(frozen=True)
class Reweight:
    """T is doubled until the effective sample size is at least 0.3 of what it was; ``paper`` is the plain softmax."""

    temperature: float = field(default=2.0, metadata={"help": "T; larger is flatter"})
    preserve_class_mass: bool = field(
        default=True, metadata={"help": "every class keeps its total weight (but for paper)"}
    )
    paper: bool = field(default=False, metadata={"help": "n softmax(s) of the raw scores, as published"})
    parity: str = field(default="stop", metadata={"help": f"{HELP}; the change of every weight shrinks alike"})

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} is not positive")
        check_parity(self.parity)

    def propose(self, scored: Scored, budget: int) -> Edits:
        """New weights for every scored row; a row without a score keeps its own."""
        finite = np.isfinite(scored.score)
        notes: list[str] = []
        weights = scored.weights.copy()
        weights[finite] = self._weights(scored.score[finite], scored.strata[finite], scored.weights[finite], notes)
        weights = self._at_parity(scored, weights, notes)
        factor = np.divide(weights, scored.weights, out=np.ones(len(weights)), where=scored.weights > 0)
        reason = [f"weight factor {f:.3g}" if ok else "" for f, ok in zip(factor, finite, strict=True)]
        notes.append(f"effective sample size {effective_size(weights):,.0f} of {len(weights):,}")
        return Edits("reweight", scored.labels.copy(), weights, reason, notes)

    def _at_parity(self, scored: Scored, weights: Floats, notes: list[str]) -> Floats:
        """The weights, drawn back to those before where they are predicted to do more than close the gap."""
        change = weights - scored.weights
        gap = closing(scored, self.parity, change * scored.score, notes)
        fall = float(gap.fall.sum())
        if not fall > gap.room:
            return weights
        share = max(0.0, gap.room / fall)
        if self.paper:
            notes.append(f"predicted to lower {gap.objective} by {fall:.4g}, past parity ({gap.room:.4g})")
            return weights
        closes = f"is predicted to close the gap of {gap.objective} ({gap.room:.4g})"
        notes.append(f"stopped at parity: {share:.1%} of every weight's change {closes}")
        return scored.weights + share * change

    def _weights(self, score: Floats, labels: np.ndarray, before: Floats, notes: list[str]) -> Floats:
        if self.paper:
            return before * _softmax(score)
        with np.errstate(over="ignore"):  # where most scores are equal the spread is tiny: clipped below
            spread = 1.4826 * float(np.median(np.abs(score - np.median(score)))) + np.finfo(float).tiny
            z = np.clip((score - np.median(score)) / spread, -5, 5)
        temperature, floor = self.temperature, 0.3 * effective_size(before)
        while True:
            w = self._class_mass(before * _softmax(z / temperature), labels, before)
            if effective_size(w) >= floor:
                break
            temperature *= 2
        if temperature != self.temperature:
            kept = f"30% of the effective sample size ({effective_size(before):,.0f})"
            notes.append(f"temperature raised to {temperature:g} to keep {kept}")
        return w

    def _class_mass(self, w: Floats, labels: np.ndarray, before: Floats) -> Floats:
        if not self.preserve_class_mass:
            return w
        mass, wanted = np.bincount(labels, weights=w), np.bincount(labels, weights=before)
        return w * (wanted / np.where(mass > 0, mass, 1.0))[labels]


def effective_size(w: Floats) -> float:
    """(sum w)^2 / sum w^2: n where all weights are equal, 1 where one row has it all."""
    return float(w.sum() ** 2 / (w**2).sum())


def _softmax(z: Floats) -> Floats:
    """N exp(z) / sum exp(z): mean one."""
    e = np.exp(z - z.max())
    return len(z) * e / e.sum()
