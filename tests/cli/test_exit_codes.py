"""Nothing but a tripped gate exits 1, nothing but a finished run exits 0, whatever streams and users' code do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from safetensors import SafetensorError
from torch import nn

import influence_cli
from influence_cli.cli import streams
from influence_cli.cli.main import main
from influence_cli.errors import ManifestError, ModelError, StoreError
from tests.baselines import first_of_baseline
from tests.cases import call_cli, environment, run_cli, run_python

# ---- code of the user's that ends the program --------------------------------------------------------------------

CODE = """
import os, sys, torch, typer
from influence_cli import Task

class Stop(BaseException):
    pass

def leave():
    {leave}

class Leaving(torch.nn.Linear):
    def forward(self, x):
        leave()

class Hooked(torch.nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_forward_hook(lambda *_: leave())

def factory():
    leave()

def made():
    return Task(leave)

def transform():
    return Task(torch.nn.Linear(5, 3), lambda x: leave())

def forward():
    return Leaving(5, 3)

def hook():
    return Hooked(5, 3)

def loss():
    return Task(torch.nn.Linear(5, 3), lambda x: torch.tensor(x), lambda z, y: leave())

def generator():
    def rows():
        yield 1
        leave()
    return Task(torch.nn.Linear(5, 3), lambda x: list(rows()))
"""
LEAVES = {
    "sys.exit()": "sys.exit()",
    "sys.exit(1)": "sys.exit(1)",
    "quit": "raise SystemExit('over')",
    "typer": "raise typer.Exit(0)",
    "typer 1": "raise typer.Exit(1)",
    "abort": "raise typer.Abort()",
    "a class of its own": "raise Stop('over')",
    "GeneratorExit": "raise GeneratorExit",
    "end of file": "raise EOFError",
    "recursion": "leave()",
}
PLACES = ("factory", "made", "transform", "forward", "hook", "loss", "generator")


def leaving(folder: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the module, for a process that has not imported it."""
    (folder / "code_that_leaves.py").write_text(CODE.replace("{leave}", how))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "code_that_leaves", raising=False)


def scoring(place: str, tabular: Path) -> list[Any]:
    """A scoring run with the user's code."""
    more = ["--method", "ip", "--store", "store", "-o", "o.parquet"]
    return ["score", tabular, "--model", f"python:code_that_leaves:{place}", *more]


