"""LiSSA: inverse-Hessian-vector products by a truncated Neumann series over random minibatches.

    u_0 = q,    u_j+1 = q + u_j - (1/c) (K_batch + l2 I + delta I) u_j,    u = u_J / c,    s_i = < grad l_i(theta), u >

u is the mean over the last ``tail`` of the iterates, and over independent repeats.  The expectation of the series has
the fixed point (K + l2 I + delta I)^-1 q where c is above half the largest eigenvalue of every minibatch's matrix.  J
steps multiply an eigenvector with eigenvalue h by (1 - (1 - h/c)^(J+1)) / h: truncation damps by about c/J, and where
that is far above the spectrum the scores are those of ip times J/c.  Agarwal et al. 2017 (arXiv:1602.03943), Koh and
Liang 2017 (arXiv:1703.04730), section 3.

The default c is 1.1 times the largest eigenvalue that 20 power iterations find on each of 10 minibatches; the default
delta is 0 where l2 is above 1e-8 of tr K + l2, else 1e-2 of the mean eigenvalue of K + l2 I.  Other libraries write
u <- q + (1 - d) u - K u / c, whose fixed point has the damping d c: ``dampen`` is that d.

``preconditioner=ekfac``: the series is that of A M, M EKFAC's inverse of A (``methods.shapes.with_ekfac``).  The fixed
point is the same; eigenvalues of A M lie near 1, and c and the default J are by those.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from influence_cli.errors import ModelError
from influence_cli.maths import series_mean
from influence_cli.maths.iterative import relative_norms
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Columns, Facts, OfBlocks
from influence_cli.methods.shapes.by_products import MODES
from influence_cli.methods.shapes.preconditioned import Costs
from influence_cli.methods.shapes.with_ekfac import WithEKFAC
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.minibatches import Minibatches


@dataclass(frozen=True)
class LiSSA(WithEKFAC):
    """Inverse curvature by a stochastic Neumann series."""

    dampen: float | None = setting(None, "delta in the form of other libraries, d: delta = d c", "share of c")
    series_scale: float | None = setting(None, "c (default: 1.1 of the largest eigenvalue of 10 batches)", "mean loss")
    depth: int | None = setting(None, "J (default: min(5000, max(n/batch, 3c/(l2 + delta))))", "minibatches")
    batch: int = setting(32, "size of a minibatch", "rows")
    repeats: int | None = setting(None, "independent series to average (default: as many as see n rows)")
    tail: float = setting(0.2, "average over the last of the iterates; 0: the last alone", "share of J")
    seed: int = setting(0, "of minibatches and power iterations")

    share: ClassVar[float] = 1e-2
    symmetric: ClassVar[bool] = False  # minibatches come in an order

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping is not None and self.dampen is not None:
            raise ValueError("damping and dampen are two forms of one number; give one")
        if self.preconditioner != "none" and self.dampen is not None:
            raise ValueError("dampen is a share of the plain series' c; with a preconditioner give damping")
        if self.dampen is not None and not 0 <= self.dampen < 1:
            raise ValueError(f"dampen={self.dampen} is not in [0, 1)")
        if self.series_scale is None and self.dampen is not None and self.dampen * series_mean.SCALE_MARGIN >= 1:
            raise ValueError(f"dampen={self.dampen} needs a series_scale: the default c includes delta = dampen c")
        if not 0 <= self.tail <= 1:
            raise ValueError(f"tail={self.tail} is not between 0 and 1")
        check_options(self, {}, {"depth": 1, "batch": 1, "repeats": 1, "seed": 0}, positive=("series_scale",))

    def costs(self, rows: int, parameters: int) -> Costs:
        """The series, the scale, and a pass for the residual; with the default depth, at its largest."""
        plain = super().costs(rows, parameters)
        series, scale = self._rules(plain.rows, None, None).passes_at_most()
        return replace(plain, solve_passes=round(series + scale + 1, 1), form_passes=series)

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """The series' result, and how large the residual of the full matrix is for it.

        Raises:
            ModelError: the series diverges, with ten times c too.
        """
        counting = partial(curvature.listener.progress, "curvature (lissa)", unit="minibatches")
        batches, rules = self._opened(curvature)
        with self._errors_explained():
            u, series, retried = series_mean.solve(batches.product, q, rules, curvature.interim, counting)
        shift = series.shift if rules.m is None else rules.m.shift
        image = batches.curvature.product(MODES[self.mode], u) + shift * u
        residual = float(relative_norms(q - image, q).max())
        return u, {**self._facts(curvature, batches, rules, series, retried), "residual": residual}

    def form(self, curvature: Curvature) -> tuple[OfBlocks, Facts]:
        """g_i^T u_i with the result u_i of a series for every row; c is the same for all, and never raised.

        Raises:
            ModelError: there is no c; and, of the function, a series diverges.
        """
        from influence_cli.engines.row_values import DenseForm

        batches, rules = self._opened(curvature)
        with self._errors_explained():
            product = rules.product(batches.product)
            series = rules.series(*rules.scale_and_damping(product, curvature.size))

        def forms(g: Columns) -> Columns:
            with self._errors_explained():
                return (g * rules.result(series_mean.alone(product, g, series))).sum(axis=0)

        return DenseForm(list(curvature.layout), forms), self._facts(curvature, batches, rules, series)

    def warnings(self, facts: Facts) -> list[str]:
        """That the result is far from the inverse."""
        residual = facts.get("residual", 0.0)
        by = facts.get("preconditioner", "ip")
        said = f"the series is far from the inverse: its residual is {residual:.3g} of the direction; what is of "
        said += f"little curvature is scored as {by} scores it (raise --set lissa.depth or lissa.damping)"
        return [] if residual <= 0.5 else [said]

    def notes(self, facts: Facts) -> list[str]:
        """That the series is cut off, and what that does."""
        if "implied_damping" not in facts:
            return []
        implied, given = facts["implied_damping"], facts["damping"] + facts["l2"]
        said = f"its series is cut off after {facts['depth']:,} minibatches, which acts like {implied:.3g} more damping"
        if implied > given:
            said += f": more than l2 and damping ({given:.3g}), so that scores lean towards those of ip"
        else:
            said += f": no more than l2 and damping ({given:.3g})"
        return [said]

    def _rules(self, rows: int, damping: float | None, m: series_mean.Preconditioner | None) -> series_mean.Rules:
        given = (self.dampen or 0.0, self.series_scale, self.depth, self.repeats, self.tail, self.seed)
        l2, damping = (self.l2 or 0.0, damping) if m is None else (0.0, m.floor)
        return series_mean.Rules(rows, self.batch, l2, damping, *given, m)

    def _opened(self, curvature: Curvature) -> tuple[Minibatches, series_mean.Rules]:
        from influence_cli.curvature.minibatches import Minibatches

        damping = self.default_damping(curvature) if self.damping is None and self.dampen is None else self.damping
        batches = Minibatches(self.seen(curvature, self.fit_sample), MODES[self.mode], self.batch, self.seed)
        return batches, self._rules(batches.rows, damping, self._m(curvature, damping))

    def _m(self, curvature: Curvature, damping: float | None) -> series_mean.Preconditioner | None:
        """EKFAC's inverse, where it is asked for; where its eigenvectors are those of A, A M has (h + s) / (h + t)."""
        m = None if damping is None else self.inverse(curvature, damping)
        if m is None or damping is None:
            return None
        shift, apply = (
            (self.l2 or 0.0) + damping,
            partial(m.apply, sizes=curvature.sizes, single=self.single(curvature.size)),
        )
        slowest = shift / ((self.l2 or 0.0) + max(m.dampings))
        return series_mean.Preconditioner(apply, shift, shift / m.largest, slowest, m.largest / m.smallest)

    def _facts(
        self, curvature: Curvature, batches: Minibatches, rules: series_mean.Rules, s: series_mean.Series,
        retried: bool = False,
    ) -> Facts:  # fmt: skip
        """What is worth saying; truncation acts like c / J more damping, of M^-1 where there is one."""
        m, by_rule = rules.m, self.damping is None and self.dampen is None
        own = {"implied_damping": s.scale / s.depth} if m is None else {"preconditioner": self.preconditioner}
        seen = self.facts_of(curvature, s.damping if m is None else m.shift - (self.l2 or 0.0), by_rule)
        return {**seen, **s.facts(), "batch": batches.size, **own, "retried": retried}

    @contextmanager
    def _errors_explained(self) -> Generator[None]:
        try:
            yield
        except series_mean.ZeroCurvatureError as error:
            fix = "give --set lissa.damping=X, or use ip"
            raise ModelError("the curvature of 10 minibatches is zero", fix=fix) from error
        except series_mean.SeriesDivergedError as error:
            c, shift, below = error.series.scale, error.series.shift, "is below half the largest eigenvalue of"
            what = f"the series diverges {error}: c = {c:.3g} {below} some minibatch"
            fix = f"--set lissa.series_scale={series_mean.RETRY * c:.3g}, or a larger lissa.batch"
            if self.mode == "hessian":
                what += f", or a minibatch's Hessian with {shift:.3g} added to its eigenvalues is not positive definite"
                fix = "use --set lissa.mode=ggn, or raise lissa.damping, or lissa.series_scale"
            raise ModelError(what, fix=fix) from error
