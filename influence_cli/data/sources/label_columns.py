"""Which columns of a table hold the labels, where a row has several."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from influence_cli.data.label_kinds import DEFAULT, SEVERAL, TASKS
from influence_cli.data.request import Columns
from influence_cli.errors import ManifestError, nearest


def label_columns(names: Sequence[str], columns: Columns, where: str) -> tuple[str, ...]:
    """The columns of several labels that --label names, with commas between or by a pattern; none where it names one.

    Raises:
        ManifestError: one is not there, or several are named where a row has one label.
    """
    asked = columns.label
    if asked is None or asked in names:
        return ()
    found: dict[str, None] = {}
    for part in (p.strip() for p in asked.split(",") if p.strip()):
        fitting = [part] if part in names else [n for n in names if fnmatch.fnmatchcase(n, part)]
        if not fitting:
            raise ManifestError(f"no column {part!r} for the label", where=where, fix=nearest(part, list(names)))
        found |= dict.fromkeys(fitting)
    if TASKS[columns.task or DEFAULT].holds != SEVERAL:
        what = f"--label {asked} names {len(found)} columns, and a row has one label"
        fix = "name one, or pass --task multi-label where rows have several labels"
        raise ManifestError(what, where=where, fix=fix)
    return tuple(found)
