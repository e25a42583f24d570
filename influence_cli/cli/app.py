"""The table of commands, and the Typer application: a parameter for each option of every command."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer

from influence_cli.cli.commands.cache import cache
from influence_cli.cli.commands.curate import curate
from influence_cli.cli.commands.evaluate import evaluate
from influence_cli.cli.commands.guide import guide
from influence_cli.cli.commands.manifest import manifest
from influence_cli.cli.commands.methods import methods
from influence_cli.cli.commands.retrain import retrain
from influence_cli.cli.commands.run import grads, score
from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_table
from influence_cli.cli.settings.places import carried_settings, check_written
from influence_cli.cli.settings.requests import ProgramOptions, options_of
from influence_cli.cli.settings.settings import Settings, resolve
from influence_cli.options import SCORE, build_request

EPILOG = (
    "Exit codes: 0 done, gate clean; 1 the gate tripped, or --require-improvement was not met; "
    "2 you can fix it (flags, settings, data, checkpoint); 3 we broke, or the machine did; 130 Ctrl-C; 141 closed pipe."
)


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


class PastTyper(Exception):
    """Carries whatever a command raises up to ``main``.

    Typer would make exit codes of some (a closed pipe is 1, an ``Exit`` raised by code of the user's is done).
    """


def build_app() -> typer.Typer:
    """The Typer application with every command."""
    app = typer.Typer(
        name="influence",
        help="Find the training rows that hurt a model, fix them, and show whether it helped.",
        epilog=EPILOG,
        rich_markup_mode=None,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    for command in COMMANDS:
        app.command(command.name, help=inspect.getdoc(command.run), epilog=EPILOG)(_called_by_typer(command))
    return app


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        typer.echo(f"influence {importlib.metadata.version('influence-cli')}")
        raise typer.Exit(0)


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Options of the program itself."""


def _called_by_typer(command: Command) -> Callable[..., Any]:
    """A function with one parameter per option of the command, as Typer wants it."""

    def run(**given: Any) -> int | None:
        try:
            return _run(command, given)
        except BaseException as error:
            raise PastTyper from error

    metavar, help = command.argument
    kind = list[str] if metavar.endswith("...") else str
    argument = typer.Argument(metavar=metavar.removesuffix("..."), help=help, show_default=False)
    types: dict[str, Any] = {"source": Annotated[kind | None, argument]}
    for o in options_of(command.name):
        shown = typer.Option(*o.flags, help=o.shown_help, metavar=o.shown_metavar, show_default=False)
        types[o.name] = Annotated[(list[str] if o.kind is list else o.kind) | None, shown]
    parameters = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=types[n]) for n in types
    ]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = types
    return run


def _run(command: Command, given: dict[str, Any]) -> int | None:
    """Resolve the settings of a command and run it, or show them."""
    named = given.pop("source", None)
    several: list[str] = named if isinstance(named, list) else [] if named is None else [named]
    source = several[0] if several else None
    program = build_request(ProgramOptions, given)
    out = terminal()
    out.quiet, out.verbose, out.color = program.quiet, program.verbose, program.color
    carried = carried_settings(source) if source is not None and command.name == SCORE else None
    settings = resolve(command.name, given, source, carried)
    settings.more = tuple(several[1:])
    if program.show_settings:
        return _show(settings)
    check_written(settings)
    return command.run(settings)


def _show(settings: Settings) -> None:
    """Every setting with its value and where that comes from."""
    rows = [[n.replace("_", "-"), str(v), settings.origins[n]] for n, v in settings.values.items()]
    rows += [[f"{n}.{k}", str(v), "options"] for n, table in settings.options.items() for k, v in table.items()]
    rows.append(["source", str(settings.source), settings.origins.get("MANIFEST", "argument")])
    print_table("", ["setting", "value", "from"], rows, sys.stdout)
