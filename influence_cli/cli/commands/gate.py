"""``influence curate --check``: the gate, and the baseline that it compares with."""

from __future__ import annotations

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.requests import CurateOutputs, ResultOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.gate import show_verdict
from influence_cli.stages.curate.request import CurateRequest, GateRequest


def judge(settings: Settings, result: ResultOptions, outputs: CurateOutputs, request: CurateRequest) -> int | None:
    """Write the baseline where one is asked for, then judge the rows: 1 where too many are suspicious."""
    from influence_cli.stages.curate.gate import check
    from influence_cli.stages.curate.known_rows import write_baseline
    from influence_cli.stages.curate.score_table import read_scores

    scores, place = read_scores(request), outputs.write_baseline
    if place and result.dry_run:
        terminal().note(f"{len(scores.train):,} rows would be accepted in {place}")
    elif place:
        terminal().note(f"{write_baseline(scores, place):,} rows accepted in {place}")
    if place and not outputs.check:
        return None
    verdict = check(scores, settings.make(GateRequest))
    show_verdict(result, verdict, scores.manifest.source)
    return 1 if verdict.tripped else 0
