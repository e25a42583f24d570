"""A checkpoint whose classes stand in another order: said where it shows, and matched by name with --class-map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import influence_cli
from influence_cli.data.tables import provenance
from influence_cli.errors import InfluenceError, ManifestError, UsageError
from influence_cli.maths.class_matching import find_matching
from influence_cli.model.class_order import read_class_map
from influence_cli.settings import GradSpec
from tests.cases import Heard, call_cli, column, job_of, same_scores, write
from tests.opened import score

TEXT = ("0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9")  # as folders are sorted
NATURAL = tuple(map(str, range(11)))
WIDTH = 11


def table_of(
    names: tuple[str, ...] | None, rows: int = 66, val: int = 22, seed: int = 0, of: Any = NATURAL
) -> pa.Table:
    """Rows whose largest feature says their class by name, numbered as ``names`` are."""
    rng = np.random.default_rng(seed)
    true = [of[k % len(of)] for k in range(rows + val)]
    x = rng.normal(size=(rows + val, WIDTH)) * 0.3
    x[np.arange(len(true)), [NATURAL.index(name) for name in true]] += 3.0
    numbers = NATURAL if names is None else names
    table = pa.table(
        {
            "id": [f"r{k:03d}" for k in range(len(true))],
            "features": pa.array(x.tolist(), pa.list_(pa.float32())),
            "label": [numbers.index(name) for name in true],
            "split": ["train"] * rows + ["val"] * val,
        }
    )
    return table if names is None else table.replace_schema_metadata({"classes": json.dumps(list(names))})


def weights(path: Path, order: tuple[str, ...] = NATURAL) -> Path:
    """A linear model that is right, with its outputs in an order of names."""
    rows = [NATURAL.index(name) for name in order]
    generator = torch.Generator().manual_seed(0)
    weight = (torch.eye(WIDTH) * 0.7 + 0.05 * torch.randn(WIDTH, WIDTH, generator=generator))[rows]
    torch.save({"head.weight": weight, "head.bias": torch.zeros(len(order))}, path)
    return path


@pytest.fixture
def text_sorted(tmp_path: Path) -> tuple[Path, Path]:
    """A manifest whose classes were sorted as text, and a checkpoint in natural order."""
    return write(table_of(TEXT), tmp_path / "m.parquet"), weights(tmp_path / "w.pt")


def right_scores(tmp_path: Path, *methods: str) -> pa.Table:
    """Scores of the same rows where manifest and checkpoint have one order."""
    same = write(table_of(NATURAL), tmp_path / "same.parquet")
    return score(job_of(same, weights(tmp_path / "same.pt"), None, model="linear", spec=GradSpec(methods)))


def test_another_order_is_said_with_the_flag_that_puts_it_right(text_sorted: tuple[Path, Path]) -> None:
    heard = Heard()
    score(job_of(*text_sorted, None, model="linear", listener=heard))
    (said,) = [w for w in heard.warnings if "another order" in w]
    assert "--class-map natural" in said
    assert json.dumps(list(NATURAL)) in said
    assert "18.2% of a class's rows" in said  # 0 and 1 stand where they did
    assert "100.0% in another order" in said
    wrong = [*NATURAL[3:], *NATURAL[:3]]
    score(job_of(*text_sorted, None, model="linear", class_map=wrong, listener=heard))
    assert "--class-map natural" in heard.warnings[-1]
    assert json.dumps(list(NATURAL)) in heard.warnings[-1]
    same = write(table_of(NATURAL), text_sorted[0].with_name("same.parquet"))
    score(job_of(same, text_sorted[1], None, model="linear", class_map=wrong, listener=heard))
    assert "leave --class-map out" in heard.warnings[-1]


@pytest.mark.parametrize("given", ["natural", list(NATURAL), {name: k for k, name in enumerate(NATURAL)}], ids=str)
def test_outputs_are_matched_by_name_and_scores_are_those_of_one_order(
    given: Any, text_sorted: tuple[Path, Path], tmp_path: Path
) -> None:
    methods = ("ip", "loss", "margin", "self-tracin", "exact")
    heard = Heard()
    job = job_of(*text_sorted, None, model="linear", class_map=given, spec=GradSpec(methods), listener=heard)
    found, expected = score(job), right_scores(tmp_path, *methods)
    for name in [n for n in expected.column_names if n.startswith(("score", "--method", "ip", "loss", "margin"))]:
        a, b = column(found, name), column(expected, name)
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), name
    best = [TEXT[k] for k in found.column("model_label").to_pylist()]
    assert best == [NATURAL[k] for k in expected.column("model_label").to_pylist()]
    assert not heard.warnings
    assert provenance(found.schema)["model_flags"]["class_map"] == list(NATURAL)


FILES = {
    "list.json": json.dumps(list(NATURAL)),
    "class_to_idx.json": json.dumps({name: k for k, name in enumerate(NATURAL)}),
    "id2label.json": json.dumps({str(k): name for k, name in enumerate(NATURAL)}),
    "names.txt": "\n".join(NATURAL) + "\n",
    "names.csv": "name\n" + "\n".join(NATURAL),
    "numbered.csv": "class,index\n" + "\n".join(f"{name},{k}" for k, name in enumerate(NATURAL)),
    "turned.csv": "index,name\n" + "\n".join(f"{k},{name}" for k, name in reversed(list(enumerate(NATURAL)))),
    "table.tsv": "name\tidx\n" + "\n".join(f"{name}\t{k}" for k, name in enumerate(NATURAL)),
    "no_suffix": json.dumps(list(NATURAL)),
}


@pytest.mark.parametrize("name", list(FILES))
def test_every_form_of_a_class_map_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name])
    assert read_class_map(str(tmp_path / name), TEXT) == NATURAL


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["a", "a"]', "two outputs"), ("[1.5]", "no list of names"), ('{"a": 0, "b": 2}', "from 0 on"),
        ("[", "cannot be read"), ("{}", "from 0 on"), ("version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
    ],
)  # fmt: skip
def test_what_says_no_order_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UsageError, match=said) as raised:
        read_class_map(str(tmp_path / "m.json"), TEXT)
    assert raised.value.where == str(tmp_path / "m.json")
    with pytest.raises(UsageError, match="no such class map"):
        read_class_map(str(tmp_path / "absent.json"), TEXT)
    (tmp_path / "two.csv").write_text("1,0\n0,1\n")
    with pytest.raises(UsageError, match="cannot be told"):
        read_class_map(str(tmp_path / "two.csv"), TEXT)


def test_labels_that_are_plain_numbers_are_matched_by_value(tmp_path: Path) -> None:
    plain = write(table_of(None), tmp_path / "plain.parquet")
    turned = weights(tmp_path / "turned.pt", TEXT)
    heard = Heard()
    found = score(job_of(plain, turned, None, model="linear", class_map=list(TEXT), listener=heard))
    assert same_scores(found, right_scores(tmp_path, "ip"), 1e-5)
    score(job_of(plain, turned, None, model="linear", listener=heard))
    assert any("--class-map FILE" in w and json.dumps(list(TEXT)) in w for w in heard.warnings)


def test_classes_that_the_manifest_lacks_come_last(tmp_path: Path) -> None:
    some = ("10", "3", "7")
    manifest = write(table_of(some, of=some), tmp_path / "some.parquet")
    checkpoint = weights(tmp_path / "all.pt")
    job = job_of(manifest, checkpoint, tmp_path / "store", model="linear", class_map=list(NATURAL))
    assert job.model.classes[:3] == some
    assert job.model.num_classes == WIDTH
    found = score(job)
    assert provenance(found.schema)["noise"]["utility"]["accuracy"] == 1.0
    assert all(v is None or v < 3 for v in found.column("model_label").to_pylist())
    edits = influence_cli.curate(
        found, manifest=str(manifest), action="trim", budget="5", output=str(tmp_path / "c.parquet")
    )
    assert edits.num_rows == 5


def test_a_class_map_that_does_not_fit_is_refused(text_sorted: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="are none of the checkpoint"):
        job_of(*text_sorted, None, model="linear", class_map=[*NATURAL[:-1], "ten"])
    with pytest.raises(UsageError, match="names 11 classes, and the model has 5 outputs"):
        job_of(*text_sorted, None, model="linear", class_map=list(NATURAL), num_classes=5)
    with pytest.raises(UsageError, match="does not say its classes"):
        job_of(*text_sorted, None, model="linear", class_map="checkpoint")
    plain = write(table_of(None), tmp_path / "plain.parquet")
    with pytest.raises(UsageError, match="no names to sort"):
        job_of(plain, text_sorted[1], None, model="linear", class_map="natural")
    train = ["--model", "linear", "--test", text_sorted[0], "--class-map", "natural", "-o", "RUN"]
    ran = call_cli("retrain", text_sorted[0], *train, cwd=tmp_path)
    assert ran.code == 2
    assert "--init" in ran.err


def test_the_order_is_part_of_what_results_are_stored_under(text_sorted: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, checkpoint = text_sorted
    store = tmp_path / "store"

    def to_compute(**more: Any) -> int:
        return influence_cli.plan(
            str(manifest), checkpoint=checkpoint, model="linear", store=str(store), **{"method": "ip", **more}
        )["rows_to_compute"]

    score(job_of(manifest, checkpoint, store, model="linear", class_map="natural"))
    (tmp_path / "n.json").write_text(json.dumps(list(NATURAL)))
    assert to_compute(class_map="natural") == to_compute(class_map=str(tmp_path / "n.json")) == 0
    assert to_compute() > 0
    score(job_of(manifest, checkpoint, store, model="linear"))
    assert to_compute(class_map=list(TEXT)) == 0  # the order as it stands is none


def test_training_begins_with_the_order_and_its_run_folder_remembers_it(
    text_sorted: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, checkpoint = text_sorted
    flags = ["--init", checkpoint, "--class-map", "natural", "--model", "linear", "--test", manifest]
    ran = call_cli("retrain", manifest, *flags, "--epochs", "1", "--lr", "1e-9", "-o", "RUN", cwd=tmp_path)
    assert ran.code == 0, ran.err
    metrics = json.loads((tmp_path / "RUN/metrics.json").read_text())
    assert metrics["arms"]["all rows"]["seeds"]["0"]["accuracy"] == 1.0
    heard = Heard()
    found = score(job_of(manifest, tmp_path / "RUN", None, listener=heard))
    assert not heard.warnings
    assert same_scores(found, right_scores(tmp_path, "ip"), 1e-4)
    convex = ["--optimizer", "lbfgs", "--weight-decay", "1e-2", "-o", "CONVEX"]
    ran = call_cli("retrain", manifest, *flags, *convex, cwd=tmp_path)
    assert ran.code == 0, ran.err
    metrics = json.loads((tmp_path / "CONVEX/metrics.json").read_text())
    assert metrics["arms"]["all rows"]["seeds"]["0"]["accuracy"] == 1.0


def test_a_table_finds_its_order_again_where_the_file_is_gone(text_sorted: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, checkpoint = text_sorted
    (tmp_path / "n.json").write_text(json.dumps(list(NATURAL)))
    flags = ["--model", "linear", "--checkpoint", checkpoint, "--class-map", "n.json", "--isolated"]
    assert call_cli("score", "--method", "ip", manifest, *flags, "-o", "s.parquet", cwd=tmp_path).code == 0
    assert call_cli("grads", "--method", "ip", manifest, *flags, "-o", "g.parquet", cwd=tmp_path).code == 0
    (tmp_path / "n.json").unlink()
    ran = call_cli("score", "g.parquet", "-o", "t.parquet", "--isolated", "-n", cwd=tmp_path)
    assert ran.code == 0, ran.err
    sentinel = ["--sentinel", "50%", "--checkpoint", checkpoint, "--isolated", "--json"]
    ran = call_cli("evaluate", "s.parquet", *sentinel, cwd=tmp_path)
    assert ran.code == 0, ran.err


def test_a_task_of_ones_own_has_an_order_too(text_sorted: tuple[Path, Path], tmp_path: Path) -> None:
    net = torch.nn.Linear(WIDTH, WIDTH)
    state = torch.load(text_sorted[1])
    net.load_state_dict({"weight": state["head.weight"], "bias": state["head.bias"]})
    task = influence_cli.Task(net)
    found = influence_cli.score(str(text_sorted[0]), method="ip", task=task, store=None, class_map="natural")
    assert same_scores(found, right_scores(tmp_path, "ip"), 1e-5)
    with pytest.raises(InfluenceError, match="11 outputs, and class_map names 12"):
        influence_cli.score(
            str(write(table_of(TEXT), tmp_path / "t.parquet")),
            method="ip",
            task=task,
            store=None,
            class_map=[*TEXT, "more"],
        )


# ---- what is said -------------------------------------------------------------------------------------------------


def drawn(matrix: np.ndarray[Any, Any], rows: int, seed: int = 0) -> tuple[Any, Any]:
    """Predictions and labels from a confusion matrix, rows alike for every class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % len(matrix)
    return np.array([rng.choice(len(matrix), p=matrix[y]) for y in labels]), labels


