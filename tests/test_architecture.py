"""The shape of the code: imports point one way and in no circle, each kind of knowledge has one home, files stay small.

The order of folders is the list ``ROOMS`` in tests/package_files.py.  A file imports from its own room and from those
before it.  An import inside a function or for type checking counts like any other, and so does a module named in a
string.
"""

from __future__ import annotations

import ast
import functools
import re
import statistics
import subprocess
import sys

import pytest

from tests.package_files import FILES, PACKAGE, ROOMS, ROOT, circles, edges, file_of, rank

NEVER = (  # who must never import whom: what the order of rooms is for
    *((low, high) for low in ("model", "engines", "curvature") for high in ("stages/run", "methods")),
    ("data", "model"),
    *((low, "stages/run") for low in ("exports", "actions")),
    ("cli/show", "cli/commands"),
)
WHOLE = (
    "test_architecture.py",
    "test_doc_commands.py",
    "test_docs.py",
    "test_ready_to_use.py",
)  # of tests/: about all of the repository
BESIDE = (
    "benchmarks",
    "hardening",
    "peers",
    "reproduction",
)  # what holds it against a clock, faults, libraries, a paper


@functools.cache
def named() -> list[tuple[str, str, int]]:
    """Modules that a file names in a string: the file, the module's, and the line."""
    return [
        (name, target, line)
        for name, file in FILES.items()
        for text, line in file.texts()
        if re.fullmatch(r"influence_cli(\.\w+)+(:\w+)?", text)
        and (target := file_of(text.replace(":", "."))) is not None
    ]


# ---- imports --------------------------------------------------------------------------------------------------------


def test_every_file_is_in_a_room_and_no_room_is_empty() -> None:
    rooms = {name: file.room for name, file in FILES.items()}
    outside = [name for name, room in rooms.items() if room is None]
    assert [name for name in outside if not name.endswith("/__init__") or len(FILES[name].tree.body) > 1] == []
    assert set(ROOMS) - set(rooms.values()) == set()


def test_no_file_imports_from_a_room_above_its_own() -> None:
    upwards = [
        f"{name}:{line} imports {target}"
        for name, targets in edges().items()
        for target, line in targets.items()
        if FILES[name].room is not None and rank(target) > rank(name)
    ]
    assert upwards == [], "\n".join(upwards)


def test_no_file_names_a_module_of_a_room_above_its_own() -> None:
    """Tables name modules as text, which are imported when they are asked for."""
    upwards = [f"{name}:{line} names {target}" for name, target, line in named() if rank(target) > rank(name)]
    assert upwards == [], "\n".join(upwards)


def test_every_file_is_imported_or_named_by_another() -> None:
    """A file that only registers things is as good as not there where nobody imports it."""
    reached = {target for targets in edges().values() for target in targets} | {target for _, target, _ in named()}
    assert [name for name in FILES if name not in reached and not name.endswith(("__init__", "__main__"))] == []


def test_no_files_import_each_other_however_indirectly() -> None:
    found = circles(edges())
    assert found == [], "\n".join(found)


def test_circles_are_found_and_shown() -> None:
    graph = {"a": {"b": 3}, "b": {"c": 5}, "c": {"a": 7, "d": 8}, "d": {}, "e": {"f": 1, "a": 2}, "f": {"e": 4}}
    assert circles(graph) == ["a:3 -> b:5 -> c:7 -> a", "e:1 -> f:4 -> e"]


@pytest.mark.parametrize(("low", "high"), NEVER)
def test_the_order_of_rooms_says_what_must_never_be(low: str, high: str) -> None:
    assert ROOMS.index(low) < ROOMS.index(high)


def importing(*libraries: str) -> set[str]:
    """The files that import one of these libraries."""
    return {name for name, file in FILES.items() for found in file.imports() if found.target.split(".")[0] in libraries}


def test_only_the_command_line_imports_typer_or_rich() -> None:
    assert {name.split("/")[0] for name in importing("typer", "rich")} == {"cli"}
    assert importing("click") == set()


def test_pickles_are_read_as_a_format_of_weights_and_nothing_else() -> None:
    """Reading a pickle runs what it names; workers and collectives of objects hand pickles over."""
    assert importing("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve") == {"model/torch_files"}
    assert importing("multiprocessing", "concurrent.futures.process", "torch.multiprocessing") == set()
    found = set[str]()
    for name, file in FILES.items():
        for node in file.nodes:
            word = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
            if re.fullmatch(r"(all_)?gather_object|(broadcast|scatter|send|recv)_object(_list)?", word or ""):
                found.add(f"{name} {word}")
            if word in ("DataLoader", "ProcessPoolExecutor"):
                found.add(f"{name} {word}")
            off = isinstance(node, ast.keyword) and node.arg == "allow_pickle" and literals(node.value) != {False}
            off |= isinstance(node, ast.keyword) and node.arg == "weights_only" and literals(node.value) != {True}
            if off:
                found.add(f"{name} {ast.unparse(node)}")
    assert found == set()


def test_maths_imports_numbers_and_nothing_of_ours() -> None:
    allowed = {"torch", "numpy", "scipy", *sys.stdlib_module_names}
    wrong = [
        f"{name}:{found.line} imports {found.target}"
        for name, file in FILES.items()
        if file.room == "maths"
        for found in file.imports()
        if not found.target.startswith("influence_cli.maths.") and found.target.split(".")[0] not in allowed
    ]
    assert wrong == [], "\n".join(wrong)


# ---- one home for each kind of knowledge ----------------------------------------------------------------------------

KINDS = {"image", "features", "path", "text"} | {p.stem for p in (PACKAGE / "data" / "kinds").glob("[a-z]*.py")}


