"""Score tables side by side: their columns in the order of one manifest's train rows, under names that do not clash."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.locators import origin_of
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.tables import read_table
from influence_cli.data.tables import shown as called
from influence_cli.errors import ManifestError, UsageError
from influence_cli.stages.curate.combining import floats, score_column_names
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import in_manifest_order, read_scores

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NamedTable:
    """One score table, in the order of the train rows."""

    source: str
    stem: str  # its name for people, unlike that of every other table
    table: pa.Table
    provenance: dict[str, Any]

    def columns(self) -> dict[str, Floats]:
        """Scores by column, the lowest the most suspicious: loss is negated."""
        return score_columns(self.table)

    def kind(self, shown: str) -> str:
        """Whether a column's sign means something: "signed" or "ranking"."""
        return self.provenance.get("kinds", {}).get(f"score_{shown}", "ranking")


@dataclass(eq=False)
class ScoreTables:
    """Tables of the same train rows, and all their columns by the names they are shown under."""

    manifest: Manifest
    train: Rows
    label: str
    tables: list[NamedTable]
    columns: dict[str, Floats] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    sources: dict[str, tuple[str, str]] = field(default_factory=dict)  # table and column behind each name

    def __post_init__(self) -> None:
        for table, name, shown, values in side_by_side([(t, t.columns()) for t in self.tables]):
            self.columns[shown], self.kinds[shown] = values, table.kind(name)
            self.sources.setdefault(shown, (table.source, name))


def side_by_side(tables: list[tuple[NamedTable, dict[str, Floats]]]) -> list[tuple[NamedTable, str, str, Floats]]:
    """(table, column, the name it is shown under, values): the stem stands before names that mean different scores."""
    shown: list[tuple[NamedTable, str, str, Floats]] = []
    for table, name, values in ((t, *column) for t, columns in tables for column in columns.items()):
        same = [columns[name] for _, columns in tables if name in columns]
        alike = all(np.array_equal(v, same[0], equal_nan=True) for v in same)
        shown.append((table, name, name if alike else f"{table.stem}:{name}", values))
    return shown


def score_columns(table: pa.Table) -> dict[str, Floats]:
    """Scores by column without the prefix, loss and margin with them; the lowest is the most suspicious everywhere."""
    found = {n.removeprefix("score_"): floats(table, n) for n in score_column_names(table) if n != "score"}
    for name, sign in (("loss", -1.0), ("margin", 1.0)):
        if name in table.column_names and name not in found:
            found[name] = sign * floats(table, name)
    return found


def read_score_tables(
    sources: tuple[Any, ...], manifest: Any = None, label: str | None = None, skip_bad: bool = False
) -> ScoreTables:
    """The tables and the manifest of the first, verified row by row by row key.

    Raises:
        UsageError: a table is named twice, or no manifest can be found.
        ManifestError: a table has other rows than the manifest has now, or other labels.
    """
    stems = _stems(sources)
    if len(set(stems)) < len(stems):
        raise UsageError("a score table is named twice", fix="name each table once")
    first = read_scores(CurateRequest(scores=sources[0], manifest=manifest, label=label, skip_bad=skip_bad))
    tables = [(first.table, first.provenance)]
    for source in sources[1:]:
        table = read_table(source)
        origin = origin_of(table.schema, source)
        then = origin.get("manifest", {}).get("fingerprint")
        tables.append((in_manifest_order(table, first.train, called(source), first.manifest.source), origin))
        if manifest is None and then not in (None, first.manifest.fingerprint):
            what = "it was scored with other target or test rows or other splits"
            fix = "score both anew, or pass --manifest to say that you mean it"
            raise ManifestError(what, where=f"{source}, against {sources[0]}", fix=fix)
    scores = [
        NamedTable(s if isinstance(s, str) else stem, stem, *t)
        for s, stem, t in zip(sources, stems, tables, strict=True)
    ]
    return ScoreTables(first.manifest, first.train, first.label, scores)


def _stems(sources: tuple[Any, ...]) -> list[str]:
    """File stems; whole paths where two files have the same, and numbers for tables that are no files."""
    paths = [s if isinstance(s, str) else f"table {k}" for k, s in enumerate(sources, 1)]
    stems = ["-" if p == "-" else Path(p).stem for p in paths]
    return [stem if stems.count(stem) == 1 else path for stem, path in zip(stems, paths, strict=True)]
