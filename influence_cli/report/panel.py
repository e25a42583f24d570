"""A panel, what all panels look like, and how they become SVG or PNG by matplotlib."""

from __future__ import annotations

import importlib.util
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from influence_cli.data.earlier import GENERATOR
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Dots = tuple[str, list[float], list[float] | None, str]
# Okabe and Ito's colours: told apart by every kind of colour vision; the first is for the first column
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6BB1", "#A6761D", "#66A61E")
GREY = "#888888"
MOST_CURVES = 10  # more cannot be told apart; the best are drawn
MOST_ACROSS = 3  # small axes in a row of a panel
NARROW = 4.5  # inches: no room for more than two in a row
SMALLEST = 8.0  # points of the smallest text: 10.7 px on a page
LONGEST = 30  # characters of a name
RANDOM = "random"
STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a column's name is no formula
    "svg.hashsalt": "influence",  # the same result, the same bytes
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Panel:
    """A titled picture; ``width`` and ``height`` in inches; ``many``: how many ``multiples`` of its axes it draws on.

    ``least_width`` is that of the whole on a page where its content decides it, and ``tall`` keeps its height there.
    """

    title: str
    draw: Callable[[Axes], None]
    width: float = 5.2
    height: float = 4.2
    many: int = 0
    least_width: float = 0.0
    tall: bool = False


def require_matplotlib() -> None:
    """Stop (UsageError) before any work where no figure can be drawn: matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("figures need matplotlib, which is not installed", fix="pip install 'influence-cli[report]'")


def legend(axes: Axes, lines: list[tuple[str, str, str]]) -> None:
    """A legend of (label, colour, style) beside the axes: curves leave no corner free."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, ls=style, lw=1.8, label=label) for label, colour, style in lines]
    place_legend(axes, handles)


def place_legend(axes: Axes, handles: list[Line2D]) -> None:
    """Put the labels of ``handles`` beside the axes."""
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, borderaxespad=0.0)


def named_dots(axes: Axes, rows: Sequence[Dots], least: float, xlabel: str, alpha: float = 1.0) -> None:
    """A line for each of (name, values, interval if there is one, colour), the first on top; x from ``least`` to 1."""
    places = range(len(rows))[::-1]
    for place, (_, values, interval, colour) in zip(places, rows, strict=True):
        if interval is not None:
            axes.plot(interval, [place, place], color=colour, lw=2.0, solid_capstyle="round")
        axes.plot(values, [place] * len(values), "o", color=colour, ms=5, alpha=alpha)
    axes.set_yticks(places, [short(name) for name, *_ in rows])
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlim=(least, 1.02), xlabel=xlabel)


def dots_height(count: int) -> float:
    """The height of a panel of so many lines of ``named_dots``, in inches."""
    return max(2.2, 0.9 + 0.3 * count)


def multiples(axes: Axes, count: int, xlabel: str, ylabel: str) -> list[Axes]:
    """So many small axes in place of ``axes``, y shared, under its title and with labels for all."""
    figure, title = axes.figure, axes.get_title(loc="left")
    axes.remove()
    if title:
        figure.suptitle(title, x=0.02, ha="left", fontsize=STYLE["axes.titlesize"], fontweight="bold")
    figure.supxlabel(xlabel, fontsize=STYLE["font.size"])
    figure.supylabel(ylabel, fontsize=STYLE["font.size"])
    across = across_of(count, MOST_ACROSS if figure.bbox.width / figure.dpi > NARROW else 2)
    made: list[Axes] = []
    for k in range(count):
        small = figure.add_subplot(math.ceil(count / across), across, k + 1, sharey=made[0] if made else None)
        small.tick_params(labelsize=SMALLEST, labelleft=k % across == 0)
        small.xaxis.get_offset_text().set_fontsize(SMALLEST)
        small.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")  # no power of ten where the name stands
        made.append(small)
    return made


def across_of(count: int, most: int = MOST_ACROSS) -> int:
    """How many small axes stand in a row, of at most so many."""
    return min(2, most) if count == 4 else min(count, most)


def small_height(count: int, most: int = MOST_ACROSS) -> float:
    """The height of a panel of so many small axes, at most ``most`` in a row, in inches."""
    rows = math.ceil(count / across_of(count, most))
    return 0.9 + (2.6 if rows == 1 else 1.9 * rows)


def short(name: str, longest: int = LONGEST) -> str:
    """A name as a label: on one line, and not too long."""
    text = "".join(c if c.isprintable() else "?" for c in name)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _figure(panels: list[Panel], across: int) -> Figure:
    from matplotlib.figure import Figure

    down = math.ceil(len(panels) / across)
    width = across * (max(p.width for p in panels) + 2.6)
    height = sum(max(p.height for p in panels[k * across : (k + 1) * across]) + 0.5 for k in range(down))
    figure = Figure(figsize=(width, height), layout="constrained")
    grid, apart = figure.add_gridspec(down, across), any(p.many for p in panels)  # apart: no margin is shared
    for k, panel in enumerate(panels):
        place = grid[k // across, k % across]
        axes = figure.add_subfigure(place).add_subplot() if apart else figure.add_subplot(place)
        axes.set_title(panel.title, loc="left", fontweight="bold")
        panel.draw(axes)
    return figure


def rendered(panels: list[Panel], across: int, kind: str) -> bytes:
    """Panels as the bytes of a file, ``across`` in a row; the same panels give the same bytes."""
    import matplotlib as mpl

    sink = io.BytesIO()
    with mpl.rc_context(dict[Any, Any](STYLE)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks
        figure = _figure(panels, across)
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type")) if kind == "svg" else {"Software": GENERATOR}
        figure.savefig(sink, format=kind, metadata=empty, dpi=130)
    return sink.getvalue()
