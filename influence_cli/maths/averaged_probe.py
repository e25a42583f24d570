"""Class probabilities out of fold, averaged over deals of the folds, and whether target labels may be taken as right.

Which rows fall into one fold decides a little about every probability.  So the rows are dealt into folds several times,
and P_i is the geometric mean of what each deal gives (``corrected_probe``): still without the label of row i.

Labels of target rows are taken to be right, and weigh more than those of rows, as long as they look cleaner:

    gap = sum_k t_k (share of target labels k that are foretold - share of row labels k that are foretold)

t_k is how often k is among the target labels, and a label is foretold where it has the largest probability of the first
deal.  With no more wrong labels among target rows than among rows, and rows of the same kind, the gap is 0 but for
chance; where it is not above 0 by ``SURE`` standard errors, target rows are plain rows in every other deal.  Half of
the deals still take them to be right: of labels that are no cleaner since both are nearly clean this loses little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.corrected_probe import FLOOR, CorrectedProbe, Rows
from influence_cli.maths.labels import softmax
from influence_cli.maths.linear_probe import STRENGTHS, Examples, indicators, likeliest_scale, out_of_fold

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SURE = 1.645  # standard errors: a one-sided level of 5%


@dataclass(frozen=True, eq=False)
class Averaged:
    """P of the rows [n, C] and of the target rows [m, C], and whether target labels look cleaner than those of rows."""

    p: Floats
    of_target: Floats
    cleaner: bool


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features [n, d] and labels [n] of rows, and their fold [n] in each deal."""

    x: NDArray[np.floating]
    y: Ints
    folds: Sequence[Ints]

    def dealt(self, deal: int) -> Rows:
        """The rows as they lie in one deal."""
        return Rows(self.x.astype(np.float64, copy=False), self.y, self.folds[deal])


def averaged(
    rows: Labelled, target: Labelled, classes: int, folds: int, neighbours: int,
    done: Callable[[int], None] = lambda _: None,
) -> Averaged:  # fmt: skip
    """The mean over the deals of the rows; no target row is fine."""
    logs, of_target, cleaner = list[Floats](), list[Floats](), True
    for deal in range(len(rows.folds)):
        own, theirs = rows.dealt(deal), target.dealt(deal)
        if deal % 2 and not cleaner:
            all_rows = CorrectedProbe(_together(own, theirs), theirs.where([]), classes, folds, neighbours)
            p, held = np.split(all_rows.probabilities()[0], [len(rows.y)])
            done(len(rows.y))
        else:
            p, held = CorrectedProbe(own, theirs, classes, folds, neighbours, done).probabilities()
        if deal == 0:
            cleaner = looks_cleaner(p, rows.y, held, target.y)
        logs.append(np.log(p + FLOOR))
        of_target.append(np.log(held + FLOOR))
    return Averaged(softmax(np.mean(logs, axis=0)), softmax(np.mean(of_target, axis=0)), cleaner)


def of_given_labels(
    rows: Labelled,
    target: Labelled,
    worth: float,
    classes: int,
    folds: int,
    done: Callable[[int], None] = lambda _: None,
) -> Floats:
    """R [n, C], how likely a row is given each label: a linear probe on features as they are, out of fold, by deals.

    R is the geometric mean over the deals of softmax(beta z), with z by ``linear_probe.out_of_fold`` and the beta of
    greatest likelihood of the rows' labels, which all of them decide together.  Target rows (none is fine) are fitted
    on beside the rows, each ``worth`` so many.  The ridge strength of later deals is the middle one of the first
    deal's folds.  Nothing in it asks which labels are wrong.

    >>> rows = Labelled(np.array([[-1.0], [1.0]] * 6), np.array([0, 1] * 6), [np.arange(12) % 3])
    >>> none = Labelled(rows.x[:0], rows.y[:0], [rows.y[:0]])
    >>> r = of_given_labels(rows, none, 1.0, 2, 3)
    >>> r.argmax(axis=1)[:4].tolist(), r.sum(axis=1)[:2].round(6).tolist()
    ([0, 1, 0, 1], [1.0, 1.0])
    """
    n, strengths, logs = len(rows.y), STRENGTHS, list[Floats]()
    x, y = np.concatenate([rows.x, target.x]), np.concatenate([rows.y, target.y])
    examples = Examples(x, indicators(y, classes), np.repeat([1.0, worth], [n, len(target.y)]))
    for own, theirs in zip(rows.folds, target.folds, strict=True):
        given, chosen = out_of_fold(examples, np.concatenate([own, theirs]), folds, strengths, done)
        strengths, z = (sorted(chosen)[len(chosen) // 2],), given[:n]
        logs.append(np.log(softmax(likeliest_scale(z, rows.y, np.ones(n)) * z) + FLOOR))
    return softmax(np.mean(logs, axis=0))


def looks_cleaner(p: Floats, labels: Ints, of_target: Floats, target_labels: Ints) -> bool:
    """Whether target labels are foretold more often than those of rows, class by class; yes where there are none.

    >>> p = np.eye(2)[[0, 1] * 50]
    >>> y = np.array([0, 1] * 50)
    >>> wrong = np.where(np.arange(100) % 3 == 0, 1 - y, y)
    >>> looks_cleaner(p, wrong, p, y), looks_cleaner(p, wrong, p, wrong)
    (True, False)
    """
    if not len(target_labels):
        return True
    foretold, held = p.argmax(axis=1) == labels, of_target.argmax(axis=1) == target_labels
    gap = variance = 0.0
    for k in np.unique(target_labels):
        own, theirs = foretold[labels == k], held[target_labels == k]
        if len(own):
            share = len(theirs) / len(target_labels)
            gap += share * (theirs.mean() - own.mean())
            # of few target rows all may be foretold by chance: their variance is held at that of half a row that is not
            spread = max(theirs.var(), 0.25 / len(theirs)) / len(theirs) + own.var() / len(own)
            variance += share**2 * spread
    return bool(gap > SURE * np.sqrt(variance))


def _together(rows: Rows, target: Rows) -> Rows:
    y, fold = np.concatenate([rows.y, target.y]), np.concatenate([rows.fold, target.fold])
    return Rows(np.concatenate([rows.x, target.x]), y, fold)
