"""Scores over the size of a row's own gradient: relative influence and the cosine.

    relative   s_i / sqrt(g_i^T P g_i)              (RelatIF, Barshan et al. 2020, arXiv:2003.11630)
    cosine     < g_i, q > / (|g_i| |q|)

The divisor is of the row's own label: with another label the row has another gradient, so these scores are of no other
label.  A gradient that is zero has score 0, and a row whose g_i^T P g_i is negative none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from influence_cli.methods.protocol import Linear
from influence_cli.stages.run.job import Job, Member
from influence_cli.stages.run.row_values import values_of
from influence_cli.store import Keys

Floats = NDArray[np.float64]


def is_divided(job: Job, name: str) -> bool:
    """Whether a linear method's scores are divided by the size of a row's own gradient."""
    return name in job.values


def note_divided(job: Job) -> None:
    """Say what is not said of such scores."""
    names = [name for name, method in job.methods.items() if isinstance(method, Linear) and is_divided(job, name)]
    if names:
        job.listener.note(
            f"{', '.join(names)}: over the size of each row's own gradient, so without effect and best label (another "
            "label is another gradient)"
        )


def over_own_size(scores: Floats, values: Floats) -> Floats:
    """Scores s / sqrt(v); 0 where v is 0, NaN where it is negative or not finite.

    >>> over_own_size(np.array([3.0, 0.0, 1.0]), np.array([4.0, 0.0, -1.0])).tolist()
    [1.5, 0.0, nan]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(values == 0.0, 0.0 * scores, scores / np.sqrt(values))


def divided(job: Job, name: str, member: Member, objective: str | None, scores: Floats, row_keys: Keys) -> Floats:
    """A member's scores [n] of rows, as the method has them.

    ``objective`` None is a blend of unit directions: its cosine is not divided by its own length, a constant.
    """
    if not is_divided(job, name):
        return scores
    found = over_own_size(scores, values_of(job, name, member, row_keys))
    method = job.methods[name]
    if objective is None or not (isinstance(method, Linear) and method.of_unit_direction()):
        return found
    norm = direction_norm(job, member, objective)
    return found / norm if norm > 0 else 0.0 * found


def direction_norm(job: Job, member: Member, objective: str) -> float:
    """|q| at a member."""
    meta = job.store.direction_meta(job.direction(member, objective))
    assert meta is not None
    return float(meta["norm"])


def length_in_scores(job: Job, name: str, member: Member, objective: str) -> float:
    """The length of the direction that a method's scores are of: |q|, or 1 where they are of q / |q|."""
    norm, method = direction_norm(job, member, objective), job.methods[name]
    unit = isinstance(method, Linear) and method.of_unit_direction()
    return 1.0 if unit and norm > 0 else norm
