"""What ``manifest`` is asked to do: which columns to read, and how to split rows that are not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from influence_cli.options import MANIFEST, option


@dataclass(frozen=True)
class Columns:
    """Which columns to use; None: the usual names."""

    label: str | None = None
    id: str | None = option(
        None, "Id column [default: row numbers].", (MANIFEST,), metavar="COLUMN", stored=False, after="group"
    )
    image: str | None = option(None, "Column with images: bytes or paths.", (MANIFEST,), metavar="COLUMN", stored=False)
    features: tuple[str, ...] = option(
        (), "Feature column [default: all numbers].", (MANIFEST,), metavar="COLUMN", stored=False
    )


@dataclass(frozen=True)
class IngestRequest:
    """What to make a manifest from."""

    source: Any  # a path, an Arrow table or a DataFrame
    output: str
    columns: Columns = field(default_factory=Columns)
    split: str = option(  # train/val/test
        "80/10/10", "Shares where there are no splits.", (MANIFEST,), metavar="A/B/C", stored=False, after="features"
    )
    seed: int = 0
    embed: bool = option(False, "Copy images into the manifest, not their paths.", (MANIFEST,), stored=False)
    skip_bad: bool = False
