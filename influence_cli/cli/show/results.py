"""Results of ``evaluate`` and ``retrain``: JSON or tables, a page and a picture where they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_json, print_table, print_text_table
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.show.answers import next_of_evaluate, say_seconds, show_answer, show_next
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.report.origin import Origin

Figures = dict[str, Any]


def show_evaluation(
    result: ResultOptions, found: Figures, sources: tuple[str, ...], asked: Figures, origin: Origin | None = None
) -> None:
    """The answer, what a reader of the result alone could miss, the result, and the next command."""
    from influence_cli.report.answers import answer_of_evaluate

    out = terminal()
    show_answer(answer_of_evaluate(found))
    if "detection" in found and not found["detection"]:
        plant = "" if "canaries" in found else ", or plant canaries with `retrain --canaries 5%`"
        ways = f"name a column with --clean-label, or ids with --known-bad{plant}"
        out.note(f"no truth is known, so detection is left out: {ways}")
    for line in _without_scores(found):
        out.warn(line)
    for entry in found.get("wrong_labels", []):
        out.note(entry["said"])
    for entry in found.get("canaries", []):
        if entry["best_against_random"] is None:
            out.warn("no score column finds canaries better than chance")
    if "recompute" in found and found["same_checkpoint"]:
        out.warn("the checkpoint is the one that the table was scored at")
    put_figures(result, found, out.detail, origin)
    if (words := next_of_evaluate(found, sources, asked)) is not None:
        say_seconds(words, asked)
        show_next(*words)


def _without_scores(found: Figures) -> list[str]:
    """A warning for columns that have no score for some rows of known truth: their figures are of the others."""
    known, columns = found.get("known_rows", 0), dict[int, list[str]]()
    for name, figures in (found.get("detection") or {}).items():
        if figures["rows"] < known:
            columns.setdefault(figures["rows"], []).append(name)
    return [
        f"{', '.join(names)}: {rows:,} of {known:,} rows of known truth have a score, and the figures are of these"
        for rows, names in columns.items()
    ]


def put_figures(
    result: ResultOptions, found: Figures, note: Callable[[str], None], origin: Origin | None = None
) -> None:
    """Figures to wherever they are asked for; ``note`` takes the notes of tables."""
    nothing = f"there is nothing to draw yet: {result.plot} is not written" if found.get("partial") else None
    write_pages(result, found, nothing, origin)
    if result.output not in (None, "-"):
        from influence_cli.data.earlier import RESULT
        from influence_cli.data.outputs import write_output
        from influence_cli.store.files import as_json

        write_output(result.output, RESULT, as_json(found))
    elif result.output == "-" or result.wants_json:
        print_json(found)
    else:
        from influence_cli.report.tables import tables_of

        for k, table in enumerate(tables_of(found)):
            sys.stdout.write("\n" if k else "")
            print_text_table(table, sys.stdout, note)


def show_trainings(result: ResultOptions, described: Figures) -> None:
    """The trainings of each part, and how many are kept."""
    if result.wants_json:
        print_json(described)
        return
    rows = [
        [name, str(t["trainings"]), str(t["kept"]), str(t["trainings"] - t["kept"])]
        if "kept" in t
        else [name, f"at most {t['trainings_at_most']}", "-", "-"]
        for name, t in described["trainings"].items()
    ]
    print_table("", ["part", "trainings", "kept", "to run"], rows, sys.stdout)


def show_counterfactuals(
    result: ResultOptions, found: Figures, source: str, asked: Figures, origin: Origin | None = None
) -> None:
    """The result as a page, a picture, JSON or a table a part; the answer and what was run go to standard error."""
    from influence_cli.report.answers import answer_of_evaluate
    from influence_cli.report.counterfactual_tables import cautions, sentences

    out = terminal()
    show_answer(answer_of_evaluate(found))
    for text in sentences(found):
        out.note(text)
    for text in cautions(found):
        out.warn(text)
    put_figures(result, found, out.note, origin)
    if found["partial"]:
        out.note("the next command goes on from here")
        show_next("evaluate", source, *asked["command"])
    elif (words := next_of_evaluate(found, (source,), asked)) is not None:
        say_seconds(words, asked)
        show_next(*words)


def check_pages(result: ResultOptions) -> None:
    """Refuse (UsageError) another suffix than a page's or a picture's, and both where matplotlib is not there."""
    from influence_cli.report.panel import require_matplotlib

    for flag, path, suffix in (("--report", result.report, ".html"), ("--plot", result.plot, ".png")):
        if path and not path.endswith(suffix):
            raise UsageError(f"{flag} {path!r} is no {suffix} file", fix=f"{flag} FILE{suffix}")
    if result.report or result.plot:
        require_matplotlib()


def origin_of_scores(result: ResultOptions, command: str, sources: tuple[str, ...]) -> Origin | None:
    """Where a page about score tables comes from; None where no page is asked for."""
    if not result.report:
        return None
    from influence_cli.data.locators import origin_of
    from influence_cli.data.tables import read_table
    from influence_cli.report.origin import Origin, inputs_of

    inputs: list[tuple[str, str, str | None]] = []
    for source in sources:
        inputs.append(("Scores", source, None))
        if source != "-":  # it is read by now
            inputs += inputs_of(origin_of(read_table(source, ["id"]).schema, source))
    return Origin.now(command, list(dict.fromkeys(inputs)))


def write_pages(result: ResultOptions, figures: Figures, nothing: str | None, origin: Origin | None = None) -> None:
    """Write what is asked for; ``nothing`` is the warning where there is nothing to draw, None draws all the same."""
    out = terminal()
    if result.report:
        from influence_cli.report.page import write_page

        write_page(figures, result.report, origin)
        out.note(f"report written to {result.report}")
    if result.plot:
        from influence_cli.report.figures import panels_of, write_plot

        if nothing is not None and not panels_of(figures):
            out.warn(nothing)
            return
        write_plot(figures, result.plot)
        out.note(f"figures written to {result.plot}")


def pages_written(result: ResultOptions) -> list[str]:
    """The page and the picture that were asked for and written."""
    return [path for path in (result.report, result.plot) if path and Path(path).is_file()]


def say_failures(failures: list[str], again: str, code: int | None = None) -> None:
    """Say that trackers were not told, once all else is shown: an error, or a warning where ``code`` is 1 anyhow.

    Raises:
        UsageError: a tracker failed, and the result is no reason to exit with a code of its own.
    """
    for k, failure in enumerate(failures, 1):
        if code is None and k == len(failures):
            raise UsageError(failure, fix=f"the result is written; to log it, run the same command again: {again}")
        terminal().warn(failure)
