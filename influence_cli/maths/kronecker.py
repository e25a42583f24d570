"""Kronecker-factored curvature of affine layers, in their eigenbases.

A layer sees inputs a [b, T, I] (with a last column of ones where it has a bias) and gradients d [b, T, O] of its output
on T positions a row, so that row i's gradient is the matrix G_i = sum_t d_it a_it^T [O, I].  With the eigenvectors Q_A
[I, I] of sum_i w_i sum_t a_it a_it^T and Q_S [O, O] of the same sum of d_it d_it^T:

    Lam = (1/n) sum_i w_i (Q_S^T G_i Q_A)^2,    P q = Q_S [ (Q_S^T q Q_A) / (Lam + shift) ] Q_A^T

George et al. 2018 (arXiv:1806.03884).  The square is of a row's sum over positions, never of one position.

``KroneckerInverse`` is the inverse of a block-diagonal curvature of such layers, damped: shift is l2 + delta_layer.
Parameters of no layer have a mean eigenvalue, or nothing: q is divided by it where they are scaled at all, else u is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

BLOCK = 1 << 24  # most values of row gradients that are made at once
FORM_BLOCK = 1 << 20  # the same where they are read once: what a cache holds is 1.5 times faster
SHARE = 0.1  # of a layer's mean eigenvalue: default delta
LEAST = 1e-8  # of the largest layer's mean eigenvalue: the least that a layer is damped by


def output_root(p: Tensor) -> Tensor:
    """R [b, C, C] = diag(sqrt p) - p sqrt(p)^T, with R R^T = diag(p) - p p^T for probabilities p [b, C].

    >>> p = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    >>> root = output_root(p)
    >>> (root @ root.mT).round(decimals=12).tolist()
    [[[0.1875, -0.1875], [-0.1875, 0.1875]]]
    """
    root = p.sqrt()
    return torch.diag_embed(root) - p[:, :, None] * root[:, None, :]


def label_at(p: Tensor, u: Tensor) -> Tensor:
    """The label [b] at which the cumulated probabilities p [b, C] pass u [b], uniform in [0, 1).

    >>> label_at(torch.tensor([[0.5, 0.0, 0.5]] * 3), torch.tensor([0.0, 0.49, 0.5])).tolist()
    [0, 0, 2]
    """
    cumulated = p.double().cumsum(dim=1)
    above = u[:, None] * cumulated[:, -1:] >= cumulated
    return above.sum(dim=1).clamp(max=p.shape[1] - 1)


def second_moment(values: Tensor, w: Tensor) -> Tensor:
    """sum_i w_i sum_t v_it v_it^T of values [b, T, I]."""
    return (values * w[:, None, None]).flatten(0, 1).T @ values.flatten(0, 1)


def eigenbasis(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0, and eigenvectors in columns, in float64.

    Inputs that are always 0, such as what padding alone ever reaches, are eigenvectors by themselves and come first.
    """
    matrix = (moment + moment.mT).double() / 2.0
    live = matrix.diagonal() > 0.0
    order = torch.cat([(~live).nonzero()[:, 0], live.nonzero()[:, 0]])
    dead = int((~live).sum())
    values, vectors = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device), torch.eye(len(matrix))
    vectors = vectors.to(matrix)
    values[dead:], vectors[dead:, dead:] = _eigh(matrix[live][:, live])
    return values.clamp(min=0.0), vectors[order.argsort()]


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """By divide and conquer, or by a slower way where that does not converge."""
    linalg: Any = torch.linalg
    try:
        found = linalg.eigh(matrix)
    except RuntimeError:
        from scipy.linalg import eigh

        found = eigh(matrix.cpu().numpy(), driver="evr")
    return torch.as_tensor(found[0]).to(matrix), torch.as_tensor(found[1]).to(matrix)


