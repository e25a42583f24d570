"""The settings of one command, resolved: every value with its origin, and the requests that are made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from influence_cli.options import build_request

T = TypeVar("T")


@dataclass
class Settings:
    """Resolved values of one command, each with its origin; a command reads them as requests."""

    command: str
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # method, objective or action -> options
    source: str | None = None  # the positional argument
    more: tuple[str, ...] = ()  # what stands after it, where a command takes several
    file: Path | None = None  # the settings file that was read

    def put(self, name: str, value: Any, origin: str) -> None:
        """Set a value with its origin."""
        self.values[name], self.origins[name] = value, origin

    def make(self, kind: type[T], **more: Any) -> T:
        """A request from these settings; ``more`` are values of its fields that settings do not say."""
        return build_request(kind, {**self.values, "set": self.options, "options": self.options}, **more)

    def explicit(self, name: str) -> bool:
        """Whether a flag or the environment says so, not a file or a default."""
        return self.origins[name] in ("flag", "environment")

    def chosen(self, name: str) -> Any:
        """The value that anybody gives; None for the default."""
        return None if self.origins[name] == "default" else self.values[name]

    def insisted(self, name: str) -> Any:
        """The value that a flag or the environment gives; None where neither does."""
        return self.values[name] if self.explicit(name) else None
