"""The fit set: the rows that curvature is fitted on, named by what they are, and the l2 that was trained with.

By default it is the run's train rows; ``--fit-rows MANIFEST`` pins it to another manifest's, so that rows can come
and go without a new fit.  Rows of weight 0 are left out, as training leaves them out.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.labels import numbered_as
from influence_cli.data.manifest import Rows
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import Listener
from influence_cli.methods.shapes.preconditioned import CURVATURE, DRAWS, GRADIENTS, Preconditioned
from influence_cli.model.losses import loss_of
from influence_cli.model.run_folder import RunFolder
from influence_cli.model.spec import ModelSpec
from influence_cli.model.task import Task
from influence_cli.settings import Inputs
from influence_cli.stages.run.usable_rows import check_alike, usable_now
from influence_cli.store.keys import digest_of_sorted, fingerprint

COUPLED = ("sgd", "lbfgs")  # optimizers whose weight decay is the gradient of (l2/2) |theta|^2


@dataclass(frozen=True, eq=False)
class FitSet:
    """Rows of positive weight, and what pins them (None: they are the run's own): a manifest, or rows in memory."""

    rows: Rows
    pinned: Any

    @staticmethod
    def of(rows: Rows, pinned: Any) -> FitSet:
        """Those of the rows that training would not leave out."""
        return FitSet(rows.take(rows.weights > 0), pinned)

    @functools.cached_property
    def keys(self) -> NDArray[np.uint8]:
        """Row key and weight of every row [n, 24]: weights are not in row keys, and change the curvature."""
        weights = np.ascontiguousarray(self.rows.weights.astype("<f8")).view(np.uint8).reshape(-1, 8)
        return np.concatenate([self.rows.row_keys, weights], axis=1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name of the multiset of (row key, weight): order and ids do not matter."""
        return fingerprint("fit-set", 1, rows=digest_of_sorted(self.keys))

    @functools.cached_property
    def weight(self) -> float:
        """The training objective's n: the sum of the weights."""
        return float(np.sort(self.rows.weights).sum())  # sorted: the same bits in whatever order the rows stand

    def less(self, unusable: set[str]) -> Rows:
        """The rows that are not among these, by hex row key."""
        keys = [key.tobytes().hex() for key in self.rows.row_keys] if unusable else []
        return self.rows.take(np.array([key not in unusable for key in keys], dtype=bool)) if unusable else self.rows

    def outside(self, rows: Rows) -> list[str]:
        """Hex row keys of those that are not among ``rows``."""
        left = self.rows.take(~np.isin(self.rows.index, rows.index))
        return sorted({key.tobytes().hex() for key in left.row_keys})

    def differs_from(self, keys: NDArray[np.uint8]) -> tuple[int, int]:
        """(rows of this fit set that are not among ``keys`` [m, 24], rows among them that are not of this)."""
        mine, theirs = self._counted, _counts(keys)
        new = sum(max(0, count - theirs.get(key, 0)) for key, count in mine.items())
        gone = sum(max(0, count - mine.get(key, 0)) for key, count in theirs.items())
        return new, gone

    @functools.cached_property
    def _counted(self) -> dict[bytes, int]:
        return _counts(self.keys)

    def as_dict(self) -> dict[str, Any]:
        """What provenance says of it."""
        locator = str(self.pinned) if isinstance(self.pinned, str | Path) else None
        about = {"rows": len(self.rows), "weight": self.weight}
        in_memory = {"in_memory": True} if self.pinned is not None and locator is None else {}
        return {"locator": locator, "fingerprint": self.fingerprint, **about, **in_memory}


def _counts(keys: NDArray[np.uint8]) -> dict[bytes, int]:
    counts: dict[bytes, int] = {}
    for key in keys:
        counts[key.tobytes()] = counts.get(key.tobytes(), 0) + 1
    return counts


def refuse_without_curvature(solvers: dict[str, Preconditioned], model: ModelSpec) -> None:
    """Refuse methods whose curvature a model's loss does not have.

    Raises:
        UsageError: it has none at all, or labels are not drawn from it as the method asks.
    """
    loss = loss_of(model)
    known = {CURVATURE: loss.curved, DRAWS: loss.curved or loss.draws, GRADIENTS: loss.curved or loss.draws}
    for name, solver in solvers.items():
        if not known[solver.made_of] and model.is_language:
            what = f"{name} needs the curvature of outputs, and a language model's are the losses themselves"
            raise UsageError(what, fix="use ekfac, datainf or ip")
        if not known[solver.made_of]:
            what = "curvature is that of a loss of ours (--loss), and the task has a loss of its own"
            raise UsageError(what, fix="use ip")
        if loss.draws and getattr(solver, "labels", "sampled") == "exact":
            what = "ekfac.labels=exact needs a backward pass for every token of the vocabulary at every position"
            raise UsageError(what, fix="leave it out: tokens are drawn from the model, as often as ekfac.draws says")


def open_fit_set(inputs: Inputs, train: Rows, model: ModelSpec, listener: Listener) -> FitSet:
    """The run's train rows, or those of the manifest that pins them.

    Raises:
        ManifestError: none has a positive weight, or a label has no output in the model.
    """
    rows = train
    if inputs.fit_rows is not None:
        pinned, own = open_manifest(inputs.fit_rows, inputs.label, inputs.skip_bad), train.manifest
        named = own.source if own.classes else "the checkpoint"
        pinned = numbered_as(pinned, own.classes or model.classes, named, listener)
        check_alike(pinned, own, model)
        rows = usable_now(pinned.rows("train"), model, inputs)
    fit = FitSet.of(rows, inputs.fit_rows)
    if len(fit.rows) == 0:
        fix = "give some a weight above 0"
        raise ManifestError("no train rows to fit curvature on", where=rows.manifest.source, fix=fix)
    return fit


def with_trained_l2(
    method: Preconditioned, name: str, locator: str, listener: Listener, task: Task | None = None, weight: float = 1.0
) -> Preconditioned:
    """The method with the l2 that its checkpoint was trained with, where it was not given one.

    SGD's and L-BFGS's weight decay is the gradient of (l2/2) |theta|^2 where the loss is a batch mean; AdamW's
    is the gradient of nothing, so it counts as 0.  A ``task`` that was fitted elsewhere says its own, for fit rows of
    that ``weight`` in all.
    """
    if method.l2 is not None:
        return method
    if task is not None and task.penalty is not None:
        return _with_penalty(method, name, task.penalty(weight), listener)
    record = RunFolder(locator).read()
    recipe = {} if record is None else record.recipe
    optimizer, decay = recipe.get("optimizer"), recipe.get("weight_decay", 0.0)
    if optimizer in COUPLED:
        return dataclasses.replace(method, l2=float(decay))
    if optimizer is not None and decay and not method.decay_apart:
        listener.warn(
            f"{name}: the checkpoint was trained by {optimizer}, whose weight decay {decay:g} is no term of the "
            f"objective; curvature has l2 0 (or pass --set {name}.l2=X)"
        )
    return dataclasses.replace(method, l2=0.0)


def _with_penalty(method: Preconditioned, name: str, l2: dict[str, float], listener: Listener) -> Preconditioned:
    """The method with a fitted model's own l2 by parameter, which not every method can have as it is."""
    largest = max(l2.values())
    said = ", ".join(f"{value:.3g} on {parameter}" for parameter, value in l2.items())
    if len(set(l2.values())) > 1 and not method.l2_by_parameter:
        listener.warn(
            f"{name}: the l2 of the fitted model is {said}, and this method puts {largest:.3g} on every parameter; "
            "method exact has it as it was fitted"
        )
    else:
        listener.note(f"{name}: the l2 of the fitted model: {said}")
    return method.with_l2(l2)
