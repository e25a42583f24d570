"""--features: rows are compared by a frozen model that is not the one scored.

References: the features of timm's or transformers' own forward pass, and scores at the same model as a checkpoint.

    python -m pytest tests/stages/run/test_backbone.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from influence_cli.data.tables import provenance
from influence_cli.errors import UsageError
from influence_cli.maths.neighbours import nearest
from influence_cli.model.decode import decode
from influence_cli.model.examples import to_input
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.run.backbone_run import features_run
from influence_cli.stages.run.open import open_run
from influence_cli.stages.run.quantities import QUANTITIES
from influence_cli.stages.run.session import Session
from influence_cli.stages.score.score import score
from tests.cases import Heard, call_cli, column, digits_table, examples, feature_table, train_run, write
from tests.texts import saved, sentences

BACKBONE, SIZE, OUTPUTS = "test_efficientnet", 32, 7
PLAIN = ("--isolated", "--store", "store", "--set", "knn.k=5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    table = digits_table(train=40, val=12, test=4)
    write(table, folder / "m.parquet")
    write(table.take([*range(30), *range(40, 56)]), folder / "fewer.parquet")
    train_run(folder / "m.parquet", folder / "run", "mlp:9")
    torch.manual_seed(0)
    model = timm.create_model(BACKBONE, num_classes=OUTPUTS)
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, folder / "w.safetensors")
    return folder


def asked(folder: Path, **more: Any) -> Inputs:
    given = {"features": BACKBONE, "features_checkpoint": str(folder / "w.safetensors"), "features_size": SIZE}
    return Inputs(**{"manifest": str(folder / "m.parquet"), **given, **more})


def opened(folder: Path, inputs: Inputs, *methods: str, store: str = "store") -> tuple[Any, Session]:
    session = Session.open(Runtime(str(folder / store), "cpu"), Heard())
    return open_run(inputs, GradSpec(methods, options={"knn": {"k": 5}} if "knn" in methods else {}), session), session


def stored(run: Any, session: Session, rows: Any) -> NDArray[Any]:
    at = features_run(run, session.runtime)
    (part, *_) = QUANTITIES["features"].parts(at, at.members[0])
    return QUANTITIES["features"].folder(at, session, part).read(rows.payload_keys)["features"]


def by_timm(folder: Path, run: Any, rows: Any) -> NDArray[Any]:
    """Means and deviations of the maps of the last five blocks of timm's own model."""
    from safetensors.torch import load_file

    model: Any = timm.create_model(BACKBONE, num_classes=OUTPUTS).eval()
    model.load_state_dict(load_file(folder / "w.safetensors"))
    config: Any = timm.get_pretrained_cfg(BACKBONE)
    spec = run.backbone.model
    assert (spec.mean, spec.std, spec.shape) == (config.mean, config.std, (3, SIZE, SIZE))
    pixels: list[Any] = [decode(payload, spec) for _, payload in rows.manifest.payloads(rows.index)]
    with torch.no_grad():
        x = to_input(torch.from_numpy(np.stack(pixels)), spec, torch.float32)
        found = list[Any]()
        for size in (SIZE, *run.backbone.smaller):
            x = torch.nn.functional.interpolate(x, size=(size, size), mode="bicubic", antialias=True)
            maps = model.bn1(model.conv_stem(x))
            every = [(maps := block(maps)) for block in model.blocks]
            for of_block in every[-5:]:
                found += [of_block.mean((2, 3)), of_block.std((2, 3), correction=0)]
        return torch.cat(found, dim=1).numpy()


