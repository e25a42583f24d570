"""The words of ``retrain`` that train again as a scored checkpoint was trained, so that arms are comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from influence_cli.model.hf_folder import HF
from influence_cli.model.train.recipe import LBFGS, Recipe, usual_recipe
from influence_cli.options import RETRAIN, options_in
from influence_cli.settings import Inputs

UNKNOWN_MODEL = "NAME"  # stands for the model where nothing says which it was


def training_words(origin: dict[str, Any], group: str | None) -> list[Any]:
    """``--model`` and every option that differs from its default, as the provenance of a score table leads to them.

    ``group`` is the column whose groups the scores are about, if they are.
    """
    from influence_cli.model.run_folder import RunFolder

    locator = (origin.get("checkpoint") or {}).get("locator")
    record = None if locator is None else RunFolder.of(locator).read()
    model = (record and record.model) or origin.get("model") or {}
    name, init = model.get("name", UNKNOWN_MODEL), None if record is None else record.init
    if str(name).startswith(HF):  # it begins with the weights of its folder
        name, init = f"{HF}{init or locator}", None
    words: list[Any] = ["--model", name]
    group = group or (record and record.asked.get("group"))
    words += ["--group", group] if group not in (None, "group") else []
    if record is None:
        asked = {**(origin.get("model_flags") or {}), "skip_bad": origin.get("skip_bad")}
        return words + _of_inputs({k: v for k, v in asked.items() if k != "class_map"})
    words += _of_recipe(record.recipe, str(model.get("name")))
    words += ["--init", init] if init is not None else []
    words += ["--pretrained"] if record.pretrained else []
    words += ["--raw-features"] if record.asked.get("raw_features") else []
    words += ["--calibration", f"{record.calibration:.6%}".rstrip("0%").rstrip(".") + "%"] if record.calibration else []
    words += ["--seed", record.seed] if record.seed else []
    asked = record.asked if record.init is not None else {**record.asked, "class_map": None}
    return words + _of_inputs(asked)


def test_words(origin: dict[str, Any]) -> list[Any]:
    """``--test`` as the scored checkpoint was tested, where that is still there."""
    from influence_cli.model.run_folder import RunFolder

    locator = (origin.get("checkpoint") or {}).get("locator")
    record = None if locator is None else RunFolder.of(locator).read()
    path = None if record is None else record.asked.get("test")
    return ["--test", path] if isinstance(path, str) and Path(path).exists() else []


def _of_recipe(recipe: dict[str, Any], model: str) -> list[Any]:
    """The options of a recipe as ``run.json`` keeps it; its ``lr`` is the highest of the schedule."""
    words: list[Any] = []
    optimizer = recipe.get("optimizer", Recipe().optimizer)
    first, usual = Recipe(asked=frozenset()), Recipe(optimizer=optimizer, asked=frozenset({"optimizer"}))
    own = usual_recipe(model)
    if own is not None:
        first, usual = first.with_usual(own), usual.with_usual(own)
    for o in options_in(Recipe):
        value, default = recipe.get(o.field), getattr(first if o.field == "optimizer" else usual, o.field)
        if o.field == "lr":
            default = value if optimizer == LBFGS else usual.peak_lr
        if value is not None and value != default:
            words += [o.flags[0], value]
    if recipe.get("batch_size") not in (None, usual.batch_size):
        words += ["--batch-size", recipe["batch_size"]]
    return words


def _of_inputs(asked: dict[str, Any]) -> list[Any]:
    """How rows were read, where that is not the default; the model, label and group are said elsewhere."""
    words: list[Any] = []
    for o in options_in(Inputs):
        value = asked.get(o.field)
        if RETRAIN not in o.commands or o.field in ("model", "label", "group") or value in (None, False, o.default):
            continue
        words += [o.flags[0]] if value is True else [o.flags[0], value]
    return words
