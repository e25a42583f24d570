"""The table of commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from influence_cli.cli.commands.cache import cache
from influence_cli.cli.commands.curate import curate
from influence_cli.cli.commands.evaluate import evaluate
from influence_cli.cli.commands.grads import grads
from influence_cli.cli.commands.guide import guide
from influence_cli.cli.commands.manifest import manifest
from influence_cli.cli.commands.methods import methods
from influence_cli.cli.commands.retrain import retrain
from influence_cli.cli.commands.score import score
from influence_cli.cli.settings.settings import Settings


class Command(NamedTuple):
    """A command: its name, its argument (what stands for it, and its help), and what it does with its settings."""

    name: str
    argument: tuple[str, str]
    run: Callable[[Settings], int | None]


_MANIFEST = ("MANIFEST", "Parquet manifest, folder of Parquet files, or - for standard input.")
_SCORES = ("SCORES", "Score table, or - for standard input.")
_SEVERAL_SCORES = ("SCORES...", "Score tables of the same rows, or - for standard input.")
_DATA = ("SOURCE", "Image folder, .csv, .jsonl, .npz, .parquet, or a saved Hugging Face dataset.")

COMMANDS = (
    Command("manifest", _DATA, manifest),
    Command("grads", _MANIFEST, grads),
    Command("score", _MANIFEST, score),
    Command("curate", _SCORES, curate),
    Command("retrain", _MANIFEST, retrain),
    Command("evaluate", _SEVERAL_SCORES, evaluate),
    Command("methods", ("NAME", "A method."), methods),
    Command("cache", ("ACTION", "ls, verify, gc or key."), cache),
    Command("guide", ("TOPIC", "What to read about."), guide),
)
