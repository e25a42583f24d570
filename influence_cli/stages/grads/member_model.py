"""A member's model in memory, at which gradients are taken and rows are run."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from influence_cli.events import SILENT
from influence_cli.model.checkpoints import Checkpoint
from influence_cli.stages.grads.walked import WalkedWeights
from influence_cli.stages.run.run import Member, Run, require_model
from influence_cli.stages.run.session import Session

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.curvature.head import Head
    from influence_cli.engines.point import Point


@dataclass(frozen=True, eq=False)
class MemberModel:
    """A model at a member: for gradients in full precision, and for the pass over rows in that of the run."""

    member: Member
    model: nn.Module
    exact: Point
    point: Point
    called: str  # what people are told of it

    @functools.cached_property
    def head(self) -> Head | None:
        """The module of ``exact`` behind whose inputs all selected parameters lie; None where there is none."""
        from influence_cli.curvature.head import head_of

        # many members on a walk run few rows each: laying out weights would pay for none, and fill the memory
        return None if self.exact.few is None else head_of(self.exact, self.exact.few, self.member.walk is None)


class Models:
    """The models of members, one after another: members of the same weights share them."""

    def __init__(self, run: Run, session: Session) -> None:
        """Nothing is loaded yet."""
        self.run, self.session = run, session
        self._loaded: tuple[str, nn.Module] | None = None
        self._walked = WalkedWeights(run, session)

    def share_weights(self, others: Models) -> None:
        """Have the weights that others have loaded."""
        self._loaded = self._loaded or others._loaded

    def at(self, member: Member, called: str = "model") -> MemberModel:
        """The model at a member.

        Raises:
            ModelError: its weights do not fit the model.
        """
        model = self._of(member.checkpoint)
        exact, point = points(self.run, self.session, model, member, self._trained(member, model))
        return MemberModel(member, model, exact, point, called)

    def final(self) -> nn.Module:
        """The model at the run's checkpoint itself."""
        checkpoint = require_model(self.run)[1]
        return self._of(checkpoint)

    def weights(self, checkpoint: Checkpoint) -> nn.Module:
        """The model at any checkpoint; nothing is said of it."""
        return self._of(checkpoint, note=False)

    def gradient_point(self, member: Member, params: str) -> Point:
        """A member in full precision with other parameters selected than the run has."""
        from influence_cli.engines.point import Point

        precision = "fp32" if self.run.spec.precision == "bf16" else self.run.spec.precision
        return Point(self._of(member.checkpoint, note=False), params, member.dropout, precision, self.session.device)

    def _trained(self, member: Member, model: nn.Module) -> dict[str, torch.Tensor] | None:
        """The selected parameters of a member that training went on to; None of others."""
        if member.walk is None:
            return None
        return self._walked.of(model, member.checkpoint, member.walk)

    def _of(self, checkpoint: Checkpoint, note: bool = True) -> nn.Module:
        from influence_cli.engines.point import DTYPES
        from influence_cli.model.build import load_model
        from influence_cli.model.headless import load_headless

        if self._loaded is None or self._loaded[0] != checkpoint.digest:
            precision = self.run.spec.precision
            dtype = DTYPES["fp32" if precision == "bf16" else precision]
            first = self._loaded is None and note
            told = self.session.listener if first else SILENT
            from influence_cli.model.parameters import classifier_of

            spec, (of, built) = require_model(self.run)[0], self.session.built or (None, None)
            self.session.built = None
            if self.run.headless:
                model = load_headless(spec, checkpoint, dtype, told)
            else:
                model = load_model(
                    spec, checkpoint, dtype, told, built=built if of == spec and spec.task is None else None
                )
            if first:
                note_frozen(self.session, model)
                if self.run.spec.params == "last":
                    self.session.listener.note(f"--params last: layer {classifier_of(model)}")
            self._loaded = checkpoint.digest, model
        return self._loaded[1]


def points(
    run: Run, session: Session, model: nn.Module, member: Member, trained: dict[str, torch.Tensor] | None = None
) -> tuple[Point, Point]:
    """The member for gradients, and for the pass over rows: one and the same, but with bf16.

    A sum of many gradients loses too much in bf16, so directions and curvature are float32 whatever the precision.
    ``trained`` are the selected parameters of a member that training went on to.
    """
    from influence_cli.engines.point import DTYPES, Point
    from influence_cli.model.examples import from_all_over, move, to_input
    from influence_cli.model.own_module import copied

    precision, spec = run.spec.precision, require_model(run)[0]

    def point_in(of: nn.Module, kind: str) -> Point:
        selected = None
        if trained is not None:
            selected = {n: t.to(session.device, DTYPES[kind]) for n, t in trained.items()}
        return Point(of, run.spec.params, member.dropout, kind, session.device, selected)

    exact = point_in(model, "fp32" if precision == "bf16" else precision)
    point = exact
    if precision == "bf16":
        point = point_in(copied(model), "bf16")
    if session.few is None:
        session.few = from_all_over(run.train, spec, session.decoded)
    for each in (exact, point):
        if session.few is not None:
            each.few = to_input(move(session.few, session.device), spec, each.dtype)
    return exact, point


def note_frozen(session: Session, model: nn.Module) -> None:
    """Say which parameters are no part of the gradients, whatever --params selects."""
    from influence_cli.model.parameters import frozen_parameters

    frozen, every = frozen_parameters(model), len(list(model.parameters()))
    if frozen:
        named = ", ".join(frozen[:3]) + (" and others" if len(frozen) > 3 else "")
        session.listener.note(
            f"{len(frozen)} of {every} parameters are frozen (requires_grad is off) and left out of gradients: {named}"
        )
    elif not any(p.requires_grad for p in model.parameters()):
        session.listener.note("requires_grad is off for every parameter of the model, so none counts as frozen")


def read_direction(session: Session, name: str, point: Point) -> dict[str, torch.Tensor]:
    """A stored direction's tensors, where the point's parameters are and in their precision."""
    import torch

    stored = session.store.directions.read(name)
    if stored is None:
        raise AssertionError(f"direction {name} was planned but is not stored")
    return {  # a number by itself is stored as a vector of one
        n: torch.from_numpy(stored[n].copy()).to(point.device, point.dtype).view(p.shape)
        for n, p in point.selected.items()
    }
