"""What each target row has to do with the scores of a few train rows: the parts that these scores are sums of.

    s_i = (1/m) sum_t < grad l_i, P grad l_t >

for a method with directions under the objective utility.  A part below 0: training on row i raises the loss of target
row t.  ``per_target`` has the same numbers for all train rows and few target rows; here few train rows meet all target
rows, so that where P is symmetric the train rows' gradients are the directions, and where there is no P the products of
gradients are taken layer by layer (``engines.pair_products``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.errors import ModelError
from influence_cli.methods.protocol import Linear, times_the_mean, weighted_mean
from influence_cli.stages.grads.member_model import MemberModel, Models
from influence_cli.stages.run.curvature_plan import parameter_count
from influence_cli.stages.run.run import Run, require_model
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.per_target.tangents import DIRECTION_VALUES, TangentRun, block_size
from influence_cli.stages.score.stored import StoredRows
from influence_cli.store.shards import positions

if TYPE_CHECKING:
    from influence_cli.engines.pair_products import PairProducts

Floats = NDArray[np.float64]
OBJECTIVE = "utility"  # the objective whose term of a target row is its own loss
SOLVED_AT_ONCE = 256  # most target rows whose directions are solved for together
HELD = 1 << 27  # most values of rows that are held: 512 MiB in float32


def why_no_parts(run: Run, method: str, objective: str | None) -> str | None:
    """Why a score is no sum over target rows that are told one by one, as a sentence; None where it is."""
    how = run.methods[method]
    if how.needs != "tangents":
        if not how.needs_target():
            return f"no target rows are listed: {method} is a value of the row itself and looks at none"
        return f"no target rows are listed: {method} looks at all of them together (--method ip tells them apart)"
    if type(how).score is not Linear.score:
        return f"no target rows are listed: {method} makes its scores in a way of its own"
    if objective != OBJECTIVE:
        return (
            f"no target rows are listed: {objective} is about all target rows together, and not about the loss of one"
        )
    if method in run.values and len(run.members_of[method]) > 1:
        return f"no target rows are listed: {method} divides each member's scores by a size of the row's gradient there"
    return None


def parts_by_target(run: Run, session: Session, method: str, rows: Rows) -> Floats:
    """Parts [k, m] of the scores of some train rows, which they sum to, by target row, in the score's unit.

    To be asked where ``why_no_parts`` gives none, and of rows with a finite score.

    Raises:
        ManifestError: the loss of a target row is not finite.
        ModelError: the model has no exact derivative.
    """
    how = run.methods[method]
    if not how.fitted_curvature:
        try:
            found = _by_products(run, session, method, rows)
        except ModelError as error:  # layers that do not give gradients: engines that need none
            session.listener.detail(f"products of row gradients are not taken by layer: {error.what}")
            found = _by_row_directions(run, session, method, rows)
    elif run.solvers[method].symmetric:
        found = _by_row_directions(run, session, method, rows)
    else:
        found = _by_target_directions(run, session, method, rows)
    return _divided(run, session, method, rows, found) / len(run.target)


def _divided(run: Run, session: Session, method: str, rows: Rows, found: Floats) -> Floats:
    """Over the size that the rows' scores are divided by, if any: of a method with one member."""
    if method not in run.values:
        return found
    stored, how = StoredRows(run, session, method), run.methods[method]
    (member,) = stored.members
    values = stored.values(member)
    assert values is not None
    own = values[positions(rows.row_keys, run.train.row_keys)]
    length = stored.length(member, OBJECTIVE) if how.of_unit_direction() else None
    return how.divided(found, np.repeat(own[:, None], found.shape[1], axis=1), length)


def _places(rows: Rows) -> dict[int, int]:
    return {int(row): k for k, row in enumerate(rows.index.tolist())}


