"""What stages write into the provenance of a table, as far as others read it: a stranger's table may say anything."""

from __future__ import annotations

from typing import Any

from influence_cli.errors import ManifestError

TEXT, FLAG = (str, type(None)), (bool, type(None))
# a tuple of types; a dict of fields, other ones are free; a list of one shape, for every element of a list; or
# ("each", SHAPE) for every value of an object
SHAPE: dict[str, Any] = {
    "manifest": {"locator": TEXT, "label": TEXT, "fingerprint": TEXT, "group": TEXT},
    "target": {"locator": TEXT, "fingerprint": TEXT},
    "fit_rows": {"locator": TEXT, "fingerprint": TEXT},
    "checkpoint": {"locator": TEXT, "fingerprint": TEXT},
    "model": {"classes": [TEXT], "name": TEXT, "kind": TEXT},
    "spec": {"methods": [TEXT], "objectives": [TEXT], "options": ("each", {})},
    "model_flags": {},
    "curvature": ("each", {}),
    "noise": ("each", {}),
    "kinds": ("each", TEXT),
    "objective_of": ("each", TEXT),
    "effect_divisors": {},
    "norms": ("each", [(int, float, type(None))]),
    "member_weights": ("each", [(int, float)]),
    "paths_given": ("each", TEXT),
    "preconditioned": {},
    "action": {"options": {}, "added_columns": [TEXT]},
    "given_up": [{"what": TEXT}],
    "skipped": [TEXT],
    "kind": TEXT, "score_is": TEXT, "stage": TEXT, "skip_bad": FLAG,
}  # fmt: skip
MAY_BE_NULL = ("fit_rows", "checkpoint", "model", "action", "model.classes", "action.added_columns")


def fault(value: Any, shape: Any = None, name: str = "") -> str | None:
    """What of a provenance is not as a stage writes it; None where all that is known of is.

    >>> fault({"kinds": {"score": "signed"}}), fault({"kinds": {"score": 5}}), fault({"skipped": {}})
    (None, 'kinds.score is int', 'skipped is dict')
    """
    shape = SHAPE if shape is None else shape
    if value is None and name in MAY_BE_NULL:
        return None
    wrong = f"{name or 'it'} is {type(value).__name__}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return wrong
        return next((f for part in value if (f := fault(part, shape[0], f"an element of {name}"))), None)
    if isinstance(shape, tuple) and shape[:1] != ("each",):
        return None if isinstance(value, shape) else wrong
    if not isinstance(value, dict):
        return wrong
    fields = dict.fromkeys(value, shape[1]) if isinstance(shape, tuple) else shape
    below = (fault(value[k], part, f"{name}.{k}".lstrip(".")) for k, part in fields.items() if k in value)
    return next((f for f in below if f), None)


def check(value: dict[str, Any], where: str) -> None:
    """Refuse (ManifestError) a provenance that is not as a stage writes it."""
    wrong = fault(value)
    if wrong is not None:
        what = f"the provenance of a table is not as a stage writes it: {wrong}"
        raise ManifestError(what, where=where, fix="give the table as it was written")
