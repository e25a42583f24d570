"""How much the loss of a text depends on each of its tokens: gradient times embedding.

    a_t = < d l / d e_t, e_t >

with e_t the embedding of token t: to first order the change of the loss as the token's embedding grows by its own size
(Simonyan et al. 2014; "gradient x input").  It says what the loss looks at.  It is no part of a score, and the tokens'
values do not sum to the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from influence_cli.data.kinds.text import MASK, TOKENS
from influence_cli.engines.attacked_texts import embedding_of, embedding_slopes
from influence_cli.engines.point import differentiable_kernels, is_recurrent
from influence_cli.model.losses import RowLoss
from influence_cli.model.named_tensors import NamedTensors
from influence_cli.model.spec import ModelSpec


def loss_by_token(model: nn.Module, spec: ModelSpec, inputs: NamedTensors, labels: Tensor, loss: RowLoss) -> Tensor:
    """Gradient times embedding of every token [b, T], in nats; 0 where a batch is filled up.

    ``model`` is in evaluation mode, ``inputs`` are its own, as ``to_input`` makes them.

    Raises:
        ModelError: the model does not say where its embedding is, or does not look each token up in it once.
    """
    with torch.no_grad():
        own = embedding_of(model, spec)(inputs.tensors[TOKENS])
    with differentiable_kernels(is_recurrent(model)):
        slopes = embedding_slopes(model, inputs, torch.zeros_like(own), labels, loss)
    return (slopes * own).sum(2) * inputs.tensors[MASK].to(own.dtype)
