"""A panel as an SVG element for a page: as wide as a phone, its text and colours those of the page, said in words.

Text stays text, at its own size: a figure is never drawn smaller than it is, but scrolls within its frame.  The legend
is taken out and becomes a list of the page.  Colours become variables of the page, which has two sets of them.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from influence_cli.report.panel import COLOURS, GREY, SMALLEST, STYLE, Panel, small_height

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
PHONE = 3.4  # inches that a phone has room for: 326 px
LOWEST = 3.2  # inches of a figure that is as high as one likes
MANY = 2  # small axes in a row at that width
PX = 96  # of an inch on a page
LETTER = 0.075  # inches of a letter of an axis' label, of the widest font that is likely
_ON_PAGE: dict[str, Any] = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
}
_VARIABLES = {  # colours of figures -> variables of the page's style
    "#000000": "--ink", "#ffffff": "--paper", "#e6e6e6": "--line", "#d8d8d8": "--line", GREY: "--grey",
    **{colour.lower(): f"--c{k}" for k, colour in enumerate(COLOURS) if colour != "#000000"},
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A line of a legend: its label, and how it is drawn: a line of a style, a mark, their colour."""

    label: str
    colour: str  # a CSS colour
    line: str  # solid, dashed, dotted, or none
    mark: str  # a character, or nothing


@dataclass(frozen=True)
class Drawn:
    """A figure of a page."""

    title: str
    svg: str
    legend: list[Key]
    width: float  # inches


def drawn(panel: Panel, number: int) -> Drawn:
    """A panel as a figure; ``number`` tells its names from those of the other figures of the page."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    width = max(PHONE, panel.least_width)
    height = panel.height if panel.tall else min(panel.height, LOWEST)
    if panel.least_width:  # as high as wide: its cells are squares
        height = min(height, width)
    if panel.many:
        height = small_height(panel.many, MANY)
    sink = io.BytesIO()
    with mpl.rc_context(dict[Any, Any]({**STYLE, **_ON_PAGE})), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font lacks
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        panel.draw(axes)
        keys = _taken_keys(figure)
        _fold_labels(figure, width)
        said = _described(figure, keys)
        figure.savefig(sink, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return Drawn(panel.title, _inline(sink.getvalue(), panel.title, said, number, width), keys, width)


def _taken_keys(figure: Figure) -> list[Key]:
    """The legends of a figure, which are taken out of it."""
    marks = {"o": "●", ".": "•", "P": "✚"}
    lines = {"-": "solid", "--": "dashed", ":": "dotted"}
    found: list[Key] = []
    for axes in figure.axes:
        legend = axes.get_legend()
        if legend is None:
            continue
        for handle, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
            mark = marks.get(str(handle.get_marker()), "")
            if mark == "●" and _hex(handle.get_markerfacecolor()) == "#ffffff":
                mark = "○"
            line = lines.get(str(handle.get_linestyle()), "none")
            found.append(Key(text.get_text(), _variable(_hex(handle.get_color())), line, mark))
        legend.remove()
    return found


def _hex(colour: Any) -> str:
    from matplotlib.colors import to_hex

    return to_hex(colour)


def _variable(colour: str) -> str:
    """The page's variable for a colour, or the colour itself."""
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour


def _fold_labels(figure: Figure, width: float) -> None:
    """Labels of axes that are longer than the figure is wide go on on a further line."""
    letters = int(0.7 * width / LETTER)  # axes are narrower than the figure, and labels stand in their middle
    for axes in figure.axes:
        axes.set_xlabel(textwrap.fill(axes.get_xlabel(), letters))
        axes.set_ylabel(textwrap.fill(axes.get_ylabel(), letters))
        if title := axes.get_title(loc="left"):  # of small axes: the name, and on its own line the figure
            axes.set_title(title.replace("  ", "\n"), loc="left", fontsize=SMALLEST)
    if figure.get_supxlabel():
        figure.supxlabel(textwrap.fill(figure.get_supxlabel(), letters), fontsize=STYLE["font.size"])


def _described(figure: Figure, keys: list[Key]) -> str:
    """What a figure shows, in a sentence for who does not see it."""
    first = figure.axes[0]
    across, up = (figure.get_supxlabel() or first.get_xlabel()), (figure.get_supylabel() or first.get_ylabel())
    said = [f"across: {across}" if across else "", f"up: {up}" if up else ""]
    said.append(f"shown: {'; '.join(key.label for key in keys)}" if keys else "")
    said.append(f"parts: {'; '.join(_names(figure.axes))}" if _names(figure.axes) else "")
    return " ".join(". ".join(filter(None, said)).split()) + "."


def _names(axes: list[Axes]) -> list[str]:
    """What stands above small axes, or beside the lines of one."""
    if len(axes) > 1:
        return [a.get_title(loc="left") for a in axes]
    labels = [text.get_text() for text in axes[0].get_yticklabels()]
    return [] if all(re.fullmatch(r"[−\-\d.,%e+ ]*", text) for text in labels) else labels


def _inline(made: bytes, title: str, said: str, number: int, width: float) -> str:
    """Matplotlib's SVG as an element of a page: with a role and words, names of its own, and the page's colours."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(made)
    used = set(re.findall(r"#([A-Za-z_][\w.-]*)", " ".join(v for e in root.iter() for v in _references(e))))
    for element in root.iter():
        if element.get("id") in used:
            element.set("id", f"f{number}-{element.get('id')}")
        else:
            element.attrib.pop("id", None)
        for name, value in list(element.attrib.items()):
            if name == f"{{{XLINK}}}href" or name == "clip-path":
                element.set(name, re.sub(r"#(?=[A-Za-z_])", f"#f{number}-", value))
            elif name in ("style", "fill", "stroke"):
                element.set(name, _restyled(value))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for tag in ("metadata",):
        for found in root.findall(f"{{{SVG}}}{tag}"):
            root.remove(found)
    for k, (tag, text) in enumerate((("title", title), ("desc", said))):
        words = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"f{number}-{tag}"})
        words.text = text
        root.insert(k, words)
    root.set("role", "img")
    root.set("aria-labelledby", f"f{number}-title f{number}-desc")
    root.set("style", f"min-width: {round(width * PX)}px")
    return ElementTree.tostring(root, encoding="unicode")


def _references(element: ElementTree.Element) -> list[str]:
    return [v for n, v in element.attrib.items() if n == f"{{{XLINK}}}href" or n == "clip-path"]


def _restyled(style: str) -> str:
    """A style without a font's names, which are the page's, and with the page's colours."""
    style = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", style)
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match[0]), style)
