"""Options of a method that can be nothing: refused as soon as it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MOST_MEMBERS = 10_000  # each is a pass of its own, and stands in every plan


def refuse_many(name: str, count: int | None) -> None:
    """Refuse (ValueError) more members than any run could have: they would be listed until memory is gone."""
    if count is not None and count > MOST_MEMBERS:
        raise ValueError(f"{name}={count} is above {MOST_MEMBERS}")


def check_options(
    method: Any,
    choices: Mapping[str, tuple[str, ...]],
    least: Mapping[str, int],
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = ("damping", "l2"),
) -> None:
    """Refuse options that are none of their choices, below the least, not positive, or negative; one may be left out.

    Raises:
        ValueError: says which, and what it may be.
    """
    for name, known in choices.items():
        if getattr(method, name) not in known:
            raise ValueError(f"{name} {getattr(method, name)!r} is unknown; use one of {', '.join(known)}")
    for name in not_negative:
        value = getattr(method, name, None)
        if value is not None and value < 0:
            raise ValueError(f"{name}={value} is negative")
    for name, smallest in least.items():
        value = getattr(method, name)
        if value is not None and value < smallest:
            raise ValueError(f"{name}={value} is below {smallest}")
    for name in ("members", "chains"):
        refuse_many(name, getattr(method, name, None))
    for name in positive:
        value = getattr(method, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value} is not positive")
