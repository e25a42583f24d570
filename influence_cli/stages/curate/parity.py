"""How far an objective about groups is from parity, as a score table's provenance has it, and when rounds are over."""

from __future__ import annotations

import math
from typing import Any

from influence_cli.actions.protocol import Parity
from influence_cli.maths.fairness import TEMPERATURE


def parity_of(origin: dict[str, Any], column: str) -> Parity | None:
    """What a score column can do until the gap is closed; None where it is about no groups."""
    name = origin.get("score_is") if column == "score" else column
    objective = origin.get("objective_of", {}).get(name)
    entry = origin.get("noise", {}).get(objective, {})
    parts = entry.get("parts") or {}
    if not parts.get("terms") or entry.get("phi") is None:
        return None
    options = origin.get("spec", {}).get("options", {}).get(objective, {})
    room = 0.0 if parts["at_parity"] else _room(entry["phi"], parts, options)
    return Parity(objective, room, origin.get("effect_divisors", {}).get(name))


def _room(phi: float, parts: dict[str, Any], options: dict[str, Any]) -> float:
    """What Phi can fall by along its slope until all groups are equal: Phi, where it is a gap."""
    aggregate = options.get("aggregate", "pairs")
    if aggregate == "variance":  # quadratic in the gap: its slope leads to twice its fall
        return 2.0 * phi
    if aggregate == "max":  # the smooth maximum of equal gaps of zero lies above zero
        groups = len(parts["terms"][0]["groups"])
        return phi - TEMPERATURE * math.log(groups * (groups - 1) / 2)
    return phi


def closed(first: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Why there is no gap to close any more, of an objective's ``noise`` before the first round and now; else None."""
    was, terms = ((entry.get("parts") or {}).get("terms") or [] for entry in (first, now))
    if not terms:
        return None
    flipped = [a["gap"] * b["gap"] < 0 for a, b in zip(was, terms, strict=True)]
    within = [abs(b["gap"]) < b["gap_se"] for b in terms]
    if not all(f or w for f, w in zip(flipped, within, strict=True)):
        return None
    gaps = ", ".join(
        f"D {a['gap']:.4g} -> {b['gap']:.4g}, standard error {b['gap_se']:.2g}" for a, b in zip(was, terms, strict=True)
    )
    return f"{'the sign of D has changed' if all(flipped) else 'D is below its standard error'} ({gaps})"
