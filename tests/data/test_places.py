"""Where rows stand in what their manifest was made from: lines of CSV and JSON, files of images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from influence_cli.data.open import open_manifest
from influence_cli.data.sources.places import Place, places_of
from tests.cases import call_cli, digits_table

CSV = '# a comment\nname,text,label\n"a","one\nline, more",x\n\n"b",two,y\nc,three,x\n'


def places(here: Path, source: str, *flags: str) -> tuple[dict[str, Place], str | None]:
    """The places of the rows of a manifest made of a source, by id."""
    ran = call_cli("manifest", source, *flags, "-o", "m.parquet", cwd=here)
    assert ran.code == 0, ran.err
    manifest = open_manifest("m.parquet")
    found, why = places_of(manifest, list(range(len(manifest))))
    return dict(zip(manifest.ids, found, strict=True)), why


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a test, which it works in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_rows_of_a_csv_stand_in_the_line_that_they_begin_in(here: Path, ends: str) -> None:
    (here / "rows.csv").write_bytes(CSV.replace("\n", ends).encode())
    found, why = places(here, "rows.csv", "--id", "name", "--text", "text")
    assert why is None
    assert found == {"a": Place("rows.csv", 3), "b": Place("rows.csv", 6), "c": Place("rows.csv", 7)}


def test_rows_without_ids_are_found_by_their_number(here: Path) -> None:
    (here / "rows.csv").write_text("x,y,label\n1,2,a\n3,4,b\n5,6,a\n")
    found, _ = places(here, "rows.csv")
    assert sorted(place.line or 0 for place in found.values()) == [2, 3, 4]
    assert next(iter(found.values())).line == 2


def test_objects_of_json_stand_in_the_line_that_they_begin_in(here: Path) -> None:
    rows = [{"id": f"r{k}", "text": "] } { [", "label": k % 2} for k in range(3)]
    (here / "rows.jsonl").write_text(
        json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1], indent=1) + "\n" + json.dumps(rows[2])
    )
    found, _ = places(here, "rows.jsonl")
    assert {i: p.line for i, p in found.items()} == {"r0": 1, "r1": 3, "r2": 8}
    (here / "rows.json").write_text(json.dumps(rows, indent=2))
    found, _ = places(here, "rows.json")
    assert {i: (p.file, p.line) for i, p in found.items()} == {f"r{k}": ("rows.json", 2 + 5 * k) for k in range(3)}


def test_a_source_that_has_changed_gives_no_lines_and_says_so(here: Path) -> None:
    (here / "rows.csv").write_text("x,y,label\n1,2,a\n3,4,b\n5,6,a\n")
    places(here, "rows.csv")
    (here / "rows.csv").write_text("x,y,label\n7,7,b\n1,2,a\n3,4,b\n5,6,a\n")
    manifest = open_manifest("m.parquet")
    found, why = places_of(manifest, [0])
    assert found == [Place("rows.csv")]
    assert why is not None
    assert "has changed since" in why
    (here / "rows.csv").unlink()
    found, why = places_of(manifest, [0])
    assert found == [Place()]
    assert "not there any more" in str(why)


@pytest.mark.parametrize("flags", [(), ("--embed",)])
def test_rows_of_an_image_folder_stand_in_their_images(here: Path, flags: tuple[str, ...]) -> None:
    for row in digits_table(4, 2, 2).to_pylist():
        place = here / "photos" / row["split"] / str(row["label"]) / f"{row['id']}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(row["image"])
    found, why = places(here, "photos", *flags)
    assert why is None
    assert len(found) == 8
    assert all(place == Place(f"photos/{i}", image=f"photos/{i}") for i, place in found.items())
    os.mkdir(here / "sub")
    os.chdir(here / "sub")
    manifest = open_manifest("../m.parquet")
    assert places_of(manifest, [0])[0][0].file == f"../photos/{manifest.ids[0]}"


def test_a_manifest_of_ones_own_says_nothing_of_places(digits: Path) -> None:
    assert places_of(open_manifest(str(digits)), [3]) == ([Place()], None)
    assert places_of(open_manifest(str(digits)), []) == ([], None)
