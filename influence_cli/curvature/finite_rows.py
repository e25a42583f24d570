"""Fit rows that would make every score null are refused, and named."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from influence_cli.data.manifest import Rows
from influence_cli.errors import ManifestError


def check_rows(rows: Rows, index: NDArray[np.int64], *values: Tensor) -> None:
    """Refuse a manifest row of ``index`` [b] whose values [b, ...] are not finite.

    Raises:
        ManifestError: there is one; names it.
    """
    for value in values:
        bad = ~torch.isfinite(value.flatten(1)).all(dim=1)
        if bool(bad.any()):
            row = int(index[int(torch.nonzero(bad)[0])])
            raise ManifestError(
                "curvature cannot be fitted: the logits of a fit row, or their derivatives, are not finite",
                where=f"{rows.manifest.source}, row id={rows.manifest.ids[row]}",
                fix="repair the row, take it out or give it weight 0",
            )


def finite_sum(rows: Rows, total: Tensor) -> Tensor:
    """The sum over rows itself.

    Raises:
        ManifestError: it overflowed.
    """
    if not bool(torch.isfinite(total.sum())) and not bool(torch.isfinite(total).all()):
        raise ManifestError("the curvature is not finite", where=rows.manifest.source, fix="standardise the features")
    return total
