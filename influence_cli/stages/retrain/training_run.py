"""One arm and seed after another: trained once, measured, kept under ``RUN/arms/<fingerprint>``, and the run folder."""

from __future__ import annotations

import copy
import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_cli.data.manifest import Rows
from influence_cli.errors import DamagedModel
from influence_cli.events import Listener
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.losses import loss_of, quality
from influence_cli.model.run_folder import RUN_FILE, WEIGHTS_FILE, read_run, write_run
from influence_cli.model.spec import ModelSpec
from influence_cli.stages.curate.score_table import groups_of
from influence_cli.stages.retrain.arm_quality import GAPS, beyond_accuracy
from influence_cli.stages.retrain.arms import Arm, arm_fingerprint
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.store.files import DamagedFile, replacing, serialized_digest, write_bytes, write_json
from influence_cli.store.keys import fingerprint
from influence_cli.store.sealed import CHECKSUM, WEIGHTS, parsed_object, weights_metadata, write_sealed_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.model.train.decoded import Examples
    from influence_cli.model.train.recipe import Recipe


METRICS_FILE = "metrics.json"
MEASURED = 2  # raised whenever more is measured of an arm: what was trained before is measured again


@dataclass
class TrainingRun:
    """One ``retrain``: its rows, model, recipe and device, and where every arm and seed is kept."""

    request: RetrainRequest
    recipe: Recipe
    spec: ModelSpec
    base: Rows
    test: Rows
    device: torch.device
    listener: Listener
    sets: dict[str, Examples] | None = None

    def folder(self, arm: Arm, seed: int) -> Path:
        """Where an arm and seed are kept: a run folder of its own."""
        recipe = {
            **self.recipe.describe(),
            "init": self._init_digest(),
            "pretrained": self.request.pretrained,
        }
        if self.spec.task is not None and self.spec.task.loss is not None:
            recipe["loss"] = self._loss_name
        measured = [self.test, self.base.manifest.rows("val")]
        name = arm_fingerprint(arm, self.base, measured, recipe, self.spec.as_dict(), seed)
        return Path(self.request.output) / "arms" / name

    @functools.cached_property
    def _loss_name(self) -> str:
        """What a loss of the user's own is known by; once a run, and not longer: what it does may change."""
        return loss_of(self.spec.task).name(self.spec.num_classes)

    def _init_digest(self) -> str | None:
        return None if self.request.init is None else find_checkpoint(self.request.init)[0].digest

    def train(self, arm: Arm, seed: int, main: bool) -> dict[str, Any]:
        """Train one arm with one seed, or return what is kept of it."""
        folder = self.folder(arm, seed)
        keep = min(self.request.keep_checkpoints, self.recipe.rounds) if main and seed == self.request.seed else 0
        done = _finished(folder, keep, self.listener)
        if done is not None:
            self.listener.detail(f"{arm.name}, seed {seed}: already trained")
            return done if done.get("measured") == self._measures() else self._measured_again(folder, done, arm)
        import torch

        from influence_cli.model.train.sgd import train

        torch.manual_seed(seed)
        model = self._model()
        data = self._with(arm)
        wanted = _checkpoint_epochs(self.recipe.rounds, keep)
        checkpoints: list[dict[str, Any]] = []
        with self.listener.progress(f"train {arm.name}, seed {seed}", self.recipe.rounds, "epochs") as progress:

            def on_epoch(epoch: int, step: int, rate: float) -> None:
                if epoch in wanted:
                    file = f"checkpoints/step-{step:06d}.safetensors"
                    self._save(model, folder / file, {"epoch": epoch + 1, "step": step, "lr": rate})
                    checkpoints.append({"file": file, "epoch": epoch + 1, "step": step, "lr": rate})
                progress.advance(1)

            steps = train(model, data, self.recipe, seed, self.device, on_epoch)
        result = {"seed": seed, "steps": steps, "checkpoints": checkpoints, **self._measure(model, arm)}
        self._save(model, folder / WEIGHTS_FILE, {"step": steps})
        about = {**self._about(seed, arm), "checkpoints": checkpoints, "steps": steps}
        write_run(folder, about, [WEIGHTS_FILE, *(c["file"] for c in checkpoints)])
        write_sealed_json(folder / METRICS_FILE, result)
        return result

    def _measured_again(self, folder: Path, done: dict[str, Any], arm: Arm) -> dict[str, Any]:
        """What was kept of a training, with what is measured by now."""
        kept = {name: value for name, value in done.items() if name not in GAPS}
        result = {**kept, **self._measure(self.trained(folder), arm)}
        write_sealed_json(folder / METRICS_FILE, result)
        return result

    def trained(self, folder: Path) -> nn.Module:
        """The model that a folder holds, in the precision that it was trained in."""
        import torch

        from influence_cli.model.build import load_model
        from influence_cli.model.train.recipe import LBFGS

        dtype = torch.float64 if self.recipe.optimizer == LBFGS else None
        return load_model(self.spec, find_checkpoint(str(folder))[0], dtype)

    def _model(self) -> nn.Module:
        from influence_cli.model.build import build_model, check_input, load_model

        if self.request.init is not None:
            return load_model(self.spec, find_checkpoint(self.request.init)[0])
        model = build_model(self.spec, self.request.pretrained)
        check_input(model, self.spec)
        return model

    def _with(self, arm: Arm) -> Examples:
        assert self.sets is not None
        data = copy.copy(self.sets["train"])
        data.labels, data.weights = arm.labels, arm.weights
        return data

    def _measures(self) -> int | str:
        """What stands for the measures taken: they are others where --group names another column, or other groups."""
        groups = groups_of(self.test, self.request.inputs.group)
        if groups is None:
            return MEASURED
        rows = [[key.tobytes().hex(), group] for key, group in zip(self.test.row_keys, groups.tolist(), strict=True)]
        return f"{MEASURED} by {fingerprint('groups', 1, rows=rows)}"

    def _measure(self, model: nn.Module, arm: Arm) -> dict[str, Any]:
        """Train accuracy on the arm's own labels; accuracy, balanced accuracy and loss on target and test rows."""
        from influence_cli.model.train.sgd import predict

        assert self.sets is not None
        out: dict[str, Any] = {"measured": self._measures()}
        for name, data in self.sets.items():
            logits = predict(model, data, self.device)
            labels, kept = data.labels, np.ones(len(data), dtype=bool)
            if name == "train":
                labels, kept = arm.labels, arm.weights > 0
            measured = quality(logits[kept], labels[kept], loss_of(self.spec.task))
            if name == "test":
                measured.update(beyond_accuracy(logits, self.test, labels, self.request.inputs.group))
            out.update({key if name == "test" else f"{name}_{key}": value for key, value in measured.items()})
        return out

    def _save(self, model: nn.Module, path: Path, about: dict[str, Any]) -> None:
        from safetensors.torch import save

        weights = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        metadata = weights_metadata({"model": self.spec.as_dict(), **about}, serialized_digest(save(weights)))
        write_bytes(path, save(weights, metadata))

    def _about(self, seed: int, arm: Arm) -> dict[str, Any]:
        """What a run folder says of its model."""
        return {
            "schema_version": 1,
            "model": self.spec.as_dict(),
            "recipe": {**self.recipe.describe(), "lr": self.recipe.peak_lr},
            "seed": seed,
            "init": self.request.init,
            "pretrained": self.request.pretrained,
            "checkpoints": [],
            "trained_on": {"rows": int((arm.weights > 0).sum()), "arm": self.folder(arm, seed).name},
        }

    def finish(self, main: Arm, metrics: dict[str, Any], more: dict[str, Any]) -> None:
        """Put the main arm's first checkpoint and the run's description at the top of the folder."""
        output, folder = Path(self.request.output), self.folder(main, self.request.seed)
        first = metrics["arms"][main.name]["seeds"][str(self.request.seed)]
        for name in [WEIGHTS_FILE, *(c["file"] for c in first["checkpoints"])]:
            with replacing(output / name) as temporary:
                shutil.copyfile(folder / name, temporary)
        about = {**self._about(self.request.seed, main), "checkpoints": first["checkpoints"], **more}
        write_run(output, about, [WEIGHTS_FILE, *(c["file"] for c in first["checkpoints"])])
        write_json(output / METRICS_FILE, metrics)


