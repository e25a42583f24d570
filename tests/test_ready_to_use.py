"""What CI systems and other tools are given to use the gate, run as they would: an action, a job, hooks, a stage.

Steps run on the words of the files themselves; schemas and tools that are not installed are skipped with a reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from influence_cli.cli.settings.requests import options_of
from tests.baselines import first_of_baseline
from tests.cases import call_cli

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "influence-gate" / "action.yml"
JOB = ROOT / ".gitlab" / "influence-gate.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
FORMATS = next(o.choices for o in options_of("curate") if o.name == "format")
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")


# ---- a repository of data ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits: Path, digits_run: Path, filled_store: Path) -> Path:
    """A folder with a manifest, its model, a store that is warm, and a baseline that lacks the last 20 train rows."""
    here = tmp_path_factory.mktemp("made")
    shutil.copy(digits, here / "train.parquet")
    shutil.copytree(digits_run, here / "run")
    shutil.copytree(filled_store, here / ".influence")
    score = ("score", "train.parquet", "--checkpoint", "run", "--method", "loss", "-o", "all.parquet")
    assert call_cli(*score, cwd=here).code == 0
    assert call_cli("curate", "all.parquet", "--write-baseline", "all.jsonl", cwd=here).code == 0
    (here / "accepted.jsonl").write_bytes(first_of_baseline(here / "all.jsonl", -20))
    return here


@pytest.fixture
def repository(made: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may write to."""
    return Path(shutil.copytree(made, tmp_path / "repository"))


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory, influence: Path) -> Path:
    """A folder with the commands that the steps call: ``influence``, and a ``python`` whose pip installs nothing."""
    here = tmp_path_factory.mktemp("programs")
    python = (
        f'#!/bin/sh\nif [ "$2" = pip ]; then echo "$*" >> "{here}/installed"; exit; fi\nexec {sys.executable} "$@"\n'
    )
    (here / "python").write_text(python)
    (here / "python").chmod(0o755)
    (here / "influence").symlink_to(influence)
    return here


def shell(
    text: str, cwd: Path, env: dict[str, str], programs: Path, bash: str = "bash"
) -> subprocess.CompletedProcess[str]:
    """Run a step's text as GitHub's and GitLab's runners do."""
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [bash, "--noprofile", "--norc", "-eo", "pipefail", "-c", text]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **path, **env}, capture_output=True, text=True, check=False
    )


# ---- the action of GitHub ------------------------------------------------------------------------------------------


@dataclass
class Composite:
    """A runner of a composite action: its steps, until one fails, and what they put out."""

    inputs: dict[str, str]
    cwd: Path
    programs: Path
    hit: str = ""  # what the cache says
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    out: str = ""
    code: int = 0

    def value(self, text: str) -> str:
        """The text with its expressions filled in."""
        return EXPRESSION.sub(lambda m: self.look_up(m[1]), text)

    def look_up(self, path: str) -> str:
        kind, *names = path.split(".")
        if kind == "inputs":
            return self.inputs[names[0]]
        if kind == "runner":
            return "Linux"
        assert kind == "steps", path
        return self.outputs.get(names[0], {}).get(names[2], "")

    def wanted(self, condition: str) -> bool:
        """Whether a step runs: a failure stops all but those that say ``always()``."""
        if self.code and "always()" not in condition:
            return False
        parts = [part for part in condition.split(" && ") if part not in ("", "always()")]
        sides = [re.fullmatch(r"(\S+) != '(.*)'", part) for part in parts]
        return all(side is not None and self.look_up(side[1]) != side[2] for side in sides)

    def run(self, action: dict[str, Any]) -> Composite:
        defaults = {name: str(i["default"]) for name, i in action["inputs"].items() if "default" in i}
        self.inputs = {**defaults, **self.inputs}
        for step in action["runs"]["steps"]:
            if not self.wanted(step.get("if", "")):
                continue
            if "uses" in step:
                self.used.append((step["uses"], {k: self.value(v) for k, v in step["with"].items()}))
                if "id" in step:
                    self.outputs[step["id"]] = {"cache-hit": self.hit}
                continue
            put = self.programs / "output"
            put.write_text("")
            env = {name: self.value(text) for name, text in step.get("env", {}).items()}
            ran = shell(step["run"], self.cwd, {**env, "GITHUB_OUTPUT": str(put)}, self.programs)
            self.out += ran.stdout + ran.stderr
            self.code = self.code or ran.returncode
            if "id" in step:
                self.outputs[step["id"]] = dict(line.split("=", 1) for line in put.read_text().splitlines())
        return self


