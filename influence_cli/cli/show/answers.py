"""The first and the last line of what a command says: the answer, and the next command to run."""

from __future__ import annotations

import shlex
from typing import Any

from influence_cli.cli.console import terminal

Figures = dict[str, Any]


def show_answer(text: str | None) -> None:
    """The answer, in one line, and then the facts that waited for it."""
    out = terminal()
    if text and not out.quiet:
        out.say(f"answer: {text}")
    out.release()


def show_next(*words: Any) -> None:
    """The next command to try, of its words; those in capitals without quotes are for the reader to fill in."""
    terminal().note("next: " + " ".join(["influence", *(shlex.quote(str(word)) for word in words)]))


def next_of_retrain(metrics: Figures, asked: Figures) -> list[Any]:
    """After a training: score with it; after a comparison: act on it, or get more seeds to tell."""
    from influence_cli.report.answers import edited_arms, helped

    run, manifest = asked["output"], asked["manifest"]
    if not metrics["comparison"]:
        first = next(iter(next(iter(metrics["arms"].values()))["seeds"].values()))
        target = [] if "target_accuracy" in first else ["--method", "loss"]  # which needs no target rows
        return ["score", manifest, *asked["label"], "--checkpoint", run, *target, "-o", "scores.parquet"]
    best = edited_arms(metrics)[0]
    about = metrics["arms"][best]["edits"]
    over = metrics["comparison"][best]["no edit"]["accuracy"]
    if helped(metrics, best) and "method" in about and asked["scores"] is not None:
        budget = ["--budget", about["budget"]] if about["budget"] else []
        by = [] if about["method"] in ("score", None) else ["--by", about["method"]]
        return ["curate", asked["scores"], *by, "--action", about["action"], *budget, "-o", "clean.parquet"]
    if helped(metrics, best) and best in asked["manifests"]:
        at = ["--checkpoint", run] if best == "curated" else ["--checkpoint", "RUN"]
        return ["score", asked["manifests"][best], *asked["label"], *at, "-o", "scores.parquet"]
    if over["verdict"] == "worse" or metrics.get("intervals_over", "seeds") != "seeds":
        table = asked["scores"] or "SCORES"
        return ["evaluate", table, "--removal", "1%,5%,10%"]
    seeds = len(metrics["arms"][best]["seeds"])
    more = max(5, 2 * seeds)
    return [*asked["command"], "--seeds", more]


def next_of_evaluate(found: Figures, sources: tuple[str, ...], budget: str) -> list[Any] | None:
    """Act on what is best; where nothing is known, what would tell."""
    from influence_cli.report.answers import RANDOM, best_column, best_foretelling

    first = sources[0]
    if "recompute" in found:
        if not found["recompute"]:
            return ["curate", first, "--budget", budget, "-o", "clean.parquet"]
        return ["score", first, "--checkpoint", found["b"], "-o", "scores.parquet"]
    if "refit" in found:
        best = best_foretelling(found)
        if best in (None, RANDOM):
            return ["evaluate", first, "--lds", 2 * found.get("lds", {}).get("subsets_asked", 50)]
        return _act_on(first, str(best), budget)
    if "detection" not in found:
        return ["evaluate", first, "--lds", 100]
    for entry in [found, *found.get("canaries", [])]:
        best = best_column(entry) if entry.get("detection") else None
        if best is not None:
            table, name = found.get("sources", {}).get(best, (first, best))
            return _act_on(table, name, budget)
    return ["evaluate", first, "--lds", 100]


def _act_on(table: str, column: str, budget: str) -> list[Any]:
    """Edits by a column; loss and margin are first scored by, where they only stand beside the scores."""
    from influence_cli.data.tables import read_table

    names = read_table(table).column_names
    known = [name for name in (f"score_{column}", column) if name in names and name.startswith("score")]
    if not known and column in ("loss", "margin"):
        return ["score", table, "--method", column, "-o", "scores.parquet"]
    return ["curate", table, "--by", *(known[:1] or [column]), "--budget", budget, "-o", "clean.parquet"]
