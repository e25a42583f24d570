"""Help in groups, formats that a command has, what a shell offers, and what is said of the licence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from influence_cli.actions import ACTIONS
from influence_cli.cli.app import COMMANDS
from influence_cli.cli.commands.guide import TOPICS
from influence_cli.cli.settings.completion import VALUES
from influence_cli.cli.settings.help_groups import COMMON, MOST_USED, OTHER, PURPOSES, grouped_options
from influence_cli.cli.settings.requests import FORMATS, GATE_FORMATS, all_options, options_of
from influence_cli.exports import FORMS
from influence_cli.methods import METHODS
from influence_cli.model.train.recipe import AUGMENTATIONS, OPTIMIZERS, SCHEDULES
from influence_cli.objectives import OBJECTIVES
from influence_cli.stages.evaluate.request import CONVENTIONS
from influence_cli.stages.retrain.request import NOISES
from influence_cli.stages.score.combine import RULES
from tests.cases import call_cli, run_python

EVERY_FORMAT = ("auto", "table", "json", "jsonl", "csv", "github")


# ---- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [name for name, _, _ in COMMANDS])
def test_every_option_stands_under_one_heading_and_the_common_ones_come_first(command: str, tmp_path: Path) -> None:
    groups = grouped_options(command)
    names = [o.name for _, options in groups for o in options]
    assert sorted(names) == sorted(o.name for o in options_of(command))
    assert [o.name for o in groups[0][1]] == list(COMMON.get(command, [o.name for o in groups[0][1]]))
    lines = call_cli(command, "--help", cwd=tmp_path, env={"GITHUB_ACTIONS": "true"}).text.splitlines()
    there = [line[:-1] for line in lines if line.endswith(":") and not line.startswith(" ")]
    told = [heading for heading, options in groups if not all(o.hidden for o in options)]
    assert [h for h in there if h != "Arguments" and not h.startswith("Columns of")] == told
    assert "\x1b" not in "".join(lines)
    for heading, options in groups:
        start = lines.index(f"{heading}:") + 1
        end = next((k for k in range(start, len(lines)) if not lines[k].strip()), len(lines))
        section = "\n".join(lines[start:end])
        assert all(o.hidden or o.flags[-1] in section for o in options), heading


def test_every_option_has_a_purpose_and_no_name_is_stale() -> None:
    """A new option stands under "Other options" until it has a place in ``cli/settings/help_groups.py``."""
    known = set(all_options())
    assert {n for names in (*COMMON.values(), *PURPOSES.values()) for n in names} <= known
    assert [n for n in known if not any(n in names for names in PURPOSES.values())] == []
    placed = [n for names in PURPOSES.values() for n in names]
    assert len(placed) == len(set(placed))
    assert [heading for command in COMMON for heading, _ in grouped_options(command)].count(OTHER) == 0
    assert grouped_options("retrain")[0][0] == MOST_USED


# ---- formats --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", list(FORMATS))
def test_help_names_the_formats_that_a_command_takes_and_no_other(command: str, tmp_path: Path) -> None:
    (option,) = [o for o in options_of(command) if o.name == "format"]
    gate = ["--check"] if command == "curate" else []
    for name in EVERY_FORMAT:
        ran = call_cli(command, "nothing.csv", "--format", name, *gate, "-q", cwd=tmp_path)
        taken = "--format" not in ran.err
        assert taken is (name in FORMATS[command] or (name in GATE_FORMATS and bool(gate))), name
        assert (name in re.findall(r"\w+", option.help)) is taken, option.help
        assert (name in option.choices) is taken


def test_a_format_of_the_gate_names_the_gate(tmp_path: Path) -> None:
    ran = call_cli("curate", "s.parquet", "--format", "github", cwd=tmp_path)
    assert (ran.code, "add --check" in ran.err) == (2, True)


# ---- completion -----------------------------------------------------------------------------------------------------


COMPLETE = """
import json, os, sys
from influence_cli.cli.main import run
offered = {}
for line in json.loads(sys.argv[1]):
    words = line.split(" ")
    os.environ.update(_INFLUENCE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    sys.stdout.flush()
    sys.stdout.write(f"\\x1e{line}\\n")
    run([])
slow = sorted({"torch", "pandas", "pyarrow", "timm"} & set(sys.modules))
sys.stderr.write(json.dumps(slow))
"""


def test_a_shell_is_offered_the_names_there_are_and_waits_for_nothing_slow(tmp_path: Path) -> None:
    expected = {
        "influence score --method ": list(METHODS),
        "influence score --method ip": [m for m in METHODS if m.startswith("ip")],
        "influence grads --method=lis": ["lissa"],
        "influence score --objective ": list(OBJECTIVES),
        "influence curate --action ": list(ACTIONS),
        "influence retrain --action trim,re": ["trim,relabel", "trim,reweight"],
        "influence score --model l": ["linear"],
        "influence retrain --model mlp": ["mlp:128", "mlp:128,128"],
        "influence score --format ": list(FORMATS["score"]),
        "influence evaluate --format ": list(FORMATS["evaluate"]),
        "influence curate --format g": ["github", "gitlab"],
        "influence score --overlap ": ["refuse", "keep", "drop"],
        "influence score --precision fp": ["fp32", "fp64"],
        "influence score --set ek": ["ekfac."],
        "influence methods e": [m for m in METHODS if m.startswith("e")],
        "influence guide ta": ["tables"],
        "influence cache ": ["ls", "verify", "gc", "key"],
        "influence score --epochs ": [],
        "influence score m": [],
        "influence sc": ["score"],
        "influence score --overl": ["--overlap"],
        "influence score --allow": ["--allow-outside"],
    }
    ran = run_python(COMPLETE, json.dumps(list(expected)), cwd=tmp_path)
    assert json.loads(ran.err.splitlines()[-1]) == []
    found = {}
    for part in ran.text.split("\x1e")[1:]:
        line, _, values = part.partition("\n")
        found[line] = values.split()
    assert found == expected


def test_what_is_offered_is_what_there_is() -> None:
    for name, known in {
        "method": METHODS,
        "export_as": FORMS,
        "combine": RULES, "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "augment": AUGMENTATIONS,
        "canary_noise": NOISES, "convention": CONVENTIONS,
    }.items():  # fmt: skip
        assert sorted(VALUES[name]()) == sorted(known), name
    assert set(VALUES) <= set(all_options())
    assert "tables" in TOPICS


# ---- the licence ----------------------------------------------------------------------------------------------------


def test_version_says_that_there_is_no_licence_as_long_as_there_is_none(tmp_path: Path) -> None:
    first, second = call_cli("--version", cwd=tmp_path).text.splitlines()
    assert first.startswith("influence ")
    assert second == "licence: none is given yet, so all rights are reserved"
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "license" not in project, "name it in --version and in the guide"
