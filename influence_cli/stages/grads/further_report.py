"""What a run says of its further training: how far members drift, and how far chains of draws can be trusted."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_cli.maths.draws import effective_draws, split_rhat
from influence_cli.methods.stored import Member
from influence_cli.stages.run import names
from influence_cli.stages.run.quantities import chain_parts
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

RHAT, DRAWS, NOISE = 1.1, 100.0, 0.1  # R-hat and noise above, and effective draws below, which chains are doubted
TIMES_LOSS, FAR = 2.0, 0.1  # of the checkpoint's loss and of its length: members beyond both have diverged
Facts = dict[str, Any]


def further_report(run: Run, session: Session) -> dict[str, Facts]:
    """By method that goes on training: its members' drift, or what its chains draw from and their diagnostics."""
    found: dict[str, Facts] = {}
    for name, method in run.methods.items():
        if name in run.samplers:
            of = {o: _chains(run, session, name, o) for o in run.objectives}
            found[name] = {**law_facts(run, session, name), "objectives": of}
        elif method.trains:
            found[name] = _drift(run, session, [m for m in run.members_of[name] if m.walk is not None])
    return found


def law_facts(run: Run, session: Session, name: str) -> Facts:
    """What a sampler draws from, and by which steps."""
    part = chain_parts(run, name, next(iter(run.objectives)))[0]
    meta = session.store.chains.meta(part.name)
    return {} if meta is None else {k: v for k, v in meta["facts"].items() if k not in ("diverged", "draws")}


def _drift(run: Run, session: Session, members: list[Member]) -> Facts:
    """How far members are from the checkpoint, and their training losses."""
    metas: list[Facts] = []
    for member in members:
        assert member.walk is not None
        metas.append(session.store.weights.meta(names.walked(run, member.checkpoint.digest, member.walk)) or {})
    if not all(metas):
        return {}
    walk = members[0].walk
    assert walk is not None
    far = [meta["distance"] / meta["size"] if meta["size"] > 0 else None for meta in metas]
    return {
        "members": len(members),
        "steps": metas[0]["steps"],
        "rate": walk.rate,
        "l2": walk.l2,
        "momentum": walk.momentum,
        "relative_distance": far,
        "train_loss": [meta["train_loss"] for meta in metas],
        "start_loss": metas[0].get("start_loss"),
    }


def _chains(run: Run, session: Session, name: str, objective: str) -> Facts:
    """Diagnostics of the chains of one objective; those that left the finite numbers are counted and left out."""
    phis, watched, losses, dropped, start, nbeta = [], [], [], 0, 0.0, 0.0
    for part in chain_parts(run, name, objective):
        meta, kept = session.store.chains.meta(part.name), session.store.chains.read(part.name)
        if meta is None or kept is None:
            return {}
        facts = meta["facts"]
        start, nbeta = facts["start_loss"], facts["nbeta"]
        if facts["diverged"] is not None:
            dropped += 1
            continue
        phis.append(kept["phi"])
        watched.append(kept["watched"].T)
        losses.append(kept["batch_loss"])
    if not phis:
        return {"chains": 0, "diverged": dropped}
    phi, rows = np.stack(phis), np.stack(watched)  # [C, T] and [C, 10, T]
    by_row = [rows[:, k] for k in range(rows.shape[1])]
    mean_loss = np.stack(losses).mean(axis=1)
    return {
        "chains": len(phi),
        "diverged": dropped,
        "draws": phi.size,
        "rhat": split_rhat(phi),
        "worst_rhat": max(split_rhat(x) for x in [phi, *by_row]),
        "effective_draws": effective_draws(phi),
        "least_effective_draws": min(effective_draws(x) for x in [phi, *by_row]),
        "learning_coefficient": nbeta * (float(mean_loss.mean()) - start),
        "learning_coefficient_by_chain": [nbeta * (float(x) - start) for x in mean_loss],
    }


def note_further(run: Run, session: Session) -> None:
    """Say of every method that goes on training what it found, and warn of what should keep one from trusting it."""
    for name, facts in further_report(run, session).items():
        if not facts:
            continue
        if name not in run.samplers:
            session.listener.note(f"{name}: {_drift_sentence(facts)}")
            lost = _diverging(facts)
            if lost:
                session.listener.warn(
                    f"{name}: {lost} of {facts['members']} members have left the checkpoint for a training loss of up "
                    f"to {max(facts['train_loss']):.3g}, where its own is {facts['start_loss']:.3g}: scores are of "
                    f"other models; pass --set {name}.rate={facts['rate'] / 10:.2g}"
                )
            continue
        session.listener.note(f"{name}: {_law_sentence(facts)}")
        for text in _law_warnings(facts, run.samplers[name].steps(facts["burn_in"])):
            session.listener.warn(f"{name}: {text}")
        for objective, of in facts["objectives"].items():
            if of.get("chains"):
                session.listener.note(f"{name}, {objective}: {_chains_sentence(of)}")
            for text in _chain_warnings(of):
                session.listener.warn(f"{name}, {objective}: {text}")


