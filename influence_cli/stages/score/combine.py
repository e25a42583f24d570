"""How several score columns become one: the rule, its options, and what kind of scores it gives (methods.md 3.6)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from influence_cli.actions.protocol import Floats
from influence_cli.errors import UsageError, nearest
from influence_cli.maths import combine as rules
from influence_cli.settings import Options, build_options

RULES = ("ranksum", "zsum", "minrank", "lexi", "linear")
WEIGHTED = ("zsum", "linear")
NEED_SIGN = ("lexi", "linear")


@dataclass(frozen=True)
class Combine:
    """Options of the rules; columns are in the order in which they are named."""

    weights: str = field(default="", metadata={"help": "zsum, linear: one number a column, such as 0.7,0.3"})
    clip: float = field(default=5.0, metadata={"help": "zsum: bound of the robust z-scores"})

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ValueError(f"clip={self.clip} is not positive")

    def shares(self, rule: str, columns: int) -> Floats:
        """The weights of so many columns, summing to one.

        Raises:
            UsageError: they cannot be read, are not positive, or the rule takes none.
        """
        if not self.weights:
            return np.full(columns, 1.0 / columns)
        if rule not in WEIGHTED:
            raise UsageError(f"--combine {rule} takes no weights", fix="leave combine.weights out, or use zsum")
        try:
            values = np.array([float(part) for part in self.weights.split(",")])
        except ValueError as error:
            raise UsageError(f"combine.weights={self.weights!r} cannot be read", fix="write 0.7,0.3") from error
        if len(values) != columns or not (np.isfinite(values) & (values >= 0)).all() or values.sum() <= 0:
            raise UsageError(
                f"combine.weights={self.weights!r} are not {columns} numbers of at least 0, one of them positive",
                fix="give one for each column, such as 0.7,0.3",
            )
        return values / values.sum()


def check_rule(rule: str) -> None:
    """Refuse a rule that is not there.

    Raises:
        UsageError: an unknown rule.
    """
    if rule not in RULES:
        raise UsageError(f"--combine {rule!r} is unknown", fix=nearest(rule, list(RULES)))


def kind_of(rule: str) -> str:
    """Whether the sign of what a rule gives means something: only for linear, which is an objective's own score."""
    return "signed" if rule == "linear" else "ranking"


def combined(rule: str, columns: Floats, options: Combine) -> Floats:
    """One score a row [n] from columns [k, n] by any rule but ``linear``; nan where a column has none."""
    usable = np.isfinite(columns).all(axis=0)
    shares = options.shares(rule, len(columns))
    score = np.full(columns.shape[1], np.nan)
    if usable.any():
        given = columns[:, usable]
        score[usable] = rules.zsum(given, shares, options.clip) if rule == "zsum" else getattr(rules, rule)(given)
    return score


def combine_options(options: Options) -> Combine:
    """The options of the rules, as ``--set combine.KEY=VALUE`` gives them."""
    return build_options(Combine, "combine", options.get("combine", {}))
