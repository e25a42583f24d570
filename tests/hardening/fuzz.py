"""A run on the readers that is guided by what code an input reaches (atheris), or by seeds alone where it is not there.

    python -m tests.hardening.fuzz --seconds 600              # every reader in turn; atheris in the environment
    python -m tests.hardening.fuzz csv "torch file" --seconds 60 --found FOLDER

An input that a reader neither takes nor refuses in our words within 10 seconds of the processor is written to FOLDER
(default: beside this file, in ``corpus``, which ``test_readers`` tries on every change).  The exit code is 1 then.

Atheris watches the bytecode of our package as it is imported, so that each reader has a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
CPU_SECONDS = 10  # of one input


class TooSlow(BaseException):
    """An input took longer than any may."""


class Tried:
    """Inputs that one reader was given, and those that were defects, each kept once by where it was raised."""

    def __init__(self, name: str, found: Path) -> None:
        self.name, self.found = name, found
        self.inputs = self.taken = 0
        self.defects: Counter[str] = Counter()

    def __call__(self, data: bytes) -> None:
        from tests.hardening.readers import read

        self.inputs += 1
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            self.taken += read(self.name, data) is not None
        except (Exception, TooSlow) as error:
            self._keep(data, error)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _keep(self, data: bytes, error: BaseException) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"
        self.defects[where] += 1
        if self.defects[where] > 1:
            return
        self.found.mkdir(parents=True, exist_ok=True)
        digest = hashlib.blake2b(data, digest_size=4).hexdigest()
        (self.found / f"{self.name.replace(' ', '_')}--{digest}.bin").write_bytes(data)
        sys.stderr.write(f"DEFECT {self.name}: {where}: {error}\n")


def _stop(*_: Any) -> NoReturn:
    raise TooSlow("over 10 seconds of the processor")


def _guided(tried: Tried, seconds: float) -> None:
    """Until the time is over, inputs that atheris makes from good files and from what reached new code."""
    import atheris

    with atheris.instrument_imports(include=["influence_cli"]):
        from tests.hardening.readers import seeds
    with tempfile.TemporaryDirectory() as corpus:
        for k, data in enumerate(seeds()[tried.name]):
            Path(corpus, f"seed{k}").write_bytes(data)
        end = time.monotonic() + seconds

        def one(data: bytes) -> None:
            if time.monotonic() > end:  # libFuzzer ends by os._exit, after which nothing is told
                _tell(tried)
                os._exit(int(bool(tried.defects)))
            tried(data)

        tried.found.mkdir(parents=True, exist_ok=True)
        own = f"-artifact_prefix={tried.found}{os.sep}"  # of what ends libFuzzer itself: else where one happens to be
        limits = ("-max_len=20000", "-verbosity=0", "-rss_limit_mb=0", "-timeout=100000")
        atheris.Setup([sys.argv[0], corpus, own, *limits], one)
        atheris.Fuzz()


def _seeded(tried: Tried, seconds: float) -> None:
    """The same by seeded mutations, blind to what code they reach."""
    import numpy as np

    from tests.hardening.readers import mutated, seeds

    rng, end, good = np.random.default_rng(0), time.monotonic() + seconds, seeds()[tried.name]
    while time.monotonic() < end:
        tried(mutated(good[tried.inputs % len(good)], iter(rng.integers(0, 2**31, 30).tolist())))
    _tell(tried)


def _tell(tried: Tried) -> None:
    sys.stdout.write(f"| {tried.name} | {tried.inputs:,} | {tried.taken:,} | {sum(tried.defects.values()):,} |\n")
    sys.stdout.flush()


def _one_reader(name: str, seconds: float, found: Path) -> int:
    signal.signal(signal.SIGPROF, _stop)
    tried = Tried(name, found)
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write("atheris is not installed: inputs are seeded mutations\n")
        _seeded(tried, seconds)
    else:
        _guided(tried, seconds)
    return int(bool(tried.defects))


def fuzz() -> int:
    """Try what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.hardening.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all of them together")
    parser.add_argument("--found", type=Path, default=HERE / "corpus")
    parser.add_argument("--here", action="store_true", help="in this process, of one reader")
    asked = parser.parse_args()
    if asked.here:
        return _one_reader(asked.readers[0], asked.seconds, asked.found)
    from tests.hardening.readers import READERS

    names, failed = asked.readers or list(READERS), 0
    sys.stdout.write("| reader | inputs | taken | defects |\n|---|---|---|---|\n")
    sys.stdout.flush()
    for name in names:
        command = [
            sys.executable,
            "-m",
            "tests.hardening.fuzz",
            name,
            "--here",
            "--seconds",
            str(asked.seconds / len(names)),
        ]
        with contextlib.suppress(KeyboardInterrupt):
            ran = subprocess.run([*command, "--found", str(asked.found)], check=False)
            failed += ran.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(fuzz())
