"""A model of which only the features are wanted: its weights may be of another last layer, or of none."""

from __future__ import annotations

import torch
from torch import nn

from influence_cli.errors import ModelError
from influence_cli.events import SILENT, Listener
from influence_cli.model.build import build_model, check_input
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.examples import blank_input
from influence_cli.model.logit_layer import logit_layer
from influence_cli.model.named_tensors import as_argument
from influence_cli.model.parameters import in_precision
from influence_cli.model.spec import ENCODER, ModelSpec
from influence_cli.model.weights import load_weights


def load_headless(
    spec: ModelSpec, checkpoint: Checkpoint, dtype: torch.dtype | None = None, listener: Listener = SILENT
) -> nn.Module:
    """The model of a spec with a checkpoint's weights, but for the layer that makes its logits, in evaluation mode.

    Raises:
        ModelError: no linear layer alone makes the logits, or the other weights do not fit.
    """
    if spec.name.startswith(ENCODER):
        from influence_cli.model.encoder import load_encoder

        model = load_encoder(spec, checkpoint, dtype)
        check_input(model, spec)
        return model
    model = in_precision(build_model(spec), dtype).eval()
    check_input(model, spec)
    blank = blank_input(spec, 2, next(model.parameters()).dtype)
    head = None if blank is None else logit_layer(model, as_argument(blank))
    if head is None:
        what = f"{spec.name} has no penultimate features: no linear layer alone makes its logits"
        raise ModelError(what, where=checkpoint.locator, fix="name another model with --features")
    return load_weights(model, checkpoint, spec.name, listener, without=f"{head}.")
