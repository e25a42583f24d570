"""One training by several processes: the others open the same rows, and have their share of every batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.ids import Ids
from influence_cli.data.outside import allowing_outside, outside_allowed
from influence_cli.errors import ModelError, UsageError
from influence_cli.events import SILENT
from influence_cli.processes.group import Group, Job
from influence_cli.stages.retrain.opening import as_fine_tuning, base_rows, model_to_train, open_table
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.run.usable_rows import usable_now

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.model.examples import Examples
    from influence_cli.model.spec import ModelSpec
    from influence_cli.model.train.epoch_values import EpochValues, Values
    from influence_cli.model.train.recipe import Recipe

PLACE = "training"  # among what a process has opened


class OpenTraining(Job):
    """Have the rows and the model that are trained on in every process."""

    def __init__(self, request: RetrainRequest, recipe: Recipe, ids: Ids) -> None:
        self.request, self.recipe, self.outside = request, recipe, outside_allowed()
        self.rows, self.ids = len(ids), ids.digest()

    def part(self, group: Group) -> None:
        """Open them, but where the leader has.

        Raises:
            UsageError: they are not the rows of the leader.
        """
        if group.rank == 0 or group.opened.get(PLACE, (None,))[0] == self.request:
            return
        from influence_cli.model.examples import Examples

        request, _ = as_fine_tuning(self.request, self.recipe, SILENT)
        with allowing_outside(self.outside):
            base = base_rows(request, open_table(request, request.inputs.manifest))
        spec = model_to_train(request, base.manifest, SILENT)
        base = usable_now(base, spec, request.inputs)
        if (len(base), base.ids.digest()) != (self.rows, self.ids):
            what = f"process {group.rank} sees {len(base):,} train rows, which are not the {self.rows:,} of the first"
            raise UsageError(what, where=str(request.inputs.manifest), fix="give every process the same manifest")
        group.opened[PLACE] = self.request, spec, Examples(base, spec, SILENT, "train rows")


class TrainTogether(Job):
    """Train on labels [n] and weights [n] of the rows that are open."""

    lockstep: ClassVar[bool] = True
    alike: ClassVar[tuple[type[Exception], ...]] = (ModelError,)  # a loss that is not finite is that of the batch

    def __init__(
        self, request: RetrainRequest, recipe: Recipe, labels: NDArray[Any], weights: NDArray[np.float64], seed: int,
        values: bool,
    ) -> None:  # fmt: skip
        self.request, self.recipe, self.seed, self.values = request, recipe, seed, values
        self.labels, self.weights = labels, weights

    def part(self, group: Group) -> int:
        """Train; returns the number of steps."""
        from influence_cli.model.losses import loss_of
        from influence_cli.model.train.sgd import train

        if group.rank == 0:
            model, data, device, on_epoch, seen, watch = self.here
            return train(model, data, self.recipe, self.seed, device, on_epoch, seen, watch, group)
        _, spec, examples = group.opened[PLACE]
        data = labelled(examples, self.labels, self.weights)
        seen = None
        if self.values:
            from influence_cli.model.train.epoch_values import EpochValues

            kept = np.flatnonzero(self.weights > 0)
            seen = EpochValues(kept, self.labels, loss_of(spec), lambda _, found: _handed_over(group, found))
        device = _device(self.request, group)
        return train(_model(self.request, spec), data, self.recipe, self.seed, device, _nothing, seen, None, group)


def helpers(request: RetrainRequest, recipe: Recipe, group: Group | None) -> Group | None:
    """The processes that can train together; None where this one is alone, or alone has the rows."""
    manifests = (request.inputs.manifest, request.against)
    named = all(part is None or (isinstance(part, str | Path) and str(part) != "-") for part in manifests)
    return group if named and request.inputs.task is None and recipe.has_epochs else None


def train_together(
    group: Group, request: RetrainRequest, recipe: Recipe, seed: int, ids: Ids,
    model: nn.Module, data: Examples, device: torch.device, on_epoch: Any, seen: EpochValues | None, watch: Any,
) -> int:  # fmt: skip
    """Train a model in place by all processes; returns the number of steps."""
    group.share(OpenTraining(request, recipe, ids))
    if seen is not None:
        seen.write = _put_together(group, seen.write)
    job = TrainTogether(request, recipe, data.labels, data.weights, seed, seen is not None)
    job.here = model, data, device, on_epoch, seen, watch
    return group.share(job)[0]


def labelled(examples: Examples, labels: NDArray[Any], weights: NDArray[np.float64]) -> Examples:
    """The same rows under other labels and weights."""
    data = copy.copy(examples)
    data.labels, data.weights = labels, weights
    return data


def _put_together(group: Group, write: Any) -> Any:
    """What writes the values of all processes, each of which has those of its own rows."""
    from influence_cli.model.train.among import put_together

    return lambda first, values: write(first, put_together(group.exchange(values)))


def _handed_over(group: Group, values: Values) -> None:
    group.exchange(values)


def _nothing(*_: Any) -> None:
    """The leader keeps what is kept of an epoch."""


def _model(request: RetrainRequest, spec: ModelSpec) -> nn.Module:
    """A model with the leader's architecture, whose weights it is given next."""
    from influence_cli.model.build import build_model, start_model
    from influence_cli.model.checkpoints import find_checkpoint

    if request.init is not None:
        return start_model(spec, find_checkpoint(request.init)[0], SILENT)
    return build_model(spec, request.pretrained)


def _device(request: RetrainRequest, group: Group) -> torch.device:
    from influence_cli.model.build import device_of

    return device_of(group.device(request.device))
