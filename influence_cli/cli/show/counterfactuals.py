"""What retraining said of the scores: the plan, and the result where it is asked for."""

from __future__ import annotations

import sys
from typing import Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.cli.show.evaluate import put_figures

Figures = dict[str, Any]


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


def show_counterfactuals(result: ResultOptions, found: Figures) -> None:
    """The result as a page, a picture, JSON or a table a part; what was run goes to standard error."""
    from influence_cli.report.counterfactual_tables import cautions, sentences

    out = terminal()
    for text in sentences(found):
        out.note(text)
    for text in cautions(found):
        out.warn(text)
    put_figures(result, found, out.note)
