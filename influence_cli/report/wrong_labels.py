"""How many labels a method takes to be wrong, in one line, or why that is not known."""

from __future__ import annotations

from typing import Any

from influence_cli.report.text_table import share

CONFIDENT = "confident learning"


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


def beyond(estimate: dict[str, Any]) -> str:
    """What belongs to the number wherever it is said: that it is only of how many more are wrong than target labels.

    >>> beyond({"target_is_cleaner": False}), beyond({"target_is_cleaner": True})
    (' beyond as many as target labels are', '')
    """
    return "" if estimate.get("target_is_cleaner", True) else " beyond as many as target labels are"


def why_unknown(estimate: dict[str, Any]) -> str:
    """Why the number is not known; nothing where it is.

    >>> why_unknown({"tells": False, "agrees": 0.25, "most_frequent": 0.25, "rows": 40})
    'its fold models foretell 25.0% of the labels, no better than always naming the most frequent class (25.0%)'
    """
    if estimate.get("by", CONFIDENT) == CONFIDENT:
        if "tells" not in estimate:  # scored before it was asked
            return "the table does not say whether its fold models are better than chance (score again)"
        return "" if estimate["tells"] else f"its fold models foretell {_frequent(estimate)}"
    if estimate.get("features_know_labels"):
        by_heart = "the model has learned these labels by heart (--features names another one)"
        return (
            f"its features foretell train labels better than target labels: {by_heart}, or more of the latter are wrong"
        )
    if estimate["tells"]:
        return ""
    if "apart" not in estimate:
        return "it tells wrong labels no better than chance"
    apart, by_chance = estimate["apart"], f"{estimate['agrees']:.1%}; {estimate['by_chance']:.1%} by chance"
    if not estimate["beyond_chance"]:
        agree = f"labels agree with what features tell no better than chance ({by_chance})"
        return agree if apart is None or apart[0] > 0 else f"it tells wrong labels no better than chance, and {agree}"
    if apart is None:
        return "; ".join(filter(None, (f"features foretell {_frequent(estimate)}", _lacking(estimate))))
    return (
        f"{estimate['target_rows']:,} target rows do not show that wrong labels are told from right ones, though train "
        f"labels agree with what features tell better than chance ({by_chance}): it takes more target rows, of every "
        "class and with right labels"
    )


def judged_alone(estimate: dict[str, Any]) -> str:
    """That train labels alone say whether wrong labels are told, and what would help; nothing where target rows do."""
    if estimate["apart"] is not None:
        return ""
    lacking = _lacking(estimate)
    return ", as far as train labels show by themselves" + (f" ({lacking})" if lacking else "")


def _lacking(estimate: dict[str, Any]) -> str:
    if estimate["target_rows"]:
        return "target rows of one class cannot decide it: give some of every class"
    if estimate["target_given"]:
        return f"so few target rows cannot decide it: give {estimate['target_least']} or more, of every class"
    return ""


def _frequent(estimate: dict[str, Any]) -> str:
    most = f"{estimate['most_frequent']:.1%}"
    return f"{estimate['agrees']:.1%} of the labels, no better than always naming the most frequent class ({most})"


def wrong_labels_said(estimate: dict[str, Any], classes: tuple[str, ...] | None = None) -> str:
    """The estimate with its interval, and the pair of classes that it is of most often; or why it is not known.

    >>> wrong_labels_said({"wrong_labels": 9.4, "interval": [7.0, 12.0], "rows": 50, "pairs": [], "tells": True})
    'confident learning estimates 9 wrong labels of 50 (18.8%; 95% interval over rows 7 to 12)'
    """
    rows, (low, high) = estimate["rows"], estimate["interval"]
    by = estimate.get("by", CONFIDENT)
    if reason := why_unknown(estimate):
        return f"{by} does not know how many of {rows:,} labels are wrong: {reason}"
    wrong = estimate["wrong_labels"]
    part = share(wrong / rows) if rows else "-"
    text = f"{by} estimates {wrong:,.0f} wrong labels of {rows:,}{beyond(estimate)} ({part}; 95% interval over rows "
    text += f"{low:,.0f} to {high:,.0f})"
    if estimate["pairs"]:
        from influence_cli.data.classes import class_name  # at start-up nobody needs Arrow, which comes with it

        given, likely, _ = estimate["pairs"][0]
        text += f", most often {class_name(classes, given)} in place of {class_name(classes, likely)}"
    return text
