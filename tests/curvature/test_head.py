"""Curvature where all selected parameters lie behind one module's inputs: the model before it is run once for a row.

python -m pytest tests/curvature/test_head.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from influence_cli.curvature.curvature import Curvature
from influence_cli.curvature.head import head_of
from influence_cli.curvature.jacobians import Jacobians
from influence_cli.curvature.minibatches import Minibatches
from influence_cli.engines.point import Point
from influence_cli.maths.few_pixels import FewPixels
from influence_cli.methods.cg import CG
from influence_cli.methods.datainf import DataInf
from influence_cli.methods.ekfac import EKFAC
from influence_cli.methods.lissa import LiSSA
from influence_cli.model.dropout import Dropout
from tests.curvature.test_linearised import KINDS, Residual
from tests.methods.test_exact import Net
from tests.oracle import dense_curvature, relative_error, shake

CPU = torch.device("cpu")


class Body(nn.Sequential):
    """Counts the rows that it sees, whatever copy sees them."""

    rows = 0

    def forward(self, x: Tensor) -> Tensor:
        Body.rows += len(x)
        return super().forward(x)


class Deep(nn.Module):
    """A head of two layers, one name below another, behind a body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body(nn.Linear(5, 4), nn.Tanh())
        self.top = nn.ModuleDict({"head": nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))})

    def forward(self, x: Tensor) -> Tensor:
        return self.top["head"](self.body(x))


class Scaled(Deep):
    """What the head gives is not what the model gives."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Again(Deep):
    """The head is called on two tensors."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.top["head"](h + self.top["head"](h).sum(1, keepdim=True))


class Named(Deep):
    """The head is called by the name of its argument."""

    def forward(self, x: Tensor) -> Tensor:
        return self.top["head"](input=self.body(x))


