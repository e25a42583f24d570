"""Models of texts: engines against the loop, padding that changes nothing, tokenizers, lengths, folders, errors.

python -m pytest tests/model/test_texts.py
"""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from influence_cli.data.open import open_manifest
from influence_cli.engines.engine import Engine
from influence_cli.engines.layerwise.layers import Layers
from influence_cli.engines.point import Point
from influence_cli.errors import ModelError
from influence_cli.model.build import load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.examples import Examples, to_input
from influence_cli.model.hf_folder import spec_values
from influence_cli.model.named_tensors import NamedTensors
from influence_cli.model.spec import ModelSpec
from influence_cli.model.train.sgd import predict
from influence_cli.model.transformers_model import with_plain_call
from tests.cases import Heard, call_cli, run_python, write
from tests.texts import classifier, saved, sentences, tokenizer, tokenizers, transformers


def _rows(rows: int = 12) -> tuple[Any, Any]:
    """Token numbers and a mask of rows with 3 to 14 tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = 3 + torch.arange(rows) * 5 % 12
    ids = torch.randint(4, 20, (rows, int(lengths.max())), generator=generator)
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    return ids * mask, mask


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "albert", "deberta-v2", "gpt2"])
@pytest.mark.parametrize(("precision", "bound"), [("fp64", 1e-10), ("fp32", 1e-5)])
def test_every_engine_equals_the_loop(kind: str, precision: str, bound: float) -> None:
    point = Point(with_plain_call(classifier(kind, 3)), "all", None, precision, torch.device("cpu"))
    ids, mask = _rows()
    x = NamedTensors({"input_ids": ids, "attention_mask": mask})
    u = {
        n: torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))).to(p)
        for n, p in point.selected.items()
    }
    for name in ("forward", "layerwise", "double-reverse"):
        engine = Engine(point, name)
        engine.outputs(x, [u])
        assert engine.checked is not None
        assert engine.checked.rows == 12
        assert engine.checked.loop < bound
        assert engine.checked.halved < bound
        if name == "forward":
            assert point.fallback is None  # several directions share a pass
        if name == "layerwise":
            assert engine.checked.coverage == 1.0


def test_models_that_compute_in_float32_inside_are_refused_in_float64_with_what_to_ask_for() -> None:
    ids, mask = _rows(4)
    x = NamedTensors({"input_ids": ids, "attention_mask": mask})
    point = Point(with_plain_call(classifier("llama")), "all", None, "fp64", torch.device("cpu"))
    u = {n: torch.ones_like(p) for n, p in point.selected.items()}
    said = "(?s)computes in float32 inside.*leave out --precision fp64; .* --set METHOD.precision=fp32"
    with pytest.raises(ModelError, match=said):
        Engine(point, "forward").outputs(x, [u])
    with pytest.raises(ModelError, match=said):
        Layers(point, x)
    single = Point(with_plain_call(classifier("llama")), "all", None, "fp32", torch.device("cpu"))
    assert Layers(single, x).coverage.share == 1.0


def test_shared_embeddings_and_layers_are_one_parameter() -> None:
    model = classifier("albert")
    assert sum("attention" in name and "query.weight" in name for name, _ in model.named_parameters()) == 1
    point = Point(with_plain_call(model), "all", None, "fp64", torch.device("cpu"))
    ids, mask = _rows(4)
    u = {n: torch.ones_like(p) for n, p in point.selected.items()}
    for engine in ("forward", "layerwise"):
        _, (t,) = Engine(point, engine).outputs(NamedTensors({"input_ids": ids, "attention_mask": mask}), [u])
        step, values = 1e-6, []
        for sign in (1, -1):
            moved = {n: p + sign * step * u[n] for n, p in point.selected.items()}
            with torch.no_grad():
                values.append(point.logits(NamedTensors({"input_ids": ids, "attention_mask": mask}), moved))
        torch.testing.assert_close(t, (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_row_has_one_score_whatever_batch_it_is_in_and_on_whichever_side_the_tokenizer_fills(
    kind: str, tmp_path: Path
) -> None:
    write(sentences(20, 8, 4), tmp_path / "m.parquet")
    found = []
    for side in ("right", "left"):
        folder = saved(tmp_path / side, kind, side=side)
        for batch in (1, 32):
            flags = ["--precision", "fp64", "--batch-size", batch, "--no-store", "-o", "s.parquet", "-q"]
            ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", folder, *flags, cwd=tmp_path)
            assert ran.code == 0, ran.err
            found.append(score_of(tmp_path / "s.parquet"))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-10 * np.abs(found[0]).max())


def score_of(path: Path) -> Any:
    table = pq.read_table(path)
    return table.sort_by("id").column("score").to_numpy()


def test_scores_are_inner_products_of_gradients_with_transformers_own_inputs(tmp_path: Path) -> None:
    folder, table = saved(tmp_path / "hf"), sentences()
    write(table, tmp_path / "m.parquet")
    assert (
        call_cli(
            "score", "--method", "ip", "m.parquet", "--checkpoint", folder, "-o", "s.parquet", "-q", cwd=tmp_path
        ).code
        == 0
    )
    tokens, model = tokenizer(), classifier().double()

    def gradient(row: dict[str, Any]) -> Any:
        inputs = tokens(row["text"], return_tensors="pt")
        model.zero_grad()
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]])).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    rows = table.to_pylist()
    q = torch.stack([gradient(r) for r in rows if r["split"] == "val"]).mean(0)
    expected = {r["id"]: float(q @ gradient(r)) for r in rows if r["split"] == "train"}
    found = pq.read_table(tmp_path / "s.parquet").sort_by("id")
    wanted = np.array([expected[i] for i in found.column("id").to_pylist()])
    np.testing.assert_allclose(found.column("score").to_numpy(), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_pairs_of_texts_are_joined_by_the_tokenizer(tmp_path: Path) -> None:
    text = sentences().column("text").to_pylist()
    table = sentences().drop_columns("text")
    table = table.append_column("text_a", pa.array(text)).append_column("text_b", pa.array(text[::-1]))
    write(table, tmp_path / "m.parquet")
    folder = saved(tmp_path / "hf", types=True)
    ran = call_cli("score", "m.parquet", "--checkpoint", folder, "--method", "loss", "-o", "s.csv", "-q", cwd=tmp_path)
    assert ran.code == 0, ran.err
    rows = {r["id"]: r for r in table.to_pylist()}
    model, tokens = classifier(), tokenizer(types=True)
    with (tmp_path / "s.csv").open() as handle:
        table = list(csv.DictReader(handle))
    for found in table[:5]:
        row = rows[found["id"]]
        ids = tokens(row["text_a"], row["text_b"], return_tensors="pt")
        assert ids["token_type_ids"].any()
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(model(**ids).logits, torch.tensor([row["label"]]))
        assert -float(found["score"]) == pytest.approx(float(loss), rel=1e-5)


# ---- training, and folders ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder without a head, sentences as CSV, their manifest, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("film")
    classifier().base_model.save_pretrained(folder / "encoder")
    tokenizer().save_pretrained(folder / "encoder")
    rows = sentences(120, 40, 40).to_pylist()
    with (folder / "films.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["id", "stars", "review", "sentiment", "split"])
        writer.writerows(
            [r["id"], k % 5, r["text"], ("neg", "pos")[r["label"]], r["split"]] for k, r in enumerate(rows)
        )
    made = call_cli("manifest", "films.csv", "--label", "sentiment", "--text", "review", "-o", "m.parquet", cwd=folder)
    assert made.code == 0, made.err
    assert "text: column review" in made.err
    assert "left out: column stars: not needed beside the text" in made.err
    assert "then, with hf:FOLDER filled in: influence retrain m.parquet --model hf:FOLDER" in made.err
    both = ["--text", "review", "--drop-column", "review", "-o", "x.parquet"]
    refused = call_cli("manifest", "films.csv", "--label", "sentiment", *both, cwd=folder)
    assert refused.code == 2
    assert "column review is asked for, and is to be left out" in refused.err
    flags = ["--model", "hf:encoder", "--lr", "0.001", "--epochs", "8", "-o", "RUN"]
    ran = call_cli("retrain", "m.parquet", *flags, cwd=folder)
    assert ran.code == 0, ran.err
    assert "drawn anew, as encoder has none that fit: classifier.bias, classifier.weight" in ran.err
    return folder


def test_fine_tuning_takes_the_usual_recipe_where_none_is_asked_for(film: Path) -> None:
    record = json.loads((film / "RUN" / "run.json").read_text())
    assert record["recipe"] == {
        "epochs": 8, "lr": 0.001, "batch_size": 32, "optimizer": "adamw", "momentum": 0.9, "weight_decay": 0.01,
        "schedule": "linear", "warmup": 0.1, "augment": "none",
    }  # fmt: skip
    planned = call_cli("retrain", "m.parquet", "--model", "hf:encoder", "--optimizer", "sgd", "-o", "X", "-n", cwd=film)
    recipe = planned.json["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["lr"], recipe["schedule"]) == (3, 32, None, "cosine")


def test_transformers_loads_the_run_folder_and_gives_the_same_logits(film: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(film / "RUN").eval()
    assert model.config.id2label == {0: "neg", 1: "pos"}
    tokens = transformers.AutoTokenizer.from_pretrained(film / "RUN")
    ran = call_cli("score", "m.parquet", "--checkpoint", "RUN", "--method", "loss", "-o", "l.csv", cwd=film)
    assert ran.code == 0, ran.err
    assert "texts: 4 to 15 tokens" in ran.err
    assert "none above 32" in ran.err
    found = {r["id"]: -float(r["score"]) for r in csv.DictReader((film / "l.csv").read_text().splitlines())}
    for row in pq.read_table(film / "m.parquet").to_pylist()[:10]:
        with torch.no_grad():
            logits = model(**tokens(row["text"], return_tensors="pt")).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]]))
        assert found[row["id"]] == pytest.approx(float(loss), rel=1e-4, abs=1e-6)


def test_predictions_of_texts_are_in_order_and_fill_up_next_to_nothing(
    film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, carried = find_checkpoint(str(film / "RUN"))
    assert carried is not None
    spec, device = ModelSpec.from_dict(carried), torch.device("cpu")
    model = load_model(spec, checkpoint)
    data = Examples(open_manifest(str(film / "m.parquet"), "label").rows("train"), spec, Heard(), "rows")
    some = np.arange(40, 10, -1)
    alone = np.concatenate([predict(model, data.only(some[k : k + 1]), device) for k in range(len(some))])
    np.testing.assert_allclose(predict(model, data.only(some), device), alone, rtol=1e-4, atol=1e-6)
    masks: list[Any] = []

    def kept(values: Any, spec: Any, dtype: Any) -> Any:
        made = to_input(values, spec, dtype)
        masks.append(made.tensors["attention_mask"])
        return made

    monkeypatch.setattr("influence_cli.model.train.sgd.to_input", kept)
    monkeypatch.setattr("influence_cli.model.train.sgd.PREDICTED_ROWS", 7)
    np.testing.assert_allclose(predict(model, data, device)[some], alone, rtol=1e-4, atol=1e-6)
    assert max(map(len, masks)) == 7
    assert sum(mask.numel() for mask in masks) < 1.1 * sum(int(mask.sum()) for mask in masks)
    lengths = data.values["attention_mask"].sum(axis=1)
    parts = list(data.batches(512, 64))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(data)))
    assert all(len(part) == 1 or len(part) * lengths[part].max() <= 64 for part in parts)
    assert len(parts) < 1.2 * lengths.sum() / 64 + 2


def test_a_warm_run_imports_neither_torch_nor_transformers(film: Path) -> None:
    flags = ["score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "w.parquet"]
    assert call_cli(*flags, cwd=film).code == 0
    code = f"""