def rotated_squares(a: Tensor, d: Tensor, w: Tensor, q_a: Tensor, q_s: Tensor) -> Tensor:
    """sum_i w_i (Q_S^T G_i Q_A)^2 [O, I], float64; rows are taken some at a time."""
    b, steps, wide = a.shape[0], a.shape[1], q_a.shape[1]
    tall = d.shape[2]
    total = torch.zeros(tall, wide, dtype=torch.float64, device=a.device)
    live = (a != 0).flatten(0, 1).any(dim=0)
    if bool(live.any()) and not bool(live.all()):  # without inputs that are 0 in all of these rows
        some = (q_a[live] != 0).any(dim=0)
        total[:, some] = rotated_squares(a[:, :, live], d, w, q_a[live][:, some], q_s)
        return total
    if steps == 1:
        turned = (d[:, 0] @ q_s).square() * w[:, None]
        return (turned.T @ (a[:, 0] @ q_a).square()).double()
    size = max(1, BLOCK // (wide * tall))
    for first in range(0, b, size):
        some = slice(first, first + size)
        g = _turned(a[some], d[some], q_a, q_s)
        total += torch.einsum("boi,b->oi", g.square(), w[some])
    return total


def inverse_forms(a: Tensor, d: Tensor, q_a: Tensor, q_s: Tensor, shares: Tensor) -> Tensor:
    """sum_oi shares_oi (Q_S^T G_i Q_A)_oi^2 for every row, float64 [b]: g_i^T P g_i where ``shares`` is 1 / shifted.

    >>> one = torch.ones(1, 1, 1)
    >>> inverse_forms(2 * one, 3 * one, torch.eye(1), torch.eye(1), torch.tensor([[0.25]]).double()).tolist()
    [9.0]
    """
    b, steps, wide = a.shape[0], a.shape[1], q_a.shape[1]
    tall = d.shape[2]
    live = (a != 0).flatten(0, 1).any(dim=0)
    if bool(live.any()) and not bool(live.all()):
        some = (q_a[live] != 0).any(dim=0)
        return inverse_forms(a[:, :, live], d, q_a[live][:, some], q_s, shares[:, some])
    if steps == 1:
        return (((d[:, 0] @ q_s).double().square() @ shares) * (a[:, 0] @ q_a).double().square()).sum(dim=1)
    found: list[Tensor] = []
    shares = shares.to(a.dtype)
    size = max(1, FORM_BLOCK // (wide * tall))
    for first in range(0, b, size):
        g = _turned(a[first : first + size], d[first : first + size], q_a, q_s)
        found.append(g.square_().mul_(shares).sum(dim=(1, 2), dtype=torch.float64))
    return torch.cat(found)


def _turned(a: Tensor, d: Tensor, q_a: Tensor, q_s: Tensor) -> Tensor:
    """Q_S^T G_i Q_A [b, O, I]; where positions are few they are turned before they are summed."""
    if a.shape[1] < d.shape[2]:
        return (d @ q_s).mT @ (a @ q_a)
    return q_s.T @ (d.mT @ a) @ q_a


def preconditioned(
    q: Floats, q_a: NDArray[np.floating], q_s: NDArray[np.floating], shifted: Floats, kind: type = np.float64
) -> NDArray[Any]:
    """Q_S [ (Q_S^T q Q_A) / shifted ] Q_A^T for q [O, I], in the precision of ``kind``.

    Inputs for which q is 0, as it is for those that only padding reaches, are left out with the eigenvectors of them
    alone: of the widest convolutions of a resnet18 on 32 x 32 pixels they are eight in nine.

    >>> eye = np.eye(2)
    >>> preconditioned(np.array([[2.0, 3.0]]), eye, np.eye(1), np.array([[4.0, 6.0]])).tolist()
    [[0.5, 0.5]]
    """
    parts: list[NDArray[Any]] = [x.astype(kind, copy=False) for x in (q_a, q_s, q, shifted)]  # pyright: ignore[reportUnknownMemberType]
    a, s, middle, divisor = parts
    live = middle.any(axis=0)
    if live.all():
        return s @ ((s.T @ middle @ a) / divisor) @ a.T
    u, some = np.zeros_like(middle), a[live].any(axis=0)
    reached = a[:, some].any(axis=1)
    turned = (s.T @ middle[:, live] @ a[np.ix_(live, some)]) / divisor[:, some]
    u[:, reached] = s @ turned @ a[np.ix_(reached, some)].T
    return u


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: the places of its weight and bias (-1: none) among the parameters, basis and damped eigenvalues."""

    weight: int
    bias: int
    q_a: NDArray[Any]  # [I, I]
    q_s: NDArray[Any]  # [O, O]
    shifted: Floats  # [O, I]


@dataclass(frozen=True, eq=False)
class KroneckerInverse:
    """The inverse of every layer, and what q of other parameters is divided by, for those that are scaled."""

    layers: list[Layer]
    others: list[int]  # places of parameters that are in no layer
    scalars: dict[int, float]
    dampings: list[float]  # by layer; of other parameters where there is no layer

    @classmethod
    def of(
        cls,
        factor: dict[str, NDArray[Any]],
        products: bool,
        l2: float,
        damping: float | None,
        scaled: bool,
        or_more: bool = False,
    ) -> KroneckerInverse:
        """From stored bases and eigenvalues: of the rows' squares, or ``products`` of those of the two factors.

        Without a ``damping`` a layer's is a tenth of its mean eigenvalue, at least 1e-8 of the largest layer's mean.
        ``scaled``: other parameters are divided by their mean eigenvalue, damped by the same rule.  ``or_more``: where
        the rule gives more than ``damping``, it is that.

        >>> one = np.ones((1, 1))
        >>> eigen = {"0.q_a": one, "0.q_s": one, "0.e_a": one[0], "0.e_s": one[0], "0.lam": 3.0 * one}
        >>> factor = {**eigen, "0.place": np.array([0, -1]), "others": np.zeros((0, 2))}
        >>> KroneckerInverse.of(factor, False, 0.0, 1.0, True).apply(np.array([[8.0]]), [1]).tolist()
        [[2.0]]
        """
        count = sum(name.endswith(".lam") for name in factor)
        lams = [_eigenvalues(factor, k, products) for k in range(count)]
        size = sum(lam.size for lam in lams)
        whole = sum(float(lam.sum()) for lam in lams) / size if size else float("nan")
        means = {int(place): whole if np.isnan(mean) else float(mean) for place, mean in factor["others"]}
        every = [float(lam.mean()) for lam in lams] + [m for m in means.values() if np.isfinite(m)]
        least = LEAST * max(every, default=0.0)

        def damped(mean: float) -> float:
            by_rule = max(SHARE * mean, least)
            if damping is None:
                return by_rule
            return max(damping, by_rule) if or_more else damping

        dampings = [damped(float(lam.mean())) for lam in lams]
        layers: list[Layer] = []
        for k, (lam, delta) in enumerate(zip(lams, dampings, strict=True)):
            weight, bias = (int(place) for place in factor[f"{k}.place"])
            layers.append(Layer(weight, bias, factor[f"{k}.q_a"], factor[f"{k}.q_s"], lam + (l2 + delta)))
        scalars = {place: m + l2 + damped(m) for place, m in means.items() if np.isfinite(m)} if scaled else {}
        return cls(layers, list(means), scalars, dampings or [damped(m) for m in means.values()])

    @property
    def size(self) -> int:
        """How many parameters the layers have."""
        return sum(layer.shifted.size for layer in self.layers)

    @property
    def smallest(self) -> float:
        """The smallest number that is divided by; 1 where there is none."""
        every = [float(layer.shifted.min()) for layer in self.layers] + list(self.scalars.values())
        return min(every, default=1.0)

    @property
    def condition_number(self) -> float:
        """The largest of any layer."""
        return max([float(x.shifted.max() / x.shifted.min()) for x in self.layers], default=1.0)

    @property
    def largest(self) -> float:
        """The largest damped eigenvalue; 0 where there is none."""
        every = [float(layer.shifted.max()) for layer in self.layers] + list(self.scalars.values())
        return max(every, default=0.0)

    def apply(self, q: Floats, sizes: list[int], single: bool = False) -> Floats:
        """P q for every column of [d, k], whose parameters have these sizes in turn.

        ``single``: the products are in float32, which is enough for a preconditioner.
        """
        return self._divided(q, sizes, lambda shifted, _: shifted, single)

    def times(self, q: Floats, sizes: list[int], of: Callable[[Floats, list[int]], Floats]) -> Floats:
        """The same with a function of a layer's damped eigenvalues and the places of its parameters, for 1 / them."""
        return self._divided(q, sizes, lambda shifted, places: _over(of(shifted, places)), False)

    def _divided(self, q: Floats, sizes: list[int], by: Callable[[Floats, list[int]], Floats], single: bool) -> Floats:
        u, ends, kind = np.zeros_like(q), np.cumsum([0, *sizes]), np.float32 if single else np.float64
        for layer in self.layers:
            divisor = by(layer.shifted, [p for p in (layer.weight, layer.bias) if p >= 0])
            rows, bias = slice(ends[layer.weight], ends[layer.weight + 1]), layer.bias
            for k in range(q.shape[1]):
                matrix = q[rows, k].reshape(len(layer.shifted), -1)
                if bias >= 0:
                    matrix = np.concatenate([matrix, q[ends[bias] : ends[bias + 1], k][:, None]], axis=1)
                turned = preconditioned(matrix, layer.q_a, layer.q_s, divisor, kind)
                if bias >= 0:
                    u[ends[bias] : ends[bias + 1], k], turned = turned[:, -1], turned[:, :-1]
                u[rows, k] = turned.ravel()
        for place, value in self.scalars.items():
            some = slice(ends[place], ends[place + 1])
            u[some] = q[some] / float(by(np.array(value), [place]))
        return u


def _over(values: Floats) -> Floats:
    """One over values that may be 0."""
    with np.errstate(divide="ignore"):
        return 1.0 / values


def _eigenvalues(factor: dict[str, NDArray[Any]], k: int, products: bool) -> Floats:
    e_s, e_a, lam = (np.asarray(factor[f"{k}.{name}"], dtype=np.float64) for name in ("e_s", "e_a", "lam"))
    return np.outer(e_s, e_a) if products else lam
