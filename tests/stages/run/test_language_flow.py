"""Language models from the command line, stage by stage: what works, and what is refused in a sentence.

python -m pytest tests/stages/run/test_language_flow.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cases import call_cli, write
from tests.languages import texts, trained


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    trained(write(texts(), folder / "texts.parquet"), folder / "RUN")
    ran = call_cli(
        "score", "--method", "ip", "texts.parquet", "--checkpoint", "RUN", "-o", "scores.parquet", cwd=folder
    )
    assert ran.code == 0, ran.err
    return folder


def test_scores_have_the_loss_beside_them_and_nothing_of_labels(place: Path) -> None:
    names = pq.read_schema(place / "scores.parquet").names
    assert "loss" in names
    assert not {"margin", "model_label", "other_label", "best_label"} & set(names)


def test_edits_leave_texts_without_labels_and_can_be_undone_compared_and_exported(place: Path) -> None:
    words = ["curate", "scores.parquet", "--budget", "10%", "--edits", "edits.parquet", "-o", "clean.parquet"]
    ran = call_cli(*words, "--export", "clean.jsonl", cwd=place)
    assert ran.code == 0, ran.err
    before, after = pq.read_table(place / "texts.parquet"), pq.read_table(place / "clean.parquet")
    assert after.column_names == before.column_names
    assert len(after) == len(before) - 2
    lines = [json.loads(line) for line in (place / "clean.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == after.column("text").to_pylist()
    assert not any("label" in line for line in lines)
    ran = call_cli("curate", "edits.parquet", "--undo", "--manifest", "clean.parquet", "-o", "back.parquet", cwd=place)
    assert ran.code == 0, ran.err
    assert pq.read_table(place / "back.parquet").to_pylist() == before.to_pylist()
    words = ["retrain", "clean.parquet", "--against", "texts.parquet", "--model", "gpt:1x16", "--epochs", 1]
    ran = call_cli(*words, "--seeds", 2, "--json", "-o", "ARMS", cwd=place)
    assert ran.code == 0, ran.err
    metrics = json.loads(ran.text)
    assert "of test loss per token over no edit" in ran.err
    difference = metrics["comparison"]["curated"]["no edit"]["token_loss"]
    means = [metrics["arms"][name]["mean"]["token_loss"]["mean"] for name in ("curated", "no edit")]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    assert set(metrics["comparison"]["curated"]["no edit"]) == {"token_loss", "perplexity", "loss"}


def test_a_comparison_whose_seeds_change_nothing_is_over_the_tokens_of_test_rows(place: Path) -> None:
    words = ["retrain", "texts.parquet", "--scores", "scores.parquet", "--model", "gpt:1x16", "--epochs", 1]
    ran = call_cli(*words, "--budget", "10%", "--json", "-o", "ARMS1", cwd=place)
    assert ran.code == 0, ran.err
    metrics = json.loads(ran.text)
    first = metrics["arms"]["no edit"]["seeds"]["0"]
    assert first["perplexity"] == pytest.approx(2.718281828459045 ** first["token_loss"])


def test_removal_speaks_of_losses_alone(place: Path) -> None:
    ran = call_cli("evaluate", "scores.parquet", "--removal", "10%", "--seeds", 1, cwd=place)
    assert ran.code == 0, ran.err
    found = json.loads(ran.text)["removal"]
    assert set(found["nothing"]) == {"target_loss", "test_loss"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("score", "texts.parquet", "--checkpoint", "RUN", "--method", "margin", "-o", "x.parquet"),
         "predicts no label"),
        (("score", "texts.parquet", "--checkpoint", "RUN", "--objective", "flip-fairness", "-o", "x.parquet"),
         "is about predicted classes"),
        (("score", "texts.parquet", "--checkpoint", "RUN", "--objective", "fairness", "-o", "x.parquet"),
         "is about predicted classes"),
        (("score", "texts.parquet", "--checkpoint", "RUN", "--objective", "robustness", "-o", "x.parquet"),
         "does not say where its embedding is"),
        (("curate", "scores.parquet", "--action", "relabel", "-o", "x.parquet"), "and these have none"),
        (("curate", "scores.parquet", "--export", "x.json", "--export-as", "label-studio", "-o", "x.parquet"),
         "choices between classes"),
        (("retrain", "texts.parquet", "--scores", "scores.parquet", "--action", "relabel", "--model", "gpt:1x16",
          "-o", "X"), "and these have none"),
        (("retrain", "texts.parquet", "--model", "gpt:1x16", "--canaries", "10%", "-o", "X"),
         "canaries are rows"),
        (("retrain", "texts.parquet", "--model", "gpt:1x16", "--flips", "words", "-o", "X"), "predicted classes"),
        (("retrain", "texts.parquet", "--model", "gpt:1x16", "--attack", "fgsm", "-o", "X"), "under attack"),
        (("retrain", "texts.parquet", "--model", "gpt:nothing", "-o", "X"), "gpt:LAYERSxWIDTH"),
        (("evaluate", "scores.parquet", "--brittleness", "2"), "predicted classes that flip"),
    ],
)  # fmt: skip
def test_what_needs_labels_or_classes_is_refused(words: tuple[str, ...], said: str, place: Path) -> None:
    ran = call_cli(*words, cwd=place)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "fix:" in ran.err
