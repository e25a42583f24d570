"""The arms of a ``retrain`` that its request names: the curated manifests, no edit, and their controls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.labels import numbered_as
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import Listener
from influence_cli.model.spec import ModelSpec
from influence_cli.stages.retrain.arms import Arm, base_arm, curated_arm, without
from influence_cli.stages.retrain.controls import control_arms
from influence_cli.stages.retrain.opening import open_table
from influence_cli.stages.retrain.request import RetrainRequest


def compared_arms(
    request: RetrainRequest,
    manifest: Manifest,
    base: Rows,
    left_out: NDArray[np.bool_],
    spec: ModelSpec,
    listener: Listener,
) -> list[Arm]:
    """The arms, the one whose checkpoint becomes the run's first.

    Raises:
        UsageError: arms are named and nothing to compare them with.
        ManifestError: a curated manifest does not fit the rows, or the model.
    """
    if request.against is None:
        if request.arms:
            raise UsageError("--arm needs --against", fix="pass --against MANIFEST, the rows before curation")
        return [without(base_arm("all rows" if request.edits is None else "no edit", base), left_out)]
    made: list[Arm] = []
    for name, source in (("curated", manifest), *request.arms):
        table = numbered_as(open_table(request, source), base.manifest.classes, base.manifest.source, listener)
        arm = curated_arm(name, base, table, left_out)
        _check_outputs(arm, base, table, spec)
        made += [arm, *control_arms(arm, base, table, request.seed, left_out)]
    return [made[0], without(base_arm("no edit", base), left_out), *made[1:]]


def _check_outputs(arm: Arm, base: Rows, table: Manifest, spec: ModelSpec) -> None:
    """Refuse a curated manifest that gives a row a label which the model has no output for."""
    outside = np.flatnonzero(arm.labels >= spec.num_classes)
    if len(outside):
        row = int(outside[0])
        raise ManifestError(
            f"label {arm.labels[row]} is outside the model's {spec.num_classes} classes",
            where=f"{table.source}, row id={base.ids[row]}",
            fix="correct the label, or pass --num-classes",
        )


def check_names(arms: list[Arm]) -> None:
    """Refuse two arms of one name.

    Raises:
        UsageError: there are.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise UsageError("two arms have the same name", fix="name each --arm differently, and every column once")
