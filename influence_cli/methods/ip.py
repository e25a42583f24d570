"""IP, the inner product of a row's gradient with the objective's gradient at the final checkpoint.

    s_i = < grad l_i(theta), grad Phi(theta) >,    with normalise=cosine divided by |grad l_i| |grad Phi|

Charpiat et al. 2019 (arXiv:2102.13262), unnormalised and normalised similarity; Yang, Yue, Chen, Liu, "Revisit, Extend,
and Enhance Hessian-Free Influence Functions" (arXiv:2405.17490), Eq. 2.  Phi is a mean over target rows, so the score
is in units of Phi per unit step along the row's gradient; it estimates no effect of removal.

With --relative (RelatIF, Barshan et al. 2020, arXiv:2003.11630) it is divided by |grad l_i| alone: the order is that of
the cosine.  A row whose gradient is zero has score 0 in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from influence_cli.errors import UsageError
from influence_cli.methods.protocol import Linear, RowValue
from influence_cli.methods.self_tracin import SelfTracIn
from influence_cli.settings import setting

NORMALISE = ("none", "cosine")


@dataclass(frozen=True)
class IP(Linear):
    """P is the identity, and the only member is the checkpoint."""

    relative: ClassVar[bool] = True

    normalise: str = setting("none", "none, or cosine: over the norms of both gradients, in [-1, 1]")

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISE:
            raise ValueError(f"normalise {self.normalise!r} is unknown; use one of {', '.join(NORMALISE)}")

    def row_value(self, relative: bool = False) -> RowValue | None:
        """|g_i|^2: of the cosine, and the self-influence of the identity.

        Raises:
            UsageError: both are asked for.
        """
        if relative and self.normalise == "cosine":
            raise UsageError(
                "--relative and ip.normalise=cosine both divide by the norm of the row's gradient",
                fix="leave one out: they rank alike",
            )
        return SelfTracIn().row_value() if relative or self.normalise == "cosine" else None

    def of_unit_direction(self) -> bool:
        """For the cosine."""
        return self.normalise == "cosine"
