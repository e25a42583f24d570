"""``python -m tests.reproduction``: run experiments, then write a table and a figure of each."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and NumPy come: tensors are small

from tests.reproduction.page import write_page
from tests.reproduction.parts import MODULES, ROOT, Part, experiment, run_all, tell
from tests.reproduction.sizes import FULL, QUICK


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 1 where a part failed; pages are written of experiments whose parts have all ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.reproduction", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="R1", help="experiments (default: all of them)")
    parser.add_argument("--quick", action="store_true", help="R1, R3 and R9 on less data")
    parser.add_argument("--again", action="store_true", help="run parts that have ended before, too")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes (default: 2)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "reproduction", help="what parts keep")
    parser.add_argument("--results", type=Path, help="where pages go (default: results/; of --quick in WORK)")
    asked = parser.parse_args(arguments)
    sizes = QUICK if asked.quick else FULL
    unknown = [n for n in asked.names if n not in sizes]
    if unknown:
        parser.error(f"{unknown[0]} is unknown; one of {', '.join(sizes)}")
    work = asked.work.resolve()
    results = asked.results or (work / "quick" if asked.quick else Path(__file__).parent / "results")
    results.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Part]] = {}
    for name in [n for n in MODULES if n in (asked.names or sizes)]:
        needs = experiment(name).missing() if hasattr(experiment(name), "missing") else None
        if needs is None:
            parts[name] = experiment(name).parts(sizes[name])
        else:
            tell(f"{name} is skipped: {needs}")
    failed = run_all([p for of_one in parts.values() for p in of_one], work, asked.jobs, asked.again)
    for name, of_one in parts.items():
        found = {p.name: p.read(work) for p in of_one}
        if all(result is not None for result in found.values()):
            tell(f"{name}: {write_page(name, found, sizes[name], results, asked.quick)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
