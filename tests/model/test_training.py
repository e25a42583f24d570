"""Training and comparison: paired randomness, weights, arms and their controls, what is kept (methods.md 6.5, T55).

Reference: order, augmentation, one SGD step, accuracies and paired intervals recomputed by hand from their definitions.
Behavioural: removing rows changes nothing about the others, controls match the arm they control, and a finished
arm is never trained again.

    python -m pytest tests/model/test_training.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor, nn

import influence_cli.model.train.sgd as training
from influence_cli.actions.protocol import PROPOSAL
from influence_cli.data.manifest import Rows
from influence_cli.data.open import open_manifest
from influence_cli.errors import ModelError, UsageError
from influence_cli.events import SILENT
from influence_cli.model.build import build_model
from influence_cli.model.examples import Examples
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.recipe import AUGMENTATIONS, SCHEDULES, Recipe
from influence_cli.model.train.sgd import augment, epoch_order, row_hashes
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.arm_comparison import improved
from influence_cli.stages.retrain.arms import Arm, base_arm, control_arms, curated_arm, proposals_of
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from tests.oracle import png, write_manifest

CPU = torch.device("cpu")
PLAIN = Recipe(epochs=1, lr=0.1, batch_size=64, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0)
Ints = NDArray[np.int64]


def ids_of(n: int) -> list[str]:
    return [f"id-{k:03d}" for k in range(n)]


def reference_hash(i: str, seed: int, epoch: int) -> int:
    digest = hashlib.blake2b(i.encode(), digest_size=8, key=f"{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest, "little")


class Recorder(nn.Module):
    """A linear model that keeps every batch it is trained on."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.seen = nn.Linear(width, classes), []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        return self.head(x.flatten(1))


