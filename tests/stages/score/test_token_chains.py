"""Scores of tokens by bif (methods.md T46): against covariances over the very draws, and their sums.

python -m pytest tests/stages/score/test_token_chains.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from influence_cli.data.tables import provenance
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec
from influence_cli.stages.grads.chains import ChainRunner
from tests.cases import call_cli, write
from tests.languages import encoded, plain_losses, texts, trained
from tests.stages.score.test_tokens import by_row

CHAINS, DRAWS = 2, 6
SAMPLER = [
    word
    for option in (f"chains={CHAINS}", f"draws={DRAWS}", "burn_in=3", "damping=0.5", "step=2e-5", "nbeta=10")
    for word in ("--set", f"bif.{option}")
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chains")
    write(texts(16, 4, 4), folder / "m.parquet")
    trained(folder / "m.parquet", folder / "RUN", "gpt:1x8", epochs=1)
    return folder


def scored(home: Path, *more: Any, code: int = 0, store: str = "store", method: str = "bif") -> Any:
    words = ["score", "m.parquet", "--checkpoint", "RUN", "--precision", "fp64", "--method", method]
    output = "t.parquet" if "--tokens" in more else "s.parquet"
    ran = call_cli(*words, "--store", store, "-o", output, *(SAMPLER if method == "bif" else ()), *more, cwd=home)
    assert ran.code == code, ran.err
    return pq.read_table(home / output) if code == 0 else " ".join(ran.err.split())


def test_t46_tokens_are_covariances_over_the_draws_and_sum_to_the_rows_score(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = dict(zip(*(scored(home).column(name).to_pylist() for name in ("id", "score")), strict=True))
    draws: list[dict[str, torch.Tensor]] = []
    plain = ChainRunner._with_draw
    monkeypatch.setattr(
        ChainRunner,
        "_with_draw",
        lambda self, taken, w, *more: draws.append(self.fit.named(w)) or plain(self, taken, w, *more),
    )
    found = by_row(scored(home, "--tokens", "--top", 3))
    assert len(draws) == CHAINS * DRAWS
    checkpoint, carried = find_checkpoint(str(home / "RUN"))
    spec = ModelSpec.from_dict(carried or {})
    model: Any = load_model(spec, checkpoint, torch.float64).eval()
    table = pq.read_table(home / "m.parquet").to_pylist()
    text = {r["id"]: r["text"] for r in table}
    target = encoded(spec, [r["text"] for r in table if r["split"] == "val"])
    phi, losses = list[float](), {name: list[np.ndarray]() for name in found}
    with torch.no_grad():
        for draw in draws:
            model.load_state_dict(draw, strict=False)
            phi.append(float(np.mean([float(plain_losses(model, ids).sum()) for ids in target])))
            for name in found:
                losses[name].append(plain_losses(model, encoded(spec, [text[name]])[0]).numpy())
    of_phi = np.reshape(phi, (CHAINS, DRAWS))
    assert len(found) >= 3
    for name, parts in found.items():
        values = np.reshape(losses[name], (CHAINS, DRAWS, -1))
        centred = values - values.mean(1, keepdims=True)
        by_hand = 10 * np.einsum("ct,ctk->k", of_phi - of_phi.mean(1, keepdims=True), centred) / (CHAINS * (DRAWS - 1))
        np.testing.assert_allclose(parts[1:], by_hand, rtol=1e-7, atol=1e-10 * np.abs(by_hand).max())
        assert parts[0] == 0.0
        assert abs(parts.sum() - rows[name]) < 1e-10 * np.abs(parts).sum()
    assert (np.abs(of_phi[0] - of_phi[1]) > 0).all()  # chains have draws of their own


def test_tokens_are_the_same_in_other_batches_and_from_the_store(home: Path) -> None:
    first = scored(home, "--tokens", "--top", 3)
    ran = call_cli(
        "score", "m.parquet", "--checkpoint", "RUN", "--precision", "fp64", "--method", "bif", *SAMPLER, "--tokens",
        "--top", 3, "--store", "store", "--format", "jsonl", cwd=home,
    )  # fmt: skip
    assert [json.loads(line)["score"] for line in ran.out.splitlines()] == first.column("score").to_pylist()
    assert "chain 1" not in ran.err  # nothing is drawn again
    other = scored(home, "--tokens", "--top", 3, "--batch-size", 3, store="other")
    a, b = (by_row(t) for t in (first, other))
    assert a.keys() == b.keys()
    for name, parts in a.items():
        np.testing.assert_allclose(b[name], parts, rtol=1e-7, atol=1e-9 * np.abs(parts).max())


def test_beside_another_method_and_what_has_no_parts_is_refused(home: Path) -> None:
    both = scored(home, "--tokens", "--top", 2, "--method", "ip")
    assert {"score_bif_utility", "score_ip_utility"} <= set(both.column_names)
    said = scored(home, "--tokens", "--set", "bif.norm=correlation", code=2)
    assert "correlations of tokens do not" in said
    assert "--set bif.norm=covariance" in said
    said = scored(home, "--tokens", "--decomposition", "position", code=2)
    assert "--decomposition loss" in said


def test_what_is_not_given_follows_from_the_hessian_of_a_language_model(home: Path) -> None:
    """16 texts, so that all are looked at: eigenvalue and trace by the same iterations and signs in plain autograd."""
    few = [word for option in ("draws=4", "chains=1", "burn_in=0", "thin=1") for word in ("--set", f"bif.{option}")]
    words = ("score", "m.parquet", "--checkpoint", "RUN", "--method", "bif", *few, "--store", "rule", "-o", "r.parquet")
    ran = call_cli(*words, cwd=home)
    assert ran.code == 0, ran.err
    facts = provenance(pq.read_schema(home / "r.parquet"))["further"]["bif"]
    checkpoint, carried = find_checkpoint(str(home / "RUN"))
    spec = ModelSpec.from_dict(carried or {})
    model: Any = load_model(spec, checkpoint, torch.float64).eval().requires_grad_(True)
    table = pq.read_table(home / "m.parquet").to_pylist()
    rows = encoded(spec, [r["text"] for r in table if r["split"] == "train"])
    own = list(model.parameters())
    loss = torch.stack([plain_losses(model, ids).sum() for ids in rows]).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, own, create_graph=True)])

    def product(v: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(gradient @ v, own, retain_graph=True)])

    v, sizes = torch.from_numpy(np.random.default_rng(1).standard_normal(len(gradient))), list[float]()
    for _ in range(60):
        v = product(v / v.norm())
        sizes.append(float(v.norm()))
    assert facts["largest_eigenvalue"] == pytest.approx(sizes[19], rel=1e-3)
    assert 0.9 < facts["largest_eigenvalue"] / sizes[-1] <= 1.0
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (len(v), 8))
    probes = [float(torch.from_numpy(z) @ product(torch.from_numpy(z))) for z in signs.T]
    assert facts["mean_eigenvalue"] * len(v) == pytest.approx(np.mean(probes), rel=1e-3)
    assert facts["damping"] == pytest.approx(0.15 * facts["largest_eigenvalue"])
    top = facts["nbeta"] * facts["largest_eigenvalue"] + facts["gamma"]
    assert facts["step"] == pytest.approx(0.5 / top)
    assert (facts["batch"], facts["start_loss"]) == (16, pytest.approx(loss.item(), rel=1e-5))
