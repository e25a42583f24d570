"""Products with G and H of several columns at once: what they are, what they share, what they fall back to.

References: the dense matrix, row by row, by its definition (``oracle.dense_curvature``), and one column at a time by
torch's own forward and reverse modes.

    python -m pytest tests/curvature/test_linearised.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp

from influence_cli.curvature.curvature import Curvature
from influence_cli.curvature.linearised import Graph, Linearised
from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ModelError
from tests.methods.test_exact import Net, Recurrent, tanh
from tests.oracle import dense_curvature, relative_error, row_gradients, shake

KINDS = ("ggn", "hessian")


class Residual(nn.Module):
    """A residual block with a BatchNorm behind every convolution, and one behind none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.Softplus())
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.last, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.view(-1, 1, 4, 4))
        return self.head(self.last(F.relu(h + self.block(h))).mean(dim=(2, 3)))


class Patches(nn.Module):
    """Four patches, a position each, an attention block, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4) / 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x.view(-1, 4, 4)) + self.place).mean(dim=1))


class Straight(torch.autograd.Function):
    """Rounds; its derivative is said to be 1, both ways."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Cut(torch.autograd.Function):
    """x^2 with a derivative backwards and none forwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Backwards(nn.Module):
    """Forward mode cannot follow it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(Cut.apply(self.a(x)))


def _net(folder: Path, name: str) -> Net:
    torch.manual_seed(2)
    model, width = {
        "mlp": lambda: (tanh(), 3),
        "resnet": lambda: (Residual(), 16),
        "vit": lambda: (Patches(), 16),
        "lstm": lambda: (Recurrent(), 6),
    }[name]()
    net = Net(folder, model, width, 3, 9)
    shake(net.model, net.x, 3)
    return net


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Net]:
    return {name: _net(tmp_path_factory.mktemp(name), name) for name in ("mlp", "resnet", "vit", "lstm")}


def _columns(curvature: Curvature, count: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(curvature.size, count))


def one_by_one(net: Net, kind: str, v: NDArray[np.float64]) -> NDArray[np.float64]:
    """A pass of torch's own for each column and no sharing."""
    own = {n: p.detach() for n, p in net.model.named_parameters()}
    sizes = [p.numel() for p in own.values()]
    logits = lambda p: functional_call(net.model, p, (net.x,))  # noqa: E731
    loss = lambda p: (net.w * F.cross_entropy(logits(p), net.y, reduction="none")).sum()  # noqa: E731
    found = []
    for column in torch.from_numpy(v).T:
        u = {n: part.view_as(p) for (n, p), part in zip(own.items(), column.split(sizes), strict=True)}
        with differentiable_kernels(recurrent=True):
            if kind == "hessian":
                image = jvp(grad(loss), (own,), (u,))[1]
            else:
                z, t = jvp(logits, (own,), (u,))
                p = z.softmax(1)
                image = vjp(logits, own)[1](net.w[:, None] * (p * t - p * (p * t).sum(1, keepdim=True)))[0]
        found.append(torch.cat([image[n].flatten() for n in own]) / net.w.sum())
    return torch.stack(found, 1).detach().numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "resnet", "vit"])
def test_every_column_is_the_dense_matrix_times_it_and_what_it_is_alone(
    name: str, kind: Any, nets: dict[str, Net]
) -> None:
    net = nets[name]
    with differentiable_kernels():
        dense = dense_curvature(net.model, net.x, net.y, net.w, kind)
    curvature = net.curvature(batch_size=4)
    v = _columns(curvature, 5)
    found = curvature.product(kind, v)
    assert found.shape == v.shape
    assert relative_error(found, dense @ v) < 1e-12
    assert relative_error(found, one_by_one(net, kind, v)) < 1e-12
    alone = np.concatenate([net.curvature(batch_size=4).product(kind, v[:, [k]]) for k in range(5)], axis=1)
    assert relative_error(found, alone) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "resnet", "vit", "lstm"])
def test_single_precision_is_near_double(name: str, kind: Any, nets: dict[str, Net]) -> None:
    curvature = nets[name].curvature()
    v = _columns(curvature, 3)
    found = nets[name].curvature(precision="fp32").product(kind, v)
    assert 0 < relative_error(found, curvature.product(kind, v)) < 1e-5


@pytest.mark.parametrize("name", ["mlp", "resnet", "vit", "lstm"])
def test_quadratic_forms_and_the_gradient_are_those_of_the_dense_matrix(name: str, nets: dict[str, Net]) -> None:
    net = nets[name]
    curvature = net.curvature(batch_size=4)
    v = _columns(curvature, 3)
    forms, gradient = curvature.quadratic(v)
    dense = dense_curvature(net.model, net.x, net.y, net.w, "ggn")
    assert relative_error(forms, np.sum(v * (dense @ v), axis=0)) < 1e-12
    rows = [torch.cat([g.flatten() for g in row.values()]) for row in row_gradients(net.model, net.x, net.y)]
    assert relative_error(gradient, (net.w @ torch.stack(rows) / net.w.sum()).numpy()) < 1e-12


