"""Small models of transformers with a tokenizer of whole words, and tables of sentences about films."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

transformers: Any = pytest.importorskip("transformers", reason="needs the extra text")
tokenizers: Any = pytest.importorskip("tokenizers", reason="needs the extra text")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_SAID = (
    "the a cat dog man woman he she his her sees likes hates good bad great awful film movie plot was is very not "
    "story actor music and in of to with without"
)
WORDS = tuple(_SAID.split())
SIZES: dict[str, dict[str, Any]] = {  # of a small model of each architecture
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "albert": {
        "hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64,
    },
    "deberta": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16,
    },
    "deberta-v2": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 2, "eos_token_id": 3},
    "llama": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "bos_token_id": 2, "eos_token_id": 3,
    },
}  # fmt: skip


def tokenizer(longest: int = 32, side: str = "right", types: bool = False) -> Any:
    """A tokenizer of whole words in lower case, with [CLS] and [SEP] around them."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: k for k, w in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]")
    )
    words.pre_tokenizer, words.normalizer = tokenizers.pre_tokenizers.Whitespace(), tokenizers.normalizers.Lowercase()
    words.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    given = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=longest, padding_side=side, model_input_names=given, **named
    )


def classifier(kind: str = "bert", classes: int = 2, seed: int = 0, **more: Any) -> Any:
    """A small classifier with weights of a seed."""
    sizes = {"vocab_size": len(SPECIAL) + len(WORDS), "pad_token_id": 0, **SIZES[kind], **more}
    config = transformers.AutoConfig.for_model(kind, num_labels=classes, **sizes)
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with torch.no_grad():  # larger than they start, so that rows differ
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model.eval()


def saved(folder: Path, kind: str = "bert", classes: int = 2, **more: Any) -> Path:
    """The folder with such a classifier and the tokenizer."""
    tokens = {name: more.pop(name) for name in ("longest", "side", "types") if name in more}
    classifier(kind, classes, **more).save_pretrained(folder)
    tokenizer(**tokens).save_pretrained(folder)
    return folder


def sentences(train: int = 60, val: int = 20, test: int = 20, wrong: float = 0.1, seed: int = 0) -> pa.Table:
    """Rows with id, text, label and split: good or great films are of class pos, but for a share of wrong labels."""
    rng, rows, seen = random.Random(seed), list[tuple[str, str, int, str]](), set[str]()
    while len(rows) < train + val + test:
        label = rng.random() < 0.5
        words = rng.choices(WORDS, k=rng.randint(1, 12))
        words.insert(rng.randrange(len(words) + 1), rng.choice(["good", "great"] if label else ["bad", "awful"]))
        if " ".join(words) in seen:
            continue
        seen.add(" ".join(words))
        k, given = len(rows), int(label) if rng.random() >= wrong else 1 - int(label)
        split = "train" if k < train else "val" if k < train + val else "test"
        rows.append((f"r{k}", " ".join(words), given, split))
    columns = dict(zip(("id", "text", "label", "split"), map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(columns).replace_schema_metadata({"classes": json.dumps(["neg", "pos"])})
