"""A table of text, and how figures are written in its cells."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextTable:
    """A titled table; ``notes`` are sentences below it, ``verdict`` is the number of the column that says who won."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    verdict: int | None = None


class Judged(str):
    """A figure with its verdict, '+0.39 ± 0.93 not resolved': a page puts the verdict first, and sets it apart."""

    figure: str
    verdict: str

    def __new__(cls, figure: str, verdict: str) -> Judged:
        """The two as one text."""
        made = super().__new__(cls, f"{figure} {verdict}".strip())
        made.figure, made.verdict = figure, verdict
        return made


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


def share(value: float, decimals: int = 1) -> str:
    """A share in percent, with the sign: '18.8%'.

    >>> share(0.1875), share(0.5, 0)
    ('18.8%', '50%')
    """
    return f"{value:.{decimals}%}"


def percent(mean: float, half: float | None) -> str:
    """A mean share in percent with the half-width of its interval, without the sign: '87.45 ± 0.39'.

    >>> percent(0.8745, 0.0039), percent(0.8745, None)
    ('87.45 ± 0.39', '87.45')
    """
    return f"{100 * mean:.2f}" + ("" if half is None else f" ± {100 * half:.2f}")


def points(mean: float, half: float | None) -> str:
    """A difference of two shares in points: '+0.39 ± 0.93'.

    >>> points(-0.0039, 0.0093)
    '-0.39 ± 0.93'
    """
    return ("+" if mean >= 0 else "") + percent(mean, half)
