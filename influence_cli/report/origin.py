"""Where a page comes from: the command, what it was made of, and when, for its foot."""

from __future__ import annotations

import importlib.metadata
import os
import time
from dataclasses import dataclass
from typing import Any

SHOWN = 16  # characters of a fingerprint


def made_at(form: str) -> str:
    """The time of a page in UTC, in this form of ``strftime``: now, or at SOURCE_DATE_EPOCH (seconds)."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return time.strftime(form, time.gmtime(int(given) if given.isdigit() else None))


@dataclass(frozen=True)
class Origin:
    """The command that made a page, what it read (what, place, fingerprint or None), the version and the time."""

    command: str
    inputs: tuple[tuple[str, str, str | None], ...]
    version: str
    date: str

    @classmethod
    def now(cls, command: str, inputs: list[tuple[str, str, str | None]]) -> Origin:
        """Made now, or at SOURCE_DATE_EPOCH (seconds), which makes the same page byte for byte."""
        version = importlib.metadata.version("influence-cli")
        return cls(command, tuple(inputs), version, made_at("%Y-%m-%d %H:%M UTC"))

    def facts(self) -> list[tuple[str, str]]:
        """(what, text) for each line of a page's foot."""
        known = [("Command", self.command)] if self.command else []
        for what, place, fingerprint in self.inputs:
            known.append((what, place if fingerprint is None else f"{place} (fingerprint {fingerprint[:SHOWN]})"))
        return [*known, ("Version", f"influence {self.version}"), ("Made", self.date)]

    def place(self, what: str) -> str | None:
        """Where an input was read from."""
        return next((place for name, place, _ in self.inputs if name == what), None)


def inputs_of(provenance: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """Manifest and checkpoint, by what a score table says of where it comes from."""
    named = {"Manifest": provenance.get("manifest"), "Checkpoint": provenance.get("checkpoint")}
    return [
        (what, str(about["locator"]), about.get("fingerprint"))
        for what, about in named.items()
        if about and about.get("locator")
    ]
