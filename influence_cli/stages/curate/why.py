"""Why rows of a review page score as they do, from the run that scored them, opened again.

Only what a page asks for is computed: the reasons of its first rows, with the model that the score table names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from influence_cli.events import Listener, Progress
from influence_cli.report.review.rows import Why
from influence_cli.report.review.shades import RowTokens
from influence_cli.report.token_pieces import Token
from influence_cli.settings import Runtime
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.score_table import ScoreTable

if TYPE_CHECKING:
    from influence_cli.stages.score.tokens.shading import Shading

TOP = 3  # rows of each list


class _WithoutNotes(Listener):
    """Hears warnings and how far it is: facts of the run were said when it scored."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def warn(self, text: str) -> None:
        """Something the user should act on."""
        self.listener.warn(text)

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Progress]:
        """A span of work."""
        with self.listener.progress(what, total, unit, done) as progress:
            yield progress


def why_of(
    scores: ScoreTable, ids: Sequence[str], request: CurateRequest, runtime: Runtime, listener: Listener
) -> tuple[dict[str, Why], list[str]]:
    """By id why these train rows score as they do, and sentences on what is not known; never an error of the run."""
    if not ids:
        return {}, []
    if scores.column not in scores.table.column_names:
        return {}, [f"No reasons are shown: {scores.column} is made of several columns."]
    from influence_cli.stages.score.reasons import reasons_of

    source = request.scores if isinstance(request.scores, str) else "the score table"
    found = reasons_of(
        scores.table, scores.provenance, ids, runtime, _WithoutNotes(listener),
        source=source, column=scores.column, manifest=request.manifest, label=request.label, top=TOP,
    )  # fmt: skip
    alike: Mapping[str, list[str]] = {i: group for group in found.groups for i in group}
    told = functools.partial(scores.manifest.label_kind.told, names=scores.manifest.classes)
    made = {
        i: Why(
            hurts=[(t.id, told(t.label), t.value) for t in reasons.hurts],
            helped_by=[(n.id, told(n.label), n.similarity) for n in reasons.helped_by],
            other_label=[(n.id, told(n.label), n.similarity) for n in reasons.other_label],
            duplicates=[other for other in alike.get(i, ()) if other != i],
            more_duplicates=[(d.id, d.split, told(d.label)) for d in reasons.duplicates],
            tokens=_tokens(found.shading, i),
        )
        for i, reasons in found.rows.items()
    }
    shown = ["With target rows stand their parts of the score, with near rows the cosine of their features."]
    said = [line[:1].upper() + line[1:].rstrip(".") + "." for line in found.missing]
    if found.limit is not None:
        said.append(f"Duplicates are rows with the same content, or features up to 1 - cos = {found.limit:.2g} away.")
    return made, (shown if any(why.named() for why in made.values()) else []) + said


def _tokens(shading: Shading | None, row: str) -> RowTokens | None:
    """The tokens of a row with the numbers that a page shades them by."""
    if shading is None or row not in shading.rows:
        return None
    by_column = shading.rows[row].items()
    return RowTokens(
        shading.what, {c: [Token(t.start, t.end, t.name, t.value, None) for t in some] for c, some in by_column}
    )
