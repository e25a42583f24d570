"""Auto: how sure it is that a label is right, as far as features tell and target rows help; ranking only.

    s_i = (log-odds of P_i(y_i) + log-odds of Q_i(y_i)) / 2 + w (log-odds of R_i(y_i) + v_i)

P_i are class probabilities by a probe and neighbours on penultimate features, learned from labels that may be wrong and
from target rows, without any label of row i's fold; Q_i weighs them by which labels are mistaken for which
(``maths.corrected_probe``).  The probe is linear in features of a kernel (``maths.kernel_features``), and P_i the mean
of what it gives for two deals of the folds (``maths.averaged_probe``).  It needs one forward pass of the features, two
with ``--features-size 224,128``, and a fit; another model's features are better where its own has learned its wrong
labels: ``--features``.

R_i is how likely the row is given each label, mistakes included, by a linear probe on the features as they are (where
they are more than ``WIDEST_LINEAR``, on those of the kernel), fitted on the given labels of other folds and on target
rows (``averaged_probe.of_given_labels``).  Much as ``probe`` it is the better judge where few labels are wrong and rows
are many; elsewhere it is a second opinion of another kind.

v_i is what the scored model says itself, at its end and, where training noted its rows at every epoch, on its way.  Its
features know labels that it has learned by heart, and so do its probabilities: w is less the more of them it has
learned (``maths.own_view``).  Where ``--features`` names another model v_i is 0 and w is 1.

This is for utility, where rows do harm by a wrong label.  For all else auto is a method that estimates what a row does
to the objective (``chosen``): for other objectives and for language models ``ekfac`` with ``--params last``, whose
curvature costs little there, and else ``ip``; ``ip`` too where labels are no classes, all rows are of one class or too
few or many, or the model has no features, and where scores of pairs of rows are asked for.

Labels of target rows are taken to be right, in both deals where they look cleaner than those of train rows, else in one
of two; the number of wrong labels is then that beyond their own, and its interval reaches up to what probabilities
alone come to.  Where features of the model itself foretell train labels better than those of target rows, it reaches up
to all rows, since nothing tells how many such features hide.  Target rows that are train rows too are left out, and so
are those of classes that no train row has, which labels of train rows cannot foretell.  Weights of rows change nothing.
Columns ``other_label`` and ``other_probability`` of the table are those of P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from influence_cli.data.classes import class_count
from influence_cli.data.folds import dealt
from influence_cli.data.label_kinds import CLASSES, NOTHING, SEVERAL
from influence_cli.errors import UsageError
from influence_cli.maths.agreement import agreement
from influence_cli.maths.averaged_probe import Averaged, Labelled, averaged, looks_cleaner, of_given_labels
from influence_cli.maths.corrected_probe import FLOOR, target_weight
from influence_cli.maths.epochs import mean_over_epochs
from influence_cli.maths.kernel_features import LANDMARKS, kernel_features
from influence_cli.maths.labels import softmax
from influence_cli.maths.own_view import log_odds, noted, weight_of
from influence_cli.maths.wrong_count import WrongLabels, wrong_labels
from influence_cli.methods.checks import check_options
from influence_cli.methods.ekfac import EKFAC
from influence_cli.methods.ip import IP
from influence_cli.methods.protocol import Facts, Floats, Kind, Method, Scores
from influence_cli.methods.shapes.by_probe import refuse_wide
from influence_cli.settings import Options, build_options, resolved, setting
from influence_cli.store import Keys
from influence_cli.store.shards import key_order, positions, unique

if TYPE_CHECKING:
    from influence_cli.data.manifest import Rows
    from influence_cli.methods.stored import Stored
    from influence_cli.model.losses import RowLoss

NAME = "auto"
UTILITY = "utility"
PAIRS = 20
WIDEST_LINEAR = 4096  # features that are taken as they are: a matrix of them squared is held for each fold
LEAK = 3.0  # standard errors
FEW_TARGET = 20  # distinct target rows below which they say next to nothing
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Auto(Method):
    """Suspicious labels come last."""

    needs: ClassVar[str] = "features"
    kind: ClassVar[Kind] = "ranking"

    folds: int = setting(5, "folds of the rows that are fitted on")
    deals: int = setting(2, "deals of the folds that are averaged")
    neighbours: int = setting(50, "nearest rows that count", "rows")
    seed: int = setting(0, "of the folds")
    max_rows: int = setting(
        100_000, "train rows that are held against each other; more get effects", "rows", limit=True
    )
    with_target: bool = resolved(False)

    def __post_init__(self) -> None:
        check_options(self, {}, {"folds": 3, "seed": 0}, ("deals", "neighbours", "max_rows"))

    def needs_target(self) -> bool:
        """Where there are any."""
        return self.with_target

    def depends_on_others(self) -> bool:
        """Yes: they are what the probe is fitted on."""
        return True

    def pairs(self, train: int, target: int) -> int:
        """Every row with every other."""
        return train * (train + target * self.with_target)

    def check_width(self, name: str, width: int) -> None:
        """Refuse (NoFeatures) features that are too many."""
        refuse_wide(width, name)

    def check_run(self, name: str, loss: RowLoss, train: int, target: int) -> None:
        """Refuse (UsageError) labels that are no classes, and fewer rows than folds."""
        if not loss.by_class:
            what = "auto judges labels that are classes, one a row, and these are not"
            raise UsageError(what, fix="use --method probe, which judges numbers and several labels a row too")
        if train < 2 * self.folds:
            what = f"{name}.folds={self.folds} needs {2 * self.folds} train rows, and there are {train}"
            few = "give more train rows"
            raise UsageError(what, fix=few if train < 6 else f"pass --set {name}.folds={train // 2}, or {few}")

    def score(self, stored: Stored, rows: Rows, loss: RowLoss) -> list[Scores]:
        """How sure each label is right, with the estimated number of wrong labels.

        Raises:
            UsageError: there is one class, there are fewer payloads than folds, or features are too wide.
        """
        (member,) = stored.members
        features = stored.read("features", member)["features"]
        refuse_wide(features.shape[1], NAME)
        known = np.asarray(np.isfinite(features).all(axis=1))
        target, of_target, left_out = self._target(stored, rows, features.shape[1])
        if len(np.unique(rows.labels)) < 2:
            raise UsageError("auto tells classes apart, and all train rows are of one", fix="use --method outlier")
        classes = max(class_count(r.manifest.classes, r.labels) for r in (rows, target))
        own, theirs = kernel_features(features[known], of_target, _landmarks(rows.payload_keys[known]))
        fit = Labelled(own, rows.labels[known], [fold[known] for fold in self._dealt(rows, known)])
        held = Labelled(theirs, target.labels, self._dealt(target, np.ones(len(target), dtype=bool)))
        with stored.progress("auto: folds", len(fit.y) * self.deals) as progress:
            found = averaged(fit, held, classes, self.folds, self.neighbours, progress.advance)
        sure = found.cleaner and stored.own_logits() is None  # features of the model itself hide what it has learned
        wrong = wrong_labels(found.p, fit.y, found.of_target, held.y, sure)
        values, logits = np.full(len(rows), np.nan), np.full((len(rows), classes), np.nan)
        logits[known], at_label = np.log(found.p + FLOOR), (np.arange(len(fit.y)), fit.y)
        facts: Facts = {**_facts(found, fit.y, held.y, wrong), **left_out, "target_least": max(FEW_TARGET, self.folds)}
        own, weight, more = _own_view(stored, rows, known, facts["agrees"])
        if more["own_weight"] is not None and _leak(facts):
            facts |= {"features_know_labels": True, "interval": [facts["interval"][0], float(len(fit.y))]}
        values[known] = (_log_odds(found.p[at_label]) + _log_odds(1.0 - wrong.each)) / 2.0
        if weight:
            if features.shape[1] <= WIDEST_LINEAR:
                fit, held = replace(fit, x=features[known]), replace(held, x=of_target.astype(features.dtype))
            with stored.progress("auto: labels as given", (len(fit.y) + len(held.y)) * self.deals) as progress:
                worth = target_weight(len(fit.y), len(held.y)) if found.cleaner else 1.0
                given = of_given_labels(fit, held, worth, classes, self.folds, progress.advance)
            values[known] += weight * (_log_odds(given[at_label]) + own[known])
        return [Scores(values, facts={**facts, **more}, logits=logits)]

    def _dealt(self, rows: Rows, used: NDArray[np.bool_]) -> list[Ints]:
        """The fold of each row [n] in every deal."""
        if not len(rows):
            return [np.empty(0, dtype=np.int64)] * self.deals
        seeds = range(self.seed * self.deals, (self.seed + 1) * self.deals)
        return [dealt(rows, used, self.folds, seed, f"--set {NAME}.folds=") for seed in seeds]

    def _target(self, stored: Stored, rows: Rows, width: int) -> tuple[Rows, Floats, Facts]:
        """The target rows that are no train rows but of their classes, with features [m, d]; none where few differ.

        The facts say how many of them differ, and how many are of other classes.
        """
        (member,), none = stored.members, rows.take(np.array([], dtype=np.int64))
        if not self.with_target:
            return none, np.empty((0, width)), {"target_given": 0, "target_of_other_classes": 0}
        apart = stored.target.take(np.flatnonzero(positions(stored.target.payload_keys, rows.payload_keys) < 0))
        features: Floats = stored.read("features", member, apart)["features"].astype(np.float64)
        known, finite = np.isin(apart.labels, rows.labels), np.isfinite(features).all(axis=1)
        usable = np.flatnonzero(known & finite)
        distinct = len(unique(apart.payload_keys[usable]))
        left_out: Facts = {"target_given": distinct, "target_of_other_classes": int((~known).sum())}
        if distinct < max(FEW_TARGET, self.folds):
            return none, np.empty((0, width)), left_out
        kept: Floats = features[usable]
        return apart.take(usable), kept, left_out


@dataclass(frozen=True)
class Question:
    """What a run asks, as far as it decides what ``auto`` is for it."""

    objectives: Sequence[str]
    params: str
    holds: str  # what labels are: see ``data.label_kinds``
    classes: int  # that rows are of, as far as it matters: 1, or more
    train: int  # rows
    target: bool  # whether there are target rows
    effects: str = ""  # why only a method of effects answers, where that is for another reason than these

    def why_effects(self, folds: int, most: int) -> str:
        """Why a method of effects is the one to take; nothing where labels can be judged, or no target says effects."""
        if tuple(self.objectives) != (UTILITY,):
            return "a wrong label is another question"
        if self.holds == NOTHING:
            return "there are no labels to be wrong"
        if self.effects or not self.target:
            return self.effects
        if self.holds != CLASSES:
            are = "several a row" if self.holds == SEVERAL else "numbers"
            return f"labels are {are}, and it judges classes (--method probe judges these)"
        if self.classes < 2:
            return "all train rows are of one class, and it tells classes apart"
        if self.train > most:
            return (
                f"{self.train:,} train rows are more than it holds against each other (at most {most:,}: auto.max_rows)"
            )
        few = self.train < 2 * min(folds, Auto().folds)  # more folds than rows allow are refused (``check_run``)
        return f"{self.train} train rows are too few to judge each by the others" if few else ""


def chosen(method: Method, question: Question, options: Options) -> tuple[Method, str]:
    """What ``--method auto`` is for a run: itself for wrong labels, or a method for what rows do, and why that.

    ``options`` are those of the run, by method: the method that it becomes has its own, and those of auto then change
    nothing, which the reason says (a flag for them is refused earlier where that can be seen: ``cli.settings``).
    """
    if not isinstance(method, Auto):
        return method, ""
    why = question.why_effects(method.folds, method.max_rows)
    if not why:
        return replace(method, with_target=question.target), ""
    if replace(method, max_rows=Auto().max_rows) != Auto():
        why += "; options of auto are about wrong labels, and change nothing here"
    solves = question.params == "last" and (tuple(question.objectives) != (UTILITY,) or question.holds == NOTHING)
    kind, name = (EKFAC, "ekfac") if solves else (IP, "ip")
    return build_options(kind, name, options.get(name, {})), why


def _own_view(stored: Stored, rows: Rows, known: NDArray[np.bool_], agrees: float) -> tuple[Floats, float, Facts]:
    """What the scored model says of the labels of the rows [n], and how much it counts; 0 and 1 by features of another.

    The facts are how much it counts, how many epochs training noted of it, and how many of the labels it fits.
    """
    nothing, logits = np.zeros(len(rows)), stored.own_logits()
    if logits is None:
        return nothing, 1.0, {"own_weight": None, "epochs": 0, "fits": None}
    p = softmax(logits.astype(np.float64))
    fits = float((p[known].argmax(axis=1) == rows.labels[known]).mean())
    weight, epochs = weight_of(fits, agrees), 0
    if not weight:
        return nothing, 0.0, {"own_weight": 0.0, "epochs": 0, "fits": fits}
    view, records = log_odds(p[np.arange(len(rows)), rows.labels]), stored.own_epochs("probability")
    if records is not None:
        every = list(records.each("probability"))
        on_the_way = noted(records.onto(mean_over_epochs(every), rows.row_keys))
        if on_the_way is not None:
            view, epochs = view + on_the_way, len(every)
    return view, weight, {"own_weight": weight, "epochs": epochs, "fits": fits}


def _leak(facts: Facts) -> bool:
    """Whether labels of the rows are foretold more often than those of target rows, beyond chance.

    Where features know nothing of the labels that is the other way round, or equal where none of either is wrong.
    """
    own, theirs = facts["agrees"], facts.get("target_accuracy", 1.0)
    variance = own * (1.0 - own) / facts["rows"] + theirs * (1.0 - theirs) / max(facts["target_rows"], 1)
    return bool(own - theirs > LEAK * np.sqrt(variance))


def _landmarks(keys: Keys) -> Ints:
    """The first of the rows, by the keys of their payloads: their order and their labels are no matter."""
    first = unique(keys)
    return first[key_order(keys[first])[:LANDMARKS]]


def _log_odds(p: Floats) -> Floats:
    return np.log(p + FLOOR) - np.log(1.0 - p + FLOOR)


def _facts(found: Averaged, labels: Ints, of_target: Ints, wrong: WrongLabels) -> Facts:
    """The number of wrong labels with its interval, between which classes, and what the three lines of why rest on.

    ``labels`` [n] are those of the rows, ``of_target`` [m] those of the target rows.
    """
    likely, n = found.p.argmax(axis=1), len(labels)
    cells = np.zeros((found.p.shape[1], found.p.shape[1]))
    np.add.at(cells, (labels, likely), wrong.each)
    np.fill_diagonal(cells, 0.0)
    largest = np.argsort(-cells, axis=None, kind="stable")[:PAIRS]
    pairs = [(*divmod(int(k), len(cells)), float(cells.ravel()[k])) for k in largest if cells.ravel()[k] > 0]
    (low, high), agree = wrong.interval, agreement(likely, labels)
    # only target rows of several classes show both right and wrong labels; else labels have to be foretold better than
    # by the largest class.  Labels no better than random ones say nothing beside a target that is no cleaner, and a
    # number that may be 0 is not theirs
    cleaner = found.cleaner or looks_cleaner(found.p, labels, found.of_target, of_target)
    shown = wrong.tells and (agree.beyond_chance or (cleaner and low >= 0.5))
    facts: Facts = {
        "by": NAME, "rows": n, "wrong_labels": wrong.count, "interval": [low, high], "pairs": pairs,
        "counted": int((likely != labels).sum()), "target_rows": len(of_target),
        "tells": agree.beyond_most_frequent if wrong.apart is None else shown,
        "apart": None if wrong.apart is None else list(wrong.apart),
        "target_is_cleaner": found.cleaner, "features_know_labels": False,
        "absent": int((~np.isin(labels, of_target)).sum()) if len(of_target) else 0,
        "agrees": agree.share, "most_frequent": agree.most_frequent, "by_chance": agree.by_chance,
        "beyond_chance": agree.beyond_chance,
    }  # fmt: skip
    if len(of_target):
        facts["target_accuracy"] = float((found.of_target.argmax(axis=1) == of_target).mean())
    return facts
