"""What an objective is: Phi of the target rows, of which a lower value is better, and what it needs of them.

    need    Phi                                                   the objective has
    rows    the mean of a term of every row                       ``rows(logits, labels, loss)``: the terms [m]
    groups  a function of sums over cells (group, label)          what ``objectives.group_gaps.GroupGap`` has
    attack  with ``rows``: the terms are those of attacked rows   the options of ``engines.attacks.Attack``
    pairs   with ``rows``: a term of a row and its changed twin   ``pairs(logits, changed)`` in place of ``rows``

An objective needs rows or groups; its options are its dataclass fields.
"""

from __future__ import annotations

from typing import Literal

Need = Literal["rows", "groups", "attack", "pairs", "classes"]
