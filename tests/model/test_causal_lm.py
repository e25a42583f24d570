"""Causal language models of transformers, and LoRA adapters on them.

python -m pytest tests/model/test_causal_lm.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from influence_cli.engines.engine import Engine
from influence_cli.engines.point import Point
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_model
from influence_cli.model.next_token import by_token
from influence_cli.model.spec import ModelSpec
from tests.cases import call_cli, write
from tests.languages import direction, floats, texts, token_rows
from tests.texts import SIZES, SPECIAL, WORDS, tokenizer, transformers

CPU = torch.device("cpu")


def saved(folder: Path, kind: str, **more: Any) -> Path:
    """A folder with a small causal model and its tokenizer."""
    sizes = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, **SIZES[kind], **more}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def opened(folder: Path, precision: str = "fp32") -> tuple[ModelSpec, Point]:
    checkpoint, carried = find_model(str(folder), language=True)
    assert carried is not None
    spec = ModelSpec.from_dict(carried)
    assert ModelSpec.from_dict(spec.as_dict()) == spec
    return spec, Point(load_model(spec, checkpoint), "all", None, precision, CPU)


def expected_losses(model: Any, x: Any) -> torch.Tensor:
    """Losses [n, T - 1] by transformers' own logits, 0 where rows are filled up."""
    with torch.no_grad():
        z = model(**x.tensors).logits
    losses = F.cross_entropy(z[:, :-1].mT, x.tensors["input_ids"][:, 1:], reduction="none")
    return losses * x.tensors["attention_mask"][:, 1:]


@pytest.mark.parametrize(
    ("kind", "precision", "bound"), [("gpt2", "fp64", 1e-10), ("gpt2", "fp32", 1e-5), ("llama", "fp32", 1e-5)]
)
def test_losses_are_transformers_own_and_every_engine_equals_the_loop(
    kind: str, precision: str, bound: float, tmp_path: Path
) -> None:
    spec, point = opened(saved(tmp_path, kind), precision)
    x = token_rows(vocabulary=len(WORDS), first=len(SPECIAL))
    own = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").to(point.dtype)
    expected = expected_losses(own, x)
    with torch.no_grad(), by_token(point.model):
        torch.testing.assert_close(point.model(x.tensors)[:, 1:], expected, rtol=bound, atol=bound)
    z, _ = point.outputs(x, [])
    torch.testing.assert_close(z[:, 0], expected.sum(1), rtol=bound, atol=bound)
    assert z[:, 1].tolist() == x.tensors["attention_mask"][:, 1:].sum(1).tolist()
    u = direction(point.selected)
    for name in ("forward", "layerwise", "double-reverse"):
        engine = Engine(point, name)
        engine.outputs(x, [u])
        assert engine.checked is not None
        assert engine.checked.loop < bound
        assert engine.checked.halved < bound
        assert engine.checked.coverage in (None, 1.0)
        assert point.fallback is None
    assert (spec.name, spec.loss, spec.num_classes) == (f"hf:{kind}", "next-token", 1)
    tied = "lm_head.weight" not in point.selected
    assert tied == (kind == "gpt2")  # one tensor where embedding and output layer are one


def test_the_padding_token_in_a_text_counts_as_any_other_where_weights_are_tied(tmp_path: Path) -> None:
    """Torch's backward mode leaves the embedding's share of its gradient out, and forward mode does not."""
    rows = texts(24, 4, 0).to_pylist()
    rows[13]["text"] = "[PAD] " * 8 + "cat"
    write(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    saved(tmp_path / "llama", "llama", tie_word_embeddings=True)
    found = {}
    for engine in ("forward", "layerwise", "double-reverse"):
        given = ("score", "--method", "ip", "t.parquet", "--checkpoint", "llama", "--engine", engine, "--batch-size", 4)
        ran = call_cli(*given, "--no-store", "-o", "s.parquet", cwd=tmp_path)
        assert ran.code == 0, ran.err
        assert "loop" not in ran.err
        found[engine] = floats(pq.read_table(tmp_path / "s.parquet"))
    scale = np.abs(found["forward"]).max()
    for engine in ("layerwise", "double-reverse"):
        np.testing.assert_allclose(found[engine], found["forward"], rtol=0, atol=2e-5 * scale)


def test_a_folder_is_attacked_evaluated_and_has_no_flips(tmp_path: Path) -> None:
    saved(tmp_path / "gpt2", "gpt2")
    write(texts(12, 4, 4), tmp_path / "t.parquet")
    given = (
        "score",
        "--method",
        "ip",
        "t.parquet",
        "--checkpoint",
        "gpt2",
        "--objective",
        "utility",
        "-o",
        "s.parquet",
    )
    ran = call_cli(*given, "--objective", "robustness", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "pgd attack" in ran.err
    ran = call_cli("evaluate", "s.parquet", "--lds", 4, "--epochs", 1, cwd=tmp_path)
    assert ran.code == 0, ran.err
    ran = call_cli("evaluate", "s.parquet", "--flips", "words", cwd=tmp_path)
    assert ran.code == 2
    assert "--flips counts predicted classes that change, and hf:gpt2 predicts none" in ran.err


def test_a_model_is_trained_on_and_loads_in_transformers_as_what_it_was(tmp_path: Path) -> None:
    saved(tmp_path / "gpt2", "gpt2")
    write(texts(16, 4, 4), tmp_path / "t.parquet")
    ran = call_cli("retrain", "t.parquet", "--model", "hf:gpt2", "--epochs", 2, "-o", "RUN", cwd=tmp_path)
    assert ran.code == 0, ran.err
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "RUN")
    assert type(again).__name__ == "GPT2LMHeadModel"
    _, point = opened(tmp_path / "RUN")
    x = token_rows(vocabulary=len(WORDS), first=len(SPECIAL))
    torch.testing.assert_close(point.outputs(x, [])[0][:, 0], expected_losses(again, x).sum(1), rtol=1e-5, atol=1e-5)
    ran = call_cli("score", "--method", "ip", "t.parquet", "--checkpoint", "RUN", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert np.isfinite(floats(pq.read_table(tmp_path / "s.parquet"))).all()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("bert", "sees the tokens that it is to predict"), ("gemma2", "changes its logits after the output layer")],
)
def test_what_is_no_plain_causal_model_is_refused(kind: str, said: str, tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": 2, "head_dim": 8, **SIZES["bert"]}
    saved(tmp_path / "lm", kind, **(sizes if kind == "gemma2" else {})) if kind in SIZES else _saved(tmp_path, sizes)
    write(texts(8, 2, 2), tmp_path / "t.parquet")
    ran = call_cli("score", "--method", "ip", "t.parquet", "--checkpoint", "hf:lm", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert said in ran.err


def _saved(place: Path, sizes: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "gemma2", sizes)
        saved(place / "lm", "gemma2")


# -- adapters ----------------------------------------------------------------------------------------------------------


def adapters(place: Path, kind: str, layers: dict[str, tuple[int, int]], config: dict[str, Any]) -> Path:
    """A folder as peft writes it, with random adapters of rank r on layers (inputs, outputs), on ``place / base``."""
    folder, generator = place / "adapters", torch.Generator().manual_seed(3)
    folder.mkdir()
    weights: dict[str, torch.Tensor] = {}
    for name, (inputs, outputs) in layers.items():
        rank = int(config.get("rank_pattern", {}).get(name, config["r"]))
        shapes = {"A": (rank, inputs), "B": (outputs, rank)}
        for side, shape in shapes.items():
            weights[f"base_model.model.{name}.lora_{side}.weight"] = 0.3 * torch.randn(shape, generator=generator)
    save_file(weights, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "base_model_name_or_path": "../base", "task_type": "CAUSAL_LM", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**about, **config}))
    saved(place / "base", kind)
    return folder


