"""Language models: losses of next tokens, engines against the loop, filling, byte pairs, scores, what is refused.

python -m pytest tests/model/test_language.py
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from influence_cli.curvature.curvature import Curvature
from influence_cli.data.manifest import read_manifest
from influence_cli.engines.engine import Engine
from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.point import Point
from influence_cli.maths.hashed_draws import keyed_uniform
from influence_cli.model import next_token
from influence_cli.model.build import load_model
from influence_cli.model.byte_pairs import BytePairs, are_merges, learn
from influence_cli.model.checkpoints import find_model
from influence_cli.model.dropout import Dropout
from influence_cli.model.losses import loss_of
from influence_cli.model.named_tensors import NamedTensors
from influence_cli.model.next_token import by_token
from influence_cli.model.spec import ModelSpec
from tests.cases import call_cli, write
from tests.languages import (
    direction,
    encoded,
    floats,
    gpt,
    gradient,
    plain_logits,
    plain_losses,
    texts,
    token_rows,
    trained,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    trained(write(texts(), folder / "texts.parquet"), folder / "RUN")
    return folder


@pytest.fixture(params=[next_token.VALUES, 40 * 7], ids=["one block", "blocks of 7 tokens"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_token, "VALUES", request.param)


# -- losses and derivatives --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("blocks")
def test_a_row_s_output_is_the_sum_of_its_tokens_losses_and_their_number() -> None:
    model, x = gpt().double(), token_rows()
    with torch.no_grad():
        z = model(x.tensors)
        with by_token(model):
            each = model(x.tensors)
    assert each.shape == (12, 14)
    for row in range(12):
        ids = x.tensors["input_ids"][row][x.tensors["attention_mask"][row] > 0]
        expected = plain_losses(model, ids).detach()
        torch.testing.assert_close(each[row, 1 : len(ids)], expected, rtol=1e-12, atol=1e-12)
        assert each[row, 0] == 0
        assert not each[row, len(ids) :].any()
        torch.testing.assert_close(z[row], torch.stack([expected.sum(), torch.tensor(len(ids) - 1.0).double()]))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-10), ("fp32", 1e-5)])
def test_every_engine_equals_the_loop(precision: str, bound: float) -> None:
    point = Point(gpt(), "all", None, precision, CPU)
    u, x = direction(point.selected), token_rows()
    for name in ("forward", "layerwise", "double-reverse"):
        engine = Engine(point, name)
        _, (t,) = engine.outputs(x, [u])
        assert engine.checked is not None
        assert engine.checked.rows == 12
        assert engine.checked.loop < bound
        assert engine.checked.halved < bound
        assert engine.checked.coverage in (None, 1.0)
        assert point.fallback is None
        expected = _dots(point, x, u)
        assert float((t[:, 0] - expected).abs().max()) < bound * float(expected.abs().max())
        assert not t[:, 1].any()


def _dots(point: Point, x: NamedTensors, u: dict[str, torch.Tensor]) -> torch.Tensor:
    """<grad l_i, u> [n] of the losses that are written out, row by row."""
    model = point.model
    along = torch.cat([u[n].flatten() for n, _ in model.named_parameters()])
    found = []
    for ids, mask in zip(x.tensors["input_ids"], x.tensors["attention_mask"], strict=True):
        found.append(gradient(model, plain_losses(model, ids[mask > 0]).sum()) @ along)
    return torch.stack(found).detach()


@pytest.mark.usefixtures("blocks")
def test_tangents_by_token_sum_to_those_of_the_row() -> None:
    for precision, bound in (("fp64", 1e-12), ("fp32", 1e-6)):
        point = Point(gpt(), "all", None, precision, CPU)
        u, x = direction(point.selected), token_rows()
        _, (t,) = point.outputs(x, [u])
        with by_token(point.model):
            _, (each,) = point.outputs(x, [u])
        assert each.shape == (12, 14)
        off = (each.double().sum(1) - t[:, 0].double()).abs() / each.double().abs().sum(1)
        assert float(off.max()) < bound


@pytest.mark.usefixtures("blocks")
def test_layers_give_the_norms_sums_and_gradients_of_rows_whose_embedding_is_the_output_layer_too() -> None:
    point = Point(gpt(), "all", None, "fp64", CPU)
    x = token_rows()
    layers = Layers(point, x)
    _, found = layers.of_rows(x, lambda z: torch.tensor([[1.0, 0.0]]).to(z).expand(z.shape))
    model = point.model
    own = torch.stack([
        gradient(model, plain_losses(model, ids[mask > 0]).sum())
        for ids, mask in zip(x.tensors["input_ids"], x.tensors["attention_mask"], strict=True)
    ])  # fmt: skip
    norms = torch.stack([block.squared_norms() for block in found]).sum(0)
    torch.testing.assert_close(norms, own.square().sum(1).detach(), rtol=1e-10, atol=1e-10)
    c = torch.arange(12.0).double()
    sums = {n: g for block in found for n, g in block.weighted_sum(c).items()}
    flat = torch.cat([sums[n].flatten() for n, _ in model.named_parameters()])
    torch.testing.assert_close(flat, (c @ own).detach(), rtol=1e-10, atol=1e-10)
    assert layers.coverage.share == 1.0


def test_layers_of_a_dropped_out_member_use_its_own_output_layer() -> None:
    point = Point(gpt(), "all", Dropout(0, 0, 0.3, True, "all", "all"), "fp64", CPU)
    u, x = direction(point.selected), token_rows()
    _, (expected,) = point.outputs(x, [u])
    _, (t,) = Engine(point, "layerwise").outputs(x, [u])
    torch.testing.assert_close(t, expected, rtol=1e-10, atol=1e-10)


def test_a_row_has_one_score_alone_among_longer_rows_and_filled_up_further() -> None:
    point = Point(gpt(), "all", None, "fp64", CPU)
    u, x = direction(point.selected), token_rows(32)
    z, (t,) = point.outputs(x, [u])
    for row in (0, 5, 31):
        length = int(x.tensors["attention_mask"][row].sum())
        alone = NamedTensors({name: value[row : row + 1, :length] for name, value in x.tensors.items()})
        z1, (t1,) = point.outputs(alone, [u])
        torch.testing.assert_close(z1[0], z[row], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(t1[0], t[row], rtol=1e-10, atol=1e-10)


def test_logits_are_held_for_a_block_of_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = next_token.logits_of

    def noted(*args: torch.Tensor) -> torch.Tensor:
        made = own(*args)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(next_token, "logits_of", noted)
    monkeypatch.setattr(next_token, "VALUES", 40 * 5)
    model, x = gpt(), token_rows()
    model(x.tensors)[:, 0].sum().backward()
    tokens = 12 * 13
    assert max(sizes) == 40 * 5
    assert sum(sizes) == 2 * 40 * tokens  # once forward, once backward


def test_what_a_backward_pass_keeps_does_not_grow_with_the_vocabulary() -> None:
    kept: list[int] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.numel())
        return t

    x = token_rows()
    sizes: list[int] = []
    for vocabulary in (40, 4000):
        model = gpt(vocabulary)
        table = model.tokens.weight.numel()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(x.tensors)[:, 0].sum()
        sizes.append(sum(size for size in kept if size != table))
    assert sizes[0] == sizes[1]


# -- the tokenizer -----------------------------------------------------------------------------------------------------


def test_byte_pairs_lose_nothing_and_merge_the_commonest_pair_first() -> None:
    some = ["low lower lowest", "newer wider", " new  low\n\nlow", "naïve — 雨 \t end "]
    merges = learn(some, 300)
    pairs = BytePairs(merges)
    assert [pairs.decode(pairs.encode(text)) for text in [*some, "", "unseen Ω", "a\x00b"]] == [
        *some, "", "unseen Ω", "a\x00b",
    ]  # fmt: skip
    assert {pairs.pieces[257 + k] for k in range(3)} <= {b"lo", b"low", b"ow", b" l", b" lo", b" low", b"we", b"er"}
    assert learn(list(reversed(some)), 300) == merges
    assert learn(["ab"], 300) == ()
    assert are_merges([list(pair) for pair in merges])
    assert not are_merges([[257, 1]])
    assert not are_merges([[1, 2, 3]])


def test_byte_pairs_are_those_of_counting_again_after_every_merge() -> None:
    rows = texts(40).column("text").to_pylist()
    words: dict[str, int] = {}
    for text in rows:
        for k, word in enumerate(text.split(" ")):
            key = word if k == 0 else f" {word}"
            words[key] = words.get(key, 0) + 1
    split = {word: [b + 1 for b in word.encode()] for word in words}
    expected: list[tuple[int, int]] = []
    while len(expected) < 40:
        counts: dict[tuple[int, int], int] = {}
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                counts[pair] = counts.get(pair, 0) + words[word]
        best = max(counts, key=lambda pair: (counts[pair], pair))
        expected.append(best)
        for parts in split.values():
            k = 0
            while k + 1 < len(parts):
                if (parts[k], parts[k + 1]) == best:
                    parts[k : k + 2] = [256 + len(expected)]
                k += 1
    assert list(learn(rows, 257 + 40)) == expected


# -- training and scoring ----------------------------------------------------------------------------------------------


def test_training_learns_and_its_folder_says_all_that_scoring_needs(place: Path, tmp_path: Path) -> None:
    _, carried = find_model(str(place / "RUN"))
    assert carried is not None
    spec = ModelSpec.from_dict(carried)
    assert (spec.name, spec.num_classes, spec.loss) == ("gpt:2x32", 1, "next-token")
    assert ModelSpec.from_dict(spec.as_dict()) == spec
    ran = call_cli(
        "retrain", place / "texts.parquet", "--model", "gpt:1x16", "--epochs", 30, "--lr", 0.02, "-o", "R", cwd=tmp_path
    )
    assert ran.code == 0, ran.err
    assert "test loss per token" in ran.err
    assert "perplexity" in ran.err
    first = json.loads((tmp_path / "R" / "metrics.json").read_text())["arms"]["all rows"]["seeds"]["0"]
    assert first["train_token_loss"] < 4.5 < np.log(310)  # of a uniform guess
    assert first["perplexity"] == pytest.approx(np.exp(first["token_loss"]))


def test_scores_equal_the_loop_by_every_method_that_works(place: Path, tmp_path: Path) -> None:
    words = ["score", "texts.parquet", "--checkpoint", "RUN", "--precision", "fp64", "--store", tmp_path / "st"]
    wanted = [m for name in ("ip", "self-tracin", "loss") for m in ("--method", name)]
    ran = call_cli(*words, *wanted, "-o", tmp_path / "s.parquet", cwd=place)
    assert ran.code == 0, ran.err
    table = pq.read_table(tmp_path / "s.parquet")
    checkpoint, carried = find_model(str(place / "RUN"))
    assert carried is not None
    spec = ModelSpec.from_dict(carried)
    model = load_model(spec, checkpoint, torch.float64)
    rows = pq.read_table(place / "texts.parquet").to_pylist()
    own = {split: [r["text"] for r in rows if r["split"] == split] for split in ("train", "val")}
    losses = {split: [plain_losses(model, ids).sum() for ids in encoded(spec, some)] for split, some in own.items()}
    q = sum(gradient(model, loss) for loss in losses["val"]) / len(losses["val"])
    gradients = torch.stack([gradient(model, loss) for loss in losses["train"]])
    order = [f"r{k}" for k in range(len(own["train"]))]
    assert table.column("id").to_pylist() == order
    for name, expected in (
        ("score_ip_utility", gradients @ q),
        ("score_self-tracin", -gradients.square().sum(1)),
        ("score_loss", -torch.stack(losses["train"])),
    ):
        np.testing.assert_allclose(floats(table, name), expected.detach().numpy(), rtol=1e-9)


def test_a_second_run_reads_the_store_and_runs_nothing(place: Path, tmp_path: Path) -> None:
    words = ["score", "--method", "ip", place / "texts.parquet", "--checkpoint", place / "RUN", "--store", "st", "-o"]
    assert call_cli(*words, "a.parquet", cwd=tmp_path).code == 0
    import influence_cli.model.build as build

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "load_model", None)
        ran = call_cli(*words, "b.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    a, b = (pq.read_table(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert a.column("score").to_pylist() == b.column("score").to_pylist()


# -- rows without labels -----------------------------------------------------------------------------------------------


def test_texts_that_are_too_long_are_refused_or_cut_where_that_was_asked_for(place: Path, tmp_path: Path) -> None:
    long = pa.table({"id": ["x"], "text": ["the old cat " * 60], "split": ["val"]})
    write(long, tmp_path / "long.parquet")
    words = [
        "score",
        "--method",
        "ip",
        place / "texts.parquet",
        "--checkpoint",
        place / "RUN",
        "--target",
        "long.parquet",
        "-o",
        "s.parquet",
    ]
    ran = call_cli(*words, cwd=tmp_path)
    assert ran.code == 2
    assert "row id=x, column text" in ran.err
    assert "--max-length" in ran.err
    limit = ModelSpec.from_dict(find_model(str(place / "RUN"))[1] or {}).shape[0]
    assert call_cli(*words, "--max-length", limit, cwd=tmp_path).code == 0


def test_models_that_need_labels_refuse_rows_without_and_language_models_rows_with(place: Path, tmp_path: Path) -> None:
    ran = call_cli("retrain", place / "texts.parquet", "--model", "linear", "-o", "R", cwd=tmp_path)
    assert ran.code == 2
    labelled = pq.read_table(place / "texts.parquet").append_column("label", pa.array([k % 2 for k in range(36)]))
    write(labelled, tmp_path / "labelled.parquet")
    for words in (
        ("retrain", "labelled.parquet", "--model", "gpt:1x16", "-o", "R"),
        ("score", "--method", "ip", "labelled.parquet", "--checkpoint", place / "RUN", "-o", "s.parquet"),
    ):
        ran = call_cli(*words, cwd=tmp_path)
        assert ran.code == 2
        assert "predicts the texts themselves, and the rows have labels" in ran.err
    bare = pa.table({"id": ["a", "b"], "features": [[1.0], [2.0]]})
    write(bare, tmp_path / "bare.parquet")
    ran = call_cli("retrain", "bare.parquet", "--model", "linear", "-o", "R", cwd=tmp_path)
    assert ran.code == 2
    assert "no column 'label'" in ran.err


# -- curvature ---------------------------------------------------------------------------------------------------------


def _curvature(place: Path, batch_size: int) -> tuple[Curvature, torch.nn.Module, ModelSpec]:
    checkpoint, carried = find_model(str(place / "RUN"))
    assert carried is not None
    spec = ModelSpec.from_dict(carried)
    model = load_model(spec, checkpoint, torch.float64)
    manifest = read_manifest("texts", [place / "texts.parquet"])
    curvature = Curvature(model, spec, manifest.rows("train"), batch_size=batch_size, loss=loss_of(spec))
    return curvature, model, spec


def _drawn(model: torch.nn.Module, ids: torch.Tensor, key: np.ndarray, seed: int, stream: int) -> torch.Tensor:
    """Tokens that the model gives after each of a row's own, by the row's draws; no block, no batch."""
    p = plain_logits(model, ids[:-1]).softmax(1).detach().numpy()
    u = [float(keyed_uniform(key[None], seed, stream + 2 * t)[0]) for t in range(len(p))]
    found = [int(np.searchsorted(np.cumsum(row), at, side="right")) for row, at in zip(p, u, strict=True)]
    return torch.tensor(found)


def test_kronecker_factors_are_of_tokens_drawn_from_the_model_and_of_no_filling(place: Path) -> None:
    from influence_cli.methods.ekfac import EKFAC

    found = []
    for batch_size in (1, 8):
        curvature, model, spec = _curvature(place, batch_size)
        found.append(EKFAC(precision="fp64", seed=3).fit(curvature))
    one, eight = (f.arrays for f in found)
    names = list(curvature.layout)
    texts_of = [r["text"] for r in pq.read_table(place / "texts.parquet").to_pylist() if r["split"] == "train"]
    rows, keys = encoded(spec, texts_of), curvature.rows.row_keys
    parameters = dict(model.named_parameters())
    layers = sorted({key.partition(".")[0] for key in one if key.endswith(".lam")}, key=int)
    assert len(layers) == 8  # four in each of two blocks
    for k in layers:
        q_a, q_s, lam = (one[f"{k}.{name}"] for name in ("q_a", "q_s", "lam"))
        weight, bias = (names[int(place)] for place in one[f"{k}.place"])
        expected, moment = np.zeros_like(lam), np.zeros((len(q_a), len(q_a)))
        for ids, key in zip(rows, keys, strict=True):
            targets = _drawn(model, ids, key, 3, 1)
            loss = torch.nn.functional.cross_entropy(plain_logits(model, ids[:-1]), targets, reduction="sum")
            g = torch.autograd.grad(loss, [parameters[weight], parameters[bias]])
            whole = torch.cat([g[0], g[1][:, None]], 1).numpy()
            expected += (q_s.T @ whole @ q_a) ** 2
            inputs = _inputs_of(model, weight.removesuffix(".weight"), ids[:-1])
            moment += inputs.T @ inputs
        np.testing.assert_allclose(lam, expected / len(rows), rtol=1e-9, atol=1e-12 * expected.max())
        np.testing.assert_allclose(q_a @ np.diag(one[f"{k}.e_a"]) @ q_a.T, moment / len(rows), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(one[f"{k}.e_a"], eight[f"{k}.e_a"], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(one[f"{k}.e_s"], eight[f"{k}.e_s"], rtol=1e-8, atol=1e-12)


def _inputs_of(model: torch.nn.Module, layer: str, ids: torch.Tensor) -> np.ndarray:
    """What a layer is given at each of a row's tokens, and 1."""
    given: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: given.append(args[0].detach()))
    x = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    with torch.no_grad():
        model(x)
    hook.remove()
    a = given[0][0]
    return torch.cat([a, torch.ones(len(a), 1).to(a)], 1).numpy()


