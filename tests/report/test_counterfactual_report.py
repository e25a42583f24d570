"""The page and the pictures of retraining: they show what the result says, escaped, whole, and say what is partial.

python -m pytest tests/report/test_counterfactual_report.py
"""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from influence_cli.report.figures import panels_of, write_plot
from influence_cli.report.page import page
from influence_cli.report.panel import Panel
from influence_cli.report.tables import tables_of
from influence_cli.report.titles import title_of
from influence_cli.stages.evaluate.counterfactuals.leave_one_out import _noise
from tests.cases import call_cli
from tests.report.test_report import HOSTILE, Elements, holds_every_row
from tests.stages.evaluate.test_counterfactuals import scored_by_exact

PARTS = ["--lds", 12, "--removal", "5%,10%", "--loo", 6, "--brittleness", 3]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its scores, and the result, page and picture of all four parts; only read from."""
    folder = scored_by_exact(tmp_path_factory.mktemp("retraining")).parent
    ran = call_cli("evaluate", "scores.parquet", *PARTS, "--report", "r.html", "--plot", "p.png", "-o", "e.json",
                   cwd=folder)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "report written to r.html" in ran.err
    assert "figures written to p.png" in ran.err
    return folder


@pytest.fixture
def result(here: Path) -> dict[str, Any]:
    """The result, to change."""
    return json.loads((here / "e.json").read_text())


def drawn(panel: Panel) -> list[Axes]:
    """The axes that a panel draws on."""
    figure = Figure()
    panel.draw(figure.add_subplot())
    return figure.axes


def panel_of(result: dict[str, Any], title: str) -> list[Axes]:
    """The axes of the only panel whose title begins so."""
    (found,) = [p for p in panels_of(result) if p.title.startswith(title)]
    return drawn(found)


def xy(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()


def lines_of(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [xy(line) for line in axes.lines]


def by_name(axes: list[Axes], names: list[str]) -> dict[str, Axes]:
    """Small multiples by the column that their title begins with."""
    found = {n: [a for a in axes if a.get_title(loc="left").split("  ")[0] == n] for n in names}
    assert all(len(some) == 1 for some in found.values())
    assert len(axes) == len(names)
    return {n: some[0] for n, some in found.items()}


def ends(band: Any) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in band.get_paths()[0].vertices}


# -- what is drawn is what the result says --------------------------------------------------------------------------


def test_lds_is_drawn_with_its_interval_the_chance_band_and_the_ceiling(result: dict[str, Any]) -> None:
    part = result["lds"]
    (axes,) = panel_of(result, "Linear datamodeling score")
    places = {text.get_text(): y for text, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)}
    assert set(places) == set(part["columns"]) == {"exact", "ip_utility", "random"}
    for name, column in part["columns"].items():
        assert ([column["lds"]], [places[name]]) in lines_of(axes)
        assert (column["interval"], [places[name]] * 2) in lines_of(axes)
    assert places["exact"] == max(places.values())  # the best stands on top
    (band,) = axes.patches
    box = band.get_extents().transformed(axes.transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((-part["chance"], part["chance"]))
    assert ([part["ceiling"]] * 2, [0, 1]) in lines_of(axes)
    part["ceiling"], part["chance"] = None, None  # one seed, one subset: nothing to mark
    (axes,) = panel_of(result, "Linear datamodeling score")
    assert len(axes.patches) == 0
    assert not [x for x, y in lines_of(axes) if y == [0, 1] and x != [0.0, 0.0]]


def test_predicted_and_measured_losses_of_subsets_are_those_of_the_lds(result: dict[str, Any]) -> None:
    from scipy.stats import spearmanr

    part = result["lds"]
    assert len(part["measured"]) == part["subsets"] == 12
    assert np.mean(part["measured"]) == pytest.approx(part["phi_mean"])
    small = by_name(panel_of(result, "Target loss after training on a subset"), ["exact", "ip_utility"])
    for name, axes in small.items():
        x, y = lines_of(axes)[0]
        assert (x, y) == (part["columns"][name]["predicted"], part["measured"])
        assert spearmanr(x, y).statistic == pytest.approx(part["columns"][name]["lds"])
        assert f"LDS {part['columns'][name]['lds']:.2f}" in axes.get_title(loc="left")


@pytest.mark.parametrize("metric", ["target_loss", "test_accuracy"])
def test_removal_curves_start_at_nothing_and_stand_over_random_rows(result: dict[str, Any], metric: str) -> None:
    part = result["removal"]
    sizes = [0.0, 0.05, 0.1]
    what = metric.replace("target", "mean target").replace("_", " ")
    (axes,) = panel_of(result, f"Training without the rows of lowest score: {what}")
    nothing = part["nothing"][metric]["mean"]

    def curve(means: dict[str, Any]) -> tuple[list[float], list[float]]:
        return sizes, [nothing, *(means[k][metric]["mean"] for k in ("10", "20"))]

    columns = {n: {k: f["mean"] for k, f in c.items()} for n, c in part["columns"].items()}
    for name in columns:
        assert curve(columns[name]) in lines_of(axes)
    assert curve(part["random"]) in lines_of(axes)
    assert [t.get_text() for t in axes.get_legend().get_texts()][-1].startswith("random rows, 5 draws")  # type: ignore[union-attr]
    (band,) = axes.collections
    for k, size in (("10", 0.05), ("20", 0.1)):
        m = part["random"][k][metric]
        assert {(size, m["mean"] - m["half_width"]), (size, m["mean"] + m["half_width"])} <= ends(band)
    for name, axes in by_name(panel_of(result, f"Against random rows and rows of the same classes: {what}"),
                              list(columns)).items():  # fmt: skip
        matched = {k: f["class_matched"] for k, f in part["columns"][name].items()}
        assert curve(columns[name]) in lines_of(axes)
        assert curve(matched) in lines_of(axes)
        m = matched["20"][metric]
        assert (0.1, m["mean"] - m["half_width"]) in ends(axes.collections[1])
        found, over = part["columns"][name]["20"], part["columns"][name]["20"]["over_class_matched"][metric]["mean"]
        assert found["mean"][metric]["mean"] - m["mean"] == pytest.approx(over)


def test_where_there_are_no_test_rows_accuracy_is_that_of_the_target(result: dict[str, Any]) -> None:
    for part in (result["removal"]["nothing"], *result["removal"]["random"].values()):
        del part["test_loss"], part["test_accuracy"]
    for column in result["removal"]["columns"].values():
        for found in column.values():
            for means in found.values():
                del means["test_loss"], means["test_accuracy"]
    (axes,) = panel_of(result, "Training without the rows of lowest score: target accuracy")
    assert axes.get_ylabel() == "target accuracy"


def test_leave_one_out_is_drawn_against_slope_one_and_the_noise_floor(result: dict[str, Any]) -> None:
    part = result["leave_one_out"]
    noise = _noise(np.array([0.1, 0.2, 0.4]), np.array([[0.1, 0.3, 0.2]]))
    for floor in (0.0, noise["floor"]):
        part["floor"] = floor
        small = by_name(panel_of(result, "Leaving one row out"), ["exact", "ip_utility"])
        for name, axes in small.items():
            x, y = lines_of(axes)[0]
            assert y == list(part["changes"].values())
            assert x == [part["columns"][name]["predicted"][i] for i in part["changes"]]
            (diagonal,) = [line for line in axes.lines if hasattr(line, "get_slope") and line.get_slope() == 1.0]
            assert diagonal.get_xy1() == (0.0, 0.0)  # type: ignore[attr-defined]
            slope = np.polyfit(x, y, 1)[0]
            assert slope == pytest.approx(part["columns"][name]["slope"], rel=1e-6)
            bands = [p.get_extents().transformed(axes.transData.inverted()) for p in axes.patches]
            assert [(b.y0, b.y1) for b in bands] == ([] if not floor else [pytest.approx((-floor, floor))])


def test_brittleness_is_the_share_that_has_flipped_by_each_size(result: dict[str, Any]) -> None:
    part = result["brittleness"]
    (axes,) = panel_of(result, "Brittleness")
    for column in part["columns"].values():
        shares = [column["flipped"][str(k)] for k in part["removed_rows"]]
        assert ([1, 2, 4, 8, 10], shares) in lines_of(axes)
    assert len(axes.lines) == len(part["columns"]) == 2


def test_a_column_has_one_colour_and_its_method_the_same(result: dict[str, Any]) -> None:
    colours: dict[str, set[Any]] = {}
    for title in ("Training without the rows of lowest score: mean", "Brittleness"):
        (axes,) = panel_of(result, title)
        legend = axes.get_legend()
        assert legend is not None
        for handle, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
            colours.setdefault(text.get_text().split("  ")[0], set()).add(handle.get_color())
    for name, axes in by_name(panel_of(result, "Leaving one row out"), ["exact", "ip_utility"]).items():
        colours[name].add(axes.lines[0].get_color())
    assert colours["ip_utility"] == colours["ip"]
    assert all(len(some) == 1 for some in colours.values())
    assert colours["exact"] != colours["ip"]


# -- files ----------------------------------------------------------------------------------------------------------


def test_page_and_picture_are_whole_and_hold_every_table_and_panel(here: Path, result: dict[str, Any]) -> None:
    text = (here / "r.html").read_text()
    body, foot = text.split("<footer>")
    assert (
        body == page(result, title_of(result, "manifest.parquet")).split("</body>")[0]
    )  # the foot says when, and from what
    assert "influence evaluate scores.parquet --lds 12" in foot
    assert text.rstrip().endswith("</html>")
    tables = tables_of(result)
    assert [t.title.split(":")[0] for t in tables] == ["LDS", "removal", "leave-one-out", "brittleness"]
    for table in tables:
        assert table.rows
    assert holds_every_row(text, result)
    assert text.count("<svg") == len(panels_of(result)) == 8
    assert "deterministic" in text
    assert 'class="caution"' not in text
    assert "partial" not in text.lower()
    with Image.open(here / "p.png") as image:
        image.load()
        assert image.format == "PNG"
        shades = image.convert("RGB").getcolors(1 << 24)
    assert len(shades) > 50
    assert not [p.name for p in here.iterdir() if p.suffix in (".tmp", ".part")]


def test_the_same_result_gives_the_same_bytes(here: Path, tmp_path: Path, result: dict[str, Any]) -> None:
    write_plot(result, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes() == (here / "p.png").read_bytes()
    assert page(result) == page(result)


def test_hostile_names_are_escaped_and_nothing_is_fetched(result: dict[str, Any]) -> None:
    named = json.loads(json.dumps(result).replace('"exact"', json.dumps(HOSTILE)))
    named["lds"]["left_out"][HOSTILE] = HOSTILE
    named["refit"]["model"] = HOSTILE
    text = page(named, title=HOSTILE)
    elements = Elements(text)
    assert not {"script", "img", "link", "iframe", "object", "embed", "base", "form"} & set(elements.tags)
    assert text.count("&lt;script&gt;") > 4
    links = [value for name, value in elements.attributes if name in ("href", "xlink:href")]
    assert all(value is not None and value.startswith("#") for value in links)
    assert elements.tags.count("svg") == 8


# -- partial runs ---------------------------------------------------------------------------------------------------


def test_a_run_stopped_before_anything_is_done_says_so_on_its_page(here: Path, tmp_path: Path) -> None:
    places = ["--report", tmp_path / "r.html", "--plot", tmp_path / "p.png", "-o", tmp_path / "e.json"]
    asked = ["scores.parquet", *PARTS, "--max-minutes", 0, "--store", tmp_path / "store"]
    ran = call_cli("evaluate", *asked, *places, cwd=here)
    assert ran.code == 0, ran.err
    text = (tmp_path / "r.html").read_text()
    assert '<p class="caution">Partial: figures and intervals are from what is done' in text
    assert "0 of " in text
    assert "<svg" not in text
    assert "<h2>Figures" not in text
    assert "there is nothing to draw yet" in ran.err
    assert not (tmp_path / "p.png").exists()
    assert json.loads((tmp_path / "e.json").read_text())["partial"] is True


def test_a_partial_part_says_so_above_its_table_and_on_its_figure(result: dict[str, Any]) -> None:
    result["partial"] = result["lds"]["partial"] = result["removal"]["partial"] = True
    result["lds"]["subsets_asked"] = 40
    for column in result["removal"]["columns"].values():
        del column["20"]  # not trained yet
    result["removal"]["random"]["20"] = None
    titles = [p.title for p in panels_of(result)]
    assert "Linear datamodeling score, 95% intervals (partial, 12 of 40 subsets)" in titles
    assert sum("(partial" in t for t in titles) == 6
    (axes,) = panel_of(result, "Training without the rows of lowest score: mean")
    assert {tuple(x) for x, _ in lines_of(axes)} == {(0.0, 0.05)}
    text = page(result)
    assert "12 of 40 subsets" in text
    assert "; PARTIAL" in text
    assert 'class="caution"' in text


def test_changes_below_the_noise_are_said_on_the_page(result: dict[str, Any]) -> None:
    for other in ("lds", "removal", "brittleness"):  # each of whose figures takes longer than what is looked at
        del result[other]
    sentence = "Leave-one-out is not resolvable here"
    assert sentence not in page(result)
    result["leave_one_out"].update(resolvable=False, floor=0.5)
    assert sentence in page(result)


def test_parts_that_are_empty_or_alone_still_make_a_page(result: dict[str, Any]) -> None:
    for name in ("lds", "removal", "leave_one_out", "brittleness"):
        alone = {
            k: v for k, v in result.items() if k not in {"lds", "removal", "leave_one_out", "brittleness"} - {name}
        }
        assert page(alone).count("<h2>") == 2
    many = copy.deepcopy(result)
    for k in range(14):
        many["lds"]["columns"][f"column number {k}"] = many["lds"]["columns"]["ip_utility"]
        many["removal"]["columns"][f"column number {k}"] = many["removal"]["columns"]["ip_utility"]
    assert page(many).count("<svg") == 8
    assert len(panel_of(many, "Target loss after training on a subset")) == 9  # as many as can be read
    for column in result["lds"]["columns"].values():
        column.update(lds=None, interval=None)
    result["brittleness"].update(columns={}, queries=0)
    result["leave_one_out"].update(changes={}, rows=0)
    assert page(result).count("<svg") == 4


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--report", "r.pdf"], "is no .html file"),
        (["--plot", "-"], "is no .png file"),
        (["--report", "r.html", "-o", "r.html"], "two outputs have the same name"),
        (["--plot", "gone/../scores.parquet/p.png"], "cannot"),
        (["--report", "r.html", "--stability"], "--stability and retraining are two questions"),
        (["--plot", "p.png", "--against", "scores.parquet"], "--against and retraining are two questions"),
    ],
)
def test_outputs_are_checked_before_any_training(here: Path, tmp_path: Path, flags: list[str], said: str) -> None:
    ran = call_cli("evaluate", "scores.parquet", "--lds", 3, "--store", tmp_path / "store", *flags, cwd=here)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert not (tmp_path / "store").exists()


def test_without_matplotlib_nothing_is_trained_for_a_page(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    asked = ["scores.parquet", "--lds", 3, "--store", tmp_path / "store", "--report", tmp_path / "r.html"]
    ran = call_cli("evaluate", *asked, cwd=here)
    assert ran.code == 2
    assert "pip install 'influence-cli[report]'" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_writes_no_page(here: Path, tmp_path: Path) -> None:
    asked = ["scores.parquet", "--lds", 3, "--store", tmp_path / "store", "--report", tmp_path / "r.html"]
    ran = call_cli("evaluate", *asked, "-n", cwd=here)
    assert ran.code == 0, ran.err
    assert ran.json["trainings"]["lds"]["trainings"] == 3
    assert list(tmp_path.iterdir()) == []