LLAMA = {f"model.layers.{k}.self_attn.{name}": (32, 32) for k in (0, 1) for name in ("q_proj", "v_proj")}
GPT2 = {"transformer.h.0.attn.c_attn": (32, 96), "transformer.h.1.mlp.c_proj": (128, 32)}


@pytest.mark.parametrize(
    ("kind", "layers", "config", "scales"),
    [
        ("gpt2", GPT2, {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True}, {}),
        (
            "llama", LLAMA,
            {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"model.layers.1.self_attn.q_proj": 2},
             "alpha_pattern": {"layers.0.self_attn.v_proj": 3}},
            {"model.layers.1.self_attn.q_proj": 8 / 2**0.5, "model.layers.0.self_attn.v_proj": 3 / 2},
        ),
    ],
)  # fmt: skip
def test_adapters_give_what_the_merged_weights_give_and_are_all_that_is_scored(
    kind: str, layers: dict[str, Any], config: dict[str, Any], scales: dict[str, float], tmp_path: Path
) -> None:
    folder = adapters(tmp_path, kind, layers, config)
    usual = 8 / 2 if config.get("use_rslora") else 8 / 4
    own = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager").double()
    weights = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name in layers:
            a, b = (weights[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
            delta = scales.get(name, usual) * (b @ a)
            own.get_parameter(f"{name}.weight").add_(delta.T if kind == "gpt2" else delta)
    spec, point = opened(folder)
    x = token_rows(vocabulary=len(WORDS), first=len(SPECIAL))
    expected = expected_losses(own, x).sum(1)
    torch.testing.assert_close(point.outputs(x, [])[0][:, 0].double(), expected, rtol=1e-5, atol=1e-5)
    assert set(point.selected) == {f"{name}.lora_{side}.weight" for name in layers for side in "AB"}
    for name in ("forward", "layerwise"):
        engine = Engine(point, name)
        engine.outputs(x, [direction(point.selected)])
        assert engine.checked is not None
        assert engine.checked.loop < 1e-5
    assert spec.adapter is not None


def test_adapters_are_scored_from_the_command_line_and_known_by_both_files(tmp_path: Path) -> None:
    folder = adapters(tmp_path, "gpt2", GPT2, {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True})
    write(texts(12, 4, 4), tmp_path / "t.parquet")
    ran = call_cli("score", "--method", "ip", "t.parquet", "--checkpoint", "adapters", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "frozen" in ran.err
    before = find_model(str(folder), language=True)[0].digest
    base = load_file(tmp_path / "base" / "model.safetensors")
    save_file({n: w + 1e-3 for n, w in base.items()}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    assert find_model(str(folder), language=True)[0].digest != before
    ran = call_cli("retrain", "t.parquet", "--init", "adapters", "-o", "RUN", cwd=tmp_path)
    assert ran.code == 2
    assert "LoRA adapters are scored here" in ran.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "the adapters are IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "a trained bias"),
        ({"base_model_name_or_path": "gpt2-of-the-hub"}, "is no folder here"),
        ({"alpha_pattern": {"(": 2}}, "is no pattern"),
    ],
)
def test_adapters_that_are_not_followed_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, **change}
    adapters(tmp_path, "gpt2", GPT2, config)
    write(texts(8, 2, 2), tmp_path / "t.parquet")
    ran = call_cli("score", "--method", "ip", "t.parquet", "--checkpoint", "adapters", "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert said in ran.err
    assert "fix:" in ran.err
