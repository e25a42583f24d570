"""Writes the parts of README, the guide and the engines' READMEs that the code says, between their markers.

    python -m tests.generate_docs           # write what is out of date, and name it
    python -m tests.generate_docs --check   # write nothing; exit 1 where something is out of date

A part stands between ``<!-- generated: NAME ARGUMENT -->`` and ``<!-- end of generated -->``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from influence_cli.actions import ACTIONS
from influence_cli.cli.app import COMMANDS
from influence_cli.cli.commands.guide import TOPICS, about
from influence_cli.cli.settings.help_groups import grouped_options
from influence_cli.data.columns import TABLES
from influence_cli.methods import METHODS
from influence_cli.objectives import OBJECTIVES
from influence_cli.options import Option
from influence_cli.settings import option_fields
from influence_cli.stages.score.combine import Combine

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "influence_cli"
GUIDE = PACKAGE / "guide"
RESULTS = tuple(ROOT / "tests" / name / "results" for name in ("benchmarks", "reproduction"))
ENGINES = tuple(PACKAGE / "engines" / name / "README.md" for name in ("dual", "layerwise"))
FILES = (ROOT / "README.md", *(GUIDE / f"{topic}.md" for topic in TOPICS))
PART = re.compile(r"(<!-- generated: (\S+)(?: (\S+))? -->\n).*?(<!-- end of generated -->)", re.DOTALL)
HELP_WIDTH = 78  # columns: as on a narrow terminal


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |\n" for line in lines)


def block(text: str, language: str = "text") -> str:
    """A fenced block."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def methods(_: str) -> str:
    """Every method, a line each."""
    rows = []
    for info in METHODS.values():
        cls = info.load()
        rows.append([f"`{info.name}`", info.summary, cls.kind, "yes" if cls.effect else "no", info.cost])
    return table(["method", "what it is", "kind", "`effect`", "cost in passes"], rows)


def papers(_: str) -> str:
    """What methods need of the model, and where they are from."""
    rows = [[f"`{info.name}`", info.load().needs, info.paper] for info in METHODS.values()]
    return table(["method", "needs", "paper"], rows)


def options_of(name: str, cls: type[Any]) -> str:
    """The options of a method, objective or action, as ``--set`` takes them; nothing where it has none."""
    entries = []
    for f in option_fields(cls):
        value = str(f.default).lower() if isinstance(f.default, bool) else f.default
        default = "" if value in (None, "") else f" [default: {value}]"
        unit = f" (unit: {f.metadata['unit']})" if f.metadata.get("unit") else ""
        entries.append((f"{name}.{f.name}", f"{f.metadata.get('help', '')}{unit}{default}".strip()))
    return "".join(described(entries))


def described(entries: list[tuple[str, str]]) -> list[str]:
    """Names and what they mean in two columns, as ``--help`` has them."""
    left = min(max((len(name) for name, _ in entries), default=0), 28) + 4
    lines = []
    for name, text in entries:
        wrapped = textwrap.wrap(text, HELP_WIDTH - left, break_on_hyphens=False) or [""]
        first = f"  {name}"
        if len(first) > left - 2:
            lines.append(f"{first}\n")
            first = ""
        lines += [f"{first if k == 0 else '':{left}}{line}".rstrip() + "\n" for k, line in enumerate(wrapped)]
    return lines


def method_options(_: str) -> str:
    """The options of every method that has some."""
    return block("\n".join(text for name, info in METHODS.items() if (text := options_of(name, info.load()))))


def table_options(tables: dict[str, str]) -> str:
    """The options of everything in a lazy table of objectives or actions."""
    texts = []
    for name, target in tables.items():
        module, cls = target.split(":")
        texts.append(options_of(name, getattr(importlib.import_module(module), cls)))
    return "\n".join(text for text in texts if text)


def objective_options(_: str) -> str:
    """The options of every objective that has some."""
    return block(table_options(OBJECTIVES))


def action_options(_: str) -> str:
    """The options of every action, and of combining columns."""
    return block(table_options(ACTIONS) + "\n" + options_of("combine", Combine))


def shown_flag(o: Option) -> str:
    """A flag as ``--help`` has it."""
    return ", ".join(o.flags) + ("" if o.kind is bool else f" {o.shown_metavar}")


def command(name: str) -> str:
    """The help of a command: what it does, what it takes, and every option under its heading."""
    _, argument, function = next(row for row in COMMANDS if row[0] == name)
    usage = f"influence {name} [OPTIONS]" + (f" [{argument[0]}]" if argument else "")
    said = textwrap.fill(inspect.getdoc(function) or "", HELP_WIDTH - 2, break_on_hyphens=False)
    parts = [usage, "\n\n", textwrap.indent(said, "  "), "\n\n"]
    parts += described([(argument[0].removesuffix("..."), argument[1])] if argument else [])
    for heading, options in grouped_options(name):
        entries = [(shown_flag(o), o.shown_help) for o in options if not o.hidden]
        parts += [f"\n{heading}:\n", *described(entries)]
    return block("".join(parts))


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def modules(folder: Path) -> list[Path]:
    """The modules of a folder, by name."""
    return sorted(p for p in folder.glob("*.py") if p.name not in ("__init__.py", "__main__.py"))


def folders(folder: Path) -> list[Path]:
    """The packages in a folder, by name."""
    return sorted(p.parent for p in folder.glob("*/__init__.py"))


