"""Results as tables, JSON and summaries.  Standard output gets the table or report asked for, and nothing else."""

from __future__ import annotations

import shutil
import sys
from typing import IO, TYPE_CHECKING, Any

from influence_cli.cli.console import Terminal, cell, print_json, print_table
from influence_cli.cli.settings.outputs import table_kind
from influence_cli.cli.settings.resolve import Settings
from influence_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from influence_cli.data.row_checks import BadRow
    from influence_cli.stages.curate.gate import Verdict
    from influence_cli.stages.run.job import Job

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
    from influence_cli.data.write_tables import as_csv, as_jsonl, rows_of, write_all, write_table

    if settings["output"]:
        formulas(result, settings["output"])
        write_table(result, settings["output"], table_kind(settings))
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
    if how == "csv":
        formulas(result)
    write_all(as_csv(result) if how == "csv" else as_jsonl(result))


def formulas(result: pa.Table, output: str = "-.csv") -> None:
    """Say how many texts a spreadsheet would run, where a table becomes CSV."""
    from influence_cli.data.formulas import formulas_in, said

    count = formulas_in(result) if output.endswith(".csv") else 0
    if count:
        terminal().note(said(count))


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
    from influence_cli.stages.run.estimate import planned_gradients
    from influence_cli.stages.run.plan import describe_plan, known_rates, missing_work, needed_rates

    work, estimated = missing_work(job), {}
    if not needed_rates(work) <= set(known_rates(job)):
        from influence_cli.stages.run.estimate import estimated_rates

        estimated = estimated_rates(job, work)
    described = describe_plan(job, work, estimated, planned_gradients(job))
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
    for name, m in described["members"].items():
        until = f"{m['least']} to {m['most']} members, until the lowest rows stay the same; the most are planned"
        terminal().note(
            f"{name}: {until if m['decided'] is None else str(m['decided']) + ' members, as decided before'}"
        )
    fits = [(s["member"], fit) for s in described["steps"] for fit in s["fits"]]
    if fits:
        names = ("method", "rows", "passes", "seconds", "bytes", "why")
        cells = [[str(m), *(f"{f[n]:,}" if isinstance(f[n], int) else cell(f[n]) for n in names)] for m, f in fits]
        print_table("curvature to fit", ["member", *names], cells, terminal(), sys.stdout)
    values = [(s["member"], *v) for s in described["steps"] for v in s["row_values_to_compute"].items()]
    if values:
        cells = [[str(m), name, f"{rows:,}"] for m, name, rows in values]
        print_table("values of rows to compute", ["member", "method", "rows"], cells, terminal(), sys.stdout)
    solves = [(s["member"], solve) for s in described["steps"] for solve in s["solves"]]
    if solves:
        names = ("method", "directions", "rows", "passes", "seconds")
        cells = [[str(m), *(f"{s[n]:,}" if isinstance(s[n], int) else cell(s[n]) for n in names)] for m, s in solves]
        print_table("directions to solve for; passes at most", ["member", *names], cells, terminal(), sys.stdout)
    _gradients(described["row_gradients"])


def _gradients(planned: list[dict[str, Any]]) -> None:
    """Rows' own gradients that a plan holds."""
    names = ("rows", "params", "values", "rows_stored", "rows_to_compute", "seconds", "bytes")
    cells = [[f"{g[n]:,}" if isinstance(g[n], int) else cell(g[n]) for n in names] for g in planned]
    if planned:
        print_table("rows' own gradients", [n.replace("_", " ") for n in names], cells, terminal(), sys.stdout)
    for g in planned:
        if g["refused"]:
            terminal().warn(f"these will be refused: {g['refused']}")


def run_summary(job: Job, origin: dict[str, Any], done: str) -> None:
    """What was done, how good the model is, and the noise of every direction."""
    from influence_cli.stages.score.noise import train_accuracy, warn_at_chance

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


def verdict(settings: Settings, result: Verdict, manifest: str) -> None:
    """The flagged rows on standard output, the verdict on standard error."""
    terminal().note(result.sentence())
    if settings["format"] == "github":
        for row in result.flagged.to_pylist():
            text = f"row {row['id']} (label {row['label']}): {row['reason'] or _suspicion(row)}"
            sys.stdout.write(f"::warning file={_escaped(manifest)},title=influence::{_escaped(text)}\n")
        if result.tripped:
            sys.stdout.write(f"::error title=influence::{_escaped(result.sentence())}\n")
        sys.stdout.flush()
        return
    table(settings, result.flagged, sort_by=None)


def _suspicion(row: dict[str, Any]) -> str:
    """What a row is flagged for."""
    why = f"effect {row['effect']:.3g}" if "effect" in row else f"p-value {row['p_value']:.3g}"
    return f"score {row['score']:.3g}, {why}"


def _escaped(text: str) -> str:
    """Text inside a workflow command: data must not be able to start one of its own."""
    for plain, safe in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A"), (":", "%3A"), (",", "%2C")):
        text = text.replace(plain, safe)
    return text


def check_report(settings: Settings) -> None:
    """Refuse a page or a picture by another suffix, before any work.

    Raises:
        UsageError: it has another; or matplotlib is needed and not there.
    """
    from influence_cli.report.panel import require_matplotlib

    for name, suffix in (("report", ".html"), ("plot", ".png")):
        if settings[name] and not settings[name].endswith(suffix):
            raise UsageError(f"--{name} {settings[name]!r} is no {suffix} file", fix=f"--{name} FILE{suffix}")
    if settings["report"] or settings["plot"]:
        require_matplotlib()
