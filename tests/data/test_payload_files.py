"""What may stand behind a payload: a fixed list of image formats, of a harmless size, in regular files alone."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import EpsImagePlugin, Image

from influence_cli.data.kinds import KINDS
from influence_cli.data.kinds.image import IMAGE_FORMATS
from influence_cli.data.kinds.protocol import LARGEST_FILE
from influence_cli.data.open import open_manifest
from influence_cli.errors import ManifestError
from influence_cli.model.new_spec import new_spec
from influence_cli.model.spec import ModelSpec
from influence_cli.settings import Inputs
from tests.cases import call_cli, png, write

SPEC = ModelSpec("mlp:4", 2, "image", (3, 8, 8), (0.5,) * 3, (0.5,) * 3)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
GOOD = png(np.full((8, 8, 3), 90))


def saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(GOOD)).save(out, format=kind)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG that says that it is so large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.fixture(autouse=True)
def _no_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        pytest.fail("an EPS is run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_images_of_data_sets_are_decoded(kind: str) -> None:
    assert SPEC.payload_kind.decode(saved(kind), SPEC).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "DDS", "SGI", "PCX", "TGA"])
def test_other_formats_are_undecodable_rows(kind: str) -> None:
    with pytest.raises(ValueError, match="no known image format"):
        SPEC.payload_kind.decode(EPS if kind == "EPS" else saved(kind), SPEC)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 40_000], ids=["a warning", "an error"])
def test_an_image_that_is_too_large_is_an_undecodable_row(side: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pixels"):
        SPEC.payload_kind.decode(bomb(side, side), SPEC)
    (tmp_path / "i.png").write_bytes(bomb(side, side))
    (tmp_path / "d.csv").write_text("id,path,label\na,i.png,0\n")
    ran = call_cli("manifest", "d.csv", "-o", "m.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "row id=a" in ran.err


def test_no_command_opens_an_eps(tmp_path: Path) -> None:
    rows = {"id": list("abc"), "image": [EPS, GOOD, GOOD], "label": [0, 1, 0], "split": ["train", "train", "test"]}
    write(pa.table(rows), tmp_path / "m.parquet")
    (tmp_path / "d.csv").write_text("id,path,label\na,i.png,0\n")
    (tmp_path / "i.png").write_bytes(EPS)
    for asked in (["manifest", "d.csv", "-o", "o.parquet"], ["retrain", "m.parquet", "--model", "mlp:4", "-o", "run"]):
        ran = call_cli(*asked, cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert "no known image format" in ran.err
        assert "row id=a" in ran.err
        assert ", ".join(IMAGE_FORMATS) in ran.err
    with pytest.raises(ManifestError, match="no known image format"):
        new_spec(Inputs("m.parquet", model="mlp:4"), open_manifest(tmp_path / "m.parquet"), None)
    scored = call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path)
    assert scored.code == 0, scored.err
    for form, place in (("folder", "out"), ("npz", "out.npz")):
        asked = ["curate", "s.parquet", "--budget", "0", "--export", place, "--export-as", form]
        ran = call_cli(*asked, cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert "row id=a" in ran.err
    with pytest.raises(ManifestError, match="no known image format"):
        KINDS["image"].shown(EPS, "m.parquet, row id=a")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def local_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def sparse(path: Path) -> None:
    with path.open("wb") as handle:
        handle.truncate(LARGEST_FILE + 1)


IRREGULAR: dict[str, Callable[[Path], None]] = {
    "a pipe": fifo,
    "a device": device,
    "a socket": local_socket,
    "a folder": Path.mkdir,
    "more than 1 GiB": sparse,
}


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("what", IRREGULAR)
def test_a_payload_is_a_regular_file(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    IRREGULAR[what](tmp_path / "x.png")
    (tmp_path / "real.png").write_bytes(GOOD)
    (tmp_path / "link.png").symlink_to("real.png")
    paths, labels = ["link.png", "x.png"], [0, 1]
    write(pa.table({"id": ["a", "b"], "path": paths, "label": labels}), tmp_path / "m.parquet")
    structs = [{"bytes": None, "path": p} for p in paths]
    write(pa.table({"id": ["a", "b"], "image": structs, "label": labels}), tmp_path / "n.parquet")
    for name in ("m.parquet", "n.parquet"):
        with pytest.raises(ManifestError, match=what) as refused:
            open_manifest(name)
        assert "row id=b" in str(refused.value)
        assert [b.id for b in open_manifest(name, skip_bad=True).bad] == ["b"]
    (tmp_path / "d.csv").write_text("id,path,label\na,link.png,0\nb,x.png,1\n")
    ran = call_cli("manifest", "d.csv", "-o", "o.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert what in ran.err
    assert "row id=b" in ran.err


@pytest.mark.parametrize("name", ["d.csv", "d.tsv", "d.jsonl", "d.npz", "d.parquet", "d"])
def test_a_table_is_a_regular_file(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "parts").mkdir()
    os.mkfifo(tmp_path / "parts" / "one.parquet")
    for asked in (["manifest", name, "-o", "o.parquet"], ["curate", name], ["score", "parts"], ["retrain", name]):
        ran = call_cli(*asked, *(["--model", "linear", "-o", "run"] if asked[0] == "retrain" else []), cwd=tmp_path)
        assert ran.code == 2, ran.err
        assert "a pipe" in ran.err


def test_a_pipe_in_an_image_folder_is_a_row_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    (tmp_path / "data" / "cat" / "a.png").write_bytes(GOOD)
    os.mkfifo(tmp_path / "data" / "cat" / "b.png")
    ran = call_cli("manifest", "data", "-o", "o.parquet", cwd=tmp_path)
    assert ran.code == 2
    assert "row id=cat/b.png" in ran.err


def test_a_name_that_no_file_can_have_is_a_row_that_is_named(tmp_path: Path) -> None:
    name, labels = "a\0b.png", [0, 1]
    (tmp_path / "real.png").write_bytes(GOOD)
    write(pa.table({"id": ["a", "b"], "path": ["real.png", name], "label": labels}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="null character") as refused:
        open_manifest(str(tmp_path / "m.parquet"))
    assert "row id=b" in str(refused.value)
    assert [b.id for b in open_manifest(str(tmp_path / "m.parquet"), skip_bad=True).bad] == ["b"]
