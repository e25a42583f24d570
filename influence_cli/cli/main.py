"""The only place where exceptions become exit codes: 0 done, 1 gate, 2 yours to fix, 3 ours or the machine's."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from influence_cli.cli import streams
from influence_cli.errors import InfluenceError, UsageError, disk_full, printable
from influence_cli.memory import give_back_freed_memory
from influence_cli.processes import lead
from influence_cli.processes.group import PeerLost
from influence_cli.processes.seat import Seat, divides, seat

DONE, FIXABLE, BROKEN, INTERRUPTED, CLOSED_PIPE = 0, 2, 3, 130, 141  # 1 is returned by the gate itself
_AWAY = "take it away; what a store lacks is computed again"
OF_SYSTEM: dict[int, tuple[str, str, int]] = {  # what the system says of a named file: in words, the fix, the code
    errno.ELOOP: ("a link that leads back to itself", _AWAY, FIXABLE),
    errno.ENOTDIR: ("a file stands where a folder should", _AWAY, FIXABLE),
    errno.EISDIR: ("a folder stands where a file should", _AWAY, FIXABLE),
    errno.EROFS: ("a read-only file system", "pick a place that can be written", FIXABLE),
    errno.ENAMETOOLONG: ("a name that is too long for this file system", "pick a shorter one", FIXABLE),
    errno.EIO: (
        "a file cannot be read or written (input/output error)",
        "look at the disk; a link to something that is no file is to be taken away; the same command continues",
        BROKEN,
    ),
    errno.ENFILE: ("the machine has too many open files", "close other programs; the same command continues", BROKEN),
    errno.EMFILE: ("too many open files", "raise the limit (`ulimit -n 4096`); the same command continues", BROKEN),
}  # fmt: skip
ENDING = ("SIGTERM", "SIGHUP")  # the code is then 128 and the signal's number, as a shell says it


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end: rows in hand are kept, and temporary files go, as with Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


_came: list[int] = []  # signals that ended this command
_LEAVE = os._exit  # before code of the user's is refused it


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    streams.prepare()
    ours = _end_in_order() if seat() is None else []  # one of several may wait for another in C, where none is heard
    code = BROKEN
    try:
        with _exits_are_ours(for_good=arguments is None):
            code = run(sys.argv[1:] if arguments is None else arguments)
    except Stopped as stopped:  # before there was anything to tell, or while it was told
        code = 128 + stopped.number
    except KeyboardInterrupt:  # once more, while the first was told
        code = INTERRUPTED
    except BaseException as error:  # it cannot even be described
        streams.write_line(f"error: {type(error).__name__}")
    if code == INTERRUPTED and _came:  # what raised it has made a KeyboardInterrupt of its own of it
        code = 128 + _came[0]
    for number in ours:  # called from a program they are its own; else all is done, but temporary files have yet to go
        signal.signal(number, signal.SIG_DFL if arguments is not None else _pass_over_once)
    streams.let_go()
    if arguments is None and seat() is not None:
        _end_now(code)
    sys.exit(code)


def _pass_over_once(number: int, _: Any) -> None:
    """At the end of a command, whose exit code is known; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)


def _end_now(code: int) -> NoReturn:
    """End one of several processes once what is registered for its end has run.

    Python is not taken down: a thread of torch that then lets go of what it was handed would abort the process.
    """
    with contextlib.suppress(BaseException):  # it does not choose the code
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    _LEAVE(code)


def _end_in_order() -> list[int]:
    """Let the signals that end a process be raised, once: by default no temporary file of the user's data would go.

    One that is ignored (nohup) or has a handler stays as it is, and a second one ends the process at once.  Returns
    those that are raised.
    """

    def stop(number: int, _: Any) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        _came.append(number)
        raise Stopped(number)

    _came.clear()
    numbers = [int(getattr(signal, name)) for name in ENDING if hasattr(signal, name)]
    ours: list[int] = []
    for number in numbers:
        with contextlib.suppress(ValueError):  # not in the main thread
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, stop)
                ours.append(number)
    return ours


def run(arguments: list[str]) -> int:
    """Run the command line; returns its exit code.  Under ``torchrun`` the first process does, and others help it."""
    place = seat()
    divided = place is not None and divides(arguments)
    if place is not None and place.rank > 0:
        return _help_out(arguments, place) if divided else DONE
    with_others = place if divided else None
    return _shown(arguments, lambda: _led(arguments, with_others))


def _refuse_no_text(arguments: list[str]) -> None:
    """Refuse (UsageError) what is no text: the name of a file in another encoding could stand in no table."""
    ours = [(name, value) for name, value in os.environ.items() if name.startswith("INFLUENCE_")]
    for name, value in [*(("argument", a) for a in arguments), *ours]:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{name} {value!r} is no text in UTF-8", fix="rename the file, or leave it out") from error


def _led(arguments: list[str], place: Seat | None) -> int:
    _refuse_no_text(arguments)
    with lead.leading(place):
        return _dispatch(arguments)


def _help_out(arguments: list[str], place: Seat) -> int:
    """Do what the first process hands out; it says what there is to say, but for errors that it cannot know of."""

    def follow() -> int:
        give_back_freed_memory()
        try:
            lead.follow(place)
        except PeerLost:
            return BROKEN
        return DONE

    return _shown(arguments, follow)


