"""DataInf: the mean over fit rows of inverses of rank-one matrices, tensor by tensor, not the inverse of their mean.

    u = (1/n) sum_i w_i (g_i g_i^T + lambda I)^-1 q = (1/lambda) [ q - (1/n) sum_i w_i c_i g_i ],
    c_i = <q, g_i> / (lambda + |g_i|^2),    s_i = < grad l_i(theta), u >

for every parameter tensor by itself, with rows' gradients g_i for their own labels.  Kwon et al. 2024
(arXiv:2310.00902), Eq. 5, with the sign of removal.  lambda is delta + l2; the default delta is a tenth of the mean
square of a coordinate of g_i in that tensor, and at least 1e-8 of the largest of any tensor.

It is close to ip with every tensor's part over its lambda: compare the two before crediting curvature.  It estimates no
effect of removal: what it approximates is the empirical Fisher, not curvature of the objective, and the mean of
inverses is above the inverse of the mean, the more so the more parameters a tensor has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.errors import ModelError
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Columns, Facts
from influence_cli.methods.shapes.by_layers import OTHER, ByLayers
from influence_cli.methods.shapes.preconditioned import GRADIENTS, PRECISIONS, Costs, Factor

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature


@dataclass(frozen=True)
class DataInf(ByLayers):
    """The mean of inverses, in closed form."""

    effect: ClassVar[bool] = False
    made_of: ClassVar[str] = GRADIENTS
    name: ClassVar[str] = "datainf"
    without_block: ClassVar[str] = "no row gradients"

    def __post_init__(self) -> None:
        check_options(self, {"precision": PRECISIONS, "other": OTHER}, {})

    def fitted(self) -> dict[str, Any]:
        """The mean squared gradient of every tensor."""
        return {"kind": "squared-gradients", "revision": 1, "precision": self.precision}

    def costs(self, rows: int, parameters: int) -> Costs:
        """One pass for two numbers a tensor, and one for all directions."""
        return Costs(rows, 4096, solve_passes=1.0)

    def fit(self, curvature: Curvature) -> Factor:
        """Mean squared gradients of every tensor, by its place among those selected.

        Raises:
            UsageError: tensors have no row gradients, and ``other`` is refuse.
        """
        from influence_cli.curvature.rank_one import RankOneSums

        rows = RankOneSums(self.seen(curvature))
        names = list(curvature.layout)
        others = [n for k, n in enumerate(names) if k not in rows.places]
        self.check_left_over(others)
        squares = rows.mean_squares()
        sizes = np.array([curvature.sizes[k] for k in rows.places], dtype=np.float64)
        table = np.stack([np.array(rows.places, dtype=np.float64), squares / sizes], axis=1)
        return Factor({"tensors": table}, {"tensors": len(table), "others": others})

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """The closed form, in one pass over the fit rows.

        Raises:
            ModelError: a lambda is 0.
            UsageError: tensors have no row gradients, and ``other`` is refuse.
        """
        from influence_cli.curvature.rank_one import RankOneSums, default_dampings

        table, names, l2 = curvature.factor["tensors"], list(curvature.layout), self.l2 or 0.0
        squares = {int(place): float(value) for place, value in table}
        others = [k for k in range(len(names)) if k not in squares]
        self.check_left_over([names[k] for k in others])
        ruled = default_dampings(list(squares.values())) if self.damping is None else [self.damping] * len(squares)
        dampings = {place: delta + l2 for place, delta in zip(squares, ruled, strict=True)}
        if min(dampings.values(), default=1.0) <= 0.0:
            raise ModelError(
                "lambda is 0, by which DataInf divides" if self.damping == 0.0 else "every fit row's gradient is 0",
                fix="leave datainf.damping out for the default rule, or --set datainf.damping=X with X above 0",
            )
        rows = RankOneSums(self.seen(curvature))
        u = q - rows.corrections(q, [dampings[k] for k in rows.places])
        ends = np.cumsum([0, *curvature.sizes])
        mean = float(np.mean(list(dampings.values()))) if dampings else 1.0
        for k in range(len(names)):
            some = slice(ends[k], ends[k + 1])
            u[some] = u[some] / dampings.get(k, mean) if k in dampings or self.other == "identity" else 0.0
        facts = {
            "l2": l2,
            "smallest_lambda": min(dampings.values(), default=mean),
            "largest_lambda": max(dampings.values(), default=mean),
            "damping_by_rule": self.damping is None,
            "precision": self.precision_at(curvature.size),
            "tensors": len(dampings),
            "covered": sum(curvature.sizes[k] for k in dampings),
            "others": [names[k] for k in others],
            "other": self.other,
        }
        return u, facts
