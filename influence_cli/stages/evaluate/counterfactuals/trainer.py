"""How the scored checkpoint was trained, so that parts of its rows can be trained on in the same way.

A run folder of ``retrain`` says it in ``run.json``; flags override that, and stand alone where there is no folder.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from influence_cli.data.manifest import Manifest
from influence_cli.errors import UsageError
from influence_cli.model.checkpoints import Checkpoint, find_checkpoint, find_model
from influence_cli.model.new_spec import new_spec
from influence_cli.model.run_folder import RunFolder
from influence_cli.model.run_record import RunRecord
from influence_cli.model.spec import ModelSpec, is_own
from influence_cli.model.standardise import standardised_by
from influence_cli.model.text_input import placed
from influence_cli.settings import Inputs
from influence_cli.stages.evaluate.request import Training
from influence_cli.stages.run.class_map import named_classes, with_class_order, with_outputs
from influence_cli.stages.run.resolve import known_again
from influence_cli.store import Store

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.model.train.recipe import Recipe


@dataclass(frozen=True)
class Trainer:
    """An architecture, where it starts, and the recipe; ``calibration_ids`` were never trained on."""

    spec: ModelSpec
    recipe: Recipe
    init: Checkpoint | None
    pretrained: bool
    device: torch.device
    calibration_ids: frozenset[str] = frozenset()
    trained_rows: int | None = None  # rows that the checkpoint was trained on, where its folder says so

    def start(self) -> dict[str, Any]:
        """Where training starts, for fingerprints; nothing where the recipe finds the one optimum."""
        if self.recipe.optimizer == "lbfgs":
            return {}
        return {"init": None if self.init is None else self.init.digest, "pretrained": self.pretrained}

    def model(self) -> nn.Module:
        """The model before training; torch's generator decides what is random in it."""
        from influence_cli.model.build import build_model, start_model

        if self.init is not None:
            return start_model(self.spec, self.init)
        return build_model(self.spec, self.pretrained)


def open_trainer(checkpoint: str | None, manifest: Manifest, training: Training, store: Store) -> Trainer:
    """The trainer of a checkpoint.

    Raises:
        UsageError: nothing says which model is to be trained, or the recipe cannot work.
        ModelError: the checkpoint is damaged.
    """
    from influence_cli.model.build import device_of
    from influence_cli.model.train.convex import check_convex
    from influence_cli.model.train.recipe import Recipe

    run = (None if checkpoint is None else RunFolder(checkpoint).read()) or RunRecord({}, {})
    known = {f.name for f in fields(Recipe)}
    then = {k: v for k, v in run.recipe.items() if k in known}
    if training.overrides.get("optimizer", then.get("optimizer")) != then.get("optimizer"):
        then.pop("lr", None)  # a learning rate belongs to its optimizer
    values = {**training.defaults, **then, **training.overrides}
    recipe = Recipe(**{k: v for k, v in values.items() if k in known})
    spec = _spec(run, checkpoint, manifest, training, store)
    check_convex(recipe, spec.name)
    init = training.init or run.init
    start = None if init is None else find_checkpoint(init)[0]
    pretrained, left_out = training.pretrained or bool(run.pretrained), frozenset(run.calibration_ids)
    return Trainer(spec, recipe, start, pretrained, device_of(training.device), left_out, run.trained_rows)


def _spec(run: RunRecord, checkpoint: str | None, manifest: Manifest, training: Training, store: Store) -> ModelSpec:
    carried = run.model or None
    if carried is None and checkpoint is not None:
        carried = find_model(checkpoint, is_own(training.model), not manifest.labelled)[1]
    model = training.model
    if carried is not None and training.overrides.get("model") in (None, carried["name"]):
        named = Inputs(manifest.source, model=model)
        carried = placed(carried, RunFolder.of(checkpoint).path) if checkpoint is not None else carried
        return known_again(ModelSpec.from_dict(carried or {}), named, checkpoint or "", manifest, store)
    if model is None:
        what = "nothing says which model to train again"
        fix = "pass --checkpoint RUN (a run folder of `retrain`), or --model NAME and its recipe"
        raise UsageError(what, where=checkpoint or "the score table has no checkpoint", fix=fix)
    from_scratch = training.init is None and not training.pretrained
    asked: dict[str, Any] = {"input_size": training.input_size, "num_classes": training.num_classes}
    asked["class_map"] = None if from_scratch else training.class_map
    inputs = named_classes(Inputs(manifest.source, model=model, **asked), manifest)
    if is_own(model):
        from influence_cli.stages.run.own_model import training_spec

        return training_spec(replace(inputs, mean=(0.5,), std=(0.5,)), manifest, store)  # as from_scratch has it
    spec = new_spec(with_outputs(inputs), manifest, None, from_scratch)
    if from_scratch:
        spec = standardised_by(spec, manifest.rows("train"), training.raw_features)
    return with_class_order(spec, inputs, manifest, training.init or "")
