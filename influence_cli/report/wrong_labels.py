"""How many labels a method takes to be wrong, in one line."""

from __future__ import annotations

from typing import Any

from influence_cli.report.text_table import share


def estimates_of(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """What the columns of a score table say of the number of wrong labels, with the column's name."""
    facts: dict[str, dict[str, Any]] = provenance.get("facts", {})
    return [{"column": name, **said} for name, said in facts.items() if "wrong_labels" in said]


def may_be_none(estimate: dict[str, Any]) -> bool:
    """Whether the interval of the number of wrong labels reaches 0, to the nearest row.

    >>> may_be_none({"interval": [0.2, 3.0]}), may_be_none({"interval": [0.5, 3.0]})
    (True, False)
    """
    return estimate["interval"][0] < 0.5


def wrong_labels_said(estimate: dict[str, Any], classes: tuple[str, ...] | None = None) -> str:
    """The estimate with its interval, and the pair of classes that it is of most often.

    >>> wrong_labels_said({"wrong_labels": 9.4, "interval": [7.0, 12.0], "rows": 50, "pairs": []})
    'confident learning estimates 9 wrong labels of 50 (18.8%; 95% interval over rows 7 to 12)'
    """
    rows, (low, high) = estimate["rows"], estimate["interval"]
    wrong = estimate["wrong_labels"]
    part = share(wrong / rows) if rows else "-"
    by = estimate.get("by", "confident learning")
    text = f"{by} estimates {wrong:,.0f} wrong labels of {rows:,} ({part}; 95% interval over rows "
    text += f"{low:,.0f} to {high:,.0f})"
    if estimate["pairs"]:
        from influence_cli.data.classes import class_name  # at start-up nobody needs Arrow, which comes with it

        given, likely, _ = estimate["pairs"][0]
        text += f", most often {class_name(classes, given)} in place of {class_name(classes, likely)}"
    return text
