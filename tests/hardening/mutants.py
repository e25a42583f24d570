"""Mutants: is a slip in the code noticed by the tests?  A sample of slips, each tried against the tests that reach it.

    python -m tests.hardening.mutants --count 300 -o mutants.json      # a sample of four parts of the package
    python -m tests.hardening.mutants --count 20 --part maths

Tools such as mutmut and cosmic-ray start Python and collect the tests anew for every mutant, which takes seconds where
most tests take hundredths of one.  Here the tests run once, while it is noted which functions each enters; then every
mutant is a fork of that process in which one function has the code of the mutant, and in which the tests that enter the
function run, shortest first, until one fails.  What several tests share is made once.

A mutant is one change within a function: a comparison, an operation, a number, a truth, a condition, a call of min, max,
any or all, a statement left out or a value not returned.  Texts stay as they are, and so does what runs at import.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import functools
import gc
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.hardening.harness import waited

ROOT = Path(__file__).parents[2]
PARTS = {  # of the package, and the tests that are about each
    "store": ("store", sorted(
        str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "store").glob("test_*.py")
        if p.stem not in ("test_any_sequence", "test_kill", "test_large_files", "test_cache")  # minutes
    )),
    "maths": ("maths", ["tests/maths", "tests/engines/test_sketch.py"]),
    "curate": ("stages/curate", ["tests/stages/curate", "tests/actions"]),
    "kinds": (
        "data/kinds",
        [
            *(f"tests/data/test_{name}.py" for name in (
                "image_modes", "payload_files", "new_kind", "manifest", "content_notes", "image_folder", "ingest",
                "outside", "wrong_suffix",
            )),
            "tests/data/kinds", "tests/model/test_decode.py", "tests/model/test_text_numbers.py",
        ],
    ),
}  # fmt: skip
MOST_CPU = 40  # seconds of one mutant, after which it is taken for one that never ends
LONGEST = 2.0  # processor seconds of a test that takes part, once what it shares with others is made
BUDGET = 12.0  # seconds of tests that one mutant is given, as they took without it

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or,
    ast.Or: ast.And, ast.MatMult: ast.Mult,
}  # fmt: skip
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
MARKS: dict[type[ast.AST], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is", ast.IsNot: "is not",
    ast.In: "in", ast.NotIn: "not in", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//",
    ast.Mod: "%", ast.Pow: "**", ast.And: "and", ast.Or: "or", ast.MatMult: "@",
}  # fmt: skip


@dataclass
class Mutant:
    """One change: in which file, function and line, what it is, and what came of it."""

    part: str
    file: str
    function: str
    line: int
    change: str
    number: int  # which of the file's changes it is
    tests: int = 0
    ended: str = ""
    killed_by: str = ""
    notes: list[str] = field(default_factory=list)


# ---- changes --------------------------------------------------------------------------------------------------------


class _Changes(ast.NodeVisitor):
    """Every change in a file, in order; made at the one whose number it is."""

    def __init__(self, chosen: int = -1) -> None:
        self.chosen, self.count, self.made = chosen, 0, ""
        self.found: list[tuple[int, str, int, str]] = []  # number, function, line, change
        self._inside: list[str] = []

    def _offer(self, node: ast.AST, change: str) -> bool:
        self.found.append((self.count, self._inside[0], getattr(node, "lineno", 0), change))
        self.count += 1
        return self.count - 1 == self.chosen

    def visit(self, node: ast.AST) -> None:
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if named:
            self._inside.append(node.name)  # type: ignore[attr-defined]
        self._change(node)
        body = [node.body] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
        for child in ast.iter_child_nodes(node):  # not what runs at import: decorators, defaults, annotations
            if body is None or any(child is statement for statement in body[0]):
                self.visit(child)
        if named:
            self._inside.pop()

    def visit_statements(self, tree: ast.Module) -> None:
        """Every function of a module, those of classes too; functions inside of functions are parts of these."""
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef):
                        self._function(inner, f"{node.name}.{inner.name}")
            elif isinstance(node, ast.FunctionDef):
                self._function(node, node.name)

    def _function(self, node: ast.FunctionDef, name: str) -> None:
        self._inside = [name]
        self._block(node)
        for statement in node.body:
            self.visit(statement)
        self._inside = []

    def _block(self, node: ast.AST) -> None:
        """Statements of a block that can be left out."""
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            for k, statement in enumerate(block if isinstance(block, list) else ()):
                kept = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant | ast.Yield)
                offered = isinstance(statement, ast.Expr | ast.AugAssign | ast.Raise) and not kept
                if offered and self._offer(statement, f"left out: {_short(statement)}"):
                    block[k] = ast.copy_location(ast.Pass(), statement)  # type: ignore[index]

    def _change(self, node: ast.AST) -> None:
        if isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try | ast.ExceptHandler):
            self._block(node)
        if isinstance(node, ast.Compare):
            for k, op in enumerate(node.ops):
                swap = SWAPS[type(op)]
                if self._offer(node, f"{MARKS[type(op)]} is {MARKS[swap]}: {_short(node)}"):
                    node.ops[k] = swap()  # type: ignore[call-overload]
        elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
            texts = isinstance(node, ast.BinOp) and any(_is_text(side) for side in (node.left, node.right))
            swap = SWAPS[type(node.op)]
            if not texts and self._offer(node, f"{MARKS[type(node.op)]} is {MARKS[swap]}: {_short(node)}"):
                node.op = swap()  # type: ignore[assignment]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            if self._offer(node, f"without {'not' if isinstance(node.op, ast.Not) else 'minus'}: {_short(node)}"):
                node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op
                if isinstance(node.op, ast.Not):
                    node.operand = ast.copy_location(ast.UnaryOp(ast.Not(), node.operand), node.operand)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            if self._offer(node, f"{node.value} is {value}"):
                node.value = value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            if self._offer(node, f"{node.func.id} is {CALLS[node.func.id]}: {_short(node)}"):
                node.func.id = CALLS[node.func.id]
        elif isinstance(node, ast.If | ast.While | ast.IfExp):
            if self._offer(node, f"condition turned: {_short(node.test)}"):
                node.test = ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test)
        elif (
            isinstance(node, ast.Return)
            and node.value is not None
            and not isinstance(node.value, ast.Constant)
            and self._offer(node, f"None returned: {_short(node)}")
        ):
            node.value = ast.copy_location(ast.Constant(None), node.value)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else text[:87] + "..."


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def changes(part: str, file: str) -> list[Mutant]:
    """Every change in a file."""
    visitor = _Changes()
    visitor.visit_statements(copy.deepcopy(_tree(file)))
    return [Mutant(part, file, function, line, change, k) for k, function, line, change in visitor.found]


def mutated_code(mutant: Mutant) -> dict[tuple[str, int], CodeType]:
    """The code of the file's functions with the change made, by qualified name and first line."""
    tree, visitor = copy.deepcopy(_tree(mutant.file)), _Changes(mutant.number)
    visitor.visit_statements(tree)
    ast.fix_missing_locations(tree)
    return {(c.co_qualname, c.co_firstlineno): c for c in _codes(compile(tree, str(ROOT / mutant.file), "exec"))}