def _shown(arguments: list[str], command: Callable[[], int]) -> int:
    """The exit code of a command, what went wrong in it shown."""
    try:
        return command()
    except KeyboardInterrupt as error:
        from influence_cli.cli.console import terminal

        span = terminal().span
        rows = f"{span[1]:,} of {span[2]:,} rows kept" if span is not None and span[3] == "rows" else None
        if "--no-store" in arguments:
            streams.write_line("interrupted: with --no-store nothing is kept; without it the same command continues")
        else:
            streams.write_line(f"interrupted: {rows or 'what was finished is kept'}; run the same command to continue")
        return 128 + error.number if isinstance(error, Stopped) else INTERRUPTED
    except BaseException as error:  # SystemExit too: code of the user's must not say that this is done
        if isinstance(error, BrokenPipeError) and streams.is_unread():  # else a pipe of the user's own code
            streams.drop_stdout()
            return CLOSED_PIPE
        if "--debug" in arguments:
            import traceback

            streams.write_line(traceback.format_exc().rstrip())
        told = isinstance(error, InfluenceError) and not _is_full(error)
        streams.write_line(f"error: {error}" if told else _describe(error))
        return FIXABLE if told or _is_fixable(error) else BROKEN


def _dispatch(arguments: list[str]) -> int:
    """Run the application; Typer's own errors are shown and become codes, everything else comes out as it was."""
    from influence_cli.cli.app import PastTyper, build_app
    from influence_cli.cli.settings.requests import number_form

    inside: BaseException  # is raised when no other is handled, or it would lose what it came of
    try:
        result = build_app(next(iter(arguments), None))(args=arguments, prog_name="influence", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except PastTyper as carried:
        inside = carried.__cause__ or carried
    except SystemExit as error:  # Typer's: shell completion, or help that nobody reads
        if not isinstance(error.__context__, BrokenPipeError):
            return FIXABLE if error.code else DONE
        inside = error.__context__
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error
            with contextlib.suppress(OSError):  # where it cannot be shown it still is one
                error.show()  # pyright: ignore[reportAttributeAccessIssue]
            if form := number_form(getattr(getattr(error, "param", None), "opts", ())):
                streams.write_line(f"fix: {form}")
            return FIXABLE if error.exit_code else DONE  # pyright: ignore[reportAttributeAccessIssue]
        inside = error
    raise inside


@contextlib.contextmanager
def _exits_are_ours(for_good: bool) -> Iterator[None]:
    """``os._exit`` in this process, by code of the user's, is an error like ``sys.exit``; children end as they like.

    With ``for_good`` it stays so until the process is over: what runs at its exit does not choose the code either.
    """
    modules: list[Any] = [os, *([sys.modules["posix"]] if "posix" in sys.modules else [])]
    leave, here = os._exit, os.getpid()

    def refuse(code: int) -> NoReturn:
        if os.getpid() != here:
            leave(code)
        raise SystemExit(code)

    for module in modules:
        module._exit = refuse
    try:
        yield
    finally:
        for module in modules if not for_good else ():
            module._exit = leave


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException) -> bool:
    """Whether the disk is full, by the error or what it came of."""
    return any(disk_full(e) for e in _chain(error))


def _is_unwritable(error: BaseException) -> bool:
    """Whether a stream was opened for reading alone: standard output, as no file of ours is."""
    return isinstance(error, OSError) and error.errno == errno.EBADF and error.filename is None


def _of_system(error: BaseException) -> tuple[str, str, int] | None:
    """What is said of a file that the system refuses, the fix and the exit code; None where the fault may be ours."""
    if not isinstance(error, OSError) or (error.filename is None and error.errno != errno.EIO):
        return None
    return OF_SYSTEM.get(error.errno or 0)


def _is_fixable(error: BaseException) -> bool:
    """Whether it is for the user to mend, by what they pass or by what stands in a place."""
    of_system = _of_system(error)
    return (
        isinstance(error, PermissionError)
        or _is_unwritable(error)
        or (of_system is not None and of_system[2] == FIXABLE)
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # of a class of the user's
        return ""


def _place(error: BaseException) -> str:
    """The file and line that an error was raised in."""
    place, trace = "", error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:  # os._exit is refused here
            place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _describe(error: BaseException) -> str:
    what, where = f"{type(error).__name__}: {_text(error)}", ""
    fix = "this is a defect of influence; run again with --debug and report it"
    if _is_full(error):
        named = (str(e.filename) for e in _chain(error) if isinstance(e, OSError) and e.filename)
        what, where = "the disk is full", next(named, "")
        fix = "free some space; the same command continues"
    elif isinstance(error, PermissionError):
        what, where, fix = "no permission", str(error.filename or ""), "pick a readable and writable place"
    elif (of_system := _of_system(error)) is not None:
        where = str(getattr(error, "filename", None) or "")
        what, fix, _ = of_system
    elif _is_unwritable(error):
        what, fix = "standard output cannot be written", "pass -o FILE, or open standard output for writing"
    elif isinstance(error, MemoryError) or "out of memory" in _text(error).lower():
        what, fix = f"out of memory ({_text(error)})", "pass a smaller --batch-size; the same command continues"
    elif isinstance(error, PeerLost):
        what = "another process of this run is gone; what was finished is kept"
        fix = "run the same command again, or let torchrun do so: --max-restarts 3"
    elif not isinstance(error, Exception):
        what, where = f"the program was ended from inside ({what}); nothing is finished", _place(error)
        fix = "let your own code return or raise an error; --debug shows how it came there"
    lines = [f"error: {what}", *([f"in: {where}"] if where else []), f"fix: {fix}"]
    return "\n".join(printable(line) for line in lines)
