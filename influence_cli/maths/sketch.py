"""Random projections of row gradients whose inner products are unbiased: E <Sg, Sh> = <g, h> over seeds.

Every layer is projected into the same k columns, with signs and places of its own, and the projections are added up.
Signs and places come from an integer hash of (seed, name, index): the same bits on every device and in every batch.

    folded      Sg[b] = sum over j with place(j) = b of sign(j) g_j,     place(j) = (j + shift(j div k)) mod k
    factorised  for G = sum_t d_t a_t^T:  R_out G R_in^T = sum_t (R_out d_t) (R_in a_t)^T     (LoGra, arXiv:2405.13954)

The first is the count sketch (Charikar et al. 2002) with random places a block of k values at a time, so that it is a
few additions of whole blocks.  Its variance is that of k dense rows of signs, less the pairs that share a block:

    ( |g|^2 |h|^2 + <g, h>^2 - 2 sum_j g_j^2 h_j^2 ) / k   at most

Of m factorised groups of s_out x s_in, R of independent signs over sqrt(s), the variance is

    ( V(G^T H) / s_in + V(G H^T) / s_out + W / (s_in s_out) ) / m,     V(M) = |M|^2 + tr M^2 - 2 sum_i M_ii^2

with W of the order of |G|^2 |H|^2 (the tests spell it out); a factor that is the identity adds nothing.
Since m s_in s_out values are stored, small factors in many groups are better, and dearer, than two large ones.
Two layers l and l' that share columns add ( |g_l|^2 |h_l'|^2 + <g_l, h_l> <g_l', h_l'> ) / k for each ordered pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from influence_cli.maths.hashed_draws import hashed_uniform, stream_key


def hash_key(seed: int, name: str, what: str) -> int:
    """64 bits that stand for a stream of draws."""
    return stream_key(f"{seed}:{what}:{name}".encode(), "sign")


def signs(key: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Independent fair signs, -1 or 1, as int8.

    >>> signs(7, (2, 3), torch.device("cpu")).shape, abs(int(signs(7, (10_000,), torch.device("cpu")).sum())) < 300
    (torch.Size([2, 3]), True)
    """
    bits: Tensor = hashed_uniform(key, math.prod(shape), device) & 1
    return (1 - 2 * bits).to(torch.int8).reshape(tuple(shape))


def shifts(key: int, count: int, k: int) -> list[int]:
    """A uniform number of 0 to k - 1 for each of ``count`` blocks, to k 2^-32.

    >>> sorted(set(shifts(7, 100, 4)))
    [0, 1, 2, 3]
    """
    return [int(bits) * k >> 32 for bits in hashed_uniform(key, count, torch.device("cpu"))]


def factor_shape(inputs: int, outputs: int, width: int) -> tuple[int, int, int]:
    """(m groups, s_in, s_out) of a layer of [outputs, inputs] with m s_in s_out at most ``width``.

    Of these the one with the least bound of the variance: the smallest square s = s_in = s_out with which projecting,
    (width / s) (inputs + outputs) products a position, costs no more than the layer itself, in as many groups as there
    is room for; or one side whole, in one group.

    >>> factor_shape(512, 512, 400), factor_shape(4608, 512, 30), factor_shape(512, 10, 100), factor_shape(64, 64, 3000)
    ((100, 2, 2), (30, 1, 1), (1, 10, 10), (1, 46, 64))
    """
    s = max(1, min(math.isqrt(width), math.ceil(width * (inputs + outputs) / (inputs * outputs))))
    s = min(s, inputs, outputs)
    choices = [(width // s**2, s, s)]
    if outputs <= width:
        choices.append((1, min(inputs, width // outputs), outputs))
    if inputs <= width:
        choices.append((1, inputs, min(outputs, width // inputs)))
    return min(choices, key=lambda shape: factor_bound(inputs, outputs, *shape))


def factor_bound(inputs: int, outputs: int, groups: int, s_in: int, s_out: int) -> float:
    """The variance of a factorised <SG, SH> is at most this times |G|^2 |H|^2, whatever G and H.

    V is at most 2 |G|^2 |H|^2 and W at most four times it; in one group, a side that is whole adds nothing.

    >>> factor_bound(64, 64, 3, 2, 2), factor_bound(64, 10, 1, 4, 10)
    (1.0, 0.5)
    """
    a = 0.0 if groups == 1 and s_in == inputs else 1.0 / s_in
    d = 0.0 if groups == 1 and s_out == outputs else 1.0 / s_out
    return (2.0 * a + 2.0 * d + 4.0 * a * d) / groups


def add_shifted(total: Tensor, values: Tensor, shift: int) -> None:
    """Add values [r, w] to the columns of total [r, k], w at most k, from column ``shift`` on and around.

    >>> total = torch.zeros(1, 3)
    >>> add_shifted(total, torch.tensor([[1.0, 2.0]]), 2)
    >>> total
    tensor([[2., 0., 1.]])
    """
    width = values.shape[1]
    first = min(width, total.shape[1] - shift)
    total[:, shift : shift + first] += values[:, :first]
    if first < width:
        total[:, : width - first] += values[:, first:]


def add_folded(total: Tensor, rows: Tensor, sign: Tensor, shift: Sequence[int]) -> None:
    """Add Sg [r, k] of rows [r, p] to total [r, k]; ``shift`` has one place for every k values.

    >>> total = torch.zeros(1, 2)
    >>> add_folded(total, torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([1, -1, 1]), [0, 1])
    >>> total
    tensor([[1., 2.]])
    """
    k = total.shape[1]
    for block, first in zip(shift, range(0, rows.shape[1], k), strict=True):
        add_shifted(total, rows[:, first : first + k] * sign[first : first + k].to(rows.dtype), block)


def factor_sketch(a: Tensor, d: Tensor, r_in: Tensor | None, r_out: Tensor | None, groups: int) -> Tensor:
    """[r, m s_out s_in] of inputs a [r, T, in] and output gradients d [r, T, out]; R [m s, .], or None: the identity.

    >>> a, d = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0], [5.0]]]).reshape(1, 1, 2)
    >>> factor_sketch(a, d, None, torch.tensor([[1.0, -1.0]]), 1)
    tensor([[-2., -4.]])
    """
    pa = a if r_in is None else a @ r_in.T
    pd = d if r_out is None else d @ r_out.T
    pa, pd = (x.unflatten(2, (groups, x.shape[2] // groups)).transpose(1, 2) for x in (pa, pd))  # [r, m, T, s]
    return torch.matmul(pd.transpose(2, 3), pa).flatten(1)