class Borrowed(Deep):
    """A weight of the head is used before it too."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.top["head"](h + F.linear(h, self.top["head"][0].weight).sum(1, keepdim=True))


def _net(folder: Path, model: nn.Module, width: int = 5) -> Net:
    folder.mkdir(exist_ok=True)
    net = Net(folder, model, width, 3, 11)
    shake(net.model, net.x, 3)
    return net


def _columns(curvature: Curvature, count: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(curvature.size, count))


def _block(net: Net, kind: str, prefix: str) -> NDArray[np.float64]:
    names = [n for n, p in net.model.named_parameters() for _ in range(p.numel())]
    some = np.array([n.startswith(prefix) for n in names])
    return dense_curvature(net.model, net.x, net.y, net.w, kind)[np.ix_(some, some)]


@pytest.fixture
def seen() -> Any:
    """Rows that bodies have seen from now on."""
    Body.rows = 0
    return lambda: Body.rows


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Net]:
    """The net of a class of models, by which the dense matrix is known once it has been made."""

    @functools.cache
    def made(model: type[nn.Module], width: int) -> Net:
        torch.manual_seed(5)
        return _net(tmp_path_factory.mktemp(model.__name__), model(), width)

    return made


HEADS = {  # model, its inputs, --params, the prefix of the selected names, the path of the head
    "last": (Residual, 16, "last", "head.", "head"),
    "weight alone": (Residual, 16, "head.weight", "head.weight", "head"),
    "bias alone": (Residual, 16, "head.bias", "head.bias", "head"),
    "deep": (Deep, 5, "top.head.*", "top.head.", "top.head"),
    "one of two": (Deep, 5, "top.head.0.*", "top.head.0.", None),
    "all": (Deep, 5, "all", "", None),
    "scaled": (Scaled, 5, "top.*", "top.", None),
    "again": (Again, 5, "top.*", "top.", None),
    "by name": (Named, 5, "top.*", "top.", None),
    "borrowed": (Borrowed, 5, "top.*", "top.", None),
}


@pytest.mark.parametrize("name", HEADS)
def test_products_and_the_matrix_are_those_of_the_whole_model(name: str, nets: Callable[..., Net]) -> None:
    model, width, params, prefix, path = HEADS[name]
    net = nets(model, width)
    for kind in KINDS:
        dense = _block(net, kind, prefix)
        curvature = net.curvature(params=params, batch_size=4)
        v = _columns(curvature, 3)
        for _ in range(2):  # from features that are kept the second time
            assert relative_error(curvature.product(kind, v), dense @ v) < 1e-12
        assert relative_error(net.curvature(params=params, batch_size=4).dense(kind)[0], dense) < 1e-12
        every = Minibatches(net.curvature(params=params), kind, 11, 0)
        assert relative_error(every.product(0, 0, v), dense @ v) < 1e-12
        if kind == "ggn":
            assert relative_error(curvature.quadratic(v)[0], np.sum(v * (dense @ v), axis=0)) < 1e-12
        head = curvature.head(net.x)
        assert (None if head is None else head.path) == path


def test_the_body_is_run_once_for_every_row(tmp_path: Path, seen: Any) -> None:
    net = _net(tmp_path, Deep())
    curvature = net.curvature(params="top.*", batch_size=4)
    curvature.product("ggn", _columns(curvature, 2))
    first = seen()
    assert first < 11 + 60  # every row, and a few of them some times more to look for the head
    for _ in range(3):
        curvature.product("hessian", _columns(curvature, 2))
        curvature.dense("ggn")
        curvature.quadratic(_columns(curvature, 2))
    assert seen() == first
    batches = Minibatches(net.curvature(params="top.*"), "ggn", 3, 0)
    first = seen()
    for step in range(6):
        batches.product(0, step, _columns(curvature, 2))
    assert seen() == first
    whole = net.curvature()
    whole.product("ggn", _columns(whole, 1))
    first = seen()
    whole.product("ggn", _columns(whole, 1))
    assert seen() >= first + 2 * 11  # what is selected everywhere has no head


def test_a_head_that_is_known_is_used_and_the_model_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = _net(tmp_path, Deep())
    plain = net.curvature(params="top.*", batch_size=4)
    columns = _columns(plain, 2)
    point = Point(net.model, "top.*", None, "fp64", CPU)
    point.few = net.x[:5]
    head = head_of(point, net.x)
    assert head is not None
    expected = plain.product("ggn", columns), plain.dense("hessian")[0], plain.theta
    known = net.curvature(params="top.*", batch_size=4, head=head)
    with monkeypatch.context() as patched:
        patched.delattr("influence_cli.curvature.curvature.copied")
        found = known.product("ggn", columns), known.dense("hessian")[0], known.theta
        assert known.unused() == []
    for a, b in zip(found, expected, strict=True):
        assert relative_error(a, b) < 1e-12
    other = net.curvature(params="top.*", batch_size=4, head=head, without=["top.head.0.bias"])
    other.product("ggn", columns[: other.size])
    assert other.found_head is not head  # which has that parameter too


def test_parts_of_the_rows_have_the_inputs_that_a_pass_over_all_has_kept(tmp_path: Path, seen: Any) -> None:
    net = _net(tmp_path, Deep())
    point = Point(net.model, "top.*", None, "fp64", CPU)
    point.few = net.x[:5]
    head = head_of(point, net.x)
    wholes = [net.curvature(params="top.*", batch_size=2, head=head) for _ in range(2)]
    columns = _columns(wholes[0], 2)
    expected = [whole.product("ggn", columns) * whole.weight for whole in wholes]
    first = seen()
    parts = [whole.part(rank, 2) for rank, whole in enumerate(wholes)]
    found = sum(part.product("ggn", columns) * part.weight for part in parts)
    assert seen() == first
    assert relative_error(np.asarray(found), expected[0]) < 1e-12


@pytest.mark.parametrize("params", ["top.*", "top.head.2.*"])
@pytest.mark.parametrize(
    ("method", "options"), [(EKFAC, {"labels": "exact"}), (DataInf, {}), (CG, {}), (LiSSA, {"batch": 4, "depth": 6})]
)
def test_fit_and_solve_share_one_pass_through_what_lies_before_the_head(
    method: Any, options: dict[str, Any], params: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    net = _net(tmp_path, Deep())

    def applied() -> tuple[NDArray[np.float64], int]:
        curvature = net.curvature(params=params, batch_size=4)
        made = method(precision="fp64", l2=0.01, damping=0.02, **options)
        curvature.factor = made.fit(curvature).arrays
        made.precondition(_columns(curvature, 2), curvature)
        before = seen()
        made.fit(curvature)
        found = made.precondition(_columns(curvature, 2), curvature)[0]
        return found, seen() - before

    found, again = applied()
    assert again <= 8  # layers are planned on 4 rows
    monkeypatch.setattr("influence_cli.curvature.curvature.head_of", lambda point, x: None)
    expected, again = applied()
    assert relative_error(found, expected) < 1e-12
    assert again >= 22


def test_features_that_are_not_small_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Any) -> None:
    net = _net(tmp_path, Deep())
    dense = _block(net, "ggn", "top.")
    monkeypatch.setattr("influence_cli.model.decoded.IN_MEMORY_BYTES", 5 * 4 * 8)
    monkeypatch.setattr(
        "influence_cli.curvature.minibatches.HELD_BYTES", 11 * 5 * 4
    )  # of float32 rows, not of features
    curvature = net.curvature(params="top.*", batch_size=4)
    v = _columns(curvature, 2)
    curvature.product("ggn", v)
    first = seen()
    assert relative_error(curvature.product("ggn", v), dense @ v) < 1e-12
    assert seen() == first + 11
    batches = Minibatches(net.curvature(params="top.*"), "ggn", 11, 0)
    first = seen()
    assert relative_error(batches.product(0, 0, v), dense @ v) < 1e-12
    assert seen() == first + 11


def test_a_linear_head_needs_no_jacobians(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> Any:
        raise AssertionError("a Jacobian was made")

    net = _net(tmp_path, Residual(), 16)
    expected = {kind: net.curvature(params="last").dense(kind) for kind in KINDS}
    monkeypatch.setattr("influence_cli.curvature.head.ROWS", 3)
    monkeypatch.setattr(Jacobians, "of_rows", none)
    monkeypatch.setattr(Jacobians, "hessian", none)
    for kind in KINDS:
        matrix, gradient = net.curvature(params="last", batch_size=4).dense(kind)
        assert relative_error(matrix, _block(net, kind, "head.")) < 1e-12
        assert relative_error(gradient, expected[kind][1]) < 1e-12
    with pytest.raises(AssertionError, match="a Jacobian"):
        net.curvature(params="last").dense("empirical")
    two = _net(tmp_path / "two", Deep())
    with pytest.raises(AssertionError, match="a Jacobian"):
        two.curvature(params="top.*").dense("ggn")


def test_the_gradient_of_a_linear_head_is_the_loops(tmp_path: Path) -> None:
    net = _net(tmp_path, Residual(), 16)
    for params in ("head.weight", "head.bias", "last"):
        curvature = net.curvature(params=params, batch_size=4)
        expected = np.zeros(curvature.size)
        for x, y, w in zip(net.x, net.y, net.w, strict=True):
            loss = F.cross_entropy(net.model(x[None]), y[None])
            parts = torch.autograd.grad(loss, [dict(net.model.named_parameters())[n] for n in curvature.layout])
            expected += float(w) * np.concatenate([g.numpy().ravel() for g in parts])
        assert relative_error(curvature.dense("ggn")[1], expected / float(net.w.sum())) < 1e-12


def test_dropped_parameters_stay_dropped(tmp_path: Path) -> None:
    net = _net(tmp_path, Deep())
    dropout = Dropout(0, 1, 0.5, True, "all")
    curvature = net.curvature(params="top.*", dropout=dropout)
    v = _columns(curvature, 2)
    found = curvature.product("ggn", v)
    assert curvature.head(net.x) is not None
    model = Deep().double().eval()
    model.load_state_dict(net.model.state_dict())
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(curvature.point.selected.get(name, p))
    assert not torch.equal(model.top["head"][0].weight, net.model.top["head"][0].weight)
    net.model = model
    assert relative_error(found, _block(net, "ggn", "top.") @ v) < 1e-12


def test_a_head_in_single_precision_is_found_too(tmp_path: Path) -> None:
    net = _net(tmp_path, Deep())
    v = _columns(net.curvature(params="top.*"), 2)
    single = net.curvature(params="top.*", precision="fp32")
    assert relative_error(single.product("ggn", v), net.curvature(params="top.*").product("ggn", v)) < 1e-5
    assert single.head(net.x) is not None


def test_rows_without_finite_logits_have_no_head_to_show() -> None:
    point = Point(Deep().double().eval().requires_grad_(False), "top.*", None, "fp64", CPU)
    assert head_of(point, torch.full((3, 5), float("nan"), dtype=torch.float64)) is None


class Maps(nn.Module):
    """Convolutions and BatchNorms before a linear head; on the last maps, of a pixel, most of a kernel lies outside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16),
            nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_weights_of_convolutions_before_the_head_are_laid_out_once() -> None:
    torch.manual_seed(0)
    model, x = Maps(), torch.randn(40, 3, 8, 8)
    shake(model, x, 0)
    with torch.no_grad(), FewPixels():  # as a point runs it
        expected = model.body(x)
    head = head_of(Point(model, "head.*", None, "fp32", CPU), x, pack=True)
    assert head is not None
    assert head.packed
    for rows in (40, 7, 40):
        found = head.inputs(x[:rows])
        assert type(found) is Tensor
        assert relative_error(found.numpy(), expected[:rows].numpy()) < 1e-5
    assert torch.equal(head.inputs(x), head.inputs(x))
    plain = head_of(Point(model, "head.*", None, "fp32", CPU), x)
    assert plain is not None
    assert torch.equal(plain.inputs(x), expected)