def _by_row_directions(run: Run, session: Session, method: str, rows: Rows) -> Floats:
    """< P grad l_i, grad l_t >: train rows are the directions along which target rows' tangents are taken."""
    found, place = np.full((len(rows), len(run.target)), np.nan), _places(rows)
    targets, size = TangentRun(run, session, method, run.target), block_size(run, session, len(run.members_of[method]))
    with session.listener.progress("target rows for train rows", found.size, "pairs") as progress:
        for batch in session.rows(targets.model, rows, size, keep=False):
            here = np.array([place[int(row)] for row in batch.index], dtype=np.int64)
            for there, scores in targets.scores(targets.directions(rows.take(here), batch)):
                found[np.ix_(here, there)] = scores
                progress.advance(scores.size)
    return found


def _by_target_directions(run: Run, session: Session, method: str, rows: Rows) -> Floats:
    """< grad l_i, P grad l_t >: target rows are the directions, as for a table by target row."""
    found, place = np.full((len(rows), len(run.target)), np.nan), _places(run.target)
    trains, each = TangentRun(run, session, method, rows), len(run.members_of[method]) * parameter_count(run, session)
    size = int(np.clip(DIRECTION_VALUES // max(1, each), 1, SOLVED_AT_ONCE))
    with session.listener.progress("train rows for target rows", found.size, "pairs") as progress:
        for batch in session.rows(trains.model, run.target, size, keep=False):
            here = np.array([place[int(row)] for row in batch.index], dtype=np.int64)
            for there, scores in trains.scores(trains.directions(run.target.take(here), batch)):
                found[np.ix_(there, here)] = scores.T
                progress.advance(scores.size)
    return found


def _by_products(run: Run, session: Session, method: str, rows: Rows) -> Floats:
    """< grad l_i, grad l_t >, the mean over members, by layer."""
    models, members = Models(run, session), run.members_of[method]
    by_member = list[Floats]()
    pairs = len(members) * len(rows) * len(run.target)
    with session.listener.progress("target rows for train rows", pairs, "pairs") as progress:
        for member in members:
            by_member.append(_at_member(run, session, models.at(member), rows, progress.advance))
    weights = [member.weight for member in members]
    return times_the_mean(run.methods[method], weights) * weighted_mean(by_member, weights)


def _at_member(run: Run, session: Session, at: MemberModel, rows: Rows, done: Any) -> Floats:
    """At one member, with as many train rows held at a time as memory is given to."""
    from influence_cli.engines.pair_products import PairProducts

    found, place = np.full((len(rows), len(run.target)), np.nan), _places(rows)
    products, held = PairProducts(at.exact, run.row_loss), list[int]()
    size = int(np.clip(HELD // max(1, parameter_count(run, session)), 1, session.batch_size(run.model)))

    def meet() -> None:
        for there, values in _with_targets(run, session, at, products):
            found[np.ix_(held, there)] = values.T
            done(values.size)
        products.drop()
        held.clear()

    for batch in session.rows(require_model(run)[0], rows, size, keep=False):
        products.hold(batch.on(at.exact), batch.labels_on(at.exact))
        held += [place[int(row)] for row in batch.index]
        if products.values >= HELD:
            meet()
    if held:
        meet()
    return found


def _with_targets(run: Run, session: Session, at: MemberModel, products: PairProducts) -> Any:
    """(places of target rows [b], products [b, held]), batch by batch."""
    import torch

    from influence_cli.engines.batch_size import Parts
    from influence_cli.engines.direction import not_finite

    memory, place = Parts(session.listener.warn), _places(run.target)
    for batch in session.rows(require_model(run)[0], run.target, session.batch_size(run.model), keep=False):
        x: Any = batch.on(at.exact)
        y = batch.labels_on(at.exact)
        values, _ = memory.run(lambda some, x=x, y=y: (products.of(x[some], y[some]), []), torch.arange(len(y)))
        bad = torch.nonzero(~torch.isfinite(values).all(1)).flatten()
        if len(bad):
            raise not_finite(run.target, int(batch.index[int(bad[0])]))
        yield np.array([place[int(row)] for row in batch.index], dtype=np.int64), values.cpu().numpy()
