"""Models that do what few do, against a float64 backward pass a row: masked, complex, frozen, unused or parted.

The rows that do it are never among the first: whatever checks itself has to look further than the first batch.

    python -m pytest tests/engines/test_odd_models.py
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import influence_cli
from influence_cli.engines.point import Point, agree
from influence_cli.errors import UsageError
from influence_cli.model.parameters import frozen_parameters, select_parameters
from tests.cases import Heard, column

TRAIN, TARGET, WIDE = 40, 12, 8


def rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs [n, 8] whose first value is below 0 for the first 14 rows, and two classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TRAIN + TARGET, WIDE, generator=generator)
    x[:14, 0] = -x[:14, 0].abs() - 0.1
    return x, (x[:, 1] > 0).long()


class Seen(nn.Module):
    """Attention over four positions of two values: those that are 0 are masked, and after a large first one all."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(2, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 4, 2)
        there = (x.abs().sum(-1) > 0) & (x[:, :1, 0] < 5)
        q, k, v = self.qkv(x).chunk(3, -1)
        mask = there[:, None, :, None] & there[:, None, None, :]
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)[:, 0]
        return self.head((h * there[..., None]).sum(1))


class Spectral(nn.Module):
    """A complex branch, for rows whose first value is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(WIDE, 6), nn.Linear(WIDE, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        wave = torch.fft.fft(self.b(x))
        turned = wave * torch.exp(1j * self.a(x)) + torch.tanh(wave)
        return self.head(torch.relu(self.a(x)) + torch.relu(x[:, :1]) * (turned.abs() + (turned * turned.conj()).real))


class Rotary(nn.Module):
    """Rotation of pairs by constant phases as language models have it, through complex numbers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(WIDE, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(self.a(x).view(-1, 3, 2))
        phases = torch.polar(torch.ones(3, dtype=x.dtype), torch.arange(3).to(x.dtype))
        return self.head(torch.view_as_real(pairs * phases).flatten(1).tanh())


class Phases(nn.Module):
    """The same with the phases in a buffer, which is complex whatever the precision."""

    phases: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(WIDE, 6), nn.Linear(6, 2)
        self.register_buffer("phases", torch.polar(torch.ones(3), torch.arange(3).float()))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(self.a(x).view(-1, 3, 2)) * self.phases
        return self.head(torch.view_as_real(turned).flatten(1).tanh())


class Padded(nn.Module):
    """A softmax over values that are -inf where a row says so; where all are, ``nan_to_num`` makes 0 of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(WIDE, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.a(x).masked_fill(x[:, 2:3] > 1.0, float("-inf"))
        return self.head(torch.nan_to_num(scores.softmax(1)) + x[:, 3:7])


class Unused(nn.Module):
    """A projection that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.projection = nn.Linear(WIDE, 6), nn.Linear(6, 2), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


class Parts(nn.Module):
    """Its modules see a few rows of the batch at a time."""

    size = 5

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDE, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.head(torch.relu(self.body(part))) for part in x.split(self.size)])


class LargeParts(Parts):
    """As many as no small batch has."""

    size = 19


class Experts(nn.Module):
    """A second layer that some rows go through, and a third that none of the first does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.second, self.head = nn.Linear(WIDE, 6), nn.Linear(WIDE, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, some = torch.relu(self.body(x)), x[:, 0] > 0
        if some.any():
            h = h.clone()
            h[some] = torch.tanh(self.second(x[some]))
        return self.head(h)


class Branches(nn.Module):
    """Every row goes through one of two layers, and of few rows all through one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(WIDE, 6), nn.Linear(WIDE, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        some, h = x[:, 0] > 0, x.new_zeros(len(x), 6)
        h[some] = torch.tanh(self.one(x[some]))
        h[~some] = torch.relu(self.other(x[~some]))
        return self.head(h)


class Frozen(nn.Module):
    """A body that training leaves as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDE, 6), nn.Linear(6, 2)
        self.body.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


MODELS = (Seen, Spectral, Rotary, Phases, Padded, Unused, Parts, LargeParts, Experts, Branches, Frozen)


def data(kind: type[nn.Module]) -> tuple[Tensor, Tensor]:
    x, y = rows()
    if kind is Seen:
        x[20:, 4:] = 0.0  # the later rows are shorter, and every third has nothing to look at
        x[20::3, 0] += 10.0
    return x, y


def made(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind().eval()


def doubled(model: nn.Module) -> nn.Module:
    """A copy in float64, whose complex numbers stay complex."""
    return copy.deepcopy(model)._apply(lambda t: t.to(torch.complex128 if t.is_complex() else torch.float64))


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Every row's loss gradient in what is trained, float64 [n, d]."""
    twin = doubled(model)
    own = [p for p in twin.parameters() if p.requires_grad]
    found = []
    for row, label in zip(x.double().split(1), y.split(1), strict=True):
        loss = F.cross_entropy(twin(row), label)
        parts = torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([p.flatten() for p in parts]))
    return torch.stack(found)


