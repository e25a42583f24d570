"""Results as tables, JSON and summaries.  Standard output gets the table or report asked for, and nothing else."""

from __future__ import annotations

import shutil
import sys
from typing import IO, TYPE_CHECKING, Any

from influence_cli.cli.config import Settings
from influence_cli.cli.console import Terminal, cell, print_json, print_table
from influence_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from influence_cli.data.row_checks import BadRow
    from influence_cli.model.training import Recipe
    from influence_cli.stages.curate import Curated
    from influence_cli.stages.gate import Verdict
    from influence_cli.stages.job import Job
    from influence_cli.stages.retrain import RetrainRequest

STRONGEST = 20  # rows of a table on a terminal


def terminal() -> Terminal:
    """Where this run shows things."""
    from influence_cli.cli.app import terminal as current

    return current()


def check_format(settings: Settings, known: tuple[str, ...]) -> None:
    """Refuse a format that the command has not, before any work.

    Raises:
        UsageError: an unknown format.
    """
    if settings["json"]:
        settings.put("format", "json", "flag")
    if settings["format"] not in known:
        raise UsageError(
            f"--format {settings['format']!r} is unknown here", fix=nearest(settings["format"], list(known))
        )


def table(settings: Settings, result: pa.Table, sort_by: str | None, descending: bool = False) -> None:
    """A stage's table: to --output, otherwise rows for people on a terminal and JSONL in a pipe."""
    from influence_cli.data.tables import as_csv, as_jsonl, rows_of, write_all, write_table

    if settings["output"]:
        write_table(result, settings["output"])
        return
    how = settings["format"]
    if how == "auto":
        how = "table" if sys.stdout.isatty() else "jsonl"
    if how == "table":
        if sort_by is not None:
            result = result.sort_by([(sort_by, "descending" if descending else "ascending")])
        hidden = {"row_key", "payload_key", *_same_as_score(result)}
        shown = result.slice(0, STRONGEST).select([n for n in result.column_names if n not in hidden])
        title = f"{min(STRONGEST, result.num_rows)} of {result.num_rows:,} rows" + (
            f", by {sort_by}" if sort_by else ""
        )
        cells = [[cell(v) for v in row.values()] for row in rows_of(shown)]
        names, rows, left_out = fitting(shown.column_names, cells, sys.stdout)
        print_table(title, names, rows, terminal(), sys.stdout)
        if left_out:
            terminal().note(f"no room for {', '.join(left_out)}: see all with -o FILE, or --format csv")
        return
    if how == "json":
        print_json({"schema_version": 1, "rows": rows_of(result)})
        return
    write_all(as_csv(result) if how == "csv" else as_jsonl(result))


def _same_as_score(result: pa.Table) -> list[str]:
    """The column that ``score`` repeats."""
    from influence_cli.data.tables import provenance

    only = provenance(result.schema).get("score_is")
    return [only] if only else []


def fitting(names: list[str], cells: list[list[str]], stream: IO[str]) -> tuple[list[str], list[list[str]], list[str]]:
    """As many columns, from the left, as the terminal is wide: a cut id helps nobody.  Last: what was left out."""
    if not stream.isatty():
        return names, cells, []
    width, used, kept = shutil.get_terminal_size().columns, 0, 0
    for k, name in enumerate(names):
        used += max([len(name), *(len(row[k]) for row in cells)]) + 2
        if used > width + 2 and k > 0:
            break
        kept += 1
    return names[:kept], [row[:kept] for row in cells], names[kept:]


def plan(settings: Settings, job: Job) -> None:
    """What would run: as JSON in a pipe or when asked, as a table for people."""
    from influence_cli.stages.plan import describe_plan, known_rates, missing_work, needed_rates

    work, estimated = missing_work(job), {}
    if not needed_rates(work) <= set(known_rates(job)):
        from influence_cli.stages.estimate import estimated_rates

        estimated = estimated_rates(job, work)
    described = describe_plan(job, work, estimated)
    if settings["format"] == "json" or (settings["format"] == "auto" and not sys.stdout.isatty()):
        print_json(described)
        return
    header = ["member", "target rows", "rows stored", "rows to compute", "passes", "seconds", "bytes", "why"]
    rows = [
        [
            str(s["member"]) if s["dropout"] is None else f"{s['member']} (dropout {s['dropout']:.4f})",
            cell(s["target_rows_to_pass"]),
            f"{s['rows_stored']:,}",
            f"{s['rows_to_compute']:,}",
            cell(s["forward_passes"]),
            cell(s["seconds"]),
            f"{s['bytes']:,}",
            s["why"],
        ]
        for s in described["steps"]
    ]
    title = f"store: {described['store']}; seconds are {described['seconds_are']}"
    print_table(title, header, rows, terminal(), sys.stdout)
    fits = [(s["member"], fit) for s in described["steps"] for fit in s["fits"]]
    if fits:
        names = ("method", "rows", "passes", "seconds", "bytes", "why")
        cells = [[str(m), *(f"{f[n]:,}" if isinstance(f[n], int) else cell(f[n]) for n in names)] for m, f in fits]
        print_table("curvature to fit", ["member", *names], cells, terminal(), sys.stdout)


