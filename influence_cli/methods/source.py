"""SOURCE: influence along training, by segments in which curvature and gradients count as standing still.

    s_i = sum_l < gbar_il, F_l q_l >,    F_l = (1 - exp(-T_l H_l)) H_l^-1,    q_(l-1) = exp(-T_l H_l) q_l

from the last segment back, where q_L = grad Phi: gbar_il is the mean of row i's gradients at the segment's checkpoints,
T_l the sum of the rates of its steps, over 1 - momentum.  H_l is EKFAC's matrix with the training's l2: input and
output moments are the mean over the segment's checkpoints, and so are the eigenvalues in their common bases.  Phi is
measured at the last checkpoint alone.  Bae, Lin, Lorraine and Grosse 2024 (arXiv:2405.12186), with their 3 segments of
2 checkpoints (``retrain --keep-checkpoints 6``), here at the middle and at the end of each; delta is 0, since where T
sigma is small F is T, as if damped by 1/T.

Training need not have converged.  effect = s / n estimates the change of Phi when the row is left out of training.
Steps are SGD's with or without momentum, or AdamW's, whose moments are needed (``retrain --record moments``): a layer's
steps are then along p g - decay theta, with one p for each layer and segment, so that

    F_l = p (1 - exp(-T_l (p H_l + decay))) (p H_l + decay)^-1,    q_(l-1) = exp(-T_l (p H_l + decay)) q_l

p is the mean of 1 / (sqrt(v) + 1e-8) over the layer's entries, weighted by v, the unbiased second moment: the best
number in the place of that diagonal matrix for gradients of such sizes.  T_l is the sum of rates, whatever the betas.
That the row's own gradient changes v is left out: of a linear model trained in few, large steps the scores are those
of v held as it was (correlation .999), and .46 with the derivative through v too.  With T large F is the
inverse of ``ekfac``, with T small s is T times ip's.  Rates that rise and fall within one segment are no mean rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.errors import UsageError
from influence_cli.maths.unrolled import gathered, left
from influence_cli.methods.ekfac import EKFAC
from influence_cli.methods.protocol import Columns, Facts, Floats, RowValue
from influence_cli.methods.protocol import Linear as LinearMethod
from influence_cli.methods.shapes.preconditioned import Factor, FactorAt
from influence_cli.methods.stored import Member, Place
from influence_cli.settings import resolved, setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.maths.kronecker import KroneckerInverse
    from influence_cli.model.checkpoints import Recorded, Trajectory

EPS, BETA2 = 1e-8, 0.999  # of torch's AdamW, as `retrain` uses it


@dataclass(frozen=True)
class Span:
    """A segment: after which step it begins and with which it ends, its checkpoints, and T.

    Of AdamW also the decay, and by parameter at each checkpoint the sums of v / (sqrt(v) + eps) and of v.
    """

    after: int
    last: int
    checkpoints: int
    travelled: float
    decay: float = 0.0
    sizes: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for fingerprints and provenance; those of SGD are the four first."""
        found = asdict(self)
        return found if self.sizes is not None else {k: found[k] for k in ("after", "last", "checkpoints", "travelled")}

    def scale(self, names: Sequence[str]) -> float:
        """P of a layer with parameters of these names: the mean over checkpoints; 1 of SGD."""
        if self.sizes is None:
            return 1.0
        by_name = dict(self.sizes)
        every = [by_name[name] for name in names if name in by_name]  # one that did not move has no moments
        if not every:
            return 0.0
        tops, v = (np.array([[pair[k] for pair in pairs] for pairs in every]).sum(0) for k in (0, 1))
        return float(np.where(v > 0, tops / np.where(v > 0, v, 1.0), 0.0).mean())

    def gathered(self, sigma: Floats, names: Sequence[str]) -> Floats:
        """F of eigenvalues of a layer with parameters of these names."""
        p = self.scale(names)
        return p * gathered(p * sigma + self.decay, self.travelled)

    def left(self, sigma: Floats, names: Sequence[str]) -> Floats:
        """What is left of a direction from the end of the segment at its beginning."""
        return left(self.scale(names) * sigma + self.decay, self.travelled)


