"""The layerwise capture: row gradients by layer against the per-row loop, on every construct and parameter selection.

The reference is one backward pass a row (``oracle.row_gradients``), or reverse mode of the whole batch; neither shares
arithmetic with the hooks.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli.engines.layerwise.blocks import Block
from influence_cli.engines.layerwise.layers import Layers, loss_slope
from influence_cli.engines.layerwise.own_forward import OwnForward
from influence_cli.engines.point import Point
from influence_cli.errors import ModelError
from influence_cli.model.dropout import Dropout
from tests.engines.test_engine import CONSTRUCTS, CPU, _construct
from tests.oracle import Gradient, relative_error, row_gradients, shake


class Padded(nn.Module):
    """Tokens with a padding index, and a mask of shape [T, T] that has no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(7, 4, padding_idx=0), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        e = self.embed(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.attention(e, e, e, attn_mask=mask, need_weights=False)[0].mean(1))


class Outside(nn.Module):
    """Weights that are used where no hook sees them: by a function of the parent, and a parameter of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lent = nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
        self.scale = nn.Parameter(torch.randn(5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lent(F.linear(self.first(x).tanh() * self.scale, self.lent.weight).tanh()).tanh())


class TimeFirst(nn.Module):
    """Attention whose leading dimension is time: rows are not where the hooks of its parts look for them."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        e = x.transpose(0, 1)
        return self.head(self.attention(e, e, e)[0].mean(0))


class Squared(torch.autograd.Function):
    """x^2 with a reverse rule alone: neither forward mode nor batching."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, d):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 2 * x * d


class Custom(nn.Module):
    """A module whose parameter goes through such a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight, self.head = nn.Linear(6, 4), nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Squared.apply(self.first(x) * self.weight))


class InPlace(nn.Module):
    """Outputs that are changed in place after their module, as residual networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)
        self.head = nn.Linear(50, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.n(self.a(x))
        y += x
        y = self.b(y.relu_())
        y += 1.0
        return self.head(y.relu_().flatten(1))


def _tokens() -> Tensor:
    return torch.randint(0, 7, (6, 5), generator=torch.Generator().manual_seed(4))


MORE = {
    "padding and mask": (Padded, _tokens),
    "weights used outside": (Outside, lambda: torch.randn(6, 5, generator=torch.Generator().manual_seed(4))),
    "time first": (TimeFirst, lambda: torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(4))),
    "custom function": (Custom, lambda: torch.randn(6, 6, generator=torch.Generator().manual_seed(4))),
    "in place": (InPlace, lambda: torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(4))),
}


def construct(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in float64 and evaluation mode, inputs and labels."""
    if name in CONSTRUCTS:
        return _construct(name)
    torch.manual_seed(1)
    make, inputs = MORE[name]
    model, x = make(), inputs()
    shake(model, x, 2)
    x = x.double() if x.is_floating_point() else x
    return model.double().eval(), x, torch.arange(len(x)) % 3


def captured(
    name: str, precision: str = "fp64", params: str = "all"
) -> tuple[Layers, list[Block], list[Gradient], Tensor]:
    """The blocks of one batch, the loop's row gradients, and the logits."""
    model, x, y = construct(name)
    expected = list(row_gradients(model, x, y))
    point = Point(model, params, None, precision, CPU)
    x = x.to(point.dtype) if x.is_floating_point() else x
    layers = Layers(point, x)
    logits, blocks = layers.of_rows(x, loss_slope(lambda z: F.cross_entropy(z, y, reduction="none")))
    return layers, blocks, expected, logits


EVERY = [*CONSTRUCTS, *MORE]
BOTH = pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5)])


@pytest.mark.parametrize("name", EVERY)
@BOTH
def test_dots_norms_gradients_and_sums_of_every_construct_equal_the_loop(
    name: str, precision: str, tolerance: float
) -> None:
    layers, blocks, expected, _ = captured(name, precision)
    point, b = layers.point, len(expected)
    assert layers.coverage.share == 1.0
    assert layers.coverage.missing == {}
    generator = torch.Generator().manual_seed(5)
    u = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in point.selected.items()}
    c = torch.randn(b, generator=generator, dtype=torch.float64)
    dots = torch.stack([block.dots({n: v.to(point.dtype) for n, v in u.items()}) for block in blocks]).sum(0)
    norms = torch.stack([block.squared_norms() for block in blocks]).sum(0)
    assert dots.dtype == norms.dtype == torch.float64
    loop_dots = torch.tensor([sum(float((g[n] * u[n]).sum()) for n in u) for g in expected], dtype=torch.float64)
    loop_norms = torch.tensor([sum(float((g[n] ** 2).sum()) for n in u) for g in expected], dtype=torch.float64)
    assert relative_error(dots.numpy(), loop_dots.numpy()) < tolerance
    assert relative_error(norms.numpy(), loop_norms.numpy()) < tolerance
    for block in blocks:
        flat = torch.cat([torch.stack([g[n] for g in expected]).flatten(1) for n in block.layout.shapes], 1)
        assert relative_error(block.row_gradients().double().numpy(), flat.numpy()) < tolerance
        part = block.row_gradients(slice(2, 4)).double()
        assert relative_error(part.numpy(), flat[2:4].numpy()) < tolerance
        sums = torch.cat([g.flatten() for g in block.weighted_sum(c.to(point.dtype)).values()]).double()
        assert relative_error(sums.numpy(), (c @ flat).numpy()) < tolerance
    named = [n for block in blocks for n in block.layout.shapes]
    assert sorted(named) == sorted(u)