def _codes(code: CodeType) -> Iterator[CodeType]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield value
            yield from _codes(value)


# ---- tests ----------------------------------------------------------------------------------------------------------


class _Entered:
    """Which functions of the package each test enters, by file and name."""

    def __init__(self, folders: list[str]) -> None:
        self.folders = tuple(str(ROOT / "influence_cli" / f) for f in folders)
        self.named: dict[
            int, tuple[CodeType, tuple[str, str] | None]
        ] = {}  # texts are compared once, not at every call
        self.now: set[tuple[str, str]] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if id(code) not in self.named:
            ours = code.co_filename.startswith(self.folders)
            name = (code.co_filename, code.co_qualname.partition(".<locals>")[0]) if ours else None
            self.named[id(code)] = code, name
        if (found := self.named[id(code)][1]) is not None:
            self.now.add(found)

    @contextlib.contextmanager
    def noted(self) -> Iterator[set[tuple[str, str]]]:
        """The functions that are entered within the block."""
        self.now = set()
        threading.settrace(self)
        sys.settrace(self)
        try:
            yield self.now
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]


class TooLong(Exception):
    """A test takes longer than is worth while for every mutant."""


def _stop(*_: Any) -> None:
    raise TooLong


class Runner:
    """A plugin that runs every test once, and then tries mutants in forks."""

    def __init__(
        self, parts: list[str], count: int, seed: int, output: Path | None, only: list[Mutant], longest: float
    ) -> None:
        self.longest = longest
        self.parts, self.count, self.seed, self.output, self.only = parts, count, seed, output, only
        self.reach: dict[str, set[tuple[str, str]]] = {}
        self.seconds: dict[str, float] = {}
        self.results: list[Mutant] = []
        self.measuring = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[Any]:
        """A test that takes too long is stopped, and takes no part."""
        signal.signal(signal.SIGPROF, _stop)
        signal.setitimer(signal.ITIMER_PROF, self.longest if self.measuring else 0)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In the place of the loop over tests."""
        entered = _Entered([PARTS[part][0] for part in self.parts])
        items = {item.nodeid: item for item in session.items}
        first = session.items[0]
        begun = time.process_time()
        for k, item in enumerate(session.items):
            following = session.items[k + 1] if k + 1 < len(session.items) else first  # what is shared stays
            start = time.process_time()
            with entered.noted() as reached:
                reports = runtestprotocol(item, log=False, nextitem=following)
            self.seconds[item.nodeid] = time.process_time() - start
            if all(r.passed for r in reports):
                self.reach[item.nodeid] = reached
            elif not any(r.skipped for r in reports):
                sys.stderr.write(f"left out, it fails without a mutant or takes long: {item.nodeid}\n")
        sys.stderr.write(f"{len(self.reach)} tests in {time.process_time() - begun:.0f} s\n")
        gc.freeze()
        self.measuring = False
        control = Mutant("", "", "", 0, "no change", -1)
        self._run(control, {}, self._shortest(list(self.reach))[0], items, first)
        if control.ended != "survived":
            raise RuntimeError(f"tests fail in a fork without a mutant: {control.killed_by}")
        for mutant in self.only or self._sample():
            self._try(mutant, items, first)
            self.results.append(mutant)
            sys.stderr.write(f"{len(self.results)} {mutant.ended}: {mutant.file}:{mutant.line} {mutant.change}\n")
            sys.stderr.flush()
            if self.output is not None:
                self.output.write_text(json.dumps([asdict(m) for m in self.results], indent=1))
        return True

    def _sample(self) -> list[Mutant]:
        """As many of every part, drawn with a seed, of functions that any test enters or none."""
        rng, drawn = random.Random(self.seed), list[Mutant]()
        for part in self.parts:
            folder = ROOT / "influence_cli" / PARTS[part][0]
            files = [str(p.relative_to(ROOT)) for p in sorted(folder.glob("*.py"))]
            every = [m for file in files for m in changes(part, file)]
            drawn += rng.sample(every, min(self.count // len(self.parts), len(every)))
        rng.shuffle(drawn)  # so that a run that is stopped has some of every part
        return drawn

    def _try(self, mutant: Mutant, items: dict[str, pytest.Item], first: pytest.Item) -> None:
        here = (str(ROOT / mutant.file), mutant.function)
        chosen, left = self._shortest([n for n, reached in self.reach.items() if here in reached])
        if left:
            mutant.notes.append(f"{left} longer tests not run")
        mutant.tests = len(chosen)
        if not chosen:
            mutant.ended = "not reached"
            return
        self._run(mutant, mutated_code(mutant), chosen, items, first)

    def _shortest(self, names: list[str]) -> tuple[list[str], int]:
        """As many of the shortest tests as the budget has room for, and how many are left."""
        fitting = sorted(names, key=self.seconds.__getitem__)
        ends = [sum(self.seconds[n] for n in fitting[: k + 1]) for k in range(len(fitting))]
        most = max(sum(end <= BUDGET for end in ends), min(1, len(fitting)))
        return fitting[:most], len(fitting) - most

    @staticmethod
    def _run(
        mutant: Mutant, code: dict[tuple[str, int], CodeType], chosen: list[str], items: dict[str, pytest.Item],
        first: pytest.Item,
    ) -> None:  # fmt: skip
        """Run tests in a fork in which functions have other code; says in the mutant what came of it."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _child(code, str(ROOT / mutant.file), [items[name] for name in chosen], first, writing)
        os.close(writing)
        status = waited(pid, 20 * MOST_CPU)
        with os.fdopen(reading) as told:
            mutant.killed_by = told.read().strip()
        if os.WIFSIGNALED(status):
            mutant.ended = "killed"
            mutant.killed_by = f"signal {os.WTERMSIG(status)}"
        else:
            mutant.ended = {0: "survived", 1: "killed"}.get(os.WEXITSTATUS(status), "not tried")


