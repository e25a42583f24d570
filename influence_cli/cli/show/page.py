"""A result as a self-contained page and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.errors import UsageError


def check_pages(result: ResultOptions) -> None:
    """Refuse a page or a picture by another suffix, before any work.

    Raises:
        UsageError: it has another; or matplotlib is needed and not there.
    """
    from influence_cli.report.panel import require_matplotlib

    for flag, path, suffix in (("--report", result.report, ".html"), ("--plot", result.plot, ".png")):
        if path and not path.endswith(suffix):
            raise UsageError(f"{flag} {path!r} is no {suffix} file", fix=f"{flag} FILE{suffix}")
    if result.report or result.plot:
        require_matplotlib()


def write_pages(result: ResultOptions, figures: dict[str, Any], nothing: str | None, *title: str) -> None:
    """Write what is asked for; ``nothing`` is the warning where there is nothing to draw, None draws all the same."""
    out = terminal()
    if result.report:
        from influence_cli.report.page import write_page

        write_page(figures, Path(result.report), *title)
        out.note(f"report written to {result.report}")
    if result.plot:
        from influence_cli.report.figures import panels_of, write_plot

        if nothing is not None and not panels_of(figures):
            out.warn(nothing)
            return
        write_plot(figures, Path(result.plot))
        out.note(f"figures written to {result.plot}")
