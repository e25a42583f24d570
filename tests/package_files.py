"""The files of the package as parsed code: their rooms, their imports, and the circles that imports make."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "influence_cli"

# Folders and single files.  A file belongs to the room whose name is the longest beginning of its own.
ROOMS = (
    *("errors", "arguments", "events", "memory", "processes", "maths", "store", "options", "settings"),
    *("data", "model", "engines", "curvature"),
    *("objectives", "methods", "actions", "exports", "report", "loggers"),
    *("stages/run", "stages/grads", "stages/score", "stages/curate", "stages/retrain", "stages/evaluate"),
    *(
        "api",
        "cli/streams",
        "cli/console",
        "cli/printing",
        "cli/settings",
        "cli/show",
        "cli/commands",
        "cli",
        "__init__",
        "__main__",
    ),
)


@dataclass(frozen=True)
class Import:
    """One import of a file of ours."""

    target: str
    line: int


@dataclass(frozen=True)
class File:
    """A file of the package, parsed once, when it is first asked what is in it."""

    name: str  # from the package on, without the suffix: stages/score/noise

    @functools.cached_property
    def text(self) -> str:
        """What the file holds."""
        return (PACKAGE / f"{self.name}.py").read_text()

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The file as parsed code."""
        return ast.parse(self.text)

    @functools.cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of the code."""
        return tuple(ast.walk(self.tree))

    @property
    def lines(self) -> int:
        """How many lines the file has."""
        return len(self.text.splitlines())

    @property
    def room(self) -> str | None:
        """The room that the file belongs to; None for a folder of rooms, such as ``stages``."""
        fitting = [room for room in ROOMS if f"{self.name}/".startswith(f"{room}/")]
        return max(fitting, key=len, default=None)

    @property
    def functions(self) -> Iterator[tuple[str, int]]:
        """Every function, methods and inner ones too, with its number of lines."""
        for node in self.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{self.name}:{node.name}", (node.end_lineno or 0) - node.lineno + 1

    def imports(self) -> Iterator[Import]:
        """Every name imported anywhere in the file, whole: ``from a.b import c`` is ``a.b.c``."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}:{node.lineno}: imports are absolute"
                yield from (Import(f"{node.module}.{alias.name}", node.lineno) for alias in node.names)

    def names(self) -> dict[str, str]:
        """What the names that the file imports stand for."""
        out: dict[str, str] = {}
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom):
                out |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                out |= {alias.asname or alias.name: alias.name for alias in node.names}
        return out

    def texts(self) -> Iterator[tuple[str, int]]:
        """Every string that stands in the code."""
        for node in self.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value, node.lineno


NAMES = (path.relative_to(PACKAGE).with_suffix("").as_posix() for path in sorted(PACKAGE.rglob("*.py")))
FILES = {name: File(name) for name in NAMES}


def file_of(dotted: str) -> str | None:
    """The file that holds what ``influence_cli.a.b.c`` names: ``a/b/c``, ``a/b/c/__init__`` or ``a/b``."""
    head, *parts = dotted.split(".")
    if head != "influence_cli":
        return None
    for k in range(len(parts), -1, -1):
        place = "/".join(parts[:k])
        for name in (place, f"{place}/__init__".removeprefix("/")):
            if name in FILES:
                return name
    return None


@functools.cache
def edges() -> dict[str, dict[str, int]]:
    """For every file the files that it imports, each with the line of the first import."""
    out: dict[str, dict[str, int]] = {name: {} for name in FILES}
    for name, file in FILES.items():
        for found in file.imports():
            target = file_of(found.target)
            if target is not None and target != name:
                out[name][target] = min(found.line, out[name].get(target, found.line))
    return out


def rank(name: str) -> int:
    """The place of a file's room in the order; the ground is 0."""
    room = FILES[name].room
    return ROOMS.index(room) if room is not None else 0


def circle_through(start: str, graph: dict[str, dict[str, int]]) -> list[str] | None:
    """The shortest way of imports from a file back to itself, if there is one."""
    came_from: dict[str, str] = {}
    now = [start]
    while now:
        after: list[str] = []
        for name in now:
            for target in graph[name]:
                if target == start:
                    way = [start, name]
                    while way[-1] != start:
                        way.append(came_from[way[-1]])
                    return way[::-1]
                if target not in came_from:
                    came_from[target] = name
                    after.append(target)
        now = after
    return None


def circles(graph: dict[str, dict[str, int]]) -> list[str]:
    """Every shortest circle once, as ``a:3 -> b:7 -> a``: the lines are those of the imports."""
    out: dict[frozenset[str], str] = {}
    for start in sorted(graph):
        way = circle_through(start, graph)
        if way is not None:
            steps = [f"{name}:{graph[name][to]}" for name, to in pairwise(way)]
            out.setdefault(frozenset(way), " -> ".join([*steps, start]))
    return list(out.values())
