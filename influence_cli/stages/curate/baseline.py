"""The baseline of the gate: a file with the row key of every row that was accepted, one a line."""

from __future__ import annotations

import json
import re
from pathlib import Path

from influence_cli.data.earlier import BASELINE
from influence_cli.data.outputs import Output, check_outputs, write_output
from influence_cli.errors import UsageError
from influence_cli.stages.curate.score_table import ScoreTable


def write_baseline(scores: ScoreTable, path: str) -> int:
    """Accept every train row as it is, by row key: an edited row comes back to the gate."""
    lines = [
        json.dumps({"id": i, "row_key": k.hex()}, ensure_ascii=False)
        for i, k in sorted(zip(scores.train.ids, scores.scored.keys, strict=True))
    ]
    check_outputs([Output("--write-baseline", path, BASELINE)], scores.manifest.files)
    write_output(path, BASELINE, ("\n".join(lines) + "\n").encode())
    return len(lines)


def read_baseline(path: str | None) -> set[str]:
    """Row keys of the accepted rows; every line must be one, and no id may be there twice."""
    if path is None:
        return set()
    keys: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # an id may hold other line ends
        for number, line in enumerate(lines, 1):
            if line.strip():
                name, key = _accepted(line, number)
                if name in keys:
                    raise ValueError(f"line {number}: id={name} is there twice")
                keys[name] = key
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"the baseline cannot be read ({error})", where=path, fix="use --write-baseline") from error
    return set(keys.values())


def _accepted(line: str, number: int) -> tuple[str, str]:
    """The id and row key in a line of a baseline."""
    value = json.loads(line)
    name, key = (value.get("id"), value.get("row_key")) if isinstance(value, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(key, str) or not re.fullmatch("[0-9a-f]{32}", key):
        raise ValueError(f'line {number} is no {{"id": ..., "row_key": 32 hex digits}}')
    return name, key
