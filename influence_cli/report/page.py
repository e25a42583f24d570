"""One self-contained HTML page, from a template: text escaped, figures as inline SVG, no script, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from influence_cli.data.earlier import GENERATOR, PAGE
from influence_cli.data.outputs import write_output
from influence_cli.report.counterfactual_tables import cautions, sentences
from influence_cli.report.figures import panels_of
from influence_cli.report.panel import as_svg
from influence_cli.report.tables import tables_of


def page(result: dict[str, Any], title: str = "How far to trust the scores") -> str:
    """The page of a result of ``evaluate``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("influence_cli.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["sentence"] = _sentence
    return environment.get_template("page.html.j2").render(
        generator=GENERATOR,
        title=title,
        summary=_summary(result),
        cautions=cautions(result) if "refit" in result else [],
        tables=tables_of(result),
        figures=[as_svg(panel) for panel in panels_of(result)],
    )


def write_page(result: dict[str, Any], path: Path, title: str = "How far to trust the scores") -> None:
    """Write the page whole or not at all."""
    write_output(path, PAGE, page(result, title).encode())


def _summary(result: dict[str, Any]) -> list[str]:
    """The answers in sentences."""
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
    return text[:1].upper() + text[1:]
