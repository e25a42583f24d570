"""What a run did: accuracies, the noise of every direction, and the rows that were left out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_table

if TYPE_CHECKING:
    from influence_cli.data.row_checks import BadRow
    from influence_cli.stages.run.run import Run
    from influence_cli.stages.run.session import Session

SHOWN_ROWS = 20  # left out of a manifest, unless with -v


def show_run(run: Run, session: Session, origin: dict[str, Any], done: str) -> None:
    """What was done, how good the model is, and the noise of every direction."""
    from influence_cli.stages.grads.first_look import target_accuracy
    from influence_cli.stages.run.accuracy import train_accuracy, warn_at_chance, warn_of_memory
    from influence_cli.stages.run.number_quality import quality_said, train_quality

    out = terminal()
    known: dict[str, tuple[float, int]] = {}
    train = train_accuracy(run, session)
    if train is not None:
        known["train"] = (train, len(run.train))
    for entry in origin["noise"].values():
        if entry["accuracy"] is not None:
            known["target"] = (entry["accuracy"], entry["target_rows"])
    if quality := train_quality(run, session):
        out.note(f"train {quality_said(quality)}")
    if known:
        out.note(", ".join(f"{name} accuracy {a:.1%}" for name, (a, _) in known.items()))
    warn_at_chance(run, session, known)
    if "target" not in known and (measured := target_accuracy(run, session)) is not None:
        known["target"] = measured
    warn_of_memory(run, session, known)
    out.note(done)
    auto = origin.get("auto", {})
    for line in auto.get("why", ()):
        out.note(line)
    if auto.get("method") == "auto" and not auto["trusted"]:
        tries = ["--method ip --params last --set ip.normalise=cosine"] if "memory" in session.said else []
        tries = tries or ["--method loss", "--method ip"]
        tries = [words for words in tries if words.removeprefix("--method ") not in run.methods]
        tries = [*(["--features MODEL"] if not run.manifest.payload_kind.as_it_is else []), *tries]
        score = f"score with {' or '.join(tries)}, and " if tries else ""
        out.warn(f"do not edit by auto here: {score}let `influence evaluate` say which to trust")
    show_noise(origin)


def show_skipped(left_out: dict[str, list[BadRow]]) -> None:
    """Every row that was left out, as a table: id, column and reason; the first 20 of a manifest unless with -v."""
    out = terminal()
    for source, bad in left_out.items() if not out.quiet else ():
        shown = bad if out.verbose else bad[:SHOWN_ROWS]
        rows = [[f"row {b.row}" if b.id is None else b.id, b.column, b.reason] for b in shown]
        title = f"{len(bad):,} rows of {source} cannot be used and were left out"
        print_table(title, ["id", "column", "reason"], rows, sys.stderr, left=3)
        if len(shown) < len(bad):
            out.note(f"and {len(bad) - len(shown):,} more: all with -v")


def show_noise(origin: dict[str, Any]) -> None:
    """Phi and the noise of every direction, with a warning where it is mostly noise."""
    from influence_cli.stages.grads.group_parts import parity_warnings, parts_lines
    from influence_cli.stages.score.noise import describe_noise, noise_warnings

    out = terminal()
    noise = origin.get("noise", {})
    for name, entry in noise.items():
        about = f"Phi {entry['phi']:.4g} on {entry['target_rows']:,} target rows"
        out.note(f"objective {name}: {about}; {describe_noise(entry)}")
        for line in parts_lines(name, entry["parts"]) if "parts" in entry else ():
            out.note(line)
    for line in [*parity_warnings(noise), *noise_warnings(noise)]:
        out.warn(line)
