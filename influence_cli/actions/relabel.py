"""Relabel: give the most harmful rows another label, up to the budget (methods.md 5.2).

The ``influence`` rule proposes the label with the highest label-counterfactual score, s(c) = sum_k p_k (t_k - t_c),
and only where the row's own score is negative and the new label's is positive.  The ``model`` rule proposes the most
probable other label where its probability is at least 0.5.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from influence_cli.actions.parity import HELP, check_parity, closing
from influence_cli.actions.protocol import Edits, Floats, Ints, Scored, each, require_signed
from influence_cli.data.classes import class_called, class_name
from influence_cli.errors import UsageError


@dataclass(frozen=True)
class Relabel:
    """At most ceil(q n_c) rows leave any class, where q = budget/n, and one at least stays.

    Rows of weight 0 are passed over, and are counted nowhere.
    """

    rule: str = field(default="auto", metadata={"help": "influence, model, or auto: influence for signed scores"})
    guard: bool = field(default=True, metadata={"help": "limit what any class may lose to the budget's share"})
    min_probability: float = field(default=0.5, metadata={"help": "model rule: least probability of the new label"})
    parity: str = field(default="stop", metadata={"help": HELP})

    def __post_init__(self) -> None:
        if self.rule not in ("auto", "influence", "model"):
            raise ValueError(f"rule {self.rule!r} is unknown; use auto, influence or model")
        check_parity(self.parity)

    def propose(self, scored: Scored, budget: int) -> Edits:
        """Edits for up to ``budget`` rows."""
        if scored.parts is not None:
            what = "relabel gives rows another class, and these labels are no classes"
            raise UsageError(what, fix="pass --action trim or --action reweight")
        proposal, admissible, why = self._proposals(scored)
        n, counts = len(scored.labels), scored.counts
        share = budget / max(1, int(counts.sum()))
        sizes = np.bincount(scored.labels[counts], minlength=int(scored.labels.max(initial=0)) + 1).tolist()
        allowed = [min(math.ceil(share * s - 1e-9), s - 1) if self.guard else s for s in sizes]
        labels, reason = scored.labels.copy(), [""] * n
        done, blocked, notes = 0, 0, list[str]()
        gap = closing(scored, self.parity, self._gain(scored), notes)
        for i in each(scored.candidates()):
            if done == budget or gap.done:
                break
            c = int(scored.labels[i])
            if not admissible[i]:
                continue
            if allowed[c] <= 0:
                blocked += 1
                continue
            allowed[c] -= 1
            done += 1
            gap.take(i)
            labels[i] = proposal[i]
            reason[i] = why[i]
        notes += [*_drift(scored.labels[counts], labels[counts], scored.classes), *gap.notes(done, budget)]
        if blocked:
            notes.append(f"the class guard passed over {blocked} lower rows")
        if done < budget and not gap.done:
            notes.append(f"{done} of a budget of {budget} rows have an admissible other label")
        return Edits("relabel", labels, scored.weights.copy(), reason, notes, proposal)

    def _rule(self, scored: Scored) -> str:
        return self.rule if self.rule != "auto" else ("influence" if scored.best_label is not None else "model")

    def _gain(self, scored: Scored) -> Floats | None:
        """What the proposed label adds to every row's weighted score [n]; None where that is not known."""
        if self._rule(scored) != "influence" or scored.best_label_gain is None:
            return None
        return scored.weights * scored.best_label_gain

    def _proposals(self, scored: Scored) -> tuple[Ints, NDArray[np.bool_], list[str]]:
        """The label proposed for every row (-1: none), whether it is admissible, and why."""
        named = functools.partial(class_name, scored.classes)
        if self._rule(scored) == "influence":
            require_signed(scored, "relabelling by influence")
            if scored.best_label is None or scored.best_label_gain is None:
                fix = "score with a linear method, such as ip, and not --relative"
                raise UsageError("the score table has no best_label", fix=fix)
            proposed = scored.best_label
            gained = scored.score + scored.best_label_gain
            admissible = (scored.score < 0) & (gained > 0)
            figures = zip(scored.score, proposed, gained, strict=True)
            why = [f"score {s:.3g}, with label {named(b)} {t:.3g}" for s, b, t in figures]
        else:
            if scored.model_label is None or scored.model_probability is None:
                raise UsageError("the score table has no other_label", fix="score with a method that runs the model")
            proposed = scored.model_label
            admissible = scored.model_probability >= self.min_probability
            figures = zip(proposed, scored.model_probability, strict=True)
            why = [f"model gives {named(b)} probability {p:.2f}" for b, p in figures]
        other = (proposed >= 0) & (proposed != scored.labels)
        return np.where(other, proposed, -1).astype(np.int64), admissible & other, why


def _drift(before: Ints, after: Ints, names: tuple[str, ...] | None) -> list[str]:
    """The class whose share changes most."""
    classes = int(max(before.max(), after.max())) + 1
    a, b = (np.bincount(y, minlength=classes) / len(y) for y in (before, after))
    worst = int(np.abs(b - a).argmax())
    return [f"largest change of a class's share: {class_called(names, worst)} from {a[worst]:.1%} to {b[worst]:.1%}"]
