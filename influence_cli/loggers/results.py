"""Results of commands as what trackers take: flat parameters, flat metrics, tables and files.

>>> flat_numbers({"detection": {"loss": {"auc": 0.9, "auc_interval": [0.8, 1.0], "kind": "ranking"}}, "rows": None})
{'detection/loss/auc': 0.9, 'detection/loss/auc_interval/low': 0.8, 'detection/loss/auc_interval/high': 1.0}
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from influence_cli.loggers.protocol import Logged, LoggedTraining, Metrics, Parameters
from influence_cli.options import options_in
from influence_cli.report.tables import tables_of
from influence_cli.report.text_table import TextTable
from influence_cli.store.files import as_json

_NO_METRICS = {"schema_version", "seed", "curves"}
_BY_ROW = {"changes", "predicted", "smallest"}  # numbers by row id: they are in the result's file
_OF_TRAININGS = {"arms", "pareto"}  # logged by arm and seed; said again


def logged_retrain(
    output: str, parameters: Parameters, metrics: dict[str, Any], trained: Iterable[Any], pages: Iterable[str] = ()
) -> Logged:
    """The result of ``retrain``; ``trained`` are its trainings in order, ``pages`` paths of what was made of it."""
    rest = {name: value for name, value in metrics.items() if name not in _OF_TRAININGS}
    rest["arms"] = {name: {"train_rows": arm["train_rows"], **arm["mean"]} for name, arm in metrics["arms"].items()}
    return Logged(
        "retrain",
        f"retrain {Path(output).resolve().name}",
        parameters,
        flat_numbers(rest),
        _named(tables_of(metrics)),
        {"metrics.json": as_json(metrics), **_read(pages)},
        tuple(_trainings(metrics, parameters, list(trained))),
    )


def logged_evaluation(source: str, parameters: Parameters, found: dict[str, Any], pages: Iterable[str] = ()) -> Logged:
    """The result of ``evaluate`` of a table; ``pages`` are paths of what was made of it."""
    files = {"result.json": as_json(found), **_read(pages)}
    name = f"evaluate {Path(source).stem}"
    return Logged("evaluate", name, parameters, flat_numbers(found), _named(tables_of(found)), files)


def _trainings(metrics: dict[str, Any], parameters: Parameters, trained: list[Any]) -> Iterable[LoggedTraining]:
    """Every training that an arm's result is made of; one that is in two arms is logged in both."""
    for arm, result in metrics["arms"].items():
        of_arm = list({t.folder: t for t in reversed(trained) if t.arm == arm}.values())[::-1]  # the first of each
        results = [*result["seeds"].values(), *result.get("draws", ())]
        for measured in results:
            made = next(t for t in of_arm if t.seed == measured["seed"])
            of_arm.remove(made)  # further draws of a control have its name and seed
            about: Parameters = {
                "arm": arm,
                "seed": made.seed,
                "train_rows": result["train_rows"],
                "trained": "earlier" if made.reused else "now",
                "training": made.folder,
            }
            key = hashlib.blake2b(f"{made.folder} {arm}".encode(), digest_size=16).hexdigest()
            yield LoggedTraining(key, arm, made.seed, {**parameters, **about}, flat_numbers(measured))


def flat_numbers(value: Any, name: str = "") -> Metrics:
    """The numbers of a result by their path, "a/b/c"; intervals as low and high, truth as 1 and 0; lists are left."""
    if isinstance(value, bool | int | float):
        return {name: float(value)}
    if isinstance(value, list | tuple) and name.endswith("interval") and len(value) == 2:
        value = dict(zip(("low", "high"), value, strict=True))
    if not isinstance(value, dict):
        return {}
    made: Metrics = {}
    for key, inner in value.items():
        if key not in _NO_METRICS | _BY_ROW:
            made |= flat_numbers(inner, f"{name}/{key}" if name else str(key))
    return made


def parameters_of(*requests: Any) -> Parameters:
    """What requests ask for where that is not the default, by the names of options."""
    made: Parameters = {}
    for request in requests:
        names = {o.field: o.name for o in options_in(request)}
        for f in dataclasses.fields(request):
            value = getattr(request, f.name)
            if dataclasses.is_dataclass(value):
                made |= parameters_of(value)
            elif value != f.default and f.repr:
                made |= plain_parameters({names.get(f.name, f.name): value})
    return made


def plain_parameters(values: dict[str, Any]) -> Parameters:
    """Values as trackers take them: texts and numbers; nothing for what is not said, or is an object in memory."""
    made: Parameters = {}
    for name, value in values.items():
        if isinstance(value, bool | int | float):
            made[name] = value
        elif isinstance(value, str | Path) and str(value):
            made[name] = _without_secrets(str(value))
        elif isinstance(value, list | tuple) and value:
            parts = ["=".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value]
            made[name] = ",".join(map(_without_secrets, parts))
    return made


def _without_secrets(text: str) -> str:
    """An address without the password, or the signed query, that it may carry."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", re.sub(r"(://[^?\s]*)\?\S*", r"\1", text))


def _read(pages: Iterable[str]) -> dict[str, bytes]:
    return {Path(page).name: Path(page).read_bytes() for page in pages}


def _named(tables: list[TextTable]) -> dict[str, TextTable]:
    """Tables by names of files, each its own."""
    made: dict[str, TextTable] = {}
    for k, table in enumerate(tables, 1):
        words = re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-")[:60].strip("-")
        made[f"{k:02d}-{words}" if words else f"{k:02d}"] = table
    return made


def parts_of(values: dict[str, Any], most: int) -> Iterator[dict[str, Any]]:
    """The values in parts of at most so many."""
    items = iter(values.items())
    while part := dict(islice(items, most)):
        yield part


def as_csv(table: TextTable) -> str:
    """A table as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.header, *table.rows])
    return out.getvalue()


def safe_name(name: str, more: str = "") -> str:
    """A name of letters, digits, ``_-. /`` and ``more``; others become ``_``: the one alphabet that trackers share."""
    return re.sub(rf"[^\w\-. /{re.escape(more)}]", "_", name, flags=re.ASCII)


def safe_names(values: dict[str, Any]) -> dict[str, Any]:
    """Values by safe names, none of which stands for two: later ones are numbered."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        safe, k = safe_name(name), 2
        while safe in made:
            safe, k = f"{safe_name(name)} {k}", k + 1
        made[safe] = value
    return made
