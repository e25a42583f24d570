"""A small GPT (Radford et al. 2019, GPT-2) that is trained from nothing: ``gpt:LAYERSxWIDTH``.

Pre-norm blocks of causal attention and an MLP of four times the width with GELU, learned positions, and one table for
embedding and output.  Filling up on the right needs no mask: no token looks at a later one.
"""

from __future__ import annotations

import re
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli.errors import ModelError
from influence_cli.model.next_token import NextTokenLoss, row_output
from influence_cli.model.spec import ModelSpec

HEAD_WIDTH = 32  # of a head of attention, where the width is a multiple of it
SPREAD = 0.02  # sd of the first weights
_NAME = re.compile(r"gpt(?::([1-9]\d*)x([1-9]\d*))?")
USUAL = (4, 128)  # layers and width of "gpt"
MOST = 4096  # of either


def sizes(name: str) -> tuple[int, int]:
    """Layers and width in a model's name.

    >>> sizes("gpt:2x64"), sizes("gpt")
    ((2, 64), (4, 128))

    Raises:
        ModelError: the name says none.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ModelError(f"cannot read model {name!r}", fix="write gpt:LAYERSxWIDTH, such as gpt:4x128")
    layers, width = (int(found[1]), int(found[2])) if found[1] else USUAL
    if max(layers, width) > MOST:
        raise ModelError(
            f"{name} has more than {MOST} layers or units", fix="write gpt:LAYERSxWIDTH, such as gpt:4x128"
        )
    return layers, width


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From [n, T, d] to [n, T, d]."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(made.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From [n, T, d] to [n, T, d]."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Token numbers to what ``next_token.row_output`` says of each row."""

    def __init__(self, vocabulary: int, context: int, layers: int, width: int) -> None:
        """``context`` is the most tokens of a row."""
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = NextTokenLoss(cast(nn.Parameter, self.tokens.weight))
        for name, p in self.named_parameters():
            if p.ndim > 1:  # what adds to the residual stream is smaller the more there are of them
                into_stream = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=SPREAD / (2 * layers) ** 0.5 if into_stream else SPREAD)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """Losses and numbers of tokens [n, 2], or losses by token [n, T], of ``input_ids`` and ``attention_mask``."""
        ids, mask = x["input_ids"], x["attention_mask"]
        places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        h = self.tokens(ids) + self.places(places)
        for block in self.blocks:
            h = block(h)
        return row_output(self.head, self.norm(h), ids, mask)


def of_spec(spec: ModelSpec) -> GPT:
    """An untrained GPT for a spec.

    Raises:
        ModelError: the spec says no tokenizer, or the sizes are too large for the memory.
    """
    if spec.text is None or spec.text.vocabulary is None:
        raise ModelError(f"{spec.name} says no tokenizer", fix="give the run folder of `retrain`")
    try:
        return GPT(spec.text.vocabulary, spec.shape[0], *sizes(spec.name))
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise ModelError(f"{spec.name} is too large for the memory", fix="write fewer layers or units") from error
