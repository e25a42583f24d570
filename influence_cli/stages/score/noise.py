"""How far a run's direction and its model can be trusted: noise of q, agreement of two halves, accuracy, chance."""

from __future__ import annotations

from typing import Any

import numpy as np

from influence_cli.maths.labels import of_label
from influence_cli.maths.noise import spearman
from influence_cli.stages.grads.bf16 import agreement
from influence_cli.stages.grads.group_parts import undecided
from influence_cli.stages.run.job import Job, Member
from influence_cli.stages.score.relative import divided
from influence_cli.store.shards import unique

NOISE_SNR, NOISE_RELIABILITY = 3.0, 0.5  # below either, a direction is called noise


def direction_noise(job: Job) -> dict[str, dict[str, Any]]:
    """Per objective: Phi, target rows, signal-to-noise of q, and the split-half reliability of the scores.

    The reliability is the Spearman correlation, on up to 500 training rows, of the scores from two halves of the
    target rows, at the first member, by the first method that has directions (``score``'s own).  A tangent is linear
    in its direction, and u = P q in q, so the second half's is (t - w t1) / (1 - w), w the first half's share.
    """
    member = job.half_member()
    if member is None:
        return {}
    noise: dict[str, dict[str, Any]] = {}
    for objective in job.objectives:
        q = job.direction(member, objective)
        meta = job.store.direction_meta(q)
        assert meta is not None
        reliability = _split_half(job, member, objective, meta) if meta["halves"] else None
        noise[objective] = {
            "phi": meta["phi"],
            "accuracy": _target_accuracy(job, objective, meta),
            "target_rows": meta["m"],
            "snr": meta["snr"],
            "reliability": reliability,
            "direction": q,
            **({"parts": meta["parts"]} if "parts" in meta else {}),
        }
        if job.spec.precision == "bf16":
            noise[objective]["bf16_agreement"] = agreement(job, objective)
    return noise


def _target_accuracy(job: Job, objective: str, meta: dict[str, Any]) -> float:
    """Accuracy on the target rows at the checkpoint where a direction was measured there, else at the first member."""
    plain = job.plain_member()
    at_plain = job.store.direction_meta(job.direction(plain, objective)) if plain in job.linear_members() else None
    return (at_plain or meta)["accuracy"]


def _split_half(job: Job, member: Member, objective: str, meta: dict[str, Any]) -> float | None:
    keys = job.half_sample()
    first_row = unique(job.train.payload_keys)
    by_key = {job.train.payload_keys[i].tobytes(): i for i in first_row}
    rows = [by_key[k.tobytes()] for k in keys]
    labels, own = job.train.labels[rows], job.train.row_keys[rows]
    logits = job.outputs(member).read(keys)["logits"]
    method = job.half_method()
    assert method is not None
    whole = job.tangents(job.along(method, member, objective)).read(keys)["tangent"].astype(np.float64)
    even = job.tangents(job.along(method, member, objective, half=True)).read(keys)["tangent"].astype(np.float64)
    share = meta.get("half_share", meta["m_half"] / meta["m"])
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are left out below
        odd = (whole - share * even) / (1.0 - share)
        of_halves = [of_label(job.row_loss.label_scores(logits, t), labels) for t in (even, odd)]
    a, b = (divided(job, method, member, objective, scores, own) for scores in of_halves)
    usable = np.isfinite(a) & np.isfinite(b)
    return spearman(a[usable], b[usable])


def train_accuracy(job: Job) -> float | None:
    """Share of training rows whose label the checkpoint (or the first member) predicts; None where no model was run."""
    if not job.members:
        return None
    logits = job.outputs(job.plain_member()).read(job.train.payload_keys)["logits"]
    return float((logits.argmax(axis=1) == job.train.labels).mean())


def at_chance(accuracy: float, rows: int, num_classes: int) -> bool:
    """Whether an accuracy is within two standard errors of guessing (1/C), or below it."""
    chance = 1.0 / num_classes
    return accuracy <= chance + 2.0 * float(np.sqrt(chance * (1.0 - chance) / rows))


def warn_at_chance(job: Job, known: dict[str, tuple[float, int]]) -> None:
    """Say loudly, once for each, which of the accuracies (with their numbers of rows) are no better than guessing."""
    for name, (accuracy, rows) in known.items():
        if job.model is not None and name not in job.warned and at_chance(accuracy, rows, job.model.num_classes):
            job.warned.add(name)
            job.listener.warn(
                f"{name} accuracy is {accuracy:.1%}, no better than guessing among {job.model.num_classes} classes: "
                "are these the weights, the input size and the class order that the model was trained with?"
            )


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
    """'signal-to-noise 12.3, split-half reliability 0.91'."""
    snr = "unknown" if entry["snr"] is None else f"{entry['snr']:.3g}"
    reliability = "unknown" if entry["reliability"] is None else f"{entry['reliability']:.2f}"
    text = f"signal-to-noise {snr}, split-half reliability {reliability}"
    if "bf16_agreement" in entry:
        known = entry["bf16_agreement"]
        text += f", rank correlation with float32 {'unknown' if known is None else f'{known:.4f}'}"
    return f"{text}, D within its standard error" if undecided(entry) else text
