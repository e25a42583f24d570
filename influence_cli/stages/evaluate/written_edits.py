"""Edits decided and written in one call, canaries asked where the edits depend on them: ``curate`` from Python."""

from __future__ import annotations

from influence_cli.data.earlier import BINS, CURATED
from influence_cli.data.locators import named_in
from influence_cli.data.outputs import Output, check_outputs
from influence_cli.data.write_tables import check_suffix, write_table
from influence_cli.events import Listener
from influence_cli.settings import Runtime
from influence_cli.stages.curate.bins import needs_canaries
from influence_cli.stages.curate.curate import Curated, curate
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.curate.written_manifest import said_of_files_outside, write_curated


def curate_and_write(
    request: CurateRequest, runtime: Runtime, seed: int, listener: Listener, output: str | None
) -> Curated:
    """The edits; the curated manifest is written to ``output`` and the bins to ``request.bins``, where these are given.

    Raises:
        InfluenceError: the edits cannot be made, or an output cannot be written.
    """
    if request.bins is not None:
        check_suffix(request.bins, (".parquet", ".csv", ".jsonl"))
    places = (("output", output, CURATED), ("bins", request.bins, BINS))
    written = [Output(name, path, kind) for name, path, kind in places if path is not None]
    if written:
        check_outputs(written, [request.scores, request.manifest, *named_in(request.scores)])
    if request.asks_canaries or needs_canaries(request):
        from influence_cli.stages.evaluate.canary_cut import with_canaries  # a table alone needs no model

        request = with_canaries(request, runtime, seed, listener)
    curated = curate(request)
    if output is not None:
        write_curated(curated, output)
        outside = said_of_files_outside(curated.scores.manifest, output)
        if outside is not None:
            listener.note(outside)
    if request.bins is not None and curated.bins is not None:
        write_table(curated.bins.table(curated.scores), request.bins, BINS)
    return curated
