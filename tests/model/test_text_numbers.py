"""Encoders of transformers with numbers as labels: what training writes is read back, and scores.

python -m pytest tests/model/test_text_numbers.py
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

from tests.cases import call_cli, write
from tests.texts import classifier, sentences, tokenizer

transformers: Any = pytest.importorskip("transformers", reason="needs the extra text")


def test_an_encoder_of_numbers_is_read_back_and_scores_as_autograd_has_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = sentences(20, 6, 4)
    numbers = pa.array(rng.normal(size=len(table)) + 3)
    write(table.set_column(table.column_names.index("label"), "label", numbers), tmp_path / "rows.parquet")
    model = classifier("bert", classes=1, problem_type="regression")
    model.save_pretrained(tmp_path / "hf")
    tokenizer().save_pretrained(tmp_path / "hf")
    for asked in (
        ("manifest", "rows.parquet", "--text", "text", "--label", "label", "--task", "regression", "-o", "m.parquet"),
        ("retrain", "m.parquet", "--model", "hf:hf", "--epochs", "2", "--lr", "1e-3", "-o", "RUN"),
        ("score", "m.parquet", "--checkpoint", "RUN", "--method", "ip", "--params", "last", "-o", "s.parquet"),
    ):
        ran = call_cli(*asked, cwd=tmp_path)
        assert ran.code == 0, ran.err
    rows = pq.read_table(tmp_path / "m.parquet").to_pylist()
    assert json.loads((tmp_path / "RUN" / "config.json").read_text())["problem_type"] == "regression"
    read = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "RUN").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "RUN")
    head = [p for name, p in read.named_parameters() if name.startswith("classifier")]

    def gradient(row: dict[str, Any]) -> torch.Tensor:
        output = read(**tokens(row["text"], return_tensors="pt")).logits[0, 0]
        return torch.cat([g.flatten() for g in torch.autograd.grad((output - row["label"]) ** 2 / 2, head)])

    target = torch.stack([gradient(row) for row in rows if row["split"] == "val"]).mean(0)
    expected = {row["id"]: float(gradient(row) @ target) for row in rows if row["split"] == "train"}
    found = {row["id"]: row["score"] for row in pq.read_table(tmp_path / "s.parquet").to_pylist()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
