"""Models whose weights come from a checkpoint are built without drawing others first.

python -m pytest tests/model/test_without_draws.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from influence_cli.model.build import build_model, load_model, start_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec
from influence_cli.model.without_draws import WithoutDraws

IMAGES = {"kind": "image", "shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
SPECS = {
    "mlp:6": {"num_classes": 3, "kind": "features", "shape": [5]},
    "resnet18": {"num_classes": 3, **IMAGES},
    "torchvision:squeezenet1_0": {"num_classes": 3, **IMAGES},
}


@pytest.mark.parametrize("name", SPECS)
def test_a_checkpoints_model_has_its_weights_and_takes_no_random_numbers(name: str, tmp_path: Path) -> None:
    spec = ModelSpec.from_dict({"name": name, **SPECS[name]})
    weights = {n: t.contiguous() for n, t in build_model(spec).state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    checkpoint, before = find_checkpoint(str(tmp_path / "w.safetensors"))[0], torch.get_rng_state()
    loaded = load_model(spec, checkpoint).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[n], t) for n, t in weights.items())
    shapes = {n: p.shape for n, p in build_model(spec, values=False).named_parameters()}
    assert torch.equal(torch.get_rng_state(), before)
    assert shapes == {n: p.shape for n, p in build_model(spec).named_parameters()}
    torch.set_rng_state(before)
    build_model(spec)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    start_model(spec, checkpoint)  # a training goes on from the same state as it always did
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(after, before)


def test_what_is_no_parameter_is_drawn() -> None:
    torch.manual_seed(0)
    expected = torch.randn(4), torch.randn(3)
    torch.manual_seed(0)
    with WithoutDraws():
        layer = nn.Linear(4, 3)
        layer.register_buffer("noise", torch.empty(4).normal_())
        drawn = torch.randn(3)
    assert torch.equal(layer.get_buffer("noise"), expected[0])
    assert torch.equal(drawn, expected[1])
