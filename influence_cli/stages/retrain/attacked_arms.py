"""Test rows under attack: each arm's accuracy when a share of them is attacked (methods.md 6.7).

``static`` attacks are made once against the model without edits, ``adaptive`` ones against each arm's own model.  In
draw d the rows come in an order of their own, by a hash of their ids, and a fraction f attacks the first round(f n) of
them: the same rows in every arm and for every seed, and more of the same rows as f grows.  Labels are used by the
gradient attacks and by no linear one; no test row is ever seen by a score.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.manifest import Rows
from influence_cli.errors import UsageError, nearest
from influence_cli.model.losses import loss_of
from influence_cli.settings import Options, build_options
from influence_cli.stages.retrain.arms import Arm, draw_order
from influence_cli.stages.retrain.training_run import TrainingRun
from influence_cli.store.keys import fingerprint

if TYPE_CHECKING:
    import torch
    from torch import nn

    from influence_cli.engines.attacks import Attack
    from influence_cli.model.examples import Examples
    from influence_cli.model.spec import ModelSpec

FRACTIONS = (0.05, 0.10, 0.15, 0.20, 0.25)
DRAWS = 10
BATCH = 512
FEWER = 8  # times as few texts, whose activations grow with their tokens

Bools = NDArray[np.bool_]


def attack_of(asked: str | None, options: Options, spec: ModelSpec) -> Attack | None:
    """How test rows are attacked; not asked for, only linear models of features are, at the cost of a pass.

    Raises:
        UsageError: an unknown attack, or one that such a model cannot be attacked by.
    """
    from influence_cli.engines.attacks import ATTACKS, Attack

    by_class = loss_of(spec).by_class
    if asked == "none" or (asked is None and (spec.payload_kind.ragged or not by_class)):
        return None
    if asked is None and Attack().kind(spec) != "linear":
        return None
    if not by_class:
        what = "accuracy under attack is of predicted classes, and these labels are none"
        raise UsageError(what, fix="leave --attack out; --objective robustness scores by the attacked loss")
    if asked not in (None, *ATTACKS):
        raise UsageError(f"--attack {asked!r} is unknown", fix=nearest(asked, [*ATTACKS, "none"]))
    fields = {f.name for f in dataclasses.fields(Attack)}
    given = {k: v for k, v in options.get("robustness", {}).items() if k in fields}
    found = build_options(Attack, "robustness", {**given, **({} if asked is None else {"attack": asked})})
    found.kind(spec)
    return found


def attacked_rows(test: Rows, seed: int) -> NDArray[np.bool_]:
    """Which test rows are attacked [F, D, n], for every fraction and draw."""
    n = len(test)
    rows = np.zeros((len(FRACTIONS), DRAWS, n), dtype=bool)
    for d in range(DRAWS):
        order = draw_order(test.ids, seed, f"attack {d}")
        for f, share in enumerate(FRACTIONS):
            rows[f, d, order[: round(share * n)]] = True
    return rows


@dataclass(frozen=True, eq=False)
class AttackedRows:
    """Rows, decoded, the attack on them, and what the models are that are asked to predict them."""

    how: Attack
    spec: ModelSpec
    rows: Rows
    data: Examples
    seed: int
    device: torch.device

    @functools.cached_property
    def chosen(self) -> Bools:
        """Which rows are attacked [F, D, n], for every fraction and draw."""
        return attacked_rows(self.rows, self.seed)

    def clean(self, model: nn.Module) -> Bools:
        """Whether a model predicts each row [n] right as it is."""
        from influence_cli.model.train.sgd import predict

        return predict(model, self.data, self.device).argmax(axis=1) == self.data.labels

    @property
    def _batches(self) -> Iterator[slice]:
        size = BATCH // FEWER if self.spec.payload_kind.ragged else BATCH
        return (slice(first, first + size) for first in range(0, len(self.data), size))

    def attacked(self, model: nn.Module) -> list[Any]:
        """Every row attacked against a model, as decoded, in batches [b, ...]."""
        import torch

        from influence_cli.engines.attacked import attack

        model.to(self.device).eval()
        data, parts = self.data, list[Any]()
        for here in self._batches:
            moved = attack(
                model,
                self.spec,
                self.how,
                data.at(here).to(self.device),
                torch.from_numpy(data.labels[here]).to(self.device),
                self.rows.payload_keys[here],
                seed=self.seed,
                loss=loss_of(self.spec),
                names=[f"test row id={i}" for i in data.ids[here]],
            )
            parts.append(moved.to("cpu"))
        return parts

    def right(self, model: nn.Module, inputs: list[Any]) -> Bools:
        """Whether a model predicts attacked rows right [n]."""
        import torch

        from influence_cli.engines.attacked import attacked_input
        from influence_cli.model.named_tensors import as_argument

        dtype = next(p.dtype for p in model.parameters())
        out: list[NDArray[Any]] = []
        with torch.no_grad():
            for batch in inputs:
                x = attacked_input(batch.to(self.device, dtype), self.spec)
                out.append(model(as_argument(x)).argmax(1).cpu().numpy())
        return np.concatenate(out) == self.data.labels

    def accuracy(self, model: nn.Module) -> float:
        """A model's own accuracy, the mean over fractions and draws: static and adaptive are one here."""
        return float(np.where(self.chosen, self.right(model, self.attacked(model)), self.clean(model)).mean())


def measure_attacks(
    run: TrainingRun, how: Attack, arms: list[Arm], results: dict[str, dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """Add to every arm's results by seed what attacks do to it; returns what is the same for all of them."""
    base = next((arm for arm in arms if arm.name == "no edit"), arms[0])
    rows = AttackedRows(how, run.spec, run.test, run.sets["test"], run.request.seed, run.device)
    facts = how.describe(run.spec, rows.seed)
    for seed in results[base.name]:
        undefended = run.folder(base, int(seed))
        name = undefended.path.name
        key = fingerprint("attacked", 1, how=facts, base=name, draws=DRAWS, fractions=FRACTIONS, seed=rows.seed)
        static: list[Any] | None = None
        for arm in (a for a in arms if seed in results[a.name]):  # further draws of a control have the first alone
            result = results[arm.name][seed]
            if result.get("attack", {}).get("key") != key:
                if static is None:
                    static = rows.attacked(run.trained(undefended))
                folder = run.folder(arm, int(seed))
                result.update(_measured(rows, run.trained(folder), static, key))
                folder.write_measures(result)
    return {"kind": facts["attack"], "settings": facts, "fractions": list(FRACTIONS), "draws": DRAWS}


def _measured(rows: AttackedRows, model: nn.Module, static: list[Any], key: str) -> dict[str, Any]:
    clean, labels = rows.clean(model), rows.data.labels
    found: dict[str, Any] = {"attack": {"key": key}}
    for who, inputs in (("static", static), ("adaptive", rows.attacked(model))):
        right = rows.right(model, inputs)
        by_draw = np.where(rows.chosen, right, clean)  # [F, D, n]
        accuracy = by_draw.mean(axis=2)
        recalls = np.stack([by_draw[:, :, labels == c].mean(axis=2) for c in np.unique(labels)])
        found["attack"][who] = {
            "accuracy": accuracy.mean(axis=1).tolist(),
            "sd": accuracy.std(axis=1, ddof=1).tolist(),
            "balanced_accuracy": recalls.mean(axis=0).mean(axis=1).tolist(),
            "success_rate": float((~right[clean]).mean()) if clean.any() else None,
        }
        found[f"attacked_{who}"] = float(accuracy.mean())
    return found
