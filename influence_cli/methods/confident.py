"""Confident learning: rows by the margin of out-of-fold probabilities, and how many labels are wrong; ranking only.

s_i = (p_i[y] - max_{c != y} p_i[c] + 1) / 2,   p_i = softmax of the logits of the model that did not see row i

Northcutt, Jiang and Chuang (arXiv:1911.00068): the normalised margin of section 3.3, and the joint of labels and truths
(``maths.confident``), whose part off the diagonal estimates the number of wrong labels.  Its interval is over rows: how
far other fold models would say otherwise is no part of it.  Fold models that foretell labels no better than always
naming the most frequent class say nothing of that number, which is then not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from influence_cli.errors import UsageError
from influence_cli.maths.agreement import agreement
from influence_cli.maths.confident import joint_of, likely_classes, wrong_interval
from influence_cli.maths.labels import margin, softmax
from influence_cli.methods.protocol import Facts, Floats, Labels
from influence_cli.methods.shapes.out_of_fold import OutOfFold
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.model.losses import RowLoss

SHOWN_CLASSES = 30  # up to which the whole joint is kept in provenance
PAIRS = 20


@dataclass(frozen=True)
class Confident(OutOfFold):
    """Suspicious rows, where another class is far more probable, come last."""

    name: ClassVar[str] = "confident"
    draws: int = setting(200, "bootstrap draws behind the interval of the number of wrong labels")

    def __post_init__(self) -> None:
        if self.draws < 20:
            raise ValueError(f"draws {self.draws} say nothing of an interval; use 20 or more")

    def of_logits(self, logits: Floats, labels: Labels, loss: RowLoss) -> Floats:
        """The normalised margin of each row [n].

        Raises:
            UsageError: labels are no classes.
        """
        if not loss.by_class:
            raise UsageError("confident is about labels that are classes", fix="use --method oof-loss")
        return (margin(softmax(logits), labels) + 1.0) / 2.0

    def facts(self, logits: Floats, labels: Labels, seed: int) -> Facts:
        """The estimated number of wrong labels with its interval, and between which classes."""
        p = softmax(logits)
        joint = joint_of(p, labels)
        off = np.where(np.eye(len(joint.counts)) > 0, 0.0, joint.counts)
        likely = likely_classes(p, joint.thresholds)
        largest = np.argsort(-off, axis=None, kind="stable")[:PAIRS]
        pairs = [(*divmod(int(k), len(off)), float(off.flat[k])) for k in largest if off.flat[k] > 0]
        whole = {"joint": joint.counts.tolist()} if len(off) <= SHOWN_CLASSES else {}
        interval = wrong_interval(p, labels, self.draws, seed)
        counted = int(((likely >= 0) & (likely != labels)).sum())
        agree = agreement(p.argmax(axis=1), labels)
        return {
            "wrong_labels": joint.wrong, "interval": list(interval), "counted": counted, "pairs": pairs,
            "agrees": agree.share, "most_frequent": agree.most_frequent, "tells": agree.beyond_most_frequent, **whole,
        }  # fmt: skip
