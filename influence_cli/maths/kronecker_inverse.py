"""The damped inverse of a block-diagonal curvature whose blocks are Kronecker-factored layers; in float64.

    u_layer = Q_S [ (Q_S^T q_layer Q_A) / (Lam + l2 + delta_layer) ] Q_A^T

Parameters of no layer have a mean eigenvalue, or nothing: q is divided by it where they are scaled at all, else u is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.maths.kronecker import preconditioned

Floats = NDArray[np.float64]

SHARE = 0.1  # of a layer's mean eigenvalue: default delta
LEAST = 1e-8  # of the largest layer's mean eigenvalue: the least that a layer is damped by


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
        cls, factor: dict[str, NDArray[Any]], products: bool, l2: float, damping: float | None, scaled: bool
    ) -> KroneckerInverse:
        """From stored bases and eigenvalues: of the rows' squares, or ``products`` of those of the two factors.

        Without a ``damping`` a layer's is a tenth of its mean eigenvalue, at least 1e-8 of the largest layer's mean.
        ``scaled``: other parameters are divided by their mean eigenvalue, damped by the same rule.

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
            return max(SHARE * mean, least) if damping is None else damping

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

    def apply(self, q: Floats, sizes: list[int]) -> Floats:
        """P q for every column of [d, k], whose parameters have these sizes in turn."""
        u, ends = np.zeros_like(q), np.cumsum([0, *sizes])
        for layer in self.layers:
            rows, bias = slice(ends[layer.weight], ends[layer.weight + 1]), layer.bias
            for k in range(q.shape[1]):
                matrix = q[rows, k].reshape(len(layer.shifted), -1)
                if bias >= 0:
                    matrix = np.concatenate([matrix, q[ends[bias] : ends[bias + 1], k][:, None]], axis=1)
                turned = preconditioned(matrix, layer.q_a, layer.q_s, layer.shifted)
                if bias >= 0:
                    u[ends[bias] : ends[bias + 1], k], turned = turned[:, -1], turned[:, :-1]
                u[rows, k] = turned.ravel()
        for place, value in self.scalars.items():
            some = slice(ends[place], ends[place + 1])
            u[some] = q[some] / value
        return u


def _eigenvalues(factor: dict[str, NDArray[Any]], k: int, products: bool) -> Floats:
    e_s, e_a, lam = (np.asarray(factor[f"{k}.{name}"], dtype=np.float64) for name in ("e_s", "e_a", "lam"))
    return np.outer(e_s, e_a) if products else lam
