"""``influence curate``: edits decided and written, judged by a gate (--check), or taken back (--undo)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.places import manifest_of_scores, require_source, review_commands, runtime_of
from influence_cli.cli.settings.requests import CurateOutputs, ResultOptions, StoreOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.answers import show_next
from influence_cli.cli.show.curate import show_edits
from influence_cli.cli.show.gate import show_verdict
from influence_cli.cli.show.run import show_skipped
from influence_cli.cli.show.table import note_formulas, print_rows
from influence_cli.errors import UsageError
from influence_cli.stages.curate.request import CurateRequest, ExportRequest, GateRequest

if TYPE_CHECKING:
    from influence_cli.stages.curate.curate import Curated
    from influence_cli.stages.curate.export import Export
    from influence_cli.store.file_keys import StoredFileKeys


TEST = "TEST.parquet"  # stands for the rows to test on where nothing says which


def curate(settings: Settings) -> int | None:
    """Trim, relabel or reweight train rows under a budget; or be a gate with --check."""
    from influence_cli.stages.curate.curate import curate as curate_stage
    from influence_cli.stages.curate.export import check_address, prepare_export

    result, outputs = settings.make(ResultOptions), settings.make(CurateOutputs)
    result.check_format("curate", outputs.check)
    _check_outputs(result, outputs, settings.values["bins"])
    check_address(outputs.export)
    if outputs.undo:
        return _undo(settings, result, outputs)
    if result.report:
        from influence_cli.report.page import require_jinja

        require_jinja()
    source = require_source(settings, "a score table")
    request = settings.make(CurateRequest, scores=source, **manifest_of_scores(settings))
    request = _with_canaries(settings, replace(request, known=_remembered(settings)))
    if outputs.gate:
        return _judge(settings, result, outputs, request)
    curated = curate_stage(request)
    export = None if outputs.export is None else prepare_export(curated, settings.make(ExportRequest))
    show_edits(curated)
    show_skipped(curated.scores.manifest.left_out)
    if result.report and not result.dry_run:
        _write_report(settings, result, curated, source)
    outside = False
    if not result.dry_run:
        _write_bins(curated)
        outside = _write(result, outputs, curated, export)
    elif export is not None:
        terminal().note(f"would be: {export.sentence()}")
    _show_next(settings, result, outputs, curated, source, ["--allow-outside"] if outside else [])
    return None


def _with_canaries(settings: Settings, request: CurateRequest) -> CurateRequest:
    """The request with what canaries say, where they are asked: only then a model is looked at."""
    from influence_cli.stages.curate.bins import needs_canaries

    if not (request.asks_canaries or needs_canaries(request)):
        return request
    from influence_cli.stages.evaluate.canary_cut import with_canaries

    return with_canaries(request, runtime_of(settings), settings.values["seed"], terminal())


def _remembered(settings: Settings) -> StoredFileKeys | None:
    """What the run's store knows of manifests and payload files that have not changed; nothing is written to it."""
    from influence_cli.store import Store
    from influence_cli.store.place import is_marked

    place = settings.make(StoreOptions).place
    return None if place is None or not is_marked(Path(place)) else Store(Path(place), remember=False).file_keys()


def _show_next(
    settings: Settings, result: ResultOptions, outputs: CurateOutputs, curated: Curated, source: str, read: list[str]
) -> None:
    """What to run after the edits: training with and without them, or first writing them."""
    from influence_cli.cli.show.training_words import UNKNOWN_MODEL, test_words, training_words
    from influence_cli.stages.curate.score_table import scored_groups

    written = result.output if result.output not in (None, "-") and not result.dry_run else None
    if written is None and (outputs.edits or outputs.export or result.output) and not result.dry_run:
        return
    if result.report and written is None and not result.dry_run:
        terminal().note(f"then, with what the page saved: {review_commands(settings, source).apply}")
        return
    if written is None:
        if source != "-":
            place = result.output if result.output not in (None, "-") else "clean.parquet"
            show_next("curate", source, *settings.repeated(), "-o", place)
        return
    if not len(curated.edits.edited):
        return  # there is nothing to compare
    origin, label = curated.scores.provenance, curated.scores.label
    groups = [column for column in scored_groups(origin) if column in curated.scores.group_columns]
    words = training_words(origin, groups[0] if groups else None)
    words += ["--label", label] if label != "label" else []
    words += settings.repeated_of("allow_outside") or read
    words += ["--skip-bad"] if settings.values["skip_bad"] and "--skip-bad" not in words else []
    tested = test_words(origin)
    words += tested
    if not tested and not len(curated.scores.manifest.rows("test")):
        words += ["--test", TEST]
    words = [written, "--against", curated.scores.manifest.source, *words, "--seeds", 3, "-o", "COMPARED"]
    show_next("retrain", *words, fill_in=tuple(name for name in (UNKNOWN_MODEL, TEST) if name in words))


def _write_report(settings: Settings, result: ResultOptions, curated: Curated, source: str) -> None:
    """The page on which a person decides of each edit."""
    from influence_cli.report.review.page import write_review
    from influence_cli.stages.curate.review import edited_rows, review_of_edits
    from influence_cli.stages.curate.why import why_of

    ids, runtime = edited_rows(curated)[: result.reasons], runtime_of(settings)
    why = why_of(curated.scores, ids, curated.request, runtime, terminal())
    write_review(review_of_edits(curated, review_commands(settings, source), why), str(result.report))
    terminal().note(f"page written to {result.report}")


