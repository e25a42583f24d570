"""Attacked texts: every token's embedding plus a constant change.

Reference: FGSM and PGD written out on single rows with the classifiers of transformers as they come, their embedding's
output changed by a hook; q against central differences of Phi(theta), whose embeddings are those of theta.
Properties: the change is in the ball, none where a batch is filled up, and none of it depends on the batch.

    python -m pytest tests/engines/test_attacked_texts.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from influence_cli.data.kinds.text import CHANGE, MASK, TOKENS
from influence_cli.engines.attacked import attack, attacked_input
from influence_cli.engines.attacks import Attack
from influence_cli.errors import ModelError, UsageError
from influence_cli.model.hf_folder import spec_values
from influence_cli.model.named_tensors import NamedTensors
from influence_cli.model.spec import ModelSpec
from influence_cli.model.transformers_model import with_plain_call
from influence_cli.settings import GradSpec, Inputs, Runtime
from tests.cases import call_cli, write
from tests.opened import opened, score
from tests.texts import classifier, saved, sentences, tokenizer

KINDS = ["bert", "distilbert", "roberta", "gpt2", "albert", "deberta-v2"]
SEED = 3


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """The specs of small classifiers of several architectures."""
    found = {}
    for kind in [*KINDS, "bart"]:
        folder = tmp_path_factory.mktemp(kind)
        tokenizer().save_pretrained(folder)
        small = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "eos_token_id": 3, "is_encoder_decoder": True}
        config = small if kind == "bart" else classifier(kind).config.to_dict()
        (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "vocab_size": 43}))
        values = spec_values(folder, num_classes=2, images=False)
        assert values is not None
        found[kind] = ModelSpec.from_dict(values)
    return found


def _rows(rows: int = 7) -> tuple[NamedTensors, torch.Tensor, Any]:
    """Decoded rows of 3 to 13 tokens, filled up, with labels and keys."""
    generator = torch.Generator().manual_seed(1)
    lengths = 3 + torch.arange(rows) * 5 % 12
    mask = (torch.arange(16)[None] < lengths[:, None]).int()
    ids = torch.randint(4, 20, mask.shape, generator=generator, dtype=torch.int32) * mask
    labels = torch.randint(0, 2, (rows,), generator=generator)
    keys = np.random.default_rng(rows).integers(0, 256, (rows, 16), dtype=np.uint8)
    return NamedTensors({TOKENS: ids, MASK: mask}), labels, keys


def _logits(model: Any, ids: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Logits [1, C] of transformers' own call on one row, whose embeddings are moved by ``change`` [T, d]."""
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out + change)
    try:
        return model(input_ids=ids[None].long(), attention_mask=torch.ones(1, len(ids))).logits
    finally:
        hook.remove()


