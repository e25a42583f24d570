"""``influence curate``: settings in, edits decided, and written as a manifest, a table, or in the source's own form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from influence_cli.cli.settings.inputs import require_source, said_of_scores
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import curate as show_curate
from influence_cli.cli.show import tables as show
from influence_cli.errors import UsageError

if TYPE_CHECKING:
    from influence_cli.stages.curate.curate import Curated
    from influence_cli.stages.curate.export import Export
    from influence_cli.stages.curate.score_table import CurateRequest, ScoreTable

TABLE_FORMATS = ("auto", "table", "json", "jsonl", "csv")


def curate(settings: Settings) -> int | None:
    """Trim, relabel or reweight train rows under a budget; or be a gate with --check."""
    from influence_cli.stages.curate.curate import curate as curate_stage
    from influence_cli.stages.curate.score_table import CurateRequest, read_scores

    gate = settings["check"] or settings["threshold"] is not None or settings["write_baseline"]
    show.check_format(settings, (*TABLE_FORMATS, *(["github"] if settings["check"] else [])))
    _check_outputs(settings, bool(gate))
    if settings["undo"]:
        return _undo(settings, bool(gate))
    source = require_source(settings, "a score table")
    manifest, label = said_of_scores(settings)
    request = CurateRequest(
        scores=source,
        action=settings["action"],
        budget=settings["budget"],
        manifest=manifest,
        label=label,
        by=tuple(settings["by"]),
        combine=settings["combine"],
        maximise=settings["maximise"],
        subject_to=tuple(settings["subject_to"]),
        options=settings.options,
        skip_bad=settings["skip_bad"],
    )
    if gate:
        return _gate(settings, request, read_scores(request))
    curated = curate_stage(request)
    show_curate.curate_summary(settings, curated)
    show.skipped(curated.scores.manifest.left_out)
    export = _export(settings, curated)
    if settings["dry_run"]:
        if export is not None:
            show.terminal().note(f"would be: {export.sentence()}")
        return None
    _write_curation(settings, curated, export)
    return None


def _undo(settings: Settings, gate: bool) -> None:
    """Write the manifest as it was before a table of edits.

    Raises:
        UsageError: something else is asked for too, or it is not said what to undo, or where to.
    """
    from influence_cli.stages.curate.restored_manifest import write_restored
    from influence_cli.stages.curate.undo import plan_undo

    if gate or settings["edits"] or settings["export"]:
        raise UsageError("--undo writes the manifest as it was, and nothing else", fix="leave the other outputs out")
    if not settings.explicit("manifest") or settings["output"] in (None, "-"):
        raise UsageError(
            "--undo needs the curated manifest and a place for the old one",
            fix="influence curate EDITS.parquet --undo --manifest CURATED.parquet -o RESTORED.parquet",
        )
    undoing = plan_undo(
        require_source(settings, "a table of edits"),
        settings["manifest"],
        settings["label"] if settings.explicit("label") else None,
    )
    back = sum(map(len, undoing.before.values()))
    said = f"{undoing.restored:,} edits taken back, {back:,} trimmed rows among them"
    if settings["dry_run"]:
        show.terminal().note(f"would be: {said}")
        return
    rows = write_restored(undoing, settings["output"])
    show.terminal().note(f"{said}; {rows:,} rows written to {settings['output']}")


def _export(settings: Settings, curated: Curated) -> Export | None:
    """The export that was asked for, checked before anything is written."""
    from influence_cli.stages.curate.export import ExportRequest, prepare_export

    if settings["export"] is None:
        return None
    asked = ExportRequest(settings["export"], settings["export_as"], settings["link"], settings["url_prefix"] or "")
    return prepare_export(curated, asked)


def _check_outputs(settings: Settings, gate: bool) -> None:
    """Refuse outputs that contradict each other, or that cannot be written, before any work.

    Raises:
        UsageError: they do, or one cannot.
    """
    from influence_cli.data.outputs import is_same
    from influence_cli.data.tables import check_suffix

    output, edits, export = settings["output"], settings["edits"], settings["export"]
    if gate and (output or edits or export):
        raise UsageError("a gate decides and writes nothing", fix="leave -o, --edits and --export out, or --check")
    for one, a, other, b in (
        ("-o", output, "--edits", edits), ("-o", output, "--export", export), ("--edits", edits, "--export", export)
    ):  # fmt: skip
        if a is not None and b is not None and (a == b or (b != "-" and is_same(Path(a), Path(b)))):
            raise UsageError(f"{one} and {other} are both {a!r}", fix="give each a place of its own")
    for path, suffixes in ((output, (".parquet",)), (edits, (".parquet", ".csv", ".jsonl"))):
        if path:
            check_suffix(path, suffixes)


def _write_curation(settings: Settings, curated: Curated, export: Export | None) -> None:
    from influence_cli.data.earlier import EDITS
    from influence_cli.data.tables import write_table
    from influence_cli.stages.curate.curated_manifest import write_curated

    if export is not None:
        export.write()
        show.terminal().note(export.sentence())
        for note in export.notes:
            show.terminal().note(f"  {note}")
    if settings["edits"]:
        show.formulas(curated.table(), settings["edits"])
        write_table(curated.table(), settings["edits"], EDITS)
    if settings["output"]:
        rows = write_curated(curated, settings["output"])
        show.terminal().note(f"{rows:,} train rows written to {settings['output']}")
        if sys.stderr.isatty() and settings["output"] != "-":
            locator = curated.scores.manifest.source
            show.terminal().note(
                f"next: influence retrain {settings['output']} --against {locator} --model NAME --seeds 3 -o RUN"
            )
    if not (settings["output"] or settings["edits"] or export):
        show.table(settings, curated.table(), sort_by=None)


def _gate(settings: Settings, request: CurateRequest, scores: ScoreTable) -> int | None:
    from influence_cli.stages.curate.baseline import write_baseline
    from influence_cli.stages.curate.gate import GateRequest, check

    if settings["write_baseline"] and settings["dry_run"]:
        show.terminal().note(f"{len(scores.train):,} rows would be accepted in {settings['write_baseline']}")
    elif settings["write_baseline"]:
        rows = write_baseline(scores, settings["write_baseline"])
        show.terminal().note(f"{rows:,} rows accepted in {settings['write_baseline']}")
    if settings["write_baseline"] and not settings["check"]:
        return None
    verdict = check(
        scores,
        GateRequest(settings["max_flagged"], settings["false_flag"], settings["threshold"], settings["baseline"]),
    )
    show.verdict(settings, verdict, scores.manifest.source)
    return 1 if verdict.tripped else 0