def test_only_selected_parameters_have_a_part(nets: dict[str, Net]) -> None:
    net = nets["resnet"]
    names = [n for n, p in net.model.named_parameters() for _ in range(p.numel())]
    some = np.array([n.startswith("head.") for n in names])
    curvature = net.curvature(params="last")
    v = _columns(curvature, 2)
    for kind in KINDS:
        dense = dense_curvature(net.model, net.x, net.y, net.w, kind)[np.ix_(some, some)]
        assert relative_error(curvature.product(kind, v), dense @ v) < 1e-12


# -- what columns share --------------------------------------------------------------------------------------------


def _calls(net: Net, kind: Any, columns: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a product of so many columns calls the model, once an engine has been picked."""
    curvature = net.curvature()
    curvature.product(kind, _columns(curvature, 1))
    calls = 0
    logits = Point.logits

    def counted(self: Point, *args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return logits(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Point, "logits", counted)
        curvature.product(kind, _columns(curvature, columns))
    return calls


@pytest.mark.parametrize("name", ["mlp", "resnet", "vit"])
def test_columns_share_the_pass_forwards_and_the_graph(
    name: str, nets: dict[str, Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, calls in (("ggn", 2), ("hessian", 1)):
        assert [_calls(nets[name], kind, k, monkeypatch) for k in (1, 7)] == [calls, calls]


def test_directions_that_would_take_too_much_memory_go_by_parts(
    nets: dict[str, Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nets["resnet"]
    curvature = net.curvature()
    v = _columns(curvature, 5)
    whole = curvature.product("ggn", v)
    monkeypatch.setattr("influence_cli.curvature.linearised.TANGENT_VALUES", 2 * curvature.size)
    widths: list[int] = []
    outputs = Point.outputs

    def counted(self: Point, x: Tensor, directions: Any) -> Any:
        widths.append(len(directions))
        return outputs(self, x, directions)

    monkeypatch.setattr(Point, "outputs", counted)
    assert relative_error(net.curvature().product("ggn", v), whole) < 1e-12
    assert max(widths) == 2
    assert widths[-3:] == [2, 2, 1]


# -- models that forward mode cannot follow ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_rule_forwards_tangents_come_from_backward_passes(kind: Any, tmp_path: Path) -> None:
    net = Net(tmp_path, Backwards(), 3, 3, 12)
    curvature = net.curvature(batch_size=5)
    v = _columns(curvature, 3)
    dense = dense_curvature(net.model, net.x, net.y, net.w, kind)
    assert relative_error(curvature.product(kind, v), dense @ v) < 1e-12
    if kind == "ggn":
        checked = curvature._linearised.engine.checked
        assert checked is not None
        assert checked.engine != "forward"
        assert relative_error(curvature.quadratic(v)[0], np.sum(v * (dense @ v), axis=0)) < 1e-12


def test_a_derivative_of_the_models_own_is_taken_both_ways(tmp_path: Path) -> None:
    """One that is not that of its values, as straight-through estimators have it."""

    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(7)
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(Straight.apply(self.a(x)))

    net = Net(tmp_path, Through(), 3, 3, 12)
    curvature = net.curvature()
    v = _columns(curvature, 3)
    own = list(net.model.parameters())

    def jacobian_of(row: Tensor) -> Tensor:
        gradients = [torch.autograd.grad(net.model(row[None])[0, c], own) for c in range(3)]
        return torch.stack([torch.cat([g.flatten() for g in of_class]) for of_class in gradients])

    dense = torch.zeros(curvature.size, curvature.size, dtype=torch.float64)
    for row, weight in zip(net.x, net.w, strict=True):
        jacobian = jacobian_of(row)
        p = net.model(row[None])[0].softmax(0).detach()
        dense += weight * jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    assert relative_error(curvature.product("ggn", v), (dense / net.w.sum()).numpy() @ v) < 1e-12


def test_a_model_without_derivatives_is_an_error_that_says_so(tmp_path: Path) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).detach()

    curvature = Net(tmp_path, Detached(), 3, 3, 5).curvature()
    with pytest.raises(ModelError, match="no exact derivative"):
        curvature.product("ggn", _columns(curvature, 1))


# -- one batch -----------------------------------------------------------------------------------------------------


def test_parameters_that_logits_do_not_reach_have_zeros() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    x, y, w = torch.randn(4, 2).double(), torch.tensor([0, 1, 2, 0]), torch.ones(4).double()
    point = Point(Idle().double().eval().requires_grad_(False), "all", None, "fp64", torch.device("cpu"))
    u = {n: torch.randn_like(p) for n, p in point.selected.items()}
    (image,) = Graph(point, x).hessian(y, w, [u])
    z, images = Linearised(point).ggn(x, y, w, [u])
    (also,) = images
    assert z.shape == (4, 3)
    for found in (image, also):
        assert {n for n, g in found.items() if bool((g == 0).all())} == {"idle.weight", "idle.bias"}


def test_no_columns_make_no_products(nets: dict[str, Net]) -> None:
    curvature = nets["mlp"].curvature()
    nothing = np.zeros((curvature.size, 0))
    for kind in KINDS:
        assert curvature.product(kind, nothing).shape == nothing.shape
    assert curvature.quadratic(nothing)[0].shape == (0,)
