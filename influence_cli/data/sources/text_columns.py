"""Which columns of a table are the texts that a model reads: named, or of a usual name and no categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from influence_cli.data.kinds import KINDS
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.plain_types import pc
from influence_cli.data.request import Columns
from influence_cli.data.sources.features import column_of
from influence_cli.data.sources.protocol import pick
from influence_cli.data.sources.survey import Survey
from influence_cli.errors import ManifestError, UsageError

PAIRS = (("text_a", "text_b"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"))
SINGLE = ("text", "sentence", "sentences", "texts")
_WORDS = 3  # of a text that is no category


def text_columns(
    types: Mapping[str, pa.DataType], surveys: Mapping[str, Survey], columns: Columns, label: str, where: str
) -> tuple[str, ...]:
    """The column of texts, or the two of pairs; none where the table has no texts, or other columns are asked for.

    Raises:
        UsageError: more than two are asked for, or one twice.
        ManifestError: a column that is asked for is not there, is the label, or holds no text.
    """
    names = list(types)
    if columns.text:
        if len(columns.text) > 2 or len(set(columns.text)) < len(columns.text):
            what = f"--text {' --text '.join(columns.text)}: a row has one text, or a pair of two columns"
            raise UsageError(what, fix="join the columns in the source")
        return tuple(_asked(name, types, label, where) for name in columns.text)
    if columns.features or columns.image is not None:
        return ()
    lowered = {name.lower(): name for name in names if name != label}
    for wanted in (*PAIRS, *((name,) for name in SINGLE)):
        found = tuple(lowered[name] for name in wanted if name in lowered)
        if len(found) == len(wanted) and all(_is_free(surveys.get(n), types[n], columns.categories) for n in found):
            return found
    return ()


def free_texts(surveys: Mapping[str, Survey], types: Mapping[str, pa.DataType], columns: Columns) -> list[str]:
    """Columns that could be texts, whatever they are called."""
    return [name for name, survey in surveys.items() if _is_free(survey, types[name], columns.categories)]


def _asked(name: str, types: Mapping[str, pa.DataType], label: str, where: str) -> str:
    pick(list(types), name, (), "text", where)
    at = f"{where}, column {name}"
    if name == label:
        raise ManifestError(f"--text {name} is the label column", where=at, fix="name another with --text or --label")
    if not (is_text(types[name]) or pa.types.is_null(types[name])):
        raise ManifestError(f"column {name} is {types[name]}, not text", where=at, fix="name a column of text")
    return name


def _is_free(survey: Survey | None, kind: pa.DataType, categories: int) -> bool:
    """Whether a column is of texts, not of categories, numbers or dates."""
    if survey is None or not is_text(kind) or not survey.texts or survey.is_date:
        return False
    wordy = sum(len(value.split()) >= _WORDS for value in survey.values)
    return wordy > 0 and (len(survey.values) > categories or 2 * wordy >= len(survey.values))


def texts_of_rows(table: pa.Table, names: Sequence[str]) -> dict[str, pa.Array]:
    """The texts by a manifest's column names, as they are written."""
    kind = KINDS["text" if len(names) == 1 else "text_pair"]
    return {own: pc.cast(column_of(table, name), pa.string()) for own, name in zip(kind.columns, names, strict=True)}
