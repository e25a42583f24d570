"""A folder as the Hugging Face hub keeps it: timm's ``config.json`` says the model, its input and its labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError, ModelError, UsageError
from influence_cli.model.build import build_model
from influence_cli.model.checkpoints import find_checkpoint, find_model
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec, Inputs
from influence_cli.stages.retrain.opening import model_to_train
from influence_cli.stages.retrain.request import RetrainRequest
from tests.cases import digits_table, job_of, same_scores, write
from tests.opened import score

SPEC = ModelSpec("test_resnet", 10, "image", (3, 16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", crop=0.9)


def config(**changes: Any) -> dict[str, Any]:
    """What timm writes beside weights."""
    about = {
        "tag": "mine", "custom_load": False, "input_size": [3, 16, 16], "fixed_input_size": False,
        "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "center", "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6], "num_classes": 1000, "pool_size": [1, 1], "first_conv": "conv1", "classifier": "fc",
    }  # fmt: skip
    cfg = {**about, **changes.pop("pretrained_cfg", {})}
    return {"architecture": "test_resnet", "num_classes": 10, "num_features": 32, "pretrained_cfg": cfg, **changes}


def hub(folder: Path, name: str = "model.safetensors", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    torch.manual_seed(0)
    state = build_model(SPEC).state_dict()
    save_file(state, folder / name) if name.endswith(".safetensors") else torch.save(state, folder / name)
    return folder


@pytest.fixture(scope="module")
def some_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(digits_table(24, 8, 8), tmp_path_factory.mktemp("digits") / "digits.parquet")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_folder_says_its_model_and_its_input(name: str, tmp_path: Path, some_digits: Path) -> None:
    folder = hub(tmp_path / "hub", name)
    for place in (folder, folder / name):
        assert ModelSpec.from_dict(find_model(str(place))[1] or {}) == SPEC
    job = job_of(some_digits, folder, None, spec=GradSpec(("loss",)))
    assert job.model == SPEC
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / name, tmp_path / "alone" / name)
    flags = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear", "crop": 0.9}
    by_flags = job_of(
        some_digits,
        tmp_path / "alone" / name,
        None,
        model="test_resnet",
        input_size=16,
        spec=GradSpec(("loss",)),
        **flags,
    )
    assert same_scores(score(job), score(by_flags))


@pytest.mark.parametrize(
    ("flag", "given"),
    [
        ("--model", {"model": "resnet18"}), ("--mean", {"mean": (0.5, 0.5, 0.5)}), ("--input-size", {"input_size": 32}),
        ("--num-classes", {"num_classes": 5}), ("--crop", {"crop": 0.5}), ("--std", {"std": (0.5, 0.5, 0.5)}),
    ],
)  # fmt: skip
def test_a_flag_that_says_otherwise_is_refused(flag: str, given: Any, tmp_path: Path, some_digits: Path) -> None:
    folder = hub(tmp_path / "hub")
    with pytest.raises(UsageError, match=f"{flag} .* contradicts the checkpoint") as raised:
        job_of(some_digits, folder, None, **given)
    assert raised.value.fix == f"leave {flag} out"
    if flag != "--model":  # another model may begin with a part of these weights
        request = RetrainRequest(Inputs(str(some_digits), **given), str(tmp_path / "RUN"), init=str(folder))
        with pytest.raises(UsageError, match=f"{flag} .* contradicts the checkpoint"):
            model_to_train(request, open_manifest(str(some_digits)))


def test_what_agrees_is_accepted_with_timms_tag_too(tmp_path: Path, some_digits: Path) -> None:
    job = job_of(some_digits, hub(tmp_path / "hub"), None, model="test_resnet.r160_in1k", num_classes=10, input_size=16)
    assert job.model == SPEC


def test_labels_are_the_names_of_the_outputs(tmp_path: Path, some_digits: Path) -> None:
    names = [f"class {k}" for k in (3, 1, 2, 0, 4, 5, 6, 7, 8, 9)]
    folder = hub(tmp_path / "hub", label_names=names)
    with pytest.raises(ManifestError, match="mean other classes") as raised:
        job_of(some_digits, folder, None)
    assert "--class-map checkpoint" in raised.value.fix
    job = job_of(some_digits, folder, None, class_map="checkpoint")
    assert job.model.classes == tuple(f"class {k}" for k in range(10))
    assert job.model.order == (3, 1, 2, 0, 4, 5, 6, 7, 8, 9)
    by_id = hub(tmp_path / "ids", label_names={str(k): f"class {k}" for k in range(10)})
    assert job_of(some_digits, by_id, None).model.classes == tuple(f"class {k}" for k in range(10))
    some = hub(tmp_path / "some", label_names=["a", "b"])
    assert job_of(some_digits, some, None).model.classes is None  # not every output has a name


def test_outputs_that_are_called_otherwise_have_a_way_out(tmp_path: Path, some_digits: Path) -> None:
    own = [f"class {k}" for k in range(10)]
    folder = hub(tmp_path / "hub", label_names=[f"n{k:02d}" for k in range(10)])
    with pytest.raises(ManifestError, match="mean other classes") as raised:
        job_of(some_digits, folder, None)
    assert "--class-map checkpoint" not in raised.value.fix  # there is nothing to match by
    assert (
        "--class-map FILE, a JSON list that calls the checkpoint's 10 outputs, in their order, as the manifest does"
        in raised.value.fix
    )
    other = [*own[3:], *own[:3]]
    job = job_of(some_digits, folder, None, class_map=other)
    assert job.model.classes == tuple(own)
    assert job.model.order == tuple(other.index(name) for name in own)
    shared = hub(tmp_path / "shared", label_names=[*own[:9], "n09"])
    assert job_of(some_digits, shared, None, class_map=own).model.order is None
    with pytest.raises(UsageError, match="contradicts the checkpoint"):
        job_of(some_digits, shared, None, class_map=other)


def test_other_programs_files_are_passed_by_and_broken_ones_are_not(tmp_path: Path, some_digits: Path) -> None:
    folder = hub(tmp_path / "hub")
    for text in ('{"architectures": ["ResNet"]}', "[1]", "no JSON", '{"architecture": "x"}', '{"architecture": 3}'):
        (folder / "config.json").write_text(text)
        assert find_model(str(folder))[1] is None
    for changes in ({"mean": "grey"}, {"input_size": None}, {"mean": [0.5]}):
        (folder / "config.json").write_text(json.dumps(config(pretrained_cfg=changes)))
        with pytest.raises(ModelError, match=r"config\.json") as raised:
            find_model(str(folder))
        assert raised.value.where == str(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config(model_args={"global_pool": "max"})))
    with pytest.raises(ModelError, match="global_pool"):
        find_model(str(folder))
    assert find_model(str(folder), own_code=True)[1] is None  # a model of one's own is none of it
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="LFS pointer"):
        find_model(str(folder))


def test_arguments_of_the_model_make_its_input(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = {"in_chans": 1, "img_size": 8, "num_classes": 3, "drop_rate": 0.1}
    about = {"mean": [0.5], "std": [0.5]}
    folder = hub(tmp_path / "hub", model_args=found, pretrained_cfg=about)
    carried = find_model(str(folder))[1] or {}
    assert (carried["shape"], carried["num_classes"], carried["mean"]) == ([1, 8, 8], 3, [0.5])


def test_a_run_folder_is_no_hub_folder(digits_run: Path) -> None:
    """What ``retrain`` wrote says its model itself."""
    (digits_run / "config.json").write_text(json.dumps(config()))
    try:
        assert find_model(str(digits_run)) == find_checkpoint(str(digits_run))
        assert (find_model(str(digits_run))[1] or {})["name"] != "test_resnet"
    finally:
        (digits_run / "config.json").unlink()
