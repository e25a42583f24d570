"""Image classifiers of transformers: the input that their processor says, scores, training, folders.

python -m pytest tests/model/test_hf_images.py
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tests.cases import call_cli, png, write
from tests.texts import transformers

VIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
CONVNEXT: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
RESNET: dict[str, Any] = {**CONVNEXT, "embedding_size": 8, "layer_type": "basic"}


def photos(rows: int = 40) -> pa.Table:
    """Photographs of 20 x 24 pixels, bright ones of class 1."""
    rng, values = np.random.default_rng(0), []
    for k in range(rows):
        low = 90 * (k % 2)
        pixels = rng.integers(low, low + 160, (20, 24, 3), dtype=np.uint8)
        split = "train" if k < rows // 2 else "val" if k < 3 * rows // 4 else "test"
        values.append({"id": f"p{k}", "image": {"bytes": png(pixels), "path": None}, "label": k % 2, "split": split})
    return pa.Table.from_pylist(values).replace_schema_metadata({"classes": json.dumps(["dark", "bright"])})


def saved(folder: Path, kind: str, sizes: dict[str, Any], processor: Any) -> Any:
    """A small classifier in a folder, with its image processor."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, num_labels=2, **sizes)
    model = transformers.AutoModelForImageClassification.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def pillow_processor(name: str) -> Any:
    """The processor that resizes with Pillow, whatever this version of transformers calls it."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


CASES = [
    ("vit", VIT, "ViTImageProcessor", {"size": {"height": 16, "width": 16}, "resample": 2}),
    (
        "resnet", RESNET, "ConvNextImageProcessor",
        {"size": {"shortest_edge": 16}, "crop_pct": 0.8, "resample": 3, "image_mean": [0.4, 0.5, 0.6]},
    ),
    (
        "convnext", CONVNEXT, "CLIPImageProcessor",
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 3},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "sizes", "name", "about"), CASES)
def test_pixels_become_the_input_as_the_processor_says(
    kind: str, sizes: dict[str, Any], name: str, about: dict[str, Any], tmp_path: Path
) -> None:
    processor = pillow_processor(name)(**about)
    model = saved(tmp_path / "hf", kind, sizes, processor)
    table = photos()
    write(table, tmp_path / "m.parquet")
    flags = ["--checkpoint", "hf", "--method", "loss", "-o", "l.csv"]
    ran = call_cli("score", "m.parquet", *flags, cwd=tmp_path)
    assert ran.code == 0, ran.err
    found = {r["id"]: -float(r["score"]) for r in csv.DictReader((tmp_path / "l.csv").read_text().splitlines())}
    for row in table.to_pylist()[:6]:
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        with torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]]))
        assert found[row["id"]] == pytest.approx(float(loss), rel=1e-4)


def test_a_folder_is_fine_tuned_and_loads_again(tmp_path: Path) -> None:
    saved(tmp_path / "hf", "vit", VIT, pillow_processor("ViTImageProcessor")(size={"height": 16, "width": 16}))
    write(photos(), tmp_path / "m.parquet")
    flags = ["--model", "hf:hf", "--epochs", "4", "--lr", "0.01", "-o", "RUN"]
    ran = call_cli("retrain", "m.parquet", *flags, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "test accuracy 100.00%" in ran.err
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "RUN")
    assert again.config.id2label == {0: "dark", 1: "bright"}
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path / "RUN").size["height"] == 16
    for method in ("ip", "ekfac"):
        ran = call_cli("score", "m.parquet", "--checkpoint", "RUN", "--method", method, "-o", "s.csv", cwd=tmp_path)
        assert ran.code == 0, ran.err
        assert "input: 16 x 16 pixels, 3 channels, from RUN, as it was trained" in ran.err


def test_a_processor_that_says_something_else_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "hf", "vit", VIT, pillow_processor("ViTImageProcessor")(size={"height": 16, "width": 16}))
    write(photos(), tmp_path / "m.parquet")
    path = tmp_path / "hf" / "preprocessor_config.json"
    about = json.loads(path.read_text())
    for changed, said in (({"rescale_factor": 1.0}, "does not make"), ({"size": {"longest_edge": 9}}, "'height'")):
        path.write_text(json.dumps({**about, **changed}))
        ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "hf", "-o", "s.csv", cwd=tmp_path)
        assert ran.code == 2
        assert said in ran.err
    path.unlink()
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "hf", "-o", "s.csv", cwd=tmp_path)
    assert ran.code == 2
    assert "no preprocessor_config.json" in ran.err
