"""Test rows under attack: each arm's accuracy when a share of them is attacked (methods.md 6.7).

``static`` attacks are made once against the model without edits, ``adaptive`` ones against each arm's own model.  In
draw d the rows come in an order of their own, by a hash of their ids, and a fraction f attacks the first round(f n) of
them: the same rows in every arm and for every seed, and more of the same rows as f grows.  Labels are used by the
gradient attacks and by no linear one; no test row is ever seen by a score.
"""

from __future__ import annotations

import dataclasses
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

Bools = NDArray[np.bool_]


def attack_of(asked: str | None, options: Options, spec: ModelSpec) -> Attack | None:
    """How test rows are attacked; not asked for, only linear models of features are, at the cost of a pass.

    Raises:
        UsageError: an unknown attack.
    """
    from influence_cli.engines.attacks import ATTACKS, Attack

    if asked == "none" or (asked is None and Attack().kind(spec) != "linear"):
        return None
    if asked not in (None, *ATTACKS):
        raise UsageError(f"--attack {asked!r} is unknown", fix=nearest(asked, [*ATTACKS, "none"]))
    fields = {f.name for f in dataclasses.fields(Attack)}
    given = {k: v for k, v in options.get("robustness", {}).items() if k in fields}
    return build_options(Attack, "robustness", {**given, **({} if asked is None else {"attack": asked})})


@dataclass(frozen=True, eq=False)
class _Predicted:
    """Whether each test row [n] is predicted right as it is, and attacked."""

    clean: Bools
    attacked: Bools


def attacked_rows(test: Rows, seed: int) -> NDArray[np.bool_]:
    """Which test rows are attacked [F, D, n], for every fraction and draw."""
    n = len(test)
    rows = np.zeros((len(FRACTIONS), DRAWS, n), dtype=bool)
    for d in range(DRAWS):
        order = draw_order(test.ids, seed, f"attack {d}")
        for f, share in enumerate(FRACTIONS):
            rows[f, d, order[: round(share * n)]] = True
    return rows


def measure_attacks(
    run: TrainingRun, how: Attack, arms: list[Arm], results: dict[str, dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """Add to every arm's results by seed what attacks do to it; returns what is the same for all of them."""
    base = next((arm for arm in arms if arm.name == "no edit"), arms[0])
    chosen = attacked_rows(run.test, run.request.seed)
    facts = how.describe(run.spec, run.request.seed)
    for seed in results[base.name]:
        named = run.folder(base, int(seed)).path.name
        key = fingerprint("attacked", 1, how=facts, base=named, draws=DRAWS, fractions=FRACTIONS, seed=run.request.seed)
        static: NDArray[Any] | None = None
        for arm in arms:
            result = results[arm.name][seed]
            if result.get("attack", {}).get("key") != key:
                if static is None:
                    static = _attacked(run, how, run.trained(run.folder(base, int(seed))))
                result.update(_measured(run, how, run.trained(run.folder(arm, int(seed))), static, chosen, key))
                run.folder(arm, int(seed)).write_measures(result)
    return {"kind": facts["attack"], "settings": facts, "fractions": list(FRACTIONS), "draws": DRAWS}


def _measured(
    run: TrainingRun, how: Attack, model: nn.Module, static: NDArray[Any], chosen: Bools, key: str
) -> dict[str, Any]:
    from influence_cli.model.train.sgd import predict

    assert run.sets is not None
    test = run.sets["test"]
    clean = predict(model, test, run.device).argmax(axis=1) == test.labels
    found: dict[str, Any] = {"attack": {"key": key}}
    for who, inputs in (("static", static), ("adaptive", _attacked(run, how, model))):
        hit = _Predicted(clean, _right(model, run.spec, run.device, inputs, test.labels))
        by_draw = np.where(chosen, hit.attacked, hit.clean)  # [F, D, n]
        accuracy = by_draw.mean(axis=2)
        recalls = np.stack([by_draw[:, :, test.labels == c].mean(axis=2) for c in np.unique(test.labels)])
        found["attack"][who] = {
            "accuracy": accuracy.mean(axis=1).tolist(),
            "sd": accuracy.std(axis=1, ddof=1).tolist(),
            "balanced_accuracy": recalls.mean(axis=0).mean(axis=1).tolist(),
            "success_rate": float((~hit.attacked[clean]).mean()) if clean.any() else None,
        }
        found[f"attacked_{who}"] = float(accuracy.mean())
    return found


def attacked_accuracy(
    model: nn.Module, spec: ModelSpec, how: Attack, rows: Rows, data: Examples, seed: int, device: torch.device
) -> float:
    """A model's own accuracy under attack, the mean over fractions and draws: static and adaptive are one here."""
    from influence_cli.model.train.sgd import predict

    clean = predict(model, data, device).argmax(axis=1) == data.labels
    hit = _right(model, spec, device, attacked_inputs(model, spec, how, rows, data, seed, device), data.labels)
    return float(np.where(attacked_rows(rows, seed), hit, clean).mean())


def _attacked(run: TrainingRun, how: Attack, model: nn.Module) -> NDArray[Any]:
    assert run.sets is not None
    return attacked_inputs(model, run.spec, how, run.test, run.sets["test"], run.request.seed, run.device)


def attacked_inputs(
    model: nn.Module, spec: ModelSpec, how: Attack, rows: Rows, data: Examples, seed: int, device: torch.device
) -> NDArray[Any]:
    """Every row attacked against a model [n, ...], as decoded."""
    import torch

    from influence_cli.engines.attacked import attack

    model.to(device).eval()
    parts: list[NDArray[Any]] = []
    for first in range(0, len(data), BATCH):
        here = slice(first, first + BATCH)
        moved = attack(
            model,
            spec,
            how,
            data.at(here).to(device),
            torch.from_numpy(data.labels[here]).to(device),
            rows.payload_keys[here],
            seed=seed,
            loss=loss_of(spec.task),
            names=[f"test row id={i}" for i in data.ids[here]],
        )
        parts.append(moved.cpu().numpy())
    return np.concatenate(parts)


def _right(
    model: nn.Module, spec: ModelSpec, device: torch.device, inputs: NDArray[Any], labels: NDArray[np.int64]
) -> Bools:
    """Whether a model predicts attacked rows right [n]."""
    import torch

    from influence_cli.engines.attacked import attacked_input

    dtype = next(p.dtype for p in model.parameters())
    out: list[NDArray[Any]] = []
    with torch.no_grad():
        for first in range(0, len(inputs), BATCH):
            x = torch.from_numpy(inputs[first : first + BATCH]).to(device, dtype)
            out.append(model(attacked_input(x, spec)).argmax(1).cpu().numpy())
    return np.concatenate(out) == labels
