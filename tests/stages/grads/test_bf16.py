"""``--precision bf16`` (design.md sections 2 and 5): what is rounded, what is not, and what is said of it.

python -m pytest tests/stages/grads/test_bf16.py
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from influence_cli.data.tables import provenance
from influence_cli.engines.point import Point
from influence_cli.maths.noise import spearman
from influence_cli.stages.score.noise import describe_noise
from tests.opened import opened, score
from tests.oracle import Problem, column, make_problem, relative_error


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make_problem(tmp_path_factory.mktemp("bf16"), "mlp:16,8", (6,), train=60, val=20)


def test_scores_are_near_those_of_float32_and_their_agreement_is_said(problem: Problem) -> None:
    full, half = score(problem.job(precision="fp32")), score(problem.job(precision="bf16"))
    a, b = column(full), column(half)
    assert 1e-6 < relative_error(b, a) < 0.1
    noise = provenance(half.schema)["noise"]["utility"]
    assert noise["bf16_agreement"] == pytest.approx(spearman(a, b), abs=1e-12)
    assert f"rank correlation with float32 {noise['bf16_agreement']:.4f}" in describe_noise(noise)
    assert "bf16_agreement" not in provenance(full.schema)["noise"]["utility"]


def test_directions_are_not_rounded(problem: Problem) -> None:
    full, half = problem.job(precision="fp32"), problem.job(precision="bf16")
    score(full)
    score(half)
    qs = [j.store.directions.read(j.direction(j.plain_member(), "utility")) for j in (full, half)]
    assert qs[0] is not None
    assert qs[1] is not None
    for n, q in qs[0].items():
        assert np.array_equal(q, qs[1][n])


def test_what_is_stored_is_float32_and_another_members(problem: Problem) -> None:
    job, full = problem.job(store="kept", precision="bf16"), problem.job(store="kept", precision="fp32")
    first = score(job)
    stored = job.outputs(job.plain_member()).read(job.train.payload_keys)["logits"]
    assert stored.dtype == np.float32
    assert job.plain_member() != full.plain_member()
    again = score(problem.job(store="kept", precision="bf16"))
    assert provenance(again.schema)["noise"] == provenance(first.schema)["noise"]
    assert np.array_equal(column(again), column(first))


def test_its_name_tells_the_device(problem: Problem) -> None:
    job = problem.job(precision="bf16")
    names = set()
    for device in ("cpu", "cuda", "cuda:1"):
        names.add(opened(job.inputs, job.spec, replace(job.runtime, device=device)).plain_member().name)
    assert len(names) == 2


def test_a_convolutional_model_runs_in_bf16() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    x = torch.randn(4, 3, 32, 32)
    exact = Point(timm.create_model("test_resnet", num_classes=3).eval(), "all", None, "fp32", torch.device("cpu"))
    exact.model.load_state_dict(model.state_dict())
    u = {n: torch.randn_like(p) * p.std() for n, p in exact.selected.items() if p.numel() > 1}
    point = Point(model, "all", None, "bf16", torch.device("cpu"))
    z, (t,) = point.outputs(x.bfloat16(), [{n: v.bfloat16() for n, v in u.items()}])
    _, (expected,) = exact.outputs(x, [u])
    assert z.dtype == t.dtype == torch.float32
    assert point.fallback is None
    assert relative_error(t.numpy(), expected.numpy()) < 0.2
