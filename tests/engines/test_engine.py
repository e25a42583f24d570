"""The forward engine (methods.md T01, T03, T04, T05).

Reference: scores and label-counterfactual scores against the float64 per-row autograd loop of ``tests.oracle``,
through the whole path from manifest and checkpoint to table, and tangents of small networks, one per construct.
Behavioural: batch size and order do not matter, BatchNorm in training mode is refused, selections are exact.

    python -m pytest tests/engines/test_engine.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli.engines.point import Point, differentiable_kernels
from influence_cli.errors import ModelError, UsageError
from influence_cli.model.parameters import select_parameters
from tests.cases import so_many
from tests.opened import score
from tests.oracle import (
    Gradient,
    Problem,
    column,
    dot,
    loop_label_scores,
    loop_scores,
    make_problem,
    mean_gradient,
    relative_error,
    row_gradients,
    shake,
)

CPU = torch.device("cpu")
ARCHITECTURES = {
    "mlp": ("mlp:12,8", (6,)),
    "mlp-image": ("mlp:8", (3, 6, 5)),
    "resnet": ("resnet18", (3, 32, 32)),
    "vit": ("vit_tiny_patch16_224", (3, 32, 32)),
    "vit-small": ("test_vit", (3, 32, 32)),
    "resnet-small": ("test_resnet", (3, 32, 32)),
}

# the large ones are built of the layers of the small ones
LOOPED = so_many(list(ARCHITECTURES), ["mlp", "mlp-image", "vit-small", "resnet-small"])


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Problem]:
    """One tiny problem an architecture, made on first use."""
    folder = tmp_path_factory.mktemp("engine")

    class Made(dict[str, Problem]):
        def __missing__(self, key: str) -> Problem:
            name, shape = ARCHITECTURES[key]
            rows = {"resnet": (3, 2), "vit": (3, 2), "resnet-small": (7, 4), "vit-small": (7, 4)}.get(key, (10, 7))
            self[key] = make_problem(folder / key, name, shape, train=rows[0], val=rows[1])
            return self[key]

    return Made()


@pytest.fixture(scope="module")
def references(problems: dict[str, Problem]) -> dict[str, np.ndarray]:
    """The loop's label-counterfactual scores [n, C] of the train rows, made on first use."""

    class Made(dict[str, np.ndarray]):
        def __missing__(self, key: str) -> np.ndarray:
            p = problems[key]
            q = mean_gradient(p.model, *p.part("val"))
            self[key] = loop_label_scores(p.model, p.part("train")[0], p.spec.num_classes, q)
            return self[key]

    return Made()


def own(scores: np.ndarray, labels: Tensor) -> np.ndarray:
    return scores[np.arange(len(labels)), labels.numpy()]


# -- (a), (b), (c): the whole path ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", LOOPED)
def test_scores_and_label_scores_equal_the_loop(
    key: str, problems: dict[str, Problem], references: dict[str, np.ndarray]
) -> None:
    problem, every = problems[key], references[key]
    labels = problem.part("train")[1]
    table = score(problem.job())
    assert relative_error(column(table, "score"), own(every, labels)) < 1e-10
    assert table.column("label").to_pylist() == labels.tolist()
    assert table.column("best_label").to_pylist() == every.argmax(axis=1).tolist()
    gain = every.max(axis=1) - own(every, labels)
    assert np.abs(column(table, "best_label_gain") - gain).max() < 1e-10 * np.abs(every).max()


@pytest.mark.parametrize("key", LOOPED)
def test_float32_equals_float64(key: str, problems: dict[str, Problem], references: dict[str, np.ndarray]) -> None:
    problem = problems[key]
    table = score(problem.job(precision="fp32"))
    assert relative_error(column(table, "score"), own(references[key], problem.part("train")[1])) < 1e-5


