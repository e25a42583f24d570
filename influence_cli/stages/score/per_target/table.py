"""(2) For every target row its K most helpful and K most harmful train rows, without a matrix of n x m scores.

    s(v, i) = < grad l_i, P grad l_v >

is the score of train row i where target row v is the whole target: positive where the row helps it.  ``score`` itself
is the mean of s over the target rows.  There are two ways to it: directions of blocks of target rows along which the
train rows' tangents are taken (``per_target_pass``), or, where the run asks for rows' own gradients (``--rows``), a
product of stored ones (``per_target_product``), exact unless they are sketches.

Memory holds a block of target rows, a batch or a shard of train rows and the table itself:
O(block x (batch + parameters) + m K).  Every finished block is stored, so a run that is stopped goes on from there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.data.tables import with_provenance
from influence_cli.errors import UsageError
from influence_cli.maths.top_k import NONE, SIDES, TopK
from influence_cli.methods.protocol import Linear, is_summed
from influence_cli.stages.grads.fill import fill
from influence_cli.stages.grads.provenance import provenance_of
from influence_cli.stages.run import names
from influence_cli.stages.run.auto_method import method_is
from influence_cli.stages.run.gradient_plan import row_request
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.per_target.against_exact import agreement_of_pairs, is_exact
from influence_cli.stages.score.per_target.plan import describe, hint, sentence
from influence_cli.stages.score.per_target.products import open_rows, product_pass
from influence_cli.stages.score.per_target.tangents import tangent_pass
from influence_cli.store import ShardFolder, fingerprint
from influence_cli.store.keys import digest_in_order
from influence_cli.store.shards import as_arrow, unique

TOP = 10  # rows of each side
FEW = 24  # train rows that are scored sooner than timed: a timing runs three batches of 8 rows at the least
PAIRS = "scores of pairs of a target and a train row are asked for"  # why ``auto`` is a method of effects
OBJECTIVE = "utility"  # the objective whose term of a target row is its own loss


def check_per_target(run: Run, top: int) -> str:
    """The method that scores pairs of rows.

    Raises:
        UsageError: there are several, it has no scores of pairs or none from the rows that are stored, another
            objective was asked for, or ``top`` is no number of rows.
    """
    if top < 1:
        raise UsageError(f"--top {top} is no number of rows", fix=f"--top {TOP}")
    if len(run.methods) > 1:
        names = ", ".join(run.methods)
        raise UsageError(f"--per-target is a table of one method, and these are several: {names}", fix="--method ip")
    (name,) = run.methods
    if run.methods[name].needs != "tangents":
        has = "looks at all target rows together" if run.methods[name].measures else "is a value of a row alone"
        raise UsageError(
            f"--per-target needs a score for every pair of a train and a target row, and {name} {has}",
            fix="--method ip, or another that measures a direction (see: influence methods)",
        )
    if name in run.values:
        how = "--relative" if run.spec.relative else "ip.normalise=cosine"
        raise UsageError(
            f"scores of pairs are not divided by the size of a row's own gradient, as {how} asks for",
            fix=f"leave {how} out, or --per-target",
        )
    if type(run.methods[name]).score is not Linear.score:  # pairs are products of gradients, and of nothing else
        what = f"--per-target has products of gradients, and {name} makes its scores in a way of its own"
        raise UsageError(what, fix="--method ip")
    others = [o for o in run.objectives if o != OBJECTIVE]
    if others:
        raise UsageError(
            f"--per-target is about the loss of each target row, and {', '.join(others)} is about all of them together",
            fix=f"--objective {OBJECTIVE}",
        )
    if run.spec.rows is not None:
        _check_rows(run, name)
    return name


def _check_rows(run: Run, name: str) -> None:
    """Refuse methods whose scores the stored rows do not give."""
    rows, members = run.spec.rows, run.members_of[name]
    if len(members) > 1 or any(not m.plain or m.checkpoint != run.checkpoint for m in members):
        raise UsageError(
            f"--rows {rows} stores gradients at the checkpoint, and {name} takes them where parameters are dropped "
            "or trained further, or at other checkpoints",
            fix="leave --rows out, or take --method ip",
        )
    whole = rows == "full" or (rows == "last" and run.spec.params == "last")
    if run.methods[name].fitted_curvature and not whole:
        stored = "sketches" if rows == "sketch" else "those of the head alone"
        raise UsageError(
            f"{name} turns whole gradients into others, and --rows {rows} stores {stored}",
            fix="--rows full, or leave --rows out" + (", or add --params last" if rows == "last" else ""),
        )


def per_target(run: Run, session: Session, top: int = TOP) -> tuple[pa.Table, Run]:
    """For every target row up to ``top`` rows of each side, the most extreme first.

    Columns: target_id, target_row_key, target_label, rank (from 1), side (helpful or harmful), id, row_key, label and
    score, and from sketches ``standard_error``, the most that the score's may be.  A side holds rows of its own sign
    alone: there are fewer where fewer help, or harm.  The run is returned without rows that turned out to be unusable.
    """
    name = check_per_target(run, top)
    if any(ensemble.decided is None for ensemble in run.ensembles.values()):
        run, _ = fill(run, session)  # how many members there are is decided by the scores for all target rows
    target, train, missing = run.target, run.train, _missing(run, session, name, top)
    if len(missing):
        # one batch, or so few rows, take no longer than their timing
        timed = len(run.train) > max(FEW, session.batch_size(require_model(run)[0]))
        plan = describe(run, session, name, top, len(missing), timed)
        for text in filter(None, (sentence(plan), hint(run, session, plan))):
            session.listener.note(text)
        run, train = _compute(run, session, name, top)
    stored = _folder(run, session, name, top, train).read(target.row_keys)
    _warn(run, session, train, stored["bad"], stored["places"])
    table = _table(target, train, stored)
    bad = int(stored["bad"][:, 0].max(initial=0))
    about = {
        "method": method_is(run, name),
        "top": top,
        **_rows_said(run, session, name, table),
        "non_finite_rows": bad,
    }
    said = {**provenance_of(run, session, "per-target"), "kind": "signed", "per_target": about}
    return with_provenance(table, said), run


def _compute(run: Run, session: Session, name: str, top: int) -> tuple[Run, Rows]:
    """Find and store what is missing, block by block; returns the run, and the train rows that it is of."""
    gradients = None if run.spec.rows is None else open_rows(run, session)
    run = run if gradients is None else gradients.run
    folder, train, missing = _folder(run, session, name, top, run.train), run.train, _missing(run, session, name, top)

    def keep(block: Rows, found: TopK, bad: NDArray[np.int64], more: dict[str, NDArray[Any]]) -> None:
        values = {"places": found.places, "scores": found.scores, "bad": bad, **more}
        folder.write(block.row_keys, {"payload_keys": block.payload_keys, **values})

    if gradients is None:
        run = tangent_pass(run, session, name, missing, top, keep)
    else:
        product_pass(run, session, name, gradients, missing, top, keep)
    if not is_exact(run):
        agreement_of_pairs(run, session, name, True, gradients)
    return run, train


def describe_per_target(run: Run, session: Session, top: int = TOP) -> dict[str, Any]:
    """The plan as plain values: target rows stored and to compute, blocks, passes, seconds and memory."""
    name = check_per_target(run, top)
    return describe(run, session, name, top, len(_missing(run, session, name, top)))


def _folder(run: Run, session: Session, name: str, top: int, train: Rows) -> ShardFolder:
    """The shards of what was found, by target row; named by all that decides it, the order of the train rows too.

    Both ways are exact but for sketches, and share it.
    """
    members, params, how, sketch = run.members_of[name], run.spec.params, None, None
    if run.methods[name].fitted_curvature:
        factors = [f for m in members for f in (names.factor_of(run, at) for at in names.factors(run, name, m))]
        how = {"name": name, **run.solvers[name].describe(), "factors": factors}
    if run.spec.rows is not None:
        request = row_request(run, session)
        params, sketch = request.params, None if request.sketch_dim is None else [request.sketch_dim, request.seed]
    about: dict[str, Any] = {"params": params, "loss": run.loss_name, "top": top, "sketch": sketch}
    weights = [m.weight for m in members]
    if set(weights) != {1.0}:
        about |= {"weights": weights, "summed": is_summed(run.methods[name])}
    named = fingerprint(
        "top-rows", 2, members=[m.name for m in members], method=how, train=digest_in_order(train.row_keys), **about
    )
    assert run.model is not None
    of = {"model": run.model.as_dict(), "precision": run.spec.precision, "value": {"value": f"top {top} by {name}"}}
    return session.store.folder("top_rows", named, {**about, **of})


def _missing(run: Run, session: Session, name: str, top: int) -> Rows:
    """Distinct target rows that nothing is stored for, in order."""
    keys = run.target.row_keys
    distinct = np.zeros(len(keys), dtype=bool)
    distinct[unique(keys)] = True
    return run.target.take(distinct & _folder(run, session, name, top, run.train).missing(keys))


def _table(target: Rows, train: Rows, stored: dict[str, NDArray[Any]]) -> pa.Table:
    """Places and scores [m, 2, K] as rows."""
    there = stored["places"] != NONE
    v, side, rank = np.nonzero(there)
    row = stored["places"][there]
    shown, names = train.manifest.label_kind.shown, train.manifest.classes
    columns = {
        "target_id": pa.array(target.ids, pa.string()).take(pa.array(v)),
        "target_row_key": as_arrow(target.row_keys[v]),
        "target_label": shown(target.labels[v], names),
        "rank": pa.array(rank + 1),
        "side": pa.array(SIDES, pa.string()).take(pa.array(side)),
        "id": pa.array(train.ids, pa.string()).take(pa.array(row)),
        "row_key": as_arrow(train.row_keys[row]),
        "label": shown(train.labels[row], names),
        "score": pa.array(stored["scores"][there]),
    }
    if "errors" in stored:
        columns["standard_error"] = pa.array(stored["errors"][there])
    return pa.table(columns)


def _rows_said(run: Run, session: Session, name: str, table: pa.Table) -> dict[str, Any]:
    """For provenance: by which gradients, whether exactly, and how large errors are; said too."""
    request = None if run.spec.rows is None else row_request(run, session)
    about = {
        "rows": run.spec.rows,
        "params": run.spec.params if request is None else request.params,
        "exact": is_exact(run),
    }
    if about["params"] != run.spec.params:
        session.listener.note("scores are of the head's parameters alone (--rows last), not of all")
    if about["exact"]:
        return about
    said, measured = list[str](), agreement_of_pairs(run, session, name, False)
    if measured is not None and measured["rank_correlation"] is not None:
        of = f"{measured['train_rows']:,} train rows for {measured['target_rows']} target rows"
        said.append(f"rank correlation {measured['rank_correlation']:.3f} with exact scores of {of}")
    if request is not None:
        error, score = (table.column(n).to_numpy() for n in ("standard_error", "score"))
        share = float(np.median(error / np.abs(score))) if len(score) else None
        about |= {"sketch_dim": request.sketch_dim, "median_relative_error": share}
        if share is not None:
            said.append(f"standard errors of those listed are at most {share:.0%} of them in the median")
    way = (
        "from sketches (without --rows they are exact)"
        if request is not None
        else "in bf16 (--precision fp32 is exact)"
    )
    session.listener.note(f"scores are estimates {way}: {'; '.join(said)}")
    return {**about, "against_exact": measured}


def _warn(run: Run, session: Session, train: Rows, bad: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    """Rows that are not finite, and target rows that nothing helps or harms."""
    count = int(bad[:, 0].max(initial=0))
    if count:
        worst = bad[bad[:, 0].argmax(), 1:]
        named = ", ".join(train.ids[k] for k in worst[worst >= 0].tolist())
        session.listener.warn(f"{count} rows have a non-finite score and are never ranked: {named}")
    empty = np.flatnonzero((places == NONE).all(axis=(1, 2)))
    if len(empty):
        named = ", ".join(run.target.ids[k] for k in empty[:5].tolist())
        session.listener.warn(f"no row helps or harms {len(empty)} target rows, every score is 0: {named}")
