"""Local Bayesian influence: how a row's loss and Phi vary together over draws of the parameters near the checkpoint.

    p(w) ~ exp(-nbeta L(w) - (gamma/2) |w - theta|^2),     L the mean training loss, without its l2
    s_i = nbeta Cov(l_i(w), Phi(w))       or, with norm=correlation,  Cov / sqrt(Var l_i  Var Phi), in [-1, 1]

Kreer, Wu, Adam, Furman, Hoogland, "Bayesian influence functions for Hessian-free data attribution", 2025, whose
function, d E[Phi] / d(weight of i) = -Cov, has the other sign.  On a quadratic with much data s_i is the damped
influence function q^T (H + delta)^-1 g_i with delta = gamma / nbeta, and it tends to that of any loss as nbeta grows.

Draws are those of Langevin dynamics (``maths.langevin``) in C chains from the checkpoint.  Covariances are centred
within each chain and pooled.  Chains begin at the mode: a short one is under-dispersed, as if damped by 1 / (eps t).
What is not given follows from the model (``stages.grads.chain_law``): a step that is stable and a damping at which a
chain forgets where it was within a hundred steps, both by the largest eigenvalue of the curvature, and an nbeta at
which draws stay near the checkpoint.
Covariance is largest where losses are: rows with a large loss lead, and those of nearly no loss have nearly no score.
What tells whether to believe it (R-hat, effective draws, the local learning coefficient, the share of minibatch noise)
is said with every score and kept in the table.  Sampling needs a step size, and that the largest eigenvalue of the
curvature: it is not free of second derivatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from influence_cli.errors import ModelError, UsageError
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Floats, Kind, Method, Scores
from influence_cli.methods.stored import Chain, Stored
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.model.losses import RowLoss

SAMPLERS, NORMS = ("sgld", "rmsprop"), ("covariance", "correlation")
FULL_UP_TO, BATCH, TEXTS = 1000, 256, 16  # fit rows up to which a step takes all, rows of a step beyond, and texts
LEAST_DRAWS = 4


@dataclass(frozen=True)
class BIF(Method):
    """C chains, which are computed and kept one by one; chain k is the same whatever their number."""

    needs: ClassVar[str] = "traces"
    kind: ClassVar[Kind] = "signed"
    effect: ClassVar[bool] = True  # of the covariance
    measures: ClassVar[bool] = True
    trains: ClassVar[bool] = True

    sampler: str = setting("sgld", "sgld, or rmsprop: steps preconditioned by the size of each gradient entry")
    nbeta: float | None = setting(
        None, "inverse temperature times rows (default: n / ln n; more where draws would leave the checkpoint)"
    )
    damping: float | None = setting(
        None,
        "delta = gamma / nbeta (default: 0.05 of the curvature's largest eigenvalue; 0.15 for texts)",
        unit="mean loss",
    )
    step: float | None = setting(None, "step size eps (default: 0.5 over the largest eigenvalue, less for minibatches)")
    chains: int = setting(4, "number of chains")
    draws: int = setting(500, "draws of each chain, after the burn-in")
    burn_in: int | None = setting(None, "steps before the first draw (default: 10 / (eps gamma), 200 to 2000)")
    thin: int = setting(8, "steps from one draw to the next")
    batch: int | None = setting(
        None, "rows of a step (default: all up to 1,000 fit rows, else 256; 16 texts of a language model)", unit="rows"
    )
    l2: float = setting(0.0, "l2 that is added to L", unit="mean loss")
    norm: str = setting("covariance", "covariance, or correlation: rows of small losses count as much as others")
    seed: int | None = setting(None, "seed of the draws (default: --seed)")
    only: int | None = setting(None, "draw this chain alone, from 1 on: for several processes on one store", limit=True)
    force: bool = setting(False, "draw although the noise of minibatches is as large as the law's own spread")

    def __post_init__(self) -> None:
        least = {"chains": 1, "draws": LEAST_DRAWS, "thin": 1, "batch": 1, "burn_in": 0, "only": 1, "seed": 0}
        check_options(self, {"sampler": SAMPLERS, "norm": NORMS}, least, ("nbeta", "step"))
        if self.only is not None and self.only > self.chains:
            raise ValueError(f"only={self.only} is above the number of chains, {self.chains}")

    @property
    def numbers(self) -> range:
        """The chains that are drawn, from 0 on."""
        return range(self.chains) if self.only is None else range(self.only - 1, self.only)

    def check_loss(self, loss: RowLoss, precision: str) -> None:
        """Refuse a loss without curvature, whose step and damping nothing can tell (UsageError)."""
        if not loss.curved and not loss.draws and (self.damping is None or self.step is None):
            what = "bif takes damping and step from the curvature, and of a task with a loss of its own none is known"
            raise UsageError(what, fix="--set bif.damping=X --set bif.step=X, or --method ip")

    def sampling(self, seed: int) -> dict[str, Any]:
        """What of the options changes a chain, for its name."""
        given = {k: v for k, v in asdict(self).items() if k not in ("chains", "only", "norm", "force")}
        by_rule = None in (self.nbeta, self.damping, self.step, self.batch)
        return {"revision": 2 if by_rule else 1, **given, "seed": seed if self.seed is None else self.seed}

    def batch_of(self, rows: int, texts: bool) -> int:
        """Rows of a step, of so many fit rows, which are ``texts`` where a language model learns them."""
        return min(rows, self.batch or (TEXTS if texts else rows if rows <= FULL_UP_TO else BATCH))

    def steps(self, burn_in: int | None = None) -> int:
        """Steps of a chain: of as long a burn-in as there may be, where it is not known."""
        own = self.burn_in if burn_in is None else burn_in
        return (2000 if own is None else own) + self.draws * self.thin

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """For each objective the covariance times nbeta, or the correlation, pooled over chains; float64.

        Raises:
            ModelError: every chain has left the finite numbers.
        """
        found: list[Scores] = []
        for objective in stored.objectives:
            chains = [c for c in stored.chains(objective) if c.facts["diverged"] is None]
            if not chains:
                raise ModelError("bif: no chain has stayed finite", fix=smaller_step(stored.chains(objective)[0].facts))
            own = np.stack([self._of([chain]) for chain in chains])
            plain = self.norm == "covariance"
            found.append(Scores(self._of(chains), objective, own, (1.0,) * len(own), effect=plain))
        return found

    def _of(self, chains: list[Chain]) -> Floats:
        """Pooled scores [n] of some chains, each centred at its own means."""
        products = sum((c.products for c in chains), np.zeros(1))
        if self.norm == "covariance":
            return chains[0].facts["nbeta"] * products / sum(len(c.phi) - 1 for c in chains)
        squares = sum((c.squares for c in chains), np.zeros(1))
        of_phi = sum(float(((c.phi - c.phi.mean()) ** 2).sum()) for c in chains)
        with np.errstate(invalid="ignore", divide="ignore"):
            found = products / np.sqrt(squares * of_phi)
        return np.where(squares * of_phi == 0.0, 0.0 * products, found)


def smaller_step(facts: Mapping[str, Any], name: str = "bif") -> str:
    """What to say of chains that diverge: a tenth of the step that is in their facts."""
    return f"--set {name}.step={facts['step'] / 10:.2g} (it was {facts['step']:.3g})"
