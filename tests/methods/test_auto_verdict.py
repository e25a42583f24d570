"""Whether ``auto`` and ``confident`` know how many labels are wrong, what is said of it, and what acts on it.

python -m pytest tests/methods/test_auto_verdict.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.tables import provenance, with_provenance
from influence_cli.maths.averaged_probe import Averaged
from influence_cli.maths.wrong_count import wrong_labels
from influence_cli.methods.auto import _facts
from influence_cli.report.wrong_labels import why_unknown, wrong_labels_said
from tests.cases import call_cli, column, named, write

TRAIN, VAL = 150, 90
BEYOND = "beyond as many as target labels are"


def blobs(apart: float, wrong: float = 0.15, wrong_target: float = 0.0, only: int | None = None) -> pa.Table:
    """Three classes of normal rows whose means are ``apart``; shares of wrong labels; val rows of one class, or all."""
    rng, n = np.random.default_rng(5), TRAIN + VAL + 5
    clean = rng.integers(0, 3, n)
    x = apart * rng.normal(size=(3, 6))[clean] + rng.normal(size=(n, 6))
    share = np.repeat([wrong, wrong_target], [TRAIN, VAL + 5])
    label = np.where(rng.random(n) < share, (clean + rng.integers(1, 3, n)) % 3, clean)
    split = np.repeat(["train", "val", "test"], [TRAIN, VAL, 5])
    table = pa.table(
        {
            "id": [f"r{k:03d}" for k in range(n)],
            "features": pa.array(x.tolist(), pa.list_(pa.float32())),
            "label": label,
            "split": split.tolist(),
            "clean_label": clean,
        }
    )
    kept = (split != "val") | (clean == only) if only is not None else np.ones(n, dtype=bool)
    return named(table.filter(pa.array(kept)), 3)


def scored(here: Path, table: pa.Table, *methods: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """What a run says, and the facts of its columns; with a table s, and folds where ``confident`` needs them."""
    write(table, here / "m.parquet")
    folds = ("--folds", 3) if "confident" in methods else ()
    trained = ("--model", "linear", "--epochs", 10, "--lr", 0.1, "-o", "run")
    ran = call_cli("retrain", "m.parquet", *trained, *folds, cwd=here)
    assert ran.code == 0, ran.err
    asked = [word for name in methods for word in ("--method", name)]
    ran = call_cli("score", "m.parquet", "--checkpoint", "run", *asked, "-o", "s.parquet", cwd=here)
    assert ran.code == 0, ran.err
    return ran.err, provenance(pq.read_schema(here / "s.parquet"))["facts"]


def test_a_target_of_one_class_decides_nothing_and_train_labels_do(tmp_path: Path) -> None:
    said, facts = scored(tmp_path, blobs(2.0, only=0), "auto")
    found = facts["score_auto"]
    assert (found["apart"], found["tells"]) == (None, True)
    assert "as far as train labels show by themselves (target rows of one class cannot decide it: give some of" in said
    assert "no better than chance" not in said
    assert call_cli("curate", "s.parquet", "--budget", "auto", "-n", cwd=tmp_path).code == 0
    rows = pq.read_table(tmp_path / "m.parquet").slice(0, TRAIN)
    bad = rows.column("label").to_numpy() != rows.column("clean_label").to_numpy()
    assert bad[np.argsort(column(pq.read_table(tmp_path / "s.parquet")))[: bad.sum()]].mean() > 0.7


def test_random_labels_are_said_to_agree_with_features_no_better_than_chance(tmp_path: Path) -> None:
    said, facts = scored(tmp_path, blobs(0.3, wrong=2 / 3), "auto", "confident")
    assert not facts["score_auto"]["tells"]
    assert "how many are wrong is not known: " in said
    assert "labels agree with what features tell no better than chance (" in said
    assert "wrong labels are told from right ones" not in said
    assert not facts["score_confident"]["tells"]
    found = json.loads(call_cli("evaluate", "s.parquet", "--json", cwd=tmp_path).out)["wrong_labels"]
    assert [entry["said"].split(" labels are wrong: ")[0] for entry in found] == [
        f"{by} does not know how many of {TRAIN}" for by in ("auto", "confident learning")
    ]
    for name in ("auto", "confident"):
        ran = call_cli("curate", "s.parquet", "--by", f"score_{name}", "--budget", "auto", cwd=tmp_path)
        assert ran.code == 2
        assert f"score_{name} does not know how many labels are wrong" in ran.err


def test_random_labels_beside_target_rows_that_are_told_well(tmp_path: Path) -> None:
    said, facts = scored(tmp_path, blobs(3.0, wrong=2 / 3), "auto")
    found = facts["score_auto"]
    assert (found["tells"], found["beyond_chance"]) == (True, False)
    assert "by what target rows show, while labels agree with what features tell no better than chance (" in said
    rows = pq.read_table(tmp_path / "m.parquet").slice(0, TRAIN)
    many = (rows.column("label").to_numpy() != rows.column("clean_label").to_numpy()).sum()
    assert found["interval"][0] <= many <= found["interval"][1]


def test_random_labels_tell_a_number_only_beside_a_cleaner_target() -> None:
    rng = np.random.default_rng(0)
    truth, held, labels = (rng.integers(0, 3, n) for n in (200, 100, 200))
    p = np.full((200, 3), 0.25) + 0.25 * np.eye(3)[truth]
    for seen, low, tells in ((100, 9.0, True), (38, 9.0, False), (100, 0.0, False)):  # so many target labels foretold
        foretold = np.where(np.arange(100) < seen, held, (held + 1 + np.arange(100) % 2) % 3)
        q = np.full((100, 3), 0.25) + 0.25 * np.eye(3)[foretold]
        wrong = replace(wrong_labels(p, labels, q, held), apart=(0.01, 0.3), interval=(low, 150.0))
        facts = _facts(Averaged(p, q, False), labels, held, wrong)
        assert (facts["apart"][0] > 0, facts["beyond_chance"], facts["tells"]) == (True, False, tells)


def test_a_number_beyond_that_of_target_labels_is_said_to_be_so_everywhere(tmp_path: Path) -> None:
    said, facts = scored(tmp_path, blobs(2.0, wrong_target=0.2), "auto", "confident")
    assert not facts["score_auto"]["target_is_cleaner"]
    assert facts["score_confident"]["tells"]
    assert f"are wrong {BEYOND} (" in said
    ran = call_cli("evaluate", "s.parquet", "--json", "--report", "page.html", cwd=tmp_path)
    assert f"wrong labels of {TRAIN} {BEYOND} (" in ran.err
    assert BEYOND in json.loads(ran.out)["wrong_labels"][0]["said"]
    assert f"wrong labels of {TRAIN} {BEYOND} (" in (tmp_path / "page.html").read_text()
    ran = call_cli("curate", "s.parquet", "--action", "reweight", "-n", cwd=tmp_path)
    assert f"wrong labels of {TRAIN} {BEYOND} (" in ran.err
    ran = call_cli("curate", "s.parquet", "--budget", "auto", cwd=tmp_path)
    assert ran.code == 2
    assert f"wrong labels {BEYOND}, and its 95% interval reaches 0: there may be none beyond these (" in ran.err
    changed(tmp_path, {"score_auto": {"interval": [4.0, 9.0], "wrong_labels": 6.0}})
    ran = call_cli("curate", "c.parquet", "--budget", "auto", "-n", cwd=tmp_path)
    assert f"--budget auto: 6 rows, the number of wrong labels {BEYOND} that score_auto estimates" in ran.err


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table s in which both methods know the number."""
    here = tmp_path_factory.mktemp("known")
    _, facts = scored(here, blobs(2.0), "auto", "loss", "confident")
    assert [facts[f"score_{name}"]["tells"] for name in ("auto", "confident")] == [True, True]
    return here