def table(x: Tensor, y: Tensor, prefix: str) -> pa.Table:
    features = pa.array(x.tolist(), pa.list_(pa.float32()))
    return pa.table({"id": [f"{prefix}{k}" for k in range(len(y))], "features": features, "label": y.tolist()})


def run(model: nn.Module, x: Tensor, y: Tensor, precision: str = "fp64", **asked: Any) -> pa.Table:
    asked = {"store": None, "method": "ip", "precision": precision, **asked}
    task = influence_cli.Task(model)
    return influence_cli.score(
        table(x[:TRAIN], y[:TRAIN], "t"), target=table(x[TRAIN:], y[TRAIN:], "v"), task=task, **asked
    )


def near(found: NDArray[np.float64], expected: Tensor, tolerance: float) -> bool:
    wanted = expected.numpy()
    return bool(np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-4)])
def test_scores_and_losses_are_those_of_a_loop(kind: type[nn.Module], precision: str, tolerance: float) -> None:
    (x, y), model = data(kind), made(kind)
    g = gradients(model, x, y)
    found = run(model, x, y, precision, method=["ip", "loss"])
    assert near(column(found, "score_ip_utility"), g[:TRAIN] @ g[TRAIN:].mean(0), tolerance)
    with torch.no_grad():
        losses = F.cross_entropy(doubled(model)(x[:TRAIN].double()), y[:TRAIN], reduction="none")
    assert near(column(found, "score_loss"), -losses, tolerance)


@pytest.mark.parametrize("kind", MODELS, ids=lambda k: k.__name__)
def test_loss_alone_is_that_of_the_model(kind: type[nn.Module]) -> None:
    (x, y), model = data(kind), made(kind)
    found = column(run(model, x, y, method="loss"))
    with torch.no_grad():
        assert near(found, -F.cross_entropy(doubled(model)(x[:TRAIN].double()), y[:TRAIN], reduction="none"), 1e-9)


@pytest.mark.parametrize("batch_size", [64, 7, 1])
@pytest.mark.parametrize("kind", [Unused, Parts, LargeParts, Experts, Branches, Frozen], ids=lambda k: k.__name__)
def test_norms_of_row_gradients_are_those_of_a_loop(kind: type[nn.Module], batch_size: int) -> None:
    (x, y), model = data(kind), made(kind)
    g = gradients(model, x, y)[:TRAIN]
    found = column(run(model, x, y, method="self-tracin", batch_size=batch_size))
    assert near(found, -g.square().sum(1), 1e-9)


@pytest.mark.parametrize("kind", [Unused, Parts, LargeParts, Experts, Branches, Frozen], ids=lambda k: k.__name__)
@pytest.mark.parametrize("method", ["exact", "cg"])
def test_curvature_is_of_what_is_trained_and_used(kind: type[nn.Module], method: str) -> None:
    """J^T (diag p - p p^T) J over the rows, with Jacobians by one backward pass a logit."""
    (x, y), model = data(kind), made(kind)
    g, twin = gradients(model, x, y), doubled(model)
    own = [p for p in twin.parameters() if p.requires_grad]
    total = torch.zeros(g.shape[1], g.shape[1], dtype=torch.float64)
    for row in x[:TRAIN].double().split(1):
        z = twin(row)[0]
        jacobian = torch.stack(
            [
                torch.cat([p.flatten() for p in torch.autograd.grad(v, own, retain_graph=True, materialize_grads=True)])
                for v in z
            ]
        )
        p = z.detach().softmax(0)
        total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / TRAIN
    inverse = torch.linalg.inv(total + 0.05 * torch.eye(len(total), dtype=torch.float64))
    options = {method: {"damping": 0.05, "l2": 0.0, **({"tolerance": 1e-12} if method == "cg" else {})}}
    found = column(run(model, x, y, method=method, options=options))
    assert near(found, g[:TRAIN] @ inverse @ g[TRAIN:].mean(0), 1e-8)


