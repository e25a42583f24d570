"""Changed texts: words swapped both ways, Phi and its slope, twins from a column, flips counted, errors.

python -m pytest tests/objectives/test_flip_fairness.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from influence_cli.data.words import swapped, word_list
from influence_cli.objectives.flip_fairness import FlipFairness
from tests.cases import call_cli, examples, feature_table, train_run, write
from tests.texts import classifier, saved, sentences, tokenizer

SEED = 5  # of weights with which predictions flip for both kinds of twins


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("He saw the man.", "She saw the woman."),
        ("She likes her brother", "He likes his sister"),
        ("They gave her a book.", "They gave him a book."),
        ("I met her.", "I met him."),
        ("THE KING'S son", "THE QUEEN'S daughter"),
        ("John's father", "Mary's mother"),
        ("the theme of hers", "the theme of his"),
        ("nothing changes here", "nothing changes here"),
        ("He said: «Мужчина» heroically", "She said: «Мужчина» heroically"),
    ],
)
def test_words_are_swapped_with_their_capitals(text: str, other: str) -> None:
    assert swapped(text) == other


def test_swapping_twice_gives_the_text_back_but_for_words_with_two_partners() -> None:
    words, digest = word_list()
    assert len(digest) == 32
    there_and_back = [w for w, other in words.items() if words[other] == w]
    assert len(there_and_back) > 150
    for word in there_and_back:
        if word != "her":
            assert swapped(swapped(f"a {word} a")) == f"a {word} a"


@pytest.mark.parametrize("surrogate", ["js", "l2"])
def test_divergences_are_those_of_the_definition(surrogate: str) -> None:
    rng = torch.Generator().manual_seed(0)
    z, other = (5 * torch.randn(8, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    other[0] = z[0]
    p, q = z.softmax(1), other.softmax(1)
    middle = (p + q) / 2
    kl = lambda a, b: (a * (a / b).log()).sum(1)  # noqa: E731
    expected = 0.5 * kl(p, middle) + 0.5 * kl(q, middle) if surrogate == "js" else (p - q).square().sum(1)
    found = FlipFairness(surrogate=surrogate).pairs(z, other)
    torch.testing.assert_close(found, expected)
    assert abs(float(found[0])) < 1e-15
    far = FlipFairness(surrogate=surrogate).pairs(torch.tensor([[90.0, -90.0]]), torch.tensor([[-90.0, 90.0]]))
    assert float(far) == pytest.approx(np.log(2.0) if surrogate == "js" else 2.0)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences with a column of changed ones, and a classifier."""
    folder = tmp_path_factory.mktemp("film")
    table = sentences(60, 40, 40)
    twins = [f"very {t}" if k % 2 else None for k, t in enumerate(table.column("text").to_pylist())]
    write(table.append_column("twin", pa.array(twins)), folder / "m.parquet")
    saved(folder / "hf", seed=SEED)
    return folder


def _logits(model: Any, text: str) -> Any:
    inputs = tokenizer()(text, return_tensors="pt")
    return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits


