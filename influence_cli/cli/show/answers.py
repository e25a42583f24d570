"""The first and the last line of what a command says: the answer, and the next command to run."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from influence_cli.cli.console import terminal
from influence_cli.errors import shell_line

Figures = dict[str, Any]
PLACES = ("scores.parquet", "clean.parquet", "RUN", "COMPARED")  # where the next command writes, as we name it


def show_answer(text: str | None) -> None:
    """The answer, in one line, and then the facts that waited for it."""
    out = terminal()
    if text and not out.quiet:
        out.say(f"answer: {text}")
    out.release()


def say_seconds(words: list[Any], asked: Figures) -> None:
    """Before a next command that trains: about how long that takes, where the training of the model was timed."""
    if "--lds" in words and (seconds := asked.get("seconds")) is not None:
        count = int(words[words.index("--lds") + 1])
        took = count * seconds
        about = f"{took:,.0f}" if took >= 10 else f"{took:.2g}"
        terminal().note(f"{count} subsets take about {about} s to train on, by what the model's own took")


def show_next(*words: Any, fill_in: tuple[str, ...] = ()) -> None:
    """The next command, of its words, which runs as it stands; else the words to ``fill_in`` are named before it."""
    if words[-2] == "-o" and words[-1] in PLACES:
        words = (*words[:-1], _free(words[-1]))
    begin = f"then, with {' and '.join(fill_in)} filled in" if fill_in else "next"
    terminal().note(f"{begin}: " + shell_line(["influence", *words]))


def _free(name: str) -> str:
    """A place of our choice under a name that is not taken, since what is there may be of another kind."""
    path = Path(name)
    numbered = (path.with_stem(f"{path.stem}-{k}") for k in itertools.count(2))
    return str(path if not path.exists() else next(other for other in numbered if not other.exists()))


def next_of_retrain(metrics: Figures, asked: Figures) -> list[Any]:
    """After a training: score with it; after a comparison: act on it, or get more seeds to tell."""
    from influence_cli.data.measures import chief_of
    from influence_cli.report.answers import edited_arms, helped
    from influence_cli.report.arm_tables import measured_of

    run = asked["output"]
    first = next(iter(next(iter(metrics["arms"].values()))["seeds"].values()))
    # auto judges classes without target rows; of other labels it takes a method that needs them, and loss needs none
    judged = "target_loss" in first or any(name.endswith("accuracy") for name in first)
    target = [] if judged else ["--method", "loss"]
    overlap = ["--overlap", metrics["overlap_for_score"]] if "overlap_for_score" in metrics else []
    score = ["--checkpoint", run, *asked["read"], *overlap, *target, "-o", "scores.parquet"]
    if not metrics["comparison"]:
        return ["score", asked["manifest"], *score]
    best = edited_arms(metrics)[0]
    about = metrics["arms"][best]["edits"]
    over = metrics["comparison"][best]["no edit"][chief_of(measured_of(metrics))]
    if helped(metrics, best) and "method" in about and asked["scores"] is not None:
        budget = ["--budget", about["budget"]] if about["budget"] else []
        by = [] if about["method"] in ("score", None) else ["--by", about["method"]]
        act = [*by, "--action", about["action"], *budget, *asked["edits"], "-o", "clean.parquet"]
        return ["curate", asked["scores"], *act]
    if helped(metrics, best) and best in asked["manifests"]:
        if best == "curated":
            return ["score", asked["manifests"][best], *score]
        return ["retrain", asked["manifests"][best], *asked["training"], "-o", f"{run}-{best}"]  # RUN has another's
    if over["verdict"] == "worse" or metrics.get("intervals_over", "seeds") != "seeds":
        # nothing says by which scores the edits were made, or they foretell no target loss
        if asked["scores"] is None or about.get("objective", "utility") != "utility":
            return ["score", asked["against"] or asked["manifest"], *score]
        return ["evaluate", asked["scores"], "--removal", "1%,5%,10%"]
    seeds = len(metrics["arms"][best]["seeds"])
    more = max(5, 2 * seeds)
    return [*asked["command"], "--seeds", more]


def next_of_evaluate(found: Figures, sources: tuple[str, ...], asked: Figures) -> list[Any] | None:
    """Act on what is best; where nothing is known, what would tell; None where no command can be made of it.

    ``asked`` is what the next command repeats: the ``budget``, how rows are ``read``, what is ``trained`` and whether
    the table says how (``trains``).
    """
    from influence_cli.report.answers import RANDOM, best_column, best_foretelling

    first = sources[0]
    if first == "-":
        return None  # it is read by now
    if "recompute" in found:
        if not found["recompute"]:
            return ["curate", first, *asked["read"], "--budget", asked["budget"], "-o", "clean.parquet"]
        return ["score", first, *asked["read"], "--checkpoint", found["b"], "-o", "scores.parquet"]
    trained = ["evaluate", first, *asked["read"], *asked["trained"]]
    if "refit" in found:
        best = best_foretelling(found)
        if best in (None, RANDOM):
            return [*trained, "--lds", 2 * found.get("lds", {}).get("subsets_asked", 50)]
        return _act_on(first, str(best), asked)
    for entry in [found, *found.get("canaries", [])]:
        best = best_column(entry) if entry.get("detection") else None
        if best is not None and "detection" in found:
            table, name = found.get("sources", {}).get(best, (first, best))
            return _act_on(table, name, asked)
    return [*trained, "--lds", 100] if asked["trains"] else None


def _act_on(table: str, column: str, asked: Figures) -> list[Any]:
    """Edits by a column; loss and margin are first scored by, where they only stand beside the scores."""
    from influence_cli.data.tables import read_table

    names = read_table(table).column_names
    known = [name for name in (f"score_{column}", column) if name in names and name.startswith("score")]
    if not known and column in ("loss", "margin"):
        return ["score", table, *asked["read"], "--method", column, "-o", "scores.parquet"]
    by = [*(known[:1] or [column]), *asked["read"]]
    return ["curate", table, "--by", *by, "--budget", asked["budget"], "-o", "clean.parquet"]
