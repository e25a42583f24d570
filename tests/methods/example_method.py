"""Scaled IP: ip on the scale of an influence function, as if curvature were the same in every direction.

    u = grad Phi(theta) / (tr G / d + l2 + delta),    s_i = < grad l_i(theta), u >

It ranks as ip does; ``effect`` = s_i / n has the unit of Phi.  The default delta is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from influence_cli.methods.protocol import Columns, Facts
from influence_cli.methods.shapes.by_products import ByProducts

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature


@dataclass(frozen=True)
class ScaledIP(ByProducts):
    """The inverse of the mean eigenvalue; trace, sampling, precision and l2 are those of every such method."""

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """Columns q over the mean eigenvalue; ``curvature.factor`` is what ``fit`` measured once and stored."""
        damping = self.damping or 0.0
        mean = float(curvature.factor["trace"][0]) / curvature.size + (self.l2 or 0.0) + damping
        return q / mean, {**self.facts_of(curvature, damping, self.damping is None), "mean_eigenvalue": mean}