import sys
from influence_cli.cli.main import main
sys.argv = ["influence", *{flags!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    ran = run_python(code, cwd=film)
    assert ran.code == 0, ran.err


def test_the_same_training_twice_and_a_fold_of_the_folder_are_the_same(film: Path, tmp_path: Path) -> None:
    flags = ["--model", f"hf:{film / 'encoder'}", "--lr", "0.001", "--epochs", "8", "-o", "AGAIN", "-q"]
    assert call_cli("retrain", film / "m.parquet", *flags, cwd=tmp_path).code == 0
    first, again = (json.loads((f / "run.json").read_text()) for f in (film / "RUN", tmp_path / "AGAIN"))
    assert first["trained_on"] == again["trained_on"]
    assert first["weights"] == again["weights"]


def test_edits_go_back_into_the_csv_that_the_texts_came_from(film: Path) -> None:
    assert (
        call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "s.parquet", "-q", cwd=film).code
        == 0
    )
    ran = call_cli("curate", "s.parquet", "--action", "trim", "--budget", "5", "--export", "out.csv", "-o", "c.parquet",
                   cwd=film)  # fmt: skip
    assert ran.code == 0, ran.err
    before, after = ((film / name).read_text().splitlines() for name in ("films.csv", "out.csv"))
    assert len(after) == len(before) - 5
    assert set(after) < set(before)
    for form, name in (("jsonl", "out.jsonl"), ("label-studio", "tasks.json"), ("huggingface", "hf")):
        ran = call_cli("curate", "s.parquet", "--budget", "5", "--export", name, "--export-as", form, cwd=film)
        assert ran.code == 0, ran.err
    tasks = json.loads((film / "tasks.json").read_text())
    assert tasks[0]["data"]["text"] in {r["text"] for r in pq.read_table(film / "m.parquet").to_pylist()}


def test_evaluate_trains_again_from_the_same_start(film: Path) -> None:
    assert (
        call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "s.parquet", "-q", cwd=film).code
        == 0
    )
    ran = call_cli("evaluate", "s.parquet", "--lds", "4", "--json", cwd=film)
    assert ran.code == 0, ran.err


