"""What a shell offers where a value is to be typed.  Names alone are looked up: nothing slow is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from influence_cli.options import Option

Values = Callable[[], Sequence[str]]


METHODS = (  # their own table imports pyarrow, which takes too long here
    *("ip", "ip-ensemble", "exact", "cg", "lissa", "arnoldi", "ekfac", "datainf", "tracin"),
    *("gex", "gex-ip", "bif", "source", "trak", "loss", "margin"),
    *("self-tracin", "self-lissa", "aum", "el2n", "forget", "data-maps", "oof-loss", "oof-margin", "confident"),
    *("knn", "outlier", "probe", "target-probe", "head-vm", "auto", "random"),
)


def methods() -> Sequence[str]:
    """The names of the methods."""
    return METHODS


def _objectives() -> Sequence[str]:
    from influence_cli.objectives import OBJECTIVES

    return list(OBJECTIVES)


def _actions() -> Sequence[str]:
    from influence_cli.actions import ACTIONS

    return list(ACTIONS)


def _with_options() -> Sequence[str]:
    """What has options that --set takes, with the point before them."""
    return [f"{name}." for name in (*methods(), *_objectives(), *_actions(), "combine")]


def _of(*values: str) -> Values:
    return lambda: values


VALUES: dict[str, Values] = {  # by the name of an option without choices of its own
    "method": methods,
    "objective": _objectives,
    "action": _actions,
    "set": _with_options,
    "export_as": _of("folder", "csv", "jsonl", "huggingface", "label-studio", "npz", "json", "fiftyone", "spotlight"),
    "model": _of("linear", "mlp:128", "mlp:128,128", "resnet18", "resnet50", "vit_tiny_patch16_224", "hf:", "python:"),
    "features_model": _of("resnet18", "tf_efficientnet_lite0", "hf:"),
    "loss": _of("cross-entropy", "squared", "huber:1.0", "binary"),
    "combine": _of("ranksum", "zsum", "minrank", "lexi", "linear"),
    "params": _of("all", "linear", "last"),
    "device": _of("auto", "cpu", "cuda", "mps"),
    "optimizer": _of("sgd", "adamw", "lbfgs"),
    "amp": _of("fp32", "bf16"),
    "schedule": _of("cosine", "linear", "constant", "step"),
    "augment": _of("none", "shift", "flip-shift"),
    "attack": _of("linear", "pgd", "fgsm", "none"),
    "record": _of("epochs", "moments", "none"),
    "canary_noise": _of("confusion", "uniform"),
    "convention": _of("loo", "renorm-loo"),
    "link": _of("symbolic", "hard", "copy"),
    "color": _of("auto", "always", "never"),
    "label": _of("label"),
    "group": _of("group"),
    "split": _of("80/10/10"),
}
MANY = ("action", "record")  # of these a value may name several, with commas


def offered(option: Option, typed: str) -> list[str]:
    """The values of an option that begin with what is typed; none where any text or file may stand."""
    known = option.choices or VALUES.get(option.name, tuple)()
    before = typed[: typed.rfind(",") + 1] if option.name in MANY else ""
    return [value for value in (before + v for v in known) if value.startswith(typed)]
