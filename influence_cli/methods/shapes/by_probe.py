"""Methods that judge a row's label by a linear probe on penultimate features, fitted on other rows (``linear_probe``).

The probe is a ridge regression of class indicators on standardised features, float64, in closed form; rows count by
their weights.  With z [C] what it gives for a row:

    s_i = log softmax(beta z_i)[y],   or with value=margin   beta (z_i[y] - max_{c != y} z_i[c])

beta > 0 makes beta z logits: it is the one of greatest likelihood of labels that the probe has not seen.  Where labels
are numbers, or several a row, s_i is minus the mean squared error of z.  The strength is chosen among
``linear_probe.STRENGTHS`` by squared error on rows that the probe has not seen, unless it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.label_kinds import NOTHING
from influence_cli.errors import NoFeatures, UsageError
from influence_cli.maths.labels import cross_entropy, margin
from influence_cli.maths.linear_probe import STRENGTHS, indicators, likeliest_scale
from influence_cli.methods.checks import check_options
from influence_cli.methods.protocol import Facts, Floats, Kind, Method, Scores
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.model.losses import RowLoss

WIDEST = 16_384  # features of a row: two matrices of so many squared are held, in float64
VALUES = ("likelihood", "margin")
NO_CLASS = "are of a class that no row of the fit has"


@dataclass(frozen=True)
class ByProbe(Method):
    """Ranking only; one member, the model whose features they are."""

    needs: ClassVar[str] = "features"
    kind: ClassVar[Kind] = "ranking"

    folds: int = setting(5, "folds of the rows that are fitted on")
    strength: float | Literal["auto"] = setting(
        "auto", "ridge penalty beside the mean squared error; auto: chosen on held-out rows"
    )
    value: str = setting("likelihood", "of a row: likelihood (log of its label's probability), margin")
    seed: int = setting(0, "of the folds")

    def __post_init__(self) -> None:
        check_options(self, {"value": VALUES}, {"folds": 3, "seed": 0})
        if self.strength != "auto" and not self.strength > 0:
            raise ValueError(f"strength={self.strength} is not positive")

    @property
    def strengths(self) -> tuple[float, ...]:
        """Those that are tried."""
        return STRENGTHS if self.strength == "auto" else (float(self.strength),)

    def check_run(self, name: str, loss: RowLoss, train: int, target: int) -> None:
        """Refuse (UsageError) language models, and fewer rows than folds."""
        if loss.holds == NOTHING:
            what = f"{name} judges labels by one vector of features a row, and a language model has neither"
            raise UsageError(what, fix="use --method loss, or self-tracin")
        rows, what = (target, "target") if self.needs_target() else (train, "train")
        if rows < self.folds:
            fix = f"give more {what} rows" if rows < 3 else f"pass --set {name}.folds={rows}"
            raise UsageError(f"{name}.folds={self.folds} of {rows} {what} rows", fix=fix)

    def check_width(self, name: str, width: int) -> None:
        """Refuse (NoFeatures) features that are too many."""
        refuse_wide(width, name)

    def judged(
        self, given: Floats, labels: NDArray[Any], loss: RowLoss, held_out: tuple[Floats, NDArray[Any], Floats],
        fitted: Floats, facts: Facts,
    ) -> Scores:  # fmt: skip
        """The scores of rows for which the probe gives [n, m], NaN where it gives nothing.

        ``held_out``: what it gives for rows that it has not seen, their labels and weights, of which beta is the
        likeliest.  ``fitted`` [m]: how much of each target there is among the rows of the fit.
        """
        if not loss.by_class:
            wanted = labels[:, None] if labels.ndim == 1 else labels
            return Scores(-((given - wanted) ** 2).mean(axis=1), facts=facts)
        beta = likeliest_scale(*held_out)
        logits, values = beta * given, np.full(len(given), np.nan)
        known = np.isfinite(given).all(axis=1)
        unknown = fitted[labels] == 0.0
        scored = known & ~unknown
        z, y = logits[scored], labels[scored]
        values[scored] = margin(z, y) if self.value == "margin" else -cross_entropy(z, y)
        facts = {**facts, "beta": beta}
        return Scores(values, logits=logits, facts=facts, no_score=NO_CLASS, excused=known & unknown)


def refuse_wide(width: int, name: str) -> None:
    """Refuse (NoFeatures) so many features of a row that a dense matrix of them squared is too large."""
    if width > WIDEST:
        what = f"{name} holds a matrix of {width:,} features squared (at most {WIDEST:,})"
        raise NoFeatures(what, fix="use --method knn, or another model: --features MODEL")


def targets_of(labels: NDArray[Any], loss: RowLoss, classes: int) -> Floats:
    """What the probe is to give for rows with such labels, [n, m]."""
    if loss.by_class:
        return indicators(labels, classes)
    return (labels[:, None] if labels.ndim == 1 else labels).astype(np.float64)
