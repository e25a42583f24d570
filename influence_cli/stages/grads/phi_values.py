"""Phi of every objective at other parameters than the checkpoint's, by forward passes over the target rows alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from influence_cli.curvature.curvature import Curvature
from influence_cli.curvature.further import RepeatedRows
from influence_cli.engines.group_direction import cell_sums
from influence_cli.engines.point import differentiable_kernels
from influence_cli.stages.grads.attacked_rows import attacked_rows
from influence_cli.stages.grads.changed_rows import changed_inputs
from influence_cli.stages.grads.member_model import Models
from influence_cli.stages.run import names
from influence_cli.stages.run.run import Member, Run, require_model
from influence_cli.stages.run.session import Session

Floats = NDArray[np.float64]


class PhiValues:
    """Values of objectives; decoded target rows, attacked and changed ones are kept between parameters."""

    def __init__(
        self, run: Run, session: Session, curvature: Curvature, final: nn.Module, objectives: Sequence[str]
    ) -> None:
        """``final`` is the model at the checkpoint, at which rows are attacked."""
        self.run, self.curvature = run, curvature
        wanted = {name: run.objectives[name] for name in objectives}
        self.groups = {n: o for n, o in wanted.items() if "groups" in o.needs}
        self.pairs = {n: o for n, o in wanted.items() if "pairs" in o.needs}
        attacked = [n for n in wanted if names.attack(run, n) is not None]
        self.plain = {n: o for n, o in wanted.items() if n not in {*self.groups, *self.pairs, *attacked}}
        self.attacked = {n: wanted[n] for n in attacked}
        payloads = dict(run.target.manifest.payloads(run.target.index)) if attacked or self.pairs else {}
        self.instead: dict[str, RepeatedRows] = {}
        for name in attacked:
            inputs = attacked_rows(run, session, name, final, payloads)[0]
            moved = lambda rows, of=inputs: of(rows).to(curvature.device, curvature.dtype)  # noqa: E731
            self.instead[name] = RepeatedRows(curvature, run.target, moved, session.decoded)
        for name in self.pairs:
            twins = changed_inputs(run, name, curvature.point, payloads)
            self.instead[name] = RepeatedRows(curvature, run.target, twins, session.decoded)
        self.rows = RepeatedRows(curvature, run.target, held=session.decoded)
        self._place = {row: k for k, row in enumerate(run.target.index.tolist())}

    def at(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """Phi by objective, float64, at selected parameters by name; the caller has chosen the kernels."""
        found: dict[str, float] = {}
        with torch.no_grad():
            if self.plain or self.groups or self.pairs:
                found |= self._over_target(parameters)
            for name, objective in self.attacked.items():
                total = 0.0
                for _, x, y in self.instead[name]:
                    total += _sum(objective.rows(self._logits(x, parameters), y, self.run.row_loss))
                found[name] = total / len(self.run.target)
        return {name: found[name] for name in self.run.objectives if name in found}

    def _over_target(self, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        loss, count = self.run.row_loss, len(self.run.target)
        sums = dict.fromkeys((*self.plain, *self.pairs), 0.0)
        values: dict[str, list[Any]] = {name: [None] * count for name in self.groups}
        twins = {name: iter(self.instead[name]) for name in self.pairs}
        for index, x, y in self.rows:
            z = self._logits(x, parameters)
            for name, objective in self.plain.items():
                sums[name] += _sum(objective.rows(z, y, loss))
            for name, objective in self.pairs.items():
                _, changed, _ = next(twins[name])
                sums[name] += _sum(objective.pairs(z, self._logits(changed, parameters)))
            for name, objective in self.groups.items():
                rows = objective.values(z, y, loss).double().cpu().numpy()
                for row, value in zip(index.tolist(), rows, strict=True):
                    values[name][self._place[row]] = value
        return {**{n: total / count for n, total in sums.items()}, **{n: self._gap(n, v) for n, v in values.items()}}

    def _gap(self, name: str, values: list[Floats]) -> float:
        groups, labels = self.run.groups[name].index, self.run.target.labels
        sums = cell_sums(np.stack(values), groups, labels, require_model(self.run)[0].num_classes)
        return self.groups[name].phi(*sums)[0]

    def _logits(self, x: Any, parameters: Mapping[str, Tensor]) -> Tensor:
        return self.curvature.at.logits(x, dict(parameters))


def _sum(terms: Tensor) -> float:
    return float(terms.double().sum())


def measure_phis(run: Run, session: Session, member: Member, objectives: tuple[str, ...], models: Models) -> None:
    """Measure and store the value of objectives at a member, by forward passes alone."""
    assert run.fit is not None
    at, final = models.at(member), models.final()
    where = Curvature(
        at.model, require_model(run)[0], run.fit.rows, run.spec.params, None, session.device,
        session.batch_size(run.model), session.runtime.workers, loss=run.row_loss,
        precision="fp64" if run.spec.precision == "fp64" else "fp32",
    )  # fmt: skip
    with differentiable_kernels(at.exact.recurrent):
        found = PhiValues(run, session, where, final, objectives).at(at.exact.selected)
    for objective, value in found.items():
        about = {"about": f"{objective} at a member", "fit": run.fit.fingerprint}
        session.store.chains.write(names.phi(run, member, objective), {"phi": np.array([value])}, about)
