"""What an objective needs beside the target rows: their groups, in cells that are large enough, or an attack's name.

Nothing here imports torch: a run whose every row is stored never does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from influence_cli.data.changed_texts import Changed
from influence_cli.data.classes import Names, class_name
from influence_cli.data.manifest import Manifest, Rows
from influence_cli.errors import ManifestError, UsageError
from influence_cli.events import Listener
from influence_cli.model.losses import loss_of
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import GradSpec, Inputs
from influence_cli.store import fingerprint

CELL_LEAST, CELL_SMALL = 10, 30  # rows of a (group, label) cell: fewer is an error, fewer is a warning


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of every target row: its place [m] among the names, in order of value, and -1 where it has none."""

    column: str
    names: tuple[str, ...]
    index: NDArray[np.int64]
    digest: str  # of which row is of which group, in any order


def refuse_margin(methods: Iterable[str], model: ModelSpec) -> None:
    """Refuse method margin of a model that predicts no label.  Raises UsageError: it is asked for."""
    if "margin" in methods and not loss_of(model).has_margins:
        what = f"margin is that of a label's logit over others, and {model.name} predicts no label"
        raise UsageError(what, fix="use --method loss")


def refuse_objectives(objectives: dict[str, Any], manifest: Manifest, model: ModelSpec) -> None:
    """Refuse objectives about predicted classes where labels are none.

    Raises:
        UsageError: there is one.
    """
    if loss_of(model).by_class:
        return
    labels = manifest.label_kind.called
    for name, objective in objectives.items():
        if objective.needs & {"groups", "pairs", "classes"}:
            what = f"{name} is about predicted classes, and the labels are {labels}"
            raise UsageError(what, fix="use --objective utility")
        if "attack" in objective.needs and objective.kind(model) == "linear":
            what = (
                f"the linear attack of {name} moves rows over the boundary of two classes, and the labels are {labels}"
            )
            raise UsageError(what, fix=f"pass --set {name}.attack=pgd, which raises the loss")


def target_groups(
    objectives: dict[str, Any], target: Rows, inputs: Inputs, model: ModelSpec, listener: Listener
) -> dict[str, Groups]:
    """The groups that each objective is about, checked.

    Raises:
        ManifestError: the column is missing, of no fitting type or null, there is one group, or a cell is too small.
        UsageError: a favourable class that is none, or a signed gap between other than two groups.
    """
    found: dict[str, Groups] = {}
    for name, objective in objectives.items():
        if "groups" in objective.needs:
            groups = read_groups(target, objective.column or inputs.group)
            if without := int((groups.index < 0).sum()):
                said = f"{without:,} of {len(target):,} target rows have no group (column {groups.column})"
                listener.warn(f"{name}: {said}: the gap is that of the others")
            objective.check_groups(name, groups.column, groups.names, model.num_classes, target.manifest.source)
            check_cells(name, objective, groups, target, model.num_classes, listener)
            found[name] = groups
    return found


def read_groups(rows: Rows, column: str) -> Groups:
    """The groups of rows, from a column of their manifest.

    Raises:
        ManifestError: it is missing, of no fitting type, or holds one group or none.
    """
    table, where = rows.manifest.table, f"{rows.manifest.source}, column {column}"
    if column not in table.column_names:
        fix = f"columns there are: {', '.join(table.column_names)}; pass --group COLUMN"
        raise ManifestError(f"no column {column!r} with groups", where=rows.manifest.source, fix=fix)
    stored = table.column(column)
    kind = stored.type.value_type if pa.types.is_dictionary(stored.type) else stored.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise ManifestError(f"groups are {kind}, not text, integers or true and false", where=where, fix="name groups")
    values = stored.take(pa.array(rows.index)).to_pylist()
    order = sorted({v for v in values if v is not None})
    if len(order) < 2:
        fix = "give target rows of at least two groups, or pass --group COLUMN"
        what = f"every target row is of one group, {order[0]}" if order else "no target row has a group"
        raise ManifestError(what, where=where, fix=fix)
    place = {value: k for k, value in enumerate(order)}
    pairs = zip(rows.row_keys, values, strict=True)
    entries = sorted([key.tobytes().hex(), *([] if v is None else [str(v)])] for key, v in pairs)
    index = np.array([place.get(v, -1) for v in values], dtype=np.int64)
    return Groups(column, tuple(str(v) for v in order), index, fingerprint("groups", 1, rows=entries))


def check_cells(name: str, objective: Any, groups: Groups, target: Rows, classes: int, listener: Listener) -> None:
    """Refuse cells of fewer than 10 rows, whose mean is no estimate, and warn below 30.

    Raises:
        ManifestError: a cell is too small; names it and its size.
    """
    where = f"{target.manifest.source}, column {groups.column}"
    only, names = np.unique(target.labels), target.manifest.classes
    if objective.by_label and len(only) == 1:
        fix = "give target rows of several labels, or use the objective fairness, which looks at no label"
        what = f"{name}: the label of every target row is {class_name(names, int(only[0]))}"
        raise ManifestError(what, where=where, fix=fix)
    small: dict[str, int] = {}
    for labels in dict.fromkeys(term.labels for term in objective.terms(classes)):
        chosen = np.isin(target.labels, labels)
        for k, group in enumerate(groups.names):
            rows = int((chosen & (groups.index == k)).sum())
            if rows < CELL_SMALL:
                label = "" if len(labels) == classes else f", {_label(labels, classes, names)}"
                small[f"group {group}{label}"] = rows
    for cell, rows in small.items():
        if rows < CELL_LEAST:
            raise ManifestError(
                f"{name}: {rows} target rows in the cell ({cell}), and a mean needs at least {CELL_LEAST}",
                where=where,
                fix="give more target rows of it, merge groups, or name another column by --group COLUMN",
            )
    if small:
        cells = "; ".join(f"({cell}) {rows}" for cell, rows in small.items())
        listener.warn(f"{name}: cells of fewer than {CELL_SMALL} target rows are mostly noise: {cells}")


def _label(labels: tuple[int, ...], classes: int, names: Names | None) -> str:
    if len(labels) == 1:
        return f"label {class_name(names, labels[0])}"
    return f"label not {class_name(names, next(c for c in range(classes) if c not in labels))}"


def described(
    name: str, objective: Any, groups: Groups | None, attack: str | None, changed: Changed | None
) -> dict[str, Any]:
    """What of an objective decides a direction: its options, the groups of the rows, the inputs that it is taken on."""
    if attack is not None:
        return {"name": name, "attack": attack}
    options = asdict(objective)
    if groups is not None:
        options.pop("column")
        options["groups"] = groups.digest
    if changed is not None:
        options.pop("column")
        options["changed"] = changed.digest
    return {"name": name, **options}


def attack_name(objective: Any, spec: GradSpec, model: ModelSpec | None, weights: str, loss: str) -> str | None:
    """Under what name the attacked inputs of an objective are stored; None where it attacks none."""
    if "attack" not in objective.needs or model is None:
        return None
    how = objective.describe(model, spec.seed)
    about = {"model": model.as_dict(), "precision": spec.precision, "loss": None if "kappa" in how else loss}
    return fingerprint("attack", 1, weights=weights, how=how, **about)
