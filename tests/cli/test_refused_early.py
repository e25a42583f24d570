"""What cannot work is refused before anything is trained or written, with a word that helps.

python -m pytest tests/cli/test_refused_early.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from influence_cli.data.tables import PROVENANCE_KEY
from tests.cases import call_cli, examples, feature_table, train_run, write


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    write(feature_table(examples()), folder / "m.parquet")
    train_run(folder / "m.parquet", folder / "RUN", "linear")
    return folder


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--model", "linear", "--pretrained"],
            "--pretrained is for timm models and names of the hub, and linear is neither",
        ),
        (
            ["--model", "mlp:8", "--pretrained"],
            "--pretrained is for timm models and names of the hub, and mlp:8 is neither",
        ),
        (["--model", "mlp:0"], "mlp:0 has a layer without units"),
        (["--model", "linear", "--augment", "shift"], "--augment shift moves pixels, and the rows have features"),
        (["--model", "linear", "--crop", "0.9"], "--crop is about images, and the rows have features"),
        (["--model", "linear", "--mean", "0.5"], "--mean is about images, and the rows have features"),
        (["--model", "linear", "--require-improvement"], "--require-improvement has nothing to compare with"),
    ],
)
def test_options_that_do_not_fit_the_model_or_the_rows(flags: list[str], said: str, here: Path) -> None:
    ran = call_cli("retrain", "m.parquet", *flags, "-o", "NEW", cwd=here)
    assert ran.code == 2
    assert said in ran.err
    assert not (here / "NEW" / "run.json").exists()


def test_a_training_needs_a_row_of_some_weight(here: Path, tmp_path: Path) -> None:
    rows = examples()
    write(feature_table(rows, weight=np.zeros(len(rows))), tmp_path / "m.parquet")
    ran = call_cli("retrain", "m.parquet", "--model", "linear", "-o", "NEW", cwd=tmp_path)
    assert ran.code == 2
    assert "train rows have weight 0" in ran.err
    assert "column weight" in ran.err


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", ["int8", "complex", "sparse", "meta"])
def test_weights_that_are_no_real_numbers(kind: str, here: Path) -> None:
    weights = load_file(here / "RUN" / "model.safetensors")
    change = {
        "int8": lambda w: (10 * w).round().to(torch.int8),
        "complex": lambda w: w.to(torch.complex64),
        "sparse": lambda w: w.to_sparse(),
        "meta": lambda w: w.to("meta"),
    }[kind]
    torch.save({name: change(w) for name, w in weights.items()}, here / f"{kind}.pt")
    ran = call_cli(
        "score",
        "--method",
        "ip",
        "m.parquet",
        "--model",
        "linear",
        "--checkpoint",
        f"{kind}.pt",
        "-o",
        "s.parquet",
        cwd=here,
    )
    assert ran.code == 2
    wanted = {"int8": "is int8", "complex": "is complex64", "sparse": "is sparse_coo", "meta": "on the device meta"}
    assert wanted[kind] in ran.err


def test_outputs_that_are_probabilities(here: Path) -> None:
    (here / "soft_net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Linear(3, 3), nn.Softmax(1))\n"
    )
    flags = ["--model", "python:soft_net:make", "-o", "s.parquet"]
    width = len(feature_table(examples()).column("features")[0])
    (here / "soft_net.py").write_text((here / "soft_net.py").read_text().replace("(3, 3)", f"({width}, 3)"))
    ran = call_cli("score", "--method", "ip", "m.parquet", *flags, cwd=here)
    assert ran.code == 2
    assert "probabilities, not logits" in ran.err


def test_archives_that_hold_no_arrays_of_rows(tmp_path: Path) -> None:
    (tmp_path / "empty.npz").write_bytes(b"")
    with (tmp_path / "one.npz").open("wb") as handle:
        np.save(handle, np.zeros((4, 2)))
    np.savez(tmp_path / "scalar.npz", features=np.float32(1), label=np.arange(4))
    for name, said in (("empty", "cannot be read"), ("one", "holds one array"), ("scalar", "features is no array")):
        ran = call_cli("manifest", f"{name}.npz", "-o", "m.parquet", cwd=tmp_path)
        assert ran.code == 2
        assert said in ran.err


def test_a_manifest_does_not_replace_the_one_that_it_is_read_like(tmp_path: Path) -> None:
    lines = [f"{k},{k % 7},{'ab'[k % 2]}\n" for k in range(30)]
    (tmp_path / "t.csv").write_text("id,x,label\n" + "".join(lines))
    assert call_cli("manifest", "t.csv", "-o", "m.parquet", cwd=tmp_path).code == 0
    ran = call_cli("manifest", "t.csv", "--like", "m.parquet", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "m.parquet" in ran.err


def test_an_archive_says_its_splits(tmp_path: Path) -> None:
    rng, split = np.random.default_rng(0), np.array(["train"] * 6 + ["validation"] * 2 + ["test"] * 2)
    np.savez(tmp_path / "s.npz", x=rng.normal(size=(10, 3)), y=np.arange(10) % 2, split=split)
    ran = call_cli("manifest", "s.npz", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "split: array split" in ran.err
    found = pq.read_table(tmp_path / "m.parquet").column("split").to_pylist()
    assert found == ["train"] * 6 + ["val"] * 2 + ["test"] * 2


def test_one_class_is_nothing_to_train_on(here: Path, tmp_path: Path) -> None:
    rows = [row for row in examples() if row.label == 1 or row.split != "train"]
    write(feature_table(rows), tmp_path / "m.parquet")
    ran = call_cli("retrain", "m.parquet", "--model", "linear", "-o", "NEW", cwd=tmp_path)
    assert ran.code == 2
    assert "every train row has label 1" in ran.err


def test_weights_of_a_bare_linear_layer_are_told_their_names(here: Path) -> None:
    weights = load_file(here / "RUN" / "model.safetensors")
    torch.save({name.removeprefix("head."): w for name, w in weights.items()}, here / "bare.pt")
    ran = call_cli(
        "score",
        "--method",
        "ip",
        "m.parquet",
        "--model",
        "linear",
        "--checkpoint",
        "bare.pt",
        "-o",
        "s.parquet",
        cwd=here,
    )
    assert ran.code == 2
    assert "head.weight and head.bias" in ran.err


@pytest.mark.parametrize("place", ["argument", "variable"])
@pytest.mark.parametrize("command", ["score", "curate", "retrain", "evaluate", "manifest", "grads", "cache"])
def test_a_name_in_no_utf_8_is_refused_before_anything_is_done(place: str, command: str, tmp_path: Path) -> None:
    odd = os.fsdecode(b"out-\xff.parquet")
    env = {"INFLUENCE_STORE": odd} if place == "variable" else {}
    ran = call_cli(command, *([odd] if place == "argument" else ["m.parquet"]), cwd=tmp_path, env=env)
    assert ran.code == 2
    assert "is no text in UTF-8" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_billion_seeds_are_refused_at_once(here: Path, tmp_path: Path) -> None:
    ran = call_cli("retrain", here / "m.parquet", "--model", "linear", "--seeds", 10**9, "-o", "R", cwd=tmp_path)
    assert ran.code == 2
    assert "--seeds 1000000000 is above 10,000" in ran.err


WRONG = [
    (("checkpoint",), 5), (("checkpoint",), "x"), (("fit_rows",), "x"), (("kinds",), []), (("kinds",), None),
    (("kinds", "score"), []), (("model",), "x"), (("model_flags",), 5), (("noise",), []), (("noise", "utility"), [1]),
    (("objective_of",), None), (("skipped",), [5]), (("skipped",), {}), (("spec", "options"), []), (("score_is",), 7),
    (("spec", "objectives"), 5), (("norms",), 3), (("member_weights",), [1]), (("manifest", "locator"), {}),
    (("given_up",), [3]), (("effect_divisors",), []), (("paths_given",), []), (("curvature",), {"ip": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("at", "value"), WRONG, ids=lambda v: str(v))
def test_a_provenance_that_no_stage_writes_is_named(
    at: tuple[str, ...], value: object, scored: Path, tmp_path: Path
) -> None:
    table = pq.read_table(scored)
    origin = json.loads(table.schema.metadata[PROVENANCE_KEY])
    inside = origin
    for name in at[:-1]:
        inside = inside.setdefault(name, {})
    inside[at[-1]] = value
    path = write(table.replace_schema_metadata({PROVENANCE_KEY: json.dumps(origin)}), tmp_path / "s.parquet")
    for asked in (["curate", path, "-o", "c.parquet", "--report", "r.html"], ["evaluate", path], ["score", path]):
        ran = call_cli(*asked, cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert f"the provenance of a table is not as a stage writes it: {'.'.join(at)}" in ran.err.replace(
            "an element of ", ""
        )
        assert "s.parquet" in ran.err