@pytest.mark.parametrize("flags", [[], ["--set", "flip-fairness.column=twin", "--set", "flip-fairness.surrogate=l2"]])
def test_scores_are_products_with_the_gradient_through_both_branches(flags: list[str], film: Path) -> None:
    asked = ["--objective", "flip-fairness", *flags, "--precision", "fp64", "--no-store", "-o", "s.parquet"]
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "hf", *asked, cwd=film)
    assert ran.code == 0, ran.err
    model, how = classifier(seed=SEED).double(), FlipFairness(surrogate="l2" if flags else "js")
    parameters = list(model.parameters())
    rows = pq.read_table(film / "m.parquet").to_pylist()
    target = [r for r in rows if r["split"] == "val"]
    twins = [(r["twin"] or r["text"]) if flags else swapped(r["text"]) for r in target]
    terms = [how.pairs(_logits(model, r["text"]), _logits(model, t)) for r, t in zip(target, twins, strict=True)]
    mean = torch.cat(terms).mean()
    phi = float(mean.detach())
    q = torch.autograd.grad(mean, parameters, allow_unused=True)
    wanted = {}
    for row in rows:
        if row["split"] == "train":
            loss = torch.nn.functional.cross_entropy(_logits(model, row["text"]), torch.tensor([row["label"]]))
            g = torch.autograd.grad(loss, parameters, allow_unused=True)
            wanted[row["id"]] = sum(
                float((a * b).sum()) for a, b in zip(q, g, strict=True) if a is not None and b is not None
            )
    found = pq.read_table(film / "s.parquet")
    expected = np.array([wanted[i] for i in found.column("id").to_pylist()])
    scores = found.column("score").to_numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    assert f"Phi {phi:.4g} on 40 target rows" in ran.err
    flips = sum(
        int(_logits(model, r["text"]).argmax() != _logits(model, t).argmax())
        for r, t in zip(target, twins, strict=True)
    )
    changed = sum(t != r["text"] for r, t in zip(target, twins, strict=True))
    assert f"flip in {flips / 40:.2%} of 40 target rows, {flips / changed:.2%} of the {changed} whose" in ran.err


def test_other_twins_make_another_direction(film: Path) -> None:
    plain = ["score", "--method", "ip", "m.parquet", "--checkpoint", "hf", "--objective", "flip-fairness"]
    assert call_cli(*plain, "-o", "a.parquet", cwd=film).code == 0
    asked = ["--set", "flip-fairness.column=twin"]
    assert call_cli(*plain, *asked, "-o", "b.parquet", cwd=film).code == 0
    a, b = (pq.read_table(film / f"{name}.parquet").column("score").to_numpy() for name in "ab")
    assert not np.allclose(a, b)


def test_retrain_counts_flips_of_the_test_rows(film: Path) -> None:
    flags = ["--model", "hf:hf", "--epochs", "1", "--json", "-o", "RUN"]
    ran = call_cli("retrain", "m.parquet", *flags, "--flips", "words", cwd=film)
    assert ran.code == 0, ran.err
    first = next(iter(ran.json["arms"].values()))["seeds"]["0"]
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(film / "RUN").eval()
    texts = [r["text"] for r in pq.read_table(film / "m.parquet").to_pylist() if r["split"] == "test"]
    flipped = np.array([int(_logits(model, t).argmax() != _logits(model, swapped(t)).argmax()) for t in texts])
    changed = np.array([swapped(t) != t for t in texts])
    assert first["fair_score"] == pytest.approx(flipped.mean())
    assert first["fair_score_changed"] == pytest.approx(flipped[changed].mean())
    again = call_cli("retrain", "m.parquet", *flags, "--flips", "twin", cwd=film)  # measured anew, not trained
    assert again.code == 0, again.err
    assert "20 of 40 test texts change (column twin)" in again.err


