"""Training by a loop of its own, which the package's trainings are held against: plain descent at a constant rate."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from influence_cli.model.build import build_model
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.recipe import Recipe
from influence_cli.model.train.sgd import augment, epoch_order, row_hashes


def inputs_of(rows: Sequence[dict[str, Any]], spec: ModelSpec) -> Tensor:
    """Features as they are, or pixels in [0, 255], of rows of a manifest."""
    if "features" in rows[0]:
        return torch.tensor([r["features"] for r in rows], dtype=torch.float32)
    return torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(r["image"])), np.float32)) for r in rows])[
        :, None
    ]


def as_input(values: Tensor, spec: ModelSpec) -> Tensor:
    """What the model takes."""
    return values if values.ndim == 2 else (values / 255.0 - spec.mean[0]) / spec.std[0]


def trained_by_hand(
    rows: Sequence[dict[str, Any]], spec: ModelSpec, recipe: Recipe, seed: int = 0
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A model trained on rows, and the logits of every row in its batch of every epoch, by id."""
    ids, x = [r["id"] for r in rows], inputs_of(rows, spec)
    y = torch.tensor([r["label"] for r in rows])
    torch.manual_seed(seed)
    model = build_model(spec).train()
    epochs = []
    for epoch in range(recipe.epochs):
        logits: dict[str, Tensor] = {}
        draws, order = row_hashes(ids, seed, epoch), epoch_order(ids, seed, epoch)
        for first in range(0, len(ids), recipe.batch_size):
            some = order[first : first + recipe.batch_size]
            z = model(as_input(augment(x[some], draws[some], recipe.augment), spec))
            logits |= {ids[k]: z[n].detach() for n, k in enumerate(some.tolist())}
            model.zero_grad()
            F.cross_entropy(z, y[some]).backward()
            with torch.no_grad():
                for p in model.parameters():
                    assert p.grad is not None
                    p -= recipe.peak_lr * p.grad
        epochs.append(logits)
    return model.eval(), epochs
