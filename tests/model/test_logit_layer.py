"""``--params last`` is the layer that makes the logits, wherever it is defined; where none does, it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import influence_cli
from influence_cli.errors import UsageError
from influence_cli.model.logit_layer import logit_layer
from tests.cases import Heard

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers by name in their order of definition; ``how`` is the forward."""

    def __init__(self, how: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.how = how
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def aux(m: Any, x: Tensor) -> Tensor:
    h = m.body(x).relu()
    m.aux(h)
    return m.head(h)


def tied() -> Net:
    net = Net(lambda m, x: m.out(m.enc(x)), enc=nn.Linear(4, 4, bias=False), out=nn.Linear(4, 4, bias=False))
    net.out.weight = net.enc.weight  # type: ignore[union-attr]
    return net


def net(how: Any) -> Net:
    torch.manual_seed(0)
    return Net(how, head=nn.Linear(5, 3), body=nn.Linear(4, 5), aux=nn.Linear(5, 3)).eval()


CASES = {
    "out of order": (net(lambda m, x: m.head(m.body(x).relu())), "head"),
    "an auxiliary head called last": (net(aux), "head"),
    "scaled": (net(lambda m, x: m.head(m.body(x)) / 0.5), "head"),
    "tied": (tied(), "out"),
    "two heads": (net(lambda m, x: m.head(m.body(x)) + m.aux(m.body(x))), None),
    "a norm after it": (Net(lambda m, x: m.n(m.f(x)), f=nn.Linear(4, 3), n=nn.LayerNorm(3)), None),
    "a convolution": (Net(lambda m, x: m.c(m.f(x)[:, None]).mean(2), f=nn.Linear(4, 4), c=nn.Conv1d(1, 3, 1)), None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_layer_that_makes_the_logits_is_found(name: str) -> None:
    model, expected = CASES[name]
    assert logit_layer(model, X) == expected


def score(model: nn.Module, heard: Heard, params: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(30, 4)), columns=list("abcd")).assign(label=np.arange(30) % 3)
    how: dict[str, Any] = {"store": None, "method": "ip", "device": "cpu", "listener": heard}
    task = influence_cli.Task(model, transform=torch.from_numpy)
    table = influence_cli.score(frame[:20], target=frame[20:], task=task, params=params, **{"method": "ip", **how})
    return table.column("score").to_numpy()


def test_scores_are_in_that_layer_which_is_named() -> None:
    heard, model = Heard(), CASES["an auxiliary head called last"][0]
    assert np.allclose(score(model, heard, "last"), score(model, Heard(), "head.*"))
    assert "--params last: layer head" in heard.notes


def test_where_no_layer_makes_them_the_parameters_are_to_be_named() -> None:
    with pytest.raises(UsageError, match="not made by one linear layer"):
        score(CASES["two heads"][0], Heard(), "last")
    score(CASES["two heads"][0], Heard(), "head.*")