def literals(node: ast.AST) -> set[object]:
    """A literal's value, or those in a literal tuple, list or set."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return set().union(*map(literals, node.elts))
    return {node.value} if isinstance(node, ast.Constant) else set()


def test_only_the_kinds_themselves_compare_a_kind() -> None:
    """What differs between images and features is asked of the kind of a manifest's rows, nowhere spelled out."""
    wrong = []
    for name, file in FILES.items():
        if name.startswith("data/kinds/"):
            continue
        for node in file.nodes:
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            sides += [node.value] if isinstance(node, ast.MatchValue) else []
            if any(KINDS & literals(side) for side in sides):
                wrong.append(f"{name}:{node.lineno} {ast.unparse(node)}")  # type: ignore[attr-defined]
    assert wrong == [], "\n".join(wrong)


def test_no_stage_asks_for_the_class_of_a_method_or_an_objective() -> None:
    """Each says what it needs and does."""
    wrong = []
    for name, file in FILES.items():
        if not name.startswith("stages/"):
            continue
        names = file.names()
        for node in file.nodes:
            asked = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                asked = node.args[1] if node.func.id in ("isinstance", "issubclass") else None
            elif isinstance(node, ast.MatchClass):
                asked = node.cls
            classes = [n.id for n in ast.walk(asked) if isinstance(n, ast.Name)] if asked is not None else []
            homes = [names.get(c, "") for c in classes]
            if any(home.startswith(("influence_cli.methods", "influence_cli.objectives")) for home in homes):
                wrong.append(f"{name}:{node.lineno} {ast.unparse(node)}")  # type: ignore[attr-defined]
    assert wrong == [], "\n".join(wrong)


FOLDERS = (
    "attacks|row_values|top_rows|decisions|directions|outputs|tangents|gradients|traces|factors|interims|trainings"
)
LAYOUT = re.compile(rf"^({FOLDERS}|timings\.json|spec\.json)$|\.damaged-|\.tmp$")


def test_only_the_store_knows_what_its_files_are_called() -> None:
    """Joining a path with a layout name, or with a literal .safetensors name, outside of who owns that layout."""
    owners = {"*.safetensors", "model.safetensors"}
    wrong = []
    for name, file in FILES.items():
        if file.room == "store":
            continue
        for node in file.nodes:
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                texts = [text for side in (node.left, node.right) for text in literals(side) if isinstance(text, str)]
                wrong += [f"{name}:{node.lineno} {text}" for text in texts if LAYOUT.search(text)]
        if file.room not in ("model", "stages/retrain"):
            wrong += [f"{name}:{line} {text}" for text, line in file.texts() if text in owners]
    assert wrong == [], "\n".join(wrong)


def test_only_a_run_folder_knows_what_its_record_is_called() -> None:
    """The store knows it too: it takes no folder of a run for its own."""
    named = {name for name, file in FILES.items() for text, _ in file.texts() if text == "run.json"}
    assert named == {"model/run_folder", "store/place"}


def test_nothing_prints_but_the_terminal() -> None:
    printing = {
        name
        for name, file in FILES.items()
        for node in file.nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"cli/console", "cli/main"}


# ---- sizes and words ------------------------------------------------------------------------------------------------


def test_files_are_short() -> None:
    lines = {name: file.lines for name, file in FILES.items()}
    assert {name: n for name, n in lines.items() if n > 350} == {}
    assert statistics.median(lines.values()) <= 120


def test_functions_are_short() -> None:
    functions = [found for file in FILES.values() for found in file.functions]
    assert {name: n for name, n in functions if n > 60} == {}
    assert statistics.quantiles([n for _, n in functions], n=10)[8] <= 45


def test_no_file_is_named_after_nothing() -> None:
    empty = {"utils", "util", "common", "helpers", "helper", "base", "misc", "core"}
    assert [name for name in FILES if name.split("/")[-1].strip("_") in empty] == []


def test_every_module_and_every_public_function_says_what_it_is() -> None:
    silent = [name for name, file in FILES.items() if not ast.get_docstring(file.tree)]
    for name, file in FILES.items():
        for node in file.tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                silent.append(f"{name}:{node.name}")
    assert silent == [], "\n".join(silent)


def test_every_function_says_what_it_returns() -> None:
    silent = [
        f"{name}:{node.name}"
        for name, file in FILES.items()
        for node in file.nodes
        if isinstance(node, ast.FunctionDef) and node.returns is None
    ]
    assert silent == [], "\n".join(silent)


# ---- the rest of the checkout ---------------------------------------------------------------------------------------


def test_tests_stand_where_what_they_test_stands() -> None:
    """``tests/data/test_x.py`` is about ``influence_cli/data``, ``tests/test_api.py`` about ``influence_cli/api``."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        place = path.relative_to(ROOT / "tests")
        if place.parts[0] in BESIDE or place.name in WHOLE:
            continue
        if len(place.parts) > 1:
            mirrored = (PACKAGE / place.parent).is_dir()
        else:  # what the tests share, or the tests of a file that is in no folder
            mirrored = not place.name.startswith("test_") or (PACKAGE / place.name.removeprefix("test_")).is_file()
        if not mirrored:
            wrong.append(str(place))
    assert wrong == [], "\n".join(wrong)


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
    assert found == [], "\n".join(found)


def test_the_top_of_the_repository_holds_what_belongs_there() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.decode().split("\0") if name}
    known = {"influence_cli", "tests", "sample_data", "pyproject.toml", "README.md", "CHANGELOG.md"}
    assert sorted(name for name in top - known if not name.startswith(".")) == []
