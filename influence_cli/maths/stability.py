"""Would the lowest rows be the same with endlessly many members?  Told from the spread between those that there are.

Members s_1 ... s_M [n] are independent draws, and scores are their mean m.  Where they are normal and nothing is known
of them beforehand, the mean of endlessly many is distributed, given these M, as

    m* = m + sqrt((M - 1) / chi2) M^(-1/2) sum_k z_k (s_k - m) / sqrt(M - 1),    z_k ~ N(0, 1),  chi2 ~ chi2(M - 1)

a multivariate t with M - 1 degrees of freedom: for every row Student's interval for its mean, and between rows the
covariance that the members have.  (A member that stretches all scores together changes no ranking, and here it does
not.)  The lowest rows of each draw of m* are compared with the lowest rows of m by their Jaccard similarity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.ranking import lowest

DRAWS = 400
CONFIDENCE = 0.95
_SEED = 20_240_517  # of the draws: a decision is the same whenever it is made


@dataclass(frozen=True)
class Stability:
    """Jaccard similarity of the lowest rows with those of endlessly many members: expected, and its lower bound."""

    expected: float
    lower: float  # exceeded with 95% confidence


def lowest_rows_stability(members: NDArray[np.float64], share: float, draws: int = DRAWS) -> Stability:
    """How stable the lowest ``share`` of the rows is, from the scores of at least two members [M, n], all finite.

    >>> still = np.tile(np.arange(40.0), (3, 1))
    >>> lowest_rows_stability(still, 0.1)
    Stability(expected=1.0, lower=1.0)
    """
    count, n = members.shape
    size = max(1, int(share * n + 1e-9))
    if n == 0 or count < 2 or size >= n:
        return Stability(1.0, 1.0)
    mean = members[0] + (members - members[0]).mean(axis=0)  # exact where members are equal
    deviations = (members - mean) / np.sqrt(count - 1)
    rng = np.random.default_rng(_SEED)
    z = rng.standard_normal((draws, count))
    z *= np.sqrt((count - 1) / rng.chisquare(count - 1, draws) / count)[:, None]
    now = np.flatnonzero(lowest(mean, size))
    kept = np.array([_kept(mean + weights @ deviations, now) for weights in z])
    found = kept / (2 * size - kept)  # Jaccard similarity of two sets of that size
    return Stability(float(found.mean()), float(np.quantile(found, 1 - CONFIDENCE, method="lower")))


def _kept(scores: NDArray[np.float64], rows: NDArray[np.int64]) -> int:
    """How many of ``rows`` are still among that many lowest scores [n], with every tie decided for them."""
    last = np.partition(scores, len(rows) - 1)[len(rows) - 1]
    return int((scores[rows] <= last).sum())


def members_needed(count: int, lower: float, wanted: float) -> int:
    """About how many members would raise the lower bound of ``count`` to ``wanted``.

    Rows change sides in proportion to the noise of the mean, so 1 - J falls with the root of the number of members.

    >>> members_needed(20, 0.8, 0.95)
    320
    """
    return int(np.ceil(count * ((1 - lower) / (1 - wanted)) ** 2 - 1e-9))
