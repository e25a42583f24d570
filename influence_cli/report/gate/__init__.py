"""The gate's verdict in the forms that CI reads: one lazy table, one file each.

Each has ``render(document, root)``, which makes text of the verdict as JSON (``guide/gate.schema.json``).  Paths in it
count from ``root``, the folder of the repository, or from the working folder where that is None.
"""

from __future__ import annotations

import importlib
from typing import Any

FORMATS: dict[str, str] = {
    "github": "influence_cli.report.gate.github:render",
    "junit": "influence_cli.report.gate.junit:render",
    "sarif": "influence_cli.report.gate.sarif:render",
    "gitlab": "influence_cli.report.gate.gitlab:render",
}
ROOTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")  # variables in which GitHub and GitLab name the repository's folder


def render(name: str, document: dict[str, Any], root: str | None) -> str:
    """The verdict in a format of ``FORMATS``."""
    module, _, function = FORMATS[name].partition(":")
    return getattr(importlib.import_module(module), function)(document, root)