GIVEN = {
    "manifest": "train.parquet",
    "checkpoint": "run",
    "baseline": "accepted.jsonl",
    "false-flag": "20%",
}


def act(repository: Path, programs: Path, hit: str = "", **more: str) -> Composite:
    given = {**GIVEN, **{name.replace("_", "-"): value for name, value in more.items()}}
    return Composite(given, repository, programs, hit).run(yaml.safe_load(ACTION.read_text()))


def test_the_action_says_clean_and_keeps_what_was_computed(repository: Path, programs: Path) -> None:
    ran = act(repository, programs, max_flagged="100%")
    assert ran.code == 0, ran.out
    gate = ran.outputs["gate"]
    assert gate["verdict"] == "clean"
    assert ran.out.count("::warning ") == int(gate["flagged"])
    assert [use.split("@")[0] for use, _ in ran.used] == [
        "actions/setup-python",
        "actions/cache/restore",
        "actions/cache/save",
    ]
    restored, saved = ran.used[1][1], ran.used[2][1]
    assert restored["key"] == saved["key"] == f"influence-Linux-v1-{ran.outputs['key']['digest']}"
    assert saved["key"].startswith(restored["restore-keys"])
    assert restored["path"] == ".influence"
    assert (programs / "installed").read_text().split()[-1] == "influence-cli"


def test_the_action_trips_with_its_outputs_and_its_key_follows_rows_weights_and_method(
    repository: Path, programs: Path
) -> None:
    ran = act(repository, programs, hit="true", max_flagged="0")
    gate = ran.outputs["gate"]
    assert (ran.code, gate["verdict"]) == (1, "tripped"), ran.out
    assert int(gate["flagged"]) > 0
    assert "::error " in ran.out
    assert [use for use, _ in ran.used if "save" in use] == []  # the cache has it under this very key
    keys = {ran.outputs["key"]["digest"]}
    step = next(s for s in yaml.safe_load(ACTION.read_text())["runs"]["steps"] if s.get("id") == "key")
    (repository / "run" / "more").write_text("other weights")
    for manifest, method in (("train.parquet", "loss"), ("train.parquet", "margin"), ("all.parquet", "loss")):
        put = programs / "output"
        put.write_text("")
        env = {"MANIFEST": manifest, "CHECKPOINT": "run", "METHOD": method, "GITHUB_OUTPUT": str(put)}
        if manifest == "all.parquet":
            shutil.copy(repository / "train.parquet", repository / manifest)
            (repository / "run" / "more").unlink()
        assert shell(step["run"], repository, env, programs).returncode == 0
        keys.add(put.read_text().strip().partition("=")[2])
    assert len(keys) == 3  # the same rows in another file have the same key


def test_the_action_passes_a_mistake_on_and_says_no_verdict(repository: Path, programs: Path) -> None:
    ran = act(repository, programs, false_flag="nonsense")
    assert (ran.code, ran.outputs["gate"]) == (2, {})
    assert "error: " in ran.out


def test_the_action_takes_a_rate_of_false_discoveries_and_limits_by_slice(repository: Path, programs: Path) -> None:
    ran = act(repository, programs, fdr="50%", max_flagged="", max_flagged_per="split=100%\nid=100%\n")
    assert (ran.code, ran.outputs["gate"]["verdict"]) == (0, "clean"), ran.out
    ran = act(repository, programs, fdr="nonsense")
    assert (ran.code, "--fdr" in ran.out) == (2, True)
    ran = act(repository, programs, max_flagged="", max_flagged_per="split=0%")
    assert (ran.code, ran.outputs["gate"]["verdict"]) == (1, "tripped"), ran.out
    assert "split" in ran.out