def test_batchnorm_statistics_are_not_trivial(problems: dict[str, Problem]) -> None:
    """Guards the ResNet case above: with mean 0 and variance 1 a mistake in evaluation mode would not show."""
    norms = [m for m in problems["resnet-small"].model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(m.running_mean is not None and m.running_mean.abs().max() > 0.01 for m in norms)
    assert all((m.weight - 1).abs().max() > 0.01 for m in norms)


def test_rows_that_share_a_payload_have_each_their_own_labels_score(tmp_path: Path) -> None:
    problem = make_problem(tmp_path, "mlp:5", (4,), classes=3)
    features = np.asarray(problem.payloads).copy()
    train = np.flatnonzero(problem.splits == "train")
    features[train[1]] = features[train[0]]
    labels = problem.labels.clone()
    labels[train[:2]] = torch.tensor([0, 2])
    twins = Problem(
        problem.folder, problem.spec, problem.model, torch.from_numpy(features).double(), labels,
        problem.splits, problem.ids, features,
    )  # fmt: skip
    path = twins.permuted(np.arange(len(labels)), "twins.parquet")
    q = mean_gradient(twins.model, *twins.part("val"))
    expected = loop_scores(twins.model, *twins.part("train"), q)
    found = column(score(twins.job(manifest=path)), "score")
    assert relative_error(found, expected) < 1e-10
    assert abs(found[0] - found[1]) > 1e-6


# -- (d): independence of batch size and order ---------------------------------------------------------------------


@pytest.mark.parametrize("key", ["mlp", "resnet-small", "vit-small"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5)])
def test_batch_size_and_row_order_do_not_matter(
    key: str, precision: str, tolerance: float, problems: dict[str, Problem]
) -> None:
    problem = problems[key]
    whole = score(problem.job(precision=precision))
    order = np.random.default_rng(3).permutation(len(problem.ids))
    shuffled = problem.permuted(order, f"shuffled-{precision}.parquet")
    expected = dict(zip(whole.column("id").to_pylist(), column(whole, "score"), strict=True))
    largest = max(abs(s) for s in expected.values())
    for size, manifest in ((1, None), (3, None), (None, shuffled), (2, shuffled)):
        table = score(problem.job(precision=precision, batch_size=size, manifest=manifest))
        ids = table.column("id").to_pylist()
        assert set(ids) == set(expected)
        assert (ids == list(expected)) == (manifest is None)
        for i, s in zip(ids, column(table, "score"), strict=True):
            assert abs(s - expected[i]) <= tolerance * largest


# -- (e): modes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["model", "one norm"])
def test_training_mode_is_refused(trained: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    (model if trained == "model" else model[1]).train()
    with pytest.raises(ModelError, match="training mode"):
        Point(model, "all", None, "fp64", CPU)


def test_output_that_is_not_logits_is_refused() -> None:
    point = Point(nn.Sequential(nn.Conv2d(1, 2, 1)).eval(), "all", None, "fp64", CPU)
    with pytest.raises(ModelError, match=r"not logits"):
        point.outputs(torch.randn(3, 1, 4, 4).double(), [])


def test_kernel_settings_are_given_back() -> None:
    def settings() -> tuple[bool, str, bool, bool, bool]:
        return (
            torch.backends.mha.get_fastpath_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        )

    def fail_inside() -> None:
        with differentiable_kernels():
            assert not torch.backends.mha.get_fastpath_enabled()
            assert not torch.backends.cuda.flash_sdp_enabled()
            raise RuntimeError("stop")

    before = settings()
    with pytest.raises(RuntimeError, match="stop"):
        fail_inside()
    assert settings() == before


# -- (f), (h): one construct each ----------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention by ``scaled_dot_product_attention`` on the default kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (2, 3)).transpose(1, 2) for t in self.mix(x).chunk(3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(y.mean(dim=1))


class Encoder(nn.Module):
    """``nn.TransformerEncoderLayer``, whose evaluation mode takes a fused path."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.1, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(dim=1))


class Tied(nn.Module):
    """Token embedding whose weight is also the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.embed(x.long()).sum(dim=1)).tanh())


