"""``evaluate`` with --lds, --removal, --loo or --brittleness: settings in, trainings run, figures shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from influence_cli.cli.settings.resolve import Settings
from influence_cli.cli.show import counterfactuals as show_counterfactuals
from influence_cli.cli.show import tables as show
from influence_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    from influence_cli.stages.curate.score_table import CurateRequest
    from influence_cli.stages.evaluate.counterfactuals.trainer import Training

RECIPE = ("epochs", "lr", "batch_size", "optimizer", "momentum", "weight_decay", "schedule", "augment")
CONVENTIONS = ("loo", "renorm-loo")


def asked_to_retrain(settings: Settings) -> bool:
    """Whether anything is asked for that needs trainings."""
    return any(settings[name] is not None for name in ("lds", "removal", "loo", "brittleness"))


def evaluate_by_retraining(settings: Settings, scores: CurateRequest) -> None:
    """Train, measure and show; with --dry-run say how many trainings there are."""
    from influence_cli.data.tables import check_suffix
    from influence_cli.stages.budgets import parse_share
    from influence_cli.stages.evaluate.counterfactuals.counterfactuals import (
        CounterfactualRequest,
        counterfactuals,
        plan,
    )

    convention = settings["convention"]
    if convention not in (None, *CONVENTIONS):
        raise UsageError(f"--convention {convention!r} is unknown", fix=nearest(convention, list(CONVENTIONS)))
    if settings["output"]:
        check_suffix(settings["output"], (".json",))
    request = CounterfactualRequest(
        scores,
        _training(settings),
        lds=settings["lds"],
        subset_share=parse_share(settings["subset_share"], "--subset-share"),
        removal=tuple(settings["removal"].split(",")) if settings["removal"] is not None else (),
        loo=settings["loo"],
        brittleness=settings["brittleness"],
        fixed_divisor=None if convention is None else convention == "loo",
        seeds=settings["seeds"],
        seed=settings["seed"],
        minutes=settings["max_minutes"],
        checkpoint=settings["checkpoint"] if settings.explicit("checkpoint") else None,
        target=settings["target"] if settings.explicit("target") else None,
        test=settings["test"],
        store=None if settings["no_store"] else settings["store"],
    )
    if settings["dry_run"]:
        show_counterfactuals.plan(settings, plan(request, show.terminal()))
        return
    show_counterfactuals.report(settings, counterfactuals(request, show.terminal()))


def _training(settings: Settings) -> Training:
    """The recipe that flags and the environment insist on, and the one that fills in what no run folder says."""
    from influence_cli.stages.evaluate.counterfactuals.trainer import Training

    values = {k: settings[k] for k in ("model", *RECIPE) if settings[k] is not None}
    said = {k: v for k, v in values.items() if settings.explicit(k)}
    return Training(
        said,
        {k: v for k, v in values.items() if k not in said},
        input_size=settings["input_size"],
        num_classes=settings["num_classes"],
        init=settings["init"] if settings.explicit("init") else None,
        pretrained=bool(settings["pretrained"]) and settings.explicit("pretrained"),
        device=settings["device"],
    )
