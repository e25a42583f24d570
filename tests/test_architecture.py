"""The shape of the code: imports point one way, terminals and file names stay where they belong, files stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "influence_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

# From the ground up; a module may import from its own layer and from those below it.  Leaves that hold no logic of a
# stage (errors, events, settings, the tables that every stage reads) stand where those that use them can reach them.
LAYERS = (
    {"errors", "events"},
    {"maths"},
    {"store", "settings"},
    {
        *("earlier", "formulas", "outputs"),
        *("tables", "row_checks", "payloads", "classes", "manifest", "in_memory", "sources"),
    },
    {"model", "methods", "objectives", "actions", "report"},
    {"edited", "usable_rows"},
    {"exports"},
    {
        "fit_set",
        "members",
        "target",
        *("objective_inputs", "objective_report", "measure", "attacked_target"),
        *("job", "curvature_report"),
        "interim",
        "preconditioning",
        "plan",
        "estimate",
        "ingest",
        "reliability",
        "first_look",
        "grads",
        "provenance",
        *("row_pass", "value_pass", "row_values", "value_functions", "relative"),
        *("gradient_plan", "gradient_pass", "gradients"),
        "agreement",
        "score",
        *("per_target", "per_target_plan", "per_target_pass", "per_target_product"),
        "per_target_agreement",
        "curate",
        "gate",
        "arms",
        *("combining", "constrained", "budgets", "score_table", "parity", "curated_manifest", "edit_report", "undo"),
        *("scored_arms", "rounds", "training_run", "attacked", "arm_quality", "arm_comparison", "pareto", "retrain"),
        "run_folder",
        "evaluate",
        "counterfactuals",
        *(
            "canaries",
            "canary_detection",
            "checkpoint_quality",
            "columns",
            "comparison",
            "detection",
            "order",
            "replay",
        ),
    },
    {"export"},
    {"api"},
    {"cli", "__init__", "__main__"},
)


GROUPS = ("stages", "data")  # folders whose modules have layers of their own


def part_of(path: Path) -> str:
    """The module or sub-package that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[1] if parts[0] in GROUPS else parts[0]


def layer_of(part: str) -> int:
    """Its layer, from the ground up."""
    return next(k for k, layer in enumerate(LAYERS) if part in layer)


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module imported anywhere in a file, in functions and for type checking too, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def ours(name: str) -> str | None:
    """The part of our package that an import reaches, if any."""
    parts = name.split(".")
    if parts[0] != "influence_cli" or len(parts) < 2:
        return None
    return (parts[2] if len(parts) > 2 else None) if parts[1] in GROUPS else parts[1]


def test_every_part_has_a_layer() -> None:
    assert {part_of(p) for p in FILES} <= set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    mine = layer_of(part_of(path))
    wrong = [
        f"line {line}: {name}"
        for name, line in imports(TREES[path])
        if (part := ours(name)) in set().union(*LAYERS) and layer_of(str(part)) > mine
    ]
    assert wrong == []


def test_stages_do_not_import_each_other_in_a_circle() -> None:
    """At module level: an import inside a function may be lazy, one at the top must not be circular."""
    edges: dict[str, set[str]] = {}
    for path, tree in TREES.items():
        part = part_of(path)
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        edges.setdefault(part, set()).update(p for n, _ in imports(top) if (p := ours(n)) and p != part)
    done: set[str] = set()

    def visit(part: str, above: tuple[str, ...]) -> None:
        assert part not in above, f"circle: {' -> '.join((*above, part))}"
        if part not in done:
            for other in sorted(edges.get(part, set())):
                visit(other, (*above, part))
            done.add(part)

    for part in sorted(edges):
        visit(part, ())


def test_only_the_command_line_imports_typer_or_rich() -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path, tree in TREES.items()
        for name, _ in imports(tree)
        if name.split(".")[0] in ("typer", "rich", "click")
    }
    assert found
    assert {name.split("/")[0] for name in found} == {"cli"}
    assert not any(name.split(".")[0] == "click" for tree in TREES.values() for name, _ in imports(tree))


def test_maths_imports_numbers_and_nothing_of_ours() -> None:
    allowed = {"torch", "numpy", "scipy", *sys.stdlib_module_names}
    for path in (p for p in FILES if part_of(p) == "maths"):
        for name, line in imports(TREES[path]):
            own = name.startswith("influence_cli.maths")
            assert own or name.split(".")[0] in allowed, f"{path.name}:{line} imports {name}"


def test_no_file_is_named_after_nothing() -> None:
    empty = {"utils", "util", "common", "helpers", "helper", "base", "misc", "core"}
    assert [str(p) for p in FILES if p.stem.strip("_") in empty] == []


def test_no_file_is_longer_than_350_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 350}
    assert long == {}


def test_no_function_is_longer_than_60_lines() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": lines
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60
    }
    assert long == {}


def test_every_module_and_every_public_function_says_what_it_is() -> None:
    silent = [str(path.relative_to(ROOT)) for path, tree in TREES.items() if not ast.get_docstring(tree)]
    for path, tree in TREES.items():
        for node in tree.body:
            named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if named and not ast.get_docstring(node):
                silent.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert silent == []


def test_every_function_says_what_it_returns() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{node.name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.returns is None
    ]
    assert silent == []


FOLDERS = (
    "attacks|row_values|top_rows|decisions|directions|outputs|tangents|gradients|traces|factors|interims|trainings"
)
LAYOUT = re.compile(rf"^({FOLDERS}|timings\.json|spec\.json)$|\.damaged-|\.tmp$")


def test_only_the_store_knows_what_its_files_are_called() -> None:
    """Joining a path with a layout name, or with a literal .safetensors name, outside of who owns that layout."""
    owners = {"*.safetensors", "model.safetensors"}
    wrong: list[str] = []
    for path, tree in TREES.items():
        if part_of(path) == "store":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                for side in (node.left, node.right):
                    if isinstance(side, ast.Constant) and isinstance(side.value, str) and LAYOUT.search(side.value):
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {side.value}")
            spelled = isinstance(node, ast.Constant) and node.value in owners
            if spelled and part_of(path) not in ("model", "retrain"):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.value}")
    assert wrong == []


def test_nothing_prints_but_the_terminal() -> None:
    printing = {
        str(path.relative_to(PACKAGE))
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"cli/console.py", "cli/main.py"}


def test_no_tracked_file_names_a_folder_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    places = re.compile(r"(?<![\w.])/(home|Users|root|work)/[A-Za-z]")
    found: list[str] = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{name}:{k}" for k, line in enumerate(text.splitlines(), 1) if places.search(line)]
    assert found == []
