"""Scores of texts by token: by the token whose loss it is, and by the position where the gradient enters.

The references are loops of plain reverse mode: the gradient of one token's loss, and the gradient of a row's loss in a
copy of the parameters that one position alone uses.

python -m pytest tests/engines/test_positions.py
"""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli.engines.engine import Engine
from influence_cli.engines.layerwise.positions import Positions
from influence_cli.engines.point import Point
from influence_cli.errors import ModelError
from influence_cli.model.causal_lm import with_losses
from influence_cli.model.gpt import GPT
from influence_cli.model.losses.protocol import RowLoss
from influence_cli.model.named_tensors import NamedTensors
from influence_cli.model.next_token import NextTokenLoss, by_token, row_output
from influence_cli.model.spec import NEXT_TOKEN, ModelSpec
from influence_cli.model.text_input import TextInput

VOCABULARY, LENGTHS = 11, (7, 4, 2, 6)
CPU = torch.device("cpu")


class First(RowLoss):
    """The loss that the model returns itself."""

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0], dtype=torch.float64).expand(len(z), 2)


class Pooled(nn.Module):
    """A module that owns its parameters and joins positions: a running mean of what came before, scaled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1)[:, None]
        return x + (x * self.scale).cumsum(1) / counts


class Joined(nn.Module):
    """A language model with such a module."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.pooled = nn.Embedding(VOCABULARY, 6), Pooled(6)
        self.head = NextTokenLoss(cast(nn.Parameter, self.tokens.weight))

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return row_output(self.head, self.pooled(self.tokens(x["input_ids"])), x["input_ids"], x["attention_mask"])


def rows() -> Any:
    """Token numbers and a mask of rows of several lengths."""
    lengths = torch.tensor(LENGTHS)
    ids = torch.randint(1, VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(7)[None] < lengths[:, None]).long()
    return NamedTensors({"input_ids": ids * mask, "attention_mask": mask})


def point_of(model: nn.Module, precision: str) -> tuple[Point, dict[str, Tensor]]:
    """The model with parameters of some size, and a random direction."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    point = Point(model.eval(), "all", None, precision, CPU)
    return point, {n: torch.randn(p.shape, generator=generator).to(p) for n, p in point.selected.items()}


def gpt(precision: str) -> tuple[Point, dict[str, Tensor]]:
    """A GPT of one block, whose table of tokens is its head too."""
    torch.manual_seed(1)
    return point_of(GPT(VOCABULARY, 8, 1, 6), precision)


def of_one_token(point: Point, u: dict[str, Tensor], row: int, token: int) -> float:
    """The derivative along u of one token's loss, of its row alone."""
    x, own = rows()[row : row + 1], point.leaves()
    with by_token(point.model):
        loss = point.logits(x, own)[0, token]
    found = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
    return sum(float((g * u[n]).sum()) for n, g in zip(own, found, strict=True) if g is not None)


def parts_that_sum(point: Point, u: dict[str, Tensor], bound: float) -> tuple[Tensor, Tensor]:
    """The rows' parts by loss and by position [n, T], held against the score that they sum to."""
    _, (t,) = Engine(point, "forward").outputs(rows(), [u])
    with by_token(point.model):
        _, (by_loss,) = Engine(point.anew(), "forward").outputs(rows(), [u])
    (by_position,) = Positions(point, First()).of(rows(), torch.zeros(4), 7, [u])
    for found in (by_loss.double(), by_position):
        assert ((found.sum(1) - t[:, 0]).abs() <= bound * found.abs().sum(1)).all()
    return by_loss, by_position


@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-12), ("fp32", 2e-5)])
@pytest.mark.parametrize("engine", ["forward", "layerwise", "double-reverse"])
def test_by_loss_is_the_gradient_of_one_tokens_loss(engine: str, precision: str, bound: float) -> None:
    point, u = gpt(precision)
    with by_token(point.model):
        losses, (scores,) = Engine(point.anew(), engine).outputs(rows(), [u])
    largest = float(scores.abs().max())
    for row, length in enumerate(LENGTHS):
        for token in range(1, length):
            assert abs(float(scores[row, token]) - of_one_token(point, u, row, token)) <= bound * largest
        assert float(scores[row, length:].abs().sum()) == 0.0
        assert float(losses[row, length:].abs().sum()) == 0.0
    assert float(scores[:, 0].abs().max()) == 0.0


