"""One self-contained HTML page: text escaped, figures as inline SVG, no script, and nothing fetched."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from influence_cli.data.earlier import GENERATOR, PAGE
from influence_cli.data.outputs import write_output
from influence_cli.report.counterfactual_tables import cautions, sentences
from influence_cli.report.figures import panels_of
from influence_cli.report.panel import Panel, as_svg
from influence_cli.report.tables import tables_of
from influence_cli.report.text_table import TextTable

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 2rem auto; max-width: 76rem;
       padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p { margin: .3rem 0; max-width: 60rem; } p.note { color: #555; font-size: .9rem; }
p.caution { background: #fff4d6; border-left: 4px solid #E69F00; padding: .4rem .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #e3e3e3; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #999; font-weight: 600; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem; max-width: 30rem;
                                 overflow-wrap: break-word; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
figure { margin: 0; flex: 1 1 32rem; max-width: 46rem; } figure svg { width: 100%; height: auto; }
"""


def page(result: dict[str, Any], title: str = "How far to trust the scores") -> str:
    """The page of a result of ``evaluate``."""
    figures = _figures(panels_of(result))
    tables = "\n".join(_table(t) for t in tables_of(result))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="generator" content="{GENERATOR}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{"".join(f"<p>{html.escape(line)}</p>" for line in _summary(result))}
{"".join(f'<p class="caution">{html.escape(_sentence(line))}</p>' for line in _cautions(result))}
{tables}
{figures}
</body>
</html>
"""


def write_page(result: dict[str, Any], path: Path, title: str = "How far to trust the scores") -> None:
    """Write the page whole or not at all."""
    write_output(path, PAGE, page(result, title).encode())


def _summary(result: dict[str, Any]) -> list[str]:
    """The answers in sentences."""
    lines = [f"{_sentence(line)}." for line in sentences(result)] if _retrained(result) else []
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
    for entry in result.get("canaries", []):
        best = entry["best_against_random"]
        finds = "No column finds them better than chance." if best is None else f"{best} finds them best."
        lines.append(f"{entry['canaries']:,} canaries were planted in training. {finds}")
    return lines


def _table(table: TextTable) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in table.header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in table.rows)
    notes = "".join(f'<p class="note">{html.escape(n)}</p>' for n in table.notes)
    title = html.escape(_sentence(table.title))
    return (
        f'<h2>{title}</h2>\n<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{notes}"
    )


def _retrained(result: dict[str, Any]) -> bool:
    return "refit" in result


def _cautions(result: dict[str, Any]) -> list[str]:
    return cautions(result) if _retrained(result) else []


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _figures(panels: list[Panel]) -> str:
    if not panels:
        return ""
    drawn = "\n".join(f"<figure>{as_svg(panel)}</figure>" for panel in panels)
    return f'<h2>Figures</h2>\n<div class="figures">\n{drawn}\n</div>'
