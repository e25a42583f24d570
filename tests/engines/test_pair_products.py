"""Products of row gradients by layer: those of whole gradients, for every kind of layer and any batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from influence_cli.engines import pair_products
from influence_cli.engines.pair_products import PairProducts
from influence_cli.engines.point import Point
from influence_cli.engines.row_values import row_directions
from influence_cli.errors import ModelError
from influence_cli.model.losses import CROSS_ENTROPY


def point() -> Point:
    """Convolutions with many and with few positions, one with groups, a norm and linear layers."""
    torch.manual_seed(0)
    layers = [
        *(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2, groups=3)),
        *(nn.GELU(), nn.Conv2d(6, 24, 3, stride=3, bias=False), nn.Flatten(), nn.Linear(24, 20), nn.Tanh()),
        nn.Linear(20, 3),
    ]
    return Point(nn.Sequential(*layers).eval(), "all", None, "fp64", torch.device("cpu"))


def test_products_are_those_of_whole_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_products, "PAIR_VALUES", 20)  # target rows are taken some at a time
    at, draw = point(), torch.Generator().manual_seed(1)
    x = torch.randn(11, 2, 8, 8, dtype=torch.float64, generator=draw)
    y = torch.randint(0, 3, (11,), generator=draw)
    _, gradients = row_directions(at, x, y, CROSS_ENTROPY)
    flat = torch.stack([torch.cat([g.flatten() for g in row.values()]) for row in gradients])
    products = PairProducts(at, CROSS_ENTROPY)
    products.hold(x[:3], y[:3])
    products.hold(x[3:5], y[3:5])
    kinds = {type(part).__name__ for part in products._held[0]}
    assert kinds == {"_Factors", "_Whole"}
    torch.testing.assert_close(products.of(x[5:], y[5:]), flat[5:] @ flat[:5].T, rtol=1e-10, atol=1e-12)
    products.drop()
    assert products.values == 0


def test_a_large_layer_of_another_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_products, "LARGEST", 5)
    with pytest.raises(ModelError, match="too large to be made"):
        PairProducts(point(), CROSS_ENTROPY).hold(torch.zeros(2, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1]))


class Words(nn.Module):
    """Two embeddings, one with a padding index, and a linear layer on the sum over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(40, 5, padding_idx=0), nn.Embedding(6, 5), nn.Linear(5, 3)

    def forward(self, at: torch.Tensor) -> torch.Tensor:
        """Logits of tokens [b, 6]."""
        places = torch.arange(6, device=at.device).expand(len(at), 6)
        return self.head(torch.tanh(self.words(at) + self.places(places)).sum(1))


def test_positions_of_the_same_token_meet_in_an_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_products, "PAIR_VALUES", 100)  # target rows are taken some at a time
    monkeypatch.setattr(pair_products, "LARGEST", 20)  # both tables are too large to be made
    torch.manual_seed(0)
    at, draw = Point(Words().eval(), "all", None, "fp64", torch.device("cpu")), torch.Generator().manual_seed(1)
    x = torch.randint(0, 9, (10, 6), generator=draw)  # tokens come again within a row and in others, padding too
    y = torch.randint(0, 3, (10,), generator=draw)
    _, gradients = row_directions(at, x, y, CROSS_ENTROPY)
    flat = torch.stack([torch.cat([g.flatten() for g in row.values()]) for row in gradients])
    products = PairProducts(at, CROSS_ENTROPY)
    products.hold(x[:4], y[:4])
    assert [type(part).__name__ for part in products._held[0]].count("_Tokens") == 2
    torch.testing.assert_close(products.of(x[4:], y[4:]), flat[4:] @ flat[:4].T, rtol=1e-10, atol=1e-12)
