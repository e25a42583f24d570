"""What a run says of its further training: how far members drift, and how far chains of draws can be trusted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from influence_cli.maths.draws import effective_draws, rows_for, split_rhat
from influence_cli.methods.bif import smaller_step
from influence_cli.methods.stored import Member
from influence_cli.stages.run import names
from influence_cli.stages.run.quantities import chain_parts
from influence_cli.stages.run.run import Run
from influence_cli.stages.run.session import Session

RHAT, DRAWS, NOISE = 1.1, 100.0, 0.1  # R-hat and noise above, and effective draws below, which chains are doubted
SPARE = 1.25  # by which longer chains are longer than they need be, since effective draws of few are a rough estimate
AWAY, NEAR = 0.5, 0.1  # of the checkpoint's loss: a rise from which draws are far from it, and one that is near
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
        "mean_loss": float(mean_loss.mean()),
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
        for text in _law_warnings(facts, run.samplers[name].steps(facts["burn_in"]), name):
            session.listener.warn(f"{name}: {text}")
        for objective, of in facts["objectives"].items():
            if of.get("chains"):
                session.listener.note(f"{name}, {objective}: {_chains_sentence(of)}")
            for text in _chain_warnings(of, facts, name):
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
    by = {key: " by the default rule" if f.get(f"{key}_by_rule") else "" for key in ("nbeta", "damping", "step")}
    top = "" if f["largest_eigenvalue"] is None else f", largest eigenvalue {f['largest_eigenvalue']:.3g}"
    times = "" if f["step_times_largest"] is None else f" ({f['step_times_largest']:.2g} over the largest curvature)"
    return (
        f"{f['sampler']} of {f['parameters']:,} parameters over {f['fit_rows']:,} fit rows, nbeta "
        f"{f['nbeta']:.4g}{by['nbeta']}, gamma {f['gamma']:.3g}, damping {f['damping']:.3g}{by['damping']}{top}; step "
        f"{f['step']:.3g}{by['step']}{times}, batches of {f['batch']} (noise {f['noise_share']:.2g} of the law's "
        f"spread), {f['burn_in']:,} steps of burn-in, a draw every {f['thin']}"
    )


def _chains_sentence(f: Facts) -> str:
    return (
        f"{f['chains']} chains, {f['draws']:,} draws; R-hat {f['rhat']:.3f} of Phi and up to {f['worst_rhat']:.3f} of "
        f"row losses; {f['effective_draws']:,.0f} effective draws of Phi, at least "
        f"{f['least_effective_draws']:,.0f} of row losses; training loss {f['mean_loss']:.4g} over the draws, local "
        f"learning coefficient {f['learning_coefficient']:.3g}"
    )


def _law_warnings(f: Facts, steps: int, name: str) -> list[str]:
    said: list[str] = []
    if f["noise_share"] > NOISE:
        more = rows_for(f["noise_share"], f["batch"], f["fit_rows"], NOISE)
        said.append(
            f"the noise of minibatches is {f['noise_share']:.2g} of the law's own spread, above {NOISE:g}: scores are "
            f"too large in noisy directions; --set {name}.batch={more}, or "
            f"--set {name}.step={f['step'] * NOISE / f['noise_share']:.2g}"
        )
    if f["step_times_largest"] is None:
        said.append("whether the step is stable is not known of a loss of the task's own")
    scale = 0.1 if f["sampler"] == "rmsprop" else 1.0
    implied = scale / (f["step"] * steps * f["nbeta"])
    if f["burn_in_capped"]:
        mixing = scale * 10.0 / (f["step"] * f["nbeta"] * f["burn_in"])
        said.append(
            f"the burn-in is cut to {f['burn_in']:,} steps: chains of {steps:,} steps are as if damped by "
            f"{implied:.2g} more, beside damping {f['damping']:.2g}; --set {name}.damping={mixing:.2g} would mix in "
            "them, or leave damping and step out"
        )
    return said


def doubts_of(origin: Facts, column: str | None) -> list[str]:
    """What keeps one from trusting a score column of draws, of a table that says where it comes from; else nothing.

    ``column`` may be ``score``.
    """
    name = origin.get("score_is") if column == "score" else column
    return [
        f"{method}, {objective}: {text}"
        for method, law in origin.get("further", {}).items()
        for objective, of in law.get("objectives", {}).items()
        if name in (f"score_{method}_{objective}", f"score_{objective}")  # the only method is not named
        for text in _doubts(of, law, method)
    ]


def _chain_warnings(f: Facts, law: Facts, name: str) -> list[str]:
    """What to say of chains that were lost, and what keeps one from trusting the others."""
    if not f.get("diverged"):
        return _doubts(f, law, name)
    what = f"{f['diverged']} chains have left the finite numbers and are in no score"
    return [f"{what}: {smaller_step(law, name)}", *_doubts(f, law, name)]


def _longer(f: Facts, law: Facts, name: str) -> str:
    """The options of chains that are as many times longer as effective draws are too few, or R-hat is too large.

    Effective draws grow with the length of a chain, and R^2 - 1 falls with it.  Draws further apart are no more of
    them, so that many are needed first.
    """
    rhat = f["worst_rhat"]
    by_rhat = (rhat**2 - 1.0) / (RHAT**2 - 1.0) if rhat is not None and math.isfinite(rhat) else 1.0
    times = max(1.5, SPARE * max(DRAWS / max(f["least_effective_draws"], 1.0), by_rhat))
    each = f["draws"] / f["chains"]
    draws = f"--set {name}.draws={math.ceil(each * times)}"
    return draws if f["draws"] < 2 * DRAWS else f"--set {name}.thin={math.ceil(law['thin'] * times)}, or {draws}"


def _held(f: Facts, law: Facts) -> float:
    """A damping, of four times what it is or more, at which draws gain about one unit of nbeta L.

    What they gain falls with 1 / damping where that is large.
    """
    return law["damping"] * max(4.0, -f["learning_coefficient"])


def _doubts(f: Facts, law: Facts, name: str) -> list[str]:
    """What keeps one from trusting chains, each with the option that would change it."""
    said: list[str] = []
    if not f.get("chains"):
        return said
    enough, longer = f["least_effective_draws"] >= DRAWS, _longer(f, law, name)
    if f["worst_rhat"] is None or not f["worst_rhat"] < RHAT:
        said.append(f"R-hat is {f['worst_rhat'] or math.nan:.3f}, above {RHAT:g}: the chains disagree; {longer}")
    if not enough:
        said.append(
            f"only {f['least_effective_draws']:,.0f} effective draws, below {DRAWS:g}: scores are mostly noise; "
            f"{longer}"
        )
    if f["learning_coefficient"] < 0:
        said.append(
            f"the local learning coefficient is negative ({f['learning_coefficient']:.3g}): chains find lower losses "
            f"than the checkpoint's, which is no minimum; train it longer. More damping holds draws nearer to it, and "
            f"makes no minimum of it: a next try is --set {name}.damping={_held(f, law):.2g}"
        )
    elif f["mean_loss"] > (1.0 + AWAY) * law["start_loss"] > 0:
        near = f["learning_coefficient"] / (NEAR * law["start_loss"])
        said.append(
            f"draws are far from the checkpoint: their training loss is {f['mean_loss']:.3g}, its own "
            f"{law['start_loss']:.3g}; scores are of other models; --set {name}.nbeta={near:.2g}"
        )
    return said
