"""TRAK: influence in a random projection of the margins' gradients, as if every row's margin were linear in them.

    phi_i = S grad f_i(theta),    G = (1/n) sum_i w_i phi_i phi_i^T + ridge I
    u = S^T G^-1 S grad Phi(theta),    s_i = < grad l_i(theta), u >

f = z_y - log sum_c!=y exp z_c is a row's margin, S [k, d] the sketch that ``--rows sketch`` stores.  Since
grad l_i = -(1 - p_i) grad f_i, for the mean loss s_i is the mean over target rows v of (1 - p_v) times
n phi_v^T (Phi^T Phi + n ridge I)^-1 phi_i (1 - p_i), TRAK's own score of row i for the margin of v; for objective
``target-margin`` it is the mean of these themselves; TRAK's own scale is s / n.  It is no effect of removal, since G
leaves out the p (1 - p) of a logistic Hessian.  Park et al. 2023 (arXiv:2303.14186), with a default ridge of 1e-6 of
the mean eigenvalue.

With ``checkpoints=kept`` scores are the mean over checkpoints that training kept.  The paper trains each of its models
on another half of the rows, and multiplies two means over models (of phi_v^T G^-1 phi_i, and of 1 - p_i) where here the
products have the mean; checkpoints of one training are no independent models.

Where k is near the number of rows the projection can tell every row from every other, and scores are noise: by default
k is 2048, and a quarter of the fit rows where they are few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from influence_cli.errors import ModelError, UsageError
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Columns, Facts
from influence_cli.methods.shapes.preconditioned import PRECISIONS, Costs, Factor, Streamed
from influence_cli.methods.stored import Place
from influence_cli.settings import resolved, setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.sketched import Sketched
    from influence_cli.model.checkpoints import Trajectory

DIM = 2048
SHARE = 4  # fit rows a column of the projection, at least


@dataclass(frozen=True)
class Trak(Streamed):
    """The inverse Gram matrix of margins' projected gradients."""

    effect: ClassVar[bool] = False
    with_self_influence: ClassVar[str] = "--method ekfac"

    damping: float | None = setting(None, "ridge of the Gram matrix over n (default: 1e-6 of its mean eigenvalue)")
    l2: float | None = resolved(0.0)  # the regulariser is no part of it
    dim: int | None = setting(None, "k, columns of the projection (default: 2048, or a quarter of fewer fit rows)")
    seed: int = setting(0, "of the projection; that of stored sketches is --seed")
    fit_sample: int | None = setting(None, "look at so many of the fit rows, chosen by their keys", "rows")
    checkpoints: str = setting("last", "last, or kept: the mean over the checkpoints that training kept")

    def __post_init__(self) -> None:
        choices = {"precision": PRECISIONS, "checkpoints": ("last", "kept")}
        check_options(self, choices, {"dim": 1, "seed": 0, "fit_sample": 1})

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """The last checkpoint, or all that were kept.  Raises UsageError: none was."""
        if self.checkpoints == "last":
            return super().places(trajectory, seed, params)
        return [Place(k.checkpoint) for k in trajectory.kept("trak of checkpoints=kept")]

    def fitted(self) -> dict[str, Any]:
        """The Gram matrix; ridges share it."""
        about = {"dim": self.dim, "seed": self.seed, "precision": self.precision, "fit_sample": self.fit_sample}
        return {"kind": "margin-gram", "revision": 1, **about}

    def columns(self, rows: int) -> int:
        """K, for so many fit rows; of fewer parameters they themselves are the columns."""
        return self.dim or max(1, min(DIM, rows // SHARE))

    def costs(self, rows: int, parameters: int) -> Costs:
        """A pass of gradients; the factor is a matrix."""
        seen = min(rows, self.fit_sample or rows)
        return Costs(seen, 8 * min(self.columns(seen), parameters) ** 2)

    def fit(self, curvature: Curvature) -> Factor:
        """The Gram matrix of the fit rows' projected margins.

        Raises:
            UsageError: rows have no margin.
        """
        sketch = self._sketch(curvature)
        with curvature.listener.progress("curvature (trak)", 1, "passes over the fit rows") as progress:
            gram, largest = sketch.gram("curvature (trak)")
            progress.advance(1)
        return Factor({"gram": gram}, {"columns": len(gram), "largest_share": largest})

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """S^T (G + ridge I)^-1 S q.

        Raises:
            ModelError: G is singular, and there is no ridge.
        """
        from influence_cli.maths.projected import SingularError, default_ridge, solved

        gram = curvature.factor["gram"]
        sketch = self._sketch(curvature)
        ridge = default_ridge(gram) if self.damping is None else self.damping
        try:
            inside, spectrum = solved(gram, ridge, sketch.into(q))
        except SingularError as error:
            raise ModelError(
                f"the Gram matrix of {len(gram):,} projected gradients is singular, and the ridge is {ridge:.3g}",
                fix="leave trak.damping out for the default ridge, or --set trak.dim=K with a smaller K",
            ) from error
        return sketch.out_of(inside), {
            "projected_columns": len(gram),
            **spectrum,
            "ridge": ridge,
            "damping_by_rule": self.damping is None,
            "precision": self.precision_at(curvature.size),
            "product_rows": self.costs(len(curvature.rows), curvature.size).rows,
            "whole": sketch.width == curvature.size,
        }

    def warnings(self, facts: Facts) -> list[str]:
        """That there are too many columns for the rows, where the ridge is small."""
        columns, rows = facts["projected_columns"], facts["product_rows"]
        if not facts["damping_by_rule"] or SHARE * columns <= rows:
            return []
        return [
            f"{columns:,} columns for {rows:,} fit rows: with fewer than {SHARE} rows a column the projection tells "
            f"rows apart that are alike, and scores are mostly noise (--set trak.dim={max(1, rows // SHARE)}, or a "
            "ridge by trak.damping)"
        ]

    def _sketch(self, curvature: Curvature) -> Sketched:
        from influence_cli.curvature.sketched import Sketched

        if curvature.loss.name(2) != "cross-entropy":
            raise UsageError("trak is about margins of classes, and the loss is not cross-entropy", fix="use ekfac")
        seen = self.seen(curvature, self.fit_sample)
        return Sketched(seen, self.columns(len(seen.rows)), self.seed)
