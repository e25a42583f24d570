"""What a run folder and a table say is what was written: damage is an error, what users write anew is not.

python -m pytest tests/model/test_damaged_files.py
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from influence_cli.data.tables import read_schema, read_table
from influence_cli.data.write_tables import write_table
from influence_cli.errors import DamagedModel, ManifestError, ModelError
from influence_cli.model.build import build_model, load_model
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.model.run_folder import RunFolder
from influence_cli.model.run_record import RunRecord
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import Inputs
from influence_cli.stages.retrain.request import RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from influence_cli.store.parquet import SEAL, SealedWriter
from tests.cases import QUICK, Heard, call_cli, train_run

SPEC = ModelSpec("mlp:7", 4, "features", (5,))


def read_run(locator: str | Path) -> RunRecord | None:
    return RunFolder(locator).read()


def run_of(locator: str) -> RunRecord | None:
    return RunFolder.of(locator).read()


Change = Callable[[dict[str, Any]], Any]


def flipped(path: Path, place: int, bit: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


@pytest.fixture
def run(tmp_path: Path, tabular_run: Path) -> Path:
    shutil.copytree(tabular_run, tmp_path / "run")
    return tmp_path / "run"


# ---- run.json -----------------------------------------------------------------------------------------------------

UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "bad UTF-8": b'{"model": "\xa0"}',
    "no JSON": b"{,}",
    "a list": b"[]",
    "null": b"null",
    "no keys": b"{}",
    "deep": b"[" * 50_000,
    "a model of another type": b'{"schema_version": 1, "model": 3, "recipe": {}}',
    "no recipe": b'{"model": {"name": "mlp:4", "num_classes": 3, "kind": "features", "shape": [5]}}',
}


@pytest.mark.parametrize("content", list(UNREADABLE.values()), ids=list(UNREADABLE))
def test_a_run_json_that_cannot_be_read_is_an_error_for_every_reader(content: bytes, run: Path) -> None:
    (run / "run.json").write_bytes(content)
    weights = str(run / "model.safetensors")
    for read, place in ((find_checkpoint, run), (find_checkpoint, weights), (read_run, run), (run_of, weights)):
        with pytest.raises(DamagedModel, match=r"run\.json is not as retrain wrote it") as caught:
            read(str(place))
        assert caught.value.where.endswith("run.json")
        assert caught.value.fix


def test_a_folder_or_a_broken_link_named_run_json_is_an_error(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").symlink_to("nowhere")
    with pytest.raises(DamagedModel):
        read_run(str(run))
    (run / "run.json").unlink()
    assert read_run(str(run)) is None
    (run / "run.json").mkdir()
    with pytest.raises(DamagedModel):
        read_run(str(run))


def test_every_cut_and_flip_of_a_run_json_is_found(run: Path) -> None:
    path = run / "run.json"
    raw = path.read_bytes()
    for place in range(0, len(raw) - 1, 7):
        path.write_bytes(raw[:place])
        with pytest.raises(DamagedModel):
            read_run(run)
        path.write_bytes(raw)
        flipped(path, place, place % 8)
        with pytest.raises(DamagedModel):
            read_run(run)


def changed_run(run: Path, change: Change) -> None:
    value = json.loads((run / "run.json").read_text())
    change(value)
    (run / "run.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["recipe"].update(weight_decay=0.5),
        lambda v: v.pop("calibration_ids"),
        lambda v: v.update(canaries={"ids": [], "row_keys": [], "planted": []}),
        lambda v: v.pop("checksum"),
        lambda v: v["weights"].clear(),
    ],
)
def test_a_run_json_that_was_altered_is_found(change: Change, run: Path) -> None:
    changed_run(run, change)
    with pytest.raises(DamagedModel):
        find_checkpoint(str(run))


def test_a_run_json_laid_out_anew_or_of_an_earlier_version_is_read(run: Path) -> None:
    before = read_run(run)
    assert before is not None
    changed_run(run, lambda v: None)  # one line, keys in another order
    assert read_run(run) == before
    changed_run(run, lambda v: [v.pop(k) for k in ("checksum", "weights")])
    again = read_run(run)
    assert again is not None
    assert again.recipe == before.recipe
    assert find_checkpoint(str(run))[1] == before.model


def test_the_run_json_of_another_program_is_not_ours(tmp_path: Path) -> None:
    torch.save(build_model(SPEC).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "run.json").write_text('{"artifacts": [], "command": "main"}')
    assert find_checkpoint(str(tmp_path / "weights.pt"))[1] is None
    assert run_of(str(tmp_path / "weights.pt")) is None


def test_commands_exit_2_at_a_damaged_run_json(tmp_path: Path, tabular: Path, run: Path) -> None:
    asked = ["score", tabular, "--checkpoint", run, "--method", "exact", "--params", "last", "-o", "s.parquet"]
    by_loss = ["score", tabular, "--checkpoint", run, "--method", "loss", "-o", "l.parquet"]
    assert call_cli(*asked, cwd=tmp_path).code == call_cli(*by_loss, cwd=tmp_path).code == 0
    raw = (run / "run.json").read_bytes()
    (run / "run.json").write_bytes(raw.replace(b'"recipe"', b'"recip\xe5"'))
    gate = ["curate", "l.parquet", "--check", "--false-flag", "50%"]
    evaluate = ["evaluate", "s.parquet", "--removal", "10%"]
    for command in (asked, gate, evaluate):
        ran = call_cli(*command, cwd=tmp_path)
        assert (ran.code, "run.json" in ran.err) == (2, True), ran.err


# ---- weights ------------------------------------------------------------------------------------------------------


def test_every_flip_in_weights_is_found_or_changes_nothing(tmp_path: Path, run: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    raw = (run / "model.safetensors").read_bytes()
    alone.write_bytes(raw)
    digest = find_checkpoint(str(alone))[0].digest
    places = np.random.default_rng(0).integers(0, len(raw), 300).tolist()
    for path, locator in ((alone, alone), (run / "model.safetensors", run)):
        found = 0
        for place in places:
            path.write_bytes(raw)
            flipped(path, place, place % 8)
            try:
                assert find_checkpoint(str(locator))[0].digest == digest
            except DamagedModel:
                found += 1
        assert found > 0.95 * len(places)
        path.write_bytes(raw)


def test_weights_of_another_training_are_not_taken_for_the_folders(tmp_path: Path, tabular: Path, run: Path) -> None:
    other = train_run(tabular, tmp_path / "other", "mlp:4", seed=5)
    shutil.copy(other / "model.safetensors", run / "model.safetensors")
    for place in (run, run / "model.safetensors"):
        with pytest.raises(DamagedModel, match=r"not the weights that run\.json names: damaged, or replaced"):
            find_checkpoint(str(place))
    shutil.copy(other / "model.safetensors", tmp_path / "alone.safetensors")
    find_checkpoint(str(tmp_path / "alone.safetensors"))


def test_a_kept_checkpoint_is_verified_too(tmp_path: Path, tabular: Path) -> None:
    folder = train_run(tabular, tmp_path / "run", "mlp:4", keep_checkpoints=2)
    first, last = sorted((folder / "checkpoints").iterdir())
    assert find_checkpoint(str(first))[1] is not None
    shutil.copy(last, first)
    with pytest.raises(DamagedModel, match=first.name):
        find_checkpoint(str(first))


def test_weights_saved_anew_without_our_metadata_are_somebody_elses(tmp_path: Path, run: Path) -> None:
    state = load_file(run / "model.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, tmp_path / "w.safetensors")
    assert find_checkpoint(str(tmp_path / "w.safetensors"))[1] is None


def header_of(state: dict[str, Any], tail: int) -> bytes:
    head = json.dumps(state).encode()
    return len(head).to_bytes(8, "little") + head + bytes(tail)


def tensor(first: Any, last: Any, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
    "content",
    [
        header_of({"a": tensor(0, 8), "b": tensor(4, 12)}, 12),  # overlap
        header_of({"a": tensor(0, 8), "b": tensor(12, 20)}, 20),  # gap
        header_of({"a": tensor(0, 8)}, 12),  # bytes of nobody
        header_of({"a": tensor(0, 8)}, 4),
        header_of({"a": tensor(0, 8, [3])}, 8),
        header_of({"a": tensor(0, 8, [2], "F64")}, 8),
        header_of({"a": tensor(8, 0)}, 8),
        header_of({"a": tensor(0, 8.0)}, 8),
        header_of({"a": tensor(-8, 0)}, 8),
        header_of({"a": tensor(0, 8, [-2, -1])}, 8),
        header_of({"a": 3}, 8),
        header_of({"a": tensor(0, 8), "__metadata__": {"influence": "{"}}, 8),
        header_of({"a": tensor(0, 8), "__metadata__": {"influence": '{"model": {"name": 3}}'}}, 8),
        header_of({"a": tensor(0, 8), "__metadata__": []}, 8),
        b"\xff" * 8 + b"{}",
        header_of({}, 0)[:9],
        (60_000).to_bytes(8, "little") + b"[" * 60_000,
    ],
)
def test_headers_whose_tensors_do_not_fill_the_file_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        find_checkpoint(str(tmp_path / "w.safetensors"))


def test_torch_files_are_verified_on_their_own_checksums(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = build_model(SPEC).state_dict()
    torch.save(state, path)
    raw = path.read_bytes()
    values = raw.index(state["layers.0.weight"].numpy().tobytes())
    for place in (values, values + 33, raw.index(b"data.pkl") + 40):
        path.write_bytes(raw)
        flipped(path, place, 6)
        with pytest.raises(ModelError, match="damaged"):
            find_checkpoint(str(path))
    torch.save(state, path, _use_new_zipfile_serialization=False)  # an older form, without checksums
    load_model(SPEC, find_checkpoint(str(path))[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    state = build_model(SPEC).state_dict()
    state["head.bias"][2] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 of the 4 values of head\.bias are not finite"):
        load_model(SPEC, find_checkpoint(str(tmp_path / "w.safetensors"))[0])


# ---- finished trainings -------------------------------------------------------------------------------------------


def test_a_finished_training_that_is_damaged_is_done_again_and_said(tmp_path: Path, tabular: Path) -> None:
    def once() -> tuple[dict[str, Any], Heard]:
        heard = Heard()
        asked = RetrainRequest(
            Inputs(str(tabular), model="mlp:4"), str(tmp_path / "RUN"), keep_checkpoints=1, device="cpu"
        )
        return retrain(asked, QUICK, heard), heard

    first, heard = once()
    assert heard.warnings == []
    (arm,) = (tmp_path / "RUN" / "arms").iterdir()
    (kept,) = (arm / "checkpoints").iterdir()
    weights, metrics = arm / "model.safetensors", arm / "metrics.json"

    def trained() -> bool:
        return any(what.startswith("train all rows") for what, _ in heard.spans)

    for damage in (
        lambda: flipped(weights, weights.stat().st_size - 5),
        lambda: flipped(kept, kept.stat().st_size - 5),
        lambda: kept.unlink(),
        lambda: (arm / "run.json").write_text("{"),
        lambda: (arm / "run.json").unlink(),
    ):
        damage()
        again, heard = once()
        assert again == first
        assert trained()
        assert len(heard.warnings) == 1
        assert arm.name in heard.warnings[0]
        assert "trained again" in heard.warnings[0]
    text = metrics.read_text()
    for content in ("", "[]", text[:-20], text.replace('"accuracy": ', '"accuracy": 1e-3, "was": ')):
        metrics.write_text(content)
        again, heard = once()
        assert again == first
        assert not trained()
        assert ["measured again" in said for said in heard.warnings] == [True]
    _, heard = once()
    assert heard.warnings == []


# ---- Parquet ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, tabular: Path, tabular_run: Path) -> Path:
    """A folder with a score table, edits, and a curated manifest."""
    folder = tmp_path_factory.mktemp("tables")
    shutil.copy(tabular, folder / "m.parquet")
    for asked in (
        ["score", "m.parquet", "--checkpoint", tabular_run, "--method", "ip", "--method", "loss", "-o", "s.parquet"],
        ["grads", "m.parquet", "--checkpoint", tabular_run, "--method", "loss", "-o", "g.parquet"],
        ["curate", "s.parquet", "--action", "relabel", "--budget", "5", "-o", "c.parquet", "--edits", "e.parquet"],
        ["curate", "s.parquet", "--action", "relabel", "--budget", "5", "--edits", "e.csv"],
    ):
        ran = call_cli(*asked, cwd=folder)
        assert ran.code == 0, ran.err
    return folder


@pytest.mark.parametrize("name", ["s", "g", "e", "c"])
def test_every_flip_in_a_table_is_found_or_changes_nothing(name: str, tables: Path, tmp_path: Path) -> None:
    path = tables / f"{name}.parquet"
    columns = [n for n in read_schema(path).names if n != "features"]  # payloads are named by content
    raw, before = path.read_bytes(), read_table(path, columns)
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    draw = np.random.default_rng(1)
    places = [*draw.integers(4, footer, 100).tolist(), *draw.integers(footer, len(raw), 100).tolist()]
    found = 0
    for place in places:
        (tmp_path / "x.parquet").write_bytes(raw)
        flipped(tmp_path / "x.parquet", place, place % 8)
        try:
            assert read_table(tmp_path / "x.parquet", columns).equals(before)
        except ManifestError:
            found += 1
    assert found > 100


def test_the_streamed_payload_is_verified_too(tables: Path, tmp_path: Path) -> None:
    chunk = pq.ParquetFile(tables / "c.parquet").metadata.row_group(0)
    payload = next(c for k in range(chunk.num_columns) if (c := chunk.column(k)).path_in_schema.startswith("features"))
    (tmp_path / "x.parquet").write_bytes((tables / "c.parquet").read_bytes())
    first = payload.dictionary_page_offset or payload.data_page_offset
    flipped(tmp_path / "x.parquet", first + payload.total_compressed_size // 2, 6)
    ran = call_cli("retrain", "x.parquet", "--model", "mlp:4", "--epochs", "1", "-o", "RUN", cwd=tmp_path)
    assert ran.code == 2
    assert "damaged Parquet" in ran.err


@pytest.mark.parametrize("checksums", [False, True])
def test_a_table_that_a_user_has_edited_is_read(checksums: bool, tables: Path, tmp_path: Path) -> None:
    table = pq.read_table(tables / "s.parquet")
    assert SEAL in pq.ParquetFile(tables / "s.parquet").metadata.metadata
    values = table.column("score").to_numpy().copy()
    values[3] = values[3] * (1 + 2**-50)  # of the same size, compressed or not
    table = table.set_column(table.column_names.index("score"), "score", pa.array(values))
    pq.write_table(table, tmp_path / "edited.parquet", write_page_checksum=checksums)
    assert read_table(tmp_path / "edited.parquet").column("score").to_numpy()[3] == values[3]
    pq.write_table(table.slice(5), tmp_path / "edited.parquet", write_page_checksum=checksums)
    assert read_table(tmp_path / "edited.parquet").num_rows == table.num_rows - 5


def test_a_value_that_page_checksums_do_not_see_is_found(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "score": [1.0, 2.0]})
    write_table(table, str(tmp_path / "t.parquet"))
    seal = pq.ParquetFile(tmp_path / "t.parquet").metadata.metadata[SEAL]
    with pa.OSFile(str(tmp_path / "u.parquet"), "wb") as sink:  # other values under the same seal
        writer = pq.ParquetWriter(sink, table.schema, write_page_checksum=True, use_dictionary=False)  # as ours does
        writer.write_table(pa.table({"id": ["a", "b"], "score": [1.0, 3.0]}))
        writer.add_key_value_metadata({SEAL.decode(): seal.decode()})
        writer.close()
    with pytest.raises(ManifestError, match="values of column score"):
        read_table(tmp_path / "u.parquet")


def test_any_columns_in_any_chunks_are_read_as_they_were_written(tmp_path: Path) -> None:
    n = 50
    some = [None if k % 7 == 0 else k for k in range(n)]
    table = pa.table(
        {
            "id": pa.array([f"é{k}" if k % 5 else None for k in range(n)]),
            "large": pa.array([None if v is None else str(v) for v in some], pa.large_string()),
            "key": pa.array([bytes([k]) * 16 for k in range(n)], pa.binary(16)),
            "raw": pa.array([None if v is None else bytes(v) for v in some], pa.binary()),
            "int": pa.array(some, pa.int32()),
            "u": pa.array(some, pa.uint64()),
            "f": pa.array([float("nan") if k % 3 else None if k % 2 else -0.0 for k in range(n)]),
            "f32": pa.array(some, pa.float32()),
            "half": pa.array(np.arange(n, dtype=np.float16)),
            "flag": pa.array([None if v is None else v % 2 == 0 for v in some]),
            "name": pa.array(["a", "b"] * 25).dictionary_encode(),
            "at": pa.array(some, pa.timestamp("s")),
            "list": pa.array([[k] * (k % 3) for k in range(n)]),
            "none": pa.nulls(n),
            "features": pa.array([[0.5] * 3] * n, pa.list_(pa.float32())),
        }
    ).replace_schema_metadata({"influence": "{}"})
    with pa.OSFile(str(tmp_path / "t.parquet"), "wb") as sink:
        writer = SealedWriter(sink, table.schema)
        for first, last in ((0, 7), (7, 7), (7, 30), (30, n)):
            writer.write_table(table.slice(first, last - first))
        writer.close()
    again = read_table(tmp_path / "t.parquet")
    assert again.schema.metadata == {b"influence": b"{}"}
    assert again.select(["id", "large", "key", "raw", "int", "u", "f32", "flag", "list"]).equals(
        table.select(["id", "large", "key", "raw", "int", "u", "f32", "flag", "list"])
    )
    assert read_table(tmp_path / "t.parquet", ["f"]).num_rows == n


# ---- rows that stand twice ----------------------------------------------------------------------------------------


def written(table: pa.Table, path: Path) -> str:
    write_table(table, str(path))
    return path.name


def test_a_row_that_is_twice_in_a_score_table_is_refused_everywhere(tables: Path, tmp_path: Path) -> None:
    shutil.copytree(tables, tmp_path, dirs_exist_ok=True)
    table = read_table(tmp_path / "s.parquet")
    twice = table.column("id")[3].as_py()
    for name in ("d.parquet", "d.csv", "d.jsonl"):
        doubled = written(pa.concat_tables([table, table.slice(3, 1)]), tmp_path / name)
        with_manifest = ["--manifest", "m.parquet"]
        for asked in (
            ["curate", doubled, *with_manifest, "--budget", "3", "--edits", "x.csv"],
            ["curate", doubled, *with_manifest, "--by", "ip_utility", "--by", "loss", "--budget", "3"],
            ["evaluate", "s.parquet", doubled, *with_manifest, "--known-bad", "ids.txt"],
            ["evaluate", "s.parquet", "--against", doubled],
            ["retrain", "m.parquet", "--model", "mlp:4", "--epochs", "1", "--scores", doubled, "-o", "RUN"],
        ):
            ran = call_cli(*asked, cwd=tmp_path)
            assert ran.code == 2, (asked, ran.err)
            assert "there twice" in ran.err, (asked, ran.err)
            assert f"id={twice}" in ran.err
    import influence_cli

    with pytest.raises(ManifestError, match="there twice"):
        influence_cli.curate(pa.concat_tables([table, table]), manifest=str(tmp_path / "m.parquet"), budget=3)


def test_edits_that_name_a_row_twice_or_another_label_are_refused(tables: Path, tmp_path: Path) -> None:
    shutil.copytree(tables, tmp_path, dirs_exist_ok=True)
    undo = ["--undo", "--manifest", "c.parquet", "-o", "back.parquet"]
    assert call_cli("curate", "e.csv", *undo, cwd=tmp_path).code == 0
    table = read_table(tmp_path / "e.parquet")
    ran = call_cli("curate", written(pa.concat_tables([table, table]), tmp_path / "d.csv"), *undo, cwd=tmp_path)
    assert (ran.code, "there twice" in ran.err) == (2, True), ran.err
    for name, values in (
        ("label_was", [(v + 1) % 3 for v in table.column("label_was").to_pylist()]),
        ("label_was", ["x"] * table.num_rows),
        ("weight_was", [None] * table.num_rows),
        ("row_key", ["zz"] * table.num_rows),
    ):
        other = table.set_column(table.column_names.index(name), name, pa.array(values))
        (tmp_path / "d.csv").unlink()
        ran = call_cli("curate", written(other, tmp_path / "d.csv"), *undo, cwd=tmp_path)
        assert (ran.code, name in ran.err) == (2, True), ran.err


def test_text_tables_that_are_no_text_are_refused(tables: Path, tmp_path: Path) -> None:
    shutil.copytree(tables, tmp_path, dirs_exist_ok=True)
    raw = (tmp_path / "e.csv").read_bytes()
    first = raw.index(b"\n") + 3
    for content in (raw[:first] + b"\xff\xfe" + raw[first:], raw[: raw.rstrip().rindex(b"\n") + 20], b""):
        (tmp_path / "x.csv").write_bytes(content)
        asked = ["curate", "x.csv", "--undo", "--manifest", "c.parquet", "-o", "back.parquet"]
        ran = call_cli(*asked, cwd=tmp_path)
        assert (ran.code, "x.csv" in ran.err) == (2, True), ran.err


def test_ids_keys_and_scores_that_are_none_are_refused(tables: Path, tmp_path: Path) -> None:
    shutil.copy(tables / "m.parquet", tmp_path)
    table = read_table(tables / "s.parquet")
    n = table.num_rows
    for name, values, says in (
        ("id", pa.array([None, *table.column("id").to_pylist()[1:]]), "an id is null"),
        ("id", pa.array(range(n)), "ids are int64"),
        ("row_key", pa.nulls(n, pa.string()), "a row key is null"),
        ("row_key", pa.array(["0g"] * n), "no row key"),
        ("row_key", pa.array(range(n)), "no row key"),
        ("score", pa.array(["high"] * n), "column score"),
    ):
        other = table.set_column(table.column_names.index(name), name, values)
        asked = ["curate", written(other, tmp_path / "d.parquet"), "--budget", "3", "--edits", "x.csv"]
        ran = call_cli(*asked, cwd=tmp_path)
        assert ran.code == 2
        assert says in ran.err, ran.err


ONE, TWO = "0" * 32, "1" * 32


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'{{"id": "a", "row_key": "{ONE}"}}\n{{"id": "a", "row_key": "{TWO}"}}\n', "id=a is there twice"),
        (f'{{"id": "a", "row_key": "{ONE}"}}\n{{"id": "b", "row_key', "cannot be read"),
        ('{"id": "a", "row_key": "0g"}\n', "line 1"),
        (f'{{"id": 3, "row_key": "{ONE}"}}\n', "line 1"),
        (f'{{"row_key": "{ONE}"}}\n', "line 1"),
    ],
)
def test_every_line_of_a_baseline_counts(text: str, says: str, tables: Path, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(text)
    shutil.copytree(tables, tmp_path / "t")
    ran = call_cli("curate", "s.parquet", "--check", "--baseline", "../b.jsonl", cwd=tmp_path / "t")
    assert ran.code == 2
    assert says in ran.err, ran.err


@pytest.mark.parametrize(("name", "shape"), [("mlp:99999999999", (1, 8, 8)), ("mlp:128", (1, 1000000, 1000000))])
def test_a_model_that_no_memory_holds_is_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="too large for the memory"):
        build_model(ModelSpec(name, 10, "image", shape, (0.5,), (0.5,)))
