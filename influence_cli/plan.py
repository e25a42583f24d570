"""What a run needs and what of it is stored: members, directions, rows; the plan that ``--dry-run`` prints.

Nothing here imports torch: a run whose every row is stored never does.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.manifest import Manifest, Rows, open_manifest, without_overlap
from influence_cli.methods import make_methods
from influence_cli.methods.protocol import Linear, Method
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.dropout import Dropout
from influence_cli.model.spec import ModelSpec, resolve_model
from influence_cli.objectives import make_objectives
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.store import Keys, Store, fingerprint
from influence_cli.store.shards import ShardFolder, unique

HALF_SAMPLE = 2000  # training rows on which the scores of two halves of the target are compared
MAX_OVERLAP = 0.01  # share of target rows that may be training rows before the run is refused


@dataclass(frozen=True)
class Member:
    """A point where gradients are taken, under the fingerprint of everything that defines it."""

    name: str
    dropout: Dropout | None


@dataclass(eq=False)
class Job:
    """A run, resolved: rows, model, methods, and the names of everything the store should hold for it."""

    inputs: Inputs
    spec: GradSpec
    runtime: Runtime
    manifest: Manifest
    train: Rows
    target: Rows
    overlap: int
    model: ModelSpec | None
    checkpoint: Checkpoint | None
    store: Store
    methods: dict[str, Method]
    objectives: dict[str, Any]
    listener: Listener = SILENT
    method_members: dict[str, list[Member]] = field(default_factory=dict)
    _folders: dict[str, ShardFolder] = field(default_factory=dict)

    @property
    def members(self) -> list[Member]:
        """Every distinct member, in order of first use."""
        return list({m.name: m for ms in self.method_members.values() for m in ms}.values())

    @property
    def payload_keys(self) -> Keys:
        """Distinct payload keys of the training rows [n', 16], in order."""
        keys = self.train.payload_keys
        return keys[unique(keys)]

    def direction(self, member: Member, objective: str, half: bool = False) -> str:
        """Name of q at a member; with ``half`` the mean over the even buckets of target rows alone."""
        return fingerprint(
            "direction",
            1,
            member=member.name,
            objective={"name": objective, **asdict(self.objectives[objective])},
            target=self.target.fingerprint(),
            params=self.spec.params,
            loss=self.spec.loss,
            half=half,
        )

    def outputs(self, member: Member) -> ShardFolder:
        """The shards of a member's logits."""
        if member.name not in self._folders:
            assert self.model is not None
            about = {
                "model": self.model.as_dict(),
                "member": asdict(member),
                "precision": self.spec.precision,
            }
            self._folders[member.name] = self.store.outputs(member.name, about)
        return self._folders[member.name]

    def tangents(self, direction: str) -> ShardFolder:
        """The shards of the tangents along a direction."""
        if direction not in self._folders:
            about = {"params": self.spec.params, "objectives": list(self.objectives), "direction": direction}
            self._folders[direction] = self.store.tangents(direction, about)
        return self._folders[direction]

    def forget_folders(self) -> None:
        """Read the store anew after it was written."""
        self._folders.clear()

    def linear_members(self) -> list[Member]:
        """Members at which directions are needed."""
        needing = [ms for n, ms in self.method_members.items() if self.methods[n].needs == "tangents"]
        return list({m.name: m for ms in needing for m in ms}.values())

    def half_member(self) -> Member | None:
        """The member at which the two halves of the target are compared: the first (members are nearly alike)."""
        return next(iter(self.linear_members()), None)

    def half_sample(self) -> Keys:
        """Up to 2,000 distinct training payloads, chosen by their keys: stable as rows come and go."""
        keys = self.payload_keys
        order = np.lexsort(tuple(keys[:, c] for c in range(keys.shape[1] - 1, -1, -1)))
        return keys[order[:HALF_SAMPLE]]


@dataclass(frozen=True)
class Work:
    """What is missing at one member: directions to measure and, for each folder, keys to compute."""

    member: Member
    directions: tuple[str, ...]  # objectives whose q must be measured
    outputs: Keys
    tangents: dict[str, Keys]  # direction name -> keys
    halves: dict[str, Keys]  # half-direction name -> keys

    @property
    def rows(self) -> int:
        """Distinct training rows to run through the model."""
        stacked = np.concatenate([self.outputs, *self.tangents.values(), *self.halves.values()])
        return len(unique(stacked))

    @property
    def nothing(self) -> bool:
        """Whether the store holds all of it."""
        return not self.directions and self.rows == 0


def open_job(inputs: Inputs, spec: GradSpec, runtime: Runtime, listener: Listener = SILENT) -> Job:
    """Read manifest, target, checkpoint and settings, and name everything.

    Raises:
        InfluenceError: something in them cannot work.
    """
    manifest = open_manifest(inputs.manifest, inputs.label)
    train = manifest.rows("train")
    if len(train) == 0:
        raise ManifestError("no train rows", where=inputs.manifest, fix="set column split to train for some rows")
    methods = make_methods(spec)
    objectives = make_objectives(spec)
    store = Store(_store_root(runtime), listener)
    model = checkpoint = None
    target, overlap = manifest.rows("val"), manifest.rows("val").take(np.array([], dtype=np.int64))
    if any(m.needs != "nothing" for m in methods.values()):
        model, checkpoint = resolve_model(inputs, manifest, store)
        _check_labels(train, model.num_classes, inputs.label)
    if any(m.needs == "tangents" for m in methods.values()):
        target, overlap = _target(inputs, manifest, train, listener)
        assert model is not None
        _check_labels(target, model.num_classes, inputs.label)
    job = Job(
        inputs, spec, runtime, manifest, train, target, len(overlap), model, checkpoint, store, methods, objectives,
        listener,
    )  # fmt: skip
    for name, method in methods.items():
        points = method.points(spec.seed, spec.params) if isinstance(method, Linear) else [None]
        if method.needs != "nothing":
            job.method_members[name] = [_member(job, p) for p in points]
    return job


def _store_root(runtime: Runtime) -> Path:
    if runtime.store is not None:
        return Path(runtime.store)
    root = tempfile.mkdtemp(prefix="influence-store-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)


def _member(job: Job, dropout: Dropout | None) -> Member:
    assert job.model is not None
    assert job.checkpoint is not None
    name = fingerprint(
        "member",
        1,
        weights=job.checkpoint.digest,
        model=job.model.as_dict(),
        precision=job.spec.precision,
        dropout=None if dropout is None else dropout.describe(),
    )
    return Member(name, dropout)


def _target(inputs: Inputs, manifest: Manifest, train: Rows, listener: Listener) -> tuple[Rows, Rows]:
    """The target rows, less those that are training rows, and the latter."""
    if inputs.target is None:
        target, where = manifest.rows("val"), f"{inputs.manifest}, split val"
    else:
        other, where = open_manifest(inputs.target, inputs.label), inputs.target
        target = other.rows("val") if (other.splits == "val").any() else other.all_rows()
    if len(target) == 0:
        raise ManifestError("no target rows", where=where, fix="set split to val for some rows, or pass --target PATH")
    kept, overlap = without_overlap(target, train)
    if len(overlap):
        names = ", ".join(overlap.ids[:5])
        share = len(overlap) / len(target)
        if share > MAX_OVERLAP and not inputs.allow_overlap:
            raise ManifestError(
                f"{len(overlap)} of {len(target)} target rows are training rows (same payload): {names}",
                where=where,
                fix="take them out of one of the two, or pass --allow-overlap to leave them out of the target",
            )
        listener.warn(f"{len(overlap)} target rows are training rows and were left out of the target: {names}")
    if len(kept) == 0:
        raise ManifestError("every target row is a training row", where=where, fix="give target rows of their own")
    return kept, overlap


def _check_labels(rows: Rows, num_classes: int, label: str) -> None:
    labels = rows.labels
    if len(labels) and labels.max() >= num_classes:
        worst = int(np.argmax(labels >= num_classes))
        raise ManifestError(
            f"label {labels[worst]} is outside the model's {num_classes} classes (0 to {num_classes - 1})",
            where=f"{rows.manifest.source}, row id={rows.ids[worst]}, column {label}",
            fix="correct the label, or use a checkpoint with that many classes",
        )


def missing_work(job: Job) -> list[Work]:
    """What the store lacks, member by member."""
    if not job.method_members:
        return []
    keys = job.payload_keys
    linear = {m.name for m in job.linear_members()}
    half_at = job.half_member()
    work: list[Work] = []
    for member in job.members:
        measure: list[str] = []
        tangents: dict[str, Keys] = {}
        halves: dict[str, Keys] = {}
        for objective in job.objectives if member.name in linear else ():
            q = job.direction(member, objective)
            meta = job.store.direction_meta(q)
            tangents[q] = keys[job.tangents(q).missing(keys)]
            if member == half_at and (meta is None or meta["halves"]):
                half, sample = job.direction(member, objective, half=True), job.half_sample()
                halves[half] = sample[job.tangents(half).missing(sample)]
                if len(halves[half]) and job.store.direction_meta(half) is None:
                    meta = None
            if meta is None:
                measure.append(objective)
        lacking = keys[job.outputs(member).missing(keys)]
        work.append(Work(member, tuple(measure), lacking, tangents, halves))
    return work


def describe_plan(job: Job, work: list[Work]) -> dict[str, Any]:
    """The plan as plain values: per member what is stored and what will run and why; passes, seconds, bytes."""
    n = len(job.payload_keys) if job.method_members else 0
    classes = job.model.num_classes if job.model else 0
    itemsize = 8 if job.spec.precision == "fp64" else 4
    steps: list[dict[str, Any]] = []
    for position, w in enumerate(work):
        directions = len(w.tangents) + len(w.halves)
        cells = len(w.outputs) + sum(len(k) for k in (*w.tangents.values(), *w.halves.values()))
        rate = job.store.timing(timing_key(job, bool(w.tangents)))
        forward = (1 + 2 * len(w.tangents)) if w.tangents else 1
        steps.append(
            {
                "member": position,
                "dropout": None if w.member.dropout is None else w.member.dropout.rate,
                "target_rows_to_pass": len(job.target) if w.directions else 0,
                "rows": n,
                "rows_stored": n - w.rows,
                "rows_to_compute": w.rows,
                "why": _why(w, n),
                "forward_passes": 0 if w.rows == 0 else forward,
                "directions": directions,
                "seconds": None if rate is None else round(rate * w.rows, 1),
                "bytes": cells * (16 + classes * itemsize),
            }
        )
    seconds = [s["seconds"] for s in steps if s["rows_to_compute"]]
    return {
        "schema_version": 1,
        "store": str(job.store.root) if job.runtime.store else "temporary, thrown away at the end",
        "methods": list(job.methods),
        "objectives": list(job.objectives),
        "train_rows": len(job.train),
        "target_rows": len(job.target),
        "steps": steps,
        "rows_to_compute": sum(s["rows_to_compute"] for s in steps),
        "seconds": None if any(s is None for s in seconds) else round(sum(seconds), 1),
        "bytes": sum(s["bytes"] for s in steps),
    }


def timing_key(job: Job, tangents: bool) -> str:
    """Under what name the measured seconds per row are kept."""
    assert job.model is not None
    shape = "x".join(str(s) for s in job.model.shape)
    kind = job.spec.params if tangents else "outputs"
    return f"{job.model.name} {shape} {kind} {job.spec.precision} {job.runtime.device}"


def _why(work: Work, n: int) -> str:
    if work.nothing:
        return "all stored"
    if work.directions and work.rows == n:
        return "new direction (checkpoint, target rows, objective or settings not seen before)"
    if work.directions:
        return "the direction's file is missing"
    if work.rows == n:
        return "nothing of these rows is stored"
    return "rows that the store has not seen"


def require_model(job: Job) -> tuple[ModelSpec, Checkpoint]:
    """The run's model and checkpoint, where its methods need one.

    Raises:
        UsageError: no method of the run needs a model.
    """
    if job.model is None or job.checkpoint is None:
        raise UsageError("these methods need no model", fix="ask for another method, such as ip")
    return job.model, job.checkpoint


def index_by_key(rows: Rows) -> dict[bytes, int]:
    """First manifest row of every distinct payload."""
    first: dict[bytes, int] = {}
    for row, key in zip(rows.index.tolist(), rows.payload_keys, strict=True):
        first.setdefault(key.tobytes(), row)
    return first


def key_list(keys: NDArray[np.uint8]) -> list[bytes]:
    """Keys [n, 16] as byte strings."""
    return [k.tobytes() for k in keys]