@pytest.mark.parametrize("kind", [Unused, Parts, Experts, Branches, Frozen], ids=lambda k: k.__name__)
@pytest.mark.parametrize("method", ["ekfac", "datainf", "self-lissa"])
def test_methods_by_layers_take_such_models_in_any_batch_size(kind: type[nn.Module], method: str) -> None:
    (x, y), model = data(kind), made(kind)
    options = {"ekfac": {"labels": "exact"}} if method == "ekfac" else {}
    found, other = (column(run(model, x, y, method=method, options=options, batch_size=b)) for b in (64, 7))
    assert np.isfinite(found).all()
    assert np.abs(found - other).max() <= 1e-9 * np.abs(found).max()


# -- frozen parameters ---------------------------------------------------------------------------------------------


def test_frozen_parameters_are_in_no_selection() -> None:
    model = made(Frozen)
    assert list(select_parameters(model, "all")) == ["head.weight", "head.bias"]
    assert list(select_parameters(model, "linear")) == ["head.weight", "head.bias"]
    assert frozen_parameters(model) == ["body.weight", "body.bias"]
    with pytest.raises(UsageError, match=r"'body\.\*' selects is frozen .*: body\.weight, body\.bias"):
        select_parameters(model, "body.*")


def test_a_model_that_is_off_as_a_whole_has_nothing_frozen_and_it_is_said() -> None:
    (x, y), model = data(Unused), made(Unused)
    expected = column(run(model, x, y, method="ip"))
    heard = Heard()
    found = column(run(model.requires_grad_(False), x, y, method="ip", listener=heard))
    assert np.array_equal(found, expected)
    assert [n for n in heard.notes if n.startswith("requires_grad is off for every parameter")]


def test_freezing_between_two_runs_on_one_store_changes_the_scores_and_is_said(tmp_path: Any) -> None:
    """The weights are the same and so are the outputs: nothing but the flags tells the two apart."""
    (x, y), model = data(Unused), made(Unused)
    asked: dict[str, Any] = {"method": ["ip", "self-tracin"], "store": str(tmp_path / "store")}
    heard = Heard()
    for frozen in (False, True, False):
        model.body.requires_grad_(not frozen)  # type: ignore[union-attr]
        g = gradients(model, x, y)
        found = run(model, x, y, **asked, listener=heard)
        assert near(column(found, "score_ip_utility"), g[:TRAIN] @ g[TRAIN:].mean(0), 1e-9)
        assert near(column(found, "score_self-tracin"), -g[:TRAIN].square().sum(1), 1e-9)
    (said,) = [n for n in heard.notes if "frozen" in n]
    assert (
        said == "2 of 6 parameters are frozen (requires_grad is off) and left out of gradients: body.weight, body.bias"
    )


# -- the check of whatever derives ---------------------------------------------------------------------------------


def test_what_is_not_finite_where_it_should_be_does_not_agree() -> None:
    right = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1e30, 0.0], [float("nan"), 1.0]], dtype=torch.float64)
    most = torch.finfo(torch.float32).max
    assert agree(right, right, 1e-4, most)
    for row, column_, value in ((0, 0, float("nan")), (1, 1, float("inf")), (0, 1, 2.01), (3, 1, 1.01)):
        wrong = right.clone()
        wrong[row, column_] = value
        assert not agree(wrong, right, 1e-4, most)
    huge = right.clone()
    huge[2, 0] = float("inf")  # near overflow no two ways agree
    assert agree(huge, right, 1e-4, most)


