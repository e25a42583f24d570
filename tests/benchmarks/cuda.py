"""Whether scores on an accelerator are those of the processor, and how fast they are beside the machine's own limits.

    python tests/benchmarks/cuda.py [--device cuda] [--only right fast] [--minutes 9] [--out results.md]

Each check is a line of one Markdown table, written as it is found: what it is, pass or fail or a figure, and how it
was got.  `--tiny` makes everything small, so that the whole script can be rehearsed on a processor:

    python tests/benchmarks/cuda.py --device cpu --tiny

What does not fit into the minutes is named as not run.  The exit status is 1 where a check of what is right fails.
Peers are timed by `engines.py --device cuda --only kronfluence captum`, in an environment of their own.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

if __name__ != "__main__":  # of a script beside this one: torch looks for a package of this name, and does without
    raise ImportError("tests/benchmarks/cuda.py is a script")

# this file's own folder is no place to import from: torch imports a package that is called cuda as well
sys.path[0] = str(Path(__file__).parent / "on_cuda")

import torch  # noqa: E402
from cuda_fast import fast_checks  # noqa: E402
from cuda_right import right_checks  # noqa: E402
from cuda_setup import Asked, Line, card  # noqa: E402

Check = tuple[str, Callable[[], Iterator[Line]]]


@dataclass
class Report:
    """Lines as they come, in a file too."""

    path: Path | None
    failed: list[str] = field(default_factory=list)
    text: str = ""

    def say(self, text: str) -> None:
        """One more line."""
        print(text, flush=True)
        self.text += text + "\n"
        if self.path is not None:
            self.path.write_text(self.text)


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="*", default=["right", "fast"], help="right, fast, or parts of checks' names")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    asked = Asked(torch.device(given.device), given.tiny)
    report, ends = Report(given.out), time.monotonic() + 60 * given.minutes
    report.say(f"# Scores on {card(asked.device)}\n")
    report.say(f"torch {torch.__version__}; command: `python {' '.join(sys.argv)}`\n")
    report.say("| check | came to | how |\n| --- | --- | --- |")
    sections: dict[str, list[Check]] = {"right": right_checks(asked), "fast": fast_checks(asked)}
    for section, checks in sections.items():
        for name, check in checks:
            wanted = section in given.only or any(part in name for part in given.only)
            if not wanted:
                continue
            if time.monotonic() > ends:
                report.say(f"| {name} | not run | the {given.minutes:g} minutes were over |")
                continue
            started = time.monotonic()
            try:
                for line in check():
                    report.say(line.row(name))
                    if line.passed is False:
                        report.failed.append(name)
            except Exception as error:
                traceback.print_exc()
                report.say(f"| {name} | FAILED | {type(error).__name__}: {' '.join(str(error).split())[:300]} |")
                report.failed.append(name)
            print(f"  ({time.monotonic() - started:.1f} s)", file=sys.stderr, flush=True)
    report.say(f"\n{len(report.failed)} failed" + (f": {', '.join(report.failed)}" if report.failed else ""))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
