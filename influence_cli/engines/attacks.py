"""How inputs are attacked: the options of an attack, and which of them decide what a row becomes (``attacked``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from influence_cli.data.kinds.protocol import ANY_NUMBER
from influence_cli.errors import UsageError
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import setting

ATTACKS = ("auto", "linear", "fgsm", "pgd")


@dataclass(frozen=True)
class Attack:
    """How inputs are attacked; ``auto`` is ``linear`` for a linear model of features, otherwise ``pgd``."""

    attack: str = setting("auto", "auto, linear, fgsm or pgd")
    kappa: float = setting(1.3, "linear: 1 lands on the boundary, more flips the prediction")
    label_aware: bool = setting(False, "linear: leave alone what is predicted wrong already")
    eps: float | None = setting(
        None,
        "largest change of a value; without one 8/255 for images (in [0, 1]), 0.1 for features; "
        "of texts that of a token's embedding, over the mean length of the row's (0.1)",
    )
    steps: int = setting(10, "pgd: number of steps")
    step: float | None = setting(None, "pgd: length of a step, as eps; without one 2.5 eps / steps")
    random_start: bool = setting(True, "pgd: start at a random point of the box")

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            raise ValueError(f"attack {self.attack!r} is unknown: one of {', '.join(ATTACKS)}")
        for name, value in (("kappa", self.kappa), ("eps", self.eps), ("step", self.step), ("steps", self.steps)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value:g} and must be positive")

    def kind(self, spec: ModelSpec) -> str:
        """The attack on such a model, with ``auto`` decided.

        Raises:
            UsageError: such a model cannot be attacked so.
        """
        if spec.payload_kind.ragged:
            return self._kind_on_texts(spec)
        if self.attack != "auto":
            return self.attack
        return "linear" if spec.name == "linear" and spec.payload_kind.bounds == ANY_NUMBER else "pgd"

    def _kind_on_texts(self, spec: ModelSpec) -> str:
        if self.attack == "linear":
            what = f"the attack linear moves an input over a linear model's boundary, and {spec.name} reads texts"
            raise UsageError(what, fix="pass --set robustness.attack=pgd (or fgsm), which change embeddings")
        if spec.text is not None and spec.text.end is not None:
            what = f"{spec.name} reads a text twice, by an encoder and a decoder: its embeddings are not attacked"
            raise UsageError(what, fix="take an encoder or a decoder alone, or leave robustness and --attack out")
        return "pgd" if self.attack == "auto" else self.attack

    def box(self, spec: ModelSpec) -> float:
        """The largest change of a value; of texts the largest length of a token's change, over the embeddings' mean."""
        return spec.payload_kind.largest_change if self.eps is None else self.eps

    def describe(self, spec: ModelSpec, seed: int) -> dict[str, Any]:
        """What of it decides x' for such a model: what goes into a fingerprint."""
        kind = self.kind(spec)
        if kind == "linear":
            return {"attack": kind, "kappa": self.kappa, "label_aware": self.label_aware}
        eps, where = self.box(spec), {"changes": "embeddings"} if spec.payload_kind.ragged else {}
        if kind == "fgsm":
            return {"attack": kind, "eps": eps, **where}
        step = 2.5 * eps / self.steps if self.step is None else self.step
        start = seed if self.random_start else None
        return {"attack": kind, "eps": eps, "steps": self.steps, "step": step, "start": start, **where}
