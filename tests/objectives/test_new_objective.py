"""New objectives, each one class and one row of the table: of rows, of attacked rows, and of groups.

Reference: scores against a float64 loop over rows, with Phi written out here and differentiated by autograd.

    python -m pytest tests/objectives/test_new_objective.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from influence_cli.data.tables import provenance
from influence_cli.engines.attacks import Attack
from influence_cli.model.losses import RowLoss
from influence_cli.objectives import OBJECTIVES
from influence_cli.objectives.group_gaps import GroupGap, Term
from influence_cli.objectives.protocol import Need
from tests.cases import call_cli
from tests.objectives.test_objectives import grouped_problem, groups_of
from tests.oracle import Problem, column, dot, relative_error, row_gradient

TAU = 1e-3


@dataclass(frozen=True)
class ClassLoss:
    """What the target rows of one class add to the mean loss."""

    needs: ClassVar[frozenset[Need]] = frozenset({"rows"})

    label: int = field(default=1, metadata={"help": "the class"})

    def rows(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """The loss of rows of the class, 0 of others [m]."""
        return loss.rows(logits, labels) * (labels == self.label)


@dataclass(frozen=True)
class AttackedMargin(Attack):
    """The mean gap to the labelled class's logit, of attacked rows."""

    needs: ClassVar[frozenset[Need]] = frozenset({"rows", "attack"})

    def rows(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """The largest logit less the label's [m]."""
        return logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]


@dataclass(frozen=True)
class Confidence(GroupGap):
    """How far groups are apart in the mean of sum_c p_c^2."""

    def terms(self, classes: int) -> list[Term]:
        """One, over all rows."""
        return [Term("confidence", tuple(range(classes)), 0)]

    def values(self, logits: Tensor, labels: Tensor, loss: RowLoss) -> Tensor:
        """Sum of the squared probabilities [m, 1]."""
        return logits.softmax(1).square().sum(1, keepdim=True)


@pytest.fixture
def problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Problem:
    for cls, name in ((ClassLoss, "class-loss"), (AttackedMargin, "attacked-margin"), (Confidence, "confidence")):
        monkeypatch.setitem(OBJECTIVES, name, f"{__name__}:{cls.__name__}")
    return grouped_problem(tmp_path, "mlp:7", (5,), 2, 60, 2)


def scored(problem: Problem, *flags: str) -> Path:
    """A score table from the command line."""
    where = problem.folder / "scores.parquet"
    ran = call_cli(
        "score", problem.manifest, "--checkpoint", problem.checkpoint, "--store", problem.folder / "store",
        "--precision", "fp64", "-o", where, *flags, cwd=problem.folder,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return where


def by_loop(problem: Problem, phi: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """<grad l_i, grad Phi> of every train row, one at a time; ``phi`` maps logits and labels of the target rows."""
    x, y = problem.part("val")
    at = {n: p.detach().clone().requires_grad_() for n, p in problem.model.named_parameters()}
    q = torch.autograd.grad(phi(functional_call(problem.model, at, (x,)), y), list(at.values()))
    direction = dict(zip(at, q, strict=True))
    rows, labels = problem.part("train")
    return np.array([dot(row_gradient(problem.model, r, int(c)), direction) for r, c in zip(rows, labels, strict=True)])


@pytest.mark.parametrize("label", [0, 1])
def test_an_objective_of_rows_is_scored_and_curated(problem: Problem, label: int) -> None:
    where = scored(problem, "--objective", "class-loss", "--set", f"class-loss.label={label}")
    expected = by_loop(problem, lambda z, y: (F.cross_entropy(z, y, reduction="none") * (y == label)).mean())
    found = column(pq.read_table(where))
    assert relative_error(found, expected) < 1e-10
    free = ("--set", "trim.guard=false", "--set", "trim.group_guard=false")  # the lowest rows, of whatever class
    ran = call_cli("curate", where, "--budget", "3", *free, "-o", "edited.parquet", cwd=problem.folder)
    assert ran.code == 0, ran.err
    dropped = set(problem.ids) - set(pq.read_table(problem.folder / "edited.parquet")["id"].to_pylist())
    train = np.array(problem.ids)[problem.splits == "train"]
    assert dropped == set(train[np.argsort(expected)[:3]])


def test_an_objective_of_groups_says_what_it_is_made_of(problem: Problem) -> None:
    table = pq.read_table(scored(problem, "--objective", "confidence", "--set", f"confidence.tau={TAU}"))
    member = groups_of(problem)

    def phi(z: Tensor, y: Tensor) -> Tensor:
        value = z.softmax(1).square().sum(1)
        gap = value[torch.from_numpy(member == "g1")].mean() - value[torch.from_numpy(member == "g0")].mean()
        return (gap * gap + TAU * TAU).sqrt()

    assert relative_error(column(table), by_loop(problem, phi)) < 1e-10
    (term,) = provenance(table.schema)["noise"]["confidence"]["parts"]["terms"]
    assert term["term"] == "confidence"
    assert {name: group["rows"] for name, group in term["groups"].items()} == {"g0": 30, "g1": 30}


def test_an_objective_of_attacked_rows_is_taken_on_them(problem: Problem) -> None:
    where = scored(problem, "--objective", "attacked-margin", "--set", "attacked-margin.attack=fgsm")
    job = problem.job(
        str(problem.folder / "store"), objectives=("attacked-margin",), options={"attacked-margin": {"attack": "fgsm"}}
    )
    moved = torch.from_numpy(job.attacks("attacked-margin").read(job.target.row_keys)["input"])
    x, _ = problem.part("val")
    assert 0 < float((moved[np.argsort(job.target.index)] - x).abs().max()) <= 0.1 + 1e-6
    assert len(pq.read_table(where)) == 12
