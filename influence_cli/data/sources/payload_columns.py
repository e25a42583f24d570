"""The payload of a table's rows, as a manifest holds it: an image, what is stored as such, or features."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from influence_cli.data.kinds import kind_in
from influence_cli.data.kinds.protocol import is_text
from influence_cli.data.plain_types import is_list, pc
from influence_cli.data.sources.features import VECTOR, column_of, count_blurred, encoded
from influence_cli.data.sources.roles import Roles
from influence_cli.data.sources.text_columns import texts_of_rows
from influence_cli.errors import ManifestError

UNKNOWN = "is no category that is known"  # of an earlier manifest
MANY = 0.1  # share of the rows with such values, above which a feature says little
SHOWN = 5  # such values of a column


def payload_columns(table: pa.Table, roles: Roles, where: str, counts: Counter[str]) -> dict[str, pa.Array]:
    """The payload of a table's rows, by a manifest's column names; ``counts`` gets what is worth saying of values.

    Raises:
        ManifestError: a column cannot be what it is taken for.
    """
    of = lambda name: column_of(table, name)  # noqa: E731
    if roles.image is not None:
        image = of(roles.image)
        return {"path" if is_text(image.type) or pa.types.is_null(image.type) else "image": image}
    if roles.text:
        return texts_of_rows(table, roles.text)
    if roles.own:
        return {name: _payload(of(name), name, where, counts) for name in roles.own}
    for feature in roles.features:
        if feature.kind == VECTOR:
            _count_blurred(of(feature.column), feature.column, counts)
        for value in feature.unknown(of(feature.column)):
            counts[f"column {feature.column}: {value!r} {UNKNOWN}"] += 1
    return {"features": encoded(roles.features, table)}


def _count_blurred(values: pa.Array, name: str, counts: Counter[str]) -> None:
    """Count lists with a number that float32 does not hold."""
    inner = values.flatten()
    if is_text(inner.type) or pa.types.is_float32(inner.type) or pa.types.is_nested(inner.type):
        return
    numbers = pc.cast(inner, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    count_blurred(numbers, f"column {name}: ", counts)


def _payload(values: pa.Array, name: str, where: str, counts: Counter[str]) -> pa.Array:
    """A payload's column as a manifest holds it; lists of numbers that are text become numbers."""
    kind = kind_in([name])
    if is_list(values.type):
        _count_blurred(values, name, counts)
    if kind is None or kind.holds(values.type) or name not in kind.types or not is_list(values.type):
        return values
    try:
        return pc.cast(values, kind.types[name])
    except (pa.ArrowException, TypeError) as error:
        what = f"column {name} is {values.type}, not {kind.wanted}"
        raise ManifestError(what, where=f"{where}, column {name}", fix=f"store {kind.wanted}") from error


def mostly_unknown(counts: Counter[str], rows: int) -> list[str]:
    """A warning for every column whose values are no known categories in many of the rows: its feature says nothing."""
    found: dict[str, list[tuple[str, int]]] = {}
    for said, number in counts.most_common():
        if said.startswith("column ") and said.endswith(UNKNOWN):
            column, _, value = said.removesuffix(f" {UNKNOWN}").removeprefix("column ").partition(": ")
            found.setdefault(column, []).append((value, number))
    lines: list[str] = []
    for column, values in found.items():
        total = sum(number for _, number in values)
        if total > MANY * rows:
            shown = ", ".join(value for value, _ in values[:SHOWN])
            more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
            what = f"column {column}: {total:,} of {rows:,} rows have a value that the earlier manifest does not know"
            lines.append(f"{what} ({shown}{more}); they count as none of its categories")
    return lines