def changed(here: Path, facts: dict[str, dict[str, Any]]) -> None:
    """The table s with other facts of columns, as c."""
    table = pq.read_table(here / "s.parquet")
    origin = provenance(table.schema)
    for name, more in facts.items():
        origin["facts"][name] |= more
    write(with_provenance(table, origin), here / "c.parquet")


def test_a_column_that_does_not_know_the_number_takes_none_of_another(known: Path) -> None:
    changed(known, {"score_auto": {"tells": False, "beyond_chance": False}})
    for by in ((), ("--by", "score_auto"), ("--by", "loss", "--by", "score_auto")):
        ran = call_cli("curate", "c.parquet", *by, "--budget", "auto", "-n", cwd=known)
        assert ran.code == 2, by
        assert "score_confident estimates" not in ran.err
    ran = call_cli("curate", "c.parquet", "--budget", "auto", "--action", "relabel", cwd=known)
    assert "score_auto does not know how many labels are wrong" in ran.err
    assert "fix: act by one that knows it: --by score_confident, or give a number" in ran.err
    for by in ("score_confident", "score_loss"):  # a column without a number of its own takes one that is known
        ran = call_cli("curate", "c.parquet", "--by", by, "--budget", "auto", "-n", cwd=known)
        assert ran.code == 0, ran.err
        assert "the number of wrong labels that score_confident estimates" in ran.err


