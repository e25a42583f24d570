"""Penultimate features are what the layer that makes the logits is given; a model without such a layer is refused.

python -m pytest tests/engines/test_features.py
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from influence_cli.engines.features import Features, width_of
from influence_cli.engines.point import Point
from influence_cli.errors import ModelError
from influence_cli.model.spec import ModelSpec
from tests.model.test_logit_layer import CASES, Net, X


def point(model: nn.Module, precision: str = "fp64") -> Point:
    return Point(model.eval(), "all", None, precision, torch.device("cpu"))


def case(name: str) -> tuple[Net, str | None]:
    """One of the models, to be changed."""
    return copy.deepcopy(CASES[name])


@pytest.mark.parametrize("name", [n for n, (_, layer) in CASES.items() if layer is not None])
def test_features_are_the_input_of_the_layer_that_makes_the_logits(name: str) -> None:
    model, layer = case(name)
    at = point(model)
    found = Features(at)
    h = found.of(X.double())
    assert found.layer == layer
    assert not h.requires_grad
    given = {"head": lambda m: m.body(X.double()).relu(), "out": lambda m: m.enc(X.double())}[str(layer)]
    expected = given(model) if name != "scaled" else model.body(X.double())  # type: ignore[operator]
    torch.testing.assert_close(h, expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [n for n, (_, layer) in CASES.items() if layer is None])
def test_a_model_whose_logits_no_one_layer_makes_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no penultimate features") as refused:
        Features(point(case(name)[0])).of(X.double())
    assert refused.value.fix is not None
    assert "loss" in refused.value.fix


def test_a_layer_that_is_given_more_than_a_vector_a_row_is_refused() -> None:
    by_position = Net(lambda m, x: m.f(x[:, :, None]).mean(1), f=nn.Linear(1, 3))
    with pytest.raises(ModelError, match=r"layer f makes the logits, and is given no one vector a row \(\[2, 4, 1\]"):
        Features(point(by_position)).of(X.double())


def test_a_resnets_features_are_its_pooled_maps_whatever_the_batch() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3)
    at = point(model)
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    h = Features(at).of(x)
    with torch.no_grad():
        maps = model.forward_features(x)  # type: ignore[operator]
    np.testing.assert_allclose(h.numpy(), maps.mean((2, 3)).numpy(), rtol=1e-10, atol=1e-12)
    one_by_one = torch.cat([Features(at).of(x[k : k + 1]) for k in range(5)])
    np.testing.assert_allclose(h.numpy(), one_by_one.numpy(), rtol=1e-10, atol=1e-12)


def test_means_and_deviations_of_the_last_maps_stand_in_their_place_at_each_size() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3, zero_init_last=False)
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    features = Features(point(model), (32,), 2)
    h = features.of(x)
    assert features.earlier == ["layer3.0", "layer4.0"]
    wanted = []
    for size in (64, 32):
        small = nn.functional.interpolate(x, (size, size), mode="bicubic", antialias=True)
        with torch.no_grad():
            maps = model.forward_intermediates(small, intermediates_only=True)  # type: ignore[operator]
        for of_layer in maps[-2:]:
            flat = of_layer.flatten(2).numpy()
            wanted += [flat.mean(axis=2), flat.std(axis=2)]
    np.testing.assert_allclose(h.numpy(), np.concatenate(wanted, axis=1), rtol=1e-9, atol=1e-11)
    assert width_of(ModelSpec("resnet10t", 3, "image", (3, 64, 64)), 2) * 2 == h.shape[1]


def test_a_model_without_maps_has_the_input_of_its_last_layer_where_maps_are_asked() -> None:
    model, _ = case(next(n for n, (_, layer) in CASES.items() if layer == "head"))
    plain, asked = Features(point(model)), Features(point(model), maps=5)
    torch.testing.assert_close(asked.of(X.double()), plain.of(X.double()), rtol=0, atol=0)
    assert asked.earlier == []


def test_a_model_that_takes_one_size_alone_is_refused_at_another() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ModelError, match="takes no images of 4 x 4") as refused:
        Features(point(net), (4,)).of(torch.rand(2, 3, 8, 8, dtype=torch.float64))
    assert refused.value.fix == "give one size: --features-size N"


def test_a_plan_knows_their_number_before_a_row_is_run() -> None:
    assert width_of(ModelSpec("mlp:7,5", 3, "features", (4,))) == 5
    assert width_of(ModelSpec("linear", 3, "features", (4,))) == 4


def test_an_error_of_the_model_itself_is_not_taken_for_a_missing_layer() -> None:
    def fails(model: nn.Module, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        Features(point(Net(fails, f=nn.Linear(4, 3)))).of(X.double())
