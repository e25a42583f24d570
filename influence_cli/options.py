"""Options of the commands: one field of a request says all there is to say of one.

``option`` declares a field of a dataclass whose flag, key of a settings file, environment variable, help, line of
``--show-settings`` and entry in a table's provenance are made from it:

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Request:
...     kept_in = "request"
...     crop: float | None = option(None, "Cut the middle of images.", RUNS)
...     methods: tuple[str, ...] = option(("ip",), "Scoring method.", RUNS, name="method")
>>> [(o.name, o.flags, o.kind.__name__, o.default) for o in options_in(Request)]
[('crop', ('--crop',), 'float', None), ('method', ('--method',), 'list', ['ip'])]
>>> build_request(Request, {"crop": 0.875, "method": ["ip", "loss"]})
Request(crop=0.875, methods=('ip', 'loss'))
>>> kept_values(build_request(Request, {"crop": 0.875}))
{'crop': 0.875, 'methods': ['ip']}
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from influence_cli.errors import UsageError, WrongArgument, nearest

T = TypeVar("T")

MANIFEST, METHODS, CACHE, GUIDE = "manifest", "methods", "cache", "guide"
GRADS, SCORE, CURATE, RETRAIN, EVALUATE = "grads", "score", "curate", "retrain", "evaluate"
RUNS = (GRADS, SCORE)
TRAINS = (RETRAIN, EVALUATE)
RUNS_AND_RETRAIN = (*RUNS, RETRAIN)
RUNS_AND_EVALUATE = (*RUNS, EVALUATE)
MODEL = (*RUNS, *TRAINS)
STAGES = (GRADS, SCORE, CURATE, RETRAIN, EVALUATE)
WRITING = (MANIFEST, *STAGES)
SHOWING = (*WRITING, METHODS, CACHE)
EVERY = (*SHOWING, GUIDE)

PATH: dict[str, Any] = {"path": True, "metavar": "PATH"}  # of an option that is a place
NOWHERE = ""  # ``kept`` of an option that no provenance holds
_KINDS: dict[str, type] = {"bool": bool, "int": int, "float": float, "tuple[str, ...]": list}
_METAVARS = {str: "TEXT", int: "N", float: "X", list: "NAME"}
_KEY = "option"  # of a field's metadata


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of some commands; ``field`` and ``default`` are read from its field."""

    help: str
    commands: tuple[str, ...]
    name: str = ""  # default: the field's
    flags: tuple[str, ...] = ()  # default: the name's
    metavar: str | None = None
    path: bool = False  # relative paths in a settings file count from that file
    stored: bool = True  # False: a flag only, never read from a settings file or the environment
    hidden: bool = False  # an older name, which help does not show
    least: float | None = None  # the smallest value that makes sense
    choices: tuple[str, ...] = ()  # the only values there are
    text: str | None = None  # the default as people write it, where the field's is something else
    read: Callable[[str, str], Any] | None = None  # (text, flag) -> the field's value
    kept: str | None = None  # where provenance holds it; default: in the request's own part, by the field's name
    after: str | None = None  # the option it is shown after; default: the field before
    joined: tuple[str, ...] = ()  # commands in which it may be given several times: its values, with commas between
    kind: type = object  # str, int, float, bool or list (of strings, repeatable); default: the field's, as text

    field: str = ""
    default: Any = None

    @property
    def shown_metavar(self) -> str | None:
        """What stands for the value in help."""
        return self.metavar or _METAVARS.get(self.kind)

    @property
    def shown_help(self) -> str:
        """What the option means, with its default."""
        if self.default in (None, False, []):
            return self.help
        return f"{self.help} [default: {', '.join(self.default) if self.kind is list else self.default}]"


def option(default: Any, help: str, commands: Iterable[str], *flags: str, **more: Any) -> Any:
    """A field of a request that is an option of ``commands``; ``more`` are the fields of ``Option``."""
    start: dict[str, Any] = {"default_factory": dict} if default is dict else {"default": default}
    return dataclasses.field(**start, metadata={_KEY: Option(help, tuple(commands), flags=flags, **more)})


def same_option(default: Any, name: str, read: Callable[[str, str], Any]) -> Any:
    """A field of a request that takes an option which another request declares, in its own way."""
    return dataclasses.field(default=default, metadata={_KEY: Option("", (), name=name, read=read)})


