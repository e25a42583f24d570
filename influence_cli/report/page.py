"""The page of a result of ``evaluate`` or ``retrain``: question, answer, tables with their verdicts, figures, origin.

One self-contained file from a template: text escaped, figures as inline SVG, no script, nothing fetched.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from influence_cli.data.earlier import GENERATOR, PAGE
from influence_cli.data.outputs import write_output
from influence_cli.errors import UsageError
from influence_cli.report.answers import answer_of_evaluate, answer_of_retrain
from influence_cli.report.counterfactual_tables import cautions, sentences
from influence_cli.report.duplicates import answer as answer_of_duplicates
from influence_cli.report.figures import panels_of
from influence_cli.report.origin import Origin
from influence_cli.report.svg import Drawn, drawn
from influence_cli.report.tables import tables_of
from influence_cli.report.text_table import Judged, TextTable
from influence_cli.report.titles import title_of

LOOKS = {"better": "good", "improvement": "good", "worse": "bad", "deterioration": "bad"}  # of verdicts
UNSEEN = {k: "\ufffd" for k in (*range(32), 127, *range(0xD800, 0xE000)) if k not in (9, 10)}


def require_jinja() -> None:
    """Stop (UsageError) before any work where no page can be made: jinja2 is not installed."""
    if importlib.util.find_spec("jinja2") is None:
        raise UsageError("a page needs jinja2, which is not installed", fix="pip install 'influence-cli[report]'")


def environment() -> Any:
    """How templates are filled in: every text is escaped, and a name that is missing is an error.

    Characters that a page cannot hold (NUL and other controls, half a surrogate pair) are shown as one that says so.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("influence_cli.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        finalize=lambda v: v.translate(UNSEEN) if isinstance(v, str) and not isinstance(v, Markup) else v,
    )  # fmt: skip
    made.filters["sentence"] = _sentence
    return made


def page(result: dict[str, Any], title: str | None = None, origin: Origin | None = None) -> str:
    """The page of a result of ``evaluate`` or ``retrain``; the same result and origin give the same bytes.

    ``title`` is the question that was asked, where it is not the one that the result answers.
    """
    tables = [_laid_out(table, f"t{k}") for k, table in enumerate(tables_of(result), 1)]
    figures = [{**vars(d), "broad": _broad(d)} for d in map(drawn, panels_of(result), range(1, 10_000))]
    contents = [(table["anchor"], table["title"]) for table in tables]
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            generator=GENERATOR,
            title=title or title_of(result, None if origin is None else origin.place("Manifest")),
            answer=_answer(result),
            summary=_summary(result),
            cautions=[*(cautions(result) if "refit" in result else []), *result.get("cautions", [])],
            contents=[*contents, *([("figures", "Figures")] if figures else [])],
            tables=tables,
            figures=figures,
            origin=origin,
        )
    )


def write_page(result: dict[str, Any], path: str | Path, origin: Origin | None = None) -> None:
    """Write the page whole or not at all."""
    write_output(path, PAGE, page(result, origin=origin).encode())


def _answer(result: dict[str, Any]) -> str | None:
    """What was found, in a sentence; None where nothing is said yet."""
    if "arms" in result:
        return answer_of_retrain(result)
    return answer_of_duplicates(result["duplicates"]) if "duplicates" in result else answer_of_evaluate(result)


def _broad(figure: Drawn) -> bool:
    return figure.width > 4.5


def _laid_out(table: TextTable, anchor: str) -> dict[str, Any]:
    """A table for the template: the column of verdicts second, where it is seen on every screen."""
    order = list(range(len(table.header)))
    if table.verdict is not None:
        order.insert(1, order.pop(table.verdict))
    rows = [[row[k] for k in order] for row in table.rows]
    return {
        "anchor": anchor,
        "title": table.title,
        "header": [table.header[k] for k in order],
        "rows": [[_judged(c) if k == 1 and table.verdict is not None else c for k, c in enumerate(r)] for r in rows],
        "notes": table.notes,
        "verdict": None if table.verdict is None else 1,
    }


def _judged(cell: str) -> dict[str, str]:
    """A verdict, its figure, and how it looks."""
    figure, said = (cell.figure, cell.verdict) if isinstance(cell, Judged) else ("", cell)
    if said == "-":
        figure, said = "-", ""
    return {"figure": figure, "said": said, "look": LOOKS.get(said.split(" (")[0], "")}


def _summary(result: dict[str, Any]) -> list[str]:
    """What stands below the answer, in sentences."""
    lines = [f"{_sentence(line)}." for line in sentences(result)] if "refit" in result else []
    if result.get("detection"):
        known = {n: d for n, d in result["detection"].items() if d["average_precision"] is not None}
        best = result["reference"]
        if best in known:
            lines.append(
                f"{result['wrong_rows']:,} of {result['known_rows']:,} labels are wrong ({result['truth']}). "
                f"Columns are compared with {best}: average precision {known[best]['average_precision']:.3f}."
            )
    elif "detection" in result:
        lines.append("No truth is known, so detection of wrong labels is not measured.")
    lines += [f"{_sentence(entry['said'])}." for entry in result.get("wrong_labels", [])]
    for entry in result.get("canaries", []):
        best = entry["best_against_random"]
        finds = "No column finds them better than chance." if best is None else f"{best} finds them best."
        lines.append(f"{entry['canaries']:,} canaries were planted in training. {finds}")
    return lines


def _sentence(text: str) -> str:
    """The text with a capital, unless its first word is more than letters: such a word is a name."""
    first = text.split(" ", 1)[0].rstrip(":,")
    return text[:1].upper() + text[1:] if first.replace("-", "").isalpha() else text
