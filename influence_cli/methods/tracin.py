"""TracIn: the inner product of gradients at checkpoints that training left on its way, times their learning rates.

    s_i = sum_k eta_k < grad l_i(theta_k), grad Phi(theta_k) >

Pruthi, Liu, Kale, Sundararajan (arXiv:2002.08484), TracInCP, with eta_k the rate of the last step before checkpoint k.
For full-batch gradient descent with every step kept, (1/n) times the sum over rows is the fall of Phi along training.
``weights=lr*steps`` takes for eta_k the sum of the rates since the checkpoint before; ``uniform`` is the plain mean
over checkpoints, without rates, as in Yang et al. (arXiv:2405.17490), Eq. 5.

The rate enters once.  With AdamW or momentum the steps were not along gradients, and the sum is a proxy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from influence_cli.methods.protocol import Linear
from influence_cli.methods.stored import Place
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.model.checkpoints import Trajectory

WEIGHTS = ("lr", "lr*steps", "uniform")


@dataclass(frozen=True)
class TracIn(Linear):
    """One member a kept checkpoint."""

    weights: str = setting("lr", "rates of checkpoints: lr, lr*steps (their sums in between), or uniform (plain mean)")

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights {self.weights!r} is unknown; use one of {', '.join(WEIGHTS)}")

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """Every checkpoint that was kept up to the one that is scored.

        Raises:
            UsageError: none was, or the run folder does not say at which rates it was trained.
        """
        kept = trajectory.kept("tracin")
        rates = {"lr": [k.learning_rate for k in kept], "uniform": [1.0] * len(kept)}
        found = rates[self.weights] if self.weights in rates else trajectory.travelled("tracin")
        return [Place(k.checkpoint, weight=rate) for k, rate in zip(kept, found, strict=True)]

    def summed(self) -> bool:
        """With rates."""
        return self.weights != "uniform"
