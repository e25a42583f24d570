"""Linear methods whose P is not the identity but an inverse of curvature.

P comes from curvature of the training objective

    R(theta) = (1/n) sum_i w_i l_i(theta) + (l2/2) |theta|^2,    n = sum_i w_i

over the fit rows.  What is expensive and the same for every direction is its **factor**: fitted once, stored, shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.methods.protocol import Columns, Facts, Linear, OfBlocks
from influence_cli.methods.stored import Member
from influence_cli.settings import option_fields, setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.model.checkpoints import Trajectory

PRECISIONS = ("auto", "fp32", "fp64")
CURVATURE, DRAWS, GRADIENTS = "output curvature", "labels that the model draws", "row gradients"
DOUBLE_UP_TO = 100_000  # parameters up to which "auto" is float64


@dataclass(frozen=True)
class Factor:
    """What a method fitted on the fit rows: arrays by name, and what is worth saying of them."""

    arrays: dict[str, NDArray[np.float64]]
    facts: Facts


@dataclass(frozen=True)
class FactorAt:
    """A factor that a direction goes through: what fits it, at which members together, and whose it is."""

    solver: Preconditioned
    members: tuple[Member, ...]
    of: str = ""  # the name of the method, where it is another's


@dataclass(frozen=True)
class Costs:
    """What a method's curvature takes, at most, for a number of fit rows and of parameters."""

    rows: int  # fit rows that it looks at
    factor_bytes: int
    fit_passes: int = 1  # over those rows
    solve_passes: float = 0.0  # of ``precondition`` over those rows, whatever the number of directions
    form_passes: float = 0.0  # of ``form`` over those rows, for every row by itself


