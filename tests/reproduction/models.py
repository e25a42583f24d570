"""Two small networks of tokens for the 8x8 digits: a mixer and an encoder with attention, as a user would give them.

A row's 64 values are 16 patches of 2x2 pixels.  ``--model python:tests.reproduction.models:mixer`` names one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, PATCHES, CLASSES = 32, 16, 10


class Patches(nn.Module):
    """Values [b, 64] to embedded patches [b, 16, 32] with places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(PATCHES, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Patches row by row."""
        cut = x.reshape(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).reshape(-1, PATCHES, 4)
        return self.embed(cut) + self.place


class Attention(nn.Module):
    """Self-attention with four heads, [b, t, w] to [b, t, w]."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.into, self.out = heads, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Softmax of scaled products, over all tokens."""
        b, t, _ = x.shape
        q, k, v = self.into(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, WIDTH))


class AcrossTokens(nn.Module):
    """The mixer's step over tokens, [b, t, w] to [b, t, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(PATCHES, 2 * PATCHES), nn.GELU(), nn.Linear(2 * PATCHES, PATCHES))

    def forward(self, x: Tensor) -> Tensor:
        """An MLP along the tokens of every channel."""
        return self.net(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """Mix tokens, then channels, each after a LayerNorm and added to its input."""

    def __init__(self, tokens: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.tokens = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), tokens
        self.channels = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, w] to [b, t, w]."""
        x = x + self.tokens(self.first(x))
        return x + self.channels(self.second(x))


class Classifier(nn.Module):
    """Two blocks, the mean over tokens, and a linear layer to 10 logits."""

    def __init__(self, tokens: type[nn.Module]) -> None:
        super().__init__()
        self.patches, self.blocks = Patches(), nn.Sequential(Block(tokens()), Block(tokens()))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Values [b, 64] to logits [b, 10]."""
        return self.head(self.norm(self.blocks(self.patches(x))).mean(1))


def mixer() -> nn.Module:
    """A mixer; its weights are those of a fixed seed."""
    torch.manual_seed(0)
    return Classifier(AcrossTokens)


def attention() -> nn.Module:
    """An encoder with attention; its weights are those of a fixed seed."""
    torch.manual_seed(0)
    return Classifier(Attention)
