"""Two passes over the fit rows for ``datainf``: rows' gradients by tensor, their sizes and their weighted sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from influence_cli.curvature.dense import residuals
from influence_cli.curvature.finite_rows import check_rows
from influence_cli.curvature.fit_pass import by_tensor, layers_at, passes
from influence_cli.maths.rank_one import coefficients

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

Floats = NDArray[np.float64]


class RankOneSums:
    """Sums over the fit rows of their gradients, with their own labels, of every tensor that has a block."""

    def __init__(self, curvature: Curvature) -> None:
        self.curvature, self.layers = curvature, layers_at(curvature)
        by_tensor(self.layers)
        names = list(curvature.layout)
        self.places = [names.index(block.name) for block in self.layers.blocks]

    def mean_squares(self) -> Floats:
        """(1/n) sum_i w_i |g_i|^2 of every tensor with a block [L]."""
        total = torch.zeros(len(self.places), dtype=torch.float64, device=self.curvature.device)
        for index, tape, y, w in passes(self.curvature, self.layers, "curvature (datainf: sizes)"):
            for k, block in enumerate(tape.pull(residuals(tape.logits.softmax(dim=1), y))):
                squared = block.squared_norms()
                check_rows(self.curvature.rows, index, squared[:, None])
                total[k] += squared @ w.double()
        return (total / self.curvature.weight).cpu().numpy()

    def corrections(self, q: Floats, dampings: list[float]) -> Floats:
        """(1/n) sum_i w_i c_i g_i [d, k] for every column of q [d, k] and every tensor's lambda; 0 without a block."""
        c = self.curvature
        columns = [c.by_name(q[:, j]) for j in range(q.shape[1])]
        along = [{n: torch.from_numpy(v[n]).to(c.device, c.dtype) for n in c.layout} for v in columns]
        sums = [{n: torch.zeros(s, dtype=torch.float64, device=c.device) for n, s in c.layout.items()} for _ in along]
        for _, tape, y, w in passes(c, self.layers, "curvature (datainf: sums)"):
            for block, damping in zip(tape.pull(residuals(tape.logits.softmax(dim=1), y)), dampings, strict=True):
                squared = block.squared_norms()
                for v, total in zip(along, sums, strict=True):
                    share = coefficients(block.dots(v), squared, damping) * w
                    for name, part in block.weighted_sum(share).items():
                        total[name] += part
        flat = [np.concatenate([total[n].cpu().numpy().ravel() for n in c.layout]) for total in sums]
        return np.stack(flat, axis=1) / c.weight
