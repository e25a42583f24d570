"""Files of large tensors, which are written without a copy of them in memory, are the same as small ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from influence_cli.store.tensors import map_tensors, read_tensors, write_tensors


def test_large_tensors_are_written_as_safetensors_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "b": rng.normal(size=(3, 5)).astype(np.float32),
        "keys": rng.integers(0, 255, (7, 3), dtype=np.uint8),
        "a": rng.normal(size=4),
        "none": np.zeros((0, 2)),
        "turned": np.asfortranarray(rng.normal(size=(2, 3))),
    }
    write_tensors(tmp_path / "small.safetensors", tensors, {"x": [1, "ü"]})
    monkeypatch.setattr("influence_cli.store.tensors.LARGE", 0)
    write_tensors(tmp_path / "large.safetensors", tensors, {"x": [1, "ü"]})
    for read in (lambda p: read_tensors(p)[0], load_file, lambda p: map_tensors(p)[0]):
        found = read(tmp_path / "large.safetensors")
        assert found.keys() == tensors.keys()
        assert all(np.array_equal(found[n], tensors[n]) and found[n].dtype == tensors[n].dtype for n in tensors)
    assert read_tensors(tmp_path / "large.safetensors")[1] == {"x": [1, "ü"]}
    raw = [(tmp_path / f"{n}.safetensors").read_bytes() for n in ("small", "large")]
    ends = [8 + int.from_bytes(r[:8], "little") for r in raw]
    assert raw[0][ends[0] :] == raw[1][ends[1] :]
    assert ends[1] % 8 == 0
