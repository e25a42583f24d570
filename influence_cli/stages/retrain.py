"""(4) edited manifest -> checkpoint, and a comparison with no edit and with random edits of the same size.

Arms share the seed, so initialisation, order and augmentation are the same for every row they have in common.  A
finished arm and seed is kept under ``RUN/arms/<fingerprint>`` and never trained twice.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Manifest, Rows, open_manifest
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import SILENT, Listener
from influence_cli.maths.paired import mean_interval, paired_difference
from influence_cli.model.checkpoints import RUN_FILE, WEIGHTS_FILE, find_checkpoint
from influence_cli.model.losses import loss_of, quality
from influence_cli.model.spec import ModelSpec, is_own, known_again, new_spec
from influence_cli.settings import Inputs
from influence_cli.stages.arms import Arm, arm_fingerprint, base_arm, control_arms, curated_arm, without
from influence_cli.stages.canaries import CanaryRequest, plant_in_arms
from influence_cli.stages.usable_rows import left_out_of, usable_now
from influence_cli.store import Store
from influence_cli.store.files import replacing, write_json
from influence_cli.store.keys import canonical_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.model.training import Examples, Recipe

METRICS = {"accuracy": True, "balanced_accuracy": True, "loss": False}  # name -> higher is better


@dataclass(frozen=True)
class RetrainRequest:
    """What to train, on what, compared with what."""

    inputs: Inputs
    output: str
    seeds: int = 1
    seed: int = 0
    against: str | None = None
    arms: tuple[tuple[str, str], ...] = ()  # more curated manifests, as (name, path)
    test: str | None = None
    init: str | None = None
    pretrained: bool = False
    keep_checkpoints: int = 0
    calibration: float = 0.0
    canaries: CanaryRequest | None = None
    device: str = "auto"


def retrain(request: RetrainRequest, recipe: Recipe, listener: Listener = SILENT) -> dict[str, Any]:
    """Train every arm over every seed, write the run folder, and return its metrics."""
    from influence_cli.model.build import device_of
    from influence_cli.model.convex import check_convex
    from influence_cli.model.training import Examples

    manifest = _open(request, request.inputs.manifest)
    base = _base_rows(request, manifest)
    test = _test_rows(request, base.manifest)
    spec = _spec(request, base.manifest)
    check_convex(recipe, spec.name, request.seeds)
    base, test = (usable_now(rows, spec, request.inputs) for rows in (base, test))
    left_out = _left_out(request, base)
    arms = _arms(request, manifest, base, left_out)
    calibration = [i for i, out in zip(base.ids, left_out.tolist(), strict=True) if out]
    device = device_of(request.device)
    planted = plant_in_arms(request, base, arms, left_out, spec.num_classes, listener)
    run = _Run(request, recipe, spec, base, test, device, listener)
    run.sets = {
        "train": Examples(base, spec, listener, "train rows"),
        "test": Examples(test, spec, listener, "test rows"),
    }
    target = usable_now(base.manifest.rows("val"), spec, request.inputs)
    unusable = left_out_of(target.manifest, test.manifest)
    if len(target):
        run.sets["target"] = Examples(target, spec, listener, "target rows")
    metrics: dict[str, Any] = {
        "schema_version": 1,
        "test_rows": len(test),
        "num_classes": spec.num_classes,
        "arms": {},
        "comparison": {},
        **({"left_out": unusable} if unusable else {}),
    }
    for arm in arms:
        results = {
            str(request.seed + s): run.train(arm, request.seed + s, arm is arms[0]) for s in range(request.seeds)
        }
        metrics["arms"][arm.name] = _summary(arm, base, results)
    _compare(metrics, arms)
    run.finish(arms[0], metrics, {"calibration_ids": calibration, **planted})
    return metrics


def _open(request: RetrainRequest, source: Any) -> Manifest:
    return open_manifest(source, request.inputs.label, request.inputs.skip_bad)


def _base_rows(request: RetrainRequest, manifest: Manifest) -> Rows:
    """The train rows that every arm edits: those of ``--against``, or of the manifest alone."""
    base = manifest if request.against is None else _open(request, request.against)
    rows = base.rows("train")
    if len(rows) == 0:
        raise ManifestError("no train rows", where=base.source, fix="set column split to train for some rows")
    return rows


def _test_rows(request: RetrainRequest, manifest: Manifest) -> Rows:
    if request.test is None:
        rows, where = manifest.rows("test"), f"{manifest.source}, split test"
    else:
        other, where = _open(request, request.test), request.test
        rows = other.rows("test") if (other.splits == "test").any() else other.all_rows()
    if len(rows) == 0:
        raise ManifestError("no test rows", where=where, fix="set split to test for some rows, or pass --test PATH")
    return rows


def _spec(request: RetrainRequest, manifest: Manifest) -> ModelSpec:
    if request.init is not None:
        _, carried = find_checkpoint(request.init)
        if carried is not None and request.inputs.model in (None, carried["name"]):
            return known_again(ModelSpec.from_dict(carried), manifest, Store(Path(request.output)))
    if request.inputs.task is not None or is_own(request.inputs.model):
        from influence_cli.model.task import training_spec

        return training_spec(request.inputs, manifest, Store(Path(request.output)))
    from_scratch = request.init is None and not request.pretrained
    return new_spec(request.inputs, manifest, None, from_scratch)


def _arms(request: RetrainRequest, manifest: Manifest, base: Rows, left_out: NDArray[np.bool_]) -> list[Arm]:
    """The first arm is the one whose checkpoint becomes the run's."""
    if request.against is None:
        if request.arms:
            raise UsageError("--arm needs --against", fix="pass --against MANIFEST, the rows before curation")
        return [without(base_arm("all rows", base), left_out)]
    curated = [("curated", manifest)]
    curated += [(name, _open(request, path)) for name, path in request.arms]
    made: list[Arm] = []
    for name, table in curated:
        arm = curated_arm(name, base, table, left_out)
        made += [arm, *control_arms(arm, base, table, request.seed, left_out)]
    names = [arm.name for arm in made]
    if len(set(names)) < len(names) or "no edit" in names:
        raise UsageError("two arms have the same name", fix="name each --arm differently")
    return [made[0], without(base_arm("no edit", base), left_out), *made[1:]]


