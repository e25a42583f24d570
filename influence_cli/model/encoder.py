"""Encoders of transformers without a classifier: a row's features are the mean of its tokens' last hidden states.

Tokens that fill a batch up do not count; of maps of pixels it is the mean over places.  A last linear layer is put on
them, since features are what such a layer is given: its weights are never looked at.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from influence_cli.errors import ModelError
from influence_cli.model.parameters import in_precision
from influence_cli.model.text_input import require_transformers, short
from influence_cli.model.transformers_model import EAGER, configuration
from influence_cli.model.weights import read_weights, refuse_not_finite

if TYPE_CHECKING:
    from influence_cli.model.checkpoints import Checkpoint
    from influence_cli.model.spec import ModelSpec

SHOWN = 4
UNUSED = "pooler"  # of names: a layer after the tokens, which is not called for


class Pooled(nn.Module):
    """An encoder, the mean over its tokens, and a linear layer."""

    def __init__(self, encoder: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, outputs)

    def forward(self, inputs: Any) -> Tensor:
        """Outputs [n, C] of tensors by name, or of pixels."""
        named = dict(inputs) if isinstance(inputs, dict) else {"pixel_values": inputs}
        hidden: Tensor = self.encoder(**named).last_hidden_state
        if hidden.ndim == 4:  # [n, d, height, width]
            return self.head(hidden.mean(dim=(2, 3)))
        mask = named.get("attention_mask")
        if mask is None:
            return self.head(hidden.mean(dim=1))
        counts = mask[:, :, None].to(hidden.dtype)
        return self.head((hidden * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1.0))


def build_encoder(spec: ModelSpec) -> nn.Module:
    """An untrained encoder of a spec.  Raises ModelError: transformers has none of this architecture."""
    return _pooled(spec, "", lambda _, config: _auto().from_config(config, attn_implementation=EAGER))


def load_encoder(spec: ModelSpec, checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> nn.Module:
    """The encoder with a checkpoint's weights, in evaluation mode; those of other layers are left alone.

    Raises:
        ModelError: weights of the encoder are missing, or not finite.
    """
    weights, said = read_weights(checkpoint), dict[str, Any]()

    def make(kind: Any, config: Any) -> Any:
        model, info = kind.from_pretrained(
            None, config=config, state_dict=dict(weights), attn_implementation=EAGER, output_loading_info=True,
            ignore_mismatched_sizes=True,
        )  # fmt: skip
        said.update(info)
        return model

    model = _pooled(spec, checkpoint.locator, make)
    lacking = {*said["missing_keys"], *(str(entry[0]) for entry in said["mismatched_keys"])}
    lacking = sorted(name for name in lacking if UNUSED not in name.split("."))
    if lacking:
        more = f"; and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        what = f"the checkpoint does not fit {spec.name}: {', '.join(lacking[:SHOWN])} expected but missing{more}"
        raise ModelError(what, where=checkpoint.locator, fix="give the folder that the weights are from")
    refuse_not_finite(model, dict(model.named_parameters()), checkpoint)
    return in_precision(model, dtype).eval()


def _auto() -> Any:
    return require_transformers().AutoModel


def _class_of(config: Any) -> Any:
    """The class of encoders of a configuration; of several the first, which is the usual one."""
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    found = auto.MODEL_MAPPING_NAMES.get(config.model_type)
    name = found[0] if isinstance(found, tuple | list) else found
    return getattr(require_transformers(), str(name), _auto())


def _pooled(spec: ModelSpec, where: str, make: Any) -> nn.Module:
    config = configuration(spec)
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    try:
        encoder = make(_class_of(config), config)
    except (ValueError, TypeError, OSError, RuntimeError, KeyError, ImportError, AssertionError, IndexError) as error:
        what = f"transformers cannot build an encoder of {spec.name} ({short(error)})"
        raise ModelError(what, where=where, fix="name another model with --features") from error
    if not isinstance(width, int):
        raise ModelError(f"{spec.name} does not say how wide it is", where=where, fix="name another model")
    return Pooled(encoder.float(), width, spec.num_classes)
