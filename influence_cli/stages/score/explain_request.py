"""What is asked of the reasons of rows: which rows."""

from __future__ import annotations

from dataclasses import dataclass

from influence_cli.options import SCORE, option


@dataclass(frozen=True)
class ExplainRequest:
    """Which rows' reasons are asked for."""

    explain: tuple[str, ...] = option(
        (), "Why this row, by its id: target rows that it hurts and helps, rows near by, duplicates.", (SCORE,),
        stored=False, metavar="ID", after="per_target",
    )  # fmt: skip
