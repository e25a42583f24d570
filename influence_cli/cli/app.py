"""The commands: each a signature made from the table of settings, and a few lines that call a stage."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from influence_cli.cli.console import Terminal, print_table
from influence_cli.cli.settings import outputs
from influence_cli.cli.settings.options import Setting, settings_of
from influence_cli.cli.settings.resolve import Settings, resolve
from influence_cli.cli.show.curvature import curvature_sentence
from influence_cli.errors import UsageError

EPILOG = (
    "Exit codes: 0 done, gate clean; 1 the gate tripped, or --require-improvement was not met; "
    "2 you can fix it (flags, settings, data, checkpoint); 3 we broke, or the machine did; 130 Ctrl-C; 141 closed pipe."
)
_TERMINAL = Terminal(curvature_sentence=curvature_sentence)


class PastTyper(Exception):
    """Carries whatever a command raises up to ``main``.

    Typer would make exit codes of some (a closed pipe is 1, an ``Exit`` raised by code of the user's is done).
    """


def terminal() -> Terminal:
    """Where this run shows things."""
    return _TERMINAL


def build_app() -> typer.Typer:
    """The Typer application with every command."""
    from influence_cli.cli.commands import table as commands

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
    for name, argument, function in commands.COMMANDS:
        app.command(name, help=inspect.getdoc(function), epilog=EPILOG)(_command(name, argument, function))
    return app


def _say_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        typer.echo(f"influence {importlib.metadata.version('influence-cli')}")
        raise typer.Exit(0)


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Options of the program itself."""


def _command(
    name: str, argument: tuple[str, str] | None, function: Callable[[Settings], int | None]
) -> Callable[..., Any]:
    """A function with one parameter per setting of the command, as Typer wants it."""

    def run(**given: Any) -> int | None:
        try:
            return settled(given)
        except BaseException as error:
            raise PastTyper from error

    def settled(given: dict[str, Any]) -> int | None:
        source, more = _first(given.pop("source", None))
        _TERMINAL.quiet, _TERMINAL.verbose = bool(given.get("quiet")), bool(given.get("verbose"))
        _TERMINAL.color = given.get("color") or "auto"
        if _TERMINAL.color not in ("auto", "always", "never"):
            raise UsageError(f"--color {_TERMINAL.color!r} is unknown", fix="auto, always or never")
        settings = resolve(name, given, source, _carried(name, source))
        settings.more = more
        if settings.values.get("show_settings"):
            _show(settings)
            return None
        outputs.check(settings)
        return function(settings)

    parameters = [_parameter(s) for s in settings_of(name)]
    if argument is not None:
        described = typer.Argument(metavar=argument[0].removesuffix("..."), help=argument[1], show_default=False)
        annotation = Annotated[list[str] | None if argument[0].endswith("...") else str | None, described]
        first = inspect.Parameter("source", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        parameters.insert(0, first)
    run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _first(source: str | list[str] | None) -> tuple[str | None, tuple[str, ...]]:
    """The positional argument and what stands after it."""
    if not isinstance(source, list):
        return source, ()
    return (source[0], tuple(source[1:])) if source else (None, ())


def _parameter(s: Setting) -> inspect.Parameter:
    kind: Any = list[str] if s.kind is list else s.kind
    shown = (
        "" if s.default in (None, False, []) else f" [default: {', '.join(s.default) if s.kind is list else s.default}]"
    )
    metavar = s.metavar or {str: "TEXT", int: "N", float: "X", list: "NAME"}.get(s.kind)
    option = typer.Option(*s.flags, help=s.help + shown, metavar=metavar, show_default=False)
    return inspect.Parameter(
        s.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _carried(command: str, source: str | None) -> dict[str, Any] | None:
    """Settings that a table on the way in carries as provenance: where its data are, and what was asked for."""
    if source is None or command != "score":
        return None
    from influence_cli.cli.settings.carried import carried_settings

    return carried_settings(source)


def _show(settings: Settings) -> None:
    rows = [[n.replace("_", "-"), str(v), settings.origins[n]] for n, v in settings.values.items()]
    rows += [[f"{n}.{k}", str(v), "options"] for n, table in settings.options.items() for k, v in table.items()]
    rows.append(["source", str(settings.source), settings.origins.get("MANIFEST", "argument")])
    print_table("", ["setting", "value", "from"], rows, _TERMINAL, sys.stdout)
