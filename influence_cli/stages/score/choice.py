"""Why ``--method auto`` scores rows as it does, in three lines: what it trusts, how far, and what it costs."""

from __future__ import annotations

from typing import Any

from influence_cli.methods import AUTO, METHODS
from influence_cli.report.wrong_labels import beyond, judged_alone, why_unknown
from influence_cli.stages.run.auto_method import auto_is, features_of, taken
from influence_cli.stages.run.run import Run
from influence_cli.stages.score.noise import describe_noise, is_noise


def choice(run: Run, facts: dict[str, dict[str, Any]], noise: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For provenance: ``method``, the method that auto is here, ``trusted``, and the lines ``why``; empty without auto.

    Where it is a method of effects, ``because`` is the reason for that.

    ``facts`` are those of the score columns by name, ``noise`` that of the directions by objective.
    """
    name = auto_is(run)
    if name is None:
        return {}
    said = next((found for found in facts.values() if found.get("by") == AUTO), None)
    if said is not None:
        return {"auto": {"method": AUTO, "trusted": said["tells"], "why": _of_labels(run, said)}}
    bad = [objective for objective, entry in noise.items() if is_noise(entry)]
    why = _of_effects(run, name, noise, bad)
    return {"auto": {"method": name, "trusted": not bad, "because": run.auto_because, "why": why}}


def _of_labels(run: Run, said: dict[str, Any]) -> list[str]:
    helped = f"{said['target_rows']:,} target rows help it" if said["target_rows"] else "no target rows help it"
    if said["absent"]:
        helped += f", none of them of the class of {said['absent']:,} train rows"
    elif not said["target_rows"] and said["target_given"]:
        helped += f": {said['target_given']:,} that are no train rows are too few"
    if said["target_of_other_classes"]:
        helped += f"; {said['target_of_other_classes']:,} of classes that no train row has are left out"
    if not said["target_is_cleaner"]:
        helped += ", in one of two deals of folds as truth, since their labels look no cleaner than those of train rows"
    seen = f"they agree with {said['agrees']:.1%} of the labels"
    if said["target_rows"]:
        seen += f" and are right on {said['target_accuracy']:.1%} of the target rows"
    whose = features_of(run)
    return [
        f"auto trusts a probe and neighbours on {whose}, none of which saw the label of a row it judges; {helped}"
        f"{_own(said)}",
        f"{seen}; {_told(said)}",
        f"cost: one forward pass for outputs, one for features{_sizes(run)}, and a closed-form fit; no gradients",
    ]


def _told(said: dict[str, Any]) -> str:
    """Whether wrong labels are told, and how many there are with the interval, or why that is not known."""
    low, high = said["interval"]
    if said["features_know_labels"]:
        text = "how many are wrong cannot be told by features of a model that has learned these labels by heart"
        text += f" ({low:,.0f} or more of {said['rows']:,}; --features names another model)"
        return f"{text}, unless target labels are wrong more often"
    if reason := why_unknown(said):
        return f"how many are wrong is not known: {reason}"
    told = f"wrong labels are told from right ones{judged_alone(said)}"
    if not said["beyond_chance"]:
        by_chance = f"{said['by_chance']:.1%} by chance"
        told += (
            f" by what target rows show, while labels agree with what features tell no better than chance ({by_chance})"
        )
    return (
        f"{told}: about {said['wrong_labels']:,.0f} of {said['rows']:,} are wrong{beyond(said)} "
        f"({low:,.0f} to {high:,.0f})"
    )


def _own(said: dict[str, Any]) -> str:
    """What the scored model itself says beside them, and why it does not where it does not."""
    weight = said["own_weight"]
    if weight is None:
        return ""
    by_heart = f"it fits {said['fits']:.1%} of the labels, of which they foretell {said['agrees']:.1%}"
    if not weight:
        return f"; the model's own probabilities do not count: {by_heart}"
    text = "; beside them the model's own probabilities"
    text += f", also those of {said['epochs']} epochs of training" if said["epochs"] else ""
    return text + (f", at {weight:.0%} since {by_heart}" if weight < 1 else "")


def _sizes(run: Run) -> str:
    if run.backbone is None or not run.backbone.smaller:
        return ""
    return f" at each of {1 + len(run.backbone.smaller)} sizes"


def _of_effects(run: Run, name: str, noise: dict[str, dict[str, Any]], bad: list[str]) -> list[str]:
    line = "; ".join(f"{objective}: {describe_noise(entry)}" for objective, entry in noise.items())
    verdict = f"the direction of {', '.join(bad)} is noise: do not edit by it" if bad else "the directions are reliable"
    return [
        taken(run),
        f"{verdict} ({line})",
        f"cost: {METHODS[name].cost}, in passes over target rows (V) and train rows (T)",
    ]
