"""``influence retrain``: arms trained and compared, tables and figures out."""

from __future__ import annotations

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.inputs import inputs_of, require_source
from influence_cli.cli.settings.requests import ResultOptions, RetrainOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.page import check_pages
from influence_cli.errors import UsageError
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import GradSpec
from influence_cli.stages.retrain.request import CanaryRequest, EditsRequest, RetrainRequest


def retrain(settings: Settings) -> int | None:
    """Train on a manifest; with --against also without the edits, and with random edits of the same size."""
    from influence_cli.cli.show.retrain import show_arms, show_comparison
    from influence_cli.stages.retrain.arm_comparison import improved
    from influence_cli.stages.retrain.retrain import retrain as retrain_stage

    result = settings.make(ResultOptions)
    result.check_format("auto", "table", "json")
    if result.output is None:
        raise UsageError("no run folder", fix="pass -o RUN")
    check_pages(result)
    inputs = inputs_of(settings, require_source(settings, "a manifest"))
    request = settings.make(RetrainRequest, inputs=inputs, canaries=_canaries(settings), edits=_edits(settings))
    recipe = settings.make(Recipe)
    if result.dry_run:
        _check(request, recipe)
        return show_arms(request, recipe)
    metrics = retrain_stage(request, recipe, terminal())
    show_comparison(result, metrics)
    if settings.make(RetrainOptions).require_improvement and not improved(metrics):
        terminal().warn("curated does not beat no edit and every control by the paired interval")
        return 1
    return None


def _check(request: RetrainRequest, recipe: Recipe) -> None:
    """Read the manifests and look at the run folder, as far as nothing is computed or written."""
    from influence_cli.data.open import open_manifest
    from influence_cli.stages.retrain.run_place import check_run_folder

    check_run_folder(request, recipe, probe=False)
    for path in (request.inputs.manifest, request.against, *(path for _, path in request.arms)):
        if path is not None:
            open_manifest(path, request.inputs.label, request.inputs.skip_bad)


def _edits(settings: Settings) -> EditsRequest | None:
    """Which edits are made from scores, if any.

    Raises:
        UsageError: a flag is about scores, and there are none; or scores and rounds are asked for at once.
    """
    request = settings.make(EditsRequest, options=settings.options, spec=settings.make(GradSpec))
    if request.scores is None and request.rounds == 1:
        _refuse(settings, ("budget", "by", "combine", "action"), "is about edits made from scores",
                fix="pass --scores TABLE, or --rounds 4")  # fmt: skip
        return None
    if request.scores is not None and request.rounds > 1:
        raise UsageError("--scores are made once and --rounds makes them anew", fix="leave out one of the two")
    return request


def _canaries(settings: Settings) -> CanaryRequest | None:
    """Which wrong labels are planted, if any.

    Raises:
        UsageError: a flag is about canaries, and there are none.
    """
    if settings.make(RetrainOptions).canaries is None:
        _refuse(settings, ("canaries_from", "canary_noise"), "needs canaries", fix="pass --canaries 5%")
        return None
    return settings.make(CanaryRequest)


def _refuse(settings: Settings, names: tuple[str, ...], what: str, fix: str) -> None:
    """Refuse flags without what they are about; a settings file may hold them all the same."""
    for name in names:
        if settings.explicit(name):
            raise UsageError(f"--{name.replace('_', '-')} {what}", fix=fix)
