"""Every size of every experiment, in one place: ``FULL`` is what is recorded, ``QUICK`` what the tests run."""

from __future__ import annotations

from typing import Any

FULL: dict[str, dict[str, Any]] = {
    "R1": {"seeds": 20},
    "R2": {"seeds": 5, "epochs": [200, 2000]},
    "R3": {"seeds": 20},
    "R4": {"seeds": 5, "noise": [9, 17, 40]},
    "R5": {"seeds": 5, "noise": 17},
    "R6": {"seeds": 3, "noise": 17},
    "R7": {"seeds": 5, "bias": 60},
    "R8": {"splits": 3},
    "R9": {"rows": 400, "subsets": 100, "digits subsets": 50},
    "R10": {"repeats": 3},
    "R11": {"draws": 500, "seeds": 3, "characters": 60},
}
QUICK: dict[str, dict[str, Any]] = {
    "R1": {"seeds": 2},
    "R3": {"seeds": 2},
    "R9": {"rows": 200, "subsets": 40, "digits subsets": 0},
}
