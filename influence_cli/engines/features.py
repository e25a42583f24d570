"""Penultimate features: what a model gives to the linear layer that makes its logits, one vector a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from influence_cli.engines.batch_size import out_of_memory
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import NoFeatures
from influence_cli.model.build import build_model
from influence_cli.model.examples import blank_input
from influence_cli.model.logit_layer import HEAD, logit_layer
from influence_cli.model.named_tensors import as_argument
from influence_cli.model.spec import ModelSpec

ROWS = 2  # on which the layer is looked for
NO_LAYER = "the model has no penultimate features: no linear layer alone makes its logits"
INSTEAD = "score with a method that looks at logits, such as loss or margin"


class Features:
    """The inputs of the layer that makes a model's logits, which is found by running a few rows."""

    def __init__(self, point: Point) -> None:
        """Nothing is run yet."""
        self.point = point
        self.layer: str | None = None

    def find(self, x: Any) -> str:
        """The name of the layer, as inputs [b, ...] show it.

        Raises:
            NoFeatures: no linear layer makes the logits, or it is given no vector a row.
        """
        if self.layer is None:
            some = x[:ROWS] if self.point.few is None else self.point.few[:ROWS]
            try:
                with differentiable_kernels(self.point.recurrent):
                    found = logit_layer(self.point.model, as_argument(some))
            except (RuntimeError, TypeError, ValueError) as error:
                if out_of_memory(error):
                    raise
                found = None  # a model that cannot be looked into
            if found is None:
                raise NoFeatures(NO_LAYER, fix=INSTEAD)
            self.layer = found
            self._inputs(some)
        return self.layer

    def of(self, x: Any) -> Tensor:
        """Features [b, d] of inputs [b, ...], in the precision of the point.

        Raises:
            NoFeatures: the model has none.
        """
        self.find(x)
        return self._inputs(x)

    def _inputs(self, x: Any) -> Tensor:
        assert self.layer is not None
        calls: list[tuple[Any, ...]] = []
        module = self.point.model.get_submodule(self.layer)
        hook = module.register_forward_pre_hook(lambda _, args: calls.append(args))
        try:
            with torch.no_grad(), differentiable_kernels(self.point.recurrent):
                self.point.logits(x)
        finally:
            hook.remove()
        given = calls[0][0] if len(calls) == 1 and len(calls[0]) == 1 else None
        if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != len(x):
            shape = f"{list(given.shape)} for {len(x)} rows" if isinstance(given, Tensor) else f"{len(calls)} calls"
            what = f"layer {self.layer} makes the logits, and is given no one vector a row ({shape})"
            raise NoFeatures(what, fix=INSTEAD)
        return given.detach()


def width_of(spec: ModelSpec) -> int:
    """How many features a row has, for a plan: the model is built, and its weights do not matter.

    Raises:
        NoFeatures: the model has none.
    """
    model = build_model(spec).eval()
    name = getattr(model, HEAD, None)  # of a model of the user's own, which has been run
    if name is None:
        x = blank_input(spec, ROWS, torch.float32)
        name = None if x is None else logit_layer(model, as_argument(x))
    layer = model.get_submodule(name) if name else model  # which may be that layer itself
    if not isinstance(layer, nn.Linear):
        raise NoFeatures(NO_LAYER, fix=INSTEAD)
    return layer.in_features
