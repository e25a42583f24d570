"""How many rows may be touched: shares and counts as people write them."""

from __future__ import annotations

from influence_cli.errors import UsageError


def parse_budget(text: str, n: int, flag: str = "--budget") -> int:
    """'5%' of n rows, rounded down, or a number of rows.

    Raises:
        UsageError: neither, or outside 0 to n.
    """
    try:
        rows = int(float(text[:-1]) / 100 * n + 1e-9) if text.endswith("%") else int(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{flag} {text!r} is neither a share nor a count", fix="write 5% or 200") from error
    if not 0 <= rows <= n:
        raise UsageError(f"{flag} {text} is outside 0 to {n} rows", fix="write 5% or 200")
    return rows


def parse_share(text: str, flag: str) -> float:
    """'5%' or 0.05 as a number between 0 and 1.

    Raises:
        UsageError: it is neither, or outside.
    """
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text!r} is no share", fix="write 5%") from error
    if not 0 < value < 1:
        raise UsageError(f"{flag} {text} is not between 0 and 100%", fix="write 5%")
    return value
