"""bif against devinterp (timaeus) in float64: the same chains and covariances of a small language model.

Its sampler takes its own normal draws and batches where a chain of ours takes them from its seed, number and step: it
is given ours.  What differs in definition, and so is set alike here:
- Its loss is the mean over a batch's tokens where ours is the mean over rows of a row's sum: it is given ours, and
  nbeta and localisation with it.  Its own nbeta would be b / ln b of a batch of b, ours n / ln n.
- It has no factor nbeta before the covariance; the sign is ours: positive helps.
- It centres at the mean of all chains, where each chain of ours is centred at its own: with one chain they are alike,
  and of several ours is the mean of theirs by chain.
- Its correlation of rows is of means over tokens, with the same value as of sums for rows of a fixed length.

    pip install 'influence-cli[test,peers]' && python -m pytest -m peers
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from influence_cli.data.open import open_manifest
from influence_cli.maths.langevin import chosen_rows, noise
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.spec import ModelSpec
from tests.cases import call_cli, column, write
from tests.languages import encoded, plain_losses, texts, trained
from tests.oracle import relative_error

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

NBETA, DAMPING, STEP, CHAINS, DRAWS, BURN, THIN, BATCH = 10.0, 0.5, 2e-4, 2, 12, 3, 2, 5
GIVEN = {
    "chains": CHAINS, "draws": DRAWS, "burn_in": BURN, "thin": THIN, "batch": BATCH, "damping": DAMPING, "step": STEP,
    "nbeta": NBETA,
}  # fmt: skip


@pytest.fixture(scope="module")
def peer() -> Any:
    name = "devinterp.optim.sgmcmc"
    return pytest.importorskip(name, reason="devinterp is not installed", exc_type=ImportError)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devinterp")
    write(texts(16, 4, 4), folder / "m.parquet")
    trained(folder / "m.parquet", folder / "RUN", "gpt:1x8", epochs=1)
    return folder


def ours(home: Path, *more: str) -> Any:
    options = [word for name, value in GIVEN.items() for word in ("--set", f"bif.{name}={value}")]
    ran = call_cli(
        "score", "m.parquet", "--checkpoint", "RUN", "--precision", "fp64", "--method", "bif", *options, *more,
        "--per-member", "--store", "store", "-o", "s.parquet", cwd=home,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return pq.read_table(home / "s.parquet")


def their_draws(peer: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float64]:
    """Losses of train rows and, last, their mean over target rows [C, n + 1, T] at the draws of their sampler."""
    checkpoint, carried = find_checkpoint(str(home / "RUN"))
    spec, found = ModelSpec.from_dict(carried or {}), []
    table = pq.read_table(home / "m.parquet").to_pylist()
    rows, target = (encoded(spec, [r["text"] for r in table if r["split"] == s]) for s in ("train", "val"))
    keys = open_manifest(str(home / "m.parquet")).rows("train").row_keys
    order = sorted(range(len(rows)), key=lambda k: keys[k].tobytes())
    for chain in range(CHAINS):
        model: Any = load_model(spec, checkpoint, torch.float64).eval().requires_grad_(True)
        own, seen = list(model.parameters()), []
        start = torch.nn.utils.parameters_to_vector(own)
        sampler = peer.SGMCMC.sgld(own, lr=STEP, nbeta=NBETA, localization=DAMPING * NBETA)
        for t in range(BURN + DRAWS * THIN):
            chosen = chosen_rows(f"bif:0:{chain}", t, len(rows), BATCH)
            assert chosen is not None
            sampler.zero_grad()
            torch.stack([plain_losses(model, rows[order[k]]).sum() for k in chosen]).mean().backward()
            parts = iter(noise(f"bif:0:{chain}", t, start.detach()).split([p.numel() for p in own]))
            monkeypatch.setattr(torch, "normal", lambda size, parts=parts, **_: next(parts).view(size))
            sampler.step()
            monkeypatch.undo()
            if t >= BURN and (t + 1 - BURN) % THIN == 0:
                with torch.no_grad():
                    of_rows = [float(plain_losses(model, ids).sum()) for ids in rows]
                    seen.append([*of_rows, float(np.mean([float(plain_losses(model, ids).sum()) for ids in target]))])
        found.append(np.array(seen).T)
    return np.array(found)


def test_chains_and_covariances_equal_ours(peer: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    covariance = pytest.importorskip("devinterp.slt.covariance")
    draws = their_draws(peer, home, monkeypatch)
    table, n = ours(home), draws.shape[1] - 1
    by_chain = []
    for chain, of in enumerate(draws):
        rows, phi = torch.from_numpy(of[:n])[None], torch.from_numpy(of[n:])[None]
        by_chain.append(NBETA * covariance.batch_cov(rows, phi)[0, 0, :n, n].numpy())
        assert relative_error(column(table, f"score_utility_{chain}"), by_chain[-1]) < 1e-8
        correlation = covariance.batch_corrcoef(rows, phi)[0, 0, :n, n].numpy()
        alone = ours(home, "--set", "bif.norm=correlation")
        assert relative_error(column(alone, f"score_utility_{chain}"), correlation) < 1e-8
    assert relative_error(column(table), np.mean(by_chain, axis=0)) < 1e-8
    together = draws.transpose(1, 0, 2).reshape(n + 1, -1)  # theirs of stacked chains has what lies between these too
    stacked = torch.from_numpy(together)
    theirs = NBETA * covariance.batch_cov(stacked[None, :n], stacked[None, n:])[0, 0, :n, n].numpy()
    assert relative_error(column(table), theirs) > 0.01
