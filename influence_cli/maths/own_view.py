"""What a model says of the labels that it was trained with, to stand beside a view that has not seen them.

    v_i = w (log-odds of the mean over epochs of p_ie + log-odds of p_i)

p_ie is the probability of row i's label in its training pass of epoch e (Swayamdipta et al. 2020, arXiv:2009.10795),
where training noted it, and p_i that by the final model.  Such a model has seen the labels, and is worth less the more
of them it has learned by heart.  So w falls with the share h of the labels that a view out of fold disagrees with which
the model has fitted all the same:

    h = (share of the labels that it predicts - share that is predicted out of fold) / (1 - the latter)
    w = max(0, 1 - 4 h),  1 where h < 0

Log-odds need no scale: a model that is unsure of everything adds little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SUREST = 1e-6  # a probability this near to 0 or 1 says no more than this
FALL = 4.0  # how fast w falls with h
LEAST = 0.5  # of the rows, of which training has to have noted something


def log_odds(p: Floats) -> Floats:
    """Log p / (1 - p) of probabilities [n], those of 0 and 1 held a little from them.

    >>> log_odds(np.array([0.5, 1.0])).round(2).tolist()
    [0.0, 13.82]
    """
    held = np.clip(p, SUREST, 1.0 - SUREST)
    return np.log(held) - np.log1p(-held)


def weight_of(fits: float, agrees: float) -> float:
    """The w of a model that predicts a share of the labels, where a view out of fold predicts another share of them.

    >>> weight_of(0.9, 0.9), weight_of(0.78125, 0.75), weight_of(0.9375, 0.75)
    (1.0, 0.5, 0.0)
    """
    learned = (fits - agrees) / max(1.0 - agrees, SUREST)
    return float(np.clip(1.0 - FALL * learned, 0.0, 1.0))


def noted(mean: Floats) -> Floats | None:
    """Log-odds [n] of mean probabilities, of rows without one the mean of the others'; None where most have none.

    >>> noted(np.array([0.5, 0.5, np.nan])), noted(np.array([0.5, np.nan, np.nan])) is None
    (array([0., 0., 0.]), True)
    """
    known = np.isfinite(mean)
    if not len(mean) or known.mean() < LEAST:
        return None
    odds = log_odds(mean)
    return np.where(known, odds, odds[known].mean())
