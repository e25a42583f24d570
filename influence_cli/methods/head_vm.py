"""Head-VM: how much a row would cost the target rows, were the last layer at its best for them; ranking only.

    s_i = - g_i^T H^-1 g_i

theta is the last layer tuned from the model's own weights to the minimum of mean cross-entropy plus (l2/2) |theta|^2 on
a seeded half of the target rows, H its Hessian there, g_i the gradient of row i's loss at theta.  At the minimum the
target loss has no slope, so a row of weight epsilon moves theta by -epsilon H^-1 g_i and raises it by epsilon^2 / 2
times -s_i: the variance that rows like it would add.  Suspicious rows have the lowest scores, hard ones too.

The other half of the target rows is not looked at: whoever judges the scores by target rows takes those.  Which rows
tune is decided by row key and ``seed``.  The model up to its last layer is as it was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.methods.protocol import RowMethod, Scores
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.methods.stored import Stored
    from influence_cli.model.losses import RowLoss


@dataclass(frozen=True)
class HeadVM(RowMethod):
    """A value of each row, from one forward pass."""

    needs: ClassVar[str] = "tuned_head"

    l2: float = setting(1e-3, "penalty of the tuned layer", "mean loss")
    seed: int = setting(0, "of the half of the target rows that it is tuned on")

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise ValueError(f"l2={self.l2} is not positive: the tuned layer would have no minimum")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative")

    def needs_target(self) -> bool:
        """Yes: the layer is tuned on them."""
        return True

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """Minus the value of each row."""
        return [Scores(-stored.read(self.needs, stored.members[0])["value"])]