class Twice(nn.Module):
    """A block that is called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(x).tanh()).tanh())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def _image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


CONSTRUCTS = {
    "attention": (Attention, (5, 6)),
    "encoder layer": (Encoder, (5, 6)),
    "lstm": (Recurrent, (4, 6)),
    "tied": (Tied, None),
    "called twice": (Twice, (6,)),
    "grouped conv": (lambda: _image(nn.Conv2d(4, 8, 3, groups=2), nn.GELU()), (4, 6, 6)),
    "depthwise conv": (lambda: _image(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.SiLU()), (4, 6, 6)),
    "strided conv": (lambda: _image(nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), nn.ReLU()), (4, 7, 6)),
    "transposed conv": (lambda: _image(nn.ConvTranspose2d(4, 3, 2, stride=2), nn.Tanh()), (4, 3, 3)),
    "group norm": (lambda: _image(nn.Conv2d(4, 6, 3), nn.GroupNorm(3, 6), nn.ReLU()), (4, 5, 5)),
    "layer norm": (lambda: _image(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU()), (3, 6)),
    "batch norm": (lambda: _image(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), (4, 5, 5)),
    "max pool": (lambda: _image(nn.Conv2d(4, 6, 3), nn.MaxPool2d(2), nn.AvgPool2d(2, 1)), (4, 6, 6)),
}  # fmt: skip


def _construct(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = CONSTRUCTS[name]
    torch.manual_seed(1)
    model = make()
    x = torch.randint(0, 5, (6, 4)) if shape is None else torch.randn(6, *shape)
    model(x)  # gives LazyLinear its width
    shake(model, x, 2)
    x = x if shape is None else x.double()
    return model.double().eval(), x, torch.arange(6) % 3


@pytest.mark.parametrize("name", CONSTRUCTS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5)])
def test_tangents_of_every_construct_equal_the_loop(name: str, precision: str, tolerance: float) -> None:
    """The loss gradient in the logits, dotted with the logits' tangent, is the loop's <grad l_i, u>."""
    model, x, y = _construct(name)
    generator = torch.Generator().manual_seed(5)
    u: Gradient = {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in model.named_parameters()
    }
    expected = np.array([dot(g, u) for g in row_gradients(model, x, y)])
    with torch.no_grad():
        logits = model(x)
    point = Point(model, "all", None, precision, CPU)
    assert point.selected.keys() == u.keys()
    z, (t,) = point.outputs(x.to(point.dtype), [{n: v.to(point.dtype) for n, v in u.items()}])
    assert z.dtype == t.dtype == point.dtype
    assert relative_error(z.double().numpy(), logits.numpy()) < tolerance
    residual = logits.softmax(dim=1) - F.one_hot(y, logits.shape[1])
    assert relative_error((residual * t.double()).sum(dim=1).numpy(), expected) < tolerance


def test_several_directions_share_a_call_and_are_linear() -> None:
    model, x, _ = _construct("group norm")
    point = Point(model, "all", None, "fp64", CPU)
    u = {n: torch.randn_like(p) for n, p in point.selected.items()}
    v = {n: torch.randn_like(p) for n, p in point.selected.items()}
    both = {n: 2.0 * u[n] - 3.0 * v[n] for n in u}
    _, (tu, tv, tb) = point.outputs(x, [u, v, both])
    assert relative_error(tb.numpy(), (2.0 * tu - 3.0 * tv).numpy()) < 1e-12


# -- (g): selections of parameters ---------------------------------------------------------------------------------

SELECTIONS = [
    ("vit-small", "last", ["head.weight", "head.bias"]),
    ("resnet", "last", ["fc.weight", "fc.bias"]),
    ("resnet", "linear", ["fc.weight", "fc.bias"]),
    ("resnet", "layer4.1.bn?.*", [f"layer4.1.bn{k}.{p}" for k in (1, 2) for p in ("weight", "bias")]),
    ("mlp", "last", ["head.weight", "head.bias"]),
    (
        "mlp",
        "linear",
        ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "head.weight", "head.bias"],
    ),
    ("mlp", "*.bias", ["layers.0.bias", "layers.1.bias", "head.bias"]),
]


@pytest.mark.parametrize(("key", "selection", "names"), SELECTIONS)
def test_selection_equals_the_loop_on_those_parameters(
    key: str, selection: str, names: list[str], problems: dict[str, Problem]
) -> None:
    problem = problems[key]
    job = problem.job(params=selection)
    table = score(job)
    stored = job.store.directions.read(job.direction(job.members[0], "utility"))
    assert stored is not None
    assert sorted(stored) == sorted(names)
    q = mean_gradient(problem.model, *problem.part("val"), names)
    expected = loop_scores(problem.model, *problem.part("train"), q, names)
    assert relative_error(column(table, "score"), expected) < 1e-10


def test_linear_selects_every_linear_layer_of_a_transformer(problems: dict[str, Problem]) -> None:
    model = problems["vit-small"].model
    expected = {
        f"{m}.{p}"
        for m, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        for p in ("weight", "bias")
        if getattr(layer, p) is not None
    }
    assert set(select_parameters(model, "linear")) == expected
    assert 0 < len(expected) < len(list(model.parameters()))


@pytest.mark.parametrize("selection", ["nothing.*", "HEAD.weight", ""])
def test_empty_selection_is_refused(selection: str, problems: dict[str, Problem]) -> None:
    with pytest.raises(UsageError, match="selects no parameter"):
        score(problems["mlp"].job(params=selection))


def test_last_without_a_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    with pytest.raises(UsageError, match="no linear layer"):
        select_parameters(model, "last")


@pytest.mark.parametrize("selection", ["last", "linear"])
def test_tied_classifier_is_selected_under_its_first_name(selection: str) -> None:
    """The classifier's weight is a parameter of ``out``, whatever other name it has."""
    assert set(select_parameters(Tied(), selection)) == {"embed.weight", "out.bias"}
