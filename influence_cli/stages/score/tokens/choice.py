"""Which rows' scores are split over their tokens, and what a run has to be for that."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import UsageError, nearest
from influence_cli.methods.protocol import Linear
from influence_cli.stages.run.run import Run
from influence_cli.stages.score.tokens.request import POSITION, TokenRequest

Floats = NDArray[np.float64]
SEARCHED = 1000  # ids among which a like one is looked for


def check_tokens(run: Run, request: TokenRequest, top: int) -> None:
    """Refuse (UsageError) what cannot be answered, before anything is computed.

    That is a run whose scores have no parts by token, rows that are not there, and no number of rows.
    """
    if top < 1:
        raise UsageError(f"--top {top} is no number of rows", fix="--top 10")
    if run.model is None or not run.model.is_language:
        what = "--tokens splits the score of a text over its tokens, and this model does not predict them"
        raise UsageError(what, fix="leave --tokens out, or score a language model (see: influence guide text)")
    for name, method in run.methods.items():
        if name in run.samplers:
            _check_sampler(run, name, request)
            continue
        if method.needs != "tangents":
            what = f"--tokens splits scores along a direction, and {name} is a value of a row as a whole"
            raise UsageError(what, fix="--method ip, or another that measures a direction (see: influence methods)")
        if type(method).score is not Linear.score:
            what = f"--tokens has parts of products of gradients, and {name} makes its scores in a way of its own"
            raise UsageError(what, fix="--method ip")
    _by_id(run, request.row_id)


def _check_sampler(run: Run, name: str, request: TokenRequest) -> None:
    """Refuse (UsageError) parts that do not sum to a row's score, or that there are none of."""
    if request.decomposition == POSITION:
        what = f"--decomposition position follows a direction into the model, and {name} has none"
        raise UsageError(what, fix="--decomposition loss")
    if run.samplers[name].norm != "covariance":
        what = "--tokens has parts that sum to a row's score, and correlations of tokens do not"
        raise UsageError(what, fix=f"--set {name}.norm=covariance")


def chosen_rows(run: Run, scores: Floats, request: TokenRequest, top: int) -> NDArray[np.int64]:
    """Places among the train rows, whose scores [n] these are: the most helpful first, then the most harmful first.

    A side holds rows of its own sign alone.

    Raises:
        UsageError: there is no train row with an id, or none with a score.
    """
    if request.row_id:
        among, top = _by_id(run, request.row_id), len(scores)
        bad = [run.train.ids[k] for k in among.tolist() if not np.isfinite(scores[k])]
        if bad:
            raise UsageError(f"row {bad[0]!r} has no finite score to split", fix="leave it out")
    else:
        among = np.flatnonzero(np.isfinite(scores) & (scores != 0))
    order = among[np.argsort(-scores[among], kind="stable")]
    helpful = order[scores[order] > 0][:top]
    harmful = order[scores[order] <= 0][::-1][:top]
    if len(order) == 0:
        raise UsageError("no train row helps or harms the target: every score is 0", fix="give other --target rows")
    return np.concatenate([helpful, harmful])


def _by_id(run: Run, asked: tuple[str, ...]) -> NDArray[np.int64]:
    place = {name: k for k, name in enumerate(run.train.ids)}
    for name in asked:
        if name not in place:
            what = f"no train row has the id {name!r}"
            raise UsageError(what, where=run.manifest.source, fix=nearest(name, list(place)[:SEARCHED]))
    return np.array([place[name] for name in dict.fromkeys(asked)], dtype=np.int64)


def described(request: TokenRequest, top: int) -> dict[str, Any]:
    """Plain values, for provenance."""
    return {"decomposition": request.decomposition, "top": None if request.row_id else top}