def test_a_network_with_one_convolution_before_its_linear_layers_is_run_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    assert not Point(model, "4.*", None, "fp32", CPU).packs_convolutions()
    assert Point(Maps().eval(), "head.*", None, "fp32", CPU).packs_convolutions()


@pytest.mark.parametrize("fault", ["cannot", "is wrong"])
def test_where_that_way_fails_the_model_is_run_as_it_is(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def packed(self: Point, x: Tensor) -> Tensor:
        if fault == "cannot":
            raise RuntimeError("no such kernel")
        return self.logits(x * 1.5)

    monkeypatch.setattr(Point, "packed_logits", packed)
    torch.manual_seed(0)
    model, x = Maps(), torch.randn(20, 3, 8, 8)
    shake(model, x, 0)
    head = head_of(Point(model, "head.*", None, "fp32", CPU), x, pack=True)
    assert head is not None
    assert not head.packed
    with torch.no_grad(), FewPixels():
        assert torch.equal(head.inputs(x), model.body(x))


def test_convolutions_in_double_precision_are_run_as_they_are() -> None:
    torch.manual_seed(0)
    made, x = Maps().double(), torch.randn(20, 3, 8, 8, dtype=torch.float64)
    shake(made, x, 0)
    head = head_of(Point(made, "head.*", None, "fp64", CPU), x)
    assert head is not None
    assert not head.packed
    with torch.no_grad(), FewPixels():
        assert torch.equal(head.inputs(x), made.body(x))
