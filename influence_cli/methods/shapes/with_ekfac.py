"""What iterative solves share that may go through EKFAC's inverse: M ~ A^-1, A = K + (l2 + delta) I.

M is the block-diagonal inverse that ``ekfac`` has, with the l2 of A, and damped by delta or by EKFAC's own rule, .1
of a layer's mean eigenvalue, whichever is more: with less, M trusts directions in which its factors are wrong (on a
trained network of 2,410 parameters 336 iterations to a residual of .05 against 250, and 351 without M).  Parameters of
no layer are divided by their mean eigenvalue, damped the same.  M is symmetric and positive definite, and moves no
solution; an iteration takes two products with every layer's bases more.  EKFAC's factors are fitted once and shared
with ``--method ekfac``, whose options (--set ekfac.fit_sample=N) are those of M too.

Wang et al. 2025 (arXiv:2507.14740), ASTRA, precondition a Neumann series in this way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from influence_cli.methods.checks import check_options
from influence_cli.methods.shapes.by_products import ByProducts
from influence_cli.methods.shapes.preconditioned import FactorAt, Preconditioned
from influence_cli.settings import resolved, setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from influence_cli.curvature.curvature import Curvature
    from influence_cli.maths.kronecker import KroneckerInverse
    from influence_cli.methods.stored import Member

PRECONDITIONERS = ("none", "ekfac")


@dataclass(frozen=True)
class WithEKFAC(ByProducts):
    """A method by products that may be preconditioned."""

    preconditioner: str = setting(
        "none", "of the solve: none, or ekfac, whose factors are fitted first (options: as of that method)", later=True
    )
    by: Preconditioned | None = resolved(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, {"preconditioner": PRECONDITIONERS}, {})

    def describe(self) -> dict[str, Any]:
        """With what M is by, where there is one."""
        return {**super().describe(), **({} if self.by is None else {"by": {"mode": self._mode}})}

    def helper(self) -> str | None:
        """The method that M is of."""
        return None if self.preconditioner == "none" else self.preconditioner

    def helped_by(self, other: Preconditioned) -> Preconditioned:
        """The same with that method."""
        return replace(self, by=other)

    def factors_at(self, member: Member, members: Sequence[Member]) -> tuple[FactorAt, ...]:
        """Its own, and that of M."""
        own = super().factors_at(member, members)
        return own if self.by is None else (*own, FactorAt(self.by, (member,), self.preconditioner))

    @property
    def _mode(self) -> str:
        return "ekfac" if self.by is None else str(self.by.describe()["mode"])

    def inverse(self, curvature: Curvature, damping: float) -> KroneckerInverse | None:
        """M, where there is one."""
        if self.by is None or not curvature.further:
            return None
        from influence_cli.maths.kronecker import KroneckerInverse

        given = curvature.further[0], self._mode == "kfac", self.l2 or 0.0, damping
        return KroneckerInverse.of(*given, scaled=True, or_more=True)