def feature_examples(folder: Path, keep: Ints | None = None, weights: Any = None, n: int = 24) -> Examples:
    """Rows of features [n, 3] in 2 classes; some of them, with weights of their own."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(n, 3)).astype(np.float32), rng.integers(0, 2, n)
    keep = np.arange(n) if keep is None else keep
    columns = {} if weights is None else {"weight": np.asarray(weights, dtype=np.float64)[keep]}
    names = [ids_of(n)[k] for k in keep.tolist()]
    path = folder / f"features-{len(list(folder.iterdir()))}.parquet"
    write_manifest(path, features[keep], labels[keep], ["train"] * len(keep), names, **columns)
    return Examples(open_manifest(path).rows("train"), ModelSpec("linear", 2, "features", (3,)), SILENT, "rows")


def image_examples(folder: Path, keep: Ints, n: int = 24) -> Examples:
    """Rows of images [3, 8, 8]."""
    pixels = np.random.default_rng(1).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    path = folder / f"images-{len(list(folder.iterdir()))}.parquet"
    names = [ids_of(n)[k] for k in keep.tolist()]
    write_manifest(path, [png(pixels[k]) for k in keep.tolist()], keep % 2, ["train"] * len(keep), names)
    spec = ModelSpec("linear", 2, "image", (3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    return Examples(open_manifest(path).rows("train"), spec, SILENT, "rows")


def run(model: nn.Module, data: Examples, recipe: Recipe, seed: int = 0) -> int:
    return training.train(model, data, recipe, seed, CPU, lambda *_: None)


# -- T55: pairing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 7), (3, 1)])
def test_order_is_by_the_hash_of_seed_epoch_and_id(seed: int, epoch: int) -> None:
    ids = ids_of(50)
    hashes = [reference_hash(i, seed, epoch) for i in ids]
    assert row_hashes(ids, seed, epoch).tolist() == hashes
    assert epoch_order(ids, seed, epoch).tolist() == sorted(range(50), key=lambda k: hashes[k])


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_removing_rows_leaves_the_order_of_the_rest_unchanged(kept: float) -> None:
    ids, rng = ids_of(200), np.random.default_rng(0)
    rest = [i for i in ids if rng.random() < kept]
    rng.shuffle(rest)  # nor does the order of the table matter
    for epoch in range(3):
        whole = [ids[k] for k in epoch_order(ids, 5, epoch)]
        assert [rest[k] for k in epoch_order(rest, 5, epoch)] == [i for i in whole if i in set(rest)]


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    ids = ids_of(40)
    orders = {tuple(epoch_order(ids, s, e).tolist()) for s in range(4) for e in range(5)}
    assert len(orders) == 20
    places = np.array([np.argsort(epoch_order(ids, 0, e)) for e in range(400)])  # [epoch, row]
    assert np.abs(places.mean(axis=0) - 19.5).max() < 4.5 * 11.55 / 20  # uniform on 0..39: sd 11.5


@pytest.mark.parametrize("how", AUGMENTATIONS)
def test_removing_rows_leaves_the_inputs_of_the_rest_bit_identical(how: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=4, augment=how, lr=0.01)
    removed = np.array([1, 2, 8, 13, 21, 22])
    kept = np.setdiff1d(np.arange(24), removed)
    seen = []
    for keep in (np.arange(24), kept):
        model = Recorder(192, 2)
        run(model, image_examples(tmp_path, keep), recipe, seed=3)
        seen.append(torch.cat(model.seen))
    names = ids_of(24)
    order = [epoch_order(names, 3, e) + 24 * e for e in range(3)]
    stays = np.isin(np.concatenate(order) % 24, kept)
    assert len(seen[1]) == 3 * len(kept)
    assert torch.equal(seen[0][torch.from_numpy(stays)], seen[1])


def test_augmentations_differ_between_epochs_and_rows(tmp_path: Path) -> None:
    model = Recorder(192, 2)
    data = image_examples(tmp_path, np.arange(24))
    run(model, data, Recipe(epochs=6, batch_size=24, augment="flip-shift", lr=0.01), seed=0)
    names = ids_of(24)
    in_order = [x[np.argsort(epoch_order(names, 0, e))] for e, x in enumerate(model.seen)]
    distinct = [len({x[k].numpy().tobytes() for x in in_order}) for k in range(24)]
    assert np.mean(distinct) > 4  # 18 views a row; six draws of them


# -- augmentation --------------------------------------------------------------------------------------------------


def by_hand(pixels: NDArray[np.uint8], draw: int, flip_too: bool) -> NDArray[np.uint8]:
    """One image [C, H, W]: padded by an eighth with zeros, cut at the draw's place, mirrored by its lowest bit."""
    _, h, w = pixels.shape
    ry, rx = max(1, h // 8), max(1, w // 8)
    dy, dx = (draw >> 8) % (2 * ry + 1), (draw >> 24) % (2 * rx + 1)
    padded = np.pad(pixels, ((0, 0), (ry, ry), (rx, rx)))
    cut = padded[:, dy : dy + h, dx : dx + w]
    return cut[:, :, ::-1] if flip_too and draw & 1 else cut


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 24), (3, 5, 5)])
@pytest.mark.parametrize("how", ["shift", "flip-shift"])
def test_augmentation_is_a_shift_with_zero_edges_and_a_flip(shape: tuple[int, int, int], how: str) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (40, *shape), dtype=np.uint8)
    draws = row_hashes(ids_of(40), 0, 0)
    found = augment(torch.from_numpy(pixels), draws, how)
    assert found.dtype == torch.uint8
    for k in range(40):
        assert np.array_equal(found[k].numpy(), by_hand(pixels[k], int(draws[k]), how == "flip-shift"))
    assert not np.array_equal(found.numpy(), pixels)


def test_no_augmentation_and_features_are_left_alone() -> None:
    pixels, features = torch.ones(3, 1, 4, 4, dtype=torch.uint8), torch.randn(3, 5)
    draws = row_hashes(ids_of(3), 0, 0)
    assert augment(pixels, draws, "none") is pixels
    assert augment(features, draws, "flip-shift") is features


def test_shifts_and_flips_are_uniform_and_independent() -> None:
    """Read back from a single lit pixel, over 20,000 draws: chi-square over the 3 x 3 x 2 cells."""
    n = 20_000
    pixels = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    pixels[:, 0, 4, 2] = 255
    out = augment(pixels, row_hashes([f"{k}" for k in range(n)], 1, 2), "flip-shift").flatten(1).argmax(dim=1)
    cells = np.bincount(out.numpy(), minlength=64).reshape(8, 8)
    counts = cells[3:6][:, [1, 2, 3, 4, 5, 6]]  # columns 1..3 as they are, 4..6 mirrored
    assert counts.sum() == n
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


# -- one training run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [PLAIN, Recipe(epochs=1, lr=0.1, batch_size=64, warmup=0.0, optimizer="adamw")])
def test_a_batchs_loss_is_the_weighted_mean(recipe: Recipe, tmp_path: Path) -> None:
    """One step on all rows equals a step of torch's optimizer on sum w l / sum w."""
    weights = np.random.default_rng(3).uniform(0.1, 4.0, 24)
    data = feature_examples(tmp_path, weights=weights)
    found, expected = Recorder(3, 2), Recorder(3, 2)
    assert run(found, data, recipe) == 1
    losses = F.cross_entropy(expected(torch.from_numpy(data.values)), torch.from_numpy(data.labels), reduction="none")
    w = torch.from_numpy(weights).float()
    ((w * losses).sum() / w.sum()).backward()
    if recipe.optimizer == "sgd":
        torch.optim.SGD(expected.parameters(), 0.1).step()
    else:
        torch.optim.AdamW(expected.parameters(), 0.1, weight_decay=5e-4).step()
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found.head.weight, Recorder(3, 2).head.weight)


