"""GEX and its form by gradients (methods.md T38), against plain SGD and loops over the members in float64.

python -m pytest tests/methods/test_gex.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, vmap

from influence_cli.data.open import open_manifest
from influence_cli.data.tables import provenance
from influence_cli.errors import ModelError, UsageError
from influence_cli.methods.gex import GEX
from influence_cli.methods.stored import Member
from influence_cli.model.losses import CROSS_ENTROPY
from influence_cli.store.maintenance import collect, list_entries
from tests.cases import Heard, call_cli
from tests.opened import Opened, fill, missing_work, per_target, score
from tests.oracle import (
    Problem,
    column,
    loop_scores,
    make_problem,
    mean_gradient,
    relative_error,
    row_gradients,
    write_manifest,
)

RATE, MOMENTUM, BATCH, EPOCHS, MEMBERS = 0.3, 0.9, 8, 2, 3
OPTIONS = {"rate": RATE, "batch": BATCH, "members": MEMBERS}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("gex"), "mlp:5", (3,), classes=3, train=30, val=9)


def job(problem: Problem, *methods: str, options: dict[str, Any] | None = None, **more: Any) -> Opened:
    return problem.job(methods=methods, options={m: {**OPTIONS, **(options or {})} for m in methods}, **more)


def by_key(problem: Problem) -> np.ndarray:
    """Places of the train rows in the order of their keys."""
    keys = open_manifest(str(problem.manifest)).rows("train").row_keys
    return np.array(sorted(range(len(keys)), key=lambda k: keys[k].tobytes()))


def members(problem: Problem, weights: np.ndarray | None = None) -> list[torch.nn.Module]:
    """Every member by torch's own SGD, from the checkpoint on."""
    import copy

    x, y = problem.part("train")
    w = torch.ones(len(x), dtype=torch.float64) if weights is None else torch.from_numpy(weights)
    order, model, found = by_key(problem), copy.deepcopy(problem.model), []
    steps_per_epoch = -(-len(x) // BATCH)
    for k in range(MEMBERS):
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
        steps = -(-EPOCHS * len(x) // BATCH)
        for step in range(steps):
            epoch, position = divmod(step, steps_per_epoch)
            rows = np.random.default_rng([0, k, epoch]).permutation(len(x))
            rows = order[rows[position * BATCH : (position + 1) * BATCH]]
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            losses = F.cross_entropy(model(x[rows]), y[rows], reduction="none")
            optimizer.zero_grad()
            ((w[rows] * losses).sum() * len(x) / (len(rows) * w.sum())).backward()
            optimizer.step()
        found.append(copy.deepcopy(model))
    return found


def test_gex_is_the_product_of_deviations_over_members_of_plain_sgd(problem: Problem) -> None:
    (x, y), (xv, yv) = problem.part("train"), problem.part("val")
    at = [problem.model, *members(problem)]
    with torch.no_grad():
        losses = np.stack([F.cross_entropy(m(x), y, reduction="none").numpy() for m in at])
        phi = np.array([float(F.cross_entropy(m(xv), yv)) for m in at])
    centred = (losses[1:] - losses[1:].mean(0)) * (phi[1:] - phi[1:].mean())[:, None]
    case = job(problem, "gex")
    case.listener = Heard()
    table = score(case, per_member=True)
    assert relative_error(column(table), centred.mean(0)) < 1e-9
    assert relative_error(column(table, "score_utility_1"), centred[1]) < 1e-9
    np.testing.assert_allclose(column(table, "score_std"), centred.std(0, ddof=1), rtol=1e-6, atol=1e-12)
    plain = F.cross_entropy(problem.model(x), y, reduction="none").detach().numpy()
    np.testing.assert_allclose(column(table, "loss"), plain, rtol=1e-9)  # at the checkpoint, not at a member
    from_checkpoint = ((losses[1:] - losses[0]) * (phi[1:] - phi[0])[:, None]).mean(0)
    found = column(score(job(problem, "gex", options={"centre": "checkpoint"})))
    assert relative_error(found, from_checkpoint) < 1e-9
    assert relative_error(found, centred.mean(0)) > 0.1
    drift = provenance(table.schema)["further"]["gex"]
    theta, *others = [torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (problem.model, *at[1:])]
    far = [float((other - theta).norm() / theta.norm()) for other in others]
    np.testing.assert_allclose(drift["relative_distance"], far, rtol=1e-9)
    assert any("parameters' length away" in note for note in case.listener.notes)


def test_gex_ip_is_the_mean_of_ip_over_the_same_members(problem: Problem, tmp_path: Path) -> None:
    (x, y), (xv, yv) = problem.part("train"), problem.part("val")
    expected = np.mean([loop_scores(m, x, y, mean_gradient(m, xv, yv)) for m in members(problem)], axis=0)
    (tmp_path / "store").mkdir()
    case = job(problem, "gex", "gex-ip", store=str(tmp_path / "store"))
    table = score(case)
    assert relative_error(column(table, "score_gex-ip_utility"), expected) < 1e-9
    entries = [e for e in list_entries(tmp_path / "store") if e.kind == "weights"]
    assert len(entries) == MEMBERS  # shared by both
    pairs = per_target(job(problem, "gex-ip", store=str(tmp_path / "store")), 30).to_pylist()
    ids = table.column("id").to_pylist()
    summed = [sum(p["score"] for p in pairs if p["id"] == i) / len(xv) for i in ids]
    assert relative_error(np.array(summed), expected) < 1e-8
    assert column(table, "score_gex_utility").std() > 0


def test_t38_gaussian_members_give_influence(problem: Problem) -> None:
    """20,000 members N(theta, sigma^2 S): the mean product is sigma^2 q S g_i, up to Monte-Carlo error."""
    (x, y), (xv, yv) = problem.part("train"), problem.part("val")
    model, sigma, count = problem.model, 0.01, 20_000
    shapes = {n: p.shape for n, p in model.named_parameters()}
    sizes = [s.numel() for s in shapes.values()]
    generator = torch.Generator().manual_seed(0)
    scale = 0.5 + torch.rand(sum(sizes), generator=generator, dtype=torch.float64)  # the root of S, diagonal
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])

    def logits(flat: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        parts = {n: v.view(s) for (n, s), v in zip(shapes.items(), flat.split(sizes), strict=True)}
        return functional_call(model, parts, (inputs,))

    psi = theta + sigma * scale * torch.randn(count, len(theta), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        z, zv = (vmap(logits, (0, None), chunk_size=4000)(psi, of) for of in (x, xv))
        z, zv = torch.cat([logits(theta, x)[None], z]), torch.cat([logits(theta, xv)[None], zv])
    phi = F.cross_entropy(zv.transpose(1, 2), yv.expand(len(zv), -1), reduction="none").mean(1)

    rows = open_manifest(str(problem.manifest)).rows("train")

    class Injected:
        """What the method reads of members, in place of the store's."""

        members = tuple(Member(str(k), None, None) for k in range(count + 1))  # pyright: ignore[reportArgumentType]
        objectives = ("utility",)

        def blocks(self) -> Iterator[np.ndarray]:
            yield from np.array_split(np.arange(len(rows)), 3)

        def logits(self, member: Member, some: np.ndarray) -> np.ndarray:
            return z[int(member.name)].numpy()[some]

        def phi(self, member: Member, objective: str) -> float:
            return float(phi[int(member.name)])

    gradients = torch.stack([torch.cat([v.flatten() for v in g.values()]) for g in row_gradients(model, x, y)])
    q = torch.cat([v.flatten() for v in mean_gradient(model, xv, yv).values()])
    expected = (sigma**2 * gradients @ (scale**2 * q)).numpy()
    (found,) = GEX().score(Injected(), rows, CROSS_ENTROPY)  # pyright: ignore[reportArgumentType]
    assert np.linalg.norm(found.values - expected) < 0.12 * np.linalg.norm(expected)
    assert np.corrcoef(found.values, expected)[0, 1] > 0.99


def test_weights_of_rows_count_in_training(problem: Problem, tmp_path: Path) -> None:
    weights = np.linspace(0.2, 3.0, 30)
    every = np.ones(39)
    every[np.flatnonzero(problem.splits == "train")] = weights
    other = write_manifest(
        tmp_path / "m.parquet", problem.payloads, problem.labels.numpy(), problem.splits.tolist(), problem.ids,
        weight=every,
    )  # fmt: skip
    at = members(problem, weights)
    x, y = problem.part("train")
    (xv, yv) = problem.part("val")
    expected = np.mean([loop_scores(m, x, y, mean_gradient(m, xv, yv)) for m in at], axis=0)
    assert relative_error(column(score(job(problem, "gex-ip", manifest=other))), expected) < 1e-9


def test_members_resume_one_by_one_and_are_the_same_in_any_order_of_rows(problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    first = job(problem, "gex-ip", options={"members": 2}, store=str(tmp_path / "store"))
    fill(first)
    more = job(problem, "gex-ip", store=str(tmp_path / "store"))
    further = [f for w in missing_work(more) for f in w.further]
    assert [f.what for f in further] == ["member 3"]
    straight = column(score(job(problem, "gex-ip")))
    np.testing.assert_array_equal(column(score(more)), straight)
    order = np.random.default_rng(1).permutation(len(problem.ids))
    other = job(problem, "gex-ip", manifest=problem.permuted(order, "other.parquet"))
    table = score(other)
    place = {i: k for k, i in enumerate(table.column("id").to_pylist())}
    own = score(job(problem, "gex-ip")).column("id").to_pylist()
    np.testing.assert_allclose(column(table)[[place[i] for i in own]], straight, rtol=1e-9)


def test_members_of_a_fit_set_that_is_gone_are_collected(problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    score(job(problem, "gex", "gex-ip", store=str(tmp_path / "store")))
    before = {e.kind for e in list_entries(tmp_path / "store")}
    assert {"weights", "chains", "outputs", "directions"} <= before
    collect(tmp_path / "store", None, fits=set())
    left = [e for e in list_entries(tmp_path / "store") if e.kind in ("weights", "chains", "directions", "tangents")]
    assert left == []
    assert len([e for e in list_entries(tmp_path / "store") if e.kind == "outputs"]) == 1  # the checkpoint's own


def test_the_rate_of_the_training_is_taken_or_asked_for(problem: Problem) -> None:
    with pytest.raises(UsageError, match="at which rate") as raised:
        problem.job(methods=("gex",))
    assert "gex.rate=" in raised.value.fix


def test_what_gex_cannot_do_is_refused(problem: Problem) -> None:
    given = ("score", str(problem.manifest), "--checkpoint", str(problem.checkpoint), "--no-store")
    rate = ("--set", "gex.rate=0.1", "--set", "gex.members=2")
    for more, said in (
        (("--per-target",), "gex"),
        (("--relative",), "--relative"),
        (("--precision", "bf16"), "bf16 rounds away"),
        (("--set", "gex.centre=median"), "centre 'median'"),
        (("--set", "gex.members=1"), "members=1 is below 2"),
    ):
        output = ("-o", str(problem.folder / "refused.parquet"))
        ran = call_cli(*given, "--method", "gex", *rate, *more, *output, cwd=problem.folder)
        assert ran.code == 2, ran.err
        assert said in ran.err


def test_a_loss_that_leaves_the_finite_numbers_is_refused(problem: Problem) -> None:
    from influence_cli.errors import ModelError

    with pytest.raises(ModelError, match="not finite at step"):
        score(job(problem, "gex", options={"rate": 1e200}))


@pytest.mark.parametrize("name", ["gex", "gex-ip"])
def test_members_that_diverge_are_warned_of_or_refused_by_the_rate_to_lower(name: str, problem: Problem) -> None:
    case = job(problem, name, options={"rate": 30.0})
    case.listener = Heard()
    score(case)
    assert any(f"{name}: 3 of 3 members have left the checkpoint" in w for w in case.listener.warnings)
    assert any(f"--set {name}.rate=3" in w for w in case.listener.warnings)
    quiet = job(problem, name)
    quiet.listener = Heard()
    score(quiet)
    assert not any("left the checkpoint" in w for w in quiet.listener.warnings)
    with pytest.raises(ModelError, match="the loss of member 1 is not finite") as caught:
        score(job(problem, name, options={"rate": 1e300}))
    assert f"--set {name}.rate=1e+299" in str(caught.value.fix)
