"""IP Ensemble: the mean of IP over M copies of the model made by dropout on its parameters.

    s_i = (1/M) sum_k < grad l_i(theta_k), grad Phi(theta_k) >,   theta_k = mask_k * theta / (1 - p_k),
    p_k ~ U(0, p_max)

Yang, Yue, Chen, Liu (arXiv:2405.17490), Eq. 5 with dropout members.  Both gradients are taken at the same theta_k,
with respect to theta_k itself (all coordinates, masked ones too).  Products are averaged, never gradients.
Buffers (BatchNorm statistics) are untouched, and the module is in evaluation mode.

Member k is the same whatever M, so M may be left to the members themselves: with ``members=auto`` they are added one
at a time until the lowest ``share`` of the rows would hardly change if there were endlessly many
(``maths.stability``).  M is then kept for all rows that come later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from influence_cli.methods.checks import refuse_many
from influence_cli.methods.protocol import Growth, Linear
from influence_cli.methods.stored import Place
from influence_cli.model.checkpoints import Trajectory
from influence_cli.model.dropout import Dropout, member_rate
from influence_cli.settings import setting

LEAST_MEMBERS = 3  # of members=auto: a spread of two says next to nothing


@dataclass(frozen=True)
class IPEnsemble(Linear):
    """M members; with ``p_max`` 0 every member is the checkpoint itself and the score is IP's, bit for bit."""

    members: int | Literal["auto"] = setting(5, "number of members M; auto: until the lowest rows stay the same")
    p_max: float = setting(0.01, "each member's dropout rate is uniform below this")
    p_fixed: float | None = setting(None, "one dropout rate for every member instead")
    rescale: bool = setting(True, "divide the kept parameters by 1 - p")
    scope: str = setting("all", "all, or matrices: spare biases and normalisation scales")
    seed: int | None = setting(None, "seed of rates and masks (default: --seed)")
    share: float = setting(0.05, "members=auto: the share of rows that is to stay the same")
    stability: float = setting(0.95, "members=auto: Jaccard similarity with endlessly many members, to be exceeded")
    max_members: int = setting(20, "members=auto: the most members")

    def __post_init__(self) -> None:
        if self.members != "auto" and self.members < 1:
            raise ValueError(f"members={self.members} is below 1")
        refuse_many("max_members", self.max_members)
        refuse_many("members", None if self.members == "auto" else self.members)
        if self.max_members < LEAST_MEMBERS:
            raise ValueError(f"max_members={self.max_members} is below {LEAST_MEMBERS}")
        for name in ("share", "stability"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not between 0 and 1")
        if self.scope not in ("all", "matrices"):
            raise ValueError(f"scope {self.scope!r} is unknown; use all or matrices")
        for name in ("p_max", "p_fixed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name}={value} is not in [0, 1)")

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """One dropped-out copy a member; the checkpoint itself where the rate is 0."""
        seed = seed if self.seed is None else self.seed
        places: list[Place] = []
        for k in range(self.max_members if self.members == "auto" else self.members):
            rate = member_rate(seed, k, self.p_max) if self.p_fixed is None else self.p_fixed
            dropout = Dropout(seed, k, rate, self.rescale, params, self.scope) if rate > 0 else None
            places.append(Place(trajectory.final, dropout))
        return places

    def growth(self) -> Growth | None:
        """When to stop adding members, with ``members=auto``."""
        if self.members != "auto":
            return None
        return Growth(self.share, self.stability, LEAST_MEMBERS, self.max_members)
