"""The lines of the guide that start several processes are read by torchrun, and what these run by us.

python -m pytest tests/processes/test_guide.py
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from tests.cases import call_cli
from tests.generate_docs import ROOT

GUIDE = (ROOT / "influence_cli" / "guide" / "processes.md").read_text()
BLOCKS = re.findall(r"```(?:text|yaml)\n(.*?)```", GUIDE, re.S)


def launched() -> list[list[str]]:
    """The words after torchrun in every block, Slurm's variables filled in, and those of the job of Kubernetes."""
    found = list[list[str]]()
    for block in BLOCKS:
        if block.startswith("apiVersion"):
            job = yaml.safe_load(block)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
            found += [container["command"][1:] for container in job["containers"]]
            continue
        text = re.sub(r"\$\([^)]*\)", "node1", block.replace("\\\n", " ")).replace("$SLURM_JOB_ID", "7")
        found += [shlex.split(line.split("torchrun ", 1)[1]) for line in text.splitlines() if "torchrun " in line]
    return found


def test_there_are_lines_for_one_machine_for_slurm_and_for_kubernetes() -> None:
    assert len(launched()) == 4
    assert "#SBATCH" in GUIDE


@pytest.mark.parametrize("words", launched(), ids=lambda words: " ".join(words)[:40])
def test_a_line_of_the_guide_is_one_that_torchrun_and_we_read(words: list[str], digits: Path, tmp_path: Path) -> None:
    read = get_args_parser().parse_args(words)
    assert read.training_script == ("influence_cli" if read.module else "influence")
    assert read.module != read.no_python
    shutil.copyfile(digits, tmp_path / "train.parquet")
    asked = [word.replace("/shared", str(tmp_path)) for word in read.training_script_args]
    ran = call_cli(*asked, "--show-settings", cwd=tmp_path)
    assert ran.code == 0, ran.err
