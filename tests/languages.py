"""Small language models, texts without labels, and the loop over their rows in plain autograd."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from influence_cli.model.gpt import GPT
from influence_cli.model.named_tensors import NamedTensors
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain

_SAID = "the cat dog saw a man who sang of old rain and grey stones by night in every town"
WORDS = _SAID.split()


def texts(train: int = 24, val: int = 6, test: int = 6, seed: int = 0) -> pa.Table:
    """Rows with id, text and split, of 3 to 14 words; no two are alike."""
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < train + val + test:
        found[" ".join(rng.choices(WORDS, k=rng.randint(3, 14)))] = None
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    return pa.table({"id": [f"r{k}" for k in range(len(found))], "text": list(found), "split": splits})


def gpt(vocabulary: int = 40, context: int = 16, layers: int = 2, width: int = 32, seed: int = 0) -> GPT:
    """A GPT whose weights are larger than they start, so that rows differ."""
    torch.manual_seed(seed)
    model = GPT(vocabulary, context, layers, width).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model


def token_rows(rows: int = 12, vocabulary: int = 40, first: int = 1) -> Any:
    """Token numbers and a mask of rows with 3 to 14 tokens, filled up on the right."""
    generator = torch.Generator().manual_seed(1)
    lengths = 3 + torch.arange(rows) * 5 % 12
    ids = torch.randint(first, vocabulary, (rows, int(lengths.max())), generator=generator)
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    return NamedTensors({"input_ids": ids * mask, "attention_mask": mask})


def direction(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random numbers for every parameter, by its name."""
    of = {n: torch.Generator().manual_seed(len(n) + p.numel()) for n, p in parameters.items()}
    return {n: torch.randn(p.shape, generator=of[n], dtype=torch.float64).to(p) for n, p in parameters.items()}


def plain_logits(model: Any, ids: Tensor) -> Tensor:
    """Logits [T, V] of one row, written out: no block of tokens, no mask, attention as a matrix."""
    h = model.tokens.weight[ids] + model.places.weight[: len(ids)]
    hidden = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    for block in model.blocks:
        at, x = block.attention, block.norm1(h)
        q, k, v = at.qkv(x).split(h.shape[1], 1)
        wide, heads = h.shape[1] // at.heads, []
        for a in range(at.heads):
            some = slice(a * wide, (a + 1) * wide)
            scores = (q[:, some] @ k[:, some].T / wide**0.5).masked_fill(hidden, -torch.inf)
            heads.append(scores.softmax(1) @ v[:, some])
        h = h + at.out(torch.cat(heads, 1))
        h = h + block.down(F.gelu(block.up(block.norm2(h))))
    return model.norm(h) @ model.tokens.weight.T


def plain_losses(model: Any, ids: Tensor) -> Tensor:
    """Losses [T - 1] of the tokens after the first."""
    return F.cross_entropy(plain_logits(model, ids[:-1]), ids[1:], reduction="none")


def gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """The gradient [d] of a scalar in all parameters."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def encoded(spec: Any, texts_of_rows: list[str]) -> list[Tensor]:
    """The token numbers of rows."""
    return [torch.from_numpy(spec.text.encoded(text)["input_ids"]).long() for text in texts_of_rows]


def trained(manifest: Path, folder: Path, model: str = "gpt:2x32", **recipe: Any) -> Path:
    """A run folder."""
    about: dict[str, Any] = {"epochs": 2, "lr": 5e-3, "batch_size": 8, "optimizer": "adamw", "schedule": "linear"}
    retrain(RetrainRequest(Inputs(str(manifest), model=model), output=str(folder)), Recipe(**{**about, **recipe}))
    return folder


def floats(table: pa.Table, name: str = "score") -> NDArray[np.float64]:
    """A column."""
    return table.column(name).to_numpy()