# ---- what cannot work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "hf:bert-base-uncased"], ["hf:bert-base-uncased is no folder", "hf download"]),
        (["--model", "resnet18"], ["takes images, the manifest has text", "hf:FOLDER"]),
        (["--model", "linear"], ["linear takes numbers", "hf:FOLDER"]),
        (["--model", "hf:encoder", "--max-length", "64"], ["--max-length 64 is more than the 32 tokens"]),
        (["--model", "hf:encoder", "--optimizer", "lbfgs", "--weight-decay", "0.1"], ["lbfgs cannot train hf:bert"]),
    ],
)
def test_models_that_do_not_fit_are_refused(flags: list[str], said: list[str], film: Path) -> None:
    ran = call_cli("retrain", "m.parquet", *flags, "-o", "NO", cwd=film)
    assert ran.code == 2
    assert all(text in ran.err for text in said), ran.err


def test_long_texts_are_refused_or_cut_by_leave_and_counted(film: Path, tmp_path: Path) -> None:
    table = pq.read_table(film / "m.parquet")
    text = table.column("text").to_pylist()
    text[3], text[7] = "good " * 40, "bad film " * 30
    write(table.set_column(table.column_names.index("text"), "text", pa.array(text)), tmp_path / "m.parquet")
    flags = ["m.parquet", "--checkpoint", film / "RUN", "-o", "s.parquet"]
    ran = call_cli("score", "--method", "ip", *flags, cwd=tmp_path)
    assert ran.code == 2
    assert "the text has 42 tokens where the model takes 32" in ran.err
    assert "row id=r3, column text" in ran.err
    assert "--max-length 32" in ran.err
    listed = call_cli("score", "--method", "ip", *flags, "--skip-bad", cwd=tmp_path)
    assert listed.code == 0
    assert len(pq.read_table(tmp_path / "s.parquet")) == 118
    cut = call_cli("score", "--method", "ip", *flags, "--max-length", 32, cwd=tmp_path)
    assert cut.code == 0
    assert "2 of 120 train rows are cut to 32 tokens" in cut.err
    assert len(pq.read_table(tmp_path / "s.parquet")) == 120
    other = call_cli("score", "--method", "ip", *flags, "--max-length", 16, cwd=tmp_path)
    assert other.code == 2
    assert "--max-length 16 contradicts the checkpoint, which was trained with 32" in other.err


