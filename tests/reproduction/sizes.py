"""Every size of every experiment, in one place: ``FULL`` is what is recorded, ``QUICK`` what the tests run."""

from __future__ import annotations

from typing import Any

FULL: dict[str, dict[str, Any]] = {
    "R1": {"seeds": 20},
    "R3": {"seeds": 10},
}
QUICK: dict[str, dict[str, Any]] = {
    "R1": {"seeds": 4},
    "R3": {"seeds": 2},
}
