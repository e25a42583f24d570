"""What README, the guide, the results and CHANGELOG say is what is there.

python -m pytest tests/test_docs.py
"""

from __future__ import annotations

import io
import re
import tomllib
from pathlib import Path

import pytest

from influence_cli.cli.app import COMMANDS
from influence_cli.cli.commands.guide import TOPICS, text_of
from influence_cli.cli.console import Terminal
from influence_cli.cli.printing import print_markdown
from influence_cli.cli.settings.requests import all_options, options_of
from influence_cli.methods import METHODS
from tests.cases import call_cli, run_python
from tests.generate_docs import ENGINES, FILES, GUIDE, PART, PARTS, generated

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = sorted((ROOT / "tests" / "benchmarks" / "results").glob("*.md"))
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text() for path in (*FILES, *RESULTS)}
BLOCKS = re.compile(r"```(?:bash|console)\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("command", [name for name, _, _ in COMMANDS])
def test_every_command_is_in_readme(command: str) -> None:
    assert f"`influence {command}" in README


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_is_in_readme(method: str) -> None:
    assert f"`{method}`" in README


@pytest.mark.parametrize("code", ["0", "1", "2", "3", "130 / 141"])
def test_every_exit_code_is_in_readme(code: str) -> None:
    assert f"| {code} |" in README


def test_every_flag_in_the_documents_exists() -> None:
    known = {flag for o in all_options().values() for flag in o.flags} | {"--help", "--version", "--index-url"}
    scripts = {"--threads"}  # of benchmarks
    blocks = [block for text in DOCUMENTS.values() for block in BLOCKS.findall(text)]
    used = {flag for block in blocks for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", block)}
    assert used <= known | scripts


def test_every_module_of_the_package_is_in_a_tree() -> None:
    tree = README[README.index("```text\ninfluence_cli/") :]
    tree = tree[: tree.index("```", 10)]
    package = ROOT / "influence_cli"
    hidden = ("__init__.py", "__main__.py", "__pycache__")
    for path in package.iterdir():
        if path.name not in hidden and path.is_dir():
            assert path.name + "/" in tree, path.name
    files = DOCUMENTS["influence_cli/guide/contributing.md"]
    for path in package.rglob("*.py"):
        if path.name in hidden:
            continue
        folder = files[files.index(f"\n{path.parent.relative_to(ROOT)}/\n") :].partition("\n\n")[0]
        assert f"\n  {path.name} " in folder or f"\n  {path.name}\n" in folder, path


# ---- what is written by the code ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*FILES, *ENGINES], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_generated_parts_are_what_the_code_says(path: Path) -> None:
    text = path.read_text()
    assert text.count("<!-- generated: ") == len(PART.findall(text)) == text.count("<!-- end of generated -->")
    assert text == generated(text), "run python -m tests.generate_docs"


def test_every_generated_part_stands_somewhere() -> None:
    written = [
        (name, argument) for path in (*FILES, *ENGINES) for _, name, argument, _ in PART.findall(path.read_text())
    ]
    assert {name for name, _ in written} == set(PARTS)
    assert {argument for name, argument in written if name == "command"} == {name for name, _, _ in COMMANDS}


@pytest.mark.parametrize("command", [name for name, _, _ in COMMANDS])
def test_the_guide_describes_options_as_help_does(command: str, tmp_path: Path) -> None:
    said = "".join(call_cli(command, "--help", cwd=tmp_path, env={"COLUMNS": "80"}).text.split())
    for o in options_of(command):
        assert "".join(o.shown_help.split()) in said, o.name


# ---- links and lengths --------------------------------------------------------------------------------------------


def test_readme_can_be_read_to_the_end() -> None:
    assert len(README.splitlines()) <= 260


@pytest.mark.parametrize("name", list(DOCUMENTS))
def test_links_lead_somewhere(name: str) -> None:
    text = DOCUMENTS[name]
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("https://"):
            path, _, section = target.partition("#")
            assert not path or ((ROOT / name).parent / path).exists(), target
            headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"(?m)^#+ (.*)$", text)}
            assert not section or path or section in headings, target
    for path in re.findall(r"`((?:influence_cli|tests|sample_data|\.ci)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for topic in re.findall(r"`influence guide ([a-z]\w*)`", text):
        assert topic in TOPICS


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_every_result_names_the_script_that_made_it_and_stands_in_readme(path: Path) -> None:
    text = path.read_text()
    (command,) = re.findall(r"(?m)^\| command \| .*?`(?:bash|python) (tests/benchmarks/[\w.]+)", text)
    assert (ROOT / command).stem == path.stem
    assert "| recorded | commit" in text or re.search(r"\| recorded \| .*commit", text)
    assert "| machine | " in text
    assert f"({path.relative_to(ROOT)})" in README


DECIMALS = re.compile(r"(?<![\w.])\d*\.\d+")


def unfounded(claim: str, source: str) -> list[str]:
    """The numbers with decimals of a claim that no number of its source is, to as many decimals."""
    known = {float(number) for number in DECIMALS.findall(source)}
    return [n for n in DECIMALS.findall(claim) if float(n) not in {round(v, len(n.partition(".")[2])) for v in known}]


def test_figures_of_readme_are_those_of_the_results_beside_them() -> None:
    section = README[README.index("## Results") :].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    for _, claim, links in rows:
        source = "\n".join((ROOT / path).read_text() for path in re.findall(r"\((tests/[\w/.]+\.md)\)", links))
        assert not unfounded(claim, source), claim
    found = README[README.index("what we found") :].partition("\n## ")[0]
    assert len(DECIMALS.findall(found)) >= 5
    assert not unfounded(found, (GUIDE / "found.md").read_text())


# ---- the guide ----------------------------------------------------------------------------------------------------


def test_every_topic_is_a_file_and_every_file_a_topic() -> None:
    assert sorted(TOPICS) == sorted(path.stem for path in GUIDE.glob("*.md"))
    for topic in TOPICS:
        title = (GUIDE / f"{topic}.md").read_text().partition("\n")[0]
        assert re.match(rf"# {topic.capitalize()}: \S", title)


def test_guide_prints_its_files_in_a_pipe_and_without_a_topic_names_them(tmp_path: Path) -> None:
    for topic in TOPICS:
        ran = call_cli("guide", topic, "--color", "always", cwd=tmp_path)
        assert (ran.code, ran.text, ran.err) == (0, (GUIDE / f"{topic}.md").read_text(), "")
    index = call_cli("guide", cwd=tmp_path).text
    assert re.findall(r"(?m)^- `(\w+)`: \S", index) == list(TOPICS)


def test_guide_imports_nothing_slow(tmp_path: Path) -> None:
    code = (
        "import sys; from influence_cli.cli.main import run; code = run(['guide', 'methods']);"
        "sys.exit(code or len({'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code, cwd=tmp_path).code == 0


@pytest.mark.parametrize(("asked", "meant"), [("metods", "methods"), ("../gate", "gate"), ("", "known: ")])
def test_a_topic_that_is_not_there_is_an_error_with_the_nearest(asked: str, meant: str, tmp_path: Path) -> None:
    ran = call_cli("guide", asked, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, b"")
    assert meant in ran.err.splitlines()[-1]


def test_guide_does_not_need_settings_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "influence.toml").write_text("this is not TOML")
    assert call_cli("guide", "start", cwd=tmp_path).code == 0


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("color", ["never", "always", "auto"])
def test_on_a_terminal_the_guide_is_laid_out(width: int, color: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        encoding = "ascii"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    print_markdown(text_of("methods"), Terminal(color=color), screen)
    shown = screen.getvalue()
    assert ("\x1b[" in shown) == (color == "always")
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= width
    assert plain.isascii()
    assert "generated" not in plain
    assert "# " not in plain.splitlines()[0]
    assert "|---" not in plain


# ---- what else is held --------------------------------------------------------------------------------------------


def test_changelog_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_has_the_commands_that_ci_and_people_run() -> None:
    assert "<!-- test command -->\n```bash\nbash tests/run.sh\n```" in README
    assert "```bash\nbash sample_data/demo.sh\n```" in README
