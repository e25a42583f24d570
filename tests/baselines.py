"""Baselines of some of the rows of another."""

from __future__ import annotations

import json
from pathlib import Path

from influence_cli.stages.curate.baseline import baseline_of


def first_of_baseline(path: Path, stop: int) -> bytes:
    """The file that accepts the first rows of another baseline alone, up to ``stop`` as in a slice."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return baseline_of([(row["id"], row["row_key"]) for row in rows if "id" in row][:stop])
