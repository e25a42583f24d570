"""Random projections of row gradients whose inner products are unbiased: E <Sg, Sh> = <g, h> over seeds.

Signs and places come from an integer hash of (seed, name, index): the same bits on every device and in every batch.

    plain       Sg[b] = sum over j with bucket(j) = b of sign(j) g_j                 (Charikar et al. 2002)
    factorised  for G = sum_t d_t a_t^T:  R_out G R_in^T = sum_t (R_out d_t) (R_in a_t)^T     (LoGra, arXiv:2405.13954)

The variance of <Sg, Sh> of the plain one is that of k dense rows of signs, at the cost of one pass over g:

    ( |g|^2 |h|^2 + <g, h>^2 - 2 sum_j g_j^2 h_j^2 ) / k

Of m factorised groups of s_out x s_in, R of independent signs over sqrt(s), it is

    ( V(G^T H) / s_in + V(G H^T) / s_out + W / (s_in s_out) ) / m,     V(M) = |M|^2 + tr M^2 - 2 sum_i M_ii^2

with W of the order of |G|^2 |H|^2 (spelled out in ``factor_variance``); a factor that is the identity adds nothing.
Since m s_in s_out values are stored, small factors in many groups are better, and dearer, than two large ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from influence_cli.maths.masks import hashed_uniform


def hash_key(seed: int, name: str, what: str) -> int:
    """64 bits that stand for a stream of draws."""
    text = f"{seed}:{what}:{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"influence.sign").digest(), "little")


def signs(key: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Independent fair signs, -1 or 1, as int8.

    >>> signs(7, (2, 3), torch.device("cpu")).shape, abs(int(signs(7, (10_000,), torch.device("cpu")).sum())) < 300
    (torch.Size([2, 3]), True)
    """
    bits: Tensor = hashed_uniform(key, math.prod(shape), device) & 1
    return (1 - 2 * bits).to(torch.int8).reshape(tuple(shape))


def buckets(key: int, count: int, k: int, device: torch.device) -> Tensor:
    """A uniform place in 0 to k - 1 for each of ``count`` values, as int32, to k 2^-32.

    >>> sorted(set(buckets(7, 100, 4, torch.device("cpu")).tolist()))
    [0, 1, 2, 3]
    """
    return ((hashed_uniform(key, count, device) * k) >> 32).to(torch.int32)


def shared_widths(sizes: Sequence[int], total: int) -> list[int]:
    """Widths of layers of ``sizes`` parameters: at least 1, at most the size, together at most ``total``.

    What is over one for each goes by the square root of the size; a layer that would get more than it has is kept whole
    and the others share the rest.

    >>> shared_widths([4, 100, 10_000], 58)
    [1, 5, 50]
    >>> shared_widths([2, 3], 100)
    [2, 3]

    Raises:
        ValueError: there are more layers than values.
    """
    if total < len(sizes):
        raise ValueError(f"{total} values for {len(sizes)} layers")
    widths: dict[int, int] = {}
    left: list[int] = list(range(len(sizes)))
    rest = total - len(sizes)
    while left:
        roots = sum(math.sqrt(sizes[k]) for k in left)
        share = {k: rest * math.sqrt(sizes[k]) / roots for k in left}
        whole = [k for k in left if share[k] >= sizes[k] - 1]
        for k in whole:
            widths[k] = sizes[k]
            rest -= sizes[k] - 1
        if not whole:
            widths |= {k: 1 + int(share[k]) for k in left}
            break
        left = [k for k in left if k not in widths]
    return [widths[k] for k in range(len(sizes))]


def factor_shape(inputs: int, outputs: int, width: int) -> tuple[int, int, int]:
    """(m groups, s_in, s_out) of a layer of [outputs, inputs] with m s_in s_out at most ``width``.

    Of these the one with the least bound of the variance: the smallest square s = s_in = s_out with which projecting,
    (width / s) (inputs + outputs) products a position, costs no more than the layer itself, in as many groups as there
    is room for: (4 / s + 4 / s^2) / m; or one side whole, in one group: 2 / s of the other; times |G|^2 |H|^2.

    >>> factor_shape(512, 512, 400), factor_shape(4608, 512, 30), factor_shape(512, 10, 100), factor_shape(64, 64, 3000)
    ((100, 2, 2), (30, 1, 1), (1, 10, 10), (1, 46, 64))
    """
    s = max(1, min(math.isqrt(width), math.ceil(width * (inputs + outputs) / (inputs * outputs))))
    s = min(s, inputs, outputs)
    choices = [((4 / s + 4 / s**2) / (width // s**2), (width // s**2, s, s))]
    if outputs <= width:
        choices.append((2 / min(inputs, width // outputs), (1, min(inputs, width // outputs), outputs)))
    if inputs <= width:
        choices.append((2 / min(outputs, width // inputs), (1, inputs, min(outputs, width // inputs))))
    return min(choices)[1]


def plain_sketch(rows: Tensor, sign: Tensor, bucket: Tensor, k: int) -> Tensor:
    """Sg [r, k] of rows [r, p].

    >>> g = torch.tensor([[1.0, 2.0, 4.0]])
    >>> plain_sketch(g, torch.tensor([1, -1, 1]), torch.tensor([1, 0, 1]), 2)
    tensor([[-2.,  5.]])
    """
    found: Tensor = rows.new_zeros(len(rows), k)
    found.index_add_(1, bucket, rows * sign.to(rows.dtype))
    return found


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


def plain_variance(g: Tensor, h: Tensor, k: int) -> float:
    """Variance of <Sg, Sh> for vectors g and h and k buckets, or k dense rows of signs."""
    both = float(g @ h) ** 2 - 2.0 * float((g * h).square().sum())
    return (float(g.square().sum() * h.square().sum()) + both) / k


def factor_variance(g: Tensor, h: Tensor, groups: int, s_in: int | None, s_out: int | None) -> float:
    """Variance of the factorised <Sg, Sh> for matrices g and h [out, in]; None: that factor is the identity.

    W = |G|^2 |H|^2 + <G^T G, H^T H> + <G G^T, H H^T> + <G, H>^2 - 2 sum_k |G_.k|^2 |H_.k|^2 - 2 sum_i |G_i.|^2 |H_i.|^2
    - 2 sum_k <G_.k, H_.k>^2 - 2 sum_i <G_i., H_i.>^2 + 4 sum_ik G_ik^2 H_ik^2, from the fourth moments of signs.
    """

    def v(m: Tensor) -> float:
        return float(m.square().sum() + (m * m.T).sum() - 2.0 * m.diagonal().square().sum())

    g2, h2, gh = g.square(), h.square(), g * h
    w = g2.sum() * h2.sum() + ((g.T @ g) * (h.T @ h)).sum() + ((g @ g.T) * (h @ h.T)).sum() + gh.sum() ** 2
    w = w - 2.0 * (g2.sum(0) @ h2.sum(0) + g2.sum(1) @ h2.sum(1) + gh.sum(0).square().sum() + gh.sum(1).square().sum())
    w = float(w + 4.0 * gh.square().sum())
    found = 0.0 if s_in is None else v(g.T @ h) / s_in
    found += 0.0 if s_out is None else v(g @ h.T) / s_out
    found += 0.0 if s_in is None or s_out is None else w / (s_in * s_out)
    return found / groups
