"""Methods whose members are reached by training on from the checkpoint, on the fit rows.

    psi_1 from theta, psi_m from psi_(m-1), each by ``epochs`` passes of stochastic gradient descent on

    R(theta) = (1/n) sum_i w_i l_i(theta) + (l2/2) |theta|^2

with the model in evaluation mode (no dropout, BatchNorm's statistics as they are), no augmentation, and a rate that
falls from ``rate`` to nearly 0 along half a cosine between one member and the next, so that each ends near a minimum
(Kim, Kim, Yang 2023).  Only the selected parameters move.  Members are stored, and shared by methods of equal options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from influence_cli.errors import UsageError
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Method
from influence_cli.methods.stored import Place
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.model.checkpoints import Trajectory

SHARE = 0.1  # of the rate that the checkpoint was trained at
SGD = "sgd"


@dataclass(frozen=True)
class FurtherTraining(Method):
    """M members; member k is the same whatever their number."""

    trains: ClassVar[bool] = True
    called: ClassVar[str]  # as options of it are set

    members: int = setting(32, "number of members M")
    epochs: float = setting(2.0, "passes over the fit rows from one member to the next")
    rate: float | None = setting(None, "highest learning rate (default: 0.1 of the highest of an sgd training)")
    momentum: float = setting(0.9, "momentum of the descent, which begins anew at each member")
    batch: int = setting(128, "rows of a step", unit="rows")
    l2: float | None = setting(
        None, "l2 of the objective (default: the weight decay of an sgd training, else 0)", unit="mean loss"
    )
    seed: int | None = setting(None, "seed of the order of rows (default: --seed)")

    def __post_init__(self) -> None:
        check_options(self, {}, {"members": 2, "batch": 1, "seed": 0}, ("epochs", "rate"))
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} is not in [0, 1)")

    def further(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """The members that training goes on to.

        Raises:
            UsageError: no rate was given, and the run folder says none of an sgd training.
        """
        from influence_cli.model.walk import Walk

        recipe = _recipe(trajectory) if self.rate is None or self.l2 is None else {}
        by_sgd = recipe.get("optimizer") == SGD
        if self.rate is None and not by_sgd:
            what = f"{self.called} trains on by sgd, and the checkpoint does not say at which rate sgd had trained it"
            raise UsageError(what, where=trajectory.final.locator, fix=f"--set {self.called}.rate=0.005, say")
        rate = SHARE * _peak(recipe) if self.rate is None else self.rate
        l2 = (float(recipe.get("weight_decay", 0.0)) if by_sgd else 0.0) if self.l2 is None else self.l2
        seed = seed if self.seed is None else self.seed
        return [
            Place(
                trajectory.final,
                walk=Walk(seed, k, self.epochs, rate, self.momentum, self.batch, l2, params),
            )
            for k in range(self.members)
        ]


def _recipe(trajectory: Trajectory) -> dict[str, Any]:
    from influence_cli.model.run_folder import RunFolder

    record = RunFolder.of(trajectory.final.locator).read()
    return {} if record is None else record.recipe


def _peak(recipe: dict[str, Any]) -> float:
    from influence_cli.model.train.recipe import Recipe

    return Recipe(lr=recipe.get("lr"), optimizer=SGD).peak_lr
