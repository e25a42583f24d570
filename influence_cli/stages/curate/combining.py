"""Several columns of a score table into one, by a named rule; and which columns are meant by short names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from influence_cli.actions.protocol import Floats
from influence_cli.data.tables import numbers
from influence_cli.errors import UsageError, nearest
from influence_cli.maths.combine import linear
from influence_cli.stages.score.combine import NEED_SIGN, Combine, check_rule, combined
from influence_cli.store.arrow import values_of

DEFAULT_RULE = "ranksum"


def score_column_names(table: pa.Table) -> list[str]:
    """The columns that rows can be ranked by."""
    return [n for n in table.column_names if n == "score" or (n.startswith("score_") and n != "score_std")]


def column_named(name: str, table: pa.Table, where: str) -> str:
    """The score column that is meant: its whole name, or what stands after ``score_`` or ``score_METHOD_``.

    Raises:
        UsageError: there is none, or several.
    """
    known = score_column_names(table)
    if name in known or f"score_{name}" in known:
        return name if name in known else f"score_{name}"
    ends = [n for n in known if n.endswith(f"_{name}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"{name!r} may be any of {', '.join(ends)}", where=where, fix="give the whole name")
    raise UsageError(f"no score column {name!r}", where=where, fix=nearest(name, known))


def floats(table: pa.Table, name: str) -> Floats:
    """A column as float64, nan where it is null."""
    return values_of(numbers(table, name), float("nan"))


def combine_columns(
    table: pa.Table, names: list[str], rule: str, options: Combine, origin: dict[str, Any], where: str
) -> Floats:
    """One score a row from columns of a table.

    Raises:
        UsageError: an unknown rule, a column twice, or a rule that needs what the table does not hold.
    """
    check_rule(rule)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(
            "--combine needs two or more different columns", where=where, fix="--by score_utility --by score_fairness"
        )
    if rule in NEED_SIGN:
        kinds = {**origin.get("kinds", {}), "score": origin.get("kind")}
        bad = [n for n in names if kinds.get(n) != "signed"]
        if bad:
            what = f"--combine {rule} needs scores whose sign means something; {bad[0]} is ranking-only"
            raise UsageError(what, where=where, fix="use columns of a signed method, such as ip, or --combine ranksum")
    if rule != "linear":
        return combined(rule, np.stack([floats(table, n) for n in names]), options)
    return _linear(table, names, options, origin, where)


def _linear(table: pa.Table, names: list[str], options: Combine, origin: dict[str, Any], where: str) -> Floats:
    """The blended objective's score, exact: per member where a method has several, whose norms differ."""
    names = [origin.get("score_is") or n if n == "score" else n for n in names]
    norms = [origin.get("norms", {}).get(n) for n in names]
    if any(m is None for m in norms) or len({len(m) for m in norms if m is not None}) > 1:
        what = "--combine linear needs the lengths of the directions, which the table does not hold for these columns"
        raise UsageError(what, where=where, fix="score the objectives by one method, or use --combine ranksum")
    lengths = np.array(norms, dtype=np.float64)  # [k, M]
    if not (lengths > 0).all():
        flat = names[int((lengths <= 0).any(axis=1).argmax())]
        raise UsageError(f"the direction of {flat} is zero: there is nothing to blend", where=where, fix="leave it out")
    members = lengths.shape[1]
    parts = [[n] if members == 1 else [f"{n}_{k}" for k in range(members)] for n in names]
    missing = [p for part in parts for p in part if p not in table.column_names]
    if missing:
        what = f"--combine linear needs every member's scores ({missing[0]}): the members' directions differ in length"
        fix = "run `influence score --per-member`, or `influence score --combine linear`"
        raise UsageError(what, where=where, fix=fix)
    shares = options.shares("linear", len(names))
    blended = [
        linear(np.stack([floats(table, part[k]) for part in parts]), shares, lengths[:, k]) for k in range(members)
    ]
    weights = origin.get("member_weights", {}).get(names[0])  # only where members weigh differently
    if not weights:
        return np.mean(blended, axis=0)
    times = sum(weights) if names[0] in origin.get("summed_over_members", ()) else 1.0
    return times * np.average(blended, axis=0, weights=weights)
