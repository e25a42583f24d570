"""Parts of experiments: each is run once, and what it found is kept as JSON while its settings are the same."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODULES = {
    "R1": "r01_blobs",
    "R2": "r02_moons",
    "R3": "r03_objectives",
    "R4": "r04_noisy_labels",
    "R5": "r05_ensembles",
    "R6": "r06_architectures",
    "R7": "r07_fair_texts",
    "R8": "r08_attacks",
    "R9": "r09_subsets",
    "R10": "r10_time",
    "R11": "r11_draws",
}


def experiment(name: str) -> Any:
    """The module of an experiment: ``TITLE``, ``PAPER``, ``parts(sizes)`` and ``page(found, sizes)``."""
    return importlib.import_module(f"tests.reproduction.{MODULES[name]}")


@dataclass(frozen=True)
class Part:
    """A function of ``Commands`` and settings, by what it is called in its experiment."""

    experiment: str
    name: str
    measure: Callable[..., dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    alone: bool = False  # measures time: nothing else runs beside it

    @property
    def title(self) -> str:
        """'R4, noise 9%, seed 0'."""
        return f"{self.experiment}, {self.name}"

    @property
    def key(self) -> str:
        """Known by its name, its settings, its function and what makes the data, whatever the layout of the code."""
        texts = (inspect.getsource(self.measure), Path(__file__).with_name("datasets.py").read_text())
        code = [ast.dump(ast.parse(textwrap.dedent(text))) for text in texts]
        asked = [self.experiment, self.name, self.settings, code]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def folder(self, work: Path) -> Path:
        """Where its commands run."""
        return work / self.experiment / self.key

    def read(self, work: Path) -> dict[str, Any] | None:
        """What it found earlier; None where it has not ended."""
        path = self.folder(work).with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, work: Path) -> dict[str, Any]:
        """What it finds, kept as a whole file or not at all, with the commit and the date."""
        from tests.reproduction.commands import run_part

        began, cpu = time.monotonic(), time.process_time()
        result = run_part(self.measure, self.folder(work), self.settings)
        result |= {
            "part": self.name,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "commit": commit(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        path = self.folder(work).with_suffix(".json")
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(result, indent=1))
        unfinished.replace(path)
        return result


def run_all(parts: Sequence[Part], work: Path, jobs: int, again: bool = False) -> list[str]:
    """Run what has not ended yet, in ``jobs`` processes; the titles of parts that failed, whose errors are shown."""
    left = [p for p in parts if again or p.read(work) is None]
    tell(f"{len(parts) - len(left)} of {len(parts)} parts were finished earlier")
    failed: list[str] = []
    apart, alone = [p for p in left if not p.alone], [p for p in left if p.alone]
    for part, error in [*_in_processes(apart, work, jobs), *_one_by_one(alone, work)]:
        if error is not None:
            tell(f"{part.title} FAILED\n{error}")
            failed.append(part.title)
    return failed


def _one_by_one(parts: Sequence[Part], work: Path) -> Iterator[tuple[Part, str | None]]:
    for part in parts:
        yield part, run_and_tell(part, work)


def _in_processes(parts: Sequence[Part], work: Path, jobs: int) -> Iterator[tuple[Part, str | None]]:
    if jobs == 1 or len(parts) < 2:
        yield from _one_by_one(parts, work)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_and_tell, part, work): part for part in parts}
        for done in as_completed(running):
            yield running[done], done.result()


def run_and_tell(part: Part, work: Path) -> str | None:
    """Run a part and say so; the text of the error where it failed."""
    try:
        result = part.run(work)
    except Exception:
        return traceback.format_exc()
    tell(f"{part.title}: {result['seconds']:.1f} s")
    return None


def tell(text: str) -> None:
    """Say something on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def commit() -> str:
    """The commit of the checkout, with '+' where the package differs from it; 'unknown' outside of a checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "influence_cli") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True, text=True).stdout.strip()
