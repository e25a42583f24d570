"""What ``manifest`` is asked to do: which columns to read, and how to split rows that are not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Columns:
    """Which columns to use; None: the usual names."""

    label: str | None = None
    id: str | None = None
    image: str | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class IngestRequest:
    """What to make a manifest from."""

    source: Any  # a path, an Arrow table or a DataFrame
    output: str
    columns: Columns = field(default_factory=Columns)
    split: str = "80/10/10"  # train/val/test, used where the source has no splits
    seed: int = 0
    embed: bool = False  # copy images into the manifest instead of naming their paths
    skip_bad: bool = False