def test_datainf_is_its_closed_form_over_rows_gradients(place: Path) -> None:
    from influence_cli.methods.datainf import DataInf

    curvature, model, spec = _curvature(place, 8)
    method = DataInf(precision="fp64")
    curvature.factor = method.fit(curvature).arrays
    q = np.random.default_rng(0).normal(size=(curvature.size, 1))
    u, facts = method.precondition(q, curvature)
    texts_of = [r["text"] for r in pq.read_table(place / "texts.parquet").to_pylist() if r["split"] == "train"]
    rows = torch.stack([gradient(model, plain_losses(model, ids).sum()) for ids in encoded(spec, texts_of)]).numpy()
    assert facts["others"] == []
    ends = np.cumsum([0, *curvature.sizes])
    squares = [np.mean((rows[:, a:b] ** 2).sum(1)) / (b - a) for a, b in itertools.pairwise(ends)]
    for k, (a, b) in enumerate(itertools.pairwise(ends)):
        g, delta = rows[:, a:b], max(0.1 * squares[k], 1e-8 * 0.1 * max(squares))
        c = (g @ q[a:b, 0]) / (delta + (g**2).sum(1))
        np.testing.assert_allclose(u[a:b, 0], (q[a:b, 0] - (c @ g) / len(g)) / delta, rtol=1e-8, atol=1e-8)


