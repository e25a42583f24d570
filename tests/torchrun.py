"""Commands by several processes that the true ``torchrun`` starts: once for several commands, which takes seconds.

None of the processes may read or write a pickle.  Every command after the first finds a group as after a restart, which
is one of its own; the last one also ends its processes as a command does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cases import run_process

PROGRAM = """
import os, pickle, sys, _pickle

def no(*_, **__):
    sys.stderr.write("A PICKLE IS READ OR WRITTEN\\n")
    raise SystemExit(70)

class No:
    def __init__(self, *_, **__):
        no()

for module in (pickle, _pickle):
    module.loads = module.load = module.dumps = module.dump = no
    module.Unpickler = module.Pickler = No
pickle._Unpickler = pickle._Pickler = No
import json
from influence_cli.cli.main import main

commands = list(json.load(open("commands.json")).items())
for k, (name, arguments) in enumerate(commands):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(k)
    for stream, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = ["influence", *arguments]
    if k == len(commands) - 1:
        main()
    try:
        main(arguments)
    except SystemExit as ended:
        if ended.code:
            raise
    sys.stdout.flush()
"""


@dataclass(frozen=True)
class Said:
    """What all processes of a command wrote."""

    out: str
    err: str


def torchrun(
    size: int, commands: Mapping[str, Sequence[Any]], cwd: Path, env: dict[str, str] | None = None
) -> dict[str, Said]:
    """Run the commands one after the other in ``cwd`` by so many processes: what each said; all must exit 0."""
    (cwd / "program.py").write_text(PROGRAM)
    (cwd / "commands.json").write_text(json.dumps({name: list(map(str, given)) for name, given in commands.items()}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    ran = run_process([*launcher, "program.py"], cwd, env)
    written = {kind: {name: cwd / f"{name}.{kind}" for name in commands} for kind in ("out", "err")}
    said = {
        name: Said(*(paths[name].read_text() if paths[name].exists() else "" for paths in written.values()))
        for name in commands
    }
    assert "PICKLE" not in "".join(one.err for one in said.values())
    assert ran.code == 0, (said, ran.err)
    return said
