"""The columns of a score table that a counterfactual can be held against, and why others cannot."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from influence_cli.methods.random import uniform_draws
from influence_cli.stages.curate.combining import floats
from influence_cli.stages.curate.score_table import ScoreTable

Floats = NDArray[np.float64]

MEASURED = "utility"  # the objective that is measured: the mean target loss
RANDOM = "random"


@dataclass(eq=False)
class ScoreColumns:
    """Scores [n] by name, positive or high where the row helps; ``left_out`` says why a column is in neither."""

    signed: dict[str, Floats] = field(default_factory=dict)  # add up: a sum predicts a change of Phi
    ranking: dict[str, Floats] = field(default_factory=dict)  # order rows and nothing more
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, Floats]:
        """Every column that orders rows."""
        return {**self.signed, **self.ranking}


def columns_of(scores: ScoreTable, used: NDArray[np.bool_]) -> ScoreColumns:
    """The score columns of a table, with loss and margin where there; members' columns are no scores of their own."""
    table, found = scores.table, ScoreColumns()
    kinds: dict[str, str] = scores.provenance.get("kinds", {})
    others = [o for o in scores.provenance.get("spec", {}).get("objectives", []) if o != MEASURED]
    for name in table.column_names:
        if not name.startswith("score_") or name == "score_std" or _of_a_member(name, table.column_names):
            continue
        shown, values = name.removeprefix("score_"), floats(table, name)
        objective = next((o for o in others if shown == o or shown.endswith(f"_{o}")), None)
        if shown == RANDOM:
            continue  # the floor is drawn for every table
        if name not in kinds:
            found.left_out[shown] = "its kind, signed or ranking-only, is not recorded"
        elif objective is not None:
            found.left_out[shown] = f"its objective is {objective}; what is measured is the mean target loss"
        elif (reason := _unusable(values[used])) is not None:
            found.left_out[shown] = reason
        else:
            (found.signed if kinds[name] == "signed" else found.ranking)[shown] = values
    for name, sign in (("loss", -1.0), ("margin", 1.0)):
        if name in table.column_names and name not in found.ranking:
            values = sign * floats(table, name)
            if _unusable(values[used]) is None:
                found.ranking[name] = values
    return found


def random_column(scores: ScoreTable, seed: int) -> Floats:
    """The floor: a draw for every train row [n]."""
    return uniform_draws(scores.train.ids, seed)


def _of_a_member(name: str, names: list[str]) -> bool:
    """Whether a column holds one member's scores: that of its mean, an underscore and a number."""
    match = re.fullmatch(r"(.+)_\d+", name)
    return match is not None and match[1] in names


def _unusable(values: Floats) -> str | None:
    missing = int((~np.isfinite(values)).sum())
    return None if missing == 0 else f"{missing} rows have no score"