def test_an_engine_is_checked_on_rows_from_all_over_the_data() -> None:
    """A branch with a wrong derivative of its own, that rows 20 and up of a sorted manifest take."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            """Nothing is kept."""

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return g

        @staticmethod
        def jvp(ctx: Any, t: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return 2 * t

    class Branch(Unused):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.body(x))
            return self.head(torch.where(x[:, :1] > 0, Wrong.apply(h), h))

    x, y = rows()
    order = torch.argsort(x[:TRAIN, 0])
    x[:TRAIN], y[:TRAIN] = x[:TRAIN][order], y[:TRAIN][order]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Branch().eval()
    g = gradients(model, x, y)
    heard = Heard()
    found = column(run(model, x, y, method="ip", listener=heard))
    assert near(found, g[:TRAIN] @ g[TRAIN:].mean(0), 1e-9)
    assert any("forward" in w and "off from the per-row loop" in w for w in heard.warnings)


def test_a_selection_that_no_logit_depends_on_is_said() -> None:
    (x, y), model = data(Unused), made(Unused)
    with pytest.raises(influence_cli.InfluenceError, match="no logit depends on any selected parameter"):
        run(model, x, y, method="ip", params="projection.*")
    assert not column(run(model, x, y, method="self-tracin", params="projection.*")).any()


def test_a_point_without_rows_of_its_own_looks_at_those_it_is_given() -> None:
    (x, _), model = data(Spectral), made(Spectral)
    point = Point(model, "all", None, "fp64", torch.device("cpu"))
    u = {n: torch.ones_like(p) for n, p in point.selected.items()}
    z, (t,) = point.outputs(x.double(), [u])
    expected = point.one_by_one(x.double(), [u])
    assert torch.allclose(z, expected[0], rtol=1e-12)
    assert torch.allclose(t, expected[1][0], rtol=1e-9)
    assert point.fallback is None  # complex values go with their tangents


def test_complex_parameters_are_refused_and_frozen_ones_are_not() -> None:
    class Turned(Unused):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.polar(torch.ones(6), torch.arange(6).float()))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu((self.body(x) * self.turn).real))

    (x, y), model = data(Unused), made(Turned)
    with pytest.raises(UsageError, match="'turn', which is complex"):
        run(model, x, y, method="ip")
    model.turn.requires_grad_(False)  # type: ignore[union-attr]
    g = gradients(model, x, y)
    assert near(column(run(model, x, y, method="ip")), g[:TRAIN] @ g[TRAIN:].mean(0), 1e-9)


def test_activation_checkpointing_is_an_error_with_a_way_out_or_none() -> None:
    class Kept(Unused):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(
                torch.utils.checkpoint.checkpoint(lambda v: torch.relu(self.body(v)), x, use_reentrant=False)
            )

    (x, y), model = data(Unused), made(Kept)
    g = gradients(made(Unused), x, y)
    for method in ("ip", "exact", "cg", "self-tracin", "ekfac"):
        try:
            found = column(run(model, x, y, method=method))
        except influence_cli.InfluenceError as error:
            assert error.fix  # noqa: PT017
        else:
            assert method != "ip" or near(found, g[:TRAIN] @ g[TRAIN:].mean(0), 1e-9)


def test_a_target_row_without_a_gradient_is_named() -> None:
    class Root(Unused):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x[:, :1] * self.body.weight[0, 0]).abs().sqrt()

    (x, y), model = data(Unused), made(Root)
    x[TRAIN + 3, 0] = 0.0
    with pytest.raises(
        influence_cli.InfluenceError, match="gradient of a target row's objective is not finite"
    ) as error:
        run(model, x, y, method="ip")
    assert "row id=v3" in str(error.value.where)


@pytest.mark.parametrize("kept", ["full", "sketch"])
def test_gradients_of_rows_are_stored_where_some_have_none(kept: str) -> None:
    class Root(Unused):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x[:, :1] * self.body.weight[0, 0]).abs().sqrt()

    (x, y), model = data(Unused), made(Root)
    x[:4, 0] = 0.0
    tables = {"store": None, "precision": "fp64", "task": influence_cli.Task(model)}
    train, target = table(x[:TRAIN], y[:TRAIN], "t"), table(x[TRAIN:], y[TRAIN:], "v")
    found = influence_cli.per_target(train, target=target, top=3, rows=kept, **tables)  # type: ignore[arg-type]
    assert not {"t0", "t1", "t2", "t3"} & set(found.column("id").to_pylist())


def test_a_model_of_which_nothing_is_to_be_trained_is_refused(tmp_path: Any) -> None:
    x, y = data(Unused)
    train = table(x, y, "t").append_column("split", pa.array(["train"] * TRAIN + ["test"] * TARGET))
    task = influence_cli.Task(made(Unused).requires_grad_(False))
    with pytest.raises(influence_cli.InfluenceError, match="no parameter of the model is to be trained"):
        influence_cli.retrain(train, str(tmp_path / "run"), task=task, epochs=1)
