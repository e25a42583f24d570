"""What a sampler draws from, and by which steps: chosen from the curvature and the noise of minibatches, and stored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.errors import UsageError
from influence_cli.maths.langevin import STABLE, Law, burn_in_of, largest_step, noise_share
from influence_cli.stages.run import names
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature
    from influence_cli.curvature.further import FitLoss

SHARE = 0.1  # eps times the largest eigenvalue, and rho, at most, where the step is ours to choose
DAMPING = 0.01  # of the mean eigenvalue
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
        facts = _chosen(run, session, name, fit)
        assert run.fit is not None
        about = {"about": f"what {name} draws from", "fit": run.fit.fingerprint, "burn_in": facts["burn_in"]}
        stored = session.store.chains.write(called, {"step": np.array([facts["step"]])}, {**about, "facts": facts})
    facts = dict(stored["facts"])
    law = Law(facts["nbeta"], facts["gamma"], facts["step"], facts["sampler"] == "rmsprop", facts["burn_in"])
    _check(facts, method.force, name)
    return law, facts


def _chosen(run: Run, session: Session, name: str, fit: FitLoss) -> dict[str, Any]:
    method, curvature = run.samplers[name], fit.curvature
    n = curvature.weight
    nbeta = (n / math.log(n) if n > math.e else n) if method.nbeta is None else method.nbeta
    mean, largest = None, None
    if run.row_loss.curved:
        with session.listener.progress(f"{name}: size of the curvature", ITERATIONS + 1, "passes") as progress:
            mean = _mean_eigenvalue(curvature)
            progress.advance(1)
            largest = _largest_eigenvalue(curvature)
            progress.advance(ITERATIONS)
    damping = method.damping
    if damping is None:
        assert mean is not None
        damping = DAMPING * mean
    gamma, batch = damping * nbeta, method.batch_of(fit.rows)
    top = None if largest is None else nbeta * (largest + method.l2) + gamma
    noise = fit.largest_noise(NOISE_ROWS) if batch < fit.rows else 0.0
    scale = Law(nbeta, gamma, 1.0, method.sampler == "rmsprop").largest_scale
    if method.step is None:
        assert top is not None
        step = largest_step(top, nbeta, noise, batch, fit.rows, SHARE) / scale
    else:
        step = method.step
    burn_in, wanted = burn_in_of(step * scale, gamma) if method.burn_in is None else (method.burn_in, None)
    return {
        "sampler": method.sampler, "nbeta": nbeta, "damping": damping, "damping_by_rule": method.damping is None,
        "gamma": gamma, "l2": method.l2, "step": step, "step_by_rule": method.step is None,
        "mean_eigenvalue": mean, "largest_eigenvalue": largest,
        "step_times_largest": None if top is None else step * scale * top,
        "noise_share": noise_share(step * scale, nbeta, noise, batch, fit.rows),
        "batch": batch, "burn_in": burn_in, "burn_in_wanted": None if wanted in (None, math.inf) else wanted,
        "burn_in_capped": wanted is not None and wanted > burn_in, "thin": method.thin,
        "fit_rows": fit.rows, "fit_weight": n, "parameters": curvature.size, "start_loss": fit.at(fit.start())[0],
    }  # fmt: skip


def _in_precision(curvature: Curvature) -> Curvature:
    return curvature.over(curvature.rows, "fp64" if curvature.size <= DOUBLE_UP_TO else "fp32")


def _mean_eigenvalue(curvature: Curvature) -> float:
    """Tr G / d over the fit rows."""
    d = curvature.size
    exact = d <= EXACT_TRACE
    probes = np.eye(d) if exact else np.random.default_rng(0).choice([-1.0, 1.0], (d, PROBES))
    forms = _in_precision(curvature).quadratic(probes)[0]
    return float(forms.sum() if exact else forms.mean()) / d


def _largest_eigenvalue(curvature: Curvature) -> float:
    """lambda_max of G over the fit rows, by power iterations: a little below it."""
    at, v, largest = _in_precision(curvature), np.random.default_rng(1).standard_normal((curvature.size, 1)), 0.0
    for _ in range(ITERATIONS):
        v = at.product("ggn", v / max(float(np.linalg.norm(v)), np.finfo(np.float64).tiny))
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
        raise UsageError(
            f"{name}: the noise of minibatches of {facts['batch']} rows is {rho:.3g} of the law's own spread",
            fix=f"--set {name}.batch with more rows, --set {name}.step with a smaller step, or --set {name}.force=true",
        )
