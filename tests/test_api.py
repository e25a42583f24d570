"""The pipeline from Python: the commands' names, options and numbers, on paths, tables and frames."""

from __future__ import annotations

import doctest
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import influence_cli
from influence_cli import api
from influence_cli.cli.app import COMMANDS
from influence_cli.cli.settings.requests import options_of
from influence_cli.data.open import open_manifest
from influence_cli.errors import InfluenceError, ManifestError, UsageError
from influence_cli.options import GRADS, SCORE
from tests.cases import Heard, call_cli, column, digits_table, examples, feature_table, train_run, write

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``sample_data`` as the working folder."""
    shutil.copytree(ROOT / "sample_data", tmp_path / "s", ignore=shutil.ignore_patterns("out", ".influence"))
    monkeypatch.chdir(tmp_path / "s")
    return tmp_path / "s"


def test_the_module_documents_itself_truly(sample: Path) -> None:
    result = doctest.testmod(api, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.attempted > 12
    assert result.failed == 0


@pytest.mark.parametrize("document", ["README.md", "influence_cli/guide/python.md"])
def test_python_in_the_documents_is_true(document: str, sample: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert blocks
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    test = parser.get_doctest("\n".join(blocks), {}, document, document, 0)
    assert test.examples
    assert runner.run(test).failed == 0


def test_no_other_document_has_python_that_no_test_runs() -> None:
    others = [path for path in (ROOT / "influence_cli" / "guide").glob("*.md") if path.stem != "python"]
    assert [path.name for path in others if ">>> " in path.read_text()] == []


def test_every_command_with_rows_or_scores_has_a_function_of_its_name() -> None:
    names = {name for name, *_ in COMMANDS} - {"methods", "cache", "guide"}
    assert names <= set(influence_cli.__all__)
    for name in names:
        assert inspect.isfunction(getattr(influence_cli, name))
        assert inspect.getdoc(getattr(influence_cli, name))


def test_every_option_of_grads_and_score_that_is_not_about_output_is_there() -> None:
    shown = {"output", "format", "json", "dry_run", "config", "isolated", "show_settings", "quiet", "verbose", "debug"}
    ours = {
        "color",
        "manifest",
        "loss",
        "set",
        "no_store",
        "per_member",
        "per_target",
        "top",
        "combine",
        "tokens",
        "decomposition",
        "row_id",
        "report",
        "reasons",
        "explain",
    }  # said otherwise, or an argument of score
    flags = {o.name for command in (GRADS, SCORE) for o in options_of(command)} - shown - ours
    assert flags <= set(api.RunOptions.__annotations__)


def test_importing_the_package_imports_neither_torch_nor_pyarrow() -> None:
    code = "import sys, influence_cli; print(sorted({'torch', 'pyarrow', 'typer', 'numpy'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="nothing"):
        influence_cli.nothing  # noqa: B018
    assert set(influence_cli.__all__) <= set(dir(influence_cli))


def test_functions_and_commands_give_the_same_tables(tmp_path: Path, digits: Path, digits_run: Path) -> None:
    asked = (digits, "--checkpoint", digits_run, "--method", "ip", "--method", "loss", "--store", "store")
    for stage in ("grads", "score"):
        ran = call_cli(stage, *asked, "-o", f"{stage}.parquet", cwd=tmp_path)
        assert ran.code == 0, ran.err
        function = getattr(influence_cli, stage)
        made = function(digits, checkpoint=digits_run, method=["ip", "loss"], store=str(tmp_path / "store"))
        assert made.equals(pq.read_table(tmp_path / f"{stage}.parquet"))
    scores = influence_cli.score(digits, method="ip", checkpoint=digits_run, store=str(tmp_path / "store"))
    edits = influence_cli.curate(scores, action="relabel", budget=12, output=str(tmp_path / "api.parquet"))
    call_cli(
        "score",
        "--method",
        "ip",
        digits,
        "--checkpoint",
        digits_run,
        "--store",
        "store",
        "-o",
        "s.parquet",
        cwd=tmp_path,
    )
    asked = ("s.parquet", "--action", "relabel", "--budget", "12", "-o", "cli.parquet", "--edits", "e.parquet")
    assert call_cli("curate", *asked, cwd=tmp_path).code == 0
    assert edits.equals(pq.read_table(tmp_path / "e.parquet"))
    assert pq.read_table(tmp_path / "api.parquet").equals(pq.read_table(tmp_path / "cli.parquet"))
    told = influence_cli.evaluate(scores, budget=20, store=str(tmp_path / "store"))
    said = call_cli("evaluate", "s.parquet", "--budget", "20", "--store", "store", "--json", cwd=tmp_path).json
    assert told["detection"]["utility"] == said["detection"]["utility"]


# ---- rows in memory --------------------------------------------------------------------------------------------------


def frames() -> dict[str, object]:
    """Ways to hold a feature manifest in memory."""
    table = feature_table(examples())
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({name: table.column(name).to_pylist() for name in table.column_names})
    return {"arrow": table, "pandas": frame}


@pytest.mark.parametrize("kind", ["arrow", "pandas"])
def test_rows_in_memory_have_the_scores_and_the_keys_of_the_file(
    kind: str, tmp_path: Path, tabular: Path, tabular_run: Path
) -> None:
    rows, store = frames()[kind], str(tmp_path / "store")
    expected = influence_cli.score(tabular, method="ip", checkpoint=tabular_run, store=store)
    assert influence_cli.plan(rows, method="ip", checkpoint=tabular_run, store=store)["rows_to_compute"] == 0
    found = influence_cli.score(rows, method="ip", checkpoint=tabular_run, store=store)
    assert found.select(["id", "row_key", "score"]).equals(expected.select(["id", "row_key", "score"]))
    target = influence_cli.score(rows, method="ip", target=rows, checkpoint=tabular_run, store=store)
    assert target.column("score").equals(expected.column("score"))


def test_scores_of_rows_in_memory_are_curated_with_the_rows_at_hand(tmp_path: Path, tabular_run: Path) -> None:
    table = feature_table(examples())
    scores = influence_cli.score(table, method="ip", checkpoint=tabular_run, store=None)
    with pytest.raises(UsageError, match="does not say where its manifest is"):
        influence_cli.curate(scores)
    influence_cli.curate(scores, manifest=table, budget=4, output=str(tmp_path / "c.parquet"))
    kept = open_manifest(tmp_path / "c.parquet")
    assert len(kept.rows("train")) == 36
    other = table.set_column(2, "label", pa.array(np.roll(table.column("label").to_numpy(), 1)))
    with pytest.raises(ManifestError, match="has changed since it was scored"):
        influence_cli.curate(scores, manifest=other, budget=4)
    curated, run = str(tmp_path / "c.parquet"), str(tmp_path / "r")
    metrics = influence_cli.retrain(curated, run, against=table, model="mlp:4", epochs=1)
    assert metrics["arms"]["curated"]["train_rows"] == 36


def test_a_manifest_is_made_from_a_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"name": [f"n{k}" for k in range(40)], "a": np.arange(40.0), "b": np.arange(40.0) ** 2, "kind": ["x", "y"] * 20}
    )
    made = influence_cli.manifest(frame, str(tmp_path / "m.parquet"), label="kind", id="name", features=["b"])
    assert made.manifest.ids == frame["name"].tolist()
    assert made.manifest.classes == ("x", "y")
    assert [float(v[0]) for _, v in made.manifest.payloads(made.manifest.all_rows().index)] == frame["b"].tolist()
    with pytest.raises(ManifestError, match="no column 'absent'"):
        influence_cli.manifest(frame, str(tmp_path / "n.parquet"), label="absent")
    with pytest.raises(ManifestError, match="cannot make a manifest from a int"):
        influence_cli.manifest(3, str(tmp_path / "n.parquet"))


def test_paths_in_a_table_in_memory_count_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = digits_table(train=30, val=10, test=0)
    for k, image in enumerate(rows.column("image").to_pylist()):
        (tmp_path / f"{k}.png").write_bytes(image)
    table = rows.drop_columns(["image"]).append_column("path", pa.array([f"{k}.png" for k in range(40)]))
    run = train_run(write(digits_table(), tmp_path / "d.parquet"), tmp_path / "run")
    by_path = influence_cli.score(table, method="ip", checkpoint=run, store=None)
    by_bytes = influence_cli.score(rows, method="ip", checkpoint=run, store=None)
    assert np.array_equal(column(by_path), column(by_bytes))


# ---- what cannot be -------------------------------------------------------------------------------------------------


def test_mistakes_are_errors_of_the_library(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    with pytest.raises(TypeError, match="unknown option 'metod'"):
        influence_cli.score(tabular, method="ip", metod="ip")  # type: ignore[call-arg]
    with pytest.raises(InfluenceError, match="unknown method"):
        influence_cli.score(tabular, checkpoint=tabular_run, method="ipp")
    with pytest.raises(InfluenceError, match="no checkpoint"):
        influence_cli.score(tabular, method="ip")
    with pytest.raises(InfluenceError, match="no such file"):
        influence_cli.grads(tmp_path / "absent.parquet", method="ip", checkpoint=tabular_run)


def test_a_listener_hears_what_the_command_line_would_say(tmp_path: Path, tabular: Path, tabular_run: Path) -> None:
    heard = Heard()
    influence_cli.grads(tabular, method="ip", checkpoint=tabular_run, store=None, listener=heard)
    assert any(note.startswith("before scoring: train accuracy") for note in heard.notes)
    assert any(what.startswith("training rows") for what, _ in heard.spans)


def test_a_manifest_of_numbers_names_its_task(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(60.0), "price": np.arange(60.0) / 7})
    made = influence_cli.manifest(table, str(tmp_path / "m.parquet"), label="price", task="regression")
    assert made.manifest.task == "regression"
    with pytest.raises(ManifestError, match="no class number") as raised:
        influence_cli.manifest(table, str(tmp_path / "m.parquet"), label="price")
    assert "task='regression'" in str(raised.value)