def _left_out(request: RetrainRequest, base: Rows) -> NDArray[np.bool_]:
    """The seeded share of train rows that no arm is trained on, for the gate's calibration."""
    from influence_cli.methods.random import Random

    return Random().score(base.ids, request.seed) < request.calibration


@dataclass
class _Run:
    request: RetrainRequest
    recipe: Recipe
    spec: ModelSpec
    base: Rows
    test: Rows
    device: torch.device
    listener: Listener
    sets: dict[str, Examples] | None = None

    def _folder(self, arm: Arm, seed: int) -> Path:
        recipe = {
            **self.recipe.describe(),
            "init": self._init_digest(),
            "pretrained": self.request.pretrained,
        }
        if self.spec.task is not None and self.spec.task.loss is not None:
            recipe["loss"] = loss_of(self.spec.task).name(self.spec.num_classes)
        measured = [self.test, self.base.manifest.rows("val")]
        name = arm_fingerprint(arm, self.base, measured, recipe, self.spec.as_dict(), seed)
        return Path(self.request.output) / "arms" / name

    def _init_digest(self) -> str | None:
        return None if self.request.init is None else find_checkpoint(self.request.init)[0].digest

    def train(self, arm: Arm, seed: int, main: bool) -> dict[str, Any]:
        """Train one arm with one seed, or return what is kept of it."""
        folder = self._folder(arm, seed)
        keep = min(self.request.keep_checkpoints, self.recipe.rounds) if main and seed == self.request.seed else 0
        done = _finished(folder, keep)
        if done is not None:
            self.listener.detail(f"{arm.name}, seed {seed}: already trained")
            return done
        import torch

        from influence_cli.model.training import train

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
        write_json(folder / "metrics.json", result)
        return result

    def _model(self) -> nn.Module:
        from influence_cli.model.build import build_model, check_input, load_model

        if self.request.init is not None:
            return load_model(self.spec, find_checkpoint(self.request.init)[0])
        model = build_model(self.spec, self.request.pretrained)
        check_input(model, self.spec)
        return model

    def _with(self, arm: Arm) -> Examples:
        import copy

        assert self.sets is not None
        data = copy.copy(self.sets["train"])
        data.labels, data.weights = arm.labels, arm.weights
        return data

    def _measure(self, model: nn.Module, arm: Arm) -> dict[str, Any]:
        """Train accuracy on the arm's own labels; accuracy, balanced accuracy and loss on target and test rows."""
        from influence_cli.model.training import predict

        assert self.sets is not None
        out: dict[str, Any] = {}
        for name, data in self.sets.items():
            logits = predict(model, data, self.device)
            labels, kept = data.labels, np.ones(len(data), dtype=bool)
            if name == "train":
                labels, kept = arm.labels, arm.weights > 0
            measured = quality(logits[kept], labels[kept], loss_of(self.spec.task))
            out.update({key if name == "test" else f"{name}_{key}": value for key, value in measured.items()})
        return out

    def _save(self, model: nn.Module, path: Path, about: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        weights = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        metadata = {"influence": canonical_json({"model": self.spec.as_dict(), **about})}
        with replacing(path) as temporary:
            save_file(weights, temporary, metadata=metadata)

    def finish(self, main: Arm, metrics: dict[str, Any], more: dict[str, Any]) -> None:
        """Put the main arm's first checkpoint and the run's description at the top of the folder."""
        output, folder = Path(self.request.output), self._folder(main, self.request.seed)
        for source in [folder / WEIGHTS_FILE, *sorted((folder / "checkpoints").glob("*.safetensors"))]:
            with replacing(output / source.relative_to(folder)) as temporary:
                shutil.copyfile(source, temporary)
        first = metrics["arms"][main.name]["seeds"][str(self.request.seed)]
        trained = main.weights > 0
        write_json(
            output / RUN_FILE,
            {
                "schema_version": 1,
                "model": self.spec.as_dict(),
                "recipe": {**self.recipe.describe(), "lr": self.recipe.peak_lr},
                "seed": self.request.seed,
                "init": self.request.init,
                "pretrained": self.request.pretrained,
                "checkpoints": first["checkpoints"],
                "trained_on": {"rows": int(trained.sum()), "arm": folder.name},
                **more,
            },
        )
        write_json(output / "metrics.json", metrics)


def _finished(folder: Path, keep: int) -> dict[str, Any] | None:
    try:
        result = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    whole = (folder / WEIGHTS_FILE).exists() and len(result["checkpoints"]) >= keep
    return result if whole else None


def _checkpoint_epochs(epochs: int, keep: int) -> set[int]:
    """``keep`` epochs evenly spaced, the last one included."""
    return {round((k + 1) * epochs / keep) - 1 for k in range(keep)} if keep else set()


def _summary(arm: Arm, base: Rows, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "controls": arm.controls,
        "train_rows": int((arm.weights > 0).sum()),
        "edits": arm.about,
        "seeds": results,
        "mean": {m: mean_interval(np.array([r[m] for r in results.values()])) for m in METRICS},
    }


def _compare(metrics: dict[str, Any], arms: list[Arm]) -> None:
    """Paired differences of every curated arm with no edit and with each of its controls."""
    by_name = {arm.name: arm for arm in arms}
    if "no edit" not in by_name:
        return
    for arm in arms:
        if arm.controls is not None or arm.name == "no edit":
            continue
        others = ["no edit", *(c.name for c in arms if c.controls == arm.name)]
        metrics["comparison"][arm.name] = {
            other: {
                m: paired_difference(_values(metrics, arm.name, m), _values(metrics, other, m), higher)
                for m, higher in METRICS.items()
            }
            for other in others
        }


def _values(metrics: dict[str, Any], arm: str, metric: str) -> NDArray[np.float64]:
    return np.array([r[metric] for r in metrics["arms"][arm]["seeds"].values()])


def improved(metrics: dict[str, Any]) -> bool:
    """Whether the first curated arm beats no edit and every control in accuracy, by the paired interval."""
    comparison = next(iter(metrics["comparison"].values()), None)
    if comparison is None:
        raise UsageError("nothing to compare with", fix="pass --against MANIFEST, the rows before curation")
    return all(c["accuracy"]["verdict"] == "better" for c in comparison.values())


__all__ = ["RetrainRequest", "improved", "quality", "retrain"]
