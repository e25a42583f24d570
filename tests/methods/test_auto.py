"""``--method auto`` and ``curate --budget auto``: right values, what it becomes for other questions, what it refuses.

python -m pytest tests/methods/test_auto.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence_cli.data.folds import dealt
from influence_cli.data.label_kinds import CLASSES, NOTHING, NUMBERS, SEVERAL
from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance, with_provenance
from influence_cli.maths.averaged_probe import Labelled, of_given_labels
from influence_cli.maths.corrected_probe import CorrectedProbe, Rows
from influence_cli.maths.kernel_features import kernel_features
from influence_cli.maths.labels import softmax
from influence_cli.maths.wrong_count import wrong_labels
from influence_cli.methods.auto import Auto, Question, chosen
from influence_cli.methods.ekfac import EKFAC
from influence_cli.methods.ip import IP
from influence_cli.settings import GradSpec
from influence_cli.stages.score.stored import StoredRows
from tests.cases import (
    call_cli,
    column,
    digits_table,
    examples,
    feature_table,
    job_of,
    score_with_canaries,
    train_run,
    with_column,
    write,
)
from tests.opened import fill


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of which 45 of 300 have a wrong label, a linear model of theirs, and a table s of three methods."""
    here = tmp_path_factory.mktemp("auto")
    write(digits_table(train=300, val=90, test=30), here / "m.parquet")
    train_run(here / "m.parquet", here / "run", "linear")
    methods = ("--method", "auto", "--method", "loss", "--method", "data-maps")
    ran = call_cli(*SCORE, *methods, "-o", "s.parquet", cwd=here)
    assert ran.code == 0, ran.err
    (here / "said.txt").write_text(ran.err)
    assert call_cli(*SCORE, *ALONE, "-o", "alone.parquet", cwd=here).code == 0
    return here


SCORE = ("score", "m.parquet", "--checkpoint", "run")
ALONE = ("--method", "auto", "--features", "run")  # by features as of another model, which has no say itself
EPOCHS = 12  # of ``train_run``


def wrong(table: pa.Table, here: Path) -> np.ndarray:
    rows = {r["id"]: r["label"] != r["clean_label"] for r in pq.read_table(here / "m.parquet").to_pylist()}
    return np.array([rows[i] for i in table.column("id").to_pylist()])