@pytest.mark.parametrize("sizes", [SIZE, f"16,{SIZE}"])
def test_neighbours_are_those_by_the_features_of_that_model(folder: Path, sizes: Any) -> None:
    run, session = opened(folder, asked(folder, features_size=sizes), "knn", store=f"store of {sizes}")
    table, run = score(run, session)
    assert run.backbone is not None
    own, target = by_timm(folder, run, run.train), by_timm(folder, run, run.target)
    np.testing.assert_allclose(stored(run, session, run.train), own, rtol=1e-4, atol=1e-5)
    places = nearest(own, target, 5).places
    named = [", ".join(run.target.ids[k] for k in row[:3]) for row in places]
    assert table.column("knn_nearest").to_pylist() == named
    said = provenance(table.schema)["features_model"]
    assert said["model"]["name"] == BACKBONE
    assert said["fingerprint"] == run.backbone.checkpoint.digest


def test_the_own_run_as_features_gives_the_scores_of_no_option(folder: Path) -> None:
    """With and without it as the model that is scored; features are under the same name in the store."""
    base, run = ("score", "m.parquet", "--method", "probe", "--method", "knn", *PLAIN), str(folder / "run")
    tables = []
    for words in (("--checkpoint", run), ("--checkpoint", run, "--features", run), ("--features", run)):
        ran = call_cli(*base, *words, "-o", "s.parquet", cwd=folder)
        assert ran.code == 0, ran.err
        tables.append(pq.read_table(folder / "s.parquet"))
    for name in ("score_probe", "score_knn"):
        for table in tables[1:]:
            np.testing.assert_array_equal(column(table, name), column(tables[0], name))
    assert tables[1].column_names == tables[0].column_names
    alone = tables[2]
    assert "loss" not in alone.column_names
    assert alone.column("other_label").to_pylist() == tables[0].column("other_label").to_pylist()


def test_only_growth_is_computed_and_planned(folder: Path) -> None:
    words = ("--method", "probe", "--method", "target-probe", "--features", BACKBONE, "--features-checkpoint")
    words = (*words, "w.safetensors", "--features-size", "48", "--isolated", "--store", "grown", "--format", "json")

    def planned(manifest: str) -> Any:
        return call_cli("score", manifest, *words, "-n", cwd=folder).json

    plan = planned("fewer.parquet")
    (step,) = plan["steps"]
    assert step["row_values_to_compute"] == {"features": 30, "features of target rows": 12}
    assert (step["features"], plan["rows_to_compute"], plan["seconds"] is not None) == (BACKBONE, 42, True)
    model: Any = timm.create_model(BACKBONE)
    width = model.num_features + sum(block[-1].conv_pwl.out_channels for block in model.blocks[-2:])
    assert plan["bytes"] == 42 * (16 + 4 * width)
    assert call_cli("score", "fewer.parquet", *words, cwd=folder).code == 0
    assert planned("m.parquet")["steps"][0]["row_values_to_compute"]["features"] == 10
    filled = call_cli("grads", "m.parquet", *words, cwd=folder)
    assert (filled.code, "10 rows run through the model" in filled.err) == (0, True)
    entries = call_cli("cache", "ls", "--store", "grown", "--format", "json", cwd=folder).json["entries"]
    (entry,) = [e for e in entries if e["kind"] == "features"]
    assert (entry["rows"], BACKBONE in entry["about"]) == (52, True)
    warm = planned("m.parquet")
    assert (warm["rows_to_compute"], warm["bytes"], warm["start_seconds"]) == (0, 0, 0.0)


def test_gc_keeps_features_of_the_manifests_it_is_given_and_no_others(folder: Path) -> None:
    words = ("--checkpoint", "run", "--features", BACKBONE, "--features-checkpoint", "w.safetensors")
    words = (*words, "--features-size", "32", "--method", "probe", "--isolated", "--store", "kept", "--format", "json")
    assert call_cli("score", "m.parquet", *words, "-o", "s.parquet", cwd=folder).code == 0
    assert call_cli("score", "fewer.parquet", *words, "-o", "f.parquet", cwd=folder).code == 0

    def after_gc(manifest: str, dropped: int, lacks: int) -> None:
        gone = call_cli("cache", "gc", "--keep", manifest, "--store", "kept", "--format", "json", cwd=folder)
        assert gone.json["rows_dropped"] == dropped
        plan = call_cli("score", "m.parquet", *words, "-n", cwd=folder).json
        assert plan["steps"][-1]["row_values_to_compute"]["features"] == lacks
        assert str(plan["seconds"]) != "-0.0"

    after_gc("m.parquet", 0, 0)
    assert call_cli("score", "m.parquet", *words, "-o", "again.parquet", cwd=folder).code == 0
    assert pq.read_table(folder / "again.parquet").equals(pq.read_table(folder / "s.parquet"))
    after_gc("fewer.parquet", 10 + 10, 10)  # outputs of the model that is scored, and features
    assert call_cli("score", "fewer.parquet", *words, "-o", "again.parquet", cwd=folder).code == 0
    assert pq.read_table(folder / "again.parquet").equals(pq.read_table(folder / "f.parquet"))


