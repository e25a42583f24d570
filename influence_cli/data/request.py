"""What ``manifest`` is asked to do: which columns to read, and how to split rows that are not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from influence_cli.data.label_kinds import TASKS
from influence_cli.options import MANIFEST, check_choices, option

COLUMNS_KEY = b"influence.columns"  # of a manifest's schema metadata: what each column of its source was taken for


@dataclass(frozen=True)
class Columns:
    """Which columns to use; None: the usual names."""

    label: str | None = None
    id: str | None = option(
        None, "Id column [default: row numbers].", (MANIFEST,), metavar="COLUMN", stored=False, after="group"
    )
    image: str | None = option(None, "Column with images: bytes or paths.", (MANIFEST,), metavar="COLUMN", stored=False)
    text: tuple[str, ...] = option(
        (), "Column with texts [default: text or sentence]; twice for pairs.", (MANIFEST,), metavar="COLUMN",
        stored=False,
    )  # fmt: skip
    features: tuple[str, ...] = option(
        (), "Feature column [default: numbers and categories].", (MANIFEST,), metavar="COLUMN", stored=False
    )
    weight: str | None = option(None, "Column that rows are weighted by.", (MANIFEST,), metavar="COLUMN", stored=False)
    group: str | None = None  # a column of groups, which is kept and is no feature
    keep: tuple[str, ...] = option(
        (), "Column that the manifest keeps as it is.", (MANIFEST,), "--keep-column", name="keep_column",
        metavar="COLUMN", stored=False,
    )  # fmt: skip
    drop: tuple[str, ...] = option(
        (), "Column that is left out.", (MANIFEST,), "--drop-column", name="drop_column", metavar="COLUMN",
        stored=False,
    )  # fmt: skip
    like: str | None = option(
        None, "Read the columns as this manifest's were.", (MANIFEST,), metavar="MANIFEST", stored=False
    )
    categories: int = option(100, "Most categories of a column of text.", (MANIFEST,), stored=False, least=1)
    encoding: str | None = option(
        None, "Encoding of text [default: UTF-8 or UTF-16].", (MANIFEST,), metavar="NAME", stored=False
    )
    delimiter: str | None = option(
        None, "What separates columns [default: found out].", (MANIFEST,), metavar="TEXT", stored=False
    )
    sheet: str | None = option(
        None, "Sheet of an Excel file [default: the first].", (MANIFEST,), metavar="NAME", stored=False
    )
    task: str | None = option(
        None, "classification, regression, ordinal, multi-label, or language (no labels) [default: classification].",
        (MANIFEST,), choices=tuple(TASKS), stored=False, after="group",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_choices(self)


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
