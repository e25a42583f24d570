"""Linear layers with LoRA adapters (Hu et al. 2021, arXiv:2106.09685): y = W x + b + (alpha / r) B A x.

Only A and B are parameters that count: all of the base model's are frozen, so that scores are of the adapters alone.
Names are those of peft: ``LAYER.base_layer``, ``LAYER.lora_A`` and ``LAYER.lora_B``.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from influence_cli.errors import ModelError

PREFIX = "base_model.model."  # of names in a file of adapters
_NAME = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
FIX = "save the adapters again with peft, or merge them into the model: merge_and_unload()"


class LoraLayer(nn.Module):
    """A frozen linear layer and its adapter."""

    def __init__(self, base_layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> None:
        """``a`` [r, inputs] and ``b`` [outputs, r]; ``scale`` is alpha / r."""
        super().__init__()
        self.base_layer, self.scale = base_layer, scale
        self.lora_A, self.lora_B = nn.Linear(*a.shape[::-1], bias=False), nn.Linear(*b.shape[::-1], bias=False)
        with torch.no_grad():
            self.lora_A.weight.copy_(a)
            self.lora_B.weight.copy_(b)

    def forward(self, x: Tensor) -> Tensor:
        """From [..., inputs] to [..., outputs]."""
        return self.base_layer(x) + self.lora_B(self.lora_A(x)) * self.scale


def apart(weights: dict[str, Tensor], adapted: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the base model, and those of the adapters without their prefix, if it is ``adapted``."""
    if not adapted:
        return weights, {}
    of_adapters = {name.removeprefix(PREFIX): w for name, w in weights.items() if name.startswith(PREFIX)}
    return {name: w for name, w in weights.items() if not name.startswith(PREFIX)}, of_adapters


def with_adapters(model: nn.Module, weights: dict[str, Tensor], config: dict[str, Any], where: str) -> nn.Module:
    """The model, in place, frozen and with adapters on its layers; parts that were trained whole take their weights.

    Raises:
        ModelError: a weight has no place in the model, or no partner.
    """
    model.requires_grad_(False)
    sides: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        found = _NAME.fullmatch(name)
        if found is not None:
            sides.setdefault(found["layer"], {})[found["side"]] = value.float()
            continue
        try:
            parameter = model.get_parameter(name)
            with torch.no_grad():
                parameter.copy_(value)
        except (AttributeError, RuntimeError) as error:
            raise ModelError(f"{name} of the adapters has no place in the model", where=where, fix=FIX) from error
        parameter.requires_grad_(True)
    for name, pair in sides.items():
        holder, _, last = name.rpartition(".")
        try:
            layer = model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(f"the model has no layer {name}", where=where, fix=FIX) from error
        if pair.keys() != {"A", "B"} or not _fits(layer, pair):
            raise ModelError(f"the adapter of {name} does not fit the layer", where=where, fix=FIX)
        made = LoraLayer(layer, pair["A"], pair["B"], _scale(name, len(pair["A"]), config))
        setattr(model.get_submodule(holder), last, made)
    if not sides:
        raise ModelError("there are no LoRA weights in the file", where=where, fix=FIX)
    return model


def _fits(layer: nn.Module, pair: dict[str, Tensor]) -> bool:
    """Whether a layer is linear, as torch or transformers has it, with the adapter's numbers of inputs and outputs."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(layer, nn.Embedding):
        return False
    outputs, inputs = weight.shape if isinstance(layer, nn.Linear) else weight.shape[::-1]
    return pair["A"].shape == (len(pair["A"]), inputs) and pair["B"].shape == (outputs, len(pair["A"]))


def _scale(name: str, rank: int, config: dict[str, Any]) -> float:
    """Alpha / r of a layer, by the first pattern that its name ends with; over the root of r where rank is stabilised.

    Raises:
        ModelError: a pattern is none.
    """
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        try:
            hit = re.fullmatch(rf"(.*\.)?({pattern})", name)
        except re.error as error:
            raise ModelError(f"alpha_pattern {pattern!r} is no pattern ({error})", fix=FIX) from error
        if hit:
            alpha = value
            break
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)