def options_in(request: Any) -> list[Option]:
    """The options that a request, or its class, declares or takes over, in the order of its fields."""
    return list(_options_of(request if isinstance(request, type) else type(request)))


@functools.cache
def _options_of(request: Any) -> tuple[Option, ...]:
    return tuple(_of_field(f) for f in dataclasses.fields(request) if _KEY in f.metadata)


def _of_field(field: dataclasses.Field[Any]) -> Option:
    o: Option = field.metadata[_KEY]
    name = o.name or field.name
    annotation = field.type if isinstance(field.type, str) else field.type.__name__
    kind = o.kind if o.kind is not object else (str if o.read else _KINDS.get(annotation.removesuffix(" | None"), str))
    default = None if field.default is dataclasses.MISSING or o.read else field.default
    if kind is list:
        default = list(field.default) if isinstance(field.default, tuple) else []
    default = default if o.text is None else o.text
    flags = o.flags or (f"--{name.replace('_', '-')}",)
    return dataclasses.replace(o, name=name, flags=flags, field=field.name, kind=kind, default=default)


@functools.cache
def in_order(requests: tuple[type, ...]) -> dict[str, Option]:
    """Every option that the requests declare, by name, in the order in which people are shown them."""
    runs: list[list[Option]] = []
    for request in requests:
        for k, o in enumerate(o for o in options_in(request) if o.commands):
            if k == 0 or o.after is not None:
                runs.append([])
            runs[-1].append(o)
    placed: list[Option] = []
    while runs:
        names = [o.name for o in placed]
        run = next(r for r in runs if r[0].after is None or r[0].after in names)
        runs.remove(run)
        at = len(placed) if run[0].after is None else names.index(run[0].after) + 1
        placed[at:at] = run
    return {o.name: o for o in placed}


def build_request(kind: type[T], values: Mapping[str, Any], **more: Any) -> T:
    """A request whose fields take the values of the options of their names; ``more`` are values of fields themselves.

    A value that is None, or absent, leaves its field at its default.
    """
    declared = {o.field: o for o in options_in(kind)}
    made: dict[str, Any] = {}
    for f in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        o = declared.get(f.name)
        value = values.get(f.name if o is None else o.name)
        if value is None or f.name in more:
            continue
        if isinstance(value, list):
            value = tuple(value)
        if o is not None and o.read is not None:
            flag = o.flags[-1]
            value = tuple(o.read(v, flag) for v in value) if isinstance(value, tuple) else o.read(value, flag)
        made[f.name] = value
    return kind(**{**made, **more})


def check_choices(request: Any) -> None:
    """Refuse a value that is none of its option's choices (UsageError)."""
    for o in options_in(request):
        value = getattr(request, o.field)
        if o.choices and value is not None and value not in o.choices:
            raise UsageError(f"{o.flags[-1]} {value!r} is unknown", fix=nearest(value, list(o.choices)))


def comma_list(text: str, _: str = "") -> tuple[str, ...]:
    """The different parts of a text with commas."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def kept_values(request: Any) -> dict[str, Any]:
    """What provenance holds of a request in the part of its own, ``kept_in``, as JSON."""
    return {o.field: _plain(getattr(request, o.field)) for o in options_in(request) if o.kept is None}


def values_kept(kind: type, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a request's fields that provenance holds, by field; JSON knows no tuples."""
    found: dict[str, Any] = {}
    for o in options_in(kind):
        value: Any = origin
        for part in (f"{kind.kept_in}.{o.field}" if o.kept is None else o.kept).split("."):
            value = (value or {}).get(part)
        if value is not None:
            found[o.field] = tuple(value) if isinstance(value, list) else value
    return found


def _plain(value: Any) -> Any:
    """A value as JSON: names as a list, numbers as the text that their flag takes."""
    if not isinstance(value, tuple):
        return value
    return list(value) if all(isinstance(v, str) for v in value) else ",".join(map(repr, value))


# ---- arguments from Python: their names and types are those of the fields of a request ------------------------------

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False", dict: "a dict"}


def take(kinds: Iterable[type], given: dict[str, Any], *also: str) -> list[dict[str, Any]]:
    """What ``given`` says of each request's fields, by field, checked; names ``also`` are taken out of it by others.

    A field has the name of its option too.

    Raises:
        WrongArgument: one is unknown, or of another type than its field.
        UsageError: a number is below the least that makes sense.
    """
    found, known = [], list(also)
    for kind in kinds:
        values: dict[str, Any] = {}
        for name, (field, _) in arguments_of(kind).items():
            known.append(name)
            if name in given:
                values[field] = checked(kind, name, given.pop(name))
        found.append(values)
    refuse_unknown(given, known)
    return found


