"""What retraining said of the scores: the plan, and the result where it is asked for."""

from __future__ import annotations

import sys
from typing import Any

from influence_cli.cli.console import print_json, print_table
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import evaluate as show_evaluate
from influence_cli.cli.show.tables import terminal

Figures = dict[str, Any]


def plan(settings: Settings, described: Figures) -> None:
    """The trainings of each part, and how many are kept."""
    if settings["format"] == "json" or (settings["format"] == "auto" and not sys.stdout.isatty()):
        print_json(described)
        return
    rows = [
        [name, str(t["trainings"]), str(t["kept"]), str(t["trainings"] - t["kept"])]
        if "kept" in t
        else [name, f"at most {t['trainings_at_most']}", "-", "-"]
        for name, t in described["trainings"].items()
    ]
    print_table("", ["part", "trainings", "kept", "to run"], rows, terminal(), sys.stdout)


def report(settings: Settings, result: Figures) -> None:
    """The result as a page, a picture, JSON or a table a part; what was run goes to standard error."""
    from influence_cli.report.counterfactual_tables import cautions, sentences

    out = terminal()
    for text in sentences(result):
        out.note(text)
    for text in cautions(result):
        out.warn(text)
    show_evaluate.put(settings, result, out.note)