def test_texts_that_are_none_are_named(tmp_path: Path) -> None:
    for k, (value, said) in enumerate(
        [('""', "column text: the text is empty"), ('" "', "column text: the text is empty")]
    ):
        (tmp_path / "t.csv").write_text(f"id,text,label\na,a good film,1\nb,{value},0\nc,a bad dog is here,0\n")
        ran = call_cli("manifest", "t.csv", "-o", f"m{k}.parquet", cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert said in ran.err
        assert "row id=b" in ran.err
    line = '{"id": "a", "text": "a half \\ud800 of it", "label": 1}\n{"id": "b", "text": "is it not so", "label": 0}\n'
    (tmp_path / "t.jsonl").write_text(line)
    ran = call_cli("manifest", "t.jsonl", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 2, ran.err
    assert "surrogate" in ran.err


def test_a_tokenizer_of_another_model_or_none_is_refused(film: Path, tmp_path: Path) -> None:
    write(sentences(), tmp_path / "m.parquet")
    small = saved(tmp_path / "small", vocab_size=12)
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", small, "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "it is another model's" in ran.err
    bare = tmp_path / "bare"
    classifier().save_pretrained(bare)
    ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", bare, "-o", "s.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "no tokenizer beside config.json" in ran.err
    changed = tmp_path / "RUN"
    shutil.copytree(film / "RUN", changed)
    (changed / "tokenizer.json").write_text((changed / "tokenizer.json").read_text().replace('"good"', '"goood"'))
    ran = call_cli(
        "score", "--method", "ip", "m.parquet", "--checkpoint", changed, "--no-store", "-o", "s.parquet", cwd=tmp_path
    )
    assert ran.code == 2
    assert "its files are gone or have changed" in ran.err
    whole = tmp_path / "WHOLE"
    shutil.copytree(film / "RUN", whole)
    words = (
        "score",
        "--method",
        "ip",
        film / "m.parquet",
        "--checkpoint",
        whole,
        "--store",
        "store",
        "-o",
        "s.parquet",
    )
    assert call_cli(*words, cwd=tmp_path).code == 0
    shutil.copy(changed / "tokenizer.json", whole / "tokenizer.json")
    ran = call_cli(*words, cwd=tmp_path)  # nothing is left to compute, and what is stored is of other tokens
    assert ran.code == 2
    assert "its files are gone or have changed" in ran.err
    ran = call_cli(
        "score", "--method", "ip", "m.parquet", "--checkpoint", film / "encoder", "-o", "s.parquet", cwd=tmp_path
    )
    assert ran.code == 2
    assert "influence retrain" in ran.err


def test_pairs_are_not_single_texts(film: Path, tmp_path: Path) -> None:
    table = sentences()
    write(table.append_column("text_b", table.column("text")).rename_columns(
        ["id", "text_a", "label", "split", "text_b"]), tmp_path / "m.parquet")  # fmt: skip
    ran = call_cli(
        "score", "--method", "ip", "m.parquet", "--checkpoint", film / "RUN", "-o", "s.parquet", cwd=tmp_path
    )
    assert ran.code == 2
    assert "a pair of texts where the model was trained on a text a row" in ran.err


def test_the_next_command_trains_from_the_same_folder(film: Path) -> None:
    assert (
        call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "RUN", "-o", "n.parquet", "-q", cwd=film).code
        == 0
    )
    ran = call_cli("curate", "n.parquet", "--budget", "5%", "-o", "cured.parquet", cwd=film)
    assert ran.code == 0, ran.err
    (line,) = (line for line in ran.err.splitlines() if line.startswith("next: influence "))
    assert "--model hf:encoder" in line
    assert "--lr 0.001" in line
    ran = call_cli(*shlex.split(line.removeprefix("next: influence ")), "--seeds", "1", "--epochs", "1", cwd=film)
    assert ran.code == 0, ran.err


# ---- what the tokenizer and the architecture decide -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["xlnet", "fnet"])
def test_architectures_in_which_filling_reaches_a_row_are_refused(kind: str, film: Path, tmp_path: Path) -> None:
    sizes = {
        "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
        "fnet": {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64},
    }
    config = transformers.AutoConfig.for_model(kind, vocab_size=60, num_labels=2, pad_token_id=0, **sizes[kind])
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "hf")
    tokenizer().save_pretrained(tmp_path / "hf")
    for ran in (
        call_cli("score", "--method", "ip", film / "m.parquet", "--checkpoint", "hf", "-o", "s.parquet", cwd=tmp_path),
        call_cli("retrain", film / "m.parquet", "--model", "hf:hf", "-o", "RUN", cwd=tmp_path),
    ):
        assert ran.code == 2
        assert "gives a row other logits alone than beside a longer row" in ran.err