def arguments_of(kind: type) -> dict[str, tuple[str, Any]]:
    """The names under which fields are given: their own, and those of their options; each with its field and type."""
    hints = typing.get_type_hints(kind)
    names = {f.name: f.name for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    names |= {o.name: o.field for o in options_in(kind)}
    return {name: (field, hints[field]) for name, field in names.items()}


def checked(kind: type, name: str, value: Any, called: str = "") -> Any:
    """The value of an argument as its field's type: a path as text, one text as several, numbers as Python's own.

    It is ``called`` otherwise than its field in messages, where that is given.
    """
    field, hint = arguments_of(kind)[name]
    return as_hinted(called or name, value, hint, next((o for o in options_in(kind) if o.field == field), None))


def as_hinted(name: str, value: Any, hint: Any, option: Option | None = None) -> Any:
    """The value of an argument as the type that ``hint`` says.

    Raises:
        WrongArgument: it is of another type.
        UsageError: it is a number below the least of the option.
    """
    allowed = _arms(hint)
    for arm in allowed:
        fits, made = _as_type(value, arm, option is None or option.path)
        if fits:
            least = None if option is None else option.least
            if least is not None and isinstance(made, int | float) and made < least:
                raise UsageError(f"{name}={made} is below {least:g}", fix=f"give {name}={least:g} or more")
            return made
    wanted = " or ".join(_called(arm, option is not None and option.path) for arm in allowed)
    raise WrongArgument(f"{name} is {_shown(value)}", fix=f"give {name} as {wanted}")


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse names that no option has.  Raises WrongArgument: there is one."""
    if given:
        name = min(given)
        raise WrongArgument(f"unknown option {name!r}", fix=nearest(name, sorted(set(known))))


def check_call(function: Callable[..., Any], given: Mapping[str, Any], classes: Mapping[str, Any]) -> None:
    """Check the arguments that a function names itself: by name and type; ``classes`` are types that its module lacks.

    Raises:
        WrongArgument: one is unknown, or of another type.
    """
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function, localns=dict(classes))
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        refuse_unknown({name: value for name, value in given.items() if name not in parameters}, parameters)
    for name, value in given.items():
        if name in parameters and parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
            as_hinted(name, value, hints[name])


def place(name: str, value: Any) -> str:
    """A path as text.  Raises WrongArgument: it is none."""
    if not isinstance(value, str | os.PathLike):
        raise WrongArgument(f"{name} is {_shown(value)}", fix=f"give {name} as a path")
    return str(value)


def _arms(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _as_type(value: Any, kind: Any, path: bool) -> tuple[bool, Any]:
    """Whether a value is of a type, and the value as it."""
    base = typing.get_origin(kind) or kind
    truth = isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"  # numpy's too
    if base is str:
        named = isinstance(value, str) or (path and isinstance(value, os.PathLike))
        return named, str(value) if named else value
    if base is bool:
        return truth, bool(value) if truth else value
    if base in (int, float):
        number: Any = value
        fits = isinstance(value, numbers.Integral if base is int else numbers.Real) and not truth
        return fits, base(number) if fits else value
    if base is tuple and typing.get_args(kind)[0] is str:
        if isinstance(value, str):
            return True, (value,)
        parts: Any = value
        fits = isinstance(value, list | tuple) and all(isinstance(v, str) for v in parts)
        return fits, tuple(parts) if fits else value
    if base in (dict, list):
        return isinstance(value, Mapping if base is dict else list | tuple), value
    return base is not types.NoneType or value is None, value


def _called(kind: Any, path: bool) -> str:
    """What a type is called in messages."""
    base = typing.get_origin(kind) or kind
    if base is str and path:
        return "a path"
    if base is tuple:
        return "text or a list of texts"
    if base is list:
        return "a list"
    return "None" if base is types.NoneType else _WORDS.get(base, getattr(base, "__name__", str(base)))


def _shown(value: Any) -> str:
    """A value in a message: short ones as they are written, others by their type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value) if isinstance(value, str | bool | int | float | list | tuple | types.NoneType) else ""
    return text if text and len(text) <= 40 else f"a {type(value).__name__}"