def _by_hand(model: Any, ids: torch.Tensor, label: torch.Tensor, steps: int, eps: float = 0.1) -> torch.Tensor:
    """PGD without a random start on one row, FGSM with one step of eps: the change [T, d]."""
    lengths = model.get_input_embeddings().weight.detach()[ids.long()].norm(dim=1).mean()
    change = torch.zeros(len(ids), model.get_input_embeddings().weight.shape[1], dtype=torch.float64)
    step = eps if steps == 1 else 2.5 * eps / steps
    for _ in range(steps):
        at = change.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(_logits(model, ids, at), label[None]), at)
        change = change + step * lengths * slope / slope.norm(dim=1, keepdim=True)
        change = change * (eps * lengths / change.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return change.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_by_hand_and_filling_up_is_never_changed(kind: str, specs: dict[str, ModelSpec]) -> None:
    x, y, keys = _rows()
    plain, model = classifier(kind).double(), with_plain_call(classifier(kind)).double()
    for how, steps in ((Attack("fgsm"), 1), (Attack("pgd", steps=4, random_start=False), 4)):
        moved = attack(model, specs[kind], how, x, y, keys).tensors[CHANGE]
        assert moved.shape[:2] == (7, 13)  # as long as the longest row
        for k, (ids, mask) in enumerate(zip(x.tensors[TOKENS], x.tensors[MASK], strict=True)):
            own = int(mask.sum())
            expected = _by_hand(plain, ids[:own], y[k], steps)
            assert (moved[k, :own] - expected).abs().max() < 1e-9 * expected.abs().max(), (kind, k)
            assert not moved[k, own:].any()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_changes_stay_in_the_ball_raise_the_loss_and_are_of_the_row_alone(
    kind: str, specs: dict[str, ModelSpec]
) -> None:
    x, y, keys = _rows()
    model: Any = with_plain_call(classifier(kind)).double()
    spec = specs[kind]
    moved = attack(model, spec, Attack(), x, y, keys, seed=SEED)
    model.requires_grad_(False)
    own = model.get_input_embeddings()(x.tensors[TOKENS].long()).norm(dim=2)
    mean = (own * x.tensors[MASK]).sum(1) / x.tensors[MASK].sum(1)
    over = moved.tensors[CHANGE].norm(dim=2) / (0.1 * mean[:, None])
    assert 0.9 < float(over.max()) <= 1 + 1e-12
    attacked = model(attacked_input(moved, spec).tensors)
    assert F.cross_entropy(attacked, y) > F.cross_entropy(model(attacked_input(_without(moved), spec).tensors), y)
    for k in range(3):
        alone = attack(model, spec, Attack(), x[k : k + 1], y[k : k + 1], keys[k : k + 1], seed=SEED).tensors[CHANGE]
        torch.testing.assert_close(alone[0], moved.tensors[CHANGE][k, : alone.shape[1]], rtol=0, atol=1e-12)
    first, second = (
        attack(model, spec, Attack("pgd", steps=1, step=1e-9), x, y, keys, seed=s).tensors[CHANGE] for s in (3, 4)
    )
    assert (first - second).norm(dim=2).max() > 0.05 * mean.max()  # starts differ by seed


def _without(moved: NamedTensors) -> NamedTensors:
    return NamedTensors({**moved.tensors, CHANGE: torch.zeros_like(moved.tensors[CHANGE])})


def test_pgd_of_one_step_without_a_start_is_fgsm_bit_for_bit(specs: dict[str, ModelSpec]) -> None:
    x, y, keys = _rows()
    model = with_plain_call(classifier("roberta"))
    one = Attack("pgd", steps=1, step=0.1, random_start=False)
    found = [attack(model, specs["roberta"], how, x, y, keys).tensors[CHANGE] for how in (Attack("fgsm"), one)]
    assert torch.equal(*found)
    assert found[0].dtype == torch.float32


def test_what_cannot_be_attacked_is_refused(specs: dict[str, ModelSpec]) -> None:
    with pytest.raises(UsageError, match="the attack linear moves an input over a linear model's boundary"):
        Attack("linear").describe(specs["bert"], 0)
    with pytest.raises(UsageError, match="by an encoder and a decoder"):
        Attack().describe(specs["bart"], 0)
    x, y, keys = _rows()
    model: Any = with_plain_call(classifier("bert"))
    other = torch.nn.Embedding(43, 32)
    model.get_input_embeddings = lambda: other
    with pytest.raises(ModelError, match="its embedding is not called for the tokens of rows"):
        attack(model, specs["bert"], Attack("fgsm"), x, y, keys)
    twice = torch.nn.Embedding(43, 32)
    model.get_input_embeddings = lambda: twice
    forward = model.bert.forward
    model.bert.forward = lambda *a, **k: (twice(a[0]), twice(a[0]), forward(*a, **k))[-1]
    with pytest.raises(ModelError, match="called twice"):
        attack(model, specs["bert"], Attack("fgsm"), x, y, keys)
    del model.get_input_embeddings, model.bert.forward
    plain = {TOKENS: x.tensors[TOKENS].long(), MASK: x.tensors[MASK].long()}
    torch.testing.assert_close(model(plain), with_plain_call(classifier("bert"))(plain))  # nothing of them is left


# -- the direction ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("film")
    write(sentences(20, 16, 24), folder / "m.parquet")
    for kind in ("bert", "gpt2", "distilbert"):
        saved(folder / kind, kind)
    return folder


def _texts(folder: Path, split: str) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    tokens = tokenizer()
    rows = [r for r in pq.read_table(folder / "m.parquet").to_pylist() if r["split"] == split]
    return [(r["id"], torch.tensor(tokens(r["text"])["input_ids"]), torch.tensor(r["label"])) for r in rows]


@pytest.mark.parametrize(("kind", "engine"), [("bert", "forward"), ("gpt2", "layerwise"), ("distilbert", "forward")])
def test_q_is_the_slope_of_phi_whose_embeddings_are_those_of_theta_and_the_change_a_constant(
    kind: str, engine: str, film: Path, tmp_path: Path
) -> None:
    how = {"robustness": {"random_start": False, "steps": 3}}
    spec = GradSpec(("ip",), objectives=("robustness",), options=how, precision="fp64")
    inputs = Inputs(str(film / "m.parquet"), checkpoint=str(film / kind))
    case = opened(inputs, spec, Runtime(store=str(tmp_path / "store"), engine=engine, device="cpu"))
    table = score(case)
    model = classifier(kind).double()
    target = _texts(film, "val")
    changes = [_by_hand(model, ids, label, 3) for _, ids, label in target]  # once, at theta_hat

    def phi() -> torch.Tensor:
        losses = [F.cross_entropy(_logits(model, i, c), y[None]) for (_, i, y), c in zip(target, changes, strict=True)]
        return torch.stack(losses).mean()

    reached = torch.autograd.grad(phi(), list(model.parameters()), allow_unused=True)
    parameters = {n: p for (n, p), g in zip(model.named_parameters(), reached, strict=True) if g is not None}
    name = case.direction(case.members[0], "robustness")
    stored, about = case.store.directions.read(name), case.store.directions.meta(name)
    assert stored is not None
    assert about is not None
    q = {n: torch.from_numpy(values.copy()) for n, values in stored.items()}
    generator = torch.Generator().manual_seed(0)
    for only in (list(parameters), [n for n in parameters if parameters[n] is model.get_input_embeddings().weight]):
        v = {n: torch.randn(parameters[n].shape, generator=generator, dtype=torch.float64) for n in only}
        values = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                for n in only:
                    parameters[n] += sign * 1e-6 * v[n]
                values.append(float(phi()))
                for n in only:
                    parameters[n] -= sign * 1e-6 * v[n]
        slope, found = (values[0] - values[1]) / 2e-6, sum(float((q[n] * v[n]).sum()) for n in only)
        assert found == pytest.approx(slope, rel=1e-5), only
    with torch.no_grad():
        accuracy = np.mean([int(_logits(model, i, c).argmax()) == int(y) for (_, i, y), c in
                            zip(target, changes, strict=True)])  # fmt: skip
    assert about["parts"]["attacked_accuracy"] == accuracy
    assert about["phi"] == pytest.approx(float(phi().detach()), rel=1e-10)
    wanted = {}
    for name, ids, label in _texts(film, "train"):
        loss = F.cross_entropy(_logits(model, ids, torch.zeros(1, dtype=torch.float64)), label[None])
        g = torch.autograd.grad(loss, list(parameters.values()))
        wanted[name] = sum(float((q[n] * part).sum()) for n, part in zip(parameters, g, strict=True))
    expected = np.array([wanted[i] for i in table.column("id").to_pylist()])
    np.testing.assert_allclose(table.column("score").to_numpy(), expected, rtol=0, atol=1e-9 * abs(expected).max())


def test_attacks_are_made_once_and_stay_whatever_the_batch_and_the_target(film: Path, tmp_path: Path) -> None:
    asked = ["--checkpoint", "bert", "--objective", "robustness", "--precision", "fp64", "--store", tmp_path / "store"]
    found = []
    for batch in (12, 5):
        more = ["--batch-size", batch, "-o", tmp_path / "s.parquet"]
        ran = call_cli("score", "m.parquet", *asked, *more, cwd=film)
        assert ran.code == 0, ran.err
        found.append(pq.read_table(tmp_path / "s.parquet").column("score").to_numpy())
    np.testing.assert_array_equal(*found)  # the second from the store
    files = list((tmp_path / "store").glob("attacks/*/*.safetensors"))
    tokens = sum(len(load_file(f)["input"]) for f in files)
    assert tokens == sum(len(ids) for _, ids, _ in _texts(film, "val"))
    digest = _attack_of(tmp_path / "s.parquet")
    more = ["--batch-size", "1", "--method", "ip-ensemble", "--set", "ip-ensemble.members=2"]
    ran = call_cli("score", "m.parquet", *asked[:-1], tmp_path / "other", *more, "-o", tmp_path / "s.parquet", cwd=film)
    assert ran.code == 0, ran.err
    alone = pq.read_table(tmp_path / "s.parquet")
    assert len(alone) == 20
    assert _attack_of(tmp_path / "s.parquet")["name"] == digest["name"]
    assert call_cli("cache", "verify", "--store", tmp_path / "store", cwd=film).code == 0
    assert "bert, pgd eps 0.1" in call_cli("cache", "ls", "--store", tmp_path / "store", cwd=film).out.decode()


def _attack_of(path: Path) -> dict[str, Any]:
    origin = json.loads((pq.read_schema(path).metadata or {})[b"influence"])
    return next(v["parts"]["attack"] for v in _entries(origin) if "parts" in v and "attack" in v["parts"])


def _entries(value: Any) -> Any:
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _entries(part)
    elif isinstance(value, list):
        for part in value:
            yield from _entries(part)


def test_retrain_and_evaluate_attack_test_texts_alike(film: Path) -> None:
    flags = ["--model", "hf:bert", "--epochs", "1", "--attack", "pgd", "--json", "-o", "RUN"]
    ran = call_cli("retrain", "m.parquet", *flags, cwd=film)
    assert ran.code == 0, ran.err
    first = next(iter(ran.json["arms"].values()))["seeds"]["0"]
    assert first["attacked_static"] == first["attacked_adaptive"]
    assert 0 <= first["attacked_static"] <= first["accuracy"]
    assert ran.json["attack"]["settings"]["changes"] == "embeddings"
    ran = call_cli(
        "score",
        "--method",
        "ip",
        "m.parquet",
        "--checkpoint",
        "RUN",
        "--objective",
        "robustness",
        "-o",
        "r.parquet",
        cwd=film,
    )
    assert ran.code == 0, ran.err
    ran = call_cli("evaluate", "r.parquet", "--json", cwd=film)
    assert ran.code == 0, ran.err
    (entry,) = ran.json["at_checkpoint"]
    assert entry["rows"]["test"]["attacked_static"] == pytest.approx(first["attacked_static"])


def test_refusals_come_before_any_work(film: Path, tmp_path: Path) -> None:
    asked = ["--objective", "robustness", "--set", "robustness.attack=linear", "-o", "x.parquet"]
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "bert", *asked, cwd=film)
    assert ran.code == 2
    assert "robustness.attack=pgd" in ran.err
    flags = ["--model", "hf:bert", "--attack", "linear", "-o", tmp_path / "RUN"]
    ran = call_cli("retrain", "m.parquet", *flags, cwd=film)
    assert ran.code == 2
    assert "which change embeddings" in ran.err
    assert not (tmp_path / "RUN" / "arms").exists()