def tree(_: str) -> str:
    """What the folders of the package are."""
    entries = [("guide/", "The handbook, as ``influence guide`` prints it.")]
    entries += [(f"{folder.name}/", first_line(folder / "__init__.py")) for folder in folders(PACKAGE)]
    around = {
        "tests/": "The tests; oracle.py is the dense float64 reference; benchmarks/ and reproduction/ have results.",
        "sample_data/": "Digits with planted wrong labels, the script that made them, a checkpoint, influence.toml.",
    }
    lines = ["influence_cli/", *(f"  {name:<14}{text}" for name, text in entries)]
    return block("\n".join([*lines, *(f"{name:<16}{text}" for name, text in around.items())]))


def files(_: str) -> str:
    """Every file of the package, with the first line of its docstring."""
    texts = []
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py") if modules(path.parent)}):
        entries = [(path.name, first_line(path)) for path in modules(folder)]
        texts.append(f"{folder.relative_to(ROOT)}/\n" + "".join(described(entries)))
    return block("\n".join(texts))


def topics(_: str) -> str:
    """The topics of the guide."""
    rows = [[f"[`{topic}`](influence_cli/guide/{topic}.md)", about(topic)] for topic in TOPICS]
    return table(["`influence guide ...`", "what is in it"], rows)


def columns(_: str) -> str:
    """Every column of every table, under what writes the table."""
    return "\n".join(
        f"### {written}\n\n" + table(["column", "what it holds"], [[f"`{n}`", text] for n, text in entries.items()])
        for written, entries in TABLES.items()
    )


def example(name: str) -> str:
    """A file that a test runs, whole."""
    return block((ROOT / "tests" / name).read_text(), "python")


def dual_rules(_: str) -> str:
    """Operations with a rule of their own on dual numbers, and those that are linear."""
    from influence_cli.engines.dual.dual import LINEAR, RULES

    by_rule: dict[Any, list[str]] = {}
    for operation, rule in RULES.items():
        by_rule.setdefault(rule, []).append(named(operation))
    rows = [[", ".join(sorted(names)), inspect.getdoc(rule).splitlines()[0]] for rule, names in by_rule.items()]  # type: ignore[union-attr]
    linear = ", ".join(sorted({named(operation) for operation in LINEAR}))
    return table(["operation", "derivative"], sorted(rows)) + f"\nLinear in all their tensors together: {linear}.\n"


def named(operation: Any) -> str:
    """An operation of ATen as it is written in a table.

    >>> named("aten.add.Tensor"), named("aten.mm.default")
    ('`add.Tensor`', '`mm`')
    """
    return f"`{str(operation).removeprefix('aten.').removesuffix('.default')}`"


def layer_rules(_: str) -> str:
    """Modules with a rule of their own for row gradients."""
    from influence_cli.engines.layerwise.rules import RULES

    by_rule: dict[Any, list[str]] = {}
    for module, rule in RULES.items():
        torchs = "nn." if module.__module__.startswith("torch.") else ""
        by_rule.setdefault(rule, []).append(f"`{torchs}{module.__name__}`")
    rows = [[", ".join(names), inspect.getdoc(rule).splitlines()[0]] for rule, names in by_rule.items()]  # type: ignore[union-attr]
    return table(["module", "rule"], rows)


def result(argument: str) -> str:
    """A table of a file of results, all lines of it or some, and the command that wrote it.

    ``NAME#HEADING/2:first,second_line``: the second table under the heading that begins so, and its lines that begin
    with these cells (``_`` for a space).
    """
    where, _, wanted = argument.partition(":")
    where, _, number = where.partition("/")
    name, _, heading = where.partition("#")
    path = next(p for folder in RESULTS if (p := folder / f"{name}.md").exists())
    sections = re.split(r"(?m)^##+ ", path.read_text())
    under = heading.replace("_", " ")
    (section,) = [s for s in sections[1:] if s.startswith(under)] if heading else sections[:1]
    tables = [t for t in re.findall(r"(?m)(?:^\|.*\n)+", section + "\n") if not t.startswith("| what |")]
    header, rule, *lines = tables[int(number or 1) - 1].splitlines()
    if wanted:
        cells = [cell.replace("_", " ") for cell in wanted.split(",")]
        by_cell = [[line for line in lines if line.split(" | ")[0].strip("| `") == cell] for cell in cells]
        assert all(by_cell), f"{argument}: {path.name} has not all of these lines"
        lines = [line for some in by_cell for line in some]
    (command,) = re.findall(r"(?m)^\| command \| (.*?) \|$", path.read_text())
    shown = "Some of its lines" if wanted else "All of it"
    said = f"{shown}: {command} wrote it to `{path.relative_to(ROOT)}`."
    return "\n".join([header, rule, *lines, "", *textwrap.wrap(said, 120, break_on_hyphens=False)]) + "\n"


PARTS: dict[str, Callable[[str], str]] = {
    "result": result,
    "methods": methods,
    "papers": papers,
    "method-options": method_options,
    "objective-options": objective_options,
    "action-options": action_options,
    "command": command,
    "tree": tree,
    "files": files,
    "topics": topics,
    "columns": columns,
    "example": example,
    "dual-rules": dual_rules,
    "layer-rules": layer_rules,
}


def generated(text: str) -> str:
    """A document with its generated parts as the code says them now."""
    return PART.sub(lambda m: f"{m[1]}{PARTS[m[2]](m[3] or '')}{m[4]}", text)


def main(arguments: list[str]) -> int:
    """Write, or with ``--check`` only name, the documents that are out of date."""
    stale = [path for path in (*FILES, *ENGINES) if generated(path.read_text()) != path.read_text()]
    for path in stale:
        if "--check" not in arguments:
            path.write_text(generated(path.read_text()))
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