@dataclass(frozen=True)
class Source(EKFAC):
    """EKFAC's eigenvalues through the filter of a segment."""

    relative: ClassVar[bool] = False
    decay_apart: ClassVar[bool] = True
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
        kept = _kept(trajectory)
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
        kept, recipe = _kept(trajectory), trajectory.recipe("source")
        if recipe.optimizer not in ("sgd", "adamw"):
            raise UsageError(
                f"source follows the steps of SGD and AdamW, and the checkpoint was trained by {recipe.optimizer}",
                where=trajectory.final.locator,
                fix="use tracin or ekfac, or train with --optimizer sgd",
            )
        by_adam = recipe.optimizer == "adamw"
        moments = self._moments(trajectory) if by_adam else []
        self.places(trajectory, 0, "all")
        travelled, spans, first = trajectory.travelled("source"), list[Span](), 0
        for size in self._sizes(len(kept)):
            after, some = kept[first - 1].step if first else 0, slice(first, first + size)
            total = sum(travelled[some]) / (1.0 if by_adam else 1.0 - recipe.momentum)
            span = Span(after, kept[first + size - 1].step, size, total)
            spans.append(replace(span, decay=recipe.weight_decay, sizes=_joined(moments[some])) if by_adam else span)
            first += size
        return replace(self, spans=tuple(spans))

    def _moments(self, trajectory: Trajectory) -> list[dict[str, tuple[float, float]]]:
        """At each kept checkpoint what ``Span.sizes`` has of every parameter.

        Raises:
            UsageError: the optimizer's state was not kept.
        """
        try:
            states = trajectory.moments("source")
        except UsageError as error:
            fix = f"{error.fix}; or train with --optimizer sgd"
            raise UsageError(f"{error.what} (it was adamw's)", where=error.where, fix=fix) from error
        return [_sizes_of(state, k.step) for state, k in zip(states, _kept(trajectory), strict=True)]

    def describe(self) -> dict[str, Any]:
        """With the segments."""
        return {**super().describe(), "spans": [span.as_dict() for span in self.spans]}

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
        own = len(self.spans) - 1 - len(curvature.further)
        before = q
        for span, factor in reversed(list(zip(self.spans[own + 1 :], curvature.further, strict=True))):
            before = self._matrix(factor).times(before, curvature.sizes, self._by_layer(span.left, curvature))
        matrix, span = self._matrix(curvature.factor), self.spans[own]
        u = matrix.times(before, curvature.sizes, self._by_layer(span.gathered, curvature))
        names = list(curvature.layout)
        others = [names[int(place)] for place, _ in curvature.factor["others"]]
        self.check_left_over(others)
        sizes = np.linalg.norm(q, axis=0)
        share = float((np.linalg.norm(before, axis=0) / np.where(sizes > 0, sizes, 1.0)).mean())
        of_it: Facts = {"largest_eigenvalue": matrix.largest, "share_of_direction": share}
        shown = {k: v for k, v in span.as_dict().items() if k != "sizes"}
        if span.sizes is not None:
            of_it["scales"] = {name: span.scale([name]) for name in names}
        return u, {
            "segments": [{"segment": own + 1, **shown, **of_it}],
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

    def _by_layer(
        self, of: Callable[[Floats, Sequence[str]], Floats], curvature: Curvature
    ) -> Callable[[Floats, Sequence[int]], Floats]:
        """A function of eigenvalues and names of a layer's parameters, as one of their places."""
        names = list(curvature.layout)
        return lambda sigma, places: of(sigma, [names[place] for place in places])

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


def _kept(trajectory: Trajectory) -> tuple[Recorded, ...]:
    """The kept checkpoints.  Raises UsageError: there are none; names at once all that is to be kept for source."""
    by_adam = trajectory.record is not None and trajectory.record.recipe.get("optimizer") == "adamw"
    return trajectory.kept("source", f"--keep-checkpoints 6{' --record moments' if by_adam else ''}")


def _sizes_of(state: Mapping[str, Any], step: int) -> dict[str, tuple[float, float]]:
    """By parameter the sums of v / (sqrt(v) + eps) and of v, the unbiased second moment after so many steps."""
    found: dict[str, tuple[float, float]] = {}
    for name, array in state.items():
        kind, _, parameter = name.partition(".")
        if kind == "exp_avg_sq":
            v = np.asarray(array, dtype=np.float64) / (1.0 - BETA2**step)
            found[parameter] = float((v / (np.sqrt(v) + EPS)).sum()), float(v.sum())
    return found


def _joined(moments: list[dict[str, tuple[float, float]]]) -> tuple[tuple[str, tuple[tuple[float, float], ...]], ...]:
    """The sums of some checkpoints by parameter."""
    return tuple((name, tuple(m[name] for m in moments)) for name in sorted(moments[0]))
