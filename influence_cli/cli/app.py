"""The table of commands, and the Typer application: a parameter for each option of every command."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import typer
import typer.core

from influence_cli.cli.commands.cache import ACTIONS, cache
from influence_cli.cli.commands.curate import curate
from influence_cli.cli.commands.evaluate import evaluate
from influence_cli.cli.commands.guide import TOPICS, guide
from influence_cli.cli.commands.manifest import manifest
from influence_cli.cli.commands.methods import methods
from influence_cli.cli.commands.retrain import retrain
from influence_cli.cli.commands.run import grads, score
from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_table
from influence_cli.cli.settings.completion import Values, offered
from influence_cli.cli.settings.completion import methods as method_names
from influence_cli.cli.settings.help_groups import grouped_options
from influence_cli.cli.settings.places import carried_settings, check_written
from influence_cli.cli.settings.requests import ProgramOptions, options_of
from influence_cli.cli.settings.settings import Settings, resolve
from influence_cli.data.columns import OF_COMMAND
from influence_cli.data.outside import allowing_outside
from influence_cli.memory import give_back_freed_memory
from influence_cli.options import SCORE, Option, build_request

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


NO_LICENCE = "licence: none is given yet, so all rights are reserved"

ARGUMENTS: dict[str, Values] = {  # what a shell offers for the argument of a command that takes no file
    "methods": method_names,
    "cache": lambda: ACTIONS,
    "guide": lambda: TOPICS,
}


class PastTyper(Exception):
    """Carries whatever a command raises up to ``main``.

    Typer would make exit codes of some (a closed pipe is 1, an ``Exit`` raised by code of the user's is done).
    """


def build_app(called: str | None = None) -> typer.Typer:
    """The Typer application: with the command that is called alone, since each takes time, or with every command."""
    commands = [c for c in COMMANDS if c.name == called] or COMMANDS
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
    for command in commands:
        named = {"name": command.name, "cls": GroupedCommand, "help": inspect.getdoc(command.run)}
        app.command(**named, epilog=EPILOG)(_called_by_typer(command))
    return app


class GroupedCommand(typer.core.TyperCommand):
    """A command whose help shows its options under headings, and the columns of the tables that it writes.

    Typer draws headings only where it may colour them; these are plain text everywhere.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, options under the heading of each, which stand together, and columns."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            line, heading = parameter.get_help_record(ctx), "Arguments"
            if parameter.param_type_name == "option":
                heading = getattr(parameter, "rich_help_panel", None) or next(reversed(sections))  # --help: the last
            if line is not None:
                sections.setdefault(heading, []).append(line)
        sections.update({name: list(columns.items()) for name, columns in OF_COMMAND.get(self.name or "", {}).items()})
        for heading, lines in sections.items():
            with formatter.section(heading):
                formatter.write_dl(lines)


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        typer.echo(f"influence {importlib.metadata.version('influence-cli')}")
        typer.echo(NO_LICENCE)
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
    argument = typer.Argument(
        metavar=metavar.removesuffix("..."), help=help, show_default=False, autocompletion=_argument(command.name)
    )
    types: dict[str, Any] = {"source": Annotated[kind | None, argument]}
    for heading, options in grouped_options(command.name):
        for o in options:
            several = o.kind is list or command.name in o.joined
            types[o.name] = Annotated[(list[str] if several else o.kind) | None, _shown(o, heading)]
    parameters = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=types[n]) for n in types
    ]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = types
    return run


def _shown(o: Option, heading: str) -> Any:
    """An option as Typer knows it."""

    def values(incomplete: str) -> list[str]:
        return offered(o, incomplete)

    return typer.Option(
        *o.flags, help=o.shown_help, metavar=o.shown_metavar, show_default=False, hidden=o.hidden,
        rich_help_panel=heading, autocompletion=None if o.kind is bool else values,
    )  # fmt: skip


def _argument(command: str) -> Callable[..., list[str]] | None:
    """What a shell asks for the values of a command's argument; None where files are meant."""
    known = ARGUMENTS.get(command)

    def values(incomplete: str) -> list[str]:
        return [value for value in (known() if known is not None else ()) if value.startswith(incomplete)]

    return None if known is None else values


def _run(command: Command, given: dict[str, Any]) -> int | None:
    """Resolve the settings of a command and run it, or show them."""
    for o in options_of(command.name):
        if command.name in o.joined and given.get(o.name):
            given[o.name] = ",".join(given[o.name])
    give_back_freed_memory()
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
    with allowing_outside(bool(settings.values.get("allow_outside"))):
        check_written(settings)
        return command.run(settings)


def _show(settings: Settings) -> None:
    """Every setting with its value and where that comes from."""
    rows = [[n.replace("_", "-"), str(v), settings.origins[n]] for n, v in settings.values.items()]
    rows += [[f"{n}.{k}", str(v), "options"] for n, table in settings.options.items() for k, v in table.items()]
    rows.append(["source", str(settings.source), settings.origins.get("MANIFEST", "argument")])
    print_table("", ["setting", "value", "from"], rows, sys.stdout, whole=True)