RECIPE = Recipe(epochs=4, lr=0.2, batch_size=5)


def test_weight_zero_equals_removal_bit_for_bit(tmp_path: Path) -> None:
    removed = np.array([0, 4, 5, 17])
    weights = np.ones(24)
    weights[removed] = 0.0
    models = [Recorder(3, 2), Recorder(3, 2), Recorder(3, 2)]
    run(models[0], feature_examples(tmp_path, weights=weights), RECIPE)
    run(models[1], feature_examples(tmp_path, keep=np.setdiff1d(np.arange(24), removed)), RECIPE)
    run(models[2], feature_examples(tmp_path), RECIPE)
    assert torch.equal(models[0].head.weight, models[1].head.weight)
    assert torch.equal(models[0].head.bias, models[1].head.bias)
    assert not torch.equal(models[0].head.weight, models[2].head.weight)


@pytest.mark.parametrize(("factor", "tolerance"), [(4.0, 0.0), (3.0, 1e-5)])
def test_a_common_factor_of_the_weights_changes_nothing(factor: float, tolerance: float, tmp_path: Path) -> None:
    weights = np.random.default_rng(3).uniform(0.1, 4.0, 24).astype(np.float32).astype(np.float64)
    a, b, c = Recorder(3, 2), Recorder(3, 2), Recorder(3, 2)
    run(a, feature_examples(tmp_path, weights=weights), RECIPE)
    run(b, feature_examples(tmp_path, weights=factor * weights), RECIPE)
    run(c, feature_examples(tmp_path), RECIPE)
    assert (a.head.weight - b.head.weight).abs().max() <= tolerance
    assert (a.head.weight - c.head.weight).abs().max() > 1e-3


