"""What README and CHANGELOG say is what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from influence_cli.cli.commands import COMMANDS
from influence_cli.cli.options import SETTINGS
from influence_cli.methods import METHODS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("command", [name for name, _, _ in COMMANDS])
def test_every_command_is_in_readme(command: str) -> None:
    assert f"`influence {command}" in README


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_is_in_readme(method: str) -> None:
    assert f"`{method}`" in README


@pytest.mark.parametrize("code", ["0", "1", "2", "3", "130 / 141"])
def test_every_exit_code_is_in_readme(code: str) -> None:
    assert f"| {code} |" in README


def test_every_flag_in_readme_exists() -> None:
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", README, re.DOTALL)
    known = {flag for s in SETTINGS.values() for flag in s.flags} | {"--help", "--version", "--index-url"}
    used = {flag for block in blocks for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", block)}
    assert used <= known


def test_every_module_of_the_pipeline_is_in_the_tree_of_readme() -> None:
    tree = README[README.index("```text\ninfluence_cli/") :]
    tree = tree[: tree.index("```", 10)]
    package = ROOT / "influence_cli"
    for folder in (package, package / "stages", package / "data"):
        for path in folder.iterdir():
            if path.name not in ("__init__.py", "__main__.py", "__pycache__"):
                assert (path.name + "/" if path.is_dir() else path.name) in tree, path.name


def test_changelog_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_has_the_commands_that_ci_and_people_run() -> None:
    assert "<!-- test command -->\n```bash\nbash tests/run.sh\n```" in README
    assert "```bash\nbash sample_data/demo.sh\n```" in README