def test_fold_models_no_better_than_the_most_frequent_class_give_no_budget(known: Path) -> None:
    changed(known, {"score_confident": {"tells": False}})
    ran = call_cli("curate", "c.parquet", "--by", "confident", "--budget", "auto", cwd=known)
    assert ran.code == 2
    assert "no better than always naming the most frequent class" in ran.err
    assert "--by score_auto" in ran.err


def test_by_auto_without_canaries_names_the_column_of_the_method(known: Path) -> None:
    ran = call_cli("curate", "s.parquet", "--by", "auto", "--budget", "auto", cwd=known)
    assert ran.code == 2
    assert "--by auto lets canaries choose the column, and the table has none" in ran.err
    assert "fix: --by score_auto acts by method auto" in ran.err
    table = pq.read_table(known / "s.parquet")
    write(table.drop_columns(["score_auto"]), known / "without.parquet")
    ran = call_cli("curate", "without.parquet", "--by", "auto", cwd=known)
    assert "score_auto" not in ran.err


def test_evaluate_refuses_a_budget_of_auto_before_it_looks_at_any_table(known: Path) -> None:
    for words in (("s.parquet",), ("nowhere.parquet",), ("nowhere.parquet", "--against", "s.parquet")):
        ran = call_cli("evaluate", *words, "--budget", "auto", cwd=known)
        assert ran.code == 2
        assert "--budget 'auto' is neither a share nor a count\nfix: write 5% or 200; `influence curate" in ran.err


def test_what_is_known_decides_the_words() -> None:
    auto = {
        "by": "auto", "rows": 50, "wrong_labels": 9.0, "interval": [5.0, 12.0], "pairs": [], "tells": False,
        "apart": [-0.1, 0.2], "beyond_chance": True, "agrees": 0.8, "by_chance": 0.3, "most_frequent": 0.4,
        "target_rows": 25, "target_given": 25, "target_least": 20, "features_know_labels": False,
    }  # fmt: skip
    assert why_unknown({**auto, "tells": True}) == ""
    assert why_unknown(auto).startswith("25 target rows do not show that wrong labels are told from right ones")
    assert "more target rows" in why_unknown(auto)
    by_chance = "labels agree with what features tell no better than chance (80.0%; 30.0% by chance)"
    denied = f"it tells wrong labels no better than chance, and {by_chance}"
    assert why_unknown({**auto, "beyond_chance": False}) == denied
    assert why_unknown({**auto, "beyond_chance": False, "apart": [0.1, 0.2]}) == by_chance
    few = why_unknown({**auto, "apart": None, "target_rows": 0, "target_given": 7})
    assert few.endswith("; so few target rows cannot decide it: give 20 or more, of every class")
    assert "has learned these labels by heart" in why_unknown({**auto, "tells": True, "features_know_labels": True})
    for said in (wrong_labels_said(auto), wrong_labels_said({"rows": 50, "interval": [1, 9], "pairs": []})):
        assert "does not know how many of 50 labels are wrong" in said
        assert "estimates" not in said
