"""SARIF 2.1.0, as code scanning takes it: a result for each flagged row, which keeps its name while the row does.

GitHub takes 25,000 results of a run and shows 5,000; the first of these are given, and a notification says how many
more there are.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from typing import Any
from urllib.parse import quote

from influence_cli.report.gate.texts import Document, Row, fingerprints, path_of, row_said, steps_said

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MOST = 5000  # results
SUSPICIOUS, UNJUDGED = "influence/suspicious-row", "influence/unjudged-row"
_RULES = {
    SUSPICIOUS: "A new row scores lower than rows that the model has not seen usually do: its label may be wrong.",
    UNJUDGED: "A new row has no score, so nothing is known of it.",
}


def render(document: Document, root: str | None = None) -> str:
    """The verdict as a log of one run."""
    tripped, rows = document["verdict"] == "tripped", document["rows"]
    names = list(_RULES)
    shown = zip(rows[:MOST], fingerprints(rows[:MOST]), strict=True)
    results = [_result(row, name, document, root, tripped, names) for row, name in shown]
    said = [document["sentence"], *document["notes"]]
    said += [f"{len(rows) - MOST:,} more flagged rows are left out: code scanning shows {MOST:,}"] * (len(rows) > MOST)
    invocation = {
        "executionSuccessful": True,
        "exitCode": int(tripped),
        "toolExecutionNotifications": [{"level": "note", "message": {"text": _plain(text)}} for text in said],
    }
    help_text = "\n".join(steps_said(document)) or "See `influence guide gate`."
    driver = {
        "name": "influence",
        "version": importlib.metadata.version("influence-cli"),
        "rules": [
            {
                "id": name,
                "shortDescription": {"text": text},
                "fullDescription": {"text": text},
                "help": {"text": _plain(help_text)},
                "defaultConfiguration": {"level": "error" if name == UNJUDGED else "warning"},
            }
            for name, text in _RULES.items()
        ],
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": "influence/gate/"},
        "invocations": [invocation],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, ensure_ascii=False) + "\n"


def _result(
    row: Row, fingerprint: str, document: Document, root: str | None, tripped: bool, names: list[str]
) -> dict[str, Any]:
    rule = UNJUDGED if row["reason"] else SUSPICIOUS
    uri = quote(os.fsencode(path_of(row, document, root)).replace(os.sep.encode(), b"/"))
    numbers = {name: row[name] for name in ("score", "p_value", "effect") if row.get(name) is not None}
    return {
        "ruleId": rule,
        "ruleIndex": names.index(rule),
        "level": ("error" if row["reason"] else "warning") if tripped else "note",
        "message": {"text": _plain(row_said(row, document))},
        "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": row["line"] or 1}}}
        ],
        "partialFingerprints": {"primaryLocationLineHash": fingerprint, "influenceRowKey/v1": row["row_key"]},
        "properties": {"id": row["id"], **numbers},
    }


def _plain(text: str) -> str:
    """A message in which nothing is a link: ``[text](target)`` is one in SARIF."""
    return text.replace("](", "] (")