def _check_outputs(result: ResultOptions, outputs: CurateOutputs, bins: str | None) -> None:
    """Refuse outputs that contradict each other, or that cannot be written, before any work (UsageError)."""
    from influence_cli.data.outputs import is_same
    from influence_cli.data.write_tables import check_suffix

    places = (
        *(("-o", result.output), ("--edits", outputs.edits), ("--bins", bins), ("--export", outputs.export)),
        ("--report", result.report),
    )
    if outputs.gate and any(path for _, path in places):
        raise UsageError("a gate decides and writes nothing", fix="leave -o, --edits and --export out, or --check")
    for (one, a), (other, b) in itertools.combinations(places, 2):
        if a is not None and b is not None and (a == b or (b != "-" and is_same(Path(a), Path(b)))):
            raise UsageError(f"{one} and {other} are both {a!r}", fix="give each a place of its own")
    tables = (".parquet", ".csv", ".jsonl")
    for path, suffixes in ((result.output, (".parquet",)), (outputs.edits, tables), (bins, tables)):
        if path:
            check_suffix(path, suffixes)


def _write(result: ResultOptions, outputs: CurateOutputs, curated: Curated, export: Export | None) -> bool:
    """The table of edits, the curated manifest and the export, as asked for; where nothing is, the edits are shown.

    Returns whether rows of the manifest that was written name files outside of its folder.
    """
    from influence_cli.data.earlier import EDITS
    from influence_cli.data.write_tables import write_table
    from influence_cli.stages.curate.written_manifest import said_of_files_outside, write_curated

    out, outside = terminal(), None
    # the export is refused where it is there already: last, the command can be run again whatever fails before it
    places = [Path(place).resolve() for place in (outputs.edits, result.output) if place and place != "-"]
    first = export is not None and any(place.is_relative_to(Path(export.path).resolve()) for place in places)
    if export is not None and first:
        _write_export(export)
    if outputs.edits:
        note_formulas(curated.table(), outputs.edits)
        write_table(curated.table(), outputs.edits, EDITS)
    if result.output:
        rows = write_curated(curated, result.output)
        out.note(f"{rows:,} train rows written to {result.output}")
        outside = said_of_files_outside(curated.scores.manifest, result.output)
        if outside is not None:
            out.note(outside)
    if export is not None and not first:
        _write_export(export)
    if not (result.output or outputs.edits or export or curated.request.bins):
        print_rows(result, curated.table(), classes=curated.scores.manifest.classes)
    return outside is not None


def _write_export(export: Export) -> None:
    """The export, and what it says."""
    export.write()
    terminal().note(export.sentence())
    for note in export.prepared.notes:
        terminal().note(f"  {note}")


def _write_bins(curated: Curated) -> None:
    """The table of bins, where one is asked for."""
    from influence_cli.data.earlier import BINS
    from influence_cli.data.write_tables import write_table

    place = curated.request.bins
    if place is not None and curated.bins is not None:
        table = curated.bins.table(curated.scores)
        note_formulas(table, place)
        write_table(table, place, BINS)
        terminal().note(f"the bins of {table.num_rows:,} rows written to {place}")


def _judge(settings: Settings, result: ResultOptions, outputs: CurateOutputs, request: CurateRequest) -> int | None:
    """Write the baseline where one is asked for, then judge the rows: 1 where too many are suspicious."""
    from influence_cli.stages.curate.gate import check
    from influence_cli.stages.curate.known_rows import said_of_rates, write_baseline
    from influence_cli.stages.curate.score_table import read_scores

    scores, place = read_scores(request, lean=True), outputs.write_baseline
    if place and result.dry_run:
        terminal().note(f"{len(scores.train):,} rows would be accepted in {place}")
    elif place:
        terminal().note(f"{write_baseline(scores, place):,} rows accepted in {place}")
    if place:
        known, said = said_of_rates(scores)
        (terminal().note if known else terminal().warn)(said)
    if place and not outputs.check:
        return None
    verdict = check(scores, settings.make(GateRequest))
    show_verdict(result, verdict, settings)
    return 1 if verdict.tripped else 0


def _undo(settings: Settings, result: ResultOptions, outputs: CurateOutputs) -> None:
    """Write the manifest as it was before a table of edits; UsageError where more or less is asked for."""
    from influence_cli.stages.curate.undo import plan_undo
    from influence_cli.stages.curate.written_manifest import said_of_files_outside, write_restored

    if outputs.gate or outputs.edits or outputs.export:
        raise UsageError("--undo writes the manifest as it was, and nothing else", fix="leave the other outputs out")
    manifest = settings.insisted("manifest")
    if manifest is None or result.output is None or result.output == "-":
        fix = "influence curate EDITS.parquet --undo --manifest CURATED.parquet -o RESTORED.parquet"
        raise UsageError("--undo needs the curated manifest and a place for the old one", fix=fix)
    undoing = plan_undo(require_source(settings, "a table of edits"), manifest, settings.insisted("label"))
    back = sum(map(len, undoing.before.values()))
    done = f"{undoing.restored:,} edits taken back, {back:,} trimmed rows among them"
    if result.dry_run:
        terminal().note(f"would be: {done}")
        return
    rows = write_restored(undoing, result.output)
    terminal().note(f"{done}; {rows:,} rows written to {result.output}")
    outside = said_of_files_outside(undoing.curated, result.output)
    if outside is not None:
        terminal().note(outside)
