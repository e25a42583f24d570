"""One arm and seed after another: trained once, measured, kept under ``RUN/arms/<fingerprint>``, and the run folder."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.changed_texts import Changed
from influence_cli.data.manifest import Rows
from influence_cli.events import SILENT, Listener
from influence_cli.maths.labels import softmax
from influence_cli.maths.paired_rows import Measured, OnRows, OnTexts
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.losses import RowLoss, loss_of
from influence_cli.model.losses.next_token import TOKENS
from influence_cli.model.run_folder import RunFolder
from influence_cli.model.run_record import WEIGHTS_FILE, EpochCheckpoint, RunRecord
from influence_cli.model.seeded import seed_draws
from influence_cli.model.spec import ModelSpec
from influence_cli.processes.group import Group
from influence_cli.processes.lead import current
from influence_cli.stages.curate.score_table import groups_of
from influence_cli.stages.retrain.arm_comparison import FLIPS, GAPS, beyond_accuracy, flips_of
from influence_cli.stages.retrain.arms import Arm, arm_fingerprint
from influence_cli.stages.retrain.finished import finished_training
from influence_cli.stages.retrain.request import RetrainRequest, asked_of
from influence_cli.stages.retrain.together import helpers, labelled, train_together
from influence_cli.stages.retrain.training_notes import TrainingNotes
from influence_cli.store.keys import Keys, fingerprint, row_keys

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.model.examples import Examples
    from influence_cli.model.train.recipe import Recipe


MEASURED = 2  # raised whenever more is measured of an arm: what was trained before is measured again


@dataclass(frozen=True)
class Training:
    """A training that a result is made of; ``folder`` is its name below ``arms/``."""

    arm: str
    seed: int
    folder: str
    reused: bool  # finished by an earlier run


@dataclass
class TrainingRun:
    """One ``retrain``: its rows, model, recipe and device, and where every arm and seed is kept."""

    request: RetrainRequest
    recipe: Recipe
    spec: ModelSpec
    base: Rows
    test: Rows
    sets: dict[str, Examples]  # decoded: "train", "test", and "target" where there are val rows
    device: torch.device
    listener: Listener
    changed: Changed | None = None  # twins of test rows
    twins: Examples | None = None  # the test rows with their twins, decoded
    group: Group | None = field(default_factory=current)  # the processes that train together
    narrowed: str | None = None  # what the target rows are known by where some of them are left out
    said_start: bool = False  # what of the first model is drawn anew
    said_row: bool = False  # that a last row is passed over
    trainings: list[Training] = field(default_factory=list)  # in order; one that is asked for again is named again
    _new: set[str] = field(default_factory=set)  # folders of what this run has trained itself
    _checked: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)  # kept trainings, to be taken once

    def folder(self, arm: Arm, seed: int) -> RunFolder:
        """Where an arm and seed are kept: a run folder of its own."""
        init = None if self.request.init is None else find_checkpoint(self.request.init)[0].digest
        recipe = {
            **self.recipe.describe_over(int((arm.weights > 0).sum())),
            "init": init,
            "pretrained": self.request.pretrained,
        }
        if self.spec.task is not None and self.spec.task.loss is not None:
            recipe["loss"] = self._loss_name
        measured = [self.test, self.base.manifest.rows("val")]
        name = arm_fingerprint(arm, self.base, measured, recipe, self.spec.as_dict(), seed)
        return RunFolder(self.request.output).arm(name)

    @functools.cached_property
    def loss(self) -> RowLoss:
        """What is trained on and measured."""
        return loss_of(self.spec)

    @functools.cached_property
    def _loss_name(self) -> str:
        """What a loss of the user's own is known by; once a run, and not longer: what it does may change."""
        return self.loss.name(self.spec.num_classes)

    def train(self, arm: Arm, seed: int, main: bool, values: bool = False) -> dict[str, Any]:
        """Train one arm with one seed, or return what is kept of it; ``values``: it must tell of its rows' epochs."""
        folder = self.folder(arm, seed)
        done, name = self._finished(arm, seed, main, values), folder.path.name
        self.trainings.append(Training(arm.name, seed, name, done is not None and name not in self._new))
        if done is not None:
            if name not in self._new:
                self.listener.detail(f"{arm.name}, seed {seed}: already trained")
            return done if done.get("measured") == self._measures() else self._measured_again(folder, done, arm)
        return self._train_arm(arm, seed, main, values)

    def train_shared(self, jobs: list[tuple[Arm, int, bool]]) -> None:
        """Train each of (arm, seed, whether it is the main arm) that is not kept, beside other processes that do so.

        ``train`` finds them then.
        """

        def work(arm: Arm, seed: int, main: bool) -> None:
            done = self._finished(arm, seed, main)
            if done is None:
                self._train_arm(arm, seed, main)
            elif done.get("measured") != self._measures():
                self._measured_again(self.folder(arm, seed), done, arm)
            else:  # every byte of it has been read: once is enough
                self._checked[self._kept_as(arm, seed, main)] = done

        self.share([(self.folder(job[0], job[1]).path.name, functools.partial(work, *job)) for job in jobs])

    def share(self, works: list[tuple[str, Callable[[], None]]]) -> None:
        """Do named works that other processes may be at, each once; one has to look whether it is left to do."""
        waiting = "waiting for a training that another process is at"
        RunFolder(self.request.output).claims().share(works, lambda: self.listener.note(waiting))

    def _keep(self, seed: int, main: bool) -> int:
        """How many checkpoints are kept: of the main arm's first seed."""
        return min(self.request.keep_checkpoints, self.recipe.rounds) if main and seed == self.request.seed else 0

    def _finished(self, arm: Arm, seed: int, main: bool, values: bool = False) -> dict[str, Any] | None:
        """What is kept of a training with all that is asked of it; None where it has to be trained."""
        name, keep, asked = kept_as = self._kept_as(arm, seed, main, values)
        known = self._checked.pop(kept_as, None)
        if known is not None:
            return known
        return finished_training(RunFolder(self.request.output).arm(name), keep, self.listener, asked)

    def _kept_as(self, arm: Arm, seed: int, main: bool, values: bool = False) -> tuple[str, int, frozenset[str]]:
        """The folder of a training, and what is asked of it: how many checkpoints, and which records."""
        first = main and seed == self.request.seed
        asked = {"values"} if values or (first and self.request.wants_epochs) else set[str]()
        asked |= {"moments"} if first and self.request.wants_moments else set[str]()
        return self.folder(arm, seed).path.name, self._keep(seed, main), frozenset(asked)

    def _train_arm(self, arm: Arm, seed: int, main: bool, values: bool = False) -> dict[str, Any]:
        """Train an arm with a seed, whatever is kept of it, and keep it."""
        folder, keep = self.folder(arm, seed), self._keep(seed, main)
        self._new.add(folder.path.name)
        values = values or (main and seed == self.request.seed and self.request.records_epochs)
        model, steps, notes = self.fit(arm, seed, f"train {arm.name}, seed {seed}", folder, keep, values)
        checkpoints = [asdict(c) for c in notes.checkpoints]
        result = {"seed": seed, "steps": steps, "checkpoints": checkpoints, **self._measure(model, arm)}
        folder.write_weights(WEIGHTS_FILE, model, {"model": self.spec.as_dict(), "step": steps})
        self._write_model_files(folder)
        folder.write(replace(notes.added_to(self._record(seed, arm, folder)), steps=steps))
        folder.write_measures(result)
        return result

    def fit(
        self, arm: Arm, seed: int, what: str, folder: RunFolder, keep: int = 0, values: bool = False
    ) -> tuple[nn.Module, int, TrainingNotes]:
        """A model trained on an arm, its steps, and what was kept on the way in a folder: checkpoints, rows' values."""
        seed_draws(seed)
        model = self._model()
        data = labelled(self.sets["train"], arm.labels, arm.weights)
        self._say_passed_over(model, int((arm.weights > 0).sum()))
        with self.listener.progress(what, self.recipe.rounds, "epochs") as progress:
            notes = TrainingNotes(folder, model, self.spec, progress)
            notes.keep_checkpoints(keep, self.recipe.rounds)
            seen = None
            if values and self.recipe.has_epochs:
                seen = notes.keep_values(self._row_keys(arm), arm.labels, arm.weights > 0, self.loss)
            watch = notes.keep_moments if keep and self.request.wants_moments else None
            steps = self._train(model, data, seed, notes.on_epoch, seen, watch)
        return model, steps, notes

    def _train(self, model: nn.Module, data: Examples, seed: int, *told: Any) -> int:
        """Train in place, by all processes of the run where there are several; returns the number of steps."""
        from influence_cli.model.train.sgd import train

        group = helpers(self.request, self.recipe, self.group)
        if group is None:
            return train(model, data, self.recipe, seed, self.device, *told)
        run = (self.request, self.recipe, seed, self.base.ids)
        return train_together(group, *run, model, data, self.device, *told)

    def _say_passed_over(self, model: nn.Module, rows: int) -> None:
        """Once a run, that a row of every epoch is trained on in no batch, and what would change it."""
        from influence_cli.model.train.sgd import passes_over_one

        if self.said_row or not passes_over_one(model.train(), self.recipe, rows):
            return
        self.said_row, size = True, self.recipe.batch_size
        self.listener.note(
            f"{rows:,} rows in batches of {size:,} leave 1 row over in each epoch, another each time, which is "
            f"passed over: BatchNorm cannot normalise a batch of one; --batch-size {self._whole(rows)} leaves none over"
        )

    def _whole(self, rows: int) -> int:
        """The next larger size of batches that leaves no single row over."""
        sizes = itertools.count(self.recipe.batch_size + 1)
        return next(b for b in sizes if not replace(self.recipe, batch_size=b).leaves_one(rows))

    def _row_keys(self, arm: Arm) -> Keys:
        """Keys [n, 16] of the rows under the labels that an arm is trained on."""
        if np.array_equal(arm.labels, self.base.labels):
            return self.base.row_keys
        return row_keys(self.base.payload_keys, arm.labels)

    def _measured_again(self, folder: RunFolder, done: dict[str, Any], arm: Arm) -> dict[str, Any]:
        """What was kept of a training, with what is measured by now."""
        kept = {name: value for name, value in done.items() if name not in (*GAPS, *FLIPS)}
        result = {**kept, **self._measure(self.trained(folder), arm)}
        folder.write_measures(result)
        return result

    def trained(self, folder: RunFolder) -> nn.Module:
        """The model that a folder holds, in the precision that it was trained in."""
        import torch

        from influence_cli.model.build import load_model
        from influence_cli.model.train.recipe import LBFGS

        dtype = torch.float64 if self.recipe.optimizer == LBFGS else None
        return load_model(self.spec, find_checkpoint(str(folder.path))[0], dtype)

    def _model(self) -> nn.Module:
        from influence_cli.model.build import build_model, check_input, start_model

        if self.request.init is not None:
            told, self.said_start = SILENT if self.said_start else self.listener, True  # once, not for every arm
            return start_model(self.spec, find_checkpoint(self.request.init)[0], told)
        model = build_model(self.spec, self.request.pretrained)
        check_input(model, self.spec)
        return model

    def _measures(self) -> int | str:
        """What stands for the measures taken: they are others where the groups, or the changed texts, are others."""
        groups, by = groups_of(self.test, self.request.inputs.group), list[str]()
        if groups is not None:
            keys = [key.tobytes().hex() for key in self.test.row_keys]
            by.append(fingerprint("groups", 1, rows=[list(row) for row in zip(keys, groups.tolist(), strict=True)]))
        if self.changed is not None:
            by.append(self.changed.digest)
        if self.narrowed is not None:
            by.append(self.narrowed)
        return f"{MEASURED} by {' and '.join(by)}" if by else MEASURED

    def _measure(self, model: nn.Module, arm: Arm) -> dict[str, Any]:
        """Train accuracy on the arm's own labels; accuracy, balanced accuracy and loss on target and test rows."""
        from influence_cli.model.train.sgd import predict

        out: dict[str, Any] = {"measured": self._measures()}
        for name, data in self.sets.items():
            logits = predict(model, data, self.device)
            labels, kept = data.labels, np.ones(len(data), dtype=bool)
            if name == "train":
                labels, kept = arm.labels, arm.weights > 0
            measured = self.loss.quality(logits[kept], labels[kept])
            if name == "test" and self.loss.by_class:
                measured.update(beyond_accuracy(logits, self.test, labels, self.request.inputs.group))
                measured.update(self._flips(model, logits))
            out.update({key if name == "test" else f"{name}_{key}": value for key, value in measured.items()})
        return out

    def _flips(self, model: nn.Module, logits: NDArray[np.float64]) -> dict[str, float]:
        """How often the prediction of a test row is not that of its changed twin, if such are looked at."""
        if self.changed is None or self.twins is None:
            return {}
        from influence_cli.model.train.sgd import predict

        return flips_of(logits, predict(model, self.twins, self.device), self.test, self.changed)

    def on_rows(self, arm: Arm, seed: int) -> Measured:
        """What a finished training gives each test row."""
        from influence_cli.model.train.sgd import predict

        logits = predict(self.trained(self.folder(arm, seed)), self.sets["test"], self.device)
        labels = self.sets["test"].labels
        losses = self.loss.losses(logits, labels)
        if self.spec.is_language:
            return OnTexts(losses, logits[:, TOKENS])
        if not self.loss.by_class:
            return OnRows(None, losses, labels, right=self.loss.hits(logits, labels))
        return OnRows(softmax(logits), losses, labels, groups_of(self.test, self.request.inputs.group))

    def _write_model_files(self, folder: RunFolder) -> None:
        """Put what transformers wants of its models beside the weights."""
        if self.spec.network is not None:
            from influence_cli.model.transformers_model import write_files

            write_files(self.spec, folder.path, self.request.init)

    def _record(self, seed: int, arm: Arm, folder: RunFolder) -> RunRecord:
        """What a run folder says of a training that is kept in ``folder``."""
        return RunRecord(
            model=self.spec.as_dict(),
            recipe={**self.recipe.describe(), "lr": self.recipe.peak_lr},
            seed=seed,
            init=self.request.init,
            pretrained=self.request.pretrained,
            trained_rows=int((arm.weights > 0).sum()),
            arm=folder.path.name,
            asked=asked_of(self.request),
        )

    def finish(self, main: Arm, metrics: dict[str, Any], notes: dict[str, Any]) -> None:
        """Put the main arm's first weights at the top of the folder, with its record, the run's notes and metrics."""
        seed, top = self.request.seed, RunFolder(self.request.output)
        kept, first = self.folder(main, seed), metrics["arms"][main.name]["seeds"][str(seed)]
        checkpoints = tuple(map(EpochCheckpoint.from_json, first["checkpoints"]))
        trained = kept.read()
        there = top.read()
        if not notes.get("folds") and there is not None and there.arm == kept.path.name:
            notes = {**notes, "folds": there.folds}  # of the same training, asked for earlier
        record = replace(self._record(seed, main, kept), checkpoints=checkpoints, **notes)
        if trained is not None:
            noted: dict[str, Any] = {"values": trained.values, "moments": trained.moments, "epochs": trained.epochs}
            record = replace(record, seconds=trained.seconds, **noted)
        top.copy_files([*record.weights, *record.values, *record.moments, *record.folds], kept)
        self._write_model_files(top)
        top.write(record)
        top.write_metrics(metrics)
