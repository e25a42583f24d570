"""SOURCE: influence along training, by segments in which curvature and gradients count as standing still.

    s_i = sum_l < gbar_il, F_l q_l >,    F_l = (1 - exp(-T_l H_l)) H_l^-1,    q_(l-1) = exp(-T_l H_l) q_l

from the last segment back, where q_L = grad Phi: gbar_il is the mean of row i's gradients at the segment's checkpoints,
T_l the sum of the rates of its steps, over 1 - momentum.  H_l is EKFAC's matrix with the training's l2: input and
output moments are the mean over the segment's checkpoints, and so are the eigenvalues in their common bases.  Phi is
measured at the last checkpoint alone.  Bae, Lin, Lorraine and Grosse 2024 (arXiv:2405.12186), with their 3 segments of
2 checkpoints (``retrain --keep-checkpoints 6``), here at the middle and at the end of each; delta is 0, since where T
sigma is small F is T, as if damped by 1/T.

Training need not have converged.  effect = s / n estimates the change of Phi when the row is left out of training.
Steps are SGD's with or without momentum; those of AdamW need its moments, and are refused.  With T large F is the
inverse of ``ekfac``, with T small s is T times ip's.  Rates that rise and fall within one segment are no mean rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.errors import UsageError
from influence_cli.methods.ekfac import EKFAC
from influence_cli.methods.protocol import Columns, Facts, RowValue
from influence_cli.methods.protocol import Linear as LinearMethod
from influence_cli.methods.shapes.preconditioned import Factor, FactorAt
from influence_cli.methods.stored import Member, Place
from influence_cli.settings import resolved, setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.maths.kronecker import KroneckerInverse
    from influence_cli.model.checkpoints import Trajectory


@dataclass(frozen=True)
class Span:
    """A segment: after which step it begins and with which it ends, its checkpoints, and T."""

    after: int
    last: int
    checkpoints: int
    travelled: float


@dataclass(frozen=True)
class Source(EKFAC):
    """EKFAC's eigenvalues through the filter of a segment."""

    relative: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False  # a product of the filters of several segments
    name: ClassVar[str] = "source"

    damping: float | None = setting(0.0, "delta, added to every eigenvalue", unit="mean loss")
    segments: int = setting(3, "of the kept checkpoints, as even as they go")
    spans: tuple[Span, ...] = resolved(())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments < 1:
            raise ValueError(f"segments={self.segments} is below 1")

    def places(self, trajectory: Trajectory, seed: int, params: str) -> list[Place]:
        """Every checkpoint that was kept, the last one first, by its share of its segment.

        Raises:
            UsageError: they are fewer than the segments.
        """
        kept = trajectory.kept("source")
        if len(kept) < self.segments:
            raise UsageError(
                f"source has {self.segments} segments, and {len(kept)} checkpoints were kept",
                where=trajectory.final.locator,
                fix=f"--set source.segments={len(kept)}, or train with --keep-checkpoints {2 * self.segments}",
            )
        if len({k.checkpoint.digest for k in kept}) < len(kept):
            what = "two of the kept checkpoints are the same: training stood still between them"
            raise UsageError(what, where=trajectory.final.locator, fix="train again with another schedule")
        sizes = self._sizes(len(kept))
        weights = [1.0 / size for size in sizes for _ in range(size)]
        return [Place(k.checkpoint, weight=w) for k, w in zip(kept[::-1], weights[::-1], strict=True)]

    def summed(self) -> bool:
        """Over segments."""
        return True

    def row_value(self, relative: bool = False) -> RowValue | None:
        """None; --relative is refused."""
        return LinearMethod.row_value(self, relative)

    def on_the_way(self, trajectory: Trajectory) -> Source:
        """The same with its segments.

        Raises:
            UsageError: no checkpoints were kept, it is not said how they were trained, or it was not by SGD.
        """
        recipe, kept = trajectory.recipe("source"), trajectory.kept("source")
        if recipe.optimizer != "sgd":
            raise UsageError(
                f"source follows the steps of SGD, and the checkpoint was trained by {recipe.optimizer}, whose steps "
                "are along other directions than gradients (its moments are not kept)",
                where=trajectory.final.locator,
                fix="use tracin or ekfac, or train with --optimizer sgd",
            )
        self.places(trajectory, 0, "all")
        travelled, spans, first = trajectory.travelled("source"), list[Span](), 0
        for size in self._sizes(len(kept)):
            after = kept[first - 1].step if first else 0
            total = sum(travelled[first : first + size]) / (1.0 - recipe.momentum)
            spans.append(Span(after, kept[first + size - 1].step, size, total))
            first += size
        return replace(self, spans=tuple(spans))

    def describe(self) -> dict[str, Any]:
        """With the segments."""
        return {**super().describe(), "spans": [asdict(span) for span in self.spans]}

    def factors_at(self, member: Member, members: Sequence[Member]) -> tuple[FactorAt, ...]:
        """That of the member's own segment, then those of the segments after it."""
        groups = self._groups(list(members))
        own = next(k for k, group in enumerate(groups) if member in group)
        return tuple(FactorAt(self, tuple(group)) for group in groups[own:])

    def query_at(self, member: Member, members: Sequence[Member]) -> Member:
        """The last checkpoint."""
        return members[0]

    def fit(self, curvature: Curvature) -> Factor:
        """Bases and eigenvalues of every layer, of a segment's checkpoints together.

        Raises:
            UsageError: parameters have none, and ``other`` is refuse.
        """
        from influence_cli.curvature.kronecker import KroneckerFit, fitted_together

        every = [self.seen(c, self.fit_sample) for c in (curvature, *curvature.beside)]
        fits = [KroneckerFit(seen, self.labels, self.draws, self.seed) for seen in every]
        self.check_left_over(fits[0].others)
        return Factor(fitted_together(fits), {"factored": fits[0].factored, "others": fits[0].others})

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """F_l of what is left of q at the end of the segment.

        Raises:
            UsageError: parameters have no factors, and ``other`` is refuse.
        """
        from influence_cli.maths.unrolled import gathered, left

        own = len(self.spans) - 1 - len(curvature.further)
        before = q
        for span, factor in reversed(list(zip(self.spans[own + 1 :], curvature.further, strict=True))):
            before = self._matrix(factor).times(before, curvature.sizes, lambda s, t=span.travelled: left(s, t))
        matrix, span = self._matrix(curvature.factor), self.spans[own]
        u = matrix.times(before, curvature.sizes, lambda s: gathered(s, span.travelled))
        names = list(curvature.layout)
        others = [names[int(place)] for place, _ in curvature.factor["others"]]
        self.check_left_over(others)
        sizes = np.linalg.norm(q, axis=0)
        share = float((np.linalg.norm(before, axis=0) / np.where(sizes > 0, sizes, 1.0)).mean())
        of_it = {"largest_eigenvalue": matrix.largest, "share_of_direction": share}
        return u, {
            "segments": [{"segment": own + 1, **asdict(span), **of_it}],
            "of": len(self.spans),
            "mode": self.mode,
            "labels": self.labels,
            "l2": self.l2 or 0.0,
            "damping": self.damping or 0.0,
            "precision": self.precision_at(curvature.size),
            "product_rows": self.costs(len(curvature.rows), curvature.size).rows,
            "covered": matrix.size,
            "others": others,
            "other": self.other,
        }

    def together(self, facts: list[Facts]) -> Facts:
        """The table of all segments."""
        table = {entry["segment"]: entry for f in facts for entry in f["segments"]}
        return {**facts[0], "segments": [table[k] for k in sorted(table)]}

    def _matrix(self, factor: dict[str, Any]) -> KroneckerInverse:
        from influence_cli.maths.kronecker import KroneckerInverse

        given = factor, self.mode == "kfac", self.l2 or 0.0, self.damping or 0.0
        return KroneckerInverse.of(*given, scaled=self.other == "identity")

    def _sizes(self, checkpoints: int) -> list[int]:
        """How many checkpoints every segment has, in the order of training."""
        return [len(part) for part in np.array_split(np.arange(checkpoints), self.segments)]

    def _groups(self, members: list[Member]) -> list[list[Member]]:
        """The members of every segment, in the order of training; they themselves come the last one first."""
        ordered, groups = members[::-1], list[list[Member]]()
        for size in self._sizes(len(ordered)):
            groups.append(ordered[:size])
            ordered = ordered[size:]
        return groups
