"""Modules as people bring them: weight norm of both forms, wrappers that are named, and what cannot be copied."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import influence_cli
from influence_cli.errors import ModelError
from influence_cli.model.own_module import copied
from influence_cli.model.task import Task
from tests.cases import column, examples, feature_table

ROWS, TARGET = 24, 8
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(ROWS + TARGET, 4)).astype(np.float32)
Y = (X[:, 1] > 0).astype(np.int64)

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|jit).*is deprecated", "ignore:.*torch.jit")


def table(first: int, last: int) -> pa.Table:
    features = pa.array(X[first:last].tolist(), pa.list_(pa.float32()))
    return pa.table({"id": [f"r{k}" for k in range(first, last)], "features": features, "label": Y[first:last]})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def changed(by: Callable[..., Any], *layers: int, **how: Any) -> nn.Sequential:
    model = net()
    for layer in layers:
        by(model[layer], **how)
    return model


def by_rows(model: nn.Module) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores by ip and squared gradient norms, one backward pass a row in float64."""
    model = model.double().eval()
    own = list(model.parameters())
    gradients = []
    for x, y in zip(torch.tensor(X).double(), torch.tensor(Y), strict=True):
        found = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), own)
        gradients.append(torch.cat([g.flatten() for g in found]))
    g = torch.stack(gradients)
    return (g[:ROWS] @ g[ROWS:].mean(0)).numpy(), g[:ROWS].square().sum(1).numpy()


class Scaled(nn.Module):
    """Logits times a temperature, which is a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = net(), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.scale


class Caching(nn.Module):
    """Keeps what it computed last, as a tensor that belongs to a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.last = self.net(torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.net(x)
        return self.last


MODELS: dict[str, Callable[[], nn.Module]] = {
    "weight_g and weight_v": lambda: changed(nn.utils.weight_norm, 0, 2),
    "over columns": lambda: changed(nn.utils.weight_norm, 0, 2, dim=1),
    "over all": lambda: changed(nn.utils.weight_norm, 2, dim=None),
    "a parametrization": lambda: changed(nn.utils.parametrizations.weight_norm, 0, 2),
    "weight_orig": lambda: changed(nn.utils.spectral_norm, 0, 2),
    "spectral parametrization": lambda: changed(nn.utils.parametrizations.spectral_norm, 0, 2),
    "a single number": Scaled,
    "a tensor of a graph": Caching,
}


@pytest.mark.parametrize("ready", [True, False], ids=["module", "factory"])
@pytest.mark.parametrize("name", list(MODELS))
def test_scores_are_those_of_one_backward_pass_a_row(name: str, ready: bool) -> None:
    model = MODELS[name]().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected, norms = by_rows(MODELS[name]())
    task = Task(model) if ready else Task(lambda: MODELS[name]())
    asked: dict[str, Any] = {"target": table(ROWS, ROWS + TARGET), "task": task, "store": None}
    scores = column(influence_cli.score(table(0, ROWS), method="ip", **asked))
    assert np.abs(scores - expected).max() <= 1e-5 * np.abs(expected).max()
    found = column(influence_cli.score(table(0, ROWS), method="self-tracin", **asked))
    assert np.abs(found + norms).max() <= 1e-5 * norms.max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["ekfac", "datainf", "exact", "cg", "lissa", "arnoldi", "self-lissa", "ip-ensemble"])
@pytest.mark.parametrize("name", ["weight_g and weight_v", "a single number"])
def test_every_method_takes_them(name: str, method: str) -> None:
    damped, short = {"damping": 0.1}, {"depth": 40, "repeats": 1}  # whether it runs, not how well it converges
    options = {method: {"exact": damped, "cg": damped, "lissa": short}.get(method, {})}
    found = influence_cli.score(
        table(0, ROWS),
        target=table(ROWS, ROWS + TARGET),
        task=Task(MODELS[name]),
        method=method,
        options=options,
        store=None,
    )
    assert np.isfinite(column(found)).all()


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(net())


WRAPPED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "DataParallel": (lambda: nn.DataParallel(net()), "DataParallel", "give its .module"),
    "within": (lambda: nn.Sequential(nn.DataParallel(net())), "module 0 is a DataParallel", "give its .module"),
    "compiled": (lambda: torch.compile(net()), "torch.compile", "give its ._orig_mod"),
    "TorchScript": (scripted, "TorchScript", "give the Python module that torch.jit made it from"),
}


@pytest.mark.parametrize("ready", [True, False], ids=["module", "factory"])
@pytest.mark.parametrize("name", list(WRAPPED))
def test_a_wrapper_is_named_with_what_to_give_instead(name: str, ready: bool) -> None:
    make, said, fix = WRAPPED[name]
    with pytest.raises(ModelError, match=said.replace(".", r"\.")) as raised:
        Task(make() if ready else make).build()
    assert raised.value.fix.startswith(fix)


def test_a_module_that_was_compiled_in_place_is_run_as_it_is_written() -> None:
    def make() -> nn.Module:
        model = net()
        model.compile(backend=lambda *_: pytest.fail("it was compiled"))
        return model

    for task in (Task(make()), Task(make)):
        assert task.build()(torch.ones(1, 4)).shape == (1, 2)


def test_what_cannot_be_copied_is_an_error_of_ours_with_a_way_out() -> None:
    model = net()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be copied") as raised:
        copied(model)
    assert "function that makes the module" in raised.value.fix


def test_a_model_that_draws_is_said_to_be_random() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(F.dropout(x))

    with pytest.raises(ModelError, match="other logits when it is run twice: it is random") as raised:
        influence_cli.score(
            table(0, ROWS), method="ip", target=table(ROWS, ROWS + TARGET), task=Task(Noisy()), store=None
        )
    assert "training=self.training" in raised.value.fix


@pytest.mark.parametrize("error", [AssertionError("odd"), KeyError("x"), ZeroDivisionError(), NotImplementedError()])
def test_whatever_a_forward_raises_is_named_and_no_defect_of_ours(error: Exception) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    rows = feature_table(examples(20, 10, 0))
    with pytest.raises(ModelError, match=type(error).__name__):
        influence_cli.score(rows, task=influence_cli.Task(Fails()), store=None, method="loss")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["uninitialised", "meta", "quantised"])
def test_a_module_without_values_is_refused(name: str) -> None:
    from torch.ao.quantization import quantize_dynamic

    made = {
        "uninitialised": lambda: nn.Sequential(nn.LazyLinear(3)),
        "meta": lambda: nn.Linear(4, 3, device="meta"),
        "quantised": lambda: quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear}, dtype=torch.qint8),
    }[name]()
    for model in (made, lambda: made):
        with pytest.raises(ModelError, match=name):
            Task(model).build()
