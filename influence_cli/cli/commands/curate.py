"""``influence curate``: edits decided, and written as a manifest, a table, or in the source's own form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from influence_cli.cli.commands.gate import judge
from influence_cli.cli.commands.run import TABLE_FORMATS
from influence_cli.cli.commands.undo import undo
from influence_cli.cli.console import terminal
from influence_cli.cli.settings.inputs import manifest_of_scores, require_source
from influence_cli.cli.settings.requests import CurateOutputs, ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.curate import show_edits
from influence_cli.cli.show.run import show_skipped
from influence_cli.cli.show.table import note_formulas, print_rows
from influence_cli.errors import UsageError
from influence_cli.stages.curate.request import CurateRequest, ExportRequest

if TYPE_CHECKING:
    from influence_cli.stages.curate.curate import Curated
    from influence_cli.stages.curate.export import Export


def curate(settings: Settings) -> int | None:
    """Trim, relabel or reweight train rows under a budget; or be a gate with --check."""
    from influence_cli.stages.curate.curate import curate as curate_stage
    from influence_cli.stages.curate.export import prepare_export

    result, outputs = settings.make(ResultOptions), settings.make(CurateOutputs)
    result.check_format(*TABLE_FORMATS, *(["github"] if outputs.check else []))
    _check_outputs(result, outputs)
    if outputs.undo:
        return undo(settings, result, outputs)
    source = require_source(settings, "a score table")
    request = settings.make(CurateRequest, scores=source, **manifest_of_scores(settings))
    if outputs.gate:
        return judge(settings, result, outputs, request)
    curated = curate_stage(request)
    show_edits(curated)
    show_skipped(curated.scores.manifest.left_out)
    export = None if outputs.export is None else prepare_export(curated, settings.make(ExportRequest))
    if not result.dry_run:
        _write(result, outputs, curated, export)
    elif export is not None:
        terminal().note(f"would be: {export.sentence()}")
    return None


def _check_outputs(result: ResultOptions, outputs: CurateOutputs) -> None:
    """Refuse outputs that contradict each other, or that cannot be written, before any work.

    Raises:
        UsageError: they do, or one cannot.
    """
    from influence_cli.data.outputs import is_same
    from influence_cli.data.write_tables import check_suffix

    places = (("-o", result.output), ("--edits", outputs.edits), ("--export", outputs.export))
    if outputs.gate and any(path for _, path in places):
        raise UsageError("a gate decides and writes nothing", fix="leave -o, --edits and --export out, or --check")
    for one, a in places:
        for other, b in places[places.index((one, a)) + 1 :]:
            if a is not None and b is not None and (a == b or (b != "-" and is_same(Path(a), Path(b)))):
                raise UsageError(f"{one} and {other} are both {a!r}", fix="give each a place of its own")
    for path, suffixes in ((result.output, (".parquet",)), (outputs.edits, (".parquet", ".csv", ".jsonl"))):
        if path:
            check_suffix(path, suffixes)


def _write(result: ResultOptions, outputs: CurateOutputs, curated: Curated, export: Export | None) -> None:
    """The export, the table of edits and the curated manifest, as asked for; where nothing is, the edits are shown."""
    from influence_cli.data.earlier import EDITS
    from influence_cli.data.write_tables import write_table
    from influence_cli.stages.curate.written_manifest import write_curated

    out = terminal()
    if export is not None:
        export.write()
        out.note(export.sentence())
        for note in export.prepared.notes:
            out.note(f"  {note}")
    if outputs.edits:
        note_formulas(curated.table(), outputs.edits)
        write_table(curated.table(), outputs.edits, EDITS)
    if result.output:
        rows = write_curated(curated, result.output)
        out.note(f"{rows:,} train rows written to {result.output}")
        if sys.stderr.isatty() and result.output != "-":
            against = curated.scores.manifest.source
            out.note(f"next: influence retrain {result.output} --against {against} --model NAME --seeds 3 -o RUN")
    if not (result.output or outputs.edits or export):
        print_rows(result, curated.table())
