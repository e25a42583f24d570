"""Trainings on parts of the train rows, each measured on target and test rows and kept, so that none runs twice.

A training is named by its rows (id, payload, label, weight), recipe, model, seed and start, and by the rows it is
measured on.  Kept of it are the loss and the margin of each of those; the weights are not.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.events import SILENT, Listener, Progress
from influence_cli.model.losses import RowLoss, loss_of
from influence_cli.model.seeded import seed_draws
from influence_cli.stages.evaluate.counterfactuals.pool import Floats, Outcome, Refit
from influence_cli.stages.evaluate.counterfactuals.trainer import Trainer
from influence_cli.store import FileFolder, Keys, fingerprint
from influence_cli.store.keys import canonical_json, digest_of_sorted
from influence_cli.store.shards import key_order

if TYPE_CHECKING:
    from torch import nn

    from influence_cli.model.checkpoints import Checkpoint
    from influence_cli.model.examples import Examples
    from influence_cli.model.train.recipe import Recipe


@dataclass(eq=False)
class Refitter:
    """Trains what is asked for and not yet kept; everything else is read."""

    trainer: Trainer
    train: Rows
    used: NDArray[np.bool_]
    measured: dict[str, Rows]  # "target" and "test"
    folder: FileFolder
    listener: Listener = SILENT
    wanted: set[str] = field(default_factory=set)  # names of trainings: asked for ...
    done: set[str] = field(default_factory=set)  # ... and there now
    trained: int = 0  # how many were run by this object
    divide: Callable[[list[Refit], float | None, Progress], int] | None = None  # trains some by several processes
    _deadline: float | None = None
    _sets: dict[str, Examples] = field(default_factory=dict)

    @property
    def deterministic(self) -> bool:
        """Whether the seed changes nothing."""
        return self.trainer.recipe.optimizer == "lbfgs"

    @functools.cached_property
    def _tokens(self) -> Keys:
        """A key for every train row [n, 16]: of id, payload, label and weight."""
        train = self.train
        entries = zip(train.ids, train.row_keys, train.weights.tolist(), strict=True)
        texts = (canonical_json([i, k.tobytes().hex(), w]).encode() for i, k, w in entries)
        joined = b"".join(hashlib.blake2b(t, digest_size=16).digest() for t in texts)
        return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 16)

    @functools.cached_property
    def _loss(self) -> RowLoss:
        """The loss that is trained on and measured: cross-entropy, or that of the user's own task."""
        return loss_of(self.trainer.spec)

    def _recipe(self, refit: Refit) -> Recipe:
        """The recipe, with a penalty that makes a mean over fewer rows the sum over the divisor of all."""
        recipe = self.trainer.recipe
        if not refit.fixed_divisor or refit.kept[self.used].all():
            return recipe
        weights = self.train.weights
        share = float(weights[self.used].sum()) / float(weights[refit.kept].sum())
        return replace(recipe, weight_decay=recipe.weight_decay * share)

    def name(self, refit: Refit) -> str:
        """Everything that the outcome depends on."""
        return fingerprint(
            "refit",
            1,
            rows=digest_of_sorted(self._tokens[refit.kept]),
            recipe={**self._recipe(refit).describe_over(int(refit.kept.sum())), **self._own_loss},
            model=self.trainer.spec.as_dict(),
            start=self.trainer.start(),
            seed=None if self.deterministic else refit.seed,
            measured={name: rows.fingerprint() for name, rows in self.measured.items()},
        )

    @functools.cached_property
    def _own_loss(self) -> dict[str, str]:
        """The name of a loss of the user's own; nothing for cross-entropy."""
        spec = self.trainer.spec
        return {} if spec.task is None or spec.task.loss is None else {"loss": self._loss.name(spec.num_classes)}

    def of_checkpoint(self, checkpoint: Checkpoint) -> Outcome:
        """Loss and margin of target and test rows at a checkpoint as it is: what trainings are held against."""
        from influence_cli.model.build import load_model

        return self._outcome(self._measure(load_model(self.trainer.spec, checkpoint)))

    def kept(self, refits: list[Refit]) -> dict[str, int]:
        """How many distinct trainings are asked for, and how many of them are finished."""
        names = {self.name(a) for a in refits}
        return {"trainings": len(names), "kept": sum(self.folder.has(name) for name in names)}

    def stop_after(self, minutes: float | None) -> None:
        """Start no training after that many minutes from now."""
        self._deadline = None if minutes is None else time.monotonic() + 60.0 * minutes

    def time_is_over(self) -> bool:
        """Whether nothing more is to be started."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def run(self, refits: list[Refit]) -> list[Outcome | None]:
        """The outcome of each training asked for; None where the time was over before it."""
        names = [self.name(a) for a in refits]
        distinct = dict(zip(names, refits, strict=True))  # in order of first use
        stored = {name: found for name in distinct if (found := self.folder.read(name)) is not None}
        outcomes = {name: self._outcome(found) for name, found in stored.items()}
        lacking = [name for name in distinct if name not in outcomes]
        with self.listener.progress("retrain", len(distinct), "trainings", len(outcomes)) as progress:
            if self.divide is not None and len(lacking) > 1:
                self.trained += self.divide([distinct[name] for name in lacking], self._left(), progress)
                stored = {name: found for name in lacking if (found := self.folder.read(name)) is not None}
                outcomes |= {name: self._outcome(found) for name, found in stored.items()}
                lacking = []
            for name in lacking:
                if self.time_is_over():
                    break
                outcomes[name] = self._outcome(self.train_one(distinct[name]))
                progress.advance(1)
        self.wanted.update(distinct)
        self.done.update(outcomes)
        return [outcomes.get(name) for name in names]

    def train_one(self, refit: Refit) -> dict[str, NDArray[Any]]:
        """Train, measure and keep one."""
        measured = self._measure(self._fit(refit))
        about = {"model": self.trainer.spec.name, "rows": int(refit.kept.sum()), "seed": refit.seed}
        self.folder.write(self.name(refit), measured, about)
        self.trained += 1
        return measured

    def _left(self) -> float | None:
        """Minutes until nothing more is to be started."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) / 60.0

    def _fit(self, refit: Refit) -> nn.Module:
        from influence_cli.model.train.sgd import train

        seed_draws(refit.seed)
        model = self.trainer.model()
        if self.deterministic:
            model = model.double()
            model.load_state_dict(self._full_optimum)
        data = copy.copy(self._examples("train"))
        data.weights = np.where(refit.kept, self.train.weights, 0.0)
        train(model, data, self._recipe(refit), refit.seed, self.trainer.device, lambda *_: None)
        return model

    @functools.cached_property
    def _full_optimum(self) -> dict[str, Any]:
        """Where every fit of a convex loss starts: the optimum on all rows in use, itself found from zero."""
        import torch

        from influence_cli.model.train.convex import inputs_with_bias
        from influence_cli.model.train.sgd import train

        inputs_with_bias(self._examples("train"))
        model, data = self.trainer.model(), copy.copy(self._examples("train"))
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        data.weights = np.where(self.used, self.train.weights, 0.0)
        train(model, data, self.trainer.recipe, 0, self.trainer.device, lambda *_: None)
        return {k: v.clone() for k, v in model.state_dict().items()}

    def _examples(self, name: str) -> Examples:
        from influence_cli.model.examples import Examples

        if name not in self._sets:
            rows = self.train if name == "train" else self.measured[name]
            self._sets[name] = Examples(rows, self.trainer.spec, self.listener, f"{name} rows")
        return self._sets[name]

    def _measure(self, model: nn.Module) -> dict[str, NDArray[Any]]:
        """Loss and margin of target and test rows, in the order of their row keys."""
        from influence_cli.model.train.sgd import predict

        found: dict[str, NDArray[Any]] = {}
        for name, rows in self.measured.items():
            if len(rows):
                logits = predict(model, self._examples(name), self.trainer.device)
                order = _by_key(rows)
                found[f"{name}_loss"] = self._loss.losses(logits, rows.labels)[order]
                found[f"{name}_margin"] = self._loss.margins(logits, rows.labels)[order]
        return found

    def _outcome(self, stored: dict[str, NDArray[Any]]) -> Outcome:
        """What was measured, in the order in which the rows stand here."""
        arrays: dict[str, Floats] = {}
        for kind, rows in self.measured.items():
            for what in (f"{kind}_loss", f"{kind}_margin"):
                arrays[what] = np.empty(len(rows))
                if len(rows):
                    arrays[what][_by_key(rows)] = stored[what]
        return Outcome(**arrays, by_class=self._loss.by_class)


@functools.lru_cache(maxsize=4)
def _by_key(rows: Rows) -> NDArray[np.int64]:
    """Positions in the order of row keys, whatever order the rows stand in."""
    return key_order(rows.row_keys)
