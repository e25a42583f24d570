"""Checkpoints as people have them: every form gives the same weights; a misfit names tensors and shapes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from influence_cli.errors import ModelError
from influence_cli.model.build import build_model, load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec

SPEC = ModelSpec("mlp:7", 4, "features", (5,))


def trained(spec: ModelSpec = SPEC) -> nn.Module:
    torch.manual_seed(1)
    return build_model(spec)


def sharded(folder: Path, state: dict[str, Tensor]) -> Path:
    """Two shards and their index, as large checkpoints are published."""
    folder.mkdir()
    parts = {"model-1.safetensors": dict(list(state.items())[:2]), "model-2.safetensors": dict(list(state.items())[2:])}
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {"metadata": {}, "weight_map": {k: name for name, part in parts.items() for k in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Any] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state, "args": {"lr": 0.1}},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "ema alone": lambda state: {"ema": state, "step": 3},
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled DataParallel": lambda state: prefixed(state, "module._orig_mod."),
    "Lightning": lambda state: {
        "state_dict": {**prefixed(state, "model."), "criterion.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.0",
    },
}


@pytest.mark.parametrize("form", list(FORMS))
def test_torch_forms_give_the_same_weights(tmp_path: Path, form: str) -> None:
    model = trained()
    torch.save(FORMS[form](model.state_dict()), tmp_path / "weights.pth")
    loaded = load_model(SPEC, find_checkpoint(str(tmp_path / "weights.pth"))[0])
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert not loaded.training


def test_sharded_safetensors_have_the_digest_of_the_single_file(tmp_path: Path) -> None:
    model = trained()
    save_file(model.state_dict(), tmp_path / "one.safetensors", metadata={"format": "pt"})
    one, _ = find_checkpoint(str(tmp_path / "one.safetensors"))
    folder = sharded(tmp_path / "many", model.state_dict())
    many, _ = find_checkpoint(str(folder))
    index, _ = find_checkpoint(str(folder / "model.safetensors.index.json"))
    assert one.digest == many.digest == index.digest
    loaded = load_model(SPEC, many)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_another_value_is_another_digest(tmp_path: Path) -> None:
    state = trained().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    save_file({**state, "head.bias": state["head.bias"] + 1e-6}, tmp_path / "b.safetensors")
    digests = {find_checkpoint(str(tmp_path / f"{n}.safetensors"))[0].digest for n in "ab"}
    assert len(digests) == 2


def test_torchvision_names_load_into_timm_and_into_torchvision(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    reference = resnet18(weights=None, num_classes=3).eval()
    torch.save(reference.state_dict(), tmp_path / "tv.pth")
    checkpoint, _ = find_checkpoint(str(tmp_path / "tv.pth"))
    x = torch.randn(2, 3, 32, 32)
    for name in ("resnet18", "torchvision:resnet18"):
        loaded = load_model(ModelSpec(name, 3, "image", (3, 32, 32), (0.5,) * 3, (0.5,) * 3), checkpoint)
        assert torch.allclose(loaded(x), reference(x), atol=1e-6)


def test_missing_batch_counters_are_no_error(tmp_path: Path) -> None:
    spec = ModelSpec("resnet18", 3, "image", (3, 32, 32), (0.5,) * 3, (0.5,) * 3)
    state = trained(spec).state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pth")
    load_model(spec, find_checkpoint(str(tmp_path / "old.pth"))[0])


def test_wrong_head_size_is_explained(tmp_path: Path) -> None:
    wide = trained(ModelSpec("mlp:7", 9, "features", (5,)))
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(ModelError, match=r"9 outputs.*4 classes") as caught:
        load_model(SPEC, find_checkpoint(str(tmp_path / "wide.safetensors"))[0])
    assert "--num-classes 9" in caught.value.fix


def test_another_architecture_names_tensors_and_shapes(tmp_path: Path) -> None:
    other = trained(ModelSpec("mlp:6,6", 4, "features", (5,)))
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ModelError) as caught:
        load_model(SPEC, find_checkpoint(str(tmp_path / "other.safetensors"))[0])
    assert "layers.1.weight found but not expected" in str(caught.value)
    assert "layers.0.weight: expected (7, 5), found (6, 5)" in str(caught.value)


class Unsafe:
    def __reduce__(self) -> Any:
        return (print, ("code ran",))


def test_pickled_code_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": trained().state_dict(), "callback": Unsafe()}, tmp_path / "unsafe.pth")
    with pytest.raises(ModelError, match="cannot be read as data"):
        load_model(SPEC, find_checkpoint(str(tmp_path / "unsafe.pth"))[0])
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("absent.pth", None, "no such checkpoint"),
        ("weights.onnx", b"x", "unknown kind"),
        ("broken.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!", "damaged"),
        ("model.safetensors.index.json", b"{}", "index cannot be read"),
        ("m.safetensors.index.json", b'{"weight_map": {"a": "gone.safetensors"}}', "shard is missing: gone"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=says) as caught:
        find_checkpoint(str(tmp_path / name))
    assert name in caught.value.where
    assert caught.value.fix


def test_a_missing_checkpoint_of_a_run_folder_is_to_be_copied_and_another_to_be_named(
    tmp_path: Path,
) -> None:
    for kept, fix in ((False, "pass --checkpoint PATH"), (True, "copy the run folder again")):
        if kept:
            (tmp_path / "run.json").write_text("{}")
        with pytest.raises(ModelError, match="no such checkpoint") as caught:
            find_checkpoint(str(tmp_path / "checkpoints" / "step-000004.safetensors"))
        assert fix in str(caught.value.fix)


def test_truncated_safetensors_is_damaged(tmp_path: Path) -> None:
    save_file(trained().state_dict(), tmp_path / "w.safetensors")
    raw = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(raw[:-10])
    with pytest.raises(ModelError, match="truncated"):
        find_checkpoint(str(tmp_path / "w.safetensors"))


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        find_checkpoint(str(tmp_path))


def test_a_checkpoint_without_state_dict_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "empty.pth")
    with pytest.raises(ModelError, match="it holds epoch, lr"):
        load_model(SPEC, find_checkpoint(str(tmp_path / "empty.pth"))[0])


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "model.safetensors", "run.json"])
def test_a_pipe_is_no_checkpoint_and_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    locator = tmp_path if name in ("model.safetensors", "run.json") else tmp_path / name
    with pytest.raises(ModelError, match="no regular file"):
        find_checkpoint(str(locator))
