"""The bytes of every form that is read back: what is written today, and files of before that still have to be read.

A change of these bytes is a change of the format: files that people have must go on to be read, or be refused with what
to do, and never be read as something else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from influence_cli.model.run_folder import RunFolder
from influence_cli.store import ShardFolder, Store
from influence_cli.store.files import DamagedFile, open_regular
from influence_cli.store.sealed import (
    parsed_object,
    read_weights_metadata,
    serialized_digest,
    weights_metadata,
    write_sealed_json,
)
from tests.cases import Heard, verify

GOLDEN = {
    "directions/dddddddddddddddddddddddddddddddd.safetensors": (
        b'\x18\x01\x00\x00\x00\x00\x00\x00{"__metadata__":{"influence":"{\\"checksum\\":\\"119b2b788be3de1f'
        b'03f5b27a9ec9cb3c\\",\\"meta\\":{\\"m\\":7,\\"of\\":\\"directions/ddddddddddddd'
        b'ddddddddddddddddddd\\",\\"phi\\":0.5},\\"meta_checksum\\":\\"f35c66f8dfd9ca6'
        b'679d9a58b0136103e\\"}"},"w":{"dtype":"F64","shape":[2],"data_offsets":['
        b"0,16]}} \x00\x00\x00\x00\x00\x00\xf0?\x00\x00\x00\x00\x00\x00\xf0\xbf"
    ),
    "engines/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee.json": (
        b'{\n  "checksum": "ff6239a6c774ed1aa79e67fcc5e92aa1",\n  "note": {\n    "a'
        b'part": 1e-09,\n    "engine": "layerwise"\n  }\n}\n'
    ),
    "factors/ffffffffffffffffffffffffffffffff.safetensors": (
        b'`\x01\x00\x00\x00\x00\x00\x00{"__metadata__":{"influence":"{\\"checksum\\":\\"9105f64e804765af'
        b'4f83af6f3c42398a\\",\\"meta\\":{\\"fit\\":\\"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeee'
        b'e\\",\\"name\\":\\"ffffffffffffffffffffffffffffffff\\",\\"of\\":\\"factors/fff'
        b'fffffffffffffffffffffffffffff\\"},\\"meta_checksum\\":\\"59cf5983a587a3905'
        b'7991926bc506376\\"}"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,'
        b"4]}}      \x00\x00\x00@"
    ),
    "model.safetensors": (
        b'\xe8\x00\x00\x00\x00\x00\x00\x00{"__metadata__":{"influence":"{\\"checksum\\":\\"89dca1da2246653e'
        b'96243c8542518830\\",\\"model\\":{\\"name\\":\\"linear\\"},\\"weights\\":\\"8f832'
        b'd26b1f675ceb08a7a2a424211f5\\"}"},"layer.weight":{"dtype":"F32","shape"'
        b':[1,2],"data_offsets":[0,8]}} \x00\x00\x80?\x00\x00\x00@'
    ),
    "outputs/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/406df0d45084ff98cff828fc4c7e3358.safetensors": (
        b'P\x01\x00\x00\x00\x00\x00\x00{"__metadata__":{"influence":"{\\"checksum\\":\\"e4c4dd4b1c8d4091'
        b'032617ee090ba5a3\\",\\"meta\\":{\\"of\\":\\"outputs/aaaaaaaaaaaaaaaaaaaaaaaa'
        b'aaaaaaaa\\",\\"rows\\":2},\\"meta_checksum\\":\\"6245dd22009d41c86a669964e7a'
        b'be539\\"}"},"logits":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]'
        b'},"keys":{"dtype":"U8","shape":[2,16],"data_offsets":[16,48]}}  \x00\x00\xc0?\x00\x00'
        b"\x00\xc0\x00\x00\x80>\x00\x00@@\x00\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\r\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
    ),
    "run.json": (
        b'{\n  "checksum": "a56c95b4d45d7f53ef332a1cc4974642",\n  "model": {\n    "'
        b'name": "linear"\n  },\n  "seed": 0\n}\n'
    ),
}
WEIGHTS = {"layer.weight": np.array([[1.0, 2.0]], np.float32)}
KEYS = np.arange(32, dtype=np.uint8).reshape(2, 16)
LOGITS = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)


def written(root: Path) -> Store:
    """One file of every form."""
    store = Store(root)
    store.folder("outputs", "a" * 32, {"for": "people"}).write(KEYS, {"logits": LOGITS})
    store.directions.write("d" * 32, {"w": np.array([1.0, -1.0])}, {"phi": 0.5, "m": 7})
    store.factors.write("f" * 32, {"a": np.array([2.0], np.float32)}, {"fit": "e" * 32})
    store.write_engine_note("e" * 32, {"engine": "layerwise", "apart": 1e-9})
    (root / "model.safetensors").write_bytes(
        save(WEIGHTS, weights_metadata({"model": {"name": "linear"}}, serialized_digest(save(WEIGHTS))))
    )
    write_sealed_json(root / "run.json", {"model": {"name": "linear"}, "seed": 0})
    return store


@pytest.mark.parametrize("name", GOLDEN)
def test_files_have_the_bytes_that_the_format_says(name: str, tmp_path: Path) -> None:
    written(tmp_path)
    assert (tmp_path / name).read_bytes() == GOLDEN[name]


def test_golden_files_are_read(tmp_path: Path) -> None:
    for name, data in GOLDEN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    check_read(Store(tmp_path), tmp_path)


def check_read(store: Store, root: Path) -> None:
    """Every form gives what was written."""
    assert np.array_equal(store.folder("outputs", "a" * 32).read(KEYS)["logits"], LOGITS)
    direction = store.directions.read("d" * 32)
    assert direction is not None
    assert direction["w"].tolist() == [1.0, -1.0]
    assert store.directions.meta("d" * 32) == {"phi": 0.5, "m": 7}
    assert store.factors.read("f" * 32) is not None
    assert store.engine_note("e" * 32) == {"engine": "layerwise", "apart": 1e-9}
    about = read_weights_metadata(root / "model.safetensors")
    assert about is not None
    assert about["model"] == {"name": "linear"}
    assert parsed_object((root / "run.json").read_bytes())["seed"] == 0


BEFORE = {  # as they were written before files said what they are of
    "directions/dddddddddddddddddddddddddddddddd.safetensors": (
        b'\xe0\x00\x00\x00\x00\x00\x00\x00{"__metadata__":{"influence":"{\\"checksum\\":\\"68e651a28e716fe1'
        b'96ee70362586607b\\",\\"meta\\":{\\"m\\":7,\\"phi\\":0.5},\\"meta_checksum\\":\\"'
        b'f6e3f8db8c966d725f4f52ea9c1ac1ca\\"}"},"w":{"dtype":"F64","shape":[2],"'
        b'data_offsets":[0,16]}}\x00\x00\x00\x00\x00\x00\xf0?\x00\x00\x00\x00\x00\x00\xf0\xbf'
    ),
    "outputs/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/406df0d45084ff98cff828fc4c7e3358.safetensors": (
        b' \x01\x00\x00\x00\x00\x00\x00{"__metadata__":{"influence":"{\\"checksum\\":\\"a94ac767b48c4a01'
        b'42ccf6b201be4335\\",\\"meta\\":{\\"rows\\":2},\\"meta_checksum\\":\\"ba63bde5e'
        b'1cf2fa91f0212fb24e57e06\\"}"},"logits":{"dtype":"F32","shape":[2,2],"da'
        b'ta_offsets":[0,16]},"keys":{"dtype":"U8","shape":[2,16],"data_offsets"'
        b":[16,48]}}      \x00\x00\xc0?\x00\x00\x00\xc0\x00\x00\x80>\x00\x00@@"
        b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\r\x0e\x0f\x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
    ),
    "outputs/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/spec.json": (b'{\n  "for": "people"\n}\n'),
}


def test_files_of_before_are_read_too(tmp_path: Path) -> None:
    for name, data in {**GOLDEN, **BEFORE}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    check_read(Store(tmp_path), tmp_path)


@pytest.mark.parametrize("kind", ["directions", "interims", "trainings", "factors", "weights", "decisions", "chains"])
def test_an_intact_file_in_the_place_of_another_is_set_aside(kind: str, tmp_path: Path) -> None:
    heard = Heard()
    folder = getattr(Store(tmp_path, heard), kind)
    for name, value in (("a" * 32, 1.0), ("b" * 32, 2.0)):
        folder.write(name, {"x": np.array([value])}, {})
    (tmp_path / kind / f"{'a' * 32}.safetensors").write_bytes(
        (tmp_path / kind / f"{'b' * 32}.safetensors").read_bytes()
    )
    assert folder.read("a" * 32) is None
    assert f"it is a file of {kind}/{'b' * 32}" in heard.warnings[0]
    assert folder.read("b" * 32)["x"].tolist() == [2.0]


@pytest.mark.parametrize("how", ["folder", "mapped", "gradients"])
def test_an_intact_shard_in_the_place_of_another_folders_is_set_aside(how: str, tmp_path: Path) -> None:
    heard = Heard()
    store, kind = Store(tmp_path, heard), "gradients" if how == "gradients" else "tangents"

    def folder(name: str) -> ShardFolder:
        return store.gradients(name) if how == "gradients" else getattr(store, how)(kind, name)

    values = {"value": LOGITS, "loss": np.zeros(2), "norms": np.zeros((2, 1)), "payload_keys": KEYS}
    shards = [folder(c * 32).write(KEYS, {**values, "value": LOGITS + k}, {}) for k, c in enumerate("ab")]
    assert shards[0].name == shards[1].name  # the same rows
    shards[0].write_bytes(shards[1].read_bytes())
    assert folder("a" * 32).missing(KEYS).all()
    assert "it is a file of" in heard.warnings[0]
    assert np.array_equal(folder("b" * 32).read(KEYS)["value"], LOGITS + 1)


def test_verify_finds_exchanged_files(tmp_path: Path) -> None:
    store = written(tmp_path / "store") and Store(tmp_path / "store")
    shard = store.folder("outputs", "c" * 32).write(KEYS, {"logits": LOGITS + 1})
    (tmp_path / "store" / "outputs" / ("a" * 32) / shard.name).write_bytes(shard.read_bytes())
    for name in ("model.safetensors", "run.json"):
        (tmp_path / "store" / name).unlink()
    damaged = verify(tmp_path / "store")[1]
    assert len(damaged) == 1
    assert f"it is a file of outputs/{'c' * 32}" in damaged[0]


def test_measures_of_another_training_are_damage(tmp_path: Path) -> None:
    arms = [RunFolder(tmp_path / name) for name in ("a", "b")]
    for k, arm in enumerate(arms):
        arm.path.mkdir()
        arm.write_measures({"accuracy": k})
    (tmp_path / "a" / "metrics.json").write_bytes((tmp_path / "b" / "metrics.json").read_bytes())
    assert arms[1].read_measures() == {"accuracy": 1}
    with pytest.raises(DamagedFile, match="it is of b"):
        arms[0].read_measures()


def test_a_file_that_another_run_takes_away_while_it_is_opened_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard"
    path.write_bytes(b"x")
    asked = os.stat

    def racing(*given: Any, **named: Any) -> Any:
        found = asked(*given, **named)
        path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "stat", racing)
    with pytest.raises(FileNotFoundError), open_regular(path):
        pass
