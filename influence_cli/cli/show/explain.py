"""The reasons of rows: as tables for people, as JSON, or a line of JSON a row."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import cell, print_json, print_table
from influence_cli.cli.settings.requests import ResultOptions
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.stages.score.explain import Explained

Row = dict[str, Any]


def check_form(result: ResultOptions) -> None:
    """Refuse (UsageError) a form that has no place for lists."""
    from influence_cli.data.write_tables import check_suffix

    if result.format == "csv":
        raise UsageError("reasons are lists, and CSV has no place for them", fix="--format jsonl, or --json")
    if result.output and result.output != "-":
        check_suffix(result.output, (".jsonl",))


def put_reasons(result: ResultOptions, found: Explained) -> None:
    """Write a line of JSON a row to --output, or print the reasons in the form that is asked for."""
    import json

    from influence_cli.data.earlier import REASONS
    from influence_cli.data.outputs import write_output
    from influence_cli.data.write_tables import write_all

    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in found.rows).encode()
    if result.output and result.output != "-":
        write_output(result.output, REASONS, lines)
    elif result.format == "json":
        about = {"near_duplicates_up_to": found.found.limit, "groups": found.found.groups}
        print_json({"schema_version": 1, "rows": found.rows, **about, "missing": list(found.found.missing)})
    elif result.for_people and not result.output:
        for row in found.rows:
            _show(row, found)
    else:
        write_all(lines)
    for sentence in found.found.missing:
        terminal().note(sentence)


def _show(row: Row, found: Explained) -> None:
    """One row's reasons as tables, on standard output."""
    print_table(f"row {row['id']}", ["", "value"], _facts(row), sys.stdout, left=2)
    why: Row = row["reasons"]
    target = ["target row", "label", "predicted", "loss", "part of the score"]

    def of_target(part: Row) -> list[str]:
        return [part["id"], _called(part, "label"), _called(part, "predicted"), cell(part["loss"]), cell(part["value"])]

    near = ["train row", "label", "similarity", "score"]

    def of_near(one: Row) -> list[str]:
        return [one["id"], _called(one, "label"), cell(one["similarity"]), cell(one["score"])]

    def of_twin(one: Row) -> list[str]:
        how = "exact" if one["exact"] else "near"
        return [one["id"], _called(one, "label"), one["split"], how, cell(one["similarity"])]

    _list("target rows whose loss it raises most", target, why["hurts"], of_target)
    _list("target rows whose loss it lowers most", target, why["helps"], of_target)
    ranking = found.origin.get("kind") == "ranking"
    _list("nearest train rows of its own label" if ranking else "nearest train rows that help", near,
          why["helped_by"], of_near)  # fmt: skip
    _list("nearest train rows of another label", near, why["other_label"], of_near)
    limit = "" if found.found.limit is None else f", near ones up to 1 - cos {found.found.limit:.3g}"
    more = why["duplicates_in_all"] - len(why["duplicates"])
    limit += f" ({more:,} more with a larger --top)" if more > 0 else ""
    _list(f"duplicates{limit}", ["row", "label", "split", "kind", "similarity"], why["duplicates"], of_twin)


def _list(title: str, header: list[str], rows: list[Row], line: Callable[[Row], list[str]]) -> None:
    if rows:
        sys.stdout.write("\n")
        print_table(title, header, [line(row) for row in rows], sys.stdout, left=3)


def _called(row: Row, key: str) -> str:
    """A label by the name of its class, where it has one."""
    return str(row.get(f"{key}_name", cell(row[key])))


def _facts(row: Row) -> list[list[str]]:
    """What is known of the row itself, a line each."""
    facts = [["label", _called(row, "label")]]
    if row.get("label_probability") is not None:
        facts.append(["model's probability of it", f"{row['label_probability']:.1%}"])
    if row.get("best_label") is not None and row["best_label"] != row["label"]:
        facts.append(
            ["label with the highest score", f"{_called(row, 'best_label')} (gain {cell(row['best_label_gain'])})"]
        )
    if row.get("other_label") is not None:
        facts.append(["most probable other label", f"{_called(row, 'other_label')} ({row['other_probability']:.1%})"])
    if row.get("prediction") is not None:
        facts.append(["prediction", cell(row["prediction"])])
    place = "none" if row["rank"] is None else f"{ordinal(row['rank'])} lowest of {row['of']:,}"
    facts.append([row["score_is"], f"{cell(row['score'])} ({place})"])
    if row.get("agreement") is not None:
        facts.append(["members that agree on the sign", f"{row['agreement']:.0%}"])
    return facts


def ordinal(n: int) -> str:
    """A place in words and figures.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 21, 102, 113)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '21st', '102nd', '113th']
    """
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{ending}"
