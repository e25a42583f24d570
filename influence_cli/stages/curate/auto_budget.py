"""``--budget auto``: as many rows as labels are estimated to be wrong, by canaries or a column of the score table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from influence_cli.data.tables import shown
from influence_cli.errors import UsageError
from influence_cli.report.wrong_labels import beyond, estimates_of, may_be_none, why_unknown
from influence_cli.stages.curate.combining import column_named
from influence_cli.stages.curate.request import AUTO, CurateRequest
from influence_cli.stages.curate.score_table import ScoreTable

Told = dict[str, Any]
CANARIES = "canaries"
SCORE = "influence score MANIFEST --checkpoint RUN --method auto"


def with_rows(request: CurateRequest, scores: ScoreTable) -> tuple[CurateRequest, Told]:
    """The request with a number of rows for a budget of ``auto``, and what is estimated: rows, interval, by.

    Estimates are about all scored rows; of those only the ones that are trained on are edited, and so the budget is
    their share of what is estimated (``trained_on``, where it is below 1).  Canaries tell where they have been asked;
    else the columns that are acted on, where any estimates the number: no number of another method stands in for one
    that they do not know.  Else the first column of the table that knows it.

    Raises:
        UsageError: nothing of the table estimates the number, or what does does not know it or has an interval that
            reaches 0.
    """
    if request.budget != AUTO:
        return request, {}
    if request.action == "reweight":
        raise UsageError("reweight touches every scored row and takes no budget", fix="leave --budget out")
    told = _of_canaries(request) or _of_columns(request, scores, shown(request.scores))
    if may_be_none(told):
        what = f"{_who(told['by'])} {told['rows']:,.0f} wrong labels{beyond(told)}, and its 95% interval reaches 0: "
        what += f"there may be none{' beyond these' if beyond(told) else ''} (0 to {told['interval'][1]:,.0f})"
        raise UsageError(
            what, where=shown(request.scores), fix="look at the lowest rows, or give a number: --budget 5%"
        )
    share = float(scores.scored.counts.mean())
    rows = min(round(told["rows"] * share), len(scores.train))
    about = {"trained_on": share} if share < 1.0 else {}
    return replace(request, budget=str(rows)), {**told, "rows": rows, **about}


def said(told: Told) -> str:
    """One line for people.

    >>> said({"rows": 108, "interval": [91.2, 130.6], "by": "score_auto"})
    '--budget auto: 108 rows, the number of wrong labels that score_auto estimates (95% interval 91 to 131)'
    """
    low, high = told["interval"]
    share = told.get("trained_on")
    part = "" if share is None else f"the {share:.1%} that are trained on (weight above 0) of "
    return (
        f"--budget auto: {told['rows']:,} rows, {part}the number of wrong labels{beyond(told)} that {_who(told['by'])} "
        f"(95% interval {low:,.0f} to {high:,.0f})"
    )


def _who(by: str) -> str:
    """What estimates, with its verb."""
    return f"{by} estimate" if by == CANARIES else f"{by} estimates"


def _of_canaries(request: CurateRequest) -> Told | None:
    cut = request.cut
    return None if cut is None else {"rows": cut.wrong_rows, "interval": list(cut.wrong_interval), "by": CANARIES}


def _of_columns(request: CurateRequest, scores: ScoreTable, where: str) -> Told:
    found = estimates_of(scores.provenance)
    if not found:
        what = "--budget auto takes the estimated number of wrong labels, and no column of the table estimates it"
        auto = scores.provenance.get("auto", {})
        if "because" in auto:
            what += f": auto took {auto['method']} there, since {auto['because']}"
            raise UsageError(what, where=where, fix="give a number: --budget 5%")
        fix = SCORE if scores.provenance else "score with -o scores.parquet: other tables keep columns, and no estimate"
        raise UsageError(what, where=where, fix=f"{fix}; or give a number: --budget 5%")
    first = scores.provenance.get("score_is")
    several = request.combine is not None or len(request.by) > 1
    names = [column_named(name, scores.table, where) for name in request.by] if several else [scores.column]
    acted_on = {first if name == "score" else name for name in names}
    own = [estimate for estimate in found if estimate["column"] in acted_on]
    unknown = next((estimate for estimate in own if why_unknown(estimate)), None)
    known = [estimate for estimate in found if not why_unknown(estimate)]
    if unknown is None and known:
        told = (own or known)[0]
        more = {} if not beyond(told) else {"target_is_cleaner": False}
        return {"rows": told["wrong_labels"], "interval": told["interval"], "by": told["column"], **more}
    asked = unknown or found[0]
    what = (
        f"{asked['column']} does not know how many labels are wrong, nor how many rows to act on: {why_unknown(asked)}"
    )
    others = [f"act by one that knows it: --by {estimate['column']}" for estimate in known[:1]]
    raise UsageError(what, where=where, fix=", or ".join([*others, "give a number: --budget 5%"]))