def test_scores_are_the_log_odds_of_the_equation_on_the_models_features(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_manifest(str(digits / "m.parquet"), "label")
    train, val = manifest.rows("train"), manifest.rows("val")
    found = pq.read_table(digits / "s.parquet")
    job = job_of(digits / "m.parquet", digits / "run", digits / ".influence", spec=GradSpec(methods=("auto",)))
    fill(job)
    read = StoredRows(job.run, job.session, "auto")
    x, v = (read.read("features", read.members[0], r)["features"] for r in (train, val))
    every = np.ones(len(train), dtype=bool), np.ones(len(val), dtype=bool)
    by_key = sorted(range(len(train)), key=lambda k: train.payload_keys[k].tobytes())  # all 300 rows are landmarks
    z, z_held = kernel_features(x, v, np.array(by_key))
    logs = []
    for deal in (0, 1):
        rows, held = (
            Rows(z, train.labels, dealt(train, every[0], 5, deal)),
            Rows(z_held, val.labels, dealt(val, every[1], 5, deal)),
        )
        logs.append([np.log(found) for found in CorrectedProbe(rows, held, 10, 5).probabilities()])
    p, of_held = (softmax((one + other) / 2) for one, other in zip(*logs, strict=True))
    said = wrong_labels(p, rows.y, of_held, held.y)
    own = p[np.arange(300), rows.y]

    def of_given(own_x: np.ndarray, target_x: np.ndarray) -> np.ndarray:
        """Log-odds of the labels of rows by a probe on such features, a target row worth 300 / (2 * 90) rows."""
        of_train, of_target = (
            Labelled(f, part.labels, [dealt(part, some, 5, deal) for deal in (0, 1)])
            for f, part, some in ((own_x, train, every[0]), (target_x, val, every[1]))
        )
        given = of_given_labels(of_train, of_target, 300 / (2 * 90), 10, 5)[np.arange(300), rows.y]
        return np.log(given / (1 - given))

    wanted, plain = (np.log(own / (1 - own)) + np.log((1 - said.each) / said.each)) / 2, of_given(x, v)
    alone = column(pq.read_table(digits / "alone.parquet"), "score_auto")
    assert alone == pytest.approx(wanted + plain, rel=1e-4)  # floors of 1e-12 aside
    with monkeypatch.context() as narrow:  # of features that are too many those of the kernel are taken
        narrow.setattr("influence_cli.methods.auto.WIDEST_LINEAR", x.shape[1] - 1)
        assert call_cli(*SCORE, *ALONE, "-o", "wide.parquet", cwd=digits).code == 0
    wide = column(pq.read_table(digits / "wide.parquet"))
    assert wide == pytest.approx(wanted + of_given(z, z_held), rel=1e-4, abs=1e-4)
    assert np.abs(wide - alone).max() > 0.1
    facts = provenance(found.schema)["facts"]["score_auto"]
    assert (facts["epochs"], 0.0 < facts["own_weight"] < 1.0) == (EPOCHS, True)  # so that all parts count
    noted, last = column(found, "score_data-maps"), np.exp(column(found, "score_loss"))
    share = (p.argmax(axis=1) == rows.y).mean()
    assert facts["own_weight"] == pytest.approx(1 - 4 * (facts["fits"] - share) / (1 - share))
    view = np.log(noted / (1 - noted)) + np.log(last / (1 - last))
    told = wanted + facts["own_weight"] * (plain + view)
    assert column(found, "score_auto") == pytest.approx(told, rel=1e-3, abs=1e-3)
    assert facts["wrong_labels"] == pytest.approx(said.count)
    assert facts["interval"][0] <= 45 <= facts["interval"][1]


def test_target_labels_that_are_as_wrong_are_said_to_be_and_help_all_the_same(digits: Path) -> None:
    table, rng = pq.read_table(digits / "m.parquet"), np.random.default_rng(3)
    label, split = table.column("label").to_numpy().copy(), np.array(table.column("split").to_pylist())
    val = np.flatnonzero(split == "val")
    bad = rng.choice(val, len(val) // 6, replace=False)
    label[bad] = (label[bad] + rng.integers(1, 10, len(bad))) % 10
    write(with_column(table, "label", label), digits / "noisy.parquet")
    ran = call_cli("score", "noisy.parquet", *SCORE[2:], "--method", "auto", "-o", "n.parquet", cwd=digits)
    assert ran.code == 0, ran.err
    assert "their labels look no cleaner than those of train rows" in ran.err
    assert "are wrong beyond as many as target labels are" in ran.err
    found = pq.read_table(digits / "n.parquet")
    facts = provenance(found.schema)["facts"]["score_auto"]
    assert (facts["target_is_cleaner"], facts["interval"][0] <= 45 <= facts["interval"][1]) == (False, True)
    assert wrong(found, digits)[np.argsort(column(found))[:45]].mean() >= 0.8
    clean = provenance(pq.read_schema(digits / "s.parquet"))["facts"]["score_auto"]
    assert clean["target_is_cleaner"]


def test_it_finds_wrong_labels_better_than_the_loss_and_says_why(digits: Path) -> None:
    found = pq.read_table(digits / "s.parquet")
    bad = wrong(found, digits)
    hits = {n: bad[np.argsort(column(found, f"score_{n}"))[:45]].mean() for n in ("auto", "loss")}
    assert hits["auto"] >= 0.85
    assert hits["auto"] >= hits["loss"]
    said = provenance(found.schema)["auto"]
    assert (said["method"], said["trusted"], len(said["why"])) == ("auto", True, 3)
    assert all(line in (digits / "said.txt").read_text() for line in said["why"])
    assert "90 target rows help it" in said["why"][0]


def test_what_the_model_says_itself_counts_as_far_as_it_was_noted_and_is_not_learned_by_heart(digits: Path) -> None:
    rows = pq.read_table(digits / "m.parquet")
    train = np.array(rows.column("split").to_pylist()) == "train"
    said = provenance(pq.read_schema(digits / "s.parquet"))["auto"]["why"][0]
    assert "beside them the model's own probabilities, also those of 12 epochs of training, at " in said
    # other labels than those it was trained with, of three rows in four: nothing was noted of most rows
    labels = rows.column("label").to_numpy().copy()
    labels[train & (np.arange(len(rows)) % 4 > 0)] += 1
    write(with_column(rows, "label", labels % 10), digits / "others.parquet")
    words = ("score", "others.parquet", "--checkpoint", "run", "--method", "auto", "--method", "loss")
    ran = call_cli(*words, "-o", "o.parquet", cwd=digits)
    assert ran.code == 0, ran.err
    facts = provenance(pq.read_schema(digits / "o.parquet"))["facts"]["score_auto"]
    assert (facts["own_weight"], facts["epochs"]) == (1.0, 0)
    assert "epochs of training" not in ran.err
    # a model that knows every label by heart
    long = ("--model", "mlp:64", "--epochs", 80, "--lr", 0.2, "--batch-size", 32, "-o", "long")
    assert call_cli("retrain", "m.parquet", *long, cwd=digits).code == 0
    ran = call_cli("score", "m.parquet", "--checkpoint", "long", "--method", "auto", "-o", "h.parquet", cwd=digits)
    assert ran.code == 0, ran.err
    facts = provenance(pq.read_schema(digits / "h.parquet"))["facts"]["score_auto"]
    assert facts["own_weight"] == 0.0
    assert facts["fits"] > 0.95
    assert f"the model's own probabilities do not count: it fits {facts['fits']:.1%} of the labels" in ran.err


def test_features_that_know_the_labels_do_not_tell_how_many_are_wrong(digits: Path) -> None:
    table, rng = pq.read_table(digits / "m.parquet"), np.random.default_rng(4)
    write(with_column(table, "label", rng.integers(0, 10, len(table))), digits / "random.parquet")  # nothing to learn
    long = ("--model", "mlp:64", "--epochs", 80, "--lr", 0.2, "--batch-size", 32, "-o", "by-heart")
    assert call_cli("retrain", "random.parquet", *long, cwd=digits).code == 0
    ran = call_cli(
        "score", "random.parquet", "--checkpoint", "by-heart", "--method", "auto", "-o", "k.parquet", cwd=digits
    )
    assert ran.code == 0, ran.err
    facts = provenance(pq.read_schema(digits / "k.parquet"))["facts"]["score_auto"]
    assert (facts["features_know_labels"], facts["interval"][1]) == (True, 300.0)
    assert facts["agrees"] > facts["target_accuracy"] + 0.1
    assert "how many are wrong cannot be told by features of a model that has learned these labels by heart" in ran.err
    assert not provenance(pq.read_schema(digits / "s.parquet"))["facts"]["score_auto"]["features_know_labels"]


def test_a_rows_score_does_not_hang_on_batches_and_its_other_label_is_out_of_fold(digits: Path) -> None:
    more = ("--method", "auto", "--batch-size", 7, "--no-store", "-o", "b.parquet")
    assert call_cli(*SCORE, *more, cwd=digits).code == 0
    found, first = pq.read_table(digits / "b.parquet"), pq.read_table(digits / "s.parquet")
    assert column(found) == pytest.approx(column(first, "score_auto"), rel=1e-3, abs=1e-3)
    clean = {r["id"]: r["clean_label"] for r in pq.read_table(digits / "m.parquet").to_pylist()}
    bad, other = wrong(found, digits), found.column("other_label").to_pylist()
    right = [clean[i] == k for i, k, b in zip(found.column("id").to_pylist(), other, bad, strict=True) if b]
    assert np.mean(right) > 0.8


def test_the_budget_is_the_estimated_number_of_wrong_labels(digits: Path) -> None:
    count = round(provenance(pq.read_schema(digits / "s.parquet"))["facts"]["score_auto"]["wrong_labels"])
    ran = call_cli("curate", "s.parquet", "--by", "auto_none", "--budget", "auto", cwd=digits)
    assert ran.code == 2
    ran = call_cli(
        "curate", "s.parquet", "--by", "score_auto", "--set", "trim.guard=false", "--budget", "auto",
        "--edits", "e.parquet", cwd=digits,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    edits = pq.read_table(digits / "e.parquet")
    assert edits.num_rows == count
    assert f"--budget auto: {count} rows, the number of wrong labels that score_auto estimates" in ran.err
    assert provenance(edits.schema)["action"]["estimated"]["rows"] == count


def test_of_rows_some_of_which_are_not_trained_on_the_budget_is_their_share(digits: Path) -> None:
    count = provenance(pq.read_schema(digits / "s.parquet"))["facts"]["score_auto"]["wrong_labels"]
    table = pq.read_table(digits / "m.parquet")
    weights = np.where(np.arange(table.num_rows) % 4 == 0, 0.0, 1.0)
    share = weights[np.array(table.column("split").to_pylist()) == "train"].mean()
    write(table.append_column("weight", pa.array(weights)), digits / "weighted.parquet")
    ran = call_cli(
        "curate", "s.parquet", "--manifest", "weighted.parquet", "--by", "score_auto", "--set", "trim.guard=false",
        "--budget", "auto", "--edits", "e.parquet", cwd=digits,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert pq.read_table(digits / "e.parquet").num_rows == round(count * share)
    assert f"the {share:.1%} that are trained on (weight above 0) of the number of wrong labels" in ran.err
    assert (pq.read_table(digits / "e.parquet").column("weight_was").to_numpy() > 0).all()


def test_a_budget_is_refused_where_there_may_be_no_wrong_label(digits: Path) -> None:
    found = pq.read_table(digits / "s.parquet")
    origin = provenance(found.schema)
    origin["facts"]["score_auto"]["interval"] = [0.4, 9.0]
    write(with_provenance(found, origin), digits / "none.parquet")
    ran = call_cli("curate", "none.parquet", "--budget", "auto", cwd=digits)
    assert ran.code == 2
    assert "its 95% interval reaches 0: there may be none (0 to 9)\nin: none.parquet" in ran.err
    assert call_cli("curate", "none.parquet", "--budget", "9", cwd=digits).code == 0


def test_a_budget_is_refused_where_nothing_tells_how_many(digits: Path) -> None:
    assert call_cli(*SCORE, "--method", "loss", "-o", "l.parquet", cwd=digits).code == 0
    ran = call_cli("curate", "l.parquet", "--budget", "auto", cwd=digits)
    assert ran.code == 2
    assert "no column of the table estimates it" in ran.err
    assert call_cli(*SCORE, "--method", "auto", "-o", "s.csv", cwd=digits).code == 0
    ran = call_cli("curate", "s.csv", "--manifest", "m.parquet", "--budget", "auto", cwd=digits)
    assert ran.code == 2
    assert "in: s.csv\nfix: score with -o scores.parquet" in ran.err
    table = pq.read_table(digits / "m.parquet")
    labels, split = table.column("label").to_numpy(), np.array(table.column("split").to_pylist())
    rng = np.random.default_rng(0)
    mixed = np.where(split == "train", rng.integers(0, 10, len(labels)), rng.permutation(labels))
    write(with_column(table, "label", mixed), digits / "mixed.parquet")
    words = ("score", "mixed.parquet", "--checkpoint", "run", "--method", "auto", "-o", "x.parquet")
    assert call_cli(*words, cwd=digits).code == 0
    assert provenance(pq.read_schema(digits / "x.parquet"))["auto"]["trusted"] is False
    ran = call_cli("curate", "x.parquet", "--budget", "auto", cwd=digits)
    assert ran.code == 2
    assert "tells wrong labels no better than chance" in ran.err
    ran = call_cli("curate", "s.parquet", "--by", "score_auto", "--action", "reweight", "--budget", "auto", cwd=digits)
    assert ran.code == 2
    assert "takes no budget" in ran.err


def test_canaries_give_the_budget_where_they_are_asked(tmp_path: Path) -> None:
    here = score_with_canaries(tmp_path, 300, 60, "--method", "auto", "--method", "loss")
    ran = call_cli("curate", "s.parquet", "--by", "auto", "--budget", "auto", "-n", "--json", cwd=here)
    assert ran.code == 0, ran.err
    assert "the number of wrong labels that canaries estimate" in ran.err


def test_without_target_rows_the_labels_alone_tell(tmp_path: Path) -> None:
    table = digits_table(train=300, val=0, test=30)
    write(table, tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "run", "linear")
    assert call_cli(*SCORE, "--method", "auto", "-o", "s.parquet", cwd=tmp_path).code == 0
    found = pq.read_table(tmp_path / "s.parquet")
    assert wrong(found, tmp_path)[np.argsort(column(found))[:45]].mean() >= 0.7
    said = provenance(found.schema)["auto"]
    assert said["trusted"]
    assert "no target rows help it" in said["why"][0]


def test_other_objectives_get_a_method_of_effects(tmp_path: Path) -> None:
    rows = examples(60, 40, 10)
    table = feature_table(rows, group=pa.array([k % 2 for k in range(len(rows))]))
    write(table.set_column(2, "label", pa.array([min(r.label, 1) for r in rows])), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "run", "mlp:6")
    asked = (*SCORE, "--objective", "fairness")
    for params, method in (("all", "ip"), ("last", "ekfac")):
        for name in ("auto", method):
            ran = call_cli(*asked, "--params", params, "--method", name, "-o", f"{name}.parquet", cwd=tmp_path)
            assert ran.code == 0, ran.err
        a, b = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("auto", method))
        assert column(a, "score_fairness") == pytest.approx(column(b, "score_fairness"), rel=1e-9)
        said = provenance(a.schema)["auto"]
        assert said["method"] == method
        assert f"auto takes {method}, which estimates what a row does to fairness" in said["why"][0]
    ran = call_cli(*asked, "--method", "auto", "--set", "auto.folds=4", cwd=tmp_path)
    assert ran.code == 2
    assert "--set auto.folds=4 has no effect: options of auto are about wrong labels" in ran.err
    (tmp_path / "influence.toml").write_text("[method.auto]\nfolds = 4\n")  # which is for other runs too
    ran = call_cli(*asked, "--method", "auto", "-o", "b.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "options of auto are about wrong labels, and change nothing here" in ran.err


def test_what_it_is_for_rows_without_labels_and_for_several_objectives() -> None:
    auto, labels = Auto(), Question(("utility",), "all", CLASSES, 10, 300, True)
    for question, method in (
        (replace(labels, holds=NOTHING), IP()),
        (replace(labels, holds=NOTHING, params="last"), EKFAC()),
        (replace(labels, objectives=("utility", "fairness"), params="last"), EKFAC()),
        (replace(labels, effects="pairs are asked for", params="last"), IP()),
        (replace(labels, holds=NUMBERS), IP()),
        (replace(labels, holds=SEVERAL), IP()),
        (replace(labels, classes=1), IP()),
        (replace(labels, train=9), IP()),
        (replace(labels, train=100_001), IP()),
        (replace(labels, train=10), Auto(with_target=True)),
        (replace(labels, params="last"), Auto(with_target=True)),
    ):
        found, because = chosen(auto, question, {})
        assert found == method
        assert bool(because) == (found != Auto(with_target=True))
    assert chosen(auto, replace(labels, holds=NUMBERS, target=False), {}) == (Auto(), "")  # which says what is lacking
    assert chosen(Auto(max_rows=100_001), replace(labels, train=100_001), {})[1] == ""
    assert chosen(Auto(max_rows=100), labels, {})[0] == IP()
    assert chosen(IP(), labels, {}) == (IP(), "")
    assert chosen(auto, replace(labels, classes=1), {"ip": {"normalise": "cosine"}})[0] == IP(normalise="cosine")


def test_labels_that_are_numbers_get_effects_and_without_target_rows_the_way_out(tmp_path: Path) -> None:
    rows = examples(40, 12, 6)
    table = feature_table(rows).set_column(2, "label", pa.array([r.features[0] for r in rows], pa.float64()))
    write(table.replace_schema_metadata({"task": "regression"}), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "run", "linear")
    ran = call_cli(*SCORE, "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    said = provenance(pq.read_schema(tmp_path / "s.parquet"))["auto"]
    assert said["method"] == "ip"
    assert "labels are numbers, and it judges classes (--method probe judges these)" in said["why"][0]
    table = pq.read_table(tmp_path / "m.parquet")
    write(table.filter(pa.compute.not_equal(table["split"], "val")), tmp_path / "m.parquet")
    ran = call_cli(*SCORE, "--method", "auto", cwd=tmp_path)
    assert ran.code == 2
    assert "auto judges labels that are classes" in ran.err
    assert "--method probe" in ran.err
    assert "Traceback" not in ran.err


def test_the_number_of_wrong_labels_allows_for_the_class_mix_of_the_target() -> None:
    rng = np.random.default_rng(0)

    def drawn(truth: np.ndarray) -> np.ndarray:
        """P of rows whose x is normal around 0 or 2.5, where a tenth of the rows is of class 1."""
        x = 2.5 * truth + rng.normal(size=len(truth))
        joint = np.stack([0.9 * np.exp(-(x**2) / 2), 0.1 * np.exp(-((x - 2.5) ** 2) / 2)], axis=1)
        return joint / joint.sum(axis=1, keepdims=True)

    truth = np.repeat([0, 1], [3600, 400])
    labels = np.where(rng.random(len(truth)) < 0.1, 1 - truth, truth)
    p, wrong_rows = drawn(truth), int((labels != truth).sum())
    counts = []
    for many in (900, 500, 100):  # target rows of class 0, of 1000
        held = np.repeat([0, 1], [many, 1000 - many])
        counts.append(wrong_labels(p, labels, drawn(held), held).count)
    assert counts == pytest.approx([wrong_rows] * 3, rel=0.15)


def test_an_interval_that_is_not_sure_reaches_up_to_what_the_probabilities_come_to() -> None:
    rng = np.random.default_rng(5)

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        """P that nearly knows the truth, and labels of which three in ten are wrong."""
        truth = rng.integers(0, 3, n)
        return np.full((n, 3), 0.05) + 0.85 * np.eye(3)[truth], np.where(rng.random(n) < 0.3, (truth + 1) % 3, truth)

    (p, y), (held, held_y) = drawn(500), drawn(500)  # target labels are as wrong
    sure, unsure = (wrong_labels(p, y, held, held_y, sure) for sure in (True, False))
    assert (unsure.count, unsure.interval[0]) == (sure.count, sure.interval[0])
    assert sure.interval[1] < sure.each.sum() < unsure.interval[1] < 1.3 * sure.each.sum()


def test_features_that_know_nothing_tell_nothing_whatever_the_shares_of_classes() -> None:
    rng, told = np.random.default_rng(2), 0
    for _ in range(40):
        near = np.exp(rng.normal(0.0, 0.02, (800, 2))) * [0.86, 0.14]  # as often as the classes are, and noise
        p = near / near.sum(axis=1, keepdims=True)
        y, held = ((rng.random(n) < 0.14).astype(np.int64) for n in (600, 200))
        told += wrong_labels(p[:600], y, p[600:], held).tells
    assert told <= 4  # by chance one of 40


def test_the_interval_does_not_hang_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    p, held = (rng.dirichlet([1.0, 1.0, 4.0], n) for n in (200, 60))
    y, held_y = (q.argmax(axis=1) for q in (p, held))
    y[:20] = 0
    a, b = rng.permutation(200), rng.permutation(60)
    first, second = wrong_labels(p, y, held, held_y), wrong_labels(p[a], y[a], held[b], held_y[b])
    assert second.interval == pytest.approx(first.interval)
    assert second.apart == pytest.approx(first.apart)
    none = np.empty((0, 3)), np.empty(0, dtype=np.int64)
    assert wrong_labels(p[a], y[a], *none).interval == pytest.approx(wrong_labels(p, y, *none).interval)


def test_parameters_that_no_model_has_are_refused_where_no_gradient_is_taken_too(digits: Path) -> None:
    for words, said in (
        ((*SCORE, "--method", "auto"), "--params 'nosuch*' selects no parameter"),  # all that it needs is stored
        ((*SCORE, "--method", "loss"), "--params 'nosuch*' selects no parameter"),
        (("score", "m.parquet", "--features", "run"), "features alone are looked at, and no model is scored"),
    ):
        ran = call_cli(*words, "--params", "nosuch*", cwd=digits)
        assert ran.code == 2
        assert said in ran.err


def test_more_folds_than_rows_allow_are_refused_and_not_another_method(digits: Path) -> None:
    ran = call_cli(*SCORE, "--method", "auto", "--set", "auto.folds=200", cwd=digits)
    assert ran.code == 2
    assert "auto.folds=200 needs 400 train rows, and there are 300" in ran.err
    assert "fix: pass --set auto.folds=150" in ran.err


def test_where_there_may_be_no_wrong_label_the_next_step_is_to_look(tmp_path: Path) -> None:
    table = digits_table(train=300, val=90, test=30)
    write(with_column(table, "label", table.column("clean_label").to_numpy()), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "run", "linear")
    ran = call_cli(*SCORE, "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert provenance(pq.read_schema(tmp_path / "s.parquet"))["facts"]["score_auto"]["interval"][0] < 0.5
    assert "next: influence curate s.parquet --budget 20 --report review.html" in ran.err
    assert call_cli("curate", "s.parquet", "--budget", "20", "--report", "review.html", cwd=tmp_path).code == 0
    assert (tmp_path / "review.html").exists()


def test_one_class_few_rows_and_few_payloads_get_effects_or_the_way_out(tmp_path: Path) -> None:
    rows = examples(40, 30, 6)
    table = feature_table(rows).set_column(2, "label", pa.array([min(r.label, 1) for r in rows]))
    write(table, tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "run", "mlp:6")
    write(with_column(table, "label", np.ones(len(rows), dtype=np.int64)), tmp_path / "one.parquet")
    split = np.array(table.column("split").to_pylist())
    train, val = np.flatnonzero(split == "train"), np.flatnonzero(split == "val")
    write(table.take([*train[:8], *val]), tmp_path / "few.parquet")
    repeated = np.array(range(len(rows)))
    repeated[train] = train[np.arange(40) % 4]
    write(table.take(repeated).set_column(0, "id", table.column("id")), tmp_path / "same.parquet")
    repeated = np.array(range(len(rows)))
    repeated[val] = val[np.arange(30) % 3]
    write(table.take(repeated).set_column(0, "id", table.column("id")), tmp_path / "target.parquet")
    write(with_column(table, "label", np.ones(len(rows), dtype=np.int64)).take(train), tmp_path / "one-alone.parquet")
    write(table.take(train[:8]), tmp_path / "few-alone.parquet")
    for name, code, said in (
        ("one-alone", 2, "all train rows are of one"),
        ("one", 0, "auto takes ip, which estimates what a row does to utility: all train rows are of one class"),
        ("few-alone", 2, "fix: pass --set auto.folds=4, or give more train rows"),
        ("few", 0, "utility: 8 train rows are too few to judge each by the others"),
        ("same", 2, "--set auto.folds=5 of 4 distinct rows"),
    ):
        ran = call_cli("score", f"{name}.parquet", "--checkpoint", "run", "--method", "auto", cwd=tmp_path)
        assert ran.code == code, ran.err
        assert said in ran.err
    words = ("score", "target.parquet", "--checkpoint", "run", "--method", "auto", "-o", "t.parquet")
    ran = call_cli(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "no target rows help it: 3 that are no train rows are too few" in ran.err


def test_it_says_of_how_many_rows_the_target_has_not_the_class(digits: Path) -> None:
    table = pq.read_table(digits / "m.parquet")
    label, split = table.column("label").to_numpy(), np.array(table.column("split").to_pylist())
    write(table.filter(pa.array((split != "val") | (label > 1))), digits / "absent.parquet")
    words = ("--checkpoint", "run", "--method", "auto", "-o", "a.parquet")
    ran = call_cli("score", "absent.parquet", *words, cwd=digits)
    many = int(((split == "train") & (label <= 1)).sum())
    assert f"target rows help it, none of them of the class of {many} train rows" in ran.err


def test_target_rows_of_classes_that_no_train_row_has_are_left_out_with_a_word(digits: Path) -> None:
    table = pq.read_table(digits / "m.parquet")
    label, split = table.column("label").to_numpy(), np.array(table.column("split").to_pylist())
    unseen = (split == "val") & (label > 5)
    kept = (split != "train") | (label <= 5)
    write(table.filter(pa.array(kept)), digits / "unseen.parquet")
    write(table.filter(pa.array(kept & ~unseen)), digits / "seen.parquet")
    said, found = {}, {}
    for name in ("unseen", "seen"):
        ran = call_cli("score", f"{name}.parquet", "--checkpoint", "run", "-o", "u.parquet", cwd=digits)
        assert ran.code == 0, ran.err
        said[name], found[name] = ran.err, column(pq.read_table(digits / "u.parquet"))
    many = int(unseen.sum())
    assert f"target rows help it; {many} of classes that no train row has are left out" in said["unseen"]
    assert "left out" not in said["seen"]
    assert found["unseen"] == pytest.approx(found["seen"], rel=1e-5)


def test_a_budget_of_a_table_of_effects_is_refused_with_the_reason(digits: Path) -> None:
    words = (*SCORE, "--objective", "robustness", "-o", "effects.parquet")
    assert call_cli(*words, cwd=digits).code == 0
    ran = call_cli("curate", "effects.parquet", "--budget", "auto", cwd=digits)
    assert ran.code == 2
    assert "auto took ip there, since a wrong label is another question" in ran.err
    assert "fix: give a number" in ran.err