@pytest.mark.parametrize(("n", "batch"), [(24, 5), (21, 5), (20, 5), (3, 2), (2, 8), (1, 4)])
@pytest.mark.parametrize("norm", [False, True])
def test_steps_are_counted_and_batch_norm_alone_passes_over_a_lone_last_row(
    n: int, batch: int, norm: bool, tmp_path: Path
) -> None:
    model, calls = Recorder(3, 2), []
    if norm and n > 1:
        model.head = nn.Sequential(nn.BatchNorm1d(3), model.head)
    recipe = Recipe(epochs=3, batch_size=batch, lr=0.1)
    data = feature_examples(tmp_path, n=n)
    steps = training.train(model, data, recipe, 0, CPU, lambda *a: calls.append(a))
    assert steps == len(model.seen)
    assert [c[:2] for c in calls] == [(e, steps // 3 * (e + 1)) for e in range(3)]
    sizes = [len(x) for x in model.seen[: steps // 3]]
    assert sum(sizes) == (n - 1 if norm and n % batch == 1 < n else n)
    assert all(s > 1 for s in sizes) or not norm or n == 1
    assert calls[-1][2] == recipe.rate(steps - 1, steps)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_rise_then_follow_the_schedule(schedule: str, warmup: float) -> None:
    recipe = Recipe(lr=0.3, schedule=schedule, warmup=warmup)
    rates = np.array([recipe.rate(k, 200) for k in range(200)])
    warm = int(warmup * 200)
    assert rates.max() == pytest.approx(0.3)
    assert (rates > 0).all()
    assert rates[:warm].tolist() == pytest.approx([0.3 * (k + 1) / (warm + 1) for k in range(warm)])
    done = (np.arange(warm, 200) - warm) / (200 - warm)
    expected = {
        "constant": np.ones_like(done),
        "cosine": (1 + np.cos(np.pi * done)) / 2,
        "linear": 1 - done,
        "step": np.where(done < 0.5, 1.0, np.where(done < 0.75, 0.1, 0.01)),
    }[schedule]
    assert rates[warm:].tolist() == pytest.approx((0.3 * expected).tolist())


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not finite"):
        run(Recorder(3, 2), feature_examples(tmp_path), Recipe(epochs=50, lr=1e30, batch_size=8))


def test_mixed_precision_trains_float32_weights_nearly_as_float32_does(tmp_path: Path) -> None:
    data, kept = feature_examples(tmp_path), dict[str, dict[str, Tensor]]()
    for amp in ("fp32", "bf16"):
        model = Recorder(3, 2)
        run(model, data, Recipe(epochs=3, lr=0.1, batch_size=8, amp=amp))
        kept[amp] = model.state_dict()
    start = Recorder(3, 2).state_dict()
    for name, exact in kept["fp32"].items():
        rounded = kept["bf16"][name]
        assert rounded.dtype == torch.float32
        assert 0 < float((rounded - exact).norm()) < 0.02 * float((exact - start[name]).norm())
    assert "amp" not in Recipe().describe()
    assert Recipe(amp="bf16").describe()["amp"] == "bf16"


@pytest.mark.parametrize(
    "options",
    [
        {"amp": "fp16"},
        {"amp": "bf16", "optimizer": "lbfgs"},
        {"optimizer": "lion"},
        {"schedule": "sawtooth"},
        {"augment": "mixup"},
        {"epochs": 0},
        {"batch_size": 1},
    ],
)
def test_impossible_recipes_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Recipe(**options)


# -- arms and their controls ---------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Rows:
    """60 train rows in 3 classes of 10, 20 and 30, every fourth label wrong, and 40 test and 20 val rows."""
    return open_manifest(write_base(tmp_path / "base.parquet")).rows("train")


def base_labels() -> Ints:
    return np.random.default_rng(7).permutation(np.repeat([0, 1, 2], [10, 20, 30]))


def write_base(path: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(8)
    labels = np.concatenate([base_labels(), rng.integers(0, 3, 60)])
    centres = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    features = (centres[labels] + 1.5 * rng.normal(size=(120, 3))).astype(np.float32)
    clean = labels.copy()
    clean[:60:4] = (clean[:60:4] + 1) % 3
    splits = ["train"] * 60 + ["test"] * 40 + ["val"] * 20
    values = {"payloads": features, "labels": labels, "splits": splits, "clean_label": clean, **changes}
    return write_manifest(path, ids=ids_of(120), **values)


def write_edited(
    base: Rows, path: Path, trim: Any = (), relabel: Any = (), weights: Any = None, proposals: Any = None
) -> Path:
    """A curated manifest: rows taken out, labels moved on by one, weights set, and a proposal for every row."""
    table = pq.read_table(base.manifest.files[0])
    labels = table.column("label").to_numpy().copy()
    proposed = (labels + 1) % 3 if proposals is None else proposals
    if len(relabel) or proposals is not None:
        table = table.append_column(PROPOSAL, pa.array(proposed, pa.int64()))
    labels[list(relabel)] = proposed[list(relabel)]
    table = table.set_column(table.column_names.index("label"), "label", pa.array(labels))
    if weights is not None:
        table = table.append_column("weight", pa.array(weights))
    pq.write_table(table.take(np.setdiff1d(np.arange(len(labels)), list(trim))), path)
    return path


def chosen_of(base: Rows, sizes: dict[int, int]) -> list[int]:
    """The first rows of each class."""
    return [k for c, n in sizes.items() for k in np.flatnonzero(base.labels == c)[:n].tolist()]


def made(base: Rows, path: Path, seed: int = 0) -> tuple[Arm, dict[str, Arm]]:
    curated = open_manifest(path)
    arm = curated_arm("curated", base, curated)
    return arm, {c.name: c for c in control_arms(arm, base, proposals_of(curated, base), seed)}


def class_mix(base: Rows, chosen: NDArray[np.bool_]) -> list[int]:
    return np.bincount(base.labels[chosen], minlength=3).tolist()


def test_curated_arm_is_the_difference_of_the_manifests(base: Rows, tmp_path: Path) -> None:
    weights = np.ones(120)
    weights[5] = 2.5
    path = write_edited(base, tmp_path / "c.parquet", trim=[0, 9], relabel=[3, 4, 8], weights=weights)
    arm, _ = made(base, path)
    expected = base.labels.copy()
    expected[[3, 4, 8]] = (expected[[3, 4, 8]] + 1) % 3
    assert np.flatnonzero(arm.weights == 0).tolist() == [0, 9]
    assert arm.weights[5] == 2.5
    assert arm.labels.tolist() == expected.tolist()
    wrong = np.arange(60) % 4 == 0
    assert arm.about == {
        "trimmed": 2,
        "relabelled": 3,
        "reweighted": 1,
        "wrong_share_of_all": 0.25,
        "wrong_share_of_trimmed": wrong[[0, 9]].mean(),
        "wrong_share_of_relabelled": pytest.approx(wrong[[3, 4, 8]].mean()),
        "right_after_relabel": pytest.approx(2 / 3),  # rows 4 and 8: their clean label is the next one
    }


def test_weight_zero_in_the_curated_manifest_is_a_trim(base: Rows, tmp_path: Path) -> None:
    weights = np.ones(120)
    weights[[2, 30]] = 0.0
    arm, controls = made(base, write_edited(base, tmp_path / "c.parquet", weights=weights))
    assert np.flatnonzero(arm.weights == 0).tolist() == [2, 30]
    assert list(controls) == ["curated: random trim"]


@pytest.mark.parametrize("sizes", [{0: 3, 1: 5, 2: 0}, {2: 6}, {0: 9, 1: 19, 2: 29}])
def test_trim_control_has_the_same_size_and_class_mix(sizes: dict[int, int], base: Rows, tmp_path: Path) -> None:
    trimmed = chosen_of(base, sizes)
    arm, controls = made(base, write_edited(base, tmp_path / "c.parquet", trim=trimmed))
    (control,) = controls.values()
    assert control.name == "curated: random trim"
    assert control.controls == "curated"
    assert (
        class_mix(base, control.weights == 0)
        == class_mix(base, arm.weights == 0)
        == [sizes.get(c, 0) for c in range(3)]
    )
    assert control.labels.tolist() == base.labels.tolist()
    assert control.about["trimmed"] == len(trimmed)


def test_relabel_has_two_controls_of_its_size_and_class_mix(base: Rows, tmp_path: Path) -> None:
    relabelled = chosen_of(base, {0: 2, 1: 4, 2: 6})
    arm, controls = made(base, write_edited(base, tmp_path / "c.parquet", relabel=relabelled))
    assert list(controls) == ["curated: random trim", "curated: random relabel"]
    moved = controls["curated: random relabel"]
    changed = moved.labels != base.labels
    assert class_mix(base, changed) == class_mix(base, arm.labels != base.labels) == [2, 4, 6]
    assert moved.labels[changed].tolist() == ((base.labels[changed] + 1) % 3).tolist()  # each row's own proposal
    assert moved.weights.tolist() == base.weights.tolist()
    assert class_mix(base, controls["curated: random trim"].weights == 0) == [2, 4, 6]
    assert np.flatnonzero(changed).tolist() != sorted(relabelled)


def test_relabel_control_takes_only_rows_with_another_label_to_give(base: Rows, tmp_path: Path) -> None:
    proposals = np.full(120, -1)
    able = chosen_of(base, {1: 8})
    proposals[able] = 2
    path = write_edited(base, tmp_path / "c.parquet", relabel=able[:3], proposals=proposals)
    moved = made(base, path)[1]["curated: random relabel"]
    changed = np.flatnonzero(moved.labels != base.labels)
    assert len(changed) == 3
    assert set(changed.tolist()) <= set(able)
    assert (moved.labels[changed] == 2).all()


def test_reweight_control_shuffles_the_same_weights(base: Rows, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 120)
    arm, controls = made(base, write_edited(base, tmp_path / "c.parquet", weights=weights))
    (control,) = controls.values()
    assert control.name == "curated: shuffled weights"
    assert sorted(control.weights.tolist()) == sorted(arm.weights.tolist())
    assert control.weights.tolist() != arm.weights.tolist()


def test_controls_are_drawn_from_the_seed_and_ids_alone(base: Rows, tmp_path: Path) -> None:
    path = write_edited(base, tmp_path / "c.parquet", trim=chosen_of(base, {1: 5, 2: 9}))

    def taken(rows: Rows, seed: int) -> set[str]:
        control = made(rows, path, seed)[1]["curated: random trim"]
        return {i for i, w in zip(rows.ids, control.weights, strict=True) if w == 0}

    assert taken(base, 0) == taken(base, 0)
    assert len({frozenset(taken(base, s)) for s in range(6)}) == 6
    table = pq.read_table(base.manifest.files[0])
    shuffled = tmp_path / "shuffled.parquet"
    pq.write_table(table.take(np.random.default_rng(0).permutation(120)), shuffled)
    assert taken(open_manifest(shuffled).rows("train"), 3) == taken(base, 3)


def test_controls_take_every_row_of_a_class_equally_often(base: Rows, tmp_path: Path) -> None:
    path = write_edited(base, tmp_path / "c.parquet", trim=chosen_of(base, {1: 5}))
    often = sum(made(base, path, s)[1]["curated: random trim"].weights == 0 for s in range(300))
    of_class = np.asarray(often)[base.labels == 1]
    assert of_class.sum() == 1500
    assert np.abs(of_class / 300 - 0.25).max() < 4 * (0.25 * 0.75 / 300) ** 0.5


@pytest.mark.parametrize("how", ["another id", "another payload"])
def test_curated_arm_refuses_foreign_rows(how: str, base: Rows, tmp_path: Path) -> None:
    table = pq.read_table(base.manifest.files[0])
    ids, features = table.column("id").to_pylist(), table.column("features").to_pylist()
    if how == "another id":
        ids[7] = "stranger"
    else:
        features[7] = [0.0, 0.0, 0.0]
    table = table.set_column(0, "id", pa.array(ids))
    table = table.set_column(1, "features", pa.array(features, pa.list_(pa.float32())))
    pq.write_table(table, tmp_path / "foreign.parquet")
    with pytest.raises(UsageError, match=r"id=(stranger|id-007) is not the same row"):
        curated_arm("curated", base, open_manifest(tmp_path / "foreign.parquet"))


def test_base_arm_keeps_everything(base: Rows) -> None:
    arm = base_arm("no edit", base)
    arm.labels[0] = 9
    arm.weights[0] = 0.0
    assert base.labels[0] != 9
    assert base.weights[0] == 1.0


# -- retrain -------------------------------------------------------------------------------------------------------

SMALL = Recipe(epochs=2, batch_size=16, lr=0.1)


class Calls:
    """Stands in for ``training.train``: counts, and keeps what every run began with."""

    def __init__(self) -> None:
        self.count = 0
        self.ids: list[set[str]] = []
        self.starts: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module, data: Examples, *rest: Any) -> int:
        self.count += 1
        self.ids.append({i for i, w in zip(data.ids, data.weights, strict=True) if w > 0})
        self.starts.append({n: t.clone() for n, t in model.state_dict().items()})
        return TRAIN(model, data, *rest)


TRAIN = training.train


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()
    monkeypatch.setattr(training, "train", counted)
    return counted


@pytest.fixture
def trimmed(base: Rows, tmp_path: Path) -> Path:
    return write_edited(base, tmp_path / "trimmed.parquet", trim=chosen_of(base, {0: 2, 1: 4, 2: 6}))


def request(folder: Path, manifest: Path, **changes: Any) -> RetrainRequest:
    inputs = Inputs(str(manifest), model=changes.pop("model", "mlp:4"))
    return RetrainRequest(
        inputs, str(folder / changes.pop("output", "run")), device="cpu", raw_features=True, **changes
    )


def against(folder: Path, curated: Path, **changes: Any) -> RetrainRequest:
    return request(folder, curated, against=str(folder / "base.parquet"), **changes)


@pytest.mark.parametrize("model", ["mlp:4", "linear"])
def test_same_seed_twice_gives_the_same_weights(model: str, base: Rows, tmp_path: Path) -> None:
    files = []
    for output, seed in (("a", 5), ("b", 5), ("c", 6)):
        retrain(request(tmp_path, tmp_path / "base.parquet", output=output, seed=seed, model=model), SMALL)
        files.append((tmp_path / output / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_order_of_the_manifest_does_not_matter(base: Rows, tmp_path: Path) -> None:
    table = pq.read_table(tmp_path / "base.parquet")
    pq.write_table(table.take(np.random.default_rng(0).permutation(120)), tmp_path / "moved.parquet")
    for name in ("base", "moved"):
        retrain(request(tmp_path, tmp_path / f"{name}.parquet", output=name), SMALL)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "moved"))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_arms_of_a_seed_begin_alike(calls: Calls, base: Rows, trimmed: Path, tmp_path: Path) -> None:
    retrain(against(tmp_path, trimmed, seeds=2), SMALL)
    assert calls.count == 6
    starts = calls.starts  # curated, no edit, random trim; two seeds each
    for first, second in ((0, 2), (2, 4), (1, 3), (3, 5)):
        assert all(torch.equal(starts[first][n], starts[second][n]) for n in starts[0])
    assert not torch.equal(starts[0]["head.weight"], starts[1]["head.weight"])
    assert [len(i) for i in calls.ids] == [48, 48, 60, 60, 48, 48]
    assert calls.ids[0] == calls.ids[1]
    assert calls.ids[0] != calls.ids[4]


def test_metrics_and_comparison_recomputed_by_hand(base: Rows, trimmed: Path, tmp_path: Path) -> None:
    metrics = retrain(against(tmp_path, trimmed, seeds=3, seed=4), SMALL)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert list(metrics["arms"]) == ["curated", "no edit", "curated: random trim"]
    assert [list(a["seeds"]) for a in metrics["arms"].values()] == [["4", "5", "6"]] * 3
    values = {
        name: {m: np.array([r[m] for r in arm["seeds"].values()]) for m in ("accuracy", "balanced_accuracy", "loss")}
        for name, arm in metrics["arms"].items()
    }
    assert list(metrics["comparison"]) == ["curated"]
    for other in ("no edit", "curated: random trim"):
        for metric, found in metrics["comparison"]["curated"][other].items():
            difference = values["curated"][metric] - values[other][metric]
            half = stats.t.ppf(0.975, 2) * stats.sem(difference)
            mean = difference.mean()
            assert found["mean"] == pytest.approx(mean, abs=1e-12)
            assert found["half_width"] == pytest.approx(half, abs=1e-12)
            good = (mean > 0) == (metric != "loss")
            assert found["verdict"] == ("not resolved" if abs(mean) <= half else "better" if good else "worse")


def test_metrics_of_an_arm_are_its_models_on_the_rows(base: Rows, trimmed: Path, tmp_path: Path) -> None:
    metrics = retrain(against(tmp_path, trimmed), SMALL)
    found = metrics["arms"]["curated"]["seeds"]["0"]
    model = build_model(ModelSpec("mlp:4", 3, "features", (3,)))
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    table = pq.read_table(tmp_path / "base.parquet")
    x, y = np.array(table.column("features").to_pylist(), np.float32), table.column("label").to_numpy().copy()
    with torch.no_grad():
        z = model(torch.from_numpy(x)).double()
    hit, loss = (z.argmax(dim=1).numpy() == y), F.cross_entropy(z, torch.from_numpy(y), reduction="none").numpy()
    test, val = slice(60, 100), slice(100, 120)
    recalls = [hit[test][y[test] == c].mean() for c in range(3)]
    assert found["accuracy"] == pytest.approx(hit[test].mean(), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert found["loss"] == pytest.approx(loss[test].mean(), rel=1e-6)
    assert found["target_accuracy"] == pytest.approx(hit[val].mean(), abs=1e-12)
    kept = np.setdiff1d(np.arange(60), chosen_of(base, {0: 2, 1: 4, 2: 6}))
    assert found["train_accuracy"] == pytest.approx(hit[kept].mean(), abs=1e-12)
    assert metrics["arms"]["curated"]["train_rows"] == 48


def test_a_finished_arm_is_not_trained_again(calls: Calls, base: Rows, trimmed: Path, tmp_path: Path) -> None:
    first = retrain(against(tmp_path, trimmed, seeds=2), SMALL)
    assert calls.count == 6
    assert retrain(against(tmp_path, trimmed, seeds=2), SMALL) == first
    assert calls.count == 6
    retrain(against(tmp_path, trimmed, seeds=3), SMALL)  # one more seed of three arms
    assert calls.count == 9
    retrain(request(tmp_path, tmp_path / "base.parquet", seeds=3), SMALL)  # all rows: what "no edit" was
    assert calls.count == 9
    other = Recipe(epochs=2, batch_size=16, lr=0.2)
    with pytest.raises(UsageError, match="another recipe"):
        retrain(against(tmp_path, trimmed, seeds=2), other)
    assert calls.count == 9
    retrain(against(tmp_path, trimmed, seeds=2, output="other"), other)
    assert calls.count == 15


def test_an_arm_that_was_cut_off_is_trained_again(calls: Calls, base: Rows, tmp_path: Path) -> None:
    def train_once() -> dict[str, Any]:
        return retrain(request(tmp_path, tmp_path / "base.parquet"), SMALL)

    first = train_once()
    (folder,) = (tmp_path / "run" / "arms").iterdir()
    for name in ("metrics.json", "model.safetensors"):
        (folder / name).unlink()
        assert train_once() == first
    assert calls.count == 3


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_checkpoints_are_kept_once(keep: int, calls: Calls, base: Rows, tmp_path: Path) -> None:
    """As many as asked for, or one an epoch; a second run finds them."""
    for _ in range(2):
        retrain(request(tmp_path, tmp_path / "base.parquet", keep_checkpoints=keep), SMALL)
    files = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert files == ["step-000004.safetensors", "step-000008.safetensors"][-keep:]
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [c["file"] for c in about["checkpoints"]] == [f"checkpoints/{f}" for f in files]
    last, final = (
        load_file(tmp_path / "run" / "checkpoints" / files[-1]),
        load_file(tmp_path / "run" / "model.safetensors"),
    )
    assert all(torch.equal(last[n], final[n]) for n in final)
    assert calls.count == 1


def test_changed_target_rows_change_what_is_said_of_them(base: Rows, tmp_path: Path) -> None:
    """What is kept of a finished arm holds figures of the target rows too: they must not go stale."""
    labels = np.asarray(pq.read_table(tmp_path / "base.parquet").column("label"))
    moved = labels.copy()
    moved[100:] = (moved[100:] + 1) % 3
    path = tmp_path / "base.parquet"
    before = retrain(request(tmp_path, path), SMALL)
    write_base(path, labels=moved, payloads=features_of(base))
    again = retrain(request(tmp_path, path), SMALL)
    fresh = retrain(request(tmp_path, path, output="fresh"), SMALL)
    figures = [m["arms"]["all rows"]["seeds"]["0"] for m in (before, again, fresh)]
    assert figures[0]["target_loss"] != figures[2]["target_loss"]
    assert figures[1]["target_loss"] == figures[2]["target_loss"]
    assert figures[1]["loss"] == figures[0]["loss"]


def features_of(base: Rows) -> NDArray[np.float32]:
    return np.array(pq.read_table(base.manifest.files[0]).column("features").to_pylist(), dtype=np.float32)


def test_calibration_rows_are_left_out_of_every_arm(calls: Calls, base: Rows, trimmed: Path, tmp_path: Path) -> None:
    metrics = retrain(against(tmp_path, trimmed, seeds=2, calibration=0.3), SMALL)
    out = json.loads((tmp_path / "run" / "run.json").read_text())["calibration_ids"]
    assert 8 <= len(out) <= 28  # 18 of 60 expected, within 3 sd
    assert set(out) < set(base.ids)
    assert calls.count == 6
    assert all(ids.isdisjoint(out) for ids in calls.ids)
    assert calls.ids[2] == set(base.ids) - set(out)
    counts = [len(i) for i in calls.ids[::2]]
    assert [a["train_rows"] for a in metrics["arms"].values()] == counts
    retrain(against(tmp_path, trimmed, calibration=0.3, output="again"), SMALL)
    assert json.loads((tmp_path / "again" / "run.json").read_text())["calibration_ids"] == out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_controls_match_the_arm_among_the_rows_that_are_trained_on(
    seed: int, calls: Calls, base: Rows, trimmed: Path, tmp_path: Path
) -> None:
    """With calibration rows left out, an arm and its control still train on as many rows of every class."""
    retrain(against(tmp_path, trimmed, calibration=0.3, seed=seed), SMALL)
    label = dict(zip(base.ids, base.labels.tolist(), strict=True))
    curated, _, control = (np.bincount([label[i] for i in ids], minlength=3).tolist() for ids in calls.ids)
    assert control == curated


def test_further_arms_have_names_and_controls_of_their_own(base: Rows, trimmed: Path, tmp_path: Path) -> None:
    other = write_edited(base, tmp_path / "other.parquet", relabel=[1, 2, 3])
    metrics = retrain(against(tmp_path, trimmed, arms=(("by loss", str(other)),)), SMALL)
    assert {name: arm["controls"] for name, arm in metrics["arms"].items()} == {
        "curated": None,
        "no edit": None,
        "curated: random trim": "curated",
        "by loss": None,
        "by loss: random trim": "by loss",
        "by loss: random relabel": "by loss",
    }
    assert {name: list(others) for name, others in metrics["comparison"].items()} == {
        "curated": ["no edit", "curated: random trim"],
        "by loss": ["no edit", "by loss: random trim", "by loss: random relabel"],
    }


@pytest.mark.parametrize("name", ["curated", "no edit", "curated: random trim"])
def test_names_that_collide_are_refused(name: str, base: Rows, trimmed: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same name"):
        retrain(against(tmp_path, trimmed, arms=((name, str(trimmed)),)), SMALL)


def comparison(*verdicts: str) -> dict[str, Any]:
    return {"comparison": {"curated": {f"arm {k}": {"accuracy": {"verdict": v}} for k, v in enumerate(verdicts)}}}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("better", "better"), True),
        (("better", "not resolved"), False),
        (("worse", "better"), False),
        (("one seed: not resolved",), False),
    ],
)
def test_improved_means_better_than_everything(verdicts: tuple[str, ...], expected: bool) -> None:
    assert improved(comparison(*verdicts)) is expected


def test_improved_is_about_the_first_arm_and_needs_a_comparison() -> None:
    metrics = comparison("better")
    metrics["comparison"]["other"] = {"no edit": {"accuracy": {"verdict": "worse"}}}
    assert improved(metrics)
    with pytest.raises(UsageError, match="nothing to compare"):
        improved({"comparison": {}})
