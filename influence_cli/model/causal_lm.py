"""Causal language models of transformers, called as our own: with token numbers and a mask, they return rows' losses.

The output layer becomes a ``NextTokenLoss`` on the same weights, which may be the embedding's, and the model's forward
goes from the network below it to that; so parameters keep the names that they have in the files.  Whether this is what
the model itself computes is tried on a few tokens, and so is that no token's loss depends on a later one.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli.errors import ModelError
from influence_cli.model.named_tensors import as_argument, from_arrays
from influence_cli.model.next_token import NextTokenLoss, by_token, row_output
from influence_cli.model.spec import ModelSpec

FIX = "give a causal language model, such as GPT-2, Llama, OPT or GPT-NeoX"
CLOSE = 1e-4  # nats, between two ways to one loss in float32


class _Forward:
    """What takes the place of a model's ``forward``."""

    def __init__(self, model: nn.Module, head: NextTokenLoss) -> None:
        self.model, self.head = model, head
        below: Any = model.base_model
        self.placed = "position_ids" in inspect.signature(below.forward).parameters

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        """As ``next_token.row_output`` says."""
        below: Any = self.model.base_model
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        # positions row by row: left to itself a network looks them up once for all rows, whose gradients then are not
        # those of its table of positions
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        more = {"position_ids": places} if self.placed else {}
        hidden = below(input_ids=ids, attention_mask=mask, use_cache=False, **more)[0]
        return row_output(self.head, hidden, ids, mask)


def with_losses(model: Any, spec: ModelSpec) -> nn.Module:
    """The model, in place, which is then called with a dict of tensors and returns losses.

    Raises:
        ModelError: it is no causal language model with a linear output layer, or does more to its logits than that.
    """
    model.float().eval()
    if spec.network is not None and getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(f"{spec.name} reads a text and writes another: it is no causal language model", fix=FIX)
    output, below = model.get_output_embeddings(), getattr(model, "base_model", model)
    name = next((name for name, module in model.named_modules() if module is output and name), None)
    if not isinstance(output, nn.Linear) or name is None or below is model:
        raise ModelError(f"the logits of {spec.name} are not made by a linear layer on a network", fix=FIX)
    x, expected = _checked_causal(model, output, spec)
    holder, _, last = name.rpartition(".")
    head = NextTokenLoss(cast(nn.Parameter, output.weight), cast("nn.Parameter | None", output.bias))
    setattr(model.get_submodule(holder), last, head)
    model.forward = _Forward(model, head)
    with torch.no_grad(), by_token(model):
        found = model(x)[:, 1:]
    if not torch.allclose(found, expected, rtol=CLOSE, atol=CLOSE):
        what = f"{spec.name} does more between its network and its output layer, which is not followed"
        raise ModelError(what, fix=FIX)
    return model


def _checked_causal(model: Any, output: nn.Module, spec: ModelSpec) -> tuple[dict[str, Tensor], Tensor]:
    """A few tokens and their losses, as the model of transformers itself has them.

    Raises:
        ModelError: they depend on later tokens, or the logits are not what the ``output`` layer gives.
    """
    blank = spec.payload_kind.blank(spec, 2)
    assert blank is not None
    x = {name: value.long() for name, value in as_argument(from_arrays(blank)).items()}
    changed = x["input_ids"].clone()
    changed[:, -1] = changed[:, 0]
    given = list[Any]()
    hook = output.register_forward_hook(lambda module, args, out: given.append(out))
    with torch.no_grad():
        own, other = (model(**{**x, "input_ids": ids}, use_cache=False).logits for ids in (x["input_ids"], changed))
    hook.remove()
    if not torch.allclose(own[:, :-1], other[:, :-1], rtol=CLOSE, atol=CLOSE):
        raise ModelError(f"{spec.name} sees the tokens that it is to predict: it is no causal language model", fix=FIX)
    if len(given) != 2 or not torch.equal(given[0].to(own.dtype), own):
        raise ModelError(f"{spec.name} changes its logits after the output layer, which is not followed", fix=FIX)
    return x, F.cross_entropy(own[:, :-1].mT, x["input_ids"][:, 1:], reduction="none")
