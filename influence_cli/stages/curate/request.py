"""What ``curate`` is asked to do: with which scores, under which budget, when the gate trips, and where edits go."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from influence_cli.settings import Options


@dataclass(frozen=True)
class CurateRequest:
    """What to do with a score table."""

    scores: Any  # a path, "-", or a table in memory
    action: str = "trim"
    budget: str | None = None  # "5%" or "200"; default 5 %
    manifest: Any = None  # default: where the provenance says
    label: str | None = None
    by: tuple[str, ...] = ("score",)  # score columns; several are combined
    combine: str | None = None  # how; default ranksum
    maximise: str | None = None  # a score column, in place of ``by``: choose the rows that gain most of it ...
    subject_to: tuple[str, ...] = ()  # ... where others stay at least at "NAME>=NUMBER"
    options: Options = field(default_factory=dict)
    skip_bad: bool = False


@dataclass(frozen=True)
class GateRequest:
    """When the gate trips."""

    max_flagged: str = "0"
    false_flag: str = "1%"
    threshold: float | None = None
    baseline: str | None = None


@dataclass(frozen=True)
class ExportRequest:
    """Where the edited rows go, and in which form."""

    path: str
    form: str | None = None  # default: the form that the manifest was made from
    link: str = "symbolic"
    url_prefix: str = ""