def test_no_input_of_the_action_is_text_of_a_command(repository: Path, programs: Path) -> None:
    action = yaml.safe_load(ACTION.read_text())
    assert all("${{" not in step.get("run", "") for step in action["runs"]["steps"])
    hostile = '"; touch hacked; $(touch hacked) `touch hacked` #'
    ran = act(repository, programs, baseline=hostile, manifest=f"train.parquet{hostile}")
    assert ran.code == 2
    assert not (repository / "hacked").exists()


@pytest.mark.skipif("sarif" not in FORMATS, reason="the gate has no SARIF")
def test_the_action_uploads_sarif_of_a_tripped_gate_too(repository: Path, programs: Path) -> None:
    ran = act(repository, programs, max_flagged="0", sarif="found.sarif")
    assert ran.code == 1
    assert json.loads((repository / "found.sarif").read_text())["version"] == "2.1.0"
    assert ran.used[-1][0].startswith("github/codeql-action/upload-sarif@")
    assert ran.used[-1][1]["sarif_file"] == "found.sarif"


# ---- the job of GitLab ---------------------------------------------------------------------------------------------


def job(repository: Path, programs: Path, **more: str) -> subprocess.CompletedProcess[str]:
    (made,) = yaml.safe_load(JOB.read_text()).values()
    given = {"GATE_BASELINE": "accepted.jsonl", "GATE_FALSE_FLAG": "20%", **more}
    env = {**{k: str(v) for k, v in made["variables"].items()}, **given}
    return shell("\n".join(made["script"]), repository, env, programs)


@pytest.mark.skipif("gitlab" not in FORMATS or "junit" not in FORMATS, reason="the gate has no formats of GitLab")
@pytest.mark.parametrize(("allowed", "code"), [("0", 1), ("100%", 0)])
def test_the_job_leaves_its_reports_whatever_the_verdict(
    repository: Path, programs: Path, allowed: str, code: int
) -> None:
    (made,) = yaml.safe_load(JOB.read_text()).values()
    ran = job(repository, programs, GATE_MAX_FLAGGED=allowed)
    assert ran.returncode == code, ran.stderr
    reports = made["artifacts"]["reports"]
    assert json.loads((repository / reports["codequality"]).read_text())
    assert "<testsuite" in (repository / reports["junit"]).read_text()


def test_the_job_takes_a_rate_of_false_discoveries_and_limits_by_slice(repository: Path, programs: Path) -> None:
    ran = job(repository, programs, GATE_FDR="nonsense")
    assert (ran.returncode, "--fdr" in ran.stderr) == (2, True)
    ran = job(repository, programs, GATE_MAX_FLAGGED="", GATE_MAX_FLAGGED_PER="split=0%")
    assert ran.returncode == 1, ran.stderr
    assert "split" in ran.stdout + ran.stderr


def test_the_job_passes_a_mistake_on(repository: Path, programs: Path) -> None:
    ran = job(repository, programs, GATE_MANIFEST="absent.parquet")
    assert ran.returncode == 2
    assert "absent.parquet" in ran.stderr


