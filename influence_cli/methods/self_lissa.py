"""Self-LiSSA, self-influence with curvature: minus what a row's gradient is to its own loss; ranking only.

    s_i = - g_i^T (K + (l2 + delta) I)^-1 g_i,    g_i = grad l_i(theta)

Bejan, Sokolov, Filippova 2023 (arXiv:2302.13959) solve by LiSSA for every row: that is solve=lissa, for comparison.
The others need one factor for all rows: ekfac, in whose eigenbases every layer's part is a weighted sum of squares, and
dense, the matrix that ``exact`` inverts.  The factor is that method's own, shared with it, and so are all options but
damping and l2: --set ekfac.fit_sample=N, exact.mode=MODE, lissa.depth=J.

K is over the fit rows.  With a row's label drawn by the model, the mean of g^T K^-1 g / n is its leverage, and these
sum to the number of parameters.  A large value means atypical, memorised or mislabelled, not necessarily harmful; rare
classes look suspicious.  A negative value reveals curvature that is not positive definite: their number is reported.
No target rows are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from influence_cli.errors import UsageError
from influence_cli.methods.protocol import RowMethod, RowValue
from influence_cli.settings import setting

SOLVERS = {"ekfac": "ekfac", "dense": "exact", "lissa": "lissa"}


@dataclass(frozen=True)
class SelfLiSSA(RowMethod):
    """The quadratic form of the inverse that another method has."""

    solve: str = setting(
        "ekfac", "whose inverse: ekfac; dense, exact's; lissa, a series a row (options: as of that method)"
    )
    damping: float | None = setting(None, "delta, added to every eigenvalue (default: that method's)", "mean loss")
    l2: float | None = setting(None, "l2 of the training objective (default: that method's)", "mean loss")
    max_rows: int = setting(5000, "solve=lissa: refuse to solve for more rows", "rows", limit=True)

    def __post_init__(self) -> None:
        if self.solve not in SOLVERS:
            raise ValueError(f"solve {self.solve!r} is unknown; use one of {', '.join(SOLVERS)}")

    def row_value(self, relative: bool = False) -> RowValue:
        """g_i^T P g_i."""
        given = {"damping": self.damping, "l2": self.l2}
        return self_influence(SOLVERS[self.solve], **{k: v for k, v in given.items() if v is not None})

    def check_rows(self, rows: int) -> None:
        """Refuse a series for each of more than ``max_rows`` rows.

        Raises:
            UsageError: they are more.
        """
        if self.solve == "lissa" and rows > self.max_rows:
            raise UsageError(
                f"solve=lissa solves for every row by itself: {rows:,} rows lack a value, and max_rows is "
                f"{self.max_rows:,}",
                fix=f"--set self-lissa.solve=ekfac, or --set self-lissa.max_rows={rows}",
            )


def self_influence(solver: str, **options: float) -> RowValue:
    """g_i^T P g_i with the P of a method with curvature."""
    return RowValue({"value": f"self-influence by {solver}", "revision": 2}, None, solver, options, quadratic=True)
