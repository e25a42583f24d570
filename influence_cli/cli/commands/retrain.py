"""``influence retrain``: settings in, arms trained and compared, tables and figures out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.cli.settings.inputs import inputs_of, require_source
from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import retrain as show_retrain
from influence_cli.cli.show import tables as show
from influence_cli.errors import UsageError
from influence_cli.settings import GradSpec

if TYPE_CHECKING:
    from influence_cli.stages.retrain.request import CanaryRequest, EditsRequest


def retrain(settings: Settings) -> int | None:
    """Train on a manifest; with --against also without the edits, and with random edits of the same size."""
    from influence_cli.data.manifest import open_manifest
    from influence_cli.model.train.sgd import Recipe
    from influence_cli.stages.budgets import parse_share
    from influence_cli.stages.retrain.arm_comparison import improved
    from influence_cli.stages.retrain.request import RetrainRequest
    from influence_cli.stages.retrain.retrain import retrain as retrain_stage
    from influence_cli.stages.retrain.run_place import check_run_folder

    show.check_format(settings, ("auto", "table", "json"))
    if settings["output"] is None:
        raise UsageError("no run folder", fix="pass -o RUN")
    show.check_report(settings)
    arms = tuple(_named_arm(text) for text in settings["arm"])
    request = RetrainRequest(
        inputs_of(settings, require_source(settings, "a manifest")),
        settings["output"],
        seeds=settings["seeds"],
        seed=settings["seed"],
        against=settings["against"],
        arms=arms,
        test=settings["test"],
        init=settings["init"],
        pretrained=settings["pretrained"],
        keep_checkpoints=settings["keep_checkpoints"],
        calibration=parse_share(settings["calibration"], "--calibration") if settings["calibration"] else 0.0,
        canaries=_canaries(settings),
        device=settings["device"],
        edits=_edits(settings),
        attack=settings["attack"],
        options=settings.options,
    )
    recipe = Recipe(
        epochs=settings["epochs"],
        lr=settings["lr"],
        batch_size=settings["batch_size"] or Recipe.batch_size,
        optimizer=settings["optimizer"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
        schedule=settings["schedule"],
        augment=settings["augment"],
    )
    if settings["dry_run"]:
        check_run_folder(request, recipe, probe=False)
        for path in (request.inputs.manifest, request.against, *(p for _, p in arms)):
            if path is not None:
                open_manifest(path, request.inputs.label, request.inputs.skip_bad)
        return show_retrain.retrain_plan(settings, request, recipe)
    metrics = retrain_stage(request, recipe, show.terminal())
    show_retrain.retrain_summary(settings, metrics)
    show_retrain.figures(settings, metrics)
    if settings["require_improvement"] and not improved(metrics):
        show.terminal().warn("curated does not beat no edit and every control by the paired interval")
        return 1
    return None


def _edits(settings: Settings) -> EditsRequest | None:
    """Which edits are made from scores, if any.

    Raises:
        UsageError: a flag is about scores, and there are none; or scores and rounds are asked for at once.
    """
    from influence_cli.stages.retrain.request import EditsRequest

    table, rounds = settings["scores"], settings["rounds"]
    if table is None and rounds == 1:
        for name in ("budget", "by", "combine", "action"):
            if settings.explicit(name):
                raise UsageError(f"--{name} is about edits made from scores", fix="pass --scores TABLE, or --rounds 4")
        return None
    if table is not None and rounds > 1:
        raise UsageError("--scores are made once and --rounds makes them anew", fix="leave out one of the two")
    spec = GradSpec(
        tuple(settings["method"]),
        tuple(settings["objective"]),
        settings.options,
        settings["params"],
        precision=settings["precision"],
        seed=settings["seed"],
    )
    return EditsRequest(
        table,
        _listed(settings["budget"] or "5%"),
        _listed(settings["action"]),
        tuple(settings["by"]),
        settings["combine"],
        settings.options,
        rounds,
        spec,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _canaries(settings: Settings) -> CanaryRequest | None:
    from influence_cli.stages.budgets import parse_share
    from influence_cli.stages.retrain.request import CanaryRequest

    if settings["canaries"] is None:
        for name in ("canaries_from", "canary_noise"):
            if settings.explicit(name):
                raise UsageError(f"--{name.replace('_', '-')} needs canaries", fix="pass --canaries 5%")
        return None
    share = parse_share(settings["canaries"], "--canaries")
    return CanaryRequest(share, settings["canary_noise"], settings["canaries_from"])


def _named_arm(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(f"--arm {text!r} cannot be read", fix="write --arm loss=loss-trimmed.parquet")
    return name, path
