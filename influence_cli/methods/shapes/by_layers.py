"""What methods share whose curvature is block-diagonal, a block a layer or a tensor: precision and what is left over.

Parameters that a method has no block for are named in a warning, with their share.  ``other`` says what becomes of
them: u is q over the mean eigenvalue, damped by the same rule (identity), or 0 (zero), or nothing is scored (refuse).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from influence_cli.errors import UsageError
from influence_cli.methods.protocol import Facts
from influence_cli.methods.shapes.preconditioned import Streamed
from influence_cli.settings import setting

if TYPE_CHECKING:
    from influence_cli.curvature.curvature import Curvature

OTHER = ("identity", "zero", "refuse")
NAMED = 6  # parameters that a message names


@dataclass(frozen=True)
class ByLayers(Streamed):
    """A method with a block of curvature for every layer or tensor that it can have one for."""

    name: ClassVar[str]  # as options of it are set
    without_block: ClassVar[str]  # what the parameters lack that have no block

    other: str = setting("identity", "what becomes of parameters that have no block: " + ", ".join(OTHER))

    def seen(self, curvature: Curvature, most: int | None = None) -> Curvature:
        """The same, which reports progress and keeps its state between."""
        seen = super().seen(curvature, most)
        seen.listener, seen.interim = curvature.listener, curvature.interim
        return seen

    def check_left_over(self, others: list[str]) -> None:
        """Refuse parameters without a block where the options say so.

        Raises:
            UsageError: there are some; names them.
        """
        if others and self.other == "refuse":
            raise UsageError(
                f"{self.name} has {self.without_block} for {_named(others)}",
                fix=f"--set {self.name}.other=identity (or zero), or select others with --params",
            )

    def warnings(self, facts: Facts) -> list[str]:
        """Which parameters have no block, and what becomes of them."""
        if not facts.get("others"):
            return []
        covered, every = facts["covered"], facts["parameters"]
        what = {"identity": "have the identity over the mean eigenvalue", "zero": "count as zero"}[facts["other"]]
        none = "" if covered else ": no curvature enters these scores, select other --params"
        return [
            f"{covered:,} of {every:,} selected parameters ({100 * covered / every:.4g}%) are covered; there are "
            f"{self.without_block} for {_named(facts['others'])}, which {what} (other={facts['other']}){none}"
        ]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
