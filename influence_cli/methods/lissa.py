"""LiSSA: inverse-Hessian-vector products by a truncated Neumann series over random minibatches.

    u_0 = q,    u_j+1 = q + u_j - (1/c) (K_batch + l2 I + delta I) u_j,    u = u_J / c,    s_i = < grad l_i(theta), u >

u is the mean over the last ``tail`` of the iterates, and over independent repeats.  The expectation of the series has
the fixed point (K + l2 I + delta I)^-1 q where c is above half the largest eigenvalue of every minibatch's matrix.  J
steps multiply an eigenvector with eigenvalue h by (1 - (1 - h/c)^(J+1)) / h: truncation damps by about c/J, and where
that is far above the spectrum the scores are those of ip times J/c.  Agarwal et al. 2017 (arXiv:1602.03943), Koh and
Liang 2017 (arXiv:1703.04730), section 3.

Defaults: c is 1.1 times the largest eigenvalue that 20 power iterations find on each of 10 minibatches (l2 and delta
included); J = min(5000, max(n/batch, 3c/(l2 + delta))); as many repeats as see n rows in all; delta is 0 where l2 is
above 1e-8 of tr K + l2, else 1e-2 of the mean eigenvalue of K + l2 I.  Other libraries write
u <- q + (1 - d) u - K u / c, whose fixed point has the damping d c: ``dampen`` is that d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.errors import ModelError
from influence_cli.methods.protocol import Columns, Facts, OfBlocks, check_options
from influence_cli.methods.shapes.by_products import MODES, ByProducts

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.interim import State
    from influence_cli.curvature.minibatches import Minibatches
    from influence_cli.events import Progress

DEEPEST = 5000
SCALE_BATCHES, SCALE_STEPS, SCALE_MARGIN = 10, 20, 1.1
RETRY = 10.0  # times c, where the series diverges


@dataclass(frozen=True)
class LiSSA(ByProducts):
    """Inverse curvature by a stochastic Neumann series."""

    dampen: float | None = field(
        default=None, metadata={"help": "delta in the form of other libraries, d: delta = d c", "unit": "share of c"}
    )
    series_scale: float | None = field(
        default=None, metadata={"help": "c (default: 1.1 of the largest eigenvalue of 10 batches)", "unit": "mean loss"}
    )
    depth: int | None = field(
        default=None,
        metadata={"help": "J (default: min(5000, max(n/batch, 3c/(l2 + delta))))", "unit": "minibatches"},
    )
    batch: int = field(default=32, metadata={"help": "size of a minibatch", "unit": "rows"})
    repeats: int | None = field(
        default=None, metadata={"help": "independent series to average (default: as many as see n rows)"}
    )
    tail: float = field(
        default=0.2, metadata={"help": "average over the last of the iterates; 0: the last alone", "unit": "share of J"}
    )
    seed: int = field(default=0, metadata={"help": "of minibatches and power iterations"})

    share: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping is not None and self.dampen is not None:
            raise ValueError("damping and dampen are two forms of one number; give one")
        if self.dampen is not None and not 0 <= self.dampen < 1:
            raise ValueError(f"dampen={self.dampen} is not in [0, 1)")
        if self.series_scale is None and self.dampen is not None and self.dampen * SCALE_MARGIN >= 1:
            raise ValueError(f"dampen={self.dampen} needs a series_scale: the default c includes delta = dampen c")
        if self.series_scale is not None and not self.series_scale > 0:
            raise ValueError(f"series_scale={self.series_scale} is not positive")
        if not 0 <= self.tail <= 1:
            raise ValueError(f"tail={self.tail} is not between 0 and 1")
        check_options(self, {}, {"depth": 1, "batch": 1, "repeats": 1, "seed": 0})

    def solve_passes(self, rows: int, parameters: int) -> float:
        """The series, the scale, and one for the residual; with the default depth, at its largest."""
        depth = self.depth or max(DEEPEST, math.ceil(rows / self.batch))
        scale = 0 if self.series_scale is not None else SCALE_BATCHES * SCALE_STEPS
        share = min(1.0, self.batch / rows)
        return round((depth * self._repeats(rows, depth) + scale) * share + 1, 1)

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """The series' result, and how large the residual of the full matrix is for it.

        Raises:
            ModelError: the series diverges, with ten times c too.
        """
        from influence_cli.curvature.minibatches import Minibatches
        from influence_cli.maths.krylov import norms
        from influence_cli.maths.neumann import DivergedError

        seen = self.seen(curvature)
        batches = Minibatches(seen, MODES[self.mode], self.batch, self.seed)
        state = curvature.interim.load() or self._start(q, curvature, batches)
        while True:
            scale, damping = state["scale"].item(), state["damping"].item()
            floor = (self.l2 or 0.0) + damping
            depth, repeats = self._shape(batches, scale, floor)
            try:
                u = self._average(q, curvature, batches, state, depth, repeats)
                break
            except DivergedError as error:
                if state["retried"].item():
                    raise self._diverged(scale, floor, error) from error
                state = {**self._fresh(q, scale * RETRY, damping), "retried": np.array(True)}
        image = seen.product(MODES[self.mode], u) + floor * u
        sizes = norms(q)
        residual = float((norms(q - image) / np.where(sizes > 0, sizes, 1.0)).max())
        facts = self._told(curvature, batches, scale, damping, depth, repeats, state["retried"].item())
        return u, {**facts, "residual": residual}

    def form_passes(self, rows: int, parameters: int) -> float:
        """A row's own series; with the default depth, at its largest."""
        depth = self.depth or max(DEEPEST, math.ceil(rows / self.batch))
        return depth * self._repeats(rows, depth) * min(1.0, self.batch / rows)

    def form(self, curvature: Curvature) -> tuple[OfBlocks, Facts]:
        """g_i^T u_i with the result u_i of a series for every row; c is the same for all, and never raised.

        Raises:
            ModelError: there is no c; and, of the function, a series diverges.
        """
        from influence_cli.curvature.minibatches import Minibatches
        from influence_cli.engines.row_values import DenseForm
        from influence_cli.maths.neumann import DivergedError, neumann

        seen = self.seen(curvature)
        batches = Minibatches(seen, MODES[self.mode], self.batch, self.seed)
        start = self._start(np.zeros((curvature.size, 1)), curvature, batches)
        scale, damping = start["scale"].item(), start["damping"].item()
        floor = (self.l2 or 0.0) + damping
        depth, repeats = self._shape(batches, scale, floor)

        def product(run: int, step: int, v: Columns) -> Columns:
            return batches.product(1 + run, step, v) + floor * v

        def forms(g: Columns) -> Columns:
            u = np.zeros_like(g)
            try:
                for run in range(repeats):
                    u += neumann(partial(product, run), g, scale, depth, floor, self.tail) / repeats
            except DivergedError as error:
                raise self._diverged(scale, floor, error, retried=False) from error
            return (g * u).sum(axis=0)

        facts = self._told(curvature, batches, scale, damping, depth, repeats)
        return DenseForm(list(curvature.layout), forms), facts

    def sentence(self, facts: Facts) -> str:
        """The matrix, the series, what truncation amounts to, and the residual."""
        implied = facts["implied_damping"]
        more = " (more than l2 and damping)" if implied > facts["damping"] + facts["l2"] else ""
        known = facts.get("residual")
        residual = "" if known is None else f"; residual over all of these rows {known:.2g} of the direction"
        again = ", after the series diverged at a tenth of it" if facts["retried"] else ""
        return (
            f"{self.opening(facts)}; c {facts['series_scale']:.3g}{again}, {facts['repeats']} x {facts['depth']:,} "
            f"batches of {facts['batch']}, so that truncation damps by about {implied:.3g}{more}{residual}; "
            f"gradient norm of the training objective {facts['gradient_norm']:.3g}"
        )

    def warnings(self, facts: Facts) -> list[str]:
        """That the result is far from the inverse."""
        if facts.get("residual", 0.0) <= 0.5:
            return []
        return [
            f"the series is far from the inverse: its residual is {facts['residual']:.3g} of the direction; what is of "
            "little curvature is scored as ip scores it (raise --set lissa.depth or lissa.damping)"
        ]

    # -- one solve ---------------------------------------------------------------------------------------------------

    def _shape(self, batches: Minibatches, scale: float, floor: float) -> tuple[int, int]:
        """J and how many series of it."""
        wanted = 3.0 * scale / floor if floor > 0 else math.inf
        depth = self.depth or int(
            min(DEEPEST, max(math.ceil(batches.rows / batches.size), math.ceil(min(wanted, 1e9))))
        )
        return depth, self._repeats(batches.rows, depth)

    def _repeats(self, rows: int, depth: int) -> int:
        return self.repeats or max(1, math.ceil(rows / (depth * min(self.batch, rows))))

    def _told(
        self,
        curvature: Curvature,
        batches: Minibatches,
        scale: float,
        damping: float,
        depth: int,
        repeats: int,
        retried: bool = False,
    ) -> Facts:
        return {
            **self.facts_of(curvature, damping, self.damping is None and self.dampen is None),
            "series_scale": scale,
            "depth": depth,
            "repeats": repeats,
            "batch": batches.size,
            "implied_damping": scale / depth,
            "retried": retried,
        }

    def _start(self, q: Columns, curvature: Curvature, batches: Minibatches) -> State:
        """Scale and damping, and the state before the first step."""
        from influence_cli.maths.neumann import largest_eigenvalue

        l2 = self.l2 or 0.0
        damping = self.damping
        if damping is None and self.dampen is None:
            damping = self.default_damping(curvature)
        scale = self.series_scale
        if scale is None:
            start = np.random.default_rng([self.seed, 0]).standard_normal(curvature.size)
            sizes = [
                largest_eigenvalue(lambda v, b=b: batches.product(0, b, v), start, SCALE_STEPS)
                for b in range(SCALE_BATCHES)
            ]
            if damping is None:  # c = 1.1 (largest + l2 + d c)
                scale = SCALE_MARGIN * (max(sizes) + l2) / (1.0 - SCALE_MARGIN * (self.dampen or 0.0))
            else:
                scale = SCALE_MARGIN * (max(sizes) + l2 + damping)
        if not (scale > 0 and math.isfinite(scale)):
            raise ModelError("the curvature of 10 minibatches is zero", fix="give --set lissa.damping=X, or use ip")
        return self._fresh(q, scale, (self.dampen or 0.0) * scale if damping is None else damping)

    def _fresh(self, q: Columns, scale: float, damping: float) -> State:
        zero = np.zeros_like(q)
        return {
            "scale": np.array(scale), "damping": np.array(damping), "retried": np.array(False),
            "run": np.array(0), "sum": zero, "u": q, "total": zero, "step": np.array(0),
        }  # fmt: skip

    def _average(
        self, q: Columns, curvature: Curvature, batches: Minibatches, state: State, depth: int, repeats: int
    ) -> Columns:
        """The mean over the series, from ``state`` on."""
        with curvature.listener.progress("curvature (lissa)", repeats * depth, "minibatches") as progress:
            for run in range(state["run"].item(), repeats):
                u = self._one(q, curvature, batches, state, depth, run, progress)
                again = self._fresh(q, state["scale"].item(), state["damping"].item())
                done = {"retried": state["retried"], "run": np.array(run + 1), "sum": state["sum"] + u}
                state = {**again, **done}
        return state["sum"] / repeats

    def _one(
        self,
        q: Columns,
        curvature: Curvature,
        batches: Minibatches,
        state: State,
        depth: int,
        run: int,
        progress: Progress,
    ) -> Columns:
        from influence_cli.maths.neumann import neumann

        shift = (self.l2 or 0.0) + state["damping"].item()

        def product(step: int, v: Columns) -> Columns:
            image = batches.product(1 + run, step, v, shift)
            progress.advance(1)
            return image

        def offer(now: dict[str, Any]) -> None:
            curvature.interim.offer(lambda: {**state, **now, "run": np.array(run)})

        return neumann(product, q, state["scale"].item(), depth, shift, self.tail, state, offer)

    def _diverged(self, scale: float, floor: float, error: Exception, retried: bool = True) -> ModelError:
        what = f"the series diverges {error}{', also with ten times the first c' if retried else ''}: c = {scale:.3g}"
        if self.mode == "hessian":
            return ModelError(
                f"{what} is below half the largest eigenvalue of some minibatch, or a minibatch's Hessian with "
                f"{floor:.3g} added to its eigenvalues is not positive definite",
                fix="use --set lissa.mode=ggn, or raise lissa.damping, or lissa.series_scale",
            )
        return ModelError(
            f"{what} is below half the largest eigenvalue of some minibatch",
            fix=f"--set lissa.series_scale={RETRY * scale:.3g}, or a larger lissa.batch",
        )
