"""The mean of inverses of rank-one matrices in place of the inverse of their mean.

For rows' gradients g_i [d] with weights w_i, n = sum w_i, and lambda > 0:

    r = (1/n) sum_i w_i (g_i g_i^T + lambda I)^-1 v = (1/lambda) [ v - (1/n) sum_i w_i c_i g_i ],
    c_i = (v . g_i) / (lambda + |g_i|^2)

by Sherman and Morrison.  Kwon et al. 2024 (arXiv:2310.00902), Eq. 5.
"""

from __future__ import annotations

from torch import Tensor

SHARE = 0.1  # of the mean squared gradient of a coordinate: the default lambda
LEAST = 1e-8  # of the largest lambda of any tensor: the smallest that one may have


def coefficients(dots: Tensor, squared_norms: Tensor, damping: float) -> Tensor:
    """c_i [b] from v . g_i [b] and |g_i|^2 [b].

    >>> import torch
    >>> coefficients(torch.tensor([6.0]), torch.tensor([2.0]), 1.0).tolist()
    [2.0]
    """
    return dots / (damping + squared_norms)


def default_dampings(mean_squares: list[float]) -> list[float]:
    """A tenth of the mean squared gradient of a tensor's coordinates, at least 1e-8 of the largest tenth.

    >>> default_dampings([10.0, 1.0, 0.0])
    [1.0, 0.1, 1e-08]
    """
    least = LEAST * SHARE * max(mean_squares, default=0.0)
    return [max(SHARE * value, least) for value in mean_squares]