def run_summary(job: Job, origin: dict[str, Any], done: str) -> None:
    """What was done, how good the model is, and the noise of every direction."""
    from influence_cli.stages.reliability import train_accuracy, warn_at_chance

    out = terminal()
    known: dict[str, tuple[float, int]] = {}
    train = train_accuracy(job)
    if train is not None:
        known["train"] = (train, len(job.train))
    for entry in origin["noise"].values():
        known["target"] = (entry["accuracy"], entry["target_rows"])
    if known:
        out.note(", ".join(f"{name} accuracy {a:.1%}" for name, (a, _) in known.items()))
    warn_at_chance(job, known)
    out.note(done)
    noise_summary(origin)


def skipped(left_out: dict[str, list[BadRow]]) -> None:
    """Every row that was left out, as a table: id, column and reason; the first 20 of a manifest unless with -v."""
    out = terminal()
    for source, bad in left_out.items() if not out.quiet else ():
        shown = bad if out.verbose else bad[:STRONGEST]
        rows = [[f"row {b.row}" if b.id is None else b.id, b.column, b.reason] for b in shown]
        title = f"{len(bad):,} rows of {source} cannot be used and were left out"
        print_table(title, ["id", "column", "reason"], rows, out, sys.stderr, left=3)
        if len(shown) < len(bad):
            out.note(f"and {len(bad) - len(shown):,} more: all with -v")


def noise_summary(origin: dict[str, Any]) -> None:
    """Phi and the noise of every direction, with a warning where it is mostly noise."""
    from influence_cli.stages.objective_report import parity_warnings, parts_lines
    from influence_cli.stages.reliability import describe_noise, noise_warnings

    out = terminal()
    noise = origin.get("noise", {})
    for name, entry in noise.items():
        about = f"Phi {entry['phi']:.4g} on {entry['target_rows']:,} target rows"
        out.note(f"objective {name}: {about}; {describe_noise(entry)}")
        for line in parts_lines(name, entry["parts"]) if "parts" in entry else ():
            out.note(line)
    for line in [*parity_warnings(noise), *noise_warnings(noise)]:
        out.warn(line)


def curate_summary(settings: Settings, curated: Curated) -> None:
    """Counts, class balance, notes, and precision where clean labels are known."""
    from influence_cli.stages.curate import summarise

    s = summarise(curated)
    out = terminal()
    out.note(f"{s['action']}: {s['edited']:,} of {s['train_rows']:,} train rows, by column {curated.scores.column}")
    for note in s["notes"]:
        out.note(f"  {note}")
    out.note("  edited by class: " + ", ".join(f"{c}: {v['edited']}/{v['rows']}" for c, v in s["classes"].items()))
    if "canary" in curated.scores.table.column_names:
        out.note("  canaries of the checkpoint's training are left alone")
    if curated.scores.scored.kind == "signed":
        noise_summary(curated.scores.provenance)
    if "wrong_share_of_edited" in s:
        out.note(
            f"  clean labels say: {s['wrong_share_of_edited']:.1%} of the edited rows were labelled wrong "
            f"(all rows: {s['wrong_share_of_all']:.1%})"
            + (f"; {s['right_after_relabel']:.1%} are right now" if "right_after_relabel" in s else "")
        )


