"""GEX: the product of how a row's loss and Phi deviate, over members that training on from the checkpoint leads to.

    s_i = (1/M) sum_m (l_i(psi_m) - c_i) (Phi(psi_m) - c),   c_i and c means over members, or the checkpoint's values

Kim, Kim, Yang, "GEX: a flexible method for approximating influence via geometric ensemble", NeurIPS 2023.  If members
were draws of N(theta, c (H + delta)^-1) and losses linear, s_i would be c q^T (H + delta)^-1 g_i: an influence function
up to an unknown factor, so that scores have no effect in units of Phi.

Members drift away from the checkpoint.  With ``centre=checkpoint``, as in the paper, deviations then share a sign, and
so do most scores; the default takes the means over members.  With 32 members a single score is mostly noise: the
spread over members is in ``score_std``, and only the extremes of the ranking mean something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from influence_cli.errors import UsageError
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Kind, Scores
from influence_cli.methods.shapes.further_training import FurtherTraining
from influence_cli.methods.stored import Place, Stored
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.model.checkpoints import Trajectory
    from influence_cli.model.losses import RowLoss

CENTRES = ("mean", "checkpoint")


@dataclass(frozen=True)
class GEX(FurtherTraining):
    """The checkpoint itself, and M members after it; forward passes alone."""

    needs: ClassVar[str] = "outputs"
    kind: ClassVar[Kind] = "signed"
    measures: ClassVar[bool] = True
    phi_at_members: ClassVar[bool] = True
    called: ClassVar[str] = "gex"

    centre: str = setting("mean", "what losses deviate from: mean (over members) or checkpoint")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, {"centre": CENTRES}, {})

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """The checkpoint, whose losses may be the centre, and the members."""
        return [Place(trajectory.final), *self.further(trajectory, seed, params)]

    def check_loss(self, loss: RowLoss, precision: str) -> None:
        """Refuse bf16, which rounds away what losses deviate by (UsageError)."""
        if precision == "bf16":
            what = "gex multiplies small differences of losses, which bf16 rounds away"
            raise UsageError(what, fix="--precision fp32, or --method gex-ip")

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """For each objective the mean over members of products of deviations, float64."""
        losses = np.empty((len(stored.members), len(rows)))
        with np.errstate(invalid="ignore", over="ignore"):
            for some in stored.blocks():
                for k, member in enumerate(stored.members):
                    losses[k, some] = loss.losses(stored.logits(member, some), rows.labels[some])
            found: list[Scores] = []
            for objective in stored.objectives:
                phi = np.array([stored.phi(member, objective) for member in stored.members])
                products = deviations(losses, self.centre) * deviations(phi, self.centre)[:, None]
                found.append(Scores(products.mean(axis=0), objective, products, (1.0,) * len(products)))
        return found


def deviations(values: np.ndarray, centre: str) -> np.ndarray:
    """Values at the members [M, ...] less their centre; those at the checkpoint come first in ``values`` [1 + M, ...].

    >>> deviations(np.array([0.0, 1.0, 3.0]), "mean").tolist(), deviations(np.array([0.0, 1.0]), "checkpoint").tolist()
    ([-1.0, 1.0], [1.0])
    """
    return values[1:] - (values[1:].mean(axis=0) if centre == "mean" else values[0])
