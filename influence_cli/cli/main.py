"""The only place where exceptions become exit codes: 0 done, 1 gate, 2 yours to fix, 3 ours or the machine's."""

from __future__ import annotations

import errno
import os
import sys

from influence_cli.errors import InfluenceError, printable

DONE, FIXABLE, BROKEN, INTERRUPTED, CLOSED_PIPE = 0, 2, 3, 130, 141  # 1 is returned by the gate itself


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line; returns its exit code."""
    debug = "--debug" in arguments
    try:
        return _dispatch(arguments)
    except BrokenPipeError:
        _close_stdout()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        return _interrupted()
    except InfluenceError as error:
        return _fail(FIXABLE, f"error: {error}", debug)
    except Exception as error:
        return _fail(FIXABLE if isinstance(error, PermissionError) else BROKEN, _describe(error), debug)


def _dispatch(arguments: list[str]) -> int:
    """Run the application; Typer's own errors are shown and become codes, everything else comes out as it was."""
    from influence_cli.cli.app import PastTyper, build_app

    try:
        result = build_app()(args=arguments, prog_name="influence", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except PastTyper as carried:
        raise carried.__cause__ or carried from None
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            return FIXABLE if error.exit_code else DONE  # pyright: ignore[reportAttributeAccessIssue]
        if type(error).__name__ == "Exit":
            return int(getattr(error, "exit_code", DONE))
        raise


def _describe(error: Exception) -> str:
    what, where = f"{type(error).__name__}: {error}", ""
    fix = "this is a defect of influence; run again with --debug and report it"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        what, where = "the disk is full", str(error.filename or "")
        fix = "free some space; the same command continues"
    elif isinstance(error, PermissionError):
        what, where, fix = "no permission", str(error.filename), "pick a readable and writable place"
    elif isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        what, fix = f"out of memory ({error})", "pass a smaller --batch-size; the same command continues"
    lines = [f"error: {what}", *([f"in: {where}"] if where else []), f"fix: {fix}"]
    return "\n".join(printable(line) for line in lines)


def _fail(code: int, text: str, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(text, file=sys.stderr)  # noqa: T201
    return code


def _interrupted() -> int:
    from influence_cli.cli.app import terminal

    span = terminal().span
    kept = "what was finished is kept; run the same command to continue"
    if span is not None and span[3] == "rows":
        kept = f"{span[1]:,} of {span[2]:,} rows kept; run the same command to continue"
    print(f"interrupted: {kept}", file=sys.stderr)  # noqa: T201
    return INTERRUPTED


def _close_stdout() -> None:
    """Point standard output at the null device, so that closing it at exit says nothing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