def verdict(settings: Settings, result: Verdict, manifest: str) -> None:
    """The flagged rows on standard output, the verdict on standard error."""
    terminal().note(result.sentence())
    if settings["format"] == "github":
        for row in result.flagged.to_pylist():
            why = f"effect {row['effect']:.3g}" if "effect" in row else f"p-value {row['p_value']:.3g}"
            text = f"row {row['id']} (label {row['label']}): score {row['score']:.3g}, {why}"
            sys.stdout.write(f"::warning file={_escaped(manifest)},title=influence::{_escaped(text)}\n")
        if result.tripped:
            sys.stdout.write(f"::error title=influence::{_escaped(result.sentence())}\n")
        sys.stdout.flush()
        return
    table(settings, result.flagged, sort_by=None)


def _escaped(text: str) -> str:
    """Text inside a workflow command: data must not be able to start one of its own."""
    for plain, safe in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"), (":", "%3A"), (",", "%2C")):
        text = text.replace(plain, safe)
    return text


def retrain_plan(settings: Settings, request: RetrainRequest, recipe: Recipe) -> None:
    """What would be trained."""
    print_json(
        {
            "schema_version": 1,
            "manifest": request.inputs.manifest,
            "against": request.against,
            "arms": [n for n, _ in request.arms],
            "seeds": [request.seed + s for s in range(request.seeds)],
            "canaries": None
            if request.canaries is None
            else {"share": request.canaries.share, "noise": request.canaries.kind, "from": request.canaries.source},
            "recipe": recipe.describe(),
        }
    )


def retrain_summary(settings: Settings, metrics: dict[str, Any]) -> None:
    """Before and after: accuracy of every arm, and paired differences with no edit and with its control."""
    if settings["format"] == "json":
        print_json(metrics)
    from influence_cli.data.row_checks import BadRow

    out = terminal()
    skipped({source: [BadRow(**b) for b in bad] for source, bad in metrics.get("left_out", {}).items()})
    if out.quiet:
        return
    first = next(iter(next(iter(metrics["arms"].values()))["seeds"].values()))
    rates = {k: first[f"{k}_accuracy"] for k in ("train", "target") if f"{k}_accuracy" in first}
    out.note(", ".join(f"{k} accuracy {v:.1%}" for k, v in {**rates, "test": first["accuracy"]}.items()))
    from influence_cli.stages.reliability import at_chance

    for name, rate in {**rates, "test": first["accuracy"]}.items():
        if at_chance(rate, metrics["test_rows"], metrics["num_classes"]):
            out.warn(f"{name} accuracy is {rate:.1%}, no better than guessing: nothing below means anything")
    header = ["arm", "rows", "edited", "wrong", "accuracy", "difference"]
    rows = []
    for name, arm in metrics["arms"].items():
        edited = [f"{arm['train_rows']:,}", _edited(arm["edits"]), _wrong(arm["edits"])]
        rows.append([name, *edited, _interval(arm["mean"]["accuracy"]), _gain(metrics, name, arm)])
    seeds = len(next(iter(metrics["arms"].values()))["seeds"])
    over = f"{metrics['test_rows']:,} test rows, {seeds} seed{'s' if seeds > 1 else ''}"
    print_table(f"{over}; accuracy in %, mean and 95 % interval", header, rows, out, sys.stderr)
    if metrics["comparison"]:
        out.note(
            "difference, paired over seeds: of a curated arm over no edit; in a control's line, of its arm over it"
        )


def _edited(edits: dict[str, Any]) -> str:
    parts = [f"{edits[k]:,} {k}" for k in ("trimmed", "relabelled", "reweighted") if edits.get(k)]
    return ", ".join(parts) or "-"


def _wrong(edits: dict[str, Any]) -> str:
    for key in ("wrong_share_of_trimmed", "wrong_share_of_relabelled"):
        if key in edits:
            return f"{edits[key]:.1%}"
    return "-"


def _interval(m: dict[str, Any]) -> str:
    half = "" if m["half_width"] is None else f" ± {100 * m['half_width']:.2f}"
    return f"{100 * m['mean']:.2f}{half}"


def _gain(metrics: dict[str, Any], name: str, arm: dict[str, Any]) -> str:
    """A curated arm's difference from no edit; in a control's line, its arm's difference from it."""
    other = "no edit" if arm["controls"] is None else name
    compared = metrics["comparison"].get(arm["controls"] or name, {}).get(other)
    if compared is None:
        return "-"
    d = compared["accuracy"]
    return f"{'+' if d['mean'] >= 0 else ''}{_interval(d)} {d['verdict']}"