@pytest.mark.parametrize("name", ["called twice", "strided conv", "grouped conv", "layer norm"])
def test_gram_and_materialised_norms_are_the_same(name: str) -> None:
    """Each block's norm by the rule that is cheaper, and from its row gradients."""
    _, blocks, _, _ = captured(name)
    for block in blocks:
        expected = block.row_gradients().square().sum(1)
        assert relative_error(block.squared_norms().numpy(), expected.numpy()) < 1e-12


def test_one_position_shortcut_would_be_wrong_here() -> None:
    """Guards the norms: with several positions the sum of squares is not the square of the sum."""
    _, blocks, _, _ = captured("layer norm")
    a, d = next(h for b in blocks if (h := b.homogeneous()) is not None and h[0].shape[1] > 1)
    shortcut = (a.square().sum(2) * d.square().sum(2)).sum(1)
    exact = torch.einsum("bti,bto->boi", a, d).square().sum((1, 2))
    assert relative_error(shortcut.numpy(), exact.numpy()) > 0.05


def test_homogeneous_inputs_and_output_gradients_give_weight_and_bias() -> None:
    for name in ("strided conv", "called twice", "layer norm", "attention"):
        _, blocks, _, _ = captured(name)
        found = 0
        for block in blocks:
            pair = block.homogeneous()
            if pair is None:
                continue
            a, d = pair
            both = torch.einsum("bto,bti->boi", d, a)
            flat = torch.cat([both[:, :, :-1].flatten(1), both[:, :, -1]], 1)
            assert relative_error(flat.numpy(), block.row_gradients().numpy()) < 1e-12
            found += 1
        assert found >= 1, name


def test_grouped_convolutions_have_no_homogeneous_inputs() -> None:
    _, blocks, _, _ = captured("grouped conv")
    assert blocks[0].name == "0"
    assert blocks[0].homogeneous() is None


def test_tied_tensors_are_one_block() -> None:
    _, blocks, _, _ = captured("tied")
    joined = next(b for b in blocks if "embed.weight" in b.layout.shapes)
    assert joined.name == "embed+out"
    assert list(joined.layout.shapes) == ["embed.weight", "out.bias"]


def test_parameters_used_outside_of_their_module_move_to_the_one_that_uses_them() -> None:
    layers, _, _, _ = captured("weights used outside")
    where = {n: (b.name, type(s.rule)) for b in layers.blocks for s in b.sites for n in s.names.values()}
    assert where["lent.weight"] == ("model", OwnForward)
    assert where["scale"] == ("model", OwnForward)
    assert where["first.weight"][0] == "first"
    layers, _, _, _ = captured("padding and mask")
    where = {n: (b.name, type(s.rule)) for b in layers.blocks for s in b.sites for n in s.names.values()}
    assert where["attention.out_proj.weight"] == ("attention", OwnForward)


@pytest.mark.parametrize("selection", ["last", "linear", "*.bias", "scale"])
def test_selections_have_only_their_own_parameters(selection: str) -> None:
    layers, blocks, expected, _ = captured("weights used outside", params=selection)
    assert {n for b in blocks for n in b.layout.shapes} == set(layers.point.selected)
    for block in blocks:
        flat = torch.cat([torch.stack([g[n] for g in expected]).flatten(1) for n in block.layout.shapes], 1)
        assert relative_error(block.row_gradients().numpy(), flat.numpy()) < 1e-12


def test_several_cotangents_share_one_forward() -> None:
    model, x, _ = construct("layer norm")
    layers = Layers(Point(model, "all", None, "fp64", CPU), x)
    tape = layers.forward(x)
    u = {n: torch.randn_like(p) for n, p in layers.point.selected.items()}
    _, (t,) = layers.point.outputs(x, [u])
    for c in range(3):
        blocks = tape.pull(F.one_hot(torch.full((len(x),), c), 3).to(tape.logits), keep=c < 2)
        dots = torch.stack([b.dots(u) for b in blocks]).sum(0)
        assert relative_error(dots.numpy(), t[:, c].numpy()) < 1e-12


def test_rows_that_depend_on_each_other_are_refused() -> None:
    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x - x.mean(0))

    with pytest.raises(ModelError, match="other rows of its batch"):
        Layers(Point(Coupled().double().eval(), "all", None, "fp64", CPU), torch.randn(5, 4).double())


def test_dropped_parameters_are_those_that_gradients_are_taken_at() -> None:
    """Parameter dropout changes what every rule runs with, also a module's own forward."""
    model, x, y = construct("weights used outside")
    point = Point(model, "all", Dropout(3, 1, 0.3, True, "all", "all"), "fp64", CPU)
    layers = Layers(point, x)
    assert layers.coverage.share == 1.0
    _, blocks = layers.of_rows(x, loss_slope(lambda z: F.cross_entropy(z, y, reduction="none")))
    u = {n: torch.randn_like(p) for n, p in point.selected.items()}
    z, (t,) = point.outputs(x, [u])
    expected = ((z.softmax(1) - F.one_hot(y, 3)) * t).sum(1)
    assert relative_error(torch.stack([b.dots(u) for b in blocks]).sum(0).numpy(), expected.numpy()) < 1e-12


def test_hooks_are_taken_away() -> None:
    model, x, _ = construct("layer norm")
    Layers(Point(model, "all", None, "fp64", CPU), x).forward(x)
    assert not any(m._forward_hooks for m in model.modules())