def test_evaluate_counts_flips_of_the_model_that_was_scored(film: Path) -> None:
    """As the table was made, or as is asked for; of all rows and of those whose text changes; on the page too."""
    asked = ["--checkpoint", "hf", "--objective", "flip-fairness", "--set", "flip-fairness.column=twin"]
    assert call_cli("score", "--method", "ip", "m.parquet", *asked, "-o", "flips.parquet", cwd=film).code == 0
    assert (
        call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "hf", "-o", "plain.parquet", cwd=film).code
        == 0
    )
    model, rows = classifier(seed=SEED), pq.read_table(film / "m.parquet").to_pylist()

    def expected(split: str, twin: Any) -> tuple[float, float]:
        texts = [(r["text"], twin(r)) for r in rows if r["split"] == split]
        flipped = np.array([int(_logits(model, a).argmax() != _logits(model, b).argmax()) for a, b in texts])
        return float(flipped.mean()), float(flipped[[a != b for a, b in texts]].mean())

    questions = (
        (["flips.parquet", "--report", "page.html"], lambda r: r["twin"] or r["text"]),
        (["plain.parquet", "--flips", "words"], lambda r: swapped(r["text"])),
        (["plain.parquet", "--flips", "twin"], lambda r: r["twin"] or r["text"]),
    )
    for flags, twin in questions:
        ran = call_cli("evaluate", *flags, "--json", cwd=film)
        assert ran.code == 0, ran.err
        (entry,) = ran.json["at_checkpoint"]
        for split, name in (("val", "target"), ("test", "test")):
            found = entry["rows"][name]
            assert (found["fair_score"], found["fair_score_changed"]) == pytest.approx(expected(split, twin)), flags
        assert entry["flips"]["changed"]["test"] == sum(twin(r) != r["text"] for r in rows if r["split"] == "test")
    page = (film / "page.html").read_text()
    assert "predictions that flip" in page
    assert "Texts that change: 20 of 40 target" in page
    ran = call_cli("evaluate", "flips.parquet", cwd=film)
    assert "of the model that was scored the share of predictions that flip with changed texts is" in ran.err
    ran = call_cli("evaluate", "plain.parquet", "--flips", "twins", cwd=film)
    assert ran.code == 2
    assert "no column 'twins' with changed texts" in ran.err
    ran = call_cli("evaluate", "plain.parquet", "--flips", "words", "--lds", "3", cwd=film)
    assert ran.code == 2
    assert "is about the model that was scored" in ran.err


def test_the_answer_and_the_page_of_a_comparison_are_about_flips(film: Path) -> None:
    asked = ["--objective", "flip-fairness", "-o", "edits.parquet"]
    assert call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "hf", *asked, cwd=film).code == 0
    flags = ["--scores", "edits.parquet", "--by", "score", "--budget", "20%", "--epochs", "1", "--flips", "words"]
    more = ["--report", "arms.html", "-o", "ARMS"]
    ran = call_cli("retrain", "m.parquet", "--model", "hf:hf", *flags, *more, cwd=film)
    assert ran.code == 0, ran.err
    assert "the share of predictions that flip with changed texts" in ran.err
    page = (film / "arms.html").read_text()
    assert "predictions that flip" in page
    assert "predictions that flip, of changed texts" in page


def test_gaps_are_measured_again_where_groups_change_beside_flips(film: Path, tmp_path: Path) -> None:
    table = pq.read_table(film / "m.parquet")
    found = []
    for kind in (2, 3):
        groups = pa.array([f"g{k % kind}" for k in range(len(table))])
        write(table.append_column("group", groups), tmp_path / "m.parquet")
        flags = ["--model", f"hf:{film / 'hf'}", "--epochs", "1", "--flips", "words", "--json", "-o", "RUN"]
        ran = call_cli("retrain", "m.parquet", *flags, cwd=tmp_path)
        assert ran.code == 0, ran.err
        found.append(next(iter(ran.json["arms"].values()))["seeds"]["0"]["dp_gap_soft"])
        assert ran.json["groups"] == {"column": "group", "names": [f"g{k}" for k in range(kind)]}
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--set", "flip-fairness.column=twins"], ["no column 'twins' with changed texts", "twin", "--keep-column"]),
        (["--set", "flip-fairness.column=label"], ["changed texts are int64, not text"]),
        (["--set", "flip-fairness.surrogate=flip"], ["'flip' is unknown: one of js, l2"]),
    ],
)
def test_what_cannot_be_changed_is_refused(flags: list[str], said: list[str], film: Path) -> None:
    asked = ["--objective", "flip-fairness", *flags, "-o", "s.parquet"]
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "hf", *asked, cwd=film)
    assert ran.code == 2
    assert all(text in ran.err for text in said), ran.err


def test_rows_without_texts_have_no_twins(tmp_path: Path) -> None:
    write(feature_table(examples()), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "RUN")
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "--objective", "flip-fairness",
                   "-o", "s.parquet", cwd=tmp_path)  # fmt: skip
    assert ran.code == 2
    assert "changed texts are of texts, and the rows have features" in ran.err
