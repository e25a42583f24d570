"""The Typer application: every command, with a parameter for each of its options."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from influence_cli.cli.commands.table import COMMANDS, Command
from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_table
from influence_cli.cli.settings import outputs
from influence_cli.cli.settings.requests import ProgramOptions, options_of
from influence_cli.cli.settings.resolve import resolve
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.curvature import curvature_sentence
from influence_cli.options import SCORE, Option, build_request

EPILOG = (
    "Exit codes: 0 done, gate clean; 1 the gate tripped, or --require-improvement was not met; "
    "2 you can fix it (flags, settings, data, checkpoint); 3 we broke, or the machine did; 130 Ctrl-C; 141 closed pipe."
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
    described = typer.Argument(metavar=metavar.removesuffix("..."), help=help, show_default=False)
    parameters = [_parameter("source", Annotated[kind | None, described])]
    parameters += [_option_parameter(option) for option in options_of(command.name)]
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _run(command: Command, given: dict[str, Any]) -> int | None:
    """Resolve the settings of a command and run it, or show them."""
    source, more = _first(given.pop("source", None))
    program = build_request(ProgramOptions, given)
    out = terminal()
    out.curvature_sentence = curvature_sentence
    out.quiet, out.verbose, out.color = program.quiet, program.verbose, program.color
    settings = resolve(command.name, given, source, _carried(command.name, source))
    settings.more = more
    if program.show_settings:
        return _show(settings)
    outputs.check(settings)
    return command.run(settings)


def _first(source: str | list[str] | None) -> tuple[str | None, tuple[str, ...]]:
    """The positional argument and what stands after it."""
    if not isinstance(source, list):
        return source, ()
    return (source[0], tuple(source[1:])) if source else (None, ())


def _option_parameter(option: Option) -> inspect.Parameter:
    kind: Any = list[str] if option.kind is list else option.kind
    described = typer.Option(*option.flags, help=option.shown_help, metavar=option.shown_metavar, show_default=False)
    return _parameter(option.name, Annotated[kind | None, described])


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _carried(command: str, source: str | None) -> dict[str, Any] | None:
    """Settings that a table on the way in carries as provenance: where its data are, and what was asked for."""
    if source is None or command != SCORE:
        return None
    from influence_cli.cli.settings.carried import carried_settings

    return carried_settings(source)


def _show(settings: Settings) -> None:
    """Every setting with its value and where that comes from."""
    rows = [[n.replace("_", "-"), str(v), settings.origins[n]] for n, v in settings.values.items()]
    rows += [[f"{n}.{k}", str(v), "options"] for n, table in settings.options.items() for k, v in table.items()]
    rows.append(["source", str(settings.source), settings.origins.get("MANIFEST", "argument")])
    print_table("", ["setting", "value", "from"], rows, sys.stdout)