def _drift_sentence(f: Facts) -> str:
    far = [x for x in f["relative_distance"] if x is not None]
    moved = f"{far[0]:.2%} to {far[-1]:.2%}" if far else "an unknown share"
    losses = f["train_loss"]
    return (
        f"{f['members']} members, {f['steps']:,} steps apart at rates up to {f['rate']:.3g}; the first and the last "
        f"are {moved} of the parameters' length away from the checkpoint, training loss {losses[0]:.4g} and "
        f"{losses[-1]:.4g}"
    )


def _diverging(f: Facts) -> int:
    """How many members are far away, at more than twice the checkpoint's loss; 0 where that was not noted."""
    if f["start_loss"] is None:
        return 0
    pairs = zip(f["train_loss"], f["relative_distance"], strict=True)
    return sum(loss > TIMES_LOSS * f["start_loss"] and (far is None or far > FAR) for loss, far in pairs)


def _law_sentence(f: Facts) -> str:
    rule = " by the default rule" if f["damping_by_rule"] else ""
    top = "" if f["largest_eigenvalue"] is None else f", largest eigenvalue {f['largest_eigenvalue']:.3g}"
    times = "" if f["step_times_largest"] is None else f" ({f['step_times_largest']:.2g} over the largest curvature)"
    return (
        f"{f['sampler']} of {f['parameters']:,} parameters over {f['fit_rows']:,} fit rows, nbeta {f['nbeta']:.4g}, "
        f"gamma {f['gamma']:.3g}, damping {f['damping']:.3g}{rule}{top}; step {f['step']:.3g}{times}, batches of "
        f"{f['batch']} (noise {f['noise_share']:.2g} of the law's spread), {f['burn_in']:,} steps of burn-in"
    )


def _chains_sentence(f: Facts) -> str:
    return (
        f"{f['chains']} chains, {f['draws']:,} draws; R-hat {f['rhat']:.3f} of Phi and up to {f['worst_rhat']:.3f} of "
        f"row losses; {f['effective_draws']:,.0f} effective draws of Phi, at least "
        f"{f['least_effective_draws']:,.0f} of row losses; local learning coefficient {f['learning_coefficient']:.3g}"
    )


def _law_warnings(f: Facts, steps: int) -> list[str]:
    said: list[str] = []
    if f["noise_share"] > NOISE:
        said.append(
            f"the noise of minibatches is {f['noise_share']:.2g} of the law's own spread, above {NOISE:g}: scores are "
            "too large in noisy directions; give more rows a step (batch) or a smaller step"
        )
    if f["step_times_largest"] is None:
        said.append("whether the step is stable is not known of a loss of the task's own")
    implied = 1.0 / (f["step"] * steps * f["nbeta"]) * (0.1 if f["sampler"] == "rmsprop" else 1.0)
    if f["burn_in_capped"]:
        said.append(
            f"the burn-in is cut to {f['burn_in']:,} steps: chains of {steps:,} steps are as if damped by "
            f"{implied:.2g} more, beside damping {f['damping']:.2g}; a larger damping or step would mix"
        )
    return said


def _chain_warnings(f: Facts) -> list[str]:
    said: list[str] = []
    if f.get("diverged"):
        said.append(f"{f['diverged']} chains have left the finite numbers and are in no score: lower the step")
    if not f.get("chains"):
        return said
    if not f["worst_rhat"] < RHAT:
        said.append(f"R-hat is {f['worst_rhat']:.3f}, above {RHAT:g}: the chains disagree; draw more, or thin them")
    if not f["least_effective_draws"] >= DRAWS:
        said.append(f"only {f['least_effective_draws']:,.0f} effective draws, below {DRAWS:g}: scores are noise")
    if f["learning_coefficient"] < 0:
        said.append(
            f"the local learning coefficient is negative ({f['learning_coefficient']:.3g}): chains find lower losses "
            "than the checkpoint's, which is no minimum; take a larger damping, or train it longer"
        )
    return said