def test_a_decoder_without_padding_of_its_own_takes_that_of_its_tokenizer_or_its_end(tmp_path: Path) -> None:
    folder = saved(tmp_path / "hf", "gpt2", pad_token_id=None)
    assert spec_values(folder)["text"]["padding"] == 0  # the tokenizer's [PAD]
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    assert spec_values(folder)["text"]["padding"] == 3  # the model's end of text, not number 0, which is a word
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": -1}))
    assert spec_values(folder)["text"]["padding"] == 3


def test_weights_in_a_form_that_is_not_read_are_not_trained_anew_in_silence(film: Path, tmp_path: Path) -> None:
    shutil.copytree(film / "encoder", tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "pytorch_model-00001-of-00001.bin")
    ran = call_cli("retrain", film / "m.parquet", "--model", "hf:hf", "-o", "RUN", cwd=tmp_path)
    assert ran.code == 2
    assert "in a form that influence does not read: pytorch_model-00001-of-00001.bin" in ran.err


def test_a_classifier_trained_elsewhere_may_be_given_shorter_texts(film: Path, tmp_path: Path) -> None:
    saved(tmp_path / "hf")
    for command in (
        ["score", "--method", "ip", film / "m.parquet", "--checkpoint", "hf", "--max-length", 8, "-o", "s.parquet"],
        ["retrain", film / "m.parquet", "--model", "hf:hf", "--max-length", 8, "--epochs", 1, "-o", "RUN"],
    ):
        ran = call_cli(*command, cwd=tmp_path)
        assert ran.code == 0, ran.err
        assert "are cut to 8 tokens" in ran.err