def _child(
    code: dict[tuple[str, int], CodeType], file: str, items: list[pytest.Item], first: pytest.Item, told: int
) -> None:  # pragma: no cover - runs in a fork
    leave = os._exit
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU, MOST_CPU + 2))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        if not _put(code, file) and code:
            leave(3)
        for k, item in enumerate(items):
            following = items[k + 1] if k + 1 < len(items) else first
            reports = runtestprotocol(item, log=False, nextitem=following)
            if any(r.failed for r in reports):
                os.write(told, item.nodeid.encode())
                leave(1)
        leave(0)
    except BaseException as error:
        os.write(told, f"{type(error).__name__}: {error}".encode())
        leave(4)


def _put(code: dict[tuple[str, int], CodeType], file: str) -> int:
    """Give every function of a file its code in the mutant, and forget what any has remembered; how many have it."""
    done = 0
    gc.unfreeze()
    for value in gc.get_objects():  # by type: some pretend to be of another class, and warn
        if type(value) is FunctionType and value.__code__.co_filename == file:
            found = code.get((value.__code__.co_qualname, value.__code__.co_firstlineno))
            if found is not None and len(found.co_freevars) == len(value.__code__.co_freevars):
                value.__code__ = found
                done += 1
        elif type(value) is functools._lru_cache_wrapper and "influence_cli" in str(value.__module__):
            value.cache_clear()
    return done


def main() -> int:
    """Try what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.hardening.mutants", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--again", type=Path, help="those of an earlier output that were not killed")
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds of a test that takes part")
    asked = parser.parse_args()
    parts = asked.part or list(PARTS)
    only = []
    if asked.again is not None:
        known = [Mutant(**m) for m in json.loads(asked.again.read_text())]
        only = [
            Mutant(m.part, m.file, m.function, m.line, m.change, m.number)
            for m in known
            if m.ended != "killed" and m.part in parts
        ]
    runner = Runner(parts, asked.count, asked.seed, asked.output, only, asked.longest)
    tests = [path for part in parts for path in PARTS[part][1]]
    os.chdir(ROOT)
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-p", "no:xdist", *tests], plugins=[runner])
    for part in parts:
        ended = [m.ended for m in runner.results if m.part == part]
        sys.stdout.write(f"{part}: " + ", ".join(f"{ended.count(e)} {e}" for e in sorted(set(ended))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