def test_the_model_that_is_scored_keeps_its_scores(folder: Path) -> None:
    """Beside methods that look at features of another model."""
    base = ("score", "m.parquet", "--checkpoint", "run", "--params", "last", *PLAIN[:3], "-o", "s.parquet")
    assert call_cli(*base, "--method", "ip", "--method", "loss", cwd=folder).code == 0
    before = pq.read_table(folder / "s.parquet")
    words = ("--features", BACKBONE, "--features-checkpoint", "w.safetensors", "--features-size", str(SIZE))
    words = (*words, *PLAIN[3:])
    ran = call_cli(*base, "--method", "ip", "--method", "loss", "--method", "knn", *words, cwd=folder)
    assert ran.code == 0, ran.err
    after = pq.read_table(folder / "s.parquet")
    for name in ("score_ip_utility", "score_loss", "loss", "margin"):
        np.testing.assert_array_equal(column(after, name), column(before, name))
    plan = call_cli(*base[:-2], "--method", "ip", "--method", "knn", *words, "-n", "--format", "json", cwd=folder).json
    assert [("features" in step, step["why"]) for step in plan["steps"]] == [
        (False, "all stored"),
        (True, "all stored"),
    ]


def test_tables_without_a_scored_model_lead_to_their_duplicates(folder: Path) -> None:
    words = ("--features", BACKBONE, "--features-checkpoint", "w.safetensors", "--features-size", str(SIZE))
    ran = call_cli("score", "m.parquet", "--method", "probe", *words, *PLAIN[:3], "-o", "alone.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    found = call_cli(
        "evaluate", "alone.parquet", "--duplicates", "10%", "--store", "store", "--format", "json", cwd=folder
    )
    assert found.json["duplicates"]["rows"] == 56
    (entry,) = [  # those of test rows were added to what was there
        e for e in call_cli("cache", "ls", "--store", "store", "--format", "json", cwd=folder).json["entries"]
        if e["kind"] == "features" and BACKBONE in e["about"]
    ]  # fmt: skip
    assert entry["rows"] == 56


def test_an_encoder_gives_the_mean_of_its_tokens(tmp_path: Path) -> None:
    """One without a classifier; the pooler, which is not looked at, may be missing."""
    import transformers

    write(sentences(train=20, val=8, test=4), tmp_path / "m.parquet")
    folder = saved(tmp_path / "bert")
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(folder).bert.eval()
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    state = {f"bert.{n}": v.contiguous() for n, v in whole.state_dict().items() if not n.startswith("pooler")}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    run, session = opened(tmp_path, Inputs(str(tmp_path / "m.parquet"), features=f"hf:{folder}"), "target-probe")
    table, run = score(run, session)
    assert np.isfinite(column(table)).all()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)
    texts = pq.read_table(tmp_path / "m.parquet").column("text").to_pylist()[: len(run.train)]
    for text, found in zip(texts, stored(run, session, run.train), strict=True):
        with torch.no_grad():
            expected = whole(**tokens(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"features_checkpoint": None}, "a name alone has no weights"),
        ({"features": "python:a.b:c"}, "takes no code"),
        ({"features": "run"}, "has weights of its own, and --features-checkpoint names others"),
        ({"features": "w.safetensors", "features_checkpoint": None}, "do not say of which model they are"),
        ({"manifest": "rows.parquet"}, "takes images, and the rows have features"),
        (
            {"manifest": "rows.parquet", "features": "run", "features_checkpoint": None},
            "takes image, and the rows have",
        ),
    ],
)
def test_what_cannot_be_compared_by_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(folder)
    write(feature_table(examples(train=20, val=8, test=0)), folder / "rows.parquet")
    with pytest.raises(UsageError, match=said) as found:
        opened(folder, asked(folder, **more), "probe")
    assert found.value.fix