@dataclass(frozen=True)
class Preconditioned(Linear):
    """A linear method with ``u = P q``; it estimates an effect, since P has the scale of an inverse Hessian.

    ``describe`` names the arithmetic from factor and q to u, ``fitted`` that of the factor; whatever changes a number
    is in one of the two.  An option whose metadata has ``limit`` changes none.
    """

    effect: ClassVar[bool] = True
    fitted_curvature: ClassVar[bool] = True
    made_of: ClassVar[str] = CURVATURE  # of the fit rows
    with_self_influence: ClassVar[str] = "--method ekfac, or exact where parameters are few"
    decay_apart: ClassVar[bool] = False  # whether it takes AdamW's weight decay, which is no l2, as what it is
    l2_by_parameter: ClassVar[bool] = False  # whether ``with_l2`` keeps each parameter's own
    symmetric: ClassVar[bool] = True  # whether <g, P h> = <P g, h>, to what P is known
    revision: ClassVar[int] = 1  # of ``precondition``: raise it when its numbers change

    damping: float | None = setting(
        None, "delta, added to every eigenvalue (default: the method's rule)", unit="mean loss"
    )
    l2: float | None = setting(
        None, "l2 of the training objective (default: of the run folder, else 0)", unit="mean loss"
    )

    def with_l2(self, l2: Mapping[str, float]) -> Preconditioned:
        """The method with the l2 on each parameter; the largest on every one, where it has one number for all."""
        return dataclasses.replace(self, l2=max(l2.values()))

    def describe(self) -> dict[str, Any]:
        """Options and revision that change u, for its fingerprint."""
        named = [f for f in option_fields(self) if not f.metadata.get("limit")]
        named = [f.name for f in named if not (f.metadata.get("later") and getattr(self, f.name) == f.default)]
        return {"revision": self.revision, **{name: getattr(self, name) for name in named}}

    def helper(self) -> str | None:
        """The name of another method whose factor it works with too, if any; that method's options count."""
        return None

    def helped_by(self, other: Preconditioned) -> Preconditioned:
        """The method with the one that ``helper`` names."""
        raise NotImplementedError

    def on_the_way(self, trajectory: Trajectory) -> Preconditioned:
        """The method with what it needs to know of how its checkpoint was trained.

        Raises:
            UsageError: the run folder does not say it.
        """
        return self

    def factors_at(self, member: Member, members: Sequence[Member]) -> tuple[FactorAt, ...]:
        """What ``precondition`` needs at one of its members: its own factor, and then ``curvature.further``."""
        return (FactorAt(self, (member,)),)

    def together(self, facts: list[Facts]) -> Facts:
        """What is worth saying of all members, from what ``precondition`` said at each: of the first."""
        return facts[0]

    def query_at(self, member: Member, members: Sequence[Member]) -> Member:
        """The member at which q is taken that becomes u at one of its members: the same."""
        return member

    def fitted(self) -> dict[str, Any]:
        """What the factor is, for its fingerprint: methods that say the same share it."""
        raise NotImplementedError

    def costs(self, rows: int, parameters: int) -> Costs:
        """What that curvature takes, for so many fit rows."""
        raise NotImplementedError

    def check_size(self, parameters: int) -> None:
        """Refuse more parameters than can be fitted.

        Raises:
            UsageError: they are too many; says what to do.
        """

    def warnings(self, facts: Facts) -> list[str]:
        """What in the facts of ``precondition`` or ``form`` should keep one from trusting the scores."""
        return []

    def notes(self, facts: Facts) -> list[str]:
        """What in the facts of ``precondition`` or ``form`` a reader of the scores has to know, a plain line each."""
        return []

    def fit(self, curvature: Curvature) -> Factor:
        """What is expensive and the same for every direction; ``curvature.beside`` is it at the other members."""
        raise NotImplementedError

    def fit_some(self, curvature: Curvature) -> int:
        """Some of the passes of ``fit`` over a few rows, for a plan to time; says how many, of those in ``costs``."""
        curvature.factor = self.fit(curvature).arrays
        return self.costs(len(curvature.rows), curvature.size).fit_passes

    def solve_some(self, columns: Columns, curvature: Curvature) -> float:
        """The same of ``precondition``, on a curvature that ``fit_some`` has seen."""
        self.precondition(columns, curvature)
        return self.costs(len(curvature.rows), curvature.size).solve_passes

    def decomposed(self, curvature: Curvature) -> list[int]:
        """The sizes n of matrices [n, n] that fitting decomposes, whatever the number of rows."""
        return []

    def decompose(self, matrix: NDArray[np.float64]) -> None:
        """What is done to such a matrix, for a plan to time."""

    def objective_gradient_norm(self, curvature: Curvature) -> float:
        """|grad R(theta)|, from a factor that holds the data term's gradient and the parameters."""
        fitted = curvature.factor
        return float(np.linalg.norm(fitted["gradient"] + (self.l2 or 0.0) * fitted["theta"]))

    def precondition(self, q: Columns, curvature: Curvature) -> tuple[Columns, Facts]:
        """Columns u = P q, and what is worth saying of P; ``curvature.factor`` is what ``fit`` returned.

        ``curvature.further`` are the other factors of ``factors_at``.
        """
        raise NotImplementedError

    def form(self, curvature: Curvature) -> tuple[OfBlocks, Facts]:
        """What maps the blocks of b rows to g_i^T P g_i, float64 [b], and what is worth saying of P."""
        raise NotImplementedError


@dataclass(frozen=True)
class Streamed(Preconditioned):
    """A method whose products or gradients over the fit rows are in the precision that it is asked for."""

    precision: str = setting(
        "auto", "of products and gradients: fp32, fp64, or auto: fp64 up to 100,000 selected parameters, else fp32"
    )

    def single(self, parameters: int) -> bool:
        """Whether they are in float32."""
        return self.precision == "fp32" or (self.precision == "auto" and parameters > DOUBLE_UP_TO)

    def precision_at(self, parameters: int) -> str:
        """The precision, with ``auto`` decided."""
        return "fp32" if self.single(parameters) else "fp64"

    def seen(self, curvature: Curvature, most: int | None = None) -> Curvature:
        """The curvature on at most so many rows, chosen by their keys, in that precision."""
        from influence_cli.curvature.minibatches import sample_by_keys

        return curvature.over(sample_by_keys(curvature.rows, most), self.precision_at(curvature.size))
