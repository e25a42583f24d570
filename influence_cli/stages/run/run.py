"""What a run is: rows, model, methods, objectives and members.

A run is frozen: leaving out rows or adding members makes another run.  It holds nothing of how it is carried out (see
``session``) and no name of anything in the store (see ``names``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from influence_cli.data.changed_texts import Changed
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.data.row_checks import BadRow
from influence_cli.errors import UsageError
from influence_cli.methods.bif import BIF
from influence_cli.methods.protocol import Facts, Growth, Method, RowValue
from influence_cli.methods.shapes.preconditioned import Preconditioned
from influence_cli.methods.stored import Member
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.model.losses import RowLoss, loss_of
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec, Inputs
from influence_cli.stages.run.backbone import Backbone
from influence_cli.stages.run.fit_set import FitSet
from influence_cli.stages.run.objective_inputs import Groups
from influence_cli.stages.run.usable_rows import bad_rows_of, usable_train_rows
from influence_cli.store import Keys
from influence_cli.store.keys import taken
from influence_cli.store.shards import key_order, unique

HALF_SAMPLE = 500  # training rows on which the scores of two halves of the target are compared


@dataclass(frozen=True)
class Ensemble:
    """A method whose members decide how many there are, and what they have decided."""

    growth: Growth
    every: tuple[Member, ...]  # the most that there can be
    decision: str  # its name in the store
    decided: Facts | None  # members, rows, what is known of their stability


@dataclass(frozen=True, eq=False)
class Run:
    """What is scored, for what, at which model and by which methods."""

    inputs: Inputs
    spec: GradSpec
    manifest: Manifest
    train: Rows
    target: Rows
    overlap: int  # target rows that were left out because they are training rows
    model: ModelSpec | None
    checkpoint: Checkpoint | None
    methods: dict[str, Method]
    objectives: dict[str, Any]
    fit: FitSet | None = None  # where a method fits curvature, or goes on training
    groups: dict[str, Groups] = field(default_factory=dict)  # of the target rows, by objective that is about groups
    changed: dict[str, Changed] = field(default_factory=dict)  # twins of target rows, by objective that is about pairs
    values: dict[str, RowValue] = field(default_factory=dict)  # by method that needs a value of rows' own gradients
    solvers: dict[str, Preconditioned] = field(default_factory=dict)  # by method: itself, or what its value is by
    members_of: dict[str, tuple[Member, ...]] = field(default_factory=dict)  # by method
    ensembles: dict[str, Ensemble] = field(default_factory=dict)  # by method whose members decide how many there are
    backbone: Backbone | None = None  # whose features methods look at, where it is another model than the run's
    smaller: tuple[int, ...] = ()  # further sizes at which features of images are taken
    maps: int = 0  # how many of the last maps are its features; 0: what its last layer is given
    headless: bool = False  # whether the checkpoint may be of another last layer, which is not looked at
    rows_as: ModelSpec | None = None  # what takes the rows with their labels, where no model is scored
    auto_because: str = ""  # why ``auto`` is a method of effects here, where it is one
    limits: dict[str, Any] | None = None  # that the plan was fitted into, where there are any
    given_up: tuple[dict[str, Any], ...] = ()  # for them: what, as it was asked for, and as it was taken

    @property
    def members(self) -> list[Member]:
        """Every distinct member, in order of first use."""
        return list({m.name: m for ms in self.members_of.values() for m in ms}.values())

    @functools.cached_property
    def payload_keys(self) -> Keys:
        """Distinct payload keys of the training rows [n', 16], in order."""
        return _distinct(self.train.payload_keys)

    @functools.cached_property
    def row_keys(self) -> Keys:
        """Distinct row keys of the training rows [n', 16], in order."""
        return _distinct(self.train.row_keys)

    @functools.cached_property
    def row_loss(self) -> RowLoss:
        """The loss of a row: cross-entropy, or that of the user's own task."""
        return loss_of(self.rows_as or self.model)

    @functools.cached_property
    def loss_name(self) -> str:
        """What the loss is called in a fingerprint."""
        return "cross-entropy" if self.model is None else self.row_loss.name(self.model.num_classes)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes: the manifest's, or where it has none those that the model was trained on."""
        return self.manifest.classes or (None if self.model is None else self.model.classes)

    @property
    def left_out(self) -> dict[str, list[BadRow]]:
        """Rows that cannot be used, by manifest."""
        return bad_rows_of(self.manifest, self.target.manifest)

    def without(self, bad: Sequence[BadRow]) -> Run:
        """The run without training rows that cannot be used; they are listed in ``manifest.bad``.

        Raises:
            ManifestError: no training row is left.
        """
        if not bad:
            return self
        manifest = self.manifest.without(bad)
        return replace(self, manifest=manifest, train=usable_train_rows(manifest))

    @functools.cached_property
    def samplers(self) -> dict[str, BIF]:
        """By method that draws parameters: itself."""
        return {name: cast("BIF", method) for name, method in self.methods.items() if method.needs == "traces"}

    @property
    def target_fingerprint(self) -> str | None:
        """Name of the target rows; None where no method of the run measures anything on them."""
        return self.target.fingerprint() if any(m.needs_target() for m in self.methods.values()) else None

    def plain_member(self) -> Member:
        """The member whose loss, margin and accuracy are reported: the checkpoint itself where it is one."""
        digest = None if self.checkpoint is None else self.checkpoint.digest
        plain = (m for m in self.members if m.plain and m.checkpoint.digest == digest)
        return next(plain, self.members[0])

    def linear_members(self) -> list[Member]:
        """Members at which directions are needed."""
        needing = [ms for n, ms in self.members_of.items() if self.methods[n].needs == "tangents"]
        return list({m.name: m for ms in needing for m in ms}.values())

    def methods_at(self, member: Member) -> list[str]:
        """Methods that need directions at a member, in order."""
        return [n for n, ms in self.members_of.items() if self.methods[n].needs == "tangents" and member in ms]

    def half_member(self) -> Member | None:
        """The member at which the two halves of the target are compared: the checkpoint itself, else the first."""
        method = self.half_method()
        if method is None:
            return None
        plain, members = self.plain_member(), self.members_of[method]
        return plain if plain in members else members[0]

    def half_method(self) -> str | None:
        """The method whose scores are compared: the first with directions, which is ``score``'s own if it has any."""
        return next((n for n in self.members_of if self.methods[n].needs == "tangents"), None)

    def half_sample(self) -> Keys:
        """Up to 500 distinct training payloads, chosen by their keys: stable as rows come and go."""
        return self._half_sample

    @functools.cached_property
    def _half_sample(self) -> Keys:
        keys = self.payload_keys
        return keys[key_order(keys)[:HALF_SAMPLE]]


def _distinct(keys: Keys) -> Keys:
    """The first of equal keys [n, 16], in order; the same array where none is there twice."""
    first = unique(keys)
    return keys if len(first) == len(keys) else taken(keys, first)


def require_model(run: Run) -> tuple[ModelSpec, Checkpoint]:
    """The run's model and checkpoint, where its methods need one.

    Raises:
        UsageError: no method of the run needs a model.
    """
    if run.model is None or run.checkpoint is None:
        raise UsageError("these methods need no model", fix="ask for another method, such as ip")
    return run.model, run.checkpoint