@pytest.mark.parametrize(
    ("name", "file", "fix"),
    [
        (BACKBONE, "gone.safetensors", "pass --features-checkpoint FILE"),
        (BACKBONE, "run/model.safetensors", "name the model that the weights are of: --features NAME"),
    ],
)
def test_weights_that_are_not_there_or_do_not_fit_name_the_option_to_mend(
    folder: Path, name: str, file: str, fix: str
) -> None:
    words = ("--method", "probe", "--features", name, "--features-checkpoint", file, "--features-size", str(SIZE))
    ran = call_cli("score", "m.parquet", *words, cwd=folder)
    assert ran.code == 2
    assert f"fix: {fix}" in ran.err


def test_a_model_of_one_size_takes_no_other(tmp_path: Path) -> None:
    write(digits_table(train=40, val=10, test=10), tmp_path / "m.parquet")
    train_run(tmp_path / "m.parquet", tmp_path / "run", "mlp:8")
    ran = call_cli("score", "m.parquet", "--method", "probe", "--features", "run", "--features-size", 16, cwd=tmp_path)
    assert ran.code == 2
    assert "mlp:8 takes images of one size alone, 8 x 8\nfix: leave --features-size out" in ran.err


@pytest.mark.parametrize("sizes", ["32,32", "0", "much", ""])
def test_sizes_that_are_none_are_refused(folder: Path, sizes: str) -> None:
    with pytest.raises(UsageError, match="--features-size") as found:
        asked(folder, features_size=sizes)
    assert found.value.fix == "write 224 or 224,128"


def test_its_options_alone_have_no_effect(folder: Path) -> None:
    for flag, value in (("--features-size", "64"), ("--features-checkpoint", "w.safetensors")):
        ran = call_cli("score", "--method", "ip", "m.parquet", "--checkpoint", "run", flag, value, cwd=folder)
        assert (ran.code, f"{flag} is about another model" in ran.err) == (2, True)


def test_a_table_is_scored_at_the_model_that_it_says_unless_its_weights_have_changed(folder: Path) -> None:
    torch.manual_seed(1)
    other = timm.create_model(BACKBONE, num_classes=OUTPUTS)
    weights = (folder / "w.safetensors").read_bytes()
    (folder / "kept.safetensors").write_bytes(weights)
    words = ("--features", BACKBONE, "--features-checkpoint", "kept.safetensors", "--features-size", str(SIZE))
    ran = call_cli("grads", "m.parquet", "--method", "probe", *words, *PLAIN[:3], "-o", "g.parquet", cwd=folder)
    assert ran.code == 0, ran.err
    again = ("score", "g.parquet", *PLAIN[:3], "-o", "s.parquet")
    assert call_cli(*again, cwd=folder).code == 0
    assert provenance(pq.read_schema(folder / "s.parquet"))["features_model"]["model"]["name"] == BACKBONE
    save_file({n: v.contiguous() for n, v in other.state_dict().items()}, folder / "kept.safetensors")
    ran = call_cli(*again, cwd=folder)
    assert (ran.code, "the weights of --features have changed since the stage before" in ran.err) == (2, True)
    ran = call_cli("score", "s.parquet", *PLAIN[:3], "--explain", "train-0", cwd=folder)
    assert (ran.code, "weights of --features have changed" in ran.err) == (2, True)
    assert call_cli(*again, *words, cwd=folder).code == 0  # who names them means them
