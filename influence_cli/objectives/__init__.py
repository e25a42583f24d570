"""What Phi can be: a mean over target rows, or a gap between means of groups; lower is better.  One lazy table."""

from __future__ import annotations

import pkgutil
from typing import Any

from influence_cli.errors import UsageError, nearest
from influence_cli.settings import GradSpec, build_options

OBJECTIVES: dict[str, str] = {
    "utility": "influence_cli.objectives.utility:Utility",
    "target-margin": "influence_cli.objectives.target_margin:TargetMargin",
    "fairness": "influence_cli.objectives.group_gaps:Fairness",
    "equal-opportunity": "influence_cli.objectives.group_gaps:EqualOpportunity",
    "equalised-odds": "influence_cli.objectives.group_gaps:EqualisedOdds",
    "eo-loss": "influence_cli.objectives.group_gaps:LossGap",
    "robustness": "influence_cli.objectives.robustness:Robustness",
    "flip-fairness": "influence_cli.objectives.flip_fairness:FlipFairness",
}


def load_objective(name: str) -> type[Any]:
    """The class of an objective in the table."""
    return pkgutil.resolve_name(OBJECTIVES[name])


def make_objectives(spec: GradSpec) -> dict[str, Any]:
    """The objectives of a run by name, with their options.

    Raises:
        UsageError: an unknown objective or option.
    """
    made: dict[str, Any] = {}
    for name in spec.objectives:
        if name not in OBJECTIVES:
            raise UsageError(f"unknown objective {name!r}", fix=nearest(name, list(OBJECTIVES)))
        made[name] = build_options(load_objective(name), name, spec.options.get(name, {}))
    return made
