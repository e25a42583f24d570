"""``influence curate --undo``: the manifest as it was before a table of edits."""

from __future__ import annotations

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.inputs import require_source
from influence_cli.cli.settings.requests import CurateOutputs, ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.errors import UsageError


def undo(settings: Settings, result: ResultOptions, outputs: CurateOutputs) -> None:
    """Write the manifest as it was before a table of edits.

    Raises:
        UsageError: something else is asked for too, or it is not said what to undo, or where to.
    """
    from influence_cli.stages.curate.undo import plan_undo
    from influence_cli.stages.curate.written_manifest import write_restored

    if outputs.gate or outputs.edits or outputs.export:
        raise UsageError("--undo writes the manifest as it was, and nothing else", fix="leave the other outputs out")
    manifest = settings.insisted("manifest")
    if manifest is None or result.output is None or result.output == "-":
        raise UsageError(
            "--undo needs the curated manifest and a place for the old one",
            fix="influence curate EDITS.parquet --undo --manifest CURATED.parquet -o RESTORED.parquet",
        )
    undoing = plan_undo(require_source(settings, "a table of edits"), manifest, settings.insisted("label"))
    back = sum(map(len, undoing.before.values()))
    done = f"{undoing.restored:,} edits taken back, {back:,} trimmed rows among them"
    if result.dry_run:
        terminal().note(f"would be: {done}")
        return
    rows = write_restored(undoing, result.output)
    terminal().note(f"{done}; {rows:,} rows written to {result.output}")
