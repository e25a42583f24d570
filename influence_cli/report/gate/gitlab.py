"""GitLab's Code Quality report: a finding for each flagged row, with a fingerprint that stays while the row does."""

from __future__ import annotations

import json

from influence_cli.report.gate.texts import Document, fingerprints, path_of, row_said


def render(document: Document, root: str | None = None) -> str:
    """The findings as a list; an empty one where nothing is flagged."""
    tripped = document["verdict"] == "tripped"
    findings = [
        {
            "description": row_said(row, document),
            "check_name": "influence/unjudged-row" if row["reason"] else "influence/suspicious-row",
            "fingerprint": name,
            "severity": ("critical" if row["reason"] else "major") if tripped else "info",
            "location": {"path": path_of(row, document, root), "lines": {"begin": row["line"] or 1}},
        }
        for row, name in zip(document["rows"], fingerprints(document["rows"]), strict=True)
    ]
    return json.dumps(findings, indent=1, ensure_ascii=False) + "\n"