@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-12), ("fp32", 1e-6)])
def test_parts_by_loss_and_by_position_sum_to_the_score_of_the_row(precision: str, bound: float) -> None:
    point, u = gpt(precision)
    by_loss, by_position = parts_that_sum(point, u, bound)
    for found in (by_loss.double(), by_position):
        for row, length in enumerate(LENGTHS):
            assert float(found[row, length:].abs().sum()) == 0.0
    assert not torch.allclose(by_loss.double(), by_position, rtol=0.1)  # they are two questions


def test_by_position_is_the_gradient_in_the_parameters_that_one_position_uses() -> None:
    """Every position gets parameters of its own, equal to those of all: their gradient is what enters there."""
    point, u = gpt("fp64")
    (found,) = Positions(point, First()).of(rows(), torch.zeros(4), 7, [u])
    for row, length in enumerate(LENGTHS):
        own = {n: p.expand(length, *p.shape).clone().requires_grad_() for n, p in point.selected.items()}
        ids = rows().tensors["input_ids"][row, :length]
        loss = _loss_with_parameters_by_position(point.model, own, ids)
        gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
        for position in range(length):
            expected = sum((g[position] * u[n]).sum() for n, g in zip(own, gradients, strict=True) if g is not None)
            assert abs(float(found[row, position]) - float(expected)) <= 1e-10 * float(found.abs().max())


def _loss_with_parameters_by_position(model: Any, p: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The GPT of one block written out, with parameters [T, ...] that position t alone uses at t."""

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.einsum("tji,ti->tj", p[f"{name}.weight"], x) + p[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[1:]) * p[f"{name}.weight"] + p[f"{name}.bias"]

    steps = torch.arange(len(ids))
    h = p["tokens.weight"][steps, ids] + p["places.weight"][steps, steps]
    a = norm(h, "blocks.0.norm1")
    q, k, v = linear(a, "blocks.0.attention.qkv").chunk(3, 1)
    heads = model.blocks[0].attention.heads
    q, k, v = (t.unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    made = logits.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    h = h + linear(made.transpose(0, 1).flatten(1), "blocks.0.attention.out")
    h = h + linear(F.gelu(linear(norm(h, "blocks.0.norm2"), "blocks.0.up")), "blocks.0.down")
    z = torch.einsum("tvi,ti->tv", p["tokens.weight"], norm(h, "norm"))[:-1]
    return F.cross_entropy(z, ids[1:], reduction="sum")


def test_a_module_that_joins_positions_is_named() -> None:
    torch.manual_seed(1)
    point, u = point_of(Joined(), "fp64")
    with pytest.raises(ModelError, match=r"module pooled \(with pooled.scale\) joins positions") as error:
        Positions(point, First()).of(rows(), torch.zeros(4), 7, [u])
    assert "--decomposition loss" in error.value.fix
    less = Point(point.model, "tokens.*", None, "fp64", CPU)  # without it there is nothing to refuse
    (found,) = Positions(less, First()).of(rows(), torch.zeros(4), 7, [u])
    _, (t,) = Engine(less, "forward").outputs(rows(), [{"tokens.weight": u["tokens.weight"]}])
    torch.testing.assert_close(found.sum(1), t[:, 0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("kind", "precision", "bound"), [("gpt2", "fp64", 1e-12), ("gpt2", "fp32", 2e-6), ("llama", "fp32", 2e-6)]
)
def test_models_of_transformers_are_split_both_ways(kind: str, precision: str, bound: float) -> None:
    from tests.texts import SIZES, transformers

    config = transformers.AutoConfig.for_model(kind, vocab_size=VOCABULARY, pad_token_id=0, **SIZES[kind])
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    spec = ModelSpec(f"hf:{kind}", 1, "text", (8,), text=TextInput("", 8, 8, 0), network="{}", loss=NEXT_TOKEN)
    point, u = point_of(with_losses(made, spec), precision)
    by_loss, _ = parts_that_sum(point, u, bound)
    assert abs(float(by_loss[1, 2]) - of_one_token(point, u, 1, 2)) <= 20 * bound * float(by_loss.abs().max())
