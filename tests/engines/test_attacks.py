"""Attacked inputs (methods.md 3.5, T49).

Reference: the margin factor of the linear rule, its closed form with two classes, the accuracy acc - f (2 acc - 1) of a
linear model with a fraction f attacked, a PGD written out by hand.
Properties: FGSM is PGD of one step bit for bit; x' stays in the box and in the range of an image; it does not depend on
the batch; no gradient runs through it.

    python -m pytest tests/engines/test_attacks.py
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influence_cli.data.kinds.features import Features
from influence_cli.data.kinds.image import Image
from influence_cli.engines.attacked import attack, attacked_input
from influence_cli.engines.attacks import Attack
from influence_cli.errors import ModelError, UsageError
from influence_cli.model.build import build_model
from influence_cli.model.examples import to_input
from influence_cli.model.losses import OwnLoss
from influence_cli.model.spec import ModelSpec
from tests.oracle import shake

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

IMAGE_EPS, FEATURE_EPS = Image.largest_change, Features.largest_change


def keys_of(n: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(n).integers(0, 256, (n, 16), dtype=np.uint8)


def features(name: str, d: int = 6, classes: int = 3, n: int = 40) -> tuple[nn.Module, ModelSpec, Tensor, Tensor]:
    """A model of features in float64, and rows and labels for it."""
    spec = ModelSpec(name, classes, "features", (d,))
    torch.manual_seed(0)
    model, x = build_model(spec), torch.randn(n, d)
    shake(model, x, 0)
    return model.double().eval(), spec, x.double(), torch.randint(0, classes, (n,))


def images(name: str, side: int = 32, n: int = 4) -> tuple[nn.Module, ModelSpec, Tensor, Tensor]:
    """A model of images in float64, and decoded pixels and labels for it."""
    spec = ModelSpec(name, 3, "image", (3, side, side), MEAN, STD)
    torch.manual_seed(0)
    model, x = build_model(spec), torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    shake(model, to_input(x, spec, torch.float32), 0)
    return model.double().eval(), spec, x, torch.randint(0, 3, (n,))


def margins(z: Tensor, k: Tensor) -> Tensor:
    """z_k - z_c for every class c [n, C]."""
    return z.gather(1, k[:, None]) - z


# -- the linear rule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kappa", [0.4, 1.0, 1.3])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_margin_to_the_nearest_boundary_becomes_1_minus_kappa_times_what_it_was(kappa: float, classes: int) -> None:
    model, spec, x, y = features("linear", classes=classes)
    moved = attack(model, spec, Attack(kappa=kappa), x, y, keys_of(len(x)))
    z, z_moved, w = model(x), model(moved), model.get_parameter("head.weight")
    k = z.argmax(1)
    away = margins(z, k) / (w[k][:, None] - w[None]).norm(dim=2)
    away[torch.arange(len(x)), k] = torch.inf
    c = away.argmin(1)[:, None]
    before, after = margins(z, k).gather(1, c), margins(z_moved, k).gather(1, c)
    assert (after - (1.0 - kappa) * before).abs().max() < 1e-12
    assert torch.allclose((moved - x).norm(dim=1), kappa * away.min(1).values, atol=1e-12)


def test_two_classes_are_the_rule_of_the_paper() -> None:
    """x - kappa ((w.x + b) / (w.w)) w, with w.x + b the difference of the two logits."""
    model, spec, x, y = features("linear", classes=2)
    weight, bias = model.get_parameter("head.weight"), model.get_parameter("head.bias")
    w, b = weight[1] - weight[0], bias[1] - bias[0]
    expected = x - 1.3 * ((x @ w + b) / (w @ w))[:, None] * w
    assert torch.allclose(attack(model, spec, Attack(), x, y, keys_of(len(x))), expected, atol=1e-12, rtol=0)


def test_label_aware_leaves_wrong_rows_alone() -> None:
    model, spec, x, y = features("linear", classes=2)
    moved = attack(model, spec, Attack(label_aware=True), x, y, keys_of(len(x)))
    right = model(x).argmax(1) == y
    assert 0 < int(right.sum()) < len(x)
    assert torch.equal(moved[~right], x[~right])
    assert (model(moved).argmax(1) != y).all()  # right ones flipped, wrong ones as they were


@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.25])
def test_accuracy_of_a_linear_model_with_a_fraction_attacked(fraction: float) -> None:
    """acc - f (2 acc - 1) in expectation: the rule flips right and wrong predictions alike."""
    model, spec, x, _ = features("linear", classes=2, n=4000)
    generator = torch.Generator().manual_seed(1)
    predicted = model(x).argmax(1)
    y = torch.where(torch.rand(4000, generator=generator) < 0.8, predicted, 1 - predicted)
    moved = attack(model, spec, Attack(), x, y, keys_of(len(x)))
    clean, flipped = (predicted == y).double(), (model(moved).argmax(1) == y).double()
    assert torch.equal(flipped, 1.0 - clean)
    accuracies = []
    for _ in range(200):
        chosen = torch.randperm(4000, generator=generator)[: int(fraction * 4000)]
        mixed = clean.clone()
        mixed[chosen] = flipped[chosen]
        accuracies.append(float(mixed.mean()))
    acc, found = float(clean.mean()), np.array(accuracies)
    assert abs(found.mean() - (acc - fraction * (2 * acc - 1))) < 4 * found.std(ddof=1) / len(found) ** 0.5


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("name", ["mlp:5", "resnet18"])
def test_linear_is_refused_on_a_model_that_is_not(name: str, rows: int) -> None:
    model, spec, x, y = features(name) if name.startswith("mlp") else images(name)
    x, y = x[:rows], y[:rows]
    with pytest.raises(ModelError, match="needs a linear model") as error:
        attack(model, spec, Attack("linear"), x, y, keys_of(len(x)))
    assert "robustness.attack=pgd" in str(error.value)


def test_linear_of_images_must_stay_an_image() -> None:
    model, spec, x, y = images("linear", 4)
    small = attack(model, spec, Attack("linear", kappa=1e-4), x.clamp(20, 200), y, keys_of(4))
    assert ((small >= 0) & (small <= 1)).all()
    with pytest.raises(UsageError, match=r"takes row-7 out of the range of an image"):
        attack(model, spec, Attack("linear", kappa=1e4), x, y, keys_of(4), names=["row-7"] * 4)


# -- steps along the sign ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: features("mlp:8"), lambda: images("vit_tiny_patch16_224", 224, 2)])
@pytest.mark.parametrize("step", [None, "eps"])
def test_pgd_of_one_step_without_a_start_is_fgsm_bit_for_bit(make: Any, step: str | None) -> None:
    model, spec, x, y = make()
    model = model.float()
    x = x.float() if spec.kind == "features" else x
    box = FEATURE_EPS if spec.kind == "features" else IMAGE_EPS
    pgd = Attack("pgd", steps=1, random_start=False, step=box if step else None)
    fgsm = attack(model, spec, Attack("fgsm"), x, y, keys_of(len(x)))
    assert torch.equal(attack(model, spec, pgd, x, y, keys_of(len(x))), fgsm)
    plain = x if spec.kind == "features" else x.float() / 255.0
    assert not torch.equal(fgsm, plain)


def test_fgsm_of_images_steps_before_mean_and_sd() -> None:
    model, spec, x, y = images("resnet18")
    at = (x.double() / 255.0).requires_grad_()
    loss = F.cross_entropy(
        model((at - torch.tensor(MEAN).double().view(1, 3, 1, 1)) / torch.tensor(STD).double().view(1, 3, 1, 1)),
        y,
        reduction="sum",
    )
    (slope,) = torch.autograd.grad(loss, at)
    expected = (at + IMAGE_EPS * slope.sign()).clamp(0, 1).detach()
    moved = attack(model, spec, Attack("fgsm"), x, y, keys_of(4))
    assert (moved - expected).abs().max() < 1e-12
    assert float((moved == 0).double().mean()) > 0  # some pixels were clipped
    assert torch.equal(attacked_input(x.double() / 255.0, spec), to_input(x, spec, torch.float64))


def test_pgd_is_what_it_is_by_hand() -> None:
    model, spec, x, y = features("mlp:8")
    how, now = Attack("pgd", eps=0.3, steps=4, random_start=False), x.clone()
    for _ in range(4):
        at = now.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(at), y), at)
        now = x + (now - x + 2.5 * 0.3 / 4 * slope.sign()).clamp(-0.3, 0.3)
    assert (attack(model, spec, how, x, y, keys_of(len(x))) - now).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_attacks_stay_in_the_box_and_raise_the_loss(kind: str) -> None:
    for model, spec, x, y in (features("mlp:8"), images("resnet18")):
        how = Attack(kind)
        plain = x.double() / 255.0 if spec.kind == "image" else x
        moved = attack(model, spec, how, x, y, keys_of(len(x)))
        assert float((moved - plain).abs().max()) <= how.box(spec) * (1 + 1e-9)
        if spec.kind == "image":
            assert bool(((moved >= 0) & (moved <= 1)).all())
        before, after = (F.cross_entropy(model(attacked_input(v.double(), spec)), y) for v in (plain.double(), moved))
        assert after > before
        assert not moved.requires_grad


def test_a_row_s_attack_does_not_depend_on_its_batch_and_starts_differ_by_seed() -> None:
    model, spec, x, y = features("mlp:8")
    keys = keys_of(len(x))
    whole = attack(model, spec, Attack("pgd"), x, y, keys, seed=3)
    parts = [attack(model, spec, Attack("pgd"), x[k : k + 1], y[k : k + 1], keys[k : k + 1], seed=3) for k in range(5)]
    assert torch.allclose(torch.cat(parts), whole[:5], atol=1e-12, rtol=0)
    assert torch.equal(attack(model, spec, Attack("pgd"), x, y, keys, seed=3), whole)
    # the signs end at corners of the box, most of them the same: one small step shows where a row started
    first, second = (attack(model, spec, Attack("pgd", steps=1, step=1e-6), x, y, keys, seed=s) for s in (3, 4))
    start = (first - x) / FEATURE_EPS
    assert (first - second).abs().max() > 0.5 * FEATURE_EPS
    assert abs(float(start.mean())) < 0.2
    assert float(start.std()) == pytest.approx(3**-0.5, abs=0.05)  # uniform on [-1, 1]


def test_a_loss_of_one_s_own_is_the_one_attacked() -> None:
    model, spec, x, y = features("mlp:8")
    cross = attack(model, spec, Attack("fgsm"), x, y, keys_of(len(x)))
    minus = OwnLoss(lambda z, labels: -F.cross_entropy(z, labels, reduction="none"))
    assert torch.allclose(attack(model, spec, Attack("fgsm"), x, y, keys_of(len(x)), loss=minus) - x, x - cross)


def test_recurrent_and_attention_models_can_be_attacked() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.view(len(x), -1, 2))[0][:, -1])

    _, spec, x, y = features("mlp:8")
    reader = Reader().eval()
    moved = attack(reader, spec, Attack("fgsm"), x.float(), y, keys_of(len(x)))
    assert F.cross_entropy(reader(moved), y) > F.cross_entropy(reader(x.float()), y)


# -- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{"kappa": 0.0}, {"kappa": -1.0}, {"eps": 0.0}, {"steps": 0}, {"step": -0.1}])
def test_strengths_must_be_positive(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Attack(**bad)


def test_an_unknown_attack_is_refused() -> None:
    with pytest.raises(ValueError, match="one of auto, linear, fgsm, pgd"):
        Attack("cw")


def test_auto_is_linear_for_linear_models_of_features() -> None:
    kinds = [Attack().kind(spec) for _, spec, _, _ in (features("linear"), features("mlp:4"), images("linear", 4))]
    assert kinds == ["linear", "pgd", "pgd"]


def test_what_does_not_matter_is_not_in_the_description() -> None:
    spec = features("linear")[1]
    assert Attack(eps=0.5, steps=3).describe(spec, 0) == Attack().describe(spec, 9)
    assert Attack("fgsm", kappa=2.0).describe(spec, 0) == Attack("fgsm").describe(spec, 9)
    assert Attack("pgd").describe(spec, 0) != Attack("pgd").describe(spec, 9)
    assert Attack("pgd", random_start=False).describe(spec, 0) == Attack("pgd", random_start=False).describe(spec, 9)


def test_outputs_that_are_no_logits_integers_and_training_mode_are_refused() -> None:
    model, spec, x, y = features("mlp:8")
    with pytest.raises(ModelError, match=r"not logits \[n, C\]"):
        attack(nn.Sequential(model, nn.Flatten(0)).eval(), spec, Attack("fgsm"), x, y, keys_of(len(x)))
    with pytest.raises(ModelError, match="cannot be attacked by small steps"):
        attack(model, spec, Attack("fgsm"), x.long(), y, keys_of(len(x)))
    with pytest.raises(ModelError, match="training mode"):
        attack(model.train(), spec, Attack("fgsm"), x, y, keys_of(len(x)))


def test_a_row_without_finite_logits_is_named() -> None:
    model, spec, x, y = features("linear")
    x[3, 0] = float("inf")
    with pytest.raises(ModelError, match="of row-3 is not finite"):
        attack(model, spec, Attack("fgsm"), x, y, keys_of(len(x)), names=[f"row-{k}" for k in range(len(x))])