@pytest.mark.parametrize("how", LEAVES)
@pytest.mark.parametrize("place", PLACES)
def test_code_of_the_users_cannot_say_that_a_run_is_done(
    how: str, place: str, tmp_path: Path, tabular: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving(tmp_path, LEAVES[how], monkeypatch)
    ran = call_cli(*scoring(place, tabular), cwd=tmp_path)
    assert ran.code in (2, 3), ran.err
    assert "error: " in ran.err
    assert not (tmp_path / "o.parquet").exists()
    if how == "sys.exit()":
        assert "code_that_leaves" in ran.err or "the task's" in ran.err, "whose code it is"
        assert "SystemExit" in ran.err


def test_a_module_that_leaves_when_it_is_imported_is_yours_to_fix(
    tmp_path: Path, tabular: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving(tmp_path, "pass", monkeypatch)
    (tmp_path / "code_that_leaves.py").write_text("import sys; sys.exit(0)")
    ran = call_cli(*scoring("factory", tabular), cwd=tmp_path)
    assert ran.code == 2
    assert "SystemExit" in ran.err
    trained = call_cli("retrain", tabular, "--model", "python:sys:exit", "-o", "run", cwd=tmp_path)
    assert trained.code == 2
    assert not (tmp_path / "run" / "run.json").exists()


def test_os_exit_is_an_error_too(
    tmp_path: Path, tabular: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leaving(tmp_path, "os._exit(0)", monkeypatch)
    monkeypatch.chdir(tmp_path)
    leave = os._exit
    for place in ("factory", "transform", "forward"):
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in scoring(place, tabular)])
        assert ended.value.code in (2, 3)
        assert "SystemExit: 0" in (said := capsys.readouterr().err)
        assert place == "transform" or "code_that_leaves" in said
        assert os._exit is leave
    assert not Path("o.parquet").exists()


def test_what_code_of_the_users_does_at_exit_chooses_no_code(tmp_path: Path, tabular: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import atexit, os, posix, torch\n"
        "def make(code):\n    atexit.register(code)\n    raise ValueError('no model')\n"
        "def zero(): return make(lambda: os._exit(0))\n"
        "def one():\n    atexit.register(lambda: posix._exit(1))\n    return torch.nn.Linear(5, 3)\n"
    )
    asked = f"score {tabular} --method loss --store store -o o.parquet --model python:late"
    assert shell(f"{sys.executable} -m influence_cli {asked}:zero 2>/dev/null", tmp_path) == 2
    assert shell(f"{sys.executable} -m influence_cli {asked}:one 2>/dev/null", tmp_path) == 0
    assert (tmp_path / "o.parquet").exists()


def test_a_broken_pipe_of_the_users_own_is_no_closed_standard_output(
    tmp_path: Path, tabular: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving(tmp_path, "raise BrokenPipeError(32, 'mine')", monkeypatch)
    monkeypatch.setattr("influence_cli.cli.streams.is_unread", lambda: False)
    ran = call_cli(*scoring("forward", tabular), cwd=tmp_path)
    assert ran.code in (2, 3)
    assert "mine" in ran.err


def test_ctrl_c_in_code_of_the_users_is_ctrl_c(tmp_path: Path, tabular: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaving(tmp_path, "raise KeyboardInterrupt", monkeypatch)
    for place in ("factory", "transform", "forward"):
        assert call_cli(*scoring(place, tabular), cwd=tmp_path).code == 130


class Rows(torch.utils.data.Dataset[Any]):
    """A Dataset whose third row leaves."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, k: int) -> tuple[Any, int]:
        if k == 2:
            sys.exit(0)
        return torch.zeros(2), k % 2


def test_a_dataset_and_a_task_that_leave_are_errors_in_python_too() -> None:
    with pytest.raises(ManifestError, match=r"row 2 cannot be read \(SystemExit: 0"):
        influence_cli.score(Rows(), method="ip", task=influence_cli.Task(nn.Linear(2, 2)), store=None)
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: sys.exit(0))
    leaving = influence_cli.Task(nn.Linear(2, 2), loss=lambda *_: sys.exit(0))
    for task in (influence_cli.Task(layer), leaving):
        with pytest.raises(ModelError, match="SystemExit: 0"):
            influence_cli.score([(torch.zeros(2), 0)] * 3, task=task, store=None, method="loss")
    with pytest.raises(ModelError, match="SystemExit"):
        influence_cli.score([(torch.zeros(2), 0)] * 3, method="ip", task=influence_cli.Task(sys.exit), store=None)

    class Late(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Late.calls += 1
            return sys.exit(0) if Late.calls > 5 else super().forward(x)

    class Endless(Rows):
        def __len__(self) -> int:
            sys.exit(0)

    rows, others = ([(torch.full((2,), k / 10), k % 2) for k in some] for some in (range(40), range(40, 44)))
    for source, task in ((rows, influence_cli.Task(Late(2, 2))), (Endless(), influence_cli.Task(nn.Linear(2, 2)))):
        with pytest.raises(ModelError, match="the program was ended from inside"):
            influence_cli.score(source, method="ip", target=others, task=task, store=None, batch_size=4)


# ---- what the machine does ---------------------------------------------------------------------------------------


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


FULL = OSError(28, "No space left on device")
ERRORS: dict[str, tuple[Callable[[], BaseException], int, str]] = {
    "full, in Rust": (lambda: SafetensorError("I/O error: No space left on device (os error 28)"), 3, "disk is full"),
    "full, in C": (lambda: RuntimeError("write: No space left on device"), 3, "disk is full"),
    "full, of Arrow": (lambda: pa.ArrowException("Detail: [errno 28] No space left on device"), 3, "disk is full"),
    "full, wrapped": (lambda: caused(StoreError("cannot create x"), FULL), 3, "disk is full"),
    "over quota": (lambda: OSError(122, "Disk quota exceeded"), 3, "disk is full"),
    "a file of that name": (lambda: ManifestError("no such file", where="No space left on device"), 2, "no such file"),
    "no permission": (lambda: PermissionError("no"), 2, "no permission"),
    "not open for writing": (lambda: OSError(9, "Bad file descriptor"), 2, "standard output cannot be written"),
    "a circle of links": (lambda: OSError(40, "Too many levels", "shard"), 2, "in: shard"),
    "a folder for a file": (
        lambda: IsADirectoryError(21, "Is a directory", "shard"),
        2,
        "a folder stands where a file",
    ),
    "a read-only disk": (lambda: OSError(30, "Read-only file system", "out"), 2, "read-only file system"),
    "a bad disk": (lambda: OSError(5, "Input/output error"), 3, "cannot be read or written"),
    "of no file": (lambda: NotADirectoryError("whose?"), 3, "this is a defect"),
    "recursion": (RecursionError, 3, "RecursionError"),
    "memory": (MemoryError, 3, "out of memory"),
    "a warning": (lambda: DeprecationWarning("old"), 3, "DeprecationWarning"),
    "an exit": (lambda: SystemExit(0), 3, "ended from inside"),
    "an exit of Typer": (lambda: typer.Exit(0), 3, "Exit"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_every_error_has_its_code(what: str, tmp_path: Path, tabular: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, code, says = ERRORS[what]

    def broken(*_: Any) -> None:
        raise make()

    monkeypatch.setattr("influence_cli.stages.score.score.score", broken)
    ran = call_cli("score", tabular, "--method", "random", cwd=tmp_path)
    assert (ran.code, ran.out) == (code, b"")
    assert says in ran.err
    assert "in: None" not in ran.err
    debug = call_cli("score", tabular, "--method", "random", "--debug", cwd=tmp_path)
    assert debug.code == code
    assert "Traceback" in debug.err


def test_an_error_that_cannot_be_described_is_no_tripped_gate(
    tmp_path: Path, tabular: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            sys.exit(0)

    def broken(*_: Any) -> None:
        raise Mute

    monkeypatch.setattr("influence_cli.stages.score.score.score", broken)
    with pytest.raises(SystemExit) as ended:
        main(["score", str(tabular), "--method", "random"])
    assert ended.value.code == 3


# ---- streams -----------------------------------------------------------------------------------------------------


def shell(line: str, cwd: Path) -> int:
    """The exit code of a line of bash in which ``influence`` is the command line."""
    text = f'influence() {{ "{sys.executable}" -m influence_cli "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", text], cwd=cwd, env=environment(), timeout=120, check=False).returncode


STREAMS = [
    ("influence score {m} --method random -o o.parquet 2>/dev/full", 0),
    ("influence score {m} --method random -o o.parquet <&- >&- 2>&-", 0),
    ("influence score {m} --method random --json 2>&- >/dev/full", 3),
    ("influence score {m} --method random --json >&-", 2),
    ("influence score gone.parquet 2>/dev/full", 2),
    ("influence score --no-such-flag 2>/dev/full", 2),
    ("influence --help >/dev/full", 3),
    ("influence --help | true; exit ${{PIPESTATUS[0]}}", 141),
]


@pytest.mark.parametrize(("line", "code"), STREAMS, ids=[line for line, _ in STREAMS])
def test_streams_that_fail_decide_no_exit_code(line: str, code: int, tmp_path: Path, tabular: Path) -> None:
    assert shell(line.format(m=tabular), tmp_path) == code
    if "-o o.parquet" in line:
        assert pq.read_table(tmp_path / "o.parquet").num_rows == 40


@pytest.mark.parametrize("stream", ["2>/dev/full", "2>&-"])
def test_the_gates_own_codes_stand_where_nothing_can_be_said(stream: str, tmp_path: Path, tabular: Path) -> None:
    assert call_cli("score", tabular, "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
    assert call_cli("curate", "s.parquet", "--write-baseline", "all.jsonl", cwd=tmp_path).code == 0
    (tmp_path / "some.jsonl").write_bytes(first_of_baseline(tmp_path / "all.jsonl", 20))
    for name, code in (("all", 0), ("some", 1)):
        line = f"influence curate s.parquet --check --false-flag 50% --baseline {name}.jsonl > out.jsonl {stream}"
        assert shell(line, tmp_path) == code


def test_a_standard_error_that_breaks_loses_the_message_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    for stream in (Broken(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        streams.write_line("a note")


def test_both_ways_to_start_give_the_same_code(tmp_path: Path) -> None:
    assert run_cli("score", "--method", "ip", "gone.parquet", cwd=tmp_path).code == 2
    with pytest.raises(SystemExit) as ended:
        main(["score", "gone.parquet"])
    assert ended.value.code == 2


def test_a_signal_while_temporary_files_go_does_not_stop_that_and_a_second_one_does(tmp_path: Path) -> None:
    ends = """
import atexit, os, signal, sys
from influence_cli.cli.main import main
def hit(times):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)
atexit.register(lambda: print("all gone", flush=True))
atexit.register(hit, int(sys.argv.pop()))
main()
"""
    for times, code, gone in ((1, 0, True), (2, -signal.SIGTERM, False)):
        ran = run_python(ends, "methods", times, cwd=tmp_path)
        assert ran.code == code, ran.err
        assert (b"all gone" in ran.out) == gone


def test_a_signal_keeps_its_code_where_a_library_makes_an_interrupt_of_its_own_of_it(tmp_path: Path) -> None:
    converts = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored, and stays so, where tests run under nohup
from influence_cli.cli import main as module
def run(arguments):
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        signal.sigtimedwait([], 5)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None
module.run = run
module.main()
"""
    assert run_python(converts, "methods", cwd=tmp_path).code == 128 + signal.SIGHUP
