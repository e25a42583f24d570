"""What is asked of scores of tokens: which rows' are split, and how."""

from __future__ import annotations

from dataclasses import dataclass

from influence_cli.options import SCORE, check_choices, option

LOSS, POSITION = "loss", "position"


@dataclass(frozen=True)
class TokenRequest:
    """Which rows' scores are split over their tokens, and how."""

    tokens: bool = option(
        False, "Language models: scores of the tokens of the most helpful and harmful rows.", (SCORE,), stored=False
    )
    decomposition: str = option(
        LOSS, "--tokens: by the token whose loss it is (loss), or where the gradient enters (position).", (SCORE,),
        choices=(LOSS, POSITION),
    )  # fmt: skip
    row_id: tuple[str, ...] = option(
        (), "--tokens: this row, by its id, in place of the most helpful and harmful.", (SCORE,), stored=False,
        metavar="ID",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_choices(self)
