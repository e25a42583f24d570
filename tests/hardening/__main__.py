"""Every fault that is tried, and whether it was survived.

    python -m tests.hardening                      # all of it: hours on a small machine
    python -m tests.hardening damage bad-input     # some parts
    python -m tests.hardening --share 0.1 -o FILE  # a tenth of every part, and the table as Markdown

The parts are crash, places, concurrency, damage, bad-input, security and numerics; each prints its faults as they are
found, and the table at its end.  The exit code is 1 where one was not survived.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.hardening import bad_input, concurrency, crash, damage, numerics, places, security
from tests.hardening.harness import Tally

FAULTS, KILLS, DISKS, SIGNALS, DAMAGES, ROUNDS, SECONDS, MUTATIONS = 300, 40, 26, 20, 500, 6, 20.0, 400


def _places(tally: Tally, share: float) -> None:
    places.signals(tally, round(SIGNALS * share))
    if not places.may_mount():
        sys.stderr.write("places: file systems cannot be mounted here (it takes root), so full disks are left out\n")
        return
    places.full_disks(tally, round(DISKS * share))
    places.full_temporary(tally)
    places.read_only(tally)


def _concurrency(tally: Tally, share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        concurrency.threads(tally, SECONDS * share, Path(folder) / "store")
    concurrency.processes(tally, max(round(ROUNDS * share), 1))


def _bad_input(tally: Tally, share: float) -> None:
    bad_input.bad_inputs(tally, tuple(bad_input.CORPUS), round(1 / share), round(MUTATIONS * share))


def _security(tally: Tally, share: float) -> None:
    security.secrets_and_modes(tally)
    security.pages(tally)
    security.links(tally)


def _numerics(tally: Tally, share: float) -> None:
    numerics.edges(tally, numerics.METHODS[:: round(1 / share)])
    numerics.weights(tally)
    numerics.members(tally)
    numerics.many_classes(tally)
    numerics.one_bad_row(tally)
    numerics.same_however(tally)


PARTS: dict[str, Callable[[Tally, float], None]] = {
    "crash": lambda tally, share: crash.crashes(tally, round(FAULTS * share), round(KILLS * share)),
    "places": _places,
    "concurrency": _concurrency,
    "damage": lambda tally, share: damage.damages(tally, round(DAMAGES * share)),
    "bad-input": _bad_input,
    "security": _security,
    "numerics": _numerics,
}


def table(rows: list[tuple[str, str, int, int]]) -> str:
    """The table of faults tried and survived, as Markdown; its last line is the sum."""
    lines = ["| part | fault | tried | survived |", "|---|---|---|---|"]
    lines += [f"| {part} | {kind} | {tried:,} | {survived:,} |" for part, kind, tried, survived in rows]
    lines.append(f"| **all** | | **{sum(r[2] for r in rows):,}** | **{sum(r[3] for r in rows):,}** |")
    return "\n".join(lines) + "\n"


def run_parts() -> int:
    """Run what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.hardening", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--share", type=float, default=1.0, help="of every part, a tenth: 0.1")
    parser.add_argument("-o", "--output", type=Path, help="write the table here; parts of an earlier run stay in it")
    asked = parser.parse_args()
    unknown = set(asked.parts) - set(PARTS)
    if unknown or not 0 < asked.share <= 1:
        parser.error(f"no part {', '.join(unknown)}" if unknown else "--share is from 0 to 1")
    kept = asked.output.with_suffix(".json") if asked.output else None
    known = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    failed = 0
    for name in asked.parts or PARTS:
        tally, begun = Tally(name), time.monotonic()
        PARTS[name](tally, asked.share)
        known[name] = tally.rows()
        failed += len(tally.failures)
        sys.stdout.write(f"{name}: {dict(tally.ended)} in {time.monotonic() - begun:.0f} s\n{table(tally.rows())}\n")
        sys.stdout.flush()
        if asked.output is not None and kept is not None:
            kept.write_text(json.dumps(known))
            asked.output.write_text(table([tuple(row) for part in PARTS for row in known.get(part, ())]))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run_parts())
