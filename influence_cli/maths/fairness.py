"""Group gaps: their smooth forms with slopes, which objectives are made of, and the plain gaps that are reported.

With mu_a the mean of some value over the rows of group a (of m_a rows, G groups), one gap Phi(mu) is

    signed    mu_1 - mu_0, of two groups in their order
    pairs     2 / (G (G - 1)) sum_{a < b} sqrt((mu_a - mu_b)^2 + tau^2)
    variance  sum_a m_a (mu_a - mu)^2 / m,  mu the mean over all m rows
    max       T logsumexp_{a < b}(sqrt((mu_a - mu_b)^2 + tau^2) / T),  T = 0.02: at most T log(pairs) above the largest

``pairs`` of two groups is the smooth absolute difference.  With tau = 0 and hard predictions it is the mean absolute
difference over pairs of groups, the figure of Chhabra et al. 2024.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
AGGREGATES = ("pairs", "variance", "max")
TEMPERATURE = 0.02


def smooth_gap(
    means: Floats, counts: Floats, tau: float = 1e-3, aggregate: str = "pairs", signed: bool = False
) -> tuple[float, Floats]:
    """The gap between group means [G] of ``counts`` [G] rows, and its slope in each mean [G].

    Raises:
        ValueError: ``signed`` with other than two groups.

    >>> value, slope = smooth_gap(np.array([0.2, 0.5]), np.array([10.0, 10.0]), tau=0.0)
    >>> round(value, 12), slope.tolist()
    (0.3, [-1.0, 1.0])
    >>> round(smooth_gap(np.array([0.0, 1.0]), np.array([30.0, 10.0]), aggregate="variance")[0], 12)  # share 1/4
    0.1875
    """
    if signed:
        if len(means) != 2:
            raise ValueError(f"a signed gap is between two groups, not {len(means)}")
        return float(means[1] - means[0]), np.array([-1.0, 1.0])
    if aggregate == "variance":
        share = counts / counts.sum()
        apart = means - share @ means
        return float(share @ apart**2), 2.0 * share * apart
    first, second = np.array(list(itertools.combinations(range(len(means)), 2))).T
    difference = means[second] - means[first]
    size = np.sqrt(difference**2 + tau**2)
    if aggregate == "max":
        e = np.exp((size - size.max()) / TEMPERATURE)
        value, share = float(size.max() + TEMPERATURE * np.log(e.sum())), e / e.sum()
    else:
        value, share = float(size.mean()), np.full(len(size), 1.0 / len(size))
    pull = share * np.divide(difference, size, out=np.zeros_like(size), where=size > 0)
    slope = np.zeros(len(means))
    np.add.at(slope, second, pull)
    np.add.at(slope, first, -pull)
    return value, slope


def group_means(values: Floats, groups: NDArray[Any]) -> Floats:
    """The mean of ``values`` [n] in each group there is, in the groups' order [G].

    >>> group_means(np.array([1.0, 0.0, 1.0]), np.array(["b", "b", "a"])).tolist()
    [1.0, 0.5]
    """
    _, index = np.unique(groups, return_inverse=True)
    return np.bincount(index, weights=values) / np.bincount(index)


def mean_gap(values: Floats, groups: NDArray[Any]) -> float:
    """The mean absolute difference of group means over pairs of groups; NaN with fewer than two groups.

    >>> round(mean_gap(np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0]), np.array([0, 0, 1, 1, 2, 2])), 12)  # .5, .5, 1
    0.666666666667
    """
    means = group_means(values, groups)
    if len(means) < 2:
        return float("nan")
    return float(np.mean([abs(a - b) for a, b in itertools.combinations(means.tolist(), 2)]))


def demographic_parity(
    probabilities: Floats, groups: NDArray[Any], favourable: int | None = None, hard: bool = False
) -> float:
    """The gap in the mean probability [n, C] of the favourable class; with ``hard``, in the share predicted to be it.

    ``favourable`` None is class 1 of two, and the mean over all classes of more.

    >>> p, a = np.array([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1], [0.7, 0.3]]), np.array([0, 0, 1, 1])
    >>> round(demographic_parity(p, a), 12), demographic_parity(p, a, hard=True)
    (0.4, 0.5)
    """
    given = _given(probabilities, hard)
    return float(np.mean([mean_gap(given[:, c], groups) for c in classes_of(given.shape[1], favourable)]))


def equalised_odds(
    probabilities: Floats,
    labels: Ints,
    groups: NDArray[Any],
    favourable: int | None = None,
    hard: bool = False,
    worst: bool = False,
) -> float:
    """The gap among the rows of the favourable class plus that among all others (``worst``: the larger of the two).

    >>> p, y = np.eye(2)[[1, 1, 0, 0, 1, 0]], np.array([1, 1, 1, 0, 0, 0])  # true positives 1, 1/2; false 0, 1/2
    >>> equalised_odds(p, y, np.array([0, 1, 1, 0, 1, 1]))
    1.0
    """
    given, combine = _given(probabilities, hard), max if worst else sum
    gaps = [
        combine([mean_gap(given[rows, c], groups[rows]) for rows in (labels == c, labels != c)])
        for c in classes_of(given.shape[1], favourable)
    ]
    return float(np.mean(gaps))


def classes_of(count: int, favourable: int | None) -> list[int]:
    """The classes whose gaps are averaged.

    >>> classes_of(2, None), classes_of(3, None), classes_of(3, 0)
    ([1], [0, 1, 2], [0])
    """
    if favourable is not None:
        return [favourable]
    return [1] if count == 2 else list(range(count))


def _given(probabilities: Floats, hard: bool) -> Floats:
    """Probabilities [n, C], or one where they are largest and zero elsewhere."""
    values = np.asarray(probabilities, dtype=np.float64)
    return np.eye(values.shape[1])[values.argmax(axis=1)] if hard else values