def test_methods_that_need_the_curvature_of_outputs_are_refused_in_a_sentence(place: Path, tmp_path: Path) -> None:
    words = ["score", place / "texts.parquet", "--checkpoint", place / "RUN", "-o", tmp_path / "s.parquet"]
    for name in ("exact", "cg", "lissa", "arnoldi"):
        ran = call_cli(*words, "--method", name, cwd=tmp_path)
        assert ran.code == 2
        assert "language model's are the losses themselves" in ran.err
    ran = call_cli(*words, "--method", "ekfac", "--set", "ekfac.labels=exact", cwd=tmp_path)
    assert ran.code == 2
    assert "for every token of the vocabulary" in ran.err
    ran = call_cli(*words, "--method", "ekfac", "--method", "datainf", "--method", "ip-ensemble", cwd=tmp_path)
    assert ran.code == 0, ran.err


# -- a table of texts --------------------------------------------------------------------------------------------------


def test_a_table_of_texts_becomes_a_manifest_without_labels_of_task_language(tmp_path: Path) -> None:
    rows = texts(20, 4, 4).to_pylist()
    lines = ["name,body,mood", *(f"{r['id']},{r['text']},{k % 2}" for k, r in enumerate(rows))]
    (tmp_path / "notes.csv").write_text("\n".join(lines) + "\n")
    words = ["manifest", "notes.csv", "--task", "language", "--text", "body", "--id", "name"]
    ran = call_cli(*words, "--split", "60/20/20", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "label: none (task language)" in ran.err
    assert "column mood" in ran.err  # it is left out, and said so
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.column_names == ["id", "text", "split"]
    assert dict(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True)) == {
        r["id"]: r["text"] for r in rows
    }
    ran = call_cli("retrain", "m.parquet", "--model", "gpt:1x16", "--epochs", 1, "-o", "RUN", cwd=tmp_path)
    assert ran.code == 0, ran.err
    ran = call_cli(*words, "--label", "mood", "-o", "n.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "have none" in ran.err