def _finished(folder: Path, keep: int, listener: Listener) -> dict[str, Any] | None:
    """What is kept of a finished training with at least ``keep`` checkpoints, verified; None where it must be trained.

    Of one whose measures alone are damaged what is left is given, so that it is measured again.

    Raises:
        DamagedModel: a folder stands where a file is to be, so that it cannot be trained again either.
    """
    for name in (RUN_FILE, WEIGHTS_FILE, METRICS_FILE):
        if (folder / name).is_dir():
            raise DamagedModel(f"{name} is a folder", where=str(folder / name), fix="move it away")
    if not (folder / METRICS_FILE).exists() or not (folder / WEIGHTS_FILE).exists():
        return None  # cut off before it was finished
    run: dict[str, Any] = {}
    try:
        run = _verified(folder)
        result = parsed_object((folder / METRICS_FILE).read_bytes())
        enough = len(result["checkpoints"]) >= keep
        missing = [c["file"] for c in result["checkpoints"] if not (folder / c["file"]).exists()]
        if missing:
            raise DamagedFile(f"{missing[0]} is missing")
    except DamagedModel as error:
        listener.warn(f"{error.where}: {error.what}; it is trained again")
        return None
    except (OSError, DamagedFile, KeyError, TypeError) as error:
        again = "steps" in run and len(run["checkpoints"]) >= keep and not isinstance(error, KeyError | TypeError)
        what = "measured" if again else "trained"
        listener.warn(f"{folder / METRICS_FILE} is damaged ({error}); it is {what} again")
        return {name: run[name] for name in ("seed", "steps", "checkpoints")} if again else None
    return {k: v for k, v in result.items() if k != CHECKSUM} if enough else None


def _verified(folder: Path) -> dict[str, Any]:
    """What the ``run.json`` of a finished training says, all of whose weights are as it says.

    Raises:
        DamagedModel: they are not.
    """
    run = read_run(folder)
    if run is None:
        raise DamagedModel(f"{RUN_FILE} is not there", where=str(folder), fix="train again")
    for name in run.get(WEIGHTS, {WEIGHTS_FILE: ""}):
        if not (folder / name).exists():
            raise DamagedModel(f"{name} is not there", where=str(folder), fix="train again")
        find_checkpoint(str(folder / name))
    return run


def _checkpoint_epochs(epochs: int, keep: int) -> set[int]:
    """``keep`` epochs evenly spaced, the last one included."""
    return {round((k + 1) * epochs / keep) - 1 for k in range(keep)} if keep else set()
