"""Whether scores on an accelerator are those of the processor, and how fast they are beside the machine's own limits.

    python tests/benchmarks/cuda.py [--only right fast] [--minutes 8] [--out cuda.md]

Each check is some lines of one Markdown table, written as they are found: what it is, pass or fail or a figure, and how
it was got.  Checks come in the order of their worth, and none needs another.  One that fails or takes longer than
``--seconds`` says why, and the others go on; where the device is lost with it, they go on in a new process.  What does
not fit into the minutes is named as not run.  `--tiny` makes all small, so that it can be rehearsed on a processor:

    python tests/benchmarks/cuda.py --device cpu --tiny

The exit status is 1 where a check failed, and 2 where nothing can be run.  Peers are timed where they are installed.
``on_cuda/README.md`` says how to read the table.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ != "__main__":  # of a script beside this one: torch looks for a package of this name, and does without
    raise ImportError("tests/benchmarks/cuda.py is a script")

# this file's own folder is no place to import from: torch imports a package that is called cuda as well
HERE = Path(__file__).parent
sys.path[0] = str(HERE / "on_cuda")
sys.path.insert(1, str(HERE.parents[1]))  # the package, where it is not installed

if TYPE_CHECKING:
    import torch
    from cuda_setup import Asked, Line

NEEDED = ("torch", "timm", "numpy", "scipy", "pandas", "pyarrow", "PIL", "safetensors", "typer", "rich")
LOST = (
    "cuda error",
    "device-side assert",
    "illegal memory access",
    "cublas_status",
    "cudnn_status",
    "unspecified launch",
)


class TookTooLong(Exception):
    """A check took longer than it may."""


class Report:
    """Lines as they come, in a file too."""

    def __init__(self, path: Path, anew: bool) -> None:
        self.path = path
        if anew:
            path.write_text("")

    def say(self, text: str) -> None:
        """One more line."""
        print(text, flush=True)
        with self.path.open("a") as file:
            file.write(text + "\n")

    def failed(self) -> int:
        """How many lines say so."""
        return sum("| FAILED" in line for line in self.path.read_text().splitlines())


def parsed() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=["right", "fast"], help="right, fast, or parts of checks' names")
    parser.add_argument("--minutes", type=float, default=8.0, help="no check begins after so many, and the last ends")
    parser.add_argument("--seconds", type=int, default=120, help="the most for one check")
    parser.add_argument("--tiny", action="store_true", help="few rows, small models: a rehearsal")
    parser.add_argument("--out", type=Path, help="the table; default: a temporary file")
    parser.add_argument("--after", help=argparse.SUPPRESS)  # of a new process: the check that lost the device
    parser.add_argument("--ends", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def refuse(device: str) -> str | None:
    """Why nothing can be run, if so."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"this Python lacks {', '.join(missing)}: {sys.executable} -m pip install {' '.join(missing)}"
    import torch

    try:
        torch.ones(8, device=device).sum().item()
    except Exception as error:
        return f"no device {device} ({str(error).splitlines()[0]}); to rehearse: --device cpu --tiny"
    return None


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Stop what is run after so many seconds, as soon as Python is reached.

    Raises:
        TookTooLong: it was stopped.
    """

    def stop(*_: object) -> None:
        raise TookTooLong(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one(name: str, check: Callable[[], Iterator[Line]], report: Report, seconds: float) -> bool:
    """Run a check; whether the device can still be used."""
    started, lost = time.monotonic(), False
    try:
        with at_most(seconds):
            for line in check():
                report.say(line.row(name))
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split()).replace("|", "/")[:300]
        report.say(f"| {name} | FAILED: {type(error).__name__} | {text} |")
        lost = any(words in text.lower() for words in LOST) and "out of memory" not in text.lower()
    report.say(f"| {name}: seconds | {time.monotonic() - started:.1f} | |")
    return not lost


def make_room(device: torch.device) -> None:
    """Give back what a check held."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def checks_of(asked: Asked, only: list[str]) -> list[tuple[str, Callable[[], Iterator[Line]]]]:
    """The checks wanted, those of most worth first."""
    from cuda_fast import fast_checks
    from cuda_peers import peer_checks
    from cuda_right import right_checks

    every = sorted([*right_checks(asked), *fast_checks(asked), *peer_checks(asked)], key=lambda check: check[0])
    return [
        (name, run)
        for _, name, run in every
        if any(name.startswith(part) if part in ("right", "fast") else part in name for part in only)
    ]


def main() -> int:
    """Run what is asked for."""
    given = parsed()
    why = refuse(given.device)
    if why is not None:
        print(why, file=sys.stderr)
        return 2
    import torch
    from cuda_setup import Asked, card

    path = given.out or Path(tempfile.gettempdir()) / f"influence-cuda-{os.getpid()}.md"
    report, ends = Report(path, given.after is None), given.ends or time.time() + 60 * given.minutes
    asked = Asked(torch.device(given.device), given.tiny)
    if given.after is None:
        command = " ".join(a for a in sys.argv)
        report.say(f"# Scores on {card(asked.device)}\n\ntorch {torch.__version__}; command: `python {command}`\n")
        report.say("| check | came to | how |\n| --- | --- | --- |")
    waiting = checks_of(asked, given.only)
    if given.after is not None:
        waiting = waiting[[name for name, _ in waiting].index(given.after) + 1 :]
    for name, check in waiting:
        left = ends - time.time()
        if left < 5:
            report.say(f"| {name} | not run | the {given.minutes:g} minutes were over |")
            continue
        usable = one(name, check, report, min(left, given.seconds))
        if not usable:
            kept = [a for k, a in enumerate(sys.argv) if a not in ("--after", "--ends", "--out")
                    and sys.argv[k - 1] not in ("--after", "--ends", "--out")]  # fmt: skip
            anew = ["--after", name, "--ends", str(ends), "--out", str(path)]
            os.execv(sys.executable, [sys.executable, *kept, *anew])
        make_room(asked.device)
    failed = report.failed()
    report.say(f"\n{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
