"""Models of texts: engines against the loop, padding that changes nothing, tokenizers, lengths, folders, errors.

python -m pytest tests/model/test_texts.py
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.kinds import KINDS
from tests.cases import call_cli, write
from tests.texts import classifier, saved, sentences, tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from influence_cli.engines.engine import Engine
from influence_cli.engines.point import Point
from influence_cli.model.named_tensors import NamedTensors
from influence_cli.model.transformers_model import with_plain_call


def _rows(rows: int = 12) -> tuple[Any, Any]:
    """Token numbers and a mask of rows with 3 to 14 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = 3 + torch.arange(rows) * 5 % 12
    ids = torch.randint(4, 20, (rows, int(lengths.max())), generator=generator)
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "albert", "deberta-v2", "gpt2"])
@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-10), ("fp32", 1e-5)])
def test_every_engine_equals_the_loop(kind: str, precision: str, bound: float) -> None:
    point = Point(with_plain_call(classifier(kind, 3)), "all", None, precision, torch.device("cpu"))
    ids, mask = _rows()
    x = NamedTensors({"input_ids": ids, "attention_mask": mask})
    u = {
        n: torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))).to(p)
        for n, p in point.selected.items()
    }
    for name in ("forward", "layerwise", "double-reverse"):
        engine = Engine(point, name)
        engine.outputs(x, [u])
        assert engine.checked is not None and engine.checked.rows == 12
        assert engine.checked.loop < bound and engine.checked.halved < bound
        if name == "forward":
            assert point.fallback is None  # several directions share a pass
        if name == "layerwise":
            assert engine.checked.coverage == 1.0


def test_shared_embeddings_and_layers_are_one_parameter() -> None:
    model = classifier("albert")
    assert sum("attention" in name and "query.weight" in name for name, _ in model.named_parameters()) == 1
    point = Point(with_plain_call(model), "all", None, "fp64", torch.device("cpu"))
    ids, mask = _rows(4)
    u = {n: torch.ones_like(p) for n, p in point.selected.items()}
    for engine in ("forward", "layerwise"):
        _, (t,) = Engine(point, engine).outputs(NamedTensors({"input_ids": ids, "attention_mask": mask}), [u])
        step, values = 1e-6, []
        for sign in (1, -1):
            moved = {n: p + sign * step * u[n] for n, p in point.selected.items()}
            with torch.no_grad():
                values.append(point.logits(NamedTensors({"input_ids": ids, "attention_mask": mask}), moved))
        torch.testing.assert_close(t, (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_row_has_one_score_whatever_batch_it_is_in_and_on_whichever_side_the_tokenizer_fills(
    kind: str, tmp_path: Path
) -> None:
    write(sentences(), tmp_path / "m.parquet")
    found = []
    for side in ("right", "left"):
        folder = saved(tmp_path / side, kind, side=side)
        for batch in (1, 32):
            flags = ["--precision", "fp64", "--batch-size", batch, "--no-store", "-o", "s.parquet", "-q"]
            ran = call_cli("score", "m.parquet", "--checkpoint", folder, *flags, cwd=tmp_path)
            assert ran.code == 0, ran.err
            found.append(score_of(tmp_path / "s.parquet"))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-10 * np.abs(found[0]).max())


def score_of(path: Path) -> Any:
    table = pq.read_table(path)
    return table.sort_by("id").column("score").to_numpy()


def test_scores_are_inner_products_of_gradients_with_transformers_own_inputs(tmp_path: Path) -> None:
    folder, table = saved(tmp_path / "hf"), sentences()
    write(table, tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--checkpoint", folder, "-o", "s.parquet", "-q", cwd=tmp_path).code == 0
    tokens, model = tokenizer(), classifier().double()

    def gradient(row: dict[str, Any]) -> Any:
        inputs = tokens(row["text"], return_tensors="pt")
        model.zero_grad()
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]])).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    rows = table.to_pylist()
    q = torch.stack([gradient(r) for r in rows if r["split"] == "val"]).mean(0)
    expected = {r["id"]: float(q @ gradient(r)) for r in rows if r["split"] == "train"}
    found = pq.read_table(tmp_path / "s.parquet").sort_by("id")
    wanted = np.array([expected[i] for i in found.column("id").to_pylist()])
    np.testing.assert_allclose(found.column("score").to_numpy(), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_pairs_of_texts_are_joined_by_the_tokenizer(tmp_path: Path) -> None:
    text = sentences().column("text").to_pylist()
    table = sentences().drop_columns("text")
    table = table.append_column("text_a", pa.array(text)).append_column("text_b", pa.array(text[::-1]))
    write(table, tmp_path / "m.parquet")
    folder = saved(tmp_path / "hf", type_vocab_size=2)
    ran = call_cli("score", "m.parquet", "--checkpoint", folder, "--method", "loss", "-o", "s.csv", "-q", cwd=tmp_path)
    assert ran.code == 0, ran.err
    rows = {r["id"]: r for r in table.to_pylist()}
    model, tokens = classifier(type_vocab_size=2), tokenizer()
    with (tmp_path / "s.csv").open() as handle:
        table = list(csv.DictReader(handle))
    for found in table[:5]:
        row = rows[found["id"]]
        ids = tokens(row["text_a"], row["text_b"], return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(**ids).logits, torch.tensor([row["label"]]))
        assert -float(found["score"]) == pytest.approx(float(loss), rel=1e-5)