def test_modules_whose_inputs_rows_do_not_lead_give_no_factors_and_are_named(film: Path, tmp_path: Path) -> None:
    saved(tmp_path / "hf", "deberta")  # it runs a layer on embeddings of distances, which are of no row
    flags = ["--checkpoint", "hf", "--method", "ekfac", "-o", "s.parquet"]
    refused = call_cli("score", film / "m.parquet", *flags, cwd=tmp_path)  # and its norms compute in float32
    assert refused.code == 2
    assert "--set METHOD.precision=fp32" in refused.err
    ran = call_cli("score", film / "m.parquet", *flags, "--set", "ekfac.precision=fp32", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "there are no Kronecker factors for deberta.embeddings.word_embeddings.weight" in ran.err


def _encoder_decoder(kind: str, folder: Path, texts: list[str]) -> None:
    """A small T5 or BART under a tokenizer of its kind that is trained on some texts."""
    parts = tokenizers.pre_tokenizers
    if kind == "t5":
        words = tokenizers.Tokenizer(tokenizers.models.Unigram())
        words.pre_tokenizer = parts.Metaspace()
        special = ["<pad>", "</s>", "<unk>"]
        words.train_from_iterator(
            texts, tokenizers.trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>")
        )
        vocabulary = [(word, p) for word, p in json.loads(words.to_str())["model"]["vocab"]]
        tokens = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=64)
        sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
        ends = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    else:
        words = tokenizers.Tokenizer(tokenizers.models.BPE())
        words.pre_tokenizer = parts.ByteLevel(add_prefix_space=False)
        special, letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], parts.ByteLevel.alphabet()
        words.train_from_iterator(
            texts, tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=letters)
        )
        made = json.loads(words.to_str())["model"]
        pairs = [tuple(pair) for pair in made["merges"]]
        tokens = transformers.BartTokenizer(vocab=made["vocab"], merges=pairs, model_max_length=64)
        sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
        sizes |= {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in
                  (("attention_heads", 4), ("ffn_dim", 32))}  # fmt: skip
        ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    config = transformers.AutoConfig.for_model(kind, vocab_size=len(tokens), num_labels=2, **sizes, **ends)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoders_with_decoders_are_trained_and_scored_with_tokenizers_of_their_own(
    kind: str, film: Path, tmp_path: Path
) -> None:
    rows = pq.read_table(film / "m.parquet").to_pylist()
    _encoder_decoder(kind, tmp_path / "hf", [r["text"] for r in rows])
    manifest = film / "m.parquet"
    ran = call_cli("retrain", manifest, "--model", "hf:hf", "--epochs", "1", "-o", "RUN", cwd=tmp_path)
    assert ran.code == 0, ran.err
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "RUN")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "RUN", attn_implementation="eager"
    )
    model = model.double().eval()
    parameters = list(model.parameters())

    def gradient(row: dict[str, Any]) -> torch.Tensor:
        inputs = tokens(row["text"], return_tensors="pt")
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"]]))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in
                          zip(parameters, found, strict=True)])  # fmt: skip

    q = torch.stack([gradient(r) for r in rows if r["split"] == "val"]).mean(0)
    own = {r["id"]: gradient(r) for r in rows if r["split"] == "train"}
    asked = ["--method", "ip", "--method", "self-tracin", "-o", "s.parquet"]
    ran = call_cli("score", manifest, "--checkpoint", "RUN", *asked, cwd=tmp_path)
    assert ran.code == 0, ran.err
    table = pq.read_table(tmp_path / "s.parquet")
    for name, expected in (("ip", lambda g: float(q @ g)), ("self-tracin", lambda g: -float(g @ g))):
        wanted = np.array([expected(own[i]) for i in table.column("id").to_pylist()])
        (column,) = (n for n in table.column_names if n in (name, f"score_{name}", f"score_{name}_utility"))
        found = table.column(column).to_numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
