"""How far a run's direction and its model can be trusted: noise of q, agreement of two halves, accuracy, chance."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_cli.maths.noise import spearman
from influence_cli.stages.grads.bf16 import agreement
from influence_cli.stages.grads.group_parts import undecided, with_class_names
from influence_cli.stages.run import names
from influence_cli.stages.run.row_values import values_of
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store.shards import positions

NOISE_SNR, NOISE_RELIABILITY = 3.0, 0.5  # below either, a direction is called noise


def direction_noise(run: Run, session: Session) -> dict[str, dict[str, Any]]:
    """Per objective: Phi, target rows, signal-to-noise of q, and the split-half reliability of the scores.

    The reliability is the Spearman correlation, on up to 500 training rows, of the scores from two halves of the
    target rows, at the first member, by the first method that has directions (``score``'s own).  A tangent is linear
    in its direction, and u = P q in q, so the second half's is (t - w t1) / (1 - w), w the first half's share.
    """
    member = run.half_member()
    if member is None:
        return {}
    noise: dict[str, dict[str, Any]] = {}
    for objective in run.objectives:
        q = names.direction(run, member, objective)
        meta = session.store.directions.meta(q)
        assert meta is not None
        reliability = _split_half(run, session, member, objective, meta) if meta["halves"] else None
        noise[objective] = {
            "phi": meta["phi"],
            "accuracy": _target_accuracy(run, session, objective, meta),
            "target_rows": meta["m"],
            "snr": meta["snr"],
            "reliability": reliability,
            "direction": q,
            **({"method": run.half_method()} if len(run.methods) > 1 else {}),
            **({"parts": with_class_names(meta["parts"], run.classes)} if "parts" in meta else {}),
        }
        if run.spec.precision == "bf16":
            noise[objective]["bf16_agreement"] = agreement(run, session, objective)
    return noise


def _target_accuracy(run: Run, session: Session, objective: str, meta: dict[str, Any]) -> float | None:
    """Accuracy on the target rows at the checkpoint where a direction was measured there, else at the first member."""
    plain = run.plain_member()
    at_plain = (
        session.store.directions.meta(names.direction(run, plain, objective)) if plain in run.linear_members() else None
    )
    return (at_plain or meta)["accuracy"]


def _split_half(run: Run, session: Session, member: Member, objective: str, meta: dict[str, Any]) -> float | None:
    keys = run.half_sample()
    rows = positions(keys, run.train.payload_keys)
    labels = run.train.labels[rows]
    logits = session.outputs(run, member).read(keys)["logits"]
    method = run.half_method()
    assert method is not None
    whole = session.tangents(run, names.along(run, method, member, objective)).read(keys)["tangent"].astype(np.float64)
    even = (
        session.tangents(run, names.along(run, method, member, objective, half=True))
        .read(keys)["tangent"]
        .astype(np.float64)
    )
    share = meta.get("half_share", meta["m_half"] / meta["m"])
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are left out below
        odd = (whole - share * even) / (1.0 - share)
        of_halves = [run.row_loss.scores(logits, t, labels)[0] for t in (even, odd)]
    how, own = run.methods[method], None
    if method in run.values:
        own = values_of(run, session, method, member, run.train.row_keys[rows])
    length = meta["norm"] if how.of_unit_direction() else None
    a, b = (how.divided(scores, own, length) for scores in of_halves)
    usable = np.isfinite(a) & np.isfinite(b)
    return spearman(a[usable], b[usable])


def is_noise(entry: dict[str, Any]) -> bool:
    """Whether a direction is below the stated bounds, or the sign of a gap between groups is chance."""
    return _below_bounds(entry) or undecided(entry)


def _below_bounds(entry: dict[str, Any]) -> bool:
    """Whether signal-to-noise is below 3, or split-half reliability below 0.5."""
    snr, reliability = entry["snr"], entry["reliability"]
    return (snr is not None and snr < NOISE_SNR) or (reliability is not None and reliability < NOISE_RELIABILITY)


def noise_warnings(noise: dict[str, dict[str, Any]]) -> list[str]:
    """A line for every objective whose direction is noise, with what helps."""
    return [
        f"the direction of {name} is mostly sampling noise ({describe_noise(entry)}; bounds {NOISE_SNR:g} and "
        f"{NOISE_RELIABILITY:g}): use more target rows, another objective, or --method loss"
        for name, entry in noise.items()
        if _below_bounds(entry)
    ]


def describe_noise(entry: dict[str, Any]) -> str:
    """'signal-to-noise 12.3, split-half reliability 0.91', which names its method where there are several."""
    snr = "unknown" if entry["snr"] is None else f"{entry['snr']:.3g}"
    reliability = "unknown" if entry["reliability"] is None else f"{entry['reliability']:.2f}"
    whose = f" of {entry['method']}" if entry.get("method") else ""
    text = f"signal-to-noise {snr}, split-half reliability{whose} {reliability}"
    if "bf16_agreement" in entry:
        known = entry["bf16_agreement"]
        text += f", rank correlation with float32 {'unknown' if known is None else f'{known:.4f}'}"
    return f"{text}, D within its standard error" if undecided(entry) else text
