"""A table of text, and how figures are written in its cells."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextTable:
    """A titled table; ``notes`` are sentences below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def bracketed(value: float | None, interval: list[float] | None, how: str = "{:.3f}") -> str:
    """'0.834 [0.783, 0.876]'."""
    if value is None:
        return "-"
    if interval is None:
        return how.format(value)
    return f"{how.format(value)} [{', '.join(how.format(b) for b in interval)}]"


def number(value: float | None) -> str:
    """A number with four digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def fixed(value: float | None, decimals: int = 3) -> str:
    """A number with so many decimals, or a dash."""
    return "-" if value is None else f"{value:.{decimals}f}"


def signed(value: float) -> str:
    """'+0.012'."""
    return f"{value:+.3f}"
