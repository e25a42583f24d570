"""``evaluate`` with --lds, --removal, --loo or --brittleness: trainings run, and how well scores foretold them."""

from __future__ import annotations

from influence_cli.cli.console import terminal
from influence_cli.cli.settings.inputs import manifest_of_scores
from influence_cli.cli.settings.requests import ResultOptions, StoreOptions
from influence_cli.cli.settings.settings import Settings
from influence_cli.cli.show.counterfactuals import show_counterfactuals, show_trainings
from influence_cli.model.train.recipe import Recipe
from influence_cli.options import options_in
from influence_cli.stages.curate.request import CurateRequest
from influence_cli.stages.evaluate.request import CounterfactualRequest, Training


def evaluate_by_retraining(settings: Settings, result: ResultOptions, source: str) -> None:
    """Train, measure and show; with --dry-run say how many trainings there are."""
    from influence_cli.data.write_tables import check_suffix
    from influence_cli.stages.evaluate.counterfactuals.counterfactuals import counterfactuals, plan

    scores = settings.make(CurateRequest, scores=source, budget=None, **manifest_of_scores(settings))
    if result.output:
        check_suffix(result.output, (".json",))
    request = settings.make(
        CounterfactualRequest,
        scores=scores,
        training=_training(settings),
        checkpoint=settings.insisted("checkpoint"),
        target=settings.insisted("target"),
        store=settings.make(StoreOptions).place,
    )
    if result.dry_run:
        show_trainings(result, plan(request, terminal()))
    else:
        show_counterfactuals(result, counterfactuals(request, terminal()))


def _training(settings: Settings) -> Training:
    """The recipe that flags and the environment insist on, and the one that fills in what no run folder says."""
    names = ["model", "batch_size", *(o.name for o in options_in(Recipe))]
    values = {name: settings.values[name] for name in names if settings.values[name] is not None}
    insisted = {name: value for name, value in values.items() if settings.explicit(name)}
    return settings.make(
        Training,
        overrides=insisted,
        defaults={name: value for name, value in values.items() if name not in insisted},
        init=settings.insisted("init"),
        pretrained=bool(settings.insisted("pretrained")),
    )