# ---- files against the schemas of their consumers ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.github-actions", ACTION),
        ("vendor.github-workflows", ROOT / ".github" / "workflows" / "ci.yml"),
        ("vendor.github-workflows", ROOT / ".github" / "workflows" / "audit.yml"),
        ("vendor.gitlab-ci", JOB),
    ],
)
def test_files_are_as_their_schemas_say(schema: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    with pytest.raises(SystemExit) as ended:
        check.main(["--builtin-schema", schema, str(file)])
    assert ended.value.code == 0, capsys.readouterr()


def test_the_workflow_runs_what_has_to_pass() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (made,) = workflow["jobs"].values()
    assert made["steps"][-1]["run"] == "bash .ci/run"


# ---- hooks and stages ----------------------------------------------------------------------------------------------


def test_hooks_are_valid_and_name_commands_and_flags_that_there_are() -> None:
    clientlib = pytest.importorskip("pre_commit.clientlib", reason="pre-commit is not installed")
    hooks = clientlib.load_manifest(str(HOOKS))
    for hook in hooks:
        program, command, *flags = hook["entry"].split()
        assert program == "influence"
        assert set(flags) <= {flag for o in options_of(command) for flag in o.flags}
        assert (hook["language"], hook["pass_filenames"]) == ("python", False)


def consumer(text: str, name: str) -> str:
    """A block of YAML of the guide that begins with a comment of this name."""
    return next(b for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if b.startswith(f"# {name}\n"))


GUIDE = (ROOT / "influence_cli" / "guide" / "ci.md").read_text()


def test_hooks_run_as_the_guide_configures_them(repository: Path, programs: Path) -> None:
    """As pre-commit runs them: entry and arguments, one after the other."""
    entries = {hook["id"]: hook["entry"] for hook in yaml.safe_load(HOOKS.read_text())}
    (repo,) = yaml.safe_load(consumer(GUIDE, ".pre-commit-config.yaml"))["repos"]
    codes = []
    for hook in repo["hooks"]:
        words = " ".join(f"'{word}'" for word in hook["args"])
        words = words.replace("baseline.jsonl", "accepted.jsonl").replace("'1%'", "'20%'")
        words = words.replace("'3%'", "'0'")
        ran = shell(f"{entries[hook['id']]} {words}", repository, {}, programs)
        assert ran.returncode <= 1, ran.stderr
        codes.append(ran.returncode)
    assert codes == [0, 1]


@pytest.mark.skipif(not os.environ.get("TRY_PRE_COMMIT"), reason="TRY_PRE_COMMIT=1: pre-commit installs the package")
def test_pre_commit_installs_and_runs_the_hooks(repository: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in ([*git, "init", "-q"], [*git, "add", "train.parquet"]):
        subprocess.run(words, cwd=repository, check=True)
    (repo,) = yaml.safe_load(consumer(GUIDE, ".pre-commit-config.yaml"))["repos"]
    args = {hook["id"]: hook["args"] for hook in repo["hooks"]}
    swapped = {"baseline.jsonl": "accepted.jsonl", "1%": "20%", "3%": "0"}
    args["influence-gate"] = [swapped.get(word, word) for word in args["influence-gate"]]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    config = [{"repo": str(ROOT), "rev": head.stdout.strip(), "hooks": [{"id": i, "args": a} for i, a in args.items()]}]
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump({"repos": config}))
    command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--verbose"]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert re.search(r"influence score .*Passed", ran.stdout), ran.stdout + ran.stderr
    assert re.search(r"influence gate .*Failed", ran.stdout), ran.stdout + ran.stderr
    assert "gate tripped" in ran.stdout


def test_dvc_runs_the_stages_of_the_guide_and_nothing_twice(repository: Path, programs: Path) -> None:
    pytest.importorskip("dvc", reason="dvc is not installed")
    text = consumer(GUIDE, "dvc.yaml").replace("baseline.jsonl", "accepted.jsonl")
    text = text.replace("1%", "20%").replace("3%", "100%")
    (repository / "dvc.yaml").write_text(text)
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    said = []
    for words in (["init", "-q", "--no-scm"], ["repro"], ["repro"]):
        command = [sys.executable, "-m", "dvc", *words]
        ran = subprocess.run(
            command, cwd=repository, env={**os.environ, **path}, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        said.append(ran.stdout)
    assert "Running stage 'gate'" in said[1]
    assert "Running stage" not in said[2]
    assert "rows" in json.loads((repository / "verdict.json").read_text())
