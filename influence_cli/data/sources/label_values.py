"""The labels of a table's rows, as the reader of their task takes them (``data.label_readers``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.label_kinds import CLASSES, NUMBERS, SEVERAL, TASKS
from influence_cli.data.plain_types import is_list, pc
from influence_cli.data.sources.features import as_texts, numbers_of, said_of_form
from influence_cli.data.sources.roles import Roles, Seen
from influence_cli.data.sources.survey import MISSING, NUMBER, PLAIN, TRUTH, matches, text_of_bytes, texts_in
from influence_cli.errors import ManifestError

_SHEETS = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")  # in which, as in a CSV, an empty text is an empty cell


def labels_of(of: Callable[[str], pa.Array], roles: Roles, column: str, seen: Seen, where: str) -> pa.Array:
    """Labels as the reader of their task takes them: names or numbers, numbers, or lists or texts of several.

    Raises:
        ManifestError: a column is of a type that no such label has.
    """
    holds = TASKS[roles.task].holds
    if holds == CLASSES:
        return _labels(of(column), roles.names, seen, column, where)
    if roles.labels:
        columns = [_flags(of(name), name, seen).to_pylist() for name in roles.labels]
        return pa.array([[None if v is None or v != v else str(v) for v in row] for row in zip(*columns, strict=True)])
    values = of(column)
    cells = seen.as_text or where.lower().endswith(_SHEETS)
    if holds == SEVERAL and cells and (pa.types.is_null(values.type) or is_text(values.type)):
        values = pc.fill_null(pc.cast(values, pa.string()), "")  # an empty cell says that there is none
    numeric = (
        seen.as_text and column in seen.surveys and seen.surveys[column].texts > 0 and seen.form(column) is not None
    )
    if holds == SEVERAL and not numeric and (is_list(values.type) or is_text(values.type)):
        return values
    if holds == NUMBERS and pa.types.is_boolean(values.type):
        return pc.cast(pc.cast(values, pa.int8()), pa.float64())  # as in a file of text
    if holds == NUMBERS and not (pa.types.is_nested(values.type) or pa.types.is_temporal(values.type)):
        return _flags(values, column, seen)
    if pa.types.is_null(values.type):
        return values
    needed = "numbers" if holds == NUMBERS else "lists or texts"
    what = f"labels are {'numbers' if numeric else values.type}, and task {roles.task} needs {needed}"
    fix = "name another column with --label"
    if holds == SEVERAL:
        fix = "name a column for each label: --label A --label B, or --label 'topic_*'"
    raise ManifestError(what, where=f"{where}, column {column}", fix=fix)


def _labels(values: pa.Array, names: bool, seen: Seen, column: str, where: str) -> pa.Array:
    """Labels as names or as numbers; a name that says NaN is none.  Raises ManifestError: they are neither."""
    kind = values.type
    if pa.types.is_null(kind):
        return pa.nulls(len(values), pa.string() if names else pa.int64())
    odd = pa.types.is_nested(kind) or pa.types.is_temporal(kind)
    if odd or (pa.types.is_binary(kind) and text_of_bytes(values) is None):
        fix = "give a column of numbers or names"
        raise ManifestError(f"labels are {kind}, not numbers or text", where=f"{where}, column {column}", fix=fix)
    if not names and not is_text(kind):
        return values
    texts = as_texts(values)
    if names or not seen.as_text or seen.surveys[column].form() != (PLAIN, ""):
        return pc.if_else(matches(texts, "^(nan|NaN|NAN)$"), pa.scalar(None, texts.type), texts)
    numbers = numbers_of(values)
    return pa.array(numbers, mask=~matches(pc.fill_null(texts, "?"), NUMBER).to_numpy(zero_copy_only=False))


def _flags(values: pa.Array, column: str, seen: Seen) -> pa.Array:
    """A column of numbers as numbers, in whatever form a file of text writes them.

    Where it holds other texts too, they stay, and numbers are plain text: a bad label changes no other.
    """
    survey = seen.surveys.get(column)
    if survey is None or not is_text(values.type):
        return values
    texts = texts_in(values)
    numbers = survey.numbers_in(texts, seen.marks)
    infinite = pc.fill_null(matches(texts, "(?i)^[+-]?inf"), False).to_numpy(zero_copy_only=False)
    none = np.isnan(numbers) & ~infinite
    form = survey.form(seen.marks)
    if form is not None and form == survey.number_form(seen.marks):
        return pa.array(numbers, mask=none)
    missing = pc.or_kleene(pc.is_in(texts, pa.array(MISSING, texts.type)), matches(texts, "(?i)^[+-]?nan$"))
    texts = pc.if_else(missing, pa.scalar(None, texts.type), texts)
    return pa.array([t if n else repr(v) for t, v, n in zip(texts.to_pylist(), numbers.tolist(), none, strict=True)])


def said_of_numbers(roles: Roles, seen: Seen) -> list[str]:
    """A sentence on how labels that are numbers are read, where they are no plain ones."""
    if TASKS[roles.task].holds != NUMBERS:
        return []
    if pa.types.is_boolean(seen.types[roles.label]):
        return said_of_form(roles.label, TRUTH, "")
    survey = seen.surveys.get(roles.label)
    if survey is None or not survey.texts:
        return []
    form, unit = survey.number_form(seen.marks) or (PLAIN, "")
    return said_of_form(roles.label, form, unit)
