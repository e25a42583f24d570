"""A later table read as the one of an earlier manifest: the same columns, categories, medians and classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from influence_cli.data.classes import read_names
from influence_cli.data.label_kinds import DEFAULT
from influence_cli.data.request import COLUMNS_KEY, Columns
from influence_cli.data.sources.features import CATEGORY, NUMBER, VECTOR, Feature, judge
from influence_cli.data.sources.protocol import LeftOut
from influence_cli.data.sources.roles import Roles, Seen, check_asked, check_kept
from influence_cli.data.sources.survey import Survey
from influence_cli.data.tables import parquet_files, read_schema
from influence_cli.errors import ManifestError, UsageError
from influence_cli.store.keys import parse_json

_WEIGHTS = ("weight", "sample_weight")


def recipe_of(manifest: str) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """What the columns of a manifest's source were taken for, and its classes (their numbers, where these are names).

    Raises:
        ManifestError: it does not say.
    """
    metadata = read_schema(parquet_files(manifest)[0]).metadata or {}
    try:
        recipe = parse_json(metadata[COLUMNS_KEY])
        for key in ("label", "features", "own", "kept", "names"):
            recipe[key]
    except (KeyError, ValueError, TypeError) as error:
        fix = "give a manifest that `influence manifest` made from a table"
        raise ManifestError("it does not say how its columns were read", where=manifest, fix=fix) from error
    if b"classes" in metadata:
        return recipe, read_names(metadata[b"classes"], manifest)
    count = recipe.get("numbered")  # labels that are plain numbers
    return recipe, None if count is None else tuple(str(k) for k in range(count))


def later(seen: Seen, columns: Columns, recipe: Mapping[str, Any], of: str) -> Roles:
    """The roles that an earlier manifest gave to columns of the same names; numbers are read as this table writes them.

    Raises:
        ManifestError: a column that it read is not there, or holds something else now.
        UsageError: other features are asked for.
    """
    for flag, asked_for in (("--features", columns.features), ("--text", columns.text)):
        if asked_for:
            raise UsageError(f"--like says which columns are read, and so does {flag}", fix=f"leave {flag} out")
    features = [Feature.from_dict(value) for value in recipe["features"]]
    names, where = list(seen.types), seen.where
    needed = [f.column for f in features] + ([recipe["image"]] if recipe["image"] else []) + list(recipe["own"])
    needed += recipe.get("text", [])
    label, labels = columns.label or recipe["label"], tuple(recipe.get("labels", ()))
    if labels and columns.label is not None:
        raise UsageError("--like says which columns are labels, and so does --label", fix="leave --label out")
    task = recipe.get("task", DEFAULT)
    if columns.task not in (None, task):
        raise UsageError(f"--task {columns.task} contradicts {of}, whose task is {task}", fix="leave --task out")
    for name in (*needed, *([label] if label else []), *labels):
        if name not in names:
            fix = f"write it, or read the table without --like; there are: {', '.join(names)}"
            raise ManifestError(f"no column {name!r}, which {of} has", where=where, fix=fix)
    check_asked(names, columns, label, where)
    asked = {"weight": columns.weight, "group": columns.group}
    optional: dict[str, Any] = {
        key: asked.get(key) or (recipe[key] if recipe[key] in names else None)
        for key in ("weight", "group", "split", "clean")
    }
    identity = columns.id or recipe["id"]
    optional["id"] = identity if identity in names else None
    check_kept(optional, columns, where)
    kept = tuple(dict.fromkeys(n for n in (*recipe["kept"], *columns.keep) if n in names))
    taken = {label, *labels, *needed, *kept, *optional.values()}
    left_out = tuple(LeftOut(f"column {n}", _unread(n, of)) for n in names if n not in taken)
    now = tuple(_as_now(f, seen, of) for f in features)
    notes = (f"columns are read as those of {of}",)
    payload = {"image": recipe["image"], "text": tuple(recipe.get("text", ())), "own": tuple(recipe["own"])}
    found = {"features": now, "kept": kept, "left_out": left_out, "notes": notes}
    return Roles(label, recipe["names"], labels, task, **found, **payload, **optional)


def _unread(name: str, of: str) -> str:
    return f"{of} did not read it" + (f"; --weight {name} weights rows by it" if name.lower() in _WEIGHTS else "")


def _as_now(feature: Feature, seen: Seen, of: str) -> Feature:
    """The feature, with numbers in the form of this table.  Raises ManifestError: the column holds something else."""
    survey = seen.surveys[feature.column]
    if survey.missing == survey.rows:
        return feature
    if feature.kind == VECTOR:
        held = None if survey.lists and survey.other is None else _what(survey)
    elif feature.kind == CATEGORY:
        held = _what(survey) if survey.lists or survey.other is not None else None
    else:
        judged = judge(survey, 0, seen.marks, False).feature
        if judged is not None and judged.kind == NUMBER:
            if judged.unit != feature.unit and survey.texts:
                units = [u or "no unit" for u in (judged.unit, feature.unit)]
                what = f"column {feature.column} has {units[0]} where {of} has {units[1]}"
                raise ManifestError(what, where=f"{seen.where}, column {feature.column}", fix="write it alike")
            return dataclasses.replace(feature, form=judged.form, unit=judged.unit)
        held = _what(survey)
    if held is not None:
        what = f"column {feature.column} holds {held} where {of} has a {feature.kind}"
        raise ManifestError(what, where=f"{seen.where}, column {feature.column}", fix="write it as in the first table")
    return feature


def _what(survey: Survey) -> str:
    """What a column holds, for messages."""
    if survey.other is not None:
        return survey.other
    if survey.lists:
        return "lists"
    if survey.is_date:
        return "dates or times"
    return f"text such as {survey.strange or min(survey.values, default='')!r}" if survey.texts else "numbers"
