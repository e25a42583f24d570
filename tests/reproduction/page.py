"""The page of an experiment: where it comes from, its tables, what they say, its figure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influence_cli.maths.arms import mean_interval, paired_difference
from tests.reproduction.commands import control_of
from tests.reproduction.parts import experiment

BLUE, ORANGE, GREY, RED, GREEN = "#0072b2", "#d55e00", "#8a8a8a", "#cc3311", "#009e73"


@dataclass(frozen=True)
class Page:
    """The body in Markdown, and a function that draws on a matplotlib figure."""

    body: str
    draw: Callable[[Any], None]
    figure: str  # what it shows, in a sentence
    size: tuple[float, float] = (9.0, 3.6)  # inches


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def mean(values: Sequence[float] | np.ndarray, scale: float = 1.0, digits: int = 2, sign: bool = False) -> str:
    """'0.91 ± 0.03': mean and 95% t interval over seeds, times ``scale``; '-' where there is no value."""
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        return "-"
    found = mean_interval(numbers)
    half = "" if found["half_width"] is None else f" ± {scale * found['half_width']:.{digits}f}"
    return f"{scale * float(found['mean'] or 0.0):{'+' if sign else ''}.{digits}f}{half}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """'0.91 (0.79 to 0.98)': mean, least and largest."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def difference(
    a: Sequence[float], b: Sequence[float], higher: bool = True, scale: float = 100.0, digits: int = 2
) -> str:
    """'+1.20 ± 0.40 better': a less b, paired over seeds, with its 95% t interval and what that says."""
    found = paired_difference(np.asarray(a, dtype=float), np.asarray(b, dtype=float), higher)
    half = "" if found["half_width"] is None else f" ± {scale * found['half_width']:.{digits}f}"
    return f"{scale * found['mean']:+.{digits}f}{half} {found['verdict']}"


def edits_table(
    of: Sequence[dict[str, Any]], named: dict[str, str], measures: dict[str, bool], first: str = "trim by"
) -> str:
    """A line for every edit and measure (name -> higher is better): the arm, over no edit, and over its random control.

    ``of`` has the arms of every seed, ``named`` the name of an arm by what it is called in the table.
    """
    rows = []
    for called, arm in named.items():
        for measure, higher in measures.items():
            values = [arms[arm][measure] for arms in of]
            base = [arms["no edit"][measure] for arms in of]
            random = [arms[control_of(arms, arm)][measure] for arms in of]
            rows.append((called, *([measure] if len(measures) > 1 else []), mean(values, 100),
                         difference(values, base, higher), difference(values, random, higher)))  # fmt: skip
    columns = ["measure"] if len(measures) > 1 else []
    return table((first, *columns, "test, %", "over no edit, points", "over a random edit of its size, points"), rows)


def write_page(name: str, found: dict[str, Any], sizes: dict[str, Any], results: Path, quick: bool) -> Path:
    """Write ``results``/NAME.md and NAME.png of what all parts of an experiment found; returns the page's path."""
    module = experiment(name)
    page: Page = module.page({part: result["found"] for part, result in found.items()}, sizes)
    commits = sorted({result["commit"] for result in found.values()})
    dates = sorted({result["date"] for result in found.values()})
    cpu = sum(result["cpu_seconds"] for result in found.values())
    command = f"python -m tests.reproduction {name}" + (" --quick" if quick else "")
    first = next(iter(found.values()))
    text = [
        f"# {name}: {module.TITLE}",
        "",
        table(
            ("what", ""),
            [
                ("command", f"`{command}`"),
                ("reproduces", module.PAPER),
                ("recorded", f"commit {', '.join(commits)}, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}"),
                ("sizes", ", ".join(f"{k} {shown(v)}" for k, v in sizes.items())),
                ("cost", f"{len(found)} parts, {cpu / 60:.1f} minutes of one processor, with other work beside it"),
            ],
        ),
        "",
        wrapped(page.body.strip()),
        "",
        f"![{page.figure}]({name}.png)",
        "",
        page.figure,
        "",
        f"The commands of one part ({first['part']}):",
        "",
        "```bash",
        *dict.fromkeys(first["commands"]),
        "```",
        "",
    ]
    (results / f"{name}.md").write_text("\n".join(text))
    draw(page, results / f"{name}.png")
    return results / f"{name}.md"


def wrapped(body: str) -> str:
    """The body with its paragraphs filled to 118 columns; tables and headings stay as they are."""
    blocks = body.split("\n\n")
    return "\n\n".join(
        b if b.startswith(("|", "#")) else textwrap.fill(b.replace("\n", " "), 118, break_on_hyphens=False)
        for b in blocks
    )


def shown(value: Any) -> str:
    """A size as text."""
    return " / ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def draw(page: Page, path: Path) -> None:
    """Write a page's figure as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    look: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
    with mpl.rc_context(look):
        figure = pyplot.figure(figsize=page.size, layout="constrained")
        page.draw(figure)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        pyplot.close(figure)
