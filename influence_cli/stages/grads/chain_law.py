"""What a sampler draws from, and by which steps: chosen from the curvature and the noise of minibatches, and stored.

With lambda the largest eigenvalue of the curvature H of the mean loss, what is not given is

    damping    delta = 0.05 lambda; 0.15 lambda of a language model, of which a step takes few rows: what chains that
               mix cost goes with 1 / delta^2 there, since more nbeta is needed for less delta
    nbeta      n / ln n; less where minibatches are noisy, more where tr H / (2 delta nbeta), by which the loss of draws
               rises at most, would be above 0.05 of the loss at the checkpoint
    step       eps = 0.5 / (nbeta (lambda + l2) + gamma), gamma = delta nbeta; less where rho would be above 0.1

Then eps gamma is 0.024 (0.065), so that a chain forgets where it was within 2 / (eps gamma) = 84 (31) steps, also along
directions without any curvature, and the covariance along the steepest one is 14 % too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.curvature.minibatches import sample_by_keys
from influence_cli.errors import UsageError
from influence_cli.maths.draws import rows_for
from influence_cli.maths.langevin import STABLE, Law, burn_in_of, largest_step, nbeta_near, noise_share
from influence_cli.stages.run import names
from influence_cli.stages.run.further_plan import TEXTS_SEEN
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.further import FitLoss
    from influence_cli.events import Progress
    from influence_cli.methods.bif import BIF

SHARE, NOISE = 0.5, 0.1  # eps times the largest eigenvalue, and rho, at most, where the step is ours to choose
DAMPING, OF_TEXTS = 0.05, 0.15  # of the largest eigenvalue, and where steps are of few rows of many tokens
RISE = 0.05  # of the loss at the checkpoint: by how much draws may raise it, where nbeta is ours to choose
ITERATIONS = 20  # of power iterations
EXACT_TRACE, PROBES = 128, 8  # parameters up to which the trace is exact, and random signs beyond
NOISE_ROWS = 1000  # most fit rows on which the noise of minibatches is measured
DOUBLE_UP_TO = 100_000  # parameters up to which the curvature is in float64


def law_of(run: Run, session: Session, name: str, member: Member, fit: FitLoss) -> tuple[Law, dict[str, Any]]:
    """The law and what is worth saying of it, from the store or chosen now.

    Raises:
        UsageError: the step is unstable, or the noise of its minibatches as large as the law's own spread.
    """
    method, called = run.samplers[name], names.law(run, name, member)
    stored = session.store.chains.meta(called)
    if stored is None:
        with session.store.claims.wait(called):  # another process may be choosing it
            stored = session.store.chains.meta(called) or _stored_choice(run, session, name, called, fit)
    facts = dict(stored["facts"])
    law = Law(facts["nbeta"], facts["gamma"], facts["step"], facts["sampler"] == "rmsprop", facts["burn_in"])
    _check(facts, method.force, name)
    return law, facts


def _stored_choice(run: Run, session: Session, name: str, called: str, fit: FitLoss) -> dict[str, Any]:
    """What is stored of the law, once it is chosen and written."""
    facts = _chosen(run, session, name, fit)
    assert run.fit is not None
    about = {"about": f"what {name} draws from", "fit": run.fit.fingerprint, "burn_in": facts["burn_in"]}
    return session.store.chains.write(called, {"step": np.array([facts["step"]])}, {**about, "facts": facts})


def _chosen(run: Run, session: Session, name: str, fit: FitLoss) -> dict[str, Any]:
    method, curvature, texts = run.samplers[name], fit.curvature, run.row_loss.draws
    n, batch, start_loss = curvature.weight, method.batch_of(fit.rows, texts), fit.at(fit.start())[0]
    size = _Size(None, None)
    if run.row_loss.curved or texts:
        with session.listener.progress(f"{name}: size of the curvature", ITERATIONS + 1, "passes") as progress:
            size = _measured(curvature, texts, progress)
    noise = fit.largest_noise(TEXTS_SEEN if texts else NOISE_ROWS) if batch < fit.rows else 0.0
    damping = method.damping
    if damping is None:
        assert size.largest is not None
        damping = (OF_TEXTS if texts else DAMPING) * size.largest
    nbeta, rise = _nbeta(method, size, damping, noise, batch, fit, start_loss)
    gamma = damping * nbeta
    top = None if size.largest is None else nbeta * (size.largest + method.l2) + gamma
    scale = Law(nbeta, gamma, 1.0, method.sampler == "rmsprop").largest_scale
    if method.step is None:
        assert top is not None
        step = largest_step(top, nbeta, noise, batch, fit.rows, SHARE, NOISE) / scale
    else:
        step = method.step
    burn_in, wanted = burn_in_of(step * scale, gamma) if method.burn_in is None else (method.burn_in, None)
    return {
        "sampler": method.sampler, "nbeta": nbeta, "nbeta_by_rule": method.nbeta is None, "damping": damping,
        "damping_by_rule": method.damping is None, "gamma": gamma, "l2": method.l2, "step": step,
        "step_by_rule": method.step is None, "mean_eigenvalue": size.mean, "largest_eigenvalue": size.largest,
        "step_times_largest": None if top is None else step * scale * top, "most_rise": rise,
        "noise_share": noise_share(step * scale, nbeta, noise, batch, fit.rows),
        "batch": batch, "burn_in": burn_in, "burn_in_wanted": None if wanted in (None, math.inf) else wanted,
        "burn_in_capped": wanted is not None and wanted > burn_in, "thin": method.thin,
        "fit_rows": fit.rows, "fit_weight": n, "parameters": curvature.size, "start_loss": start_loss,
    }  # fmt: skip


@dataclass(frozen=True)
class _Size:
    """The mean and the largest eigenvalue of the curvature of the mean loss; None where it is not known."""

    mean: float | None
    largest: float | None


def _nbeta(
    method: BIF, size: _Size, damping: float, noise: float, batch: int, fit: FitLoss, start_loss: float
) -> tuple[float, float | None]:
    """nbeta, and by how much draws raise the training loss at most, where it is known."""
    n, spread = fit.curvature.weight, 0.0
    if size.mean is not None and damping > 0:
        spread = max(0.0, size.mean * fit.curvature.size / damping)
    if method.nbeta is not None:
        return method.nbeta, spread / (2.0 * method.nbeta) if spread else None
    most = math.inf  # at which minibatches need no smaller step
    if noise > 0 and size.largest is not None:
        step = SHARE / (size.largest + method.l2 + damping)  # times nbeta
        most = NOISE / noise_share(step, 1.0, noise, batch, fit.rows)
    nbeta, rise = nbeta_near(n, spread, start_loss, RISE, most)
    return nbeta, rise if spread else None


def _measured(curvature: Curvature, texts: bool, progress: Progress) -> _Size:
    """Of the Gauss-Newton matrix over all fit rows; of a language model, the Hessian over some texts."""
    some = sample_by_keys(curvature.rows, TEXTS_SEEN if texts else None)
    at = curvature.over(some, "fp64" if curvature.size <= DOUBLE_UP_TO and not texts else "fp32")
    mean = _mean_eigenvalue(at, texts)
    progress.advance(1)
    largest = _largest_eigenvalue(at, texts)
    progress.advance(ITERATIONS)
    return _Size(mean, largest)


def _mean_eigenvalue(at: Curvature, texts: bool) -> float:
    """The trace over d: exact of few parameters, else by random signs; it may be negative of a Hessian."""
    d = at.size
    exact = d <= EXACT_TRACE
    probes = np.eye(d) if exact else np.random.default_rng(0).choice([-1.0, 1.0], (d, PROBES))
    forms = (probes * at.product("hessian", probes)).sum(0) if texts else at.quadratic(probes)[0]
    return float(forms.sum() if exact else forms.mean()) / d


def _largest_eigenvalue(at: Curvature, texts: bool) -> float:
    """lambda_max over the fit rows, by power iterations: a little below it."""
    v, largest = np.random.default_rng(1).standard_normal((at.size, 1)), 0.0
    for _ in range(ITERATIONS):
        v = at.product("hessian" if texts else "ggn", v / max(float(np.linalg.norm(v)), np.finfo(np.float64).tiny))
        largest = float(np.linalg.norm(v))
    return largest


def _check(facts: dict[str, Any], force: bool, name: str) -> None:
    """Refuse steps of which the chain would diverge, or draw mostly the noise of its minibatches."""
    times, rho = facts["step_times_largest"], facts["noise_share"]
    if times is not None and times >= STABLE:
        smaller = facts["step"] * SHARE / times
        raise UsageError(
            f"{name}: the step {facts['step']:.3g} is unstable: times the largest eigenvalue of the law's precision "
            f"it is {times:.3g}, and chains diverge from {STABLE:g} on",
            fix=f"--set {name}.step={smaller:.2g}, or leave it out",
        )
    if rho >= 1.0 and not force:
        smaller, more = facts["step"] * NOISE / rho, rows_for(rho, facts["batch"], facts["fit_rows"], NOISE)
        raise UsageError(
            f"{name}: the noise of minibatches of {facts['batch']} rows is {rho:.3g} of the law's own spread",
            fix=f"--set {name}.step={smaller:.2g}, --set {name}.batch={more}, or --set {name}.force=true",
        )