@pytest.mark.parametrize("classes", [2, 3, 10, 40])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_said_of_models_that_no_order_puts_right(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = max(20, classes * 4)
    labels = np.arange(n) % classes
    assert find_matching(rng.integers(0, classes, n), labels, classes) is None  # guesses
    assert find_matching(np.full(n, 1), labels, classes) is None  # one answer
    few = np.minimum(labels, 1)  # two answers, each to its own half
    assert find_matching(few, labels, classes) is None
    weak = np.full((classes, classes), 0.7 / classes) + 0.3 * np.eye(classes)
    assert find_matching(*drawn(weak, n, seed), classes) is None  # right, as far as it goes


@pytest.mark.parametrize("classes", [2, 3, 10, 40])
def test_an_order_is_found_where_it_is_far_better(classes: int) -> None:
    rng = np.random.default_rng(1)
    order = np.roll(np.arange(classes), 1)
    right = np.full((classes, classes), 0.15 / classes) + 0.85 * np.eye(classes)[order]
    found = find_matching(*drawn(right, max(60, 10 * classes)), classes)
    assert found is not None
    assert found.outputs == tuple(order.tolist())
    assert found.as_it_is < 0.2 < 0.7 < found.by_order
    unbalanced = np.sort(rng.integers(0, classes, 400) % max(2, classes // 2))
    found = find_matching(order[unbalanced], unbalanced, classes)
    assert found is not None
    assert found.outputs == tuple(order[: unbalanced.max() + 1].tolist())


def test_untrained_networks_are_not_taken_for_another_order() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, wrong = torch.tensor(pixels, dtype=torch.float32) / 16, 0
    for seed in range(20):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        with torch.no_grad():
            wrong += find_matching(net(x).argmax(1).numpy(), labels, 10) is not None
    assert wrong == 0


@pytest.mark.parametrize("names", [NATURAL, TEXT, None])
def test_the_map_that_is_advised_names_every_output_where_there_are_more_than_classes(
    names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    manifest, right = write(table_of(names), tmp_path / "m.parquet"), torch.load(weights(tmp_path / "w.pt"))
    background = torch.full((1, WIDTH), -0.5)
    more = {"head.weight": torch.cat([background, right["head.weight"]]), "head.bias": torch.zeros(WIDTH + 1)}
    torch.save(more, tmp_path / "w.pt")
    heard, how = Heard(), {"model": "linear", "num_classes": WIDTH + 1}
    score(job_of(manifest, tmp_path / "w.pt", None, listener=heard, **how))
    (said,) = [w for w in heard.warnings if "another order" in w]
    advised = json.loads(said[said.index("[") : said.index("]") + 1])
    assert advised[1:] == list(NATURAL)
    assert ("12 outputs are 1 more than the manifest's classes" in said) == (names is not None)
    assert "--class-map FILE" in said  # a word names the classes alone, which are fewer
    heard = Heard()
    table = score(job_of(manifest, tmp_path / "w.pt", None, listener=heard, class_map=advised, **how))
    assert heard.warnings == []
    assert np.isfinite(column(table)).all()
    assert any("train accuracy 100.0%" in note for note in heard.notes)
