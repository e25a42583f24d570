"""How good the model is, is said once, before scoring, and of enough rows to say something."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from influence_cli import api
from tests.cases import Heard, digits_table


def said(heard: Heard) -> list[str]:
    return [note for note in heard.notes if note.startswith("before scoring")]


def test_one_new_row_is_no_look_at_the_model(tmp_path: Path, digits_run: Path) -> None:
    table = digits_table()
    api.score(table, checkpoint=digits_run, store=str(tmp_path))
    image = table.column("image").to_pylist()
    clean = table.column("clean_label").to_pylist()
    new = {"id": ["new"], "image": [image[310]], "label": [(clean[310] + 1) % 10], "split": ["train"]}
    new["clean_label"] = [clean[310]]
    grown = pa.concat_tables([table.slice(0, 300), pa.table(new, schema=table.schema)])
    heard = Heard()
    api.score(grown, checkpoint=digits_run, store=str(tmp_path), listener=heard)
    assert len(said(heard)) == 1
    assert "train accuracy" not in said(heard)[0]
    assert not any("train accuracy" in warning for warning in heard.warnings)


def test_it_is_said_once_where_rows_that_cannot_be_used_make_another_pass(
    tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = digits_table(1000, 60, 60)
    images = table.column("image").to_pylist()
    for row in (3, 400, 999):
        images[row] = images[row][:60]
    table = table.set_column(1, "image", pa.array(images, pa.binary()))
    monkeypatch.setattr("influence_cli.stages.run.run.HALF_SAMPLE", 900)  # the sample has others in place of those
    heard = Heard()
    api.score(table, checkpoint=digits_run, store=str(tmp_path), listener=heard, skip_bad=True)
    assert len(said(heard)) == 1
    assert "train accuracy" in said(heard)[0]
