"""Groups of near-duplicates in words: a sentence, and a table of a line a group."""

from __future__ import annotations

from typing import Any

from influence_cli.report.text_table import TextTable

Found = dict[str, Any]
SHOWN, NAMED = 20, 4  # groups of a table, and rows of a group that are named


def answer(found: Found) -> str:
    """How many groups there are, at which limit, and how many of them are leaks."""
    limit = f"at 1 - cos up to {found['limit']:.3g}"
    if found["share_of_median"] is not None:
        limit += f" ({found['share_of_median']:.3g} of the median distance to the nearest row)"
    if not found["groups"]:
        return f"no near-duplicates among {found['rows']:,} rows {limit}"
    said = f"{len(found['groups']):,} groups of near-duplicates with {found['rows_in_groups']:,} of "
    said += f"{found['rows']:,} rows {limit}; "
    if not found["leaks"]:
        return said + "none is of several splits"
    between = ", ".join(f"{count:,} {pair}" for pair, count in found["leaks_between"].items())
    return said + f"{found['leaks']:,} are leaks between splits ({between})"


def tables(found: Found) -> list[TextTable]:
    """The first groups, leaks before others; none where there are no groups."""
    if not found["groups"]:
        return []
    rows: list[list[str]] = []
    for group in found["groups"][:SHOWN]:
        named = ", ".join(f"{row['id']} ({row['split']}, label {row['label']})" for row in group["rows"][:NAMED])
        more = len(group["rows"]) - NAMED
        named += f" and {more:,} more" if more > 0 else ""
        closest = min(row["distance"] for row in group["rows"])
        kind = "leak" if group["leak"] else "one split"
        same = "yes" if group["same_payload"] else "no"
        rows.append([kind, f"{len(group['rows']):,}", same, str(group["labels"]), f"{closest:.3g}", named])
    notes: list[str] = []
    if len(found["groups"]) > SHOWN:
        notes.append(f"{len(found['groups']) - SHOWN:,} more groups: all with --json")
    if found["rows_without_features"]:
        notes.append(f"{found['rows_without_features']:,} rows have no finite features and are in no group")
    header = ["kind", "rows", "same payload", "labels", "smallest distance", "which"]
    return [TextTable("groups of near-duplicates", header, rows, notes)]
