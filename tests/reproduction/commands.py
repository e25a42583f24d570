"""The command line, run in this process in the folder of a part; what was run is kept, to stand beside the results."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from influence_cli.data.tables import provenance
from tests.cases import Ran, call_cli, column


class CommandFailed(RuntimeError):
    """A command of an experiment ended with another exit code than 0."""


class Commands:
    """Runs commands in one folder.  ``lines`` are those that were run, as one would type them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []

    def __call__(self, *words: Any) -> Ran:
        """Run ``influence WORDS``.

        Raises:
            CommandFailed: it failed; the message has what it said.
        """
        line = shlex.join(["influence", *map(str, words)])
        self.lines.append(line)
        ran = call_cli(*words, cwd=self.folder)
        if ran.code != 0:
            raise CommandFailed(f"{line}\nexit code {ran.code} in {self.folder}\n{ran.err}")
        return ran

    def scores(self, *words: Any, output: str = "scores.parquet") -> Scores:
        """The score table that ``influence score WORDS -o OUTPUT`` writes."""
        self("score", *words, "-o", output)
        return Scores(self.folder / output)

    def arms(self, *words: Any) -> dict[str, dict[str, float]]:
        """What ``influence retrain WORDS --json`` measures of each arm: its first seed, or the mean over its draws."""
        found = self("retrain", *words, "--json").json["arms"]
        return {name: _means(arm) for name, arm in found.items()}


class Scores:
    """A score table: columns as arrays, and what the table says of how they were made."""

    def __init__(self, path: Path) -> None:
        self.table = pq.read_table(path)
        self.provenance: dict[str, Any] = provenance(self.table.schema)

    def __getitem__(self, name: str) -> Any:
        """A column [n] as float64; ``ip`` is short for ``score_ip_utility``, ``loss`` for ``score_loss``."""
        named = (f"score_{name}", f"score_{name}_utility", name)
        return column(self.table, next(n for n in named if n in self.table.column_names))


def _means(arm: dict[str, Any]) -> dict[str, float]:
    """Numbers of an arm, each the mean over its seeds and draws."""
    runs = [*arm["seeds"].values(), *arm.get("draws", [])]
    names = [n for n, v in runs[0].items() if isinstance(v, int | float) and n not in ("seed", "measured", "steps")]
    means = {n: sum(run[n] for run in runs) / len(runs) for n in names if all(n in run for run in runs)}
    edits = arm.get("edits") or {}
    extra = {n: edits[n] for n in ("wrong_share_of_trimmed",) if edits.get(n) is not None}
    return {**means, **extra, "edited": sum(edits.get(e, 0) for e in ("trimmed", "relabelled", "reweighted"))}


def words(flag: str, values: Iterable[Any]) -> list[Any]:
    """A flag before each of the values: --method ip --method loss."""
    return [word for value in values for word in (flag, value)]


def control_of(arms: dict[str, Any], name: str) -> str:
    """The name of the first random control of an arm."""
    return next(other for other in arms if other.startswith(f"{name}: "))


def run_part(measure: Callable[..., dict[str, Any]], folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What a part finds, through JSON, with the commands that it ran."""
    folder.mkdir(parents=True, exist_ok=True)
    commands = Commands(folder)
    found = measure(commands, **settings)
    return json.loads(json.dumps({"found": found, "commands": commands.lines}, allow_nan=False))
