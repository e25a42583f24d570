"""A Git LFS pointer in place of a file of text is named as one, whatever reads it.

python -m pytest tests/store/test_lfs.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from influence_cli.cli.settings.settings_file import read_file
from influence_cli.data.sources.huggingface import read_description
from influence_cli.errors import InfluenceError
from influence_cli.model.checkpoints import find_checkpoint
from influence_cli.stages.curate.baseline import read_baseline
from influence_cli.stages.evaluate.truth import read_ids
from influence_cli.store.lfs import POINTER, WHAT

READERS = {
    "ids.txt": read_ids,
    "ids.csv": read_ids,
    "ids.json": read_ids,
    "baseline.jsonl": read_baseline,
    "influence.toml": lambda path: read_file(path, "score"),
    "state.json": lambda path: read_description(Path(path)),
    "model.safetensors.index.json": find_checkpoint,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pointer_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER + b"\noid sha256:0\nsize 12\n")
    with pytest.raises(InfluenceError) as raised:
        READERS[name](str(path))
    assert raised.value.what == WHAT
    assert raised.value.where == str(path)
