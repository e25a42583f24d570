"""What errors say of flags, as the arguments that a Python program gives in their place."""

from __future__ import annotations

import re

from influence_cli.errors import InfluenceError

_FLAG = re.compile(
    r"(?<![\w-])(?:-o|--([a-z][a-z0-9-]*))(?:(?:[ =])('[^']*'|\"[^\"]*\"|[\w./%,:=<>\[\]{}+-]*[\w\]%}]))?"
)
_COMMAND = re.compile(r"`influence [^`]*`|\binfluence [a-z]+ [^;,)]*")
# what follows a flag that stands alone
_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a and are as at be beside for from gives goes had has have holds if in instead is it keeps leaves "
        "lists makes may names needs numbers of on once or out reads said says sets skips takes that the then "
        "there to was where which with without you ",
    )
)


def as_arguments(text: str, switches: frozenset[str]) -> str:
    """The text with ``name=VALUE`` in place of ``--name VALUE``; whole commands stay as they are.

    >>> as_arguments("pass --checkpoint PATH, or --skip-bad to go on", frozenset({"skip_bad"}))
    'pass checkpoint=PATH, or skip_bad=True to go on'
    >>> as_arguments("pass --device cpu or --set robustness.attack=pgd; or `influence grads --store X`", frozenset())
    "pass device='cpu' or options={'robustness': {'attack': 'pgd'}}; or `influence grads --store X`"
    """
    parts, at = [], 0
    for command in _COMMAND.finditer(text):
        parts += [_FLAG.sub(lambda found: _argument(found, switches), text[at : command.start()]), command[0]]
        at = command.end()
    return "".join([*parts, _FLAG.sub(lambda found: _argument(found, switches), text[at:])])


def _argument(found: re.Match[str], switches: frozenset[str]) -> str:
    name = (found[1] or "output").replace("-", "_")
    value, rest = found[2], ""
    if value is None or name in switches or value.lower() in _WORDS:
        rest = "" if value is None else found[0][found.start(2) - found.start() - 1 :]
        return f"{name}=True{rest}" if name in switches else f"{name}{rest}"
    if name == "set":
        return _options(value)
    plain = value.isupper() or value[0] in "'\"" or re.fullmatch(r"[A-Z][A-Z_./%,=-]*|-?\d+(\.\d+)?", value)
    return f"{name}={value if plain else repr(value)}"


def _options(value: str) -> str:
    left, _, right = value.partition("=")
    method, _, key = left.rpartition(".")
    number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", right)
    inner = f"{{{key!r}: {right if number else repr(right)}}}"
    return f"options={{{method!r}: {inner}}}" if method else f"options={{METHOD: {inner}}}"


def speak_of_arguments(error: InfluenceError, switches: frozenset[str]) -> None:
    """Change an error's words in place."""
    error.what, error.fix = (as_arguments(text, switches) for text in (error.what, error.fix))
    error.args = (error.what, *error.args[1:])
