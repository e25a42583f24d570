"""Values of rows' own loss gradients: for every row a function of its gradient's blocks, such as a sum over them.

One forward and one backward pass a batch, for output gradients only (see ``layers``); no row's gradient is made whole
but where a value needs it, and then of some rows at a time.

The direction of a target row v is grad l_v = J_v^T a_v with a_v = d l_v / d z_v [C]; the score of a train row i along a
direction u is < a_i, t_i > with t_i = J_i u its logit tangent.  Both begin with the same slopes a, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.engines.layerwise.blocks import MATERIALISED, Block
from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ModelError
from influence_cli.model.losses import RowLoss
from influence_cli.model.parameters import pulled

OfBlock = Callable[[Block], Tensor]  # a block of b rows to its part of their values, float64 [b]
OfBlocks = Callable[[list[Block]], Tensor]  # the blocks of b rows to their values, float64 [b]
Direction = dict[str, Tensor]  # shaped like the selected parameters, by name
NAMED = 6  # parameters that a message names
SMALLEST = 5e-324  # the least number above 0: not nothing, and not known to any digit


class RowValues:
    """Values at a point; the layers are planned on the first batch that has usable rows."""

    def __init__(self, point: Point, loss: RowLoss, functions: Sequence[OfBlocks], quadratic: bool = False) -> None:
        """``functions`` are one for every value that is asked for; ``quadratic``: each is a quadratic form.

        Such a form is taken of the gradient over its slope's power of two, and multiplied by the square of that: of a
        row that is predicted with certainty the gradient has no square in float32.
        """
        self.point, self.loss, self.functions, self.quadratic = point, loss, functions, quadratic
        self.layers: Layers | None = None

    def of(self, x: Tensor, labels: Tensor) -> Tensor:
        """Values [b, k] in float64; NaN for rows whose logits are not finite.

        Raises:
            ModelError: there are selected parameters that the layers do not reach; names them.
        """
        found = torch.full((len(x), len(self.functions)), torch.nan, dtype=torch.float64, device=x.device)
        if not self.ready(x):
            return found
        sizes = list[Tensor]()
        logits, blocks = self.blocks(x, labels, sizes if self.quadratic else None)
        for k, function in enumerate(self.functions):
            value = function(blocks)
            found[:, k] = scaled_back(value, sizes[0].to(value.device)) if sizes else value
        found[~torch.isfinite(logits).all(1)] = torch.nan
        return found

    def ready(self, x: Tensor) -> bool:
        """Whether the layers are known, after planning them on rows of ``x`` with finite logits, if any.

        Raises:
            ModelError: there are selected parameters that the layers do not reach; names them.
        """
        if self.layers is None:
            with torch.no_grad():
                usable = torch.isfinite(self.point.logits(x)).all(1)
            if usable.any():
                self.layers = self._planned(x[usable])
        return self.layers is not None

    def blocks(self, x: Tensor, labels: Tensor, sizes: list[Tensor] | None = None) -> tuple[Tensor, list[Block]]:
        """Logits [b, C], and the blocks of the rows' loss gradients; the layers must be known.

        With a list of ``sizes``, of the gradients over a size of each row [b], which is appended to it.
        """
        assert self.layers is not None

        def slope(z: Tensor) -> Tensor:
            if sizes is None:
                return self.loss.slopes(z, labels).to(z.dtype)
            over, size = self.loss.slopes_over_size(z, labels)
            sizes.append(size)
            return over.to(z.dtype)

        return self.layers.of_rows(x, slope)

    def _planned(self, x: Tensor) -> Layers:
        layers = Layers(self.point, x)
        coverage = layers.coverage
        if coverage.missing:
            names = [name for some in coverage.missing.values() for name in some]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise ModelError(
                f"no layer gives the row gradients of {', '.join(names[:NAMED])}{more}: "
                f"{coverage.parameters - coverage.covered:,} of {coverage.parameters:,} selected parameters",
                fix="select others with --params, such as --params last",
            )
        return layers


def scaled_back(value: Tensor, size: Tensor) -> Tensor:
    """Quadratic forms [n] of gradients over their sizes [n] as those of the gradients; never 0 where they are not."""
    found = value * size * size
    least = torch.copysign(torch.full_like(value, SMALLEST), value)
    return torch.where((found == 0) & (value != 0), least, found)


def sum_over(of_block: OfBlock) -> OfBlocks:
    """The sum over blocks of a function of one."""
    return lambda blocks: torch.stack([of_block(block) for block in blocks]).sum(0)


class DenseForm:
    """From the blocks of b rows to a function of their whole gradients, float64 columns [d, b] to [b]."""

    def __init__(self, names: list[str], form: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
        """``names`` are the parameters in the order of a column."""
        self.names, self.form = names, form

    def __call__(self, blocks: list[Block]) -> Tensor:
        """The function of every row, some rows at a time; NaN for a gradient that is not finite."""
        b, like = blocks[0].b, blocks[0].like
        step = max(1, MATERIALISED // max(1, sum(block.layout.size for block in blocks)))
        found = np.full(b, np.nan)
        for first in range(0, b, step):
            columns = self._columns(blocks, slice(first, first + step))
            usable = np.isfinite(columns).all(axis=0)
            if usable.any():
                found[first : first + step][usable] = self.form(columns[:, usable])
        return torch.from_numpy(found).to(like.device)

    def _columns(self, blocks: list[Block], rows: slice) -> NDArray[np.float64]:
        g = {name: value for block in blocks for name, value in block.gradients(rows).items()}
        return torch.cat([g[name].reshape(len(g[name]), -1) for name in self.names], 1).T.double().cpu().numpy()


def row_directions(point: Point, x: Tensor, labels: Tensor, loss: RowLoss) -> tuple[Tensor, list[Direction]]:
    """Logits [t, C] of rows, and every row's loss gradient by parameter name: a forward and a backward pass each."""
    selected = point.leaves()
    logits: list[Tensor] = []
    directions: list[Direction] = []
    device = torch.device("cpu") if point.device.type == "mps" else point.device  # mps has no float64
    with torch.enable_grad(), differentiable_kernels(point.recurrent):
        for row, label in zip(x.split(1), labels.split(1), strict=True):
            z = point.logits(row, selected)
            a = loss.slopes(z.detach().to(device), label.to(device)).to(z.device, z.dtype)
            gradients = pulled([z], list(selected.values()), [a])
            logits.append(z.detach())
            directions.append(dict(zip(selected, gradients, strict=True)))
    return torch.cat(logits), directions


def row_scores(loss: RowLoss, logits: Tensor, tangents: list[Tensor], of: Tensor, labels: Tensor) -> Tensor:
    """Scores [t, r] along t directions, in float64, of r rows: their places ``of`` [r] among b payloads, and labels.

    Several rows may have one payload, and other labels: logits and ``tangents`` [b, C] are of payloads.
    """
    device = torch.device("cpu") if logits.device.type == "mps" else logits.device
    a = loss.slopes(logits[of].to(device), labels.to(device))
    t = torch.stack(tangents).to(device)[:, of].double()
    return torch.einsum("rc,trc->tr", a, t)
