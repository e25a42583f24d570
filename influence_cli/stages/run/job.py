"""A run, resolved: rows, model, methods, members, and the names of everything the store should hold for it.

Nothing here imports torch: a run whose every row is stored never does.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.open import open_manifest
from influence_cli.data.row_checks import BadRow
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.methods import make_methods
from influence_cli.methods.protocol import Linear, Method, Preconditioned, RowValue
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.dropout import Dropout
from influence_cli.model.losses import RowLoss, loss_of
from influence_cli.model.spec import ModelSpec
from influence_cli.objectives import make_objectives
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.run.fit_set import FitSet, open_fit_set, with_trained_l2
from influence_cli.stages.run.members import Ensemble, open_ensembles
from influence_cli.stages.run.objective_inputs import Groups, attack_name, described, target_groups
from influence_cli.stages.run.resolve import resolve_model
from influence_cli.stages.run.row_values import needed_values, solver_of, value_name
from influence_cli.stages.run.target import target_rows
from influence_cli.stages.run.usable_rows import bad_rows_of, check_classes, usable, usable_now
from influence_cli.store import Keys, Store, fingerprint, open_store
from influence_cli.store.shards import ShardFolder, key_order, unique

if TYPE_CHECKING:
    from torch import Tensor

    from influence_cli.model.decoded import DecodedByKey

HALF_SAMPLE = 500  # training rows on which the scores of two halves of the target are compared


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
    ensembles: dict[str, Ensemble] = field(default_factory=dict)  # methods whose members decide how many there are
    warned: set[str] = field(default_factory=set)  # accuracies already said to be at chance
    fit: FitSet | None = None  # where a method fits curvature
    groups: dict[str, Groups] = field(default_factory=dict)  # of the target rows, by objective that is about groups
    held: DecodedByKey | None = None  # decoded rows, while several passes need them
    few: Tensor | None = None  # decoded rows from all over the data, on which a point's derivatives are checked
    values: dict[str, RowValue] = field(default_factory=dict)  # by method that needs a value of rows' own gradients
    solvers: dict[str, Preconditioned] = field(default_factory=dict)  # by method: itself, or what its value is by
    _folders: dict[str, ShardFolder] = field(default_factory=dict)

    @property
    def members(self) -> list[Member]:
        """Every distinct member, in order of first use."""
        return list({m.name: m for ms in self.method_members.values() for m in ms}.values())

    @functools.cached_property
    def payload_keys(self) -> Keys:
        """Distinct payload keys of the training rows [n', 16], in order."""
        keys = self.train.payload_keys
        return keys[unique(keys)]

    @functools.cached_property
    def row_loss(self) -> RowLoss:
        """The loss of a row: cross-entropy, or that of the user's own task."""
        return loss_of(None if self.model is None else self.model.task)

    @functools.cached_property
    def loss_name(self) -> str:
        """What the loss is called in a fingerprint."""
        return self.spec.loss if self.model is None else self.row_loss.name(self.model.num_classes)

    @property
    def left_out(self) -> dict[str, list[BadRow]]:
        """Rows that cannot be used, by manifest."""
        return bad_rows_of(self.manifest, self.target.manifest)

    def leave_out(self, bad: list[BadRow]) -> None:
        """Go on without training rows that cannot be used; they are listed in ``manifest.bad``."""
        if bad:
            self.manifest = self.manifest.without(bad)
            self.train = self.manifest.rows("train")
            self.__dict__.pop("payload_keys", None)
            if len(self.train) == 0:
                raise ManifestError("no train row can be used", where=self.manifest.source, fix="see what was skipped")

    def attack(self, objective: str) -> str | None:
        """Name of the attacked target rows that an objective is measured on; None where they are as they are."""
        weights = "" if self.checkpoint is None else self.checkpoint.digest
        return attack_name(self.objectives[objective], self.spec, self.model, weights, self.loss_name)

    def attacks(self, objective: str) -> ShardFolder:
        """The shards of an objective's attacked target rows."""
        name = self.attack(objective)
        assert name is not None
        if name not in self._folders:
            assert self.model is not None
            how = self.objectives[objective].describe(self.model, self.spec.seed)
            about = {"model": self.model.as_dict(), "precision": self.spec.precision, "attack": how}
            self._folders[name] = self.store.attacks(name, about)
        return self._folders[name]

    def direction(self, member: Member, objective: str, half: bool = False) -> str:
        """Name of q at a member; with ``half`` the mean over the even buckets of target rows alone."""
        return fingerprint(
            "direction",
            2,  # 1 could be of train rows, where these and the target rows were of one type in memory
            member=member.name,
            objective=described(
                objective, self.objectives[objective], self.groups.get(objective), self.attack(objective)
            ),
            target=self.target.fingerprint(),
            params=self.spec.params,
            loss=self.loss_name,
            half=half,
        )

    def along(self, method: str, member: Member, objective: str, half: bool = False) -> str:
        """Name of the direction that a method's tangents run along: q itself, or u = P q where P is fitted."""
        q, p = self.direction(member, objective, half), self.methods[method]
        if not isinstance(p, Preconditioned):
            return q
        named = {"name": method, **p.describe()}
        return fingerprint("preconditioned", 1, direction=q, method=named, factor=self.factor(method, member))

    def factor(self, method: str, member: Member) -> str:
        """Name of what a method fits at a member on the run's fit set."""
        assert self.fit is not None
        return fingerprint("factor", 2, spec=self.factor_spec(method, member), fit=self.fit.fingerprint)

    def factor_spec(self, method: str, member: Member) -> str:
        """Name of all of that but the fit set."""
        about = {"member": member.name, "params": self.spec.params, "loss": self.spec.loss}
        return fingerprint("factor-spec", 1, fitted=self.solvers[method].fitted(), **about)

    def outputs(self, member: Member) -> ShardFolder:
        """The shards of a member's logits."""
        if member.name not in self._folders:
            assert self.model is not None
            about = {
                "model": self.model.as_dict(),
                "member": asdict(member),
                "precision": self.spec.precision,
            }
            # 1, the member's own name, could hold outputs of target rows under the keys of train rows
            name = fingerprint("outputs", 2, member=member.name)
            self._folders[member.name] = self.store.outputs(name, about)
        return self._folders[member.name]

    def tangents(self, direction: str) -> ShardFolder:
        """The shards of the tangents along a direction."""
        if direction not in self._folders:
            about = {"params": self.spec.params, "objectives": list(self.objectives), "direction": direction}
            self._folders[direction] = self.store.tangents(direction, about)
        return self._folders[direction]

    def row_values(self, method: str, member: Member) -> ShardFolder:
        """The shards of a method's values of rows at a member, by row key: the label is part of what they are of."""
        name, about = value_name(self, method, member)
        if name not in self._folders:
            assert self.model is not None
            of = {"model": self.model.as_dict(), "member": asdict(member), "precision": self.spec.precision}
            self._folders[name] = self.store.row_values(name, {**about, **of})
        return self._folders[name]

    def forget_folders(self) -> None:
        """Read the store anew after it was written."""
        self._folders.clear()

    @property
    def target_fingerprint(self) -> str | None:
        """Name of the target rows; None where no method of the run measures anything on them."""
        return self.target.fingerprint() if self.linear_members() else None

    def plain_member(self) -> Member:
        """The member whose loss, margin and accuracy are reported: the checkpoint itself where it is one."""
        return next((m for m in self.members if m.dropout is None), self.members[0])

    def linear_members(self) -> list[Member]:
        """Members at which directions are needed."""
        needing = [ms for n, ms in self.method_members.items() if self.methods[n].needs == "tangents"]
        return list({m.name: m for ms in needing for m in ms}.values())

    def methods_at(self, member: Member) -> list[str]:
        """Methods that need directions at a member, in order."""
        return [n for n, ms in self.method_members.items() if self.methods[n].needs == "tangents" and member in ms]

    def half_member(self) -> Member | None:
        """The member at which the two halves of the target are compared: the first (members are nearly alike)."""
        return next(iter(self.linear_members()), None)

    def half_method(self) -> str | None:
        """The method whose scores are compared: the first with directions, which is ``score``'s own if it has any."""
        return next((n for n in self.method_members if self.methods[n].needs == "tangents"), None)

    def half_sample(self) -> Keys:
        """Up to 500 distinct training payloads, chosen by their keys: stable as rows come and go."""
        keys = self.payload_keys
        order = key_order(keys)
        return keys[order[:HALF_SAMPLE]]


def open_job(
    inputs: Inputs, spec: GradSpec, runtime: Runtime, listener: Listener = SILENT, remember: bool = True
) -> Job:
    """Read manifest, target, checkpoint and settings, and name everything; a dry run remembers nothing.

    Raises:
        InfluenceError: something in them cannot work.
    """
    methods = make_methods(spec)
    objectives = make_objectives(spec)
    store = open_store(runtime.store, listener, remember)
    manifest = open_manifest(inputs.manifest, inputs.label, inputs.skip_bad, store.file_keys())
    if len(manifest.rows("train")) == 0:
        raise ManifestError("no train rows", where=manifest.source, fix="set column split to train for some rows")
    values, solvers = needed_values(methods, spec.relative), dict[str, Preconditioned]()
    model, checkpoint, fit, groups = None, None, None, dict[str, Groups]()
    if spec.rows is not None or any(m.needs != "nothing" for m in methods.values()):
        model, checkpoint = resolve_model(inputs, manifest, store, spec.precision)
        manifest = usable(manifest.rows("train"), model, inputs, store)
        check_classes(manifest, model)
    target, overlap = manifest.rows("val"), manifest.rows("val").take(np.array([], dtype=np.int64))
    rows_of_target = spec.rows is not None and (inputs.target is not None or len(target) > 0)
    if rows_of_target or any(m.needs == "tangents" for m in methods.values()):
        assert model is not None
        target, overlap = target_rows(inputs, manifest, listener, model, store)
        groups = target_groups(objectives, target, inputs, model, listener)
    for name, method in methods.items():
        solver = solver_of(name, method, values.get(name), spec)
        if solver is not None and model is not None and checkpoint is not None:
            if fit is None:
                manifest = usable_now(manifest.rows("train"), model, inputs).manifest  # curvature needs every row
                fit = open_fit_set(inputs, manifest.rows("train"), model, listener)
            solvers[name] = with_trained_l2(solver, name, checkpoint.locator, listener)
            methods[name] = solvers[name] if method is solver else method
    job = Job(
        inputs, spec, runtime, manifest, manifest.rows("train"), target, len(overlap), model, checkpoint, store,
        methods, objectives, listener, fit=fit, groups=groups, values=values, solvers=solvers,
    )  # fmt: skip
    for name, method in methods.items():
        points = method.points(spec.seed, spec.params) if isinstance(method, Linear) else [None]
        if method.needs != "nothing":
            job.method_members[name] = [member_at(job, p) for p in points]
    open_ensembles(job)
    return job


def member_at(job: Job, dropout: Dropout | None) -> Member:
    """The member at the checkpoint, or at a parameter-dropout copy of it."""
    assert job.model is not None
    assert job.checkpoint is not None
    name = fingerprint(
        "member",
        1,
        weights=job.checkpoint.digest,
        model=job.model.as_dict(),
        precision=_precision(job),
        dropout=None if dropout is None else dropout.describe(),
    )
    return Member(name, dropout)


def _precision(job: Job) -> str:
    """The precision as part of a name; bf16 rounds otherwise on another kind of device and in another engine."""
    if job.spec.precision != "bf16":
        return job.spec.precision
    kind = job.runtime.device.partition(":")[0]
    if kind == "auto":
        from influence_cli.model.build import device_of

        kind = device_of("auto").type
    return f"bf16, forward, {kind}"


def require_model(job: Job) -> tuple[ModelSpec, Checkpoint]:
    """The run's model and checkpoint, where its methods need one.

    Raises:
        UsageError: no method of the run needs a model.
    """
    if job.model is None or job.checkpoint is None:
        raise UsageError("these methods need no model", fix="ask for another method, such as ip")
    return job.model, job.checkpoint
