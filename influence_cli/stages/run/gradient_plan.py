"""Which rows' own gradients a run wants in the store, under what name, and which are missing.

Nothing here imports torch: a run whose every row is stored never does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_cli.data.manifest import Rows
from influence_cli.errors import UsageError
from influence_cli.stages.run.members import member_at
from influence_cli.stages.run.rates import is_measured, timing_key
from influence_cli.stages.run.run import Member, Run
from influence_cli.stages.run.session import Session
from influence_cli.store import GradientFolder, Keys, fingerprint
from influence_cli.store.keys import taken
from influence_cli.store.shards import unique

GIB = 1 << 30
AT_ONCE = 1 << 25  # most values that a batch of rows has in memory
DEFAULT = "sketch"


@dataclass(frozen=True)
class RowRequest:
    """Row gradients at one member: whole, of the head alone, or sketched."""

    rows: str
    member: Member
    params: str
    sketch_dim: int | None  # None: whole
    seed: int

    def name(self, run: Run) -> str:
        """The name of their folder; ``last`` is ``full`` in the head's parameters, and shares it."""
        sketch = None if self.sketch_dim is None else {"dim": self.sketch_dim, "seed": self.seed, "revision": 1}
        about = {"member": self.member.name, "params": self.params, "loss": run.loss_name}
        return fingerprint("row-gradients", 2, sketch=sketch, **about)

    def folder(self, run: Run, session: Session) -> GradientFolder:
        """Where they are stored."""
        assert run.model is not None
        about = {"rows": self.rows, "params": self.params, "sketch_dim": self.sketch_dim, "loss": run.loss_name}
        of = {"model": run.model.as_dict(), "member": self.member.as_dict(), "precision": run.spec.precision}
        return session.store.gradients(self.name(run), {**about, **of})


@dataclass(frozen=True)
class RowWork:
    """What a request lacks: row keys of training and of target rows."""

    request: RowRequest
    folder: GradientFolder
    train: Keys
    target: Keys
    wanted: int  # distinct rows, stored or not

    @property
    def rows(self) -> int:
        """Rows to compute."""
        return len(self.train) + len(self.target)


def row_request(run: Run, session: Session, rows: str | None = None, member: Member | None = None) -> RowRequest:
    """Row gradients of a kind (the run's own, else sketched) at a member (the checkpoint itself).

    Raises:
        UsageError: the run has no model.
    """
    if run.model is None:
        raise UsageError("these methods need no model, so there are no gradients", fix="ask for another --method")
    kind, spec = rows or run.spec.rows or DEFAULT, run.spec
    at = member_at(run, session.runtime) if member is None else member
    dim = spec.sketch_dim if kind == "sketch" else None
    return RowRequest(kind, at, "last" if kind == "last" else spec.params, dim, spec.seed)


def missing_rows(run: Run, session: Session, request: RowRequest, target: bool = True) -> RowWork:
    """What the store lacks; a row that is a training and a target row is taken once."""
    folder = request.folder(run, session)
    train, others = run.row_keys, _distinct(run.target) if target else run.row_keys[:0]
    both = np.concatenate([train, others])
    first = np.zeros(len(both), dtype=bool)
    first[unique(both)] = True
    lacking = first & folder.missing(both)
    mine, others = both[: len(train)][lacking[: len(train)]], others[lacking[len(train) :]]
    return RowWork(request, folder, mine, others, int(first.sum()))


def _distinct(rows: Rows) -> Keys:
    keys = rows.row_keys
    return taken(keys, unique(keys))


def row_bytes(run: Run, dim: int) -> int:
    """Bytes of one row with ``dim`` values, but for its few norms."""
    return dim * (8 if run.spec.precision == "fp64" else 4) + 2 * 16 + 8


def check_size(run: Run, session: Session, work: RowWork, dim: int) -> None:
    """Refuse more bytes than the limit allows.

    Raises:
        UsageError: names what takes less.
    """
    reason = refused(run, session, work, dim)
    if reason is not None and work.rows:
        raise UsageError(reason[0], fix=reason[1])


def refused(run: Run, session: Session, work: RowWork, dim: int) -> tuple[str, str] | None:
    """Why the rows are too many bytes and what takes less, or None."""
    size, limit = work.wanted * row_bytes(run, dim) / GIB, session.runtime.rows_limit
    if size <= limit:
        return None
    request = work.request
    what = f"gradients of {work.wanted:,} rows in {dim:,} values take {size:,.2f} GiB, above {limit:g} GiB"
    fixes = [f"--rows-limit {int(size) + 1}"]
    if request.sketch_dim is not None:
        fixes.insert(0, f"a smaller --sketch-dim (about {max(1, int(limit / size * dim)):,})")
    else:
        sketched = work.wanted * row_bytes(run, min(dim, run.spec.sketch_dim)) / GIB
        if request.params != "last":
            fixes.insert(0, "--rows last, fewer --params")
        if sketched < size:
            fixes.insert(0, f"--rows sketch ({sketched:,.2f} GiB)")
    return what, "pass " + ", or ".join(fixes)


def describe_rows(run: Run, session: Session, estimated: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """What the run was asked to store, as plain values: rows stored and to compute, values a row, bytes and seconds.

    ``estimated`` has ``dim`` and ``rate`` for what the store does not know; a sketch's dimension is at most what was
    asked for.
    """
    if run.spec.rows is None:
        return []
    request = row_request(run, session)
    work, guess = missing_rows(run, session, request), estimated or {}
    dim = guess.get("dim") if work.folder.layout is None else work.folder.layout["dim"]
    key = rate_key(run, session, request)
    known = session.store.timing(key)
    measured = known if is_measured(session, key) else None
    rate = guess.get("rate", known) if measured is None else measured
    why = None if dim is None else refused(run, session, work, dim)
    return [
        {
            "rows": request.rows,
            "params": request.params,
            "name": request.name(run),
            "values": dim,
            "rows_stored": work.wanted - work.rows,
            "rows_to_compute": work.rows,
            "train_rows_to_compute": len(work.train),
            "target_rows_to_compute": len(work.target),
            "seconds": 0.0 if work.rows == 0 else None if rate is None else round(work.rows * rate, 1),
            "seconds_are": "estimated" if work.rows and measured is None else "measured",
            "bytes": None if dim is None else work.rows * row_bytes(run, dim),
            "refused": None if why is None else "; ".join(why),
        }
    ]


def rate_key(run: Run, session: Session, request: RowRequest) -> str:
    """Under what name the measured seconds per row are kept."""
    return timing_key(run, session, f"rows {request.params} {request.sketch_dim or 'whole'}")
