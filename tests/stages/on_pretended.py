"""Run as a script by ``test_on_a_device``: how far scores on a pretended device are from the processor's, as JSON."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

import influence_cli
import influence_cli.model.examples as on_the_way
from tests import pretended
from tests.cases import digits_table, examples, feature_table, write

FEATURES: dict[str, dict[str, Any]] = {
    "ip": {}, "ip-ensemble": {"members": 2}, "exact": {}, "cg": {"max_iterations": 4}, "ekfac": {}, "datainf": {},
    "source": {"segments": 2}, "self-tracin": {}, "loss": {}, "oof-loss": {}, "knn": {"k": 3}, "head-vm": {},
}  # fmt: skip  # methods, one for every way to compute, and their options


def columns(table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """Columns of scores."""
    names = [
        n for n in table.column_names if n.startswith("score_") and pa.types.is_floating(table.schema.field(n).type)
    ]
    return {n: table.column(n).to_numpy(zero_copy_only=False) for n in names}


def scores(here: Path, kind: str, device: str, method: str, **options: Any) -> dict[str, NDArray[np.float64]]:
    """Scores by a method, from a store of their own."""
    return columns(
        influence_cli.score(
            str(here / f"{kind}.parquet"), checkpoint=str(here / kind), device=device, method=method, batch_size=16,
            options={method: options}, store=str(here / f"store-{kind}-{method}-{device}"),
        )
    )  # fmt: skip


def apart(here: Path, kind: str, method: str, **options: Any) -> float:
    """The largest difference between both places, of the largest score."""
    expected, found = (scores(here, kind, device, method, **options) for device in ("cpu", pretended.NAME))
    assert expected
    assert list(found) == list(expected)
    return max(
        float(np.nanmax(np.abs(found[n] - e)) / max(float(np.nanmax(np.abs(e))), 1e-30)) for n, e in expected.items()
    )


def refused(run: Any) -> str:
    """The error of a call, or nothing."""
    try:
        run()
    except (RuntimeError, TypeError) as error:
        return type(error).__name__
    return ""


def refusals(device: torch.device) -> dict[str, Any]:
    """What the device refuses, and when copies arrive."""
    here, there = torch.ones(3), torch.ones(3, device=device)
    arrive = on_the_way.sent_back(2 * there)
    early = [bool(into.isnan().all()) for into, _ in pretended.late]
    source = torch.arange(3.0).pin_memory()
    copied = source.to(device, non_blocking=True)
    source.fill_(7.0)
    return {
        "both places": refused(lambda: there + here),
        "numpy": refused(there.numpy),
        "generator": refused(lambda: torch.randn(3, generator=torch.Generator(), device=device)),
        "early": early,
        "later": arrive().tolist(),
        "overwritten": copied.tolist(),
    }


def main(here: Path) -> dict[str, Any]:
    """All that is asked of it."""
    write(feature_table(examples(24, 24, 6)), here / "features.parquet")
    write(digits_table(12, 6, 6), here / "images.parquet")
    kept: dict[str, Any] = {"epochs": 4, "device": "cpu"}
    influence_cli.retrain(
        str(here / "features.parquet"), str(here / "features"), model="mlp:4", keep_checkpoints=4, folds=2, **kept
    )
    sized: dict[str, Any] = {"model": "test_resnet", "input_size": 32, "epochs": 1}
    trained = {}
    with mock.patch.object(on_the_way, "ASYNCHRONOUS", (pretended.NAME,)), pretended.pretended() as device:
        found: dict[str, Any] = {"refusals": refusals(device), "apart": {}}
        for name, options in FEATURES.items():
            found["apart"][name] = apart(here, "features", name, **options)
        for place in ("images-there", "images"):
            on = "cpu" if place == "images" else pretended.NAME
            metrics = influence_cli.retrain(str(here / "images.parquet"), str(here / place), device=on, **sized)
            (arm,) = metrics["arms"].values()
            trained[place] = next(iter(arm["seeds"].values()))["loss"]
        found["apart"]["images"] = apart(here, "images", "ip")
    return {**found, "trained": trained}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
