"""Rows' gradients over the fit rows for ``datainf``: the mean of inverses of rank-one matrices.

For rows' gradients g_i [d] with weights w_i, n = sum w_i, and lambda > 0:

    r = (1/n) sum_i w_i (g_i g_i^T + lambda I)^-1 v = (1/lambda) [ v - (1/n) sum_i w_i c_i g_i ],
    c_i = (v . g_i) / (lambda + |g_i|^2)

by Sherman and Morrison.  Kwon et al. 2024 (arXiv:2310.00902), Eq. 5.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.curvature.dense import check_rows
from influence_cli.engines.layerwise.blocks import BlockLayout, Site
from influence_cli.engines.layerwise.own_forward import OwnForward
from influence_cli.engines.layerwise.tape import Tape
from influence_cli.processes.messages import may_be_sent

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

Floats = NDArray[np.float64]

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


class RankOneSums:
    """Sums over the fit rows of their gradients, with their own labels, of every tensor that has a block."""

    def __init__(self, curvature: Curvature) -> None:
        self.curvature, self.layers = curvature, curvature.layers()
        self.layers.blocks = by_tensor(self.layers.blocks)
        names = list(curvature.layout)
        self.places = [names.index(block.name) for block in self.layers.blocks]

    def mean_squares(self) -> Floats:
        """(1/n) sum_i w_i |g_i|^2 of every tensor with a block [L]."""
        c = self.curvature
        total = self.squares() if c.divided is None else c.sums(_squares)[0]
        return (total / self.curvature.weight).cpu().numpy()

    def squares(self) -> Tensor:
        """The sum of w_i |g_i|^2 over the rows [L]."""
        total = torch.zeros(len(self.places), dtype=torch.float64, device=self.curvature.device)
        for index, tape, y, w in self.curvature.tapes(self.layers, "curvature (datainf: sizes)"):
            for k, block in enumerate(tape.pull(self._residuals(tape, y))):
                squared = block.squared_norms()
                check_rows(self.curvature.rows, index, squared[:, None])
                total[k] += squared @ w.double()
        return total

    def corrections(self, q: Floats, dampings: list[float]) -> Floats:
        """(1/n) sum_i w_i c_i g_i [d, k] for every column of q [d, k] and every tensor's lambda; 0 without a block."""
        c, of = self.curvature, functools.partial(_corrected, q=q, dampings=dampings)
        totals = self.corrected(q, dampings) if c.divided is None else c.sums(of)
        return np.stack([total.cpu().numpy() for total in totals], axis=1) / c.weight

    def corrected(self, q: Floats, dampings: list[float]) -> list[Tensor]:
        """The sum of w_i c_i g_i over the rows [d] for every column of q [d, k]."""
        c = self.curvature
        columns = [c.by_name(q[:, j]) for j in range(q.shape[1])]
        along = [{n: torch.from_numpy(v[n]).to(c.device, c.dtype) for n in c.layout} for v in columns]
        sums = [{n: torch.zeros(s, dtype=torch.float64, device=c.device) for n, s in c.layout.items()} for _ in along]
        for _, tape, y, w in c.tapes(self.layers, "curvature (datainf: sums)"):
            for block, damping in zip(tape.pull(self._residuals(tape, y)), dampings, strict=True):
                squared = block.squared_norms()
                for v, total in zip(along, sums, strict=True):
                    share = coefficients(block.dots(v), squared, damping) * w
                    for name, part in block.weighted_sum(share).items():
                        total[name] += part
        return [torch.cat([total[n].reshape(-1) for n in c.layout]) for total in sums]

    def _residuals(self, tape: Tape, y: Tensor) -> Tensor:
        loss, z = self.curvature.loss, tape.logits
        return loss.curvature(z, y).residuals() if loss.curved else loss.slopes(z, y).to(z)


@may_be_sent
def _squares(curvature: Curvature) -> list[Tensor]:
    return [RankOneSums(curvature).squares()]


@may_be_sent
def _corrected(curvature: Curvature, q: Floats, dampings: list[float]) -> list[Tensor]:
    return RankOneSums(curvature).corrected(q, dampings)


def by_tensor(blocks: Iterable[BlockLayout]) -> tuple[BlockLayout, ...]:
    """Every parameter as a block of its own."""
    every = [(block, name) for block in blocks for name in block.shapes]
    return tuple(
        BlockLayout(n, {n: b.shapes[n]}, tuple(_only(s, n) for s in b.sites if n in s.names.values())) for b, n in every
    )


def _only(site: Site, name: str) -> Site:
    own = {mine: whole for mine, whole in site.names.items() if whole == name}
    rule = site.rule
    if isinstance(rule, OwnForward):
        rule = OwnForward(rule.module, rule.values, tuple(own), rule.recurrent)
    return dataclasses.replace(site, names=own, rule=rule)
