"""Bad input: what a stranger, a broken tool or a slip of the hand may give, to every reader of the command line.

A run takes it (exit 0, or 1 of a gate) or refuses it with an error in our words (exit 2): never a traceback, never the
end by a signal, never more than 10 seconds of the processor, and no code that data hold is ever run.  The corpus is made
here from a seed, so that it is kept as code; to it come seeded mutations of whole files.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.cases import examples, feature_table, png
from tests.hardening import scene
from tests.hardening.harness import CPU_SECONDS, Tally, cli, copy_of, refused
from tests.hardening.strange_places import commands

Case = tuple[str, Callable[[Path], Any], tuple[str, ...]]  # its name, what puts it there, the command that meets it
RUN_CODE = "code-was-run"  # the file that hostile data try to make
SCORE = ("score", "x.parquet", "--checkpoint", "run", "--method", "loss", "--no-store", "-o", "out.parquet")
TRAIN = ("retrain", "x.parquet", "--model", "mlp:4", "--epochs", "1", "--device", "cpu", "-o", "trained")
INGEST = ("-o", "out.parquet")
N = 64


def base() -> pa.Table:
    """A good manifest of features, of which cases are changes."""
    return feature_table(examples())


def _with(name: str, values: Any, kind: pa.DataType | None = None) -> Callable[[Path], None]:
    def put(place: Path) -> None:
        array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, kind)
        table = base()
        at = table.column_names.index(name) if name in table.column_names else -1
        table = table.append_column(name, array) if at < 0 else table.set_column(at, name, array)
        pq.write_table(table, place / "x.parquet")

    return put


def _table(table: Callable[[], pa.Table]) -> Callable[[Path], None]:
    return lambda place: pq.write_table(table(), place / "x.parquet")


def _meta(**meta: str) -> Callable[[Path], None]:
    return _table(lambda: base().replace_schema_metadata(meta))


# ---- manifests ------------------------------------------------------------------------------------------------------


def manifests() -> Iterator[Case]:
    """Columns of every type, nulls, nested, huge, unicode, twice the same name, no rows."""
    labels: dict[str, Any] = {
        "null": pa.nulls(N), "all null": pa.array([None] * N, pa.int64()), "one null": [None, *[1] * (N - 1)],
        "float": [1.5] * N, "nan": [float("nan")] * N, "inf": [float("inf")] * N, "negative": [-1] * N,
        "2^62": [2**62] * N, "uint64": pa.array([2**64 - 1] * N, pa.uint64()), "text": ["a"] * N, "empty text": [""] * N,
        "bool": [True] * N, "binary": [b"\0"] * N, "list": [[1, 2]] * N, "empty list": [[]] * N, "struct": [{"a": 1}] * N,
        "nested": [[[[1]]]] * N, "date": pa.array([0] * N, pa.date32()), "duration": pa.array([0] * N, pa.duration("s")),
        "decimal": pa.array([1] * N, pa.int64()).cast(pa.decimal128(38, 10)), "time": pa.array([0] * N, pa.timestamp("ns", "UTC")),
        "dictionary": pa.array(["a", "b"] * (N // 2)).dictionary_encode(), "half": pa.array(np.ones(N, np.float16)),
        "dictionary of null": pa.DictionaryArray.from_arrays(pa.array([None] * N, pa.int8()), pa.array(["a"])),
        "map": pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64())), "all one class": [0] * N,
        "a class a row": list(range(N)), "fixed": pa.array([b"abcd"] * N, pa.binary(4)), "huge class": [10**9] * N,
        "string view": pa.array(["a"] * N, pa.string_view()), "large": pa.array(["a"] * N, pa.large_string()),
    }  # fmt: skip
    for name, values in labels.items():
        yield f"label {name}", _with("label", values), SCORE
        yield f"label {name}, trained", _with("label", values), TRAIN
    features: dict[str, Any] = {
        "null": pa.nulls(N), "null rows": pa.array([None] * N, pa.list_(pa.float32())), "nan": [[float("nan")] * 5] * N,
        "inf": [[float("inf")] * 5] * N, "1e308": [[1e308] * 5] * N, "ragged": [[1.0] * (k % 7) for k in range(N)],
        "empty": pa.array([[]] * N, pa.list_(pa.float32())), "text": [["a"] * 5] * N, "nested": [[[1.0]] * 5] * N,
        "scalar": [1.0] * N, "null inside": [[1.0, None, 1.0, 1.0, 1.0]] * N, "bool": [[True] * 5] * N,
        "complex text": ["1+2j"] * N, "uint64": pa.array([[2**64 - 1] * 5] * N, pa.list_(pa.uint64())),
        "large list": pa.array([[1.0] * 5] * N, pa.large_list(pa.float64())), "struct": [[{"a": 1.0}] * 5] * N,
        "fixed list": pa.array([[1.0] * 5] * N, pa.list_(pa.float32(), 5)), "wide": [[1.0] * 20000] * N,
        "list view": pa.array([[1.0] * 5] * N, pa.list_view(pa.float32())), "binary": [b"12345"] * N,
        "half": pa.array([np.ones(5, np.float16)] * N, pa.list_(pa.float16())), "decimal": pa.array([[1] * 5] * N, pa.list_(pa.decimal128(5, 1))),
    }  # fmt: skip
    for name, values in features.items():
        yield f"features {name}", _with("features", values), SCORE
        yield f"features {name}, trained", _with("features", values), TRAIN
    ids: dict[str, Any] = {
        "int": list(range(N)), "null": [None, *[f"r{k}" for k in range(N - 1)]], "twice": ["a"] * N, "float": [k / 3 for k in range(N)],
        "binary": [bytes([k]) for k in range(N)], "list": [[k] for k in range(N)], "huge": [f"{k}" + "x" * 100_000 for k in range(N)],
        "controls": [f"\x1b[31m{k}\r\n\0" for k in range(N)], "bidi": [f"\u202e{k}\u2066" for k in range(N)],
        "empty": ["", *[f"r{k}" for k in range(N - 1)]], "not UTF-8": _broken_utf8(N), "formula": [f"=cmd|'/c calc'!A{k}" for k in range(N)],
        "dictionary": pa.array([f"r{k}" for k in range(N)]).dictionary_encode(), "struct": [{"a": k} for k in range(N)],
    }  # fmt: skip
    for name, values in ids.items():
        yield f"id {name}", _with("id", values), SCORE
    splits: dict[str, Any] = {
        "unknown": ["dev"] * N, "null": [None] * N, "int": [1] * N, "only train": ["train"] * N, "only val": ["val"] * N,
        "list": [["train"]] * N, "upper": ["TRAIN"] * N, "spaces": [" train"] * N, "dictionary": pa.array(["train", "val"] * (N // 2)).dictionary_encode(),
    }  # fmt: skip
    weights: dict[str, Any] = {
        "negative": [-1.0] * N, "nan": [float("nan")] * N, "inf": [float("inf")] * N, "null": [None] * N, "text": ["1"] * N,
        "zero": [0.0] * N, "1e308": [1e308] * N, "denormal": [5e-324] * N, "list": [[1.0]] * N, "bool": [True] * N,
    }  # fmt: skip
    for column, every in (("split", splits), ("weight", weights), ("group", {"list": [[1]] * N, "null": [None] * N})):
        for name, values in every.items():
            yield f"{column} {name}", _with(column, values), SCORE
            yield f"{column} {name}, trained", _with(column, values), TRAIN
    yield "no rows", _table(lambda: base().slice(0, 0)), SCORE
    yield "no rows, trained", _table(lambda: base().slice(0, 0)), TRAIN
    yield "one row", _table(lambda: base().slice(0, 1)), SCORE
    yield "no columns", _table(lambda: pa.table({})), SCORE
    yield "two columns of one name", _table(lambda: base().append_column("label", pa.array([0] * N))), SCORE
    yield "two features", _table(lambda: base().append_column("features", base()["features"])), TRAIN
    yield (
        "5,000 columns",
        _table(
            lambda: pa.table({**{n: base()[n] for n in base().column_names}, **{f"c{k}": [0] * N for k in range(5000)}})
        ),
        SCORE,
    )
    yield (
        "odd names",
        _table(lambda: base().append_column("\n\0\x1b[2J", pa.array([0] * N)).append_column("", pa.array([0] * N))),
        SCORE,
    )
    yield "image and features", _with("image", [b"x"] * N), SCORE
    yield "classes no JSON", _meta(classes="{"), SCORE
    yield "classes nested", _meta(classes="[" * 100_000), SCORE
    yield "classes of another type", _meta(classes='{"a": [1]}'), SCORE
    yield "classes of null", _meta(classes="[null, null, null]"), SCORE
    yield "too few classes", _meta(classes='["a"]'), TRAIN
    yield "classes twice", _meta(classes='["a", "a", "a"]'), TRAIN
    for key in (
        "influence",
        "influence.source",
        "influence.columns",
        "influence.seal",
        "influence.made",
        "ARROW:schema",
        "task",
    ):
        for value in ("", "{", "[" * 100_000, "null", "[1, 2]", '{"stage": 3, "checkpoint": []}', '"text"', "\ufffd\0"):
            yield f"metadata {key} {value[:12]!r}", _meta(**{key: value}), SCORE
    yield (
        "provenance for curate",
        _meta(influence='{"stage": "score", "manifest": 7}'),
        ("curate", "x.parquet", "-o", "out.parquet"),
    )
    yield "provenance for evaluate", _meta(influence='{"stage": "score"}'), ("evaluate", "x.parquet")


def _broken_utf8(n: int) -> pa.Array:
    raw = b"".join(b"\xff\xfe%02d" % k for k in range(n))
    return pa.Array.from_buffers(
        pa.string(), n, [None, pa.py_buffer(np.arange(0, 4 * n + 1, 4, dtype=np.int32)), pa.py_buffer(raw)]
    )


# ---- images and texts -----------------------------------------------------------------------------------------------


def _picture(mode: str, size: tuple[int, int] = (8, 8), form: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size).save(out, form, **more)
    return out.getvalue()


def _bomb(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def images() -> Iterator[Case]:
    """Truncated, tiny, deep, of every mode, animated, bombs, of wrong suffix; bytes and paths."""
    good = png(np.arange(64).reshape(8, 8) * 3)
    animated = io.BytesIO()
    Image.new("P", (8, 8)).save(animated, "GIF", save_all=True, append_images=[Image.new("P", (8, 8), 1)] * 5)
    odd = {
        "truncated": good[: len(good) // 2], "empty": b"", "garbage": bytes(range(256)), "1x1": _picture("L", (1, 1)), "1 bit": _picture("1"),
        "16 bits": _picture("I;16"), "CMYK": _picture("CMYK", form="JPEG"), "palette": _picture("P"), "RGBA": _picture("RGBA"), "LA": _picture("LA"),
        "float TIFF": _picture("F", form="TIFF"), "animated": animated.getvalue(), "bomb": _bomb(60_000, 60_000), "2^31": _bomb(2**31 - 1, 2**31 - 1),
        "no size": _bomb(0, 0), "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "long": _picture("L", (1, 20_000)), "ICO": _picture("RGBA", form="ICO"), "PDF": b"%PDF-1.7", "trailing": good + bytes(1000),
    }  # fmt: skip
    for name, data in odd.items():
        for first in (True, False):
            yield f"image {name}{', the first' if first else ''}", _images(data, good, first), TRAIN
    outside: dict[str, Any] = {
        "missing": "no.png", "folder": ".", "device": "/dev/zero", "random": "/dev/urandom", "NUL": "a\0b", "long": "x" * 5000, "pipe": "pipe",
        "loop": "loop", "URL": "http://127.0.0.1:1/x.png", "empty": "", "parent": "../../../../etc/hostname",
    }  # fmt: skip
    for name, path in outside.items():
        yield f"image at {name}", _paths(path, good), TRAIN


def _images(data: bytes, good: bytes, first: bool) -> Callable[[Path], None]:
    def put(place: Path) -> None:
        payloads = [good] * N
        payloads[0 if first else N - 1] = data
        table = base().drop_columns(["features"]).append_column("image", pa.array(payloads, pa.binary()))
        pq.write_table(table, place / "x.parquet")

    return put


def _paths(path: str, good: bytes) -> Callable[[Path], None]:
    def put(place: Path) -> None:
        (place / "good.png").write_bytes(good)
        os.mkfifo(place / "pipe")
        (place / "loop").symlink_to("loop")
        values = [{"bytes": None, "path": path if k == 3 else "good.png"} for k in range(N)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = base().drop_columns(["features"]).append_column("image", pa.array(values, kind))
        pq.write_table(table, place / "x.parquet")

    return put


# ---- checkpoints ----------------------------------------------------------------------------------------------------


class _Payload:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {RUN_CODE}",)


def _weights(change: Callable[[dict[str, Any], bytes], bytes]) -> Callable[[Path], None]:
    """The weights of the run with their header changed, as a file of nobody's run."""

    def put(place: Path) -> None:
        raw = (place / "run" / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        (place / "w.safetensors").write_bytes(change(json.loads(raw[8 : 8 + length]), raw[8 + length :]))

    return put


def _framed(header: Any, rest: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def checkpoints() -> Iterator[Case]:
    """Hostile headers of safetensors, missing and extra tensors, torch files with code in them, run folders."""
    asked = (
        "score",
        "m.parquet",
        "--model",
        "mlp:4",
        "--checkpoint",
        "w.safetensors",
        "--method",
        "loss",
        "--no-store",
        "-o",
        "out.parquet",
    )
    texts: dict[str, bytes] = {
        "empty": b"", "null": b"null", "list": b"[]", "number": b"7", "text": b'"a"', "no JSON": b"{", "deep": b'{"a":' * 50_000,
        "deep list": b"[" * 200_000, "NaN": b'{"a": NaN}', "duplicate": b'{"a": 1, "a": 2}', "not UTF-8": b'{"\xff": 1}', "huge number": b'{"a": 1' + b"0" * 5000 + b"}",
    }  # fmt: skip
    for name, text in texts.items():
        yield f"header {name}", _weights(lambda _, rest, text=text: _framed(text, rest)), asked
    for name, size in {"0": 0, "too long": 10**6, "2^63": 2**63, "max": 2**64 - 1}.items():
        yield (
            f"header of {name} bytes",
            _weights(lambda h, rest, size=size: struct.pack("<Q", size) + json.dumps(h).encode() + rest),
            asked,
        )
    entries: dict[str, Any] = {
        "null": None, "list": [], "number": 3, "no dtype": {"shape": [1], "data_offsets": [0, 4]}, "bad dtype": {"dtype": "F128", "shape": [1], "data_offsets": [0, 16]},
        "dtype list": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}, "negative": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        "huge shape": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}, "float shape": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]},
        "text offsets": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}, "one offset": {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        "swapped": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}, "beyond": {"dtype": "F32", "shape": [1], "data_offsets": [10**12, 10**12 + 4]},
        "shape null": {"dtype": "F32", "shape": None, "data_offsets": [0, 4]}, "shape text": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        "bools": {"dtype": "F32", "shape": [True], "data_offsets": [False, 4]}, "nested": {"dtype": {"a": 1}, "shape": [[1]], "data_offsets": [[0], [4]]},
    }  # fmt: skip
    for name, entry in entries.items():
        yield (
            f"entry {name}",
            _weights(lambda h, rest, e=entry: _framed({**h, next(k for k in h if k != "__metadata__"): e}, rest)),
            asked,
        )
    for name, meta in {
        "null": None,
        "list": [],
        "text": "x",
        "number": {"a": 1},
        "nested": {"influence": {"a": 1}},
        "no JSON": {"influence": "{"},
        "deep": {"influence": "[" * 100_000},
        "list of ours": {"influence": "[1]"},
        "ours": {"influence": '{"model": 7}'},
        "ours deep": {"influence": '{"model": {"name": ["x"], "num_classes": -1}}'},
    }.items():
        yield (
            f"metadata {name}",
            _weights(lambda h, rest, m=meta: _framed({**h, "__metadata__": m}, rest)),
            (*asked[:2], *asked[4:]),
        )
        yield (
            f"metadata {name}, named",
            _weights(lambda h, rest, m=meta: _framed({**h, "__metadata__": m}, rest)),
            asked,
        )
    yield "no tensors", _weights(lambda h, rest: _framed({}, b"")), asked
    yield "a tensor too few", _saved(lambda t: {k: t[k] for k in list(t)[1:]}), asked
    yield "a tensor too many", _saved(lambda t: {**t, "extra": next(iter(t.values()))}), asked
    for dtype in ("float64", "float16", "int64", "uint8", "bool"):
        yield f"weights of {dtype}", _saved(lambda t, d=dtype: {k: v.astype(d) for k, v in t.items()}), asked
    for value in (float("nan"), float("inf"), 1e38, 1e-45):
        yield f"weights of {value}", _saved(lambda t, x=value: {k: np.full_like(v, x) for k, v in t.items()}), asked
    hostile = {
        "a pickle": pickle.dumps(_Payload()), "a pickle, 0": pickle.dumps(_Payload(), 0), "in a zip": _zip({"archive/data.pkl": pickle.dumps(_Payload()), "archive/version": b"3"}),
        "a list of them": pickle.dumps([_Payload()] * 3), "a zip bomb": _zip({"archive/data.pkl": bytes(1 << 28)}), "an empty zip": _zip({}), "not a zip": b"PK\x03\x04" + bytes(100),
        "deep": b"\x80\x02" + b"(" * 10_000 + b"." , "a long text": pickle.dumps("x" * 10**6), "a memo": b"\x80\x02h\xff.", "a frame": b"\x80\x04\x95" + b"\xff" * 8 + b".",
        "an attribute": b"cbuiltins\neval\n(S'open(\"" + RUN_CODE.encode() + b"\",\"w\")'\ntR.", "a build": b"cos\nsystem\n(S'touch " + RUN_CODE.encode() + b"'\ntR.",
    }  # fmt: skip
    for name, data in hostile.items():
        for suffix in (".pt", ".pth", ".bin", ".ckpt"):
            yield (
                f"torch file: {name}{suffix}",
                (lambda place, data=data, suffix=suffix: (place / f"w{suffix}").write_bytes(data)),
                (
                    "score",
                    "m.parquet",
                    "--model",
                    "mlp:4",
                    "--checkpoint",
                    f"w{suffix}",
                    "--method",
                    "loss",
                    "--no-store",
                    "-o",
                    "out.parquet",
                ),
            )
    for key in (
        "model",
        "weights",
        "checkpoints",
        "recipe",
        "classes",
        "calibration",
        "checksum",
        "canaries",
        "epochs",
        "preprocess",
        "task",
    ):
        for value in (
            None,
            7,
            [],
            {},
            "x",
            [[1]],
            {"name": "__import__('os').system('touch code-was-run')"},
            -1,
            1e400,
            "[" * 1000,
        ):
            yield (
                f"run.json {key} {str(value)[:20]}",
                _record(key, value),
                ("score", "m.parquet", "--checkpoint", "run", "--method", "loss", "--no-store", "-o", "out.parquet"),
            )


def _zip(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def _saved(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def put(place: Path) -> None:
        from safetensors.numpy import load, save

        (place / "w.safetensors").write_bytes(save(change(load((place / "run" / "model.safetensors").read_bytes()))))

    return put


def _record(key: str, value: Any) -> Callable[[Path], None]:
    """``run.json`` of a stranger: a key of it another value, with no checksum or with one that fits."""
    from influence_cli.store.sealed import CHECKSUM, sealed

    def put(place: Path) -> None:
        path = place / "run" / "run.json"
        record = {**json.loads(path.read_text()), key: value}
        rest = {k: v for k, v in record.items() if k != CHECKSUM}
        path.write_text(json.dumps(record if key == CHECKSUM else sealed(rest)))

    return put


# ---- sources --------------------------------------------------------------------------------------------------------


def sources() -> Iterator[Case]:
    """CSV, JSONL, JSON, .npz, Excel and folders as no good program writes them."""
    rows = [{"id": f"r{k}", "x": k / 3, "label": k % 2} for k in range(20)]
    lines = "\n".join(json.dumps(r) for r in rows)
    comma = "id,x,label\n" + "\n".join(f"r{k},{k / 3},{k % 2}" for k in range(20))
    files: dict[str, bytes] = {
        "null.jsonl": lines.encode() + b"\nnull\n", "nulls.jsonl": b"null\n" * 20, "list.jsonl": b"[1,2]\n" * 20, "number.jsonl": b"7\n" * 20, "text.jsonl": b'"a"\n' * 20,
        "mixed.jsonl": lines.encode() + b'\n{"id": 3, "x": {"a": [1]}, "label": "z"}\n', "deep.jsonl": b'{"id":1,"x":' + b"[" * 5000 + b"]" * 5000 + b',"label":0}\n', "surrogate.jsonl": b'{"id":"\\ud800","x":1,"label":0}\n' * 3,
        "nan.jsonl": b'{"id":"a","x":NaN,"label":0}\n{"id":"b","x":Infinity,"label":1}\n', "big.jsonl": b'{"id":"a","x":1' + b"0" * 400 + b',"label":0}\n' * 2, "empty.jsonl": b"", "blank.jsonl": b"\n\n\n", "dupe.jsonl": b'{"id":"a","id":"b","x":1,"label":0}\n' * 2,
        "cut.jsonl": lines.encode()[:-5], "bom.jsonl": b"\xef\xbb\xbf" + lines.encode(), "utf16.jsonl": lines.encode("utf-16"), "nul.jsonl": lines.encode().replace(b"r3", b"r\0"), "int64.jsonl": b'{"id":"a","x":99999999999999999999,"label":0}\n' * 2,
        "null.json": b"null", "list.json": b"[]", "nulls.json": b"[null, null]", "object.json": b'{"a": 1}', "deep.json": b"[" * 100_000, "numbers.json": b"[1, 2, 3]", "good.json": json.dumps(rows).encode(),
        "empty.csv": b"", "header.csv": b"id,x,label\n", "one.csv": b"id,x,label\na,1,0\n", "nul.csv": comma.encode().replace(b"r3", b"r\0"), "quote.csv": b'id,x,label\n"a,1,0\nb,2,1\n', "ragged.csv": b"id,x,label\na,1\nb,2,1,4\n",
        "latin.csv": comma.replace("r3", "caf\xe9").encode("latin-1"), "utf16.csv": comma.encode("utf-16"), "utf16be.csv": comma.encode("utf-16-be"), "utf32.csv": comma.encode("utf-32"), "twins.csv": comma.replace("id,x", "x,x").encode(), "unnamed.csv": comma.replace("id,x", ",").encode(),
        "long.csv": b"id,x,label\n" + b"a" * 10_000_000 + b",1,0\nb,2,1\n", "wide.csv": (",".join(f"c{k}" for k in range(3000)) + ",label\n" + "\n".join(",".join(["1"] * 3000) + f",{k % 2}" for k in range(4))).encode(), "cr.csv": comma.replace("\n", "\r").encode(), "tabs.tsv": comma.encode(),
        "formula.csv": comma.replace("r3", "=1+1").encode(), "binary.csv": bytes(range(256)) * 50, "inf.csv": comma.replace("0.0", "inf").encode(), "hex.csv": comma.replace("r3", "0x1F").encode(), "same.csv": b"id,x,label\n" + b"a,1,0\n" * 20,
        "not.npz": b"PK\x03\x04" + bytes(200), "empty.npz": _zip({}), "code.npz": _npz(np.array([_Payload()], dtype=object)), "scalar.npz": _npz(np.array(3)), "text.npz": _npz(np.array(["a", "b"])), "bomb.npz": _zip({"x.npy": _npy(np.zeros(1), (2**40,))}),
        "negative.npz": _zip({"x.npy": _npy(np.zeros(1), (-1,))}), "huge.npz": _zip({"x.npy": _npy(np.zeros(1), (2**62, 2**62))}), "void.npz": _npz(np.zeros(3, dtype="V8")), "record.npz": _npz(np.zeros(3, dtype="i4,f4")), "zeros.npz": _zip({"x.npy": bytes(1 << 27)}),
        "not.xlsx": b"PK\x03\x04" + bytes(100), "empty.xlsx": _zip({"xl/workbook.xml": b""}), "entity.xlsx": _zip({"xl/workbook.xml": b'<!DOCTYPE a [<!ENTITY b "x">]><a>&b;</a>', "[Content_Types].xml": b"<a/>"}), "old.xls": b"\xd0\xcf\x11\xe0" + bytes(600), "none.ods": _zip({"mimetype": b"x"}),
        "not.parquet": b"PAR1" + bytes(50) + b"PAR1", "short.parquet": b"PAR1", "magic.parquet": b"PAR1" + b"\xff" * 20 + struct.pack("<I", 2**31 - 1) + b"PAR1", "other.txt": comma.encode(), "noname": comma.encode(),
        "pickle.pkl": pickle.dumps(_Payload()), "pickle.csv": pickle.dumps(_Payload()), "pickle.npz": pickle.dumps(_Payload()),
    }  # fmt: skip
    for name, data in files.items():
        yield (
            f"source {name}",
            (lambda place, name=name, data=data: (place / name).write_bytes(data)),
            ("manifest", name, *INGEST),
        )
    for name, make in {
        "empty": lambda p: (p / "f").mkdir(),
        "links": _links,
        "pipes": lambda p: ((p / "f").mkdir(), os.mkfifo(p / "f" / "a.png")),
        "loop": lambda p: ((p / "f" / "a").mkdir(parents=True), (p / "f" / "a" / "b").symlink_to(p / "f")),
    }.items():
        yield f"source folder {name}", make, ("manifest", "f", *INGEST)
    yield "source hub folder", _hub_folder, ("manifest", "f", *INGEST)


def _links(place: Path) -> None:
    for c in "ab":
        (place / "f" / c).mkdir(parents=True)
        (place / "f" / c / "x.png").symlink_to("/etc/passwd")
        (place / "f" / c / "y.png").symlink_to("/dev/zero")


def _hub_folder(place: Path) -> None:
    (place / "f").mkdir()
    (place / "f" / "dataset_info.json").write_text('{"features": {"x": {"_type": "__import__"}}}')
    (place / "f" / "state.json").write_text('{"_data_files": [{"filename": "../../../../etc/passwd"}]}')


def _npz(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, x=array, y=np.zeros(len(array) if array.ndim else 1, np.int64))
    return out.getvalue()


def _npy(array: np.ndarray, shape: tuple[int, ...]) -> bytes:
    """A .npy whose header says another shape than its data have."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return out.getvalue() + array.tobytes()


# ---- settings -------------------------------------------------------------------------------------------------------


def settings() -> Iterator[Case]:
    """TOML, variables of the environment, --set, budgets, and numbers that nobody means."""
    dry = ("score", "m.parquet", "--checkpoint", "run", "--no-store", "-n")
    tomls: dict[str, bytes] = {
        "no TOML": b"this is none", "not UTF-8": b'a = "\xff"', "empty": b"", "a list": b"score = [1, 2]", "deep": b"a = " + b"[" * 3000 + b"]" * 3000, "unknown": b"nonsense = 1",
        "types": b'[score]\nseed = "x"\nbatch_size = []\nmethod = 3', "date": b"[score]\nseed = 1979-05-27", "negative": b"[score]\nbatch_size = -1", "nan": b"[method.exact]\ndamping = nan",
        "huge": b"[score]\nseed = " + b"9" * 400, "nul": b"a = \"\\u0000\"", "method": b"[method]\nip = 3", "no such method": b"[method.none]\na = 1", "bool": b"[score]\nseed = true",
        "long": b"a" * 10**6 + b" = 1", "table": b"[score.store]\na = 1", "dotted": b"score.method.x = 1",
    }  # fmt: skip
    for name, data in tomls.items():
        yield f"TOML {name}", (lambda place, data=data: (place / "influence.toml").write_bytes(data)), dry
    odd = (
        "",
        " ",
        "x",
        "-1",
        "0",
        "1e9",
        "nan",
        "inf",
        "1e400",
        "9" * 400,
        "\u0663",
        "1,1",
        "true",
        "[1]",
        "0x10",
        "1_000",
    )
    for flag in (
        "--seed",
        "--batch-size",
        "--workers",
        "--input-size",
        "--num-classes",
        "--top",
        "--mean",
        "--crop",
        "--device",
        "--precision",
        "--params",
        "--method",
        "--objective",
        "--loss",
        "--engine",
    ):
        for value in odd:
            yield f"{flag} {value[:12]!r}", _nothing, (*dry, flag, value)
    for option in (
        "ip-ensemble.members=1000000000",
        "ip-ensemble.members=-1",
        "ip-ensemble.rate=nan",
        "exact.damping=inf",
        "cg.tolerance=0",
        "lissa.depth=1e9",
        "bif.draws=1000000000",
        "bif.chains=0",
        "gex.members=1000000000",
        "knn.k=0",
        "knn.k=-1",
        "trak.dim=1e12",
        "trak.dim=0",
        "arnoldi.k=1000000000",
        "=",
        "x",
        "ip",
        "ip.",
        ".x=1",
        "ip.x=1",
        "ip-ensemble.members=",
        "ip-ensemble.members=\u0663",
        "ip-ensemble.members=[1]",
        "utility.x=1",
    ):
        method = option.partition(".")[0]
        named = (
            ("--method", method)
            if method in ("ip-ensemble", "exact", "cg", "lissa", "bif", "gex", "knn", "trak", "arnoldi")
            else ()
        )
        yield f"--set {option}", _nothing, (*dry, *named, "--set", option)
    for budget in (
        "101%",
        "-1%",
        "0",
        "0%",
        "nan",
        "nan%",
        "inf",
        "1e9",
        "-5",
        "",
        "%",
        "5%%",
        "5 %",
        "\u0665%",
        "1e-9%",
        "9" * 400,
        "0.5",
        "1e400%",
    ):
        for more in (("--budget", budget), ("--by", budget), ("--seed", budget), ("--decisions", budget)):
            yield f"curate {more[0]} {budget[:12]!r}", _nothing, ("curate", "s.parquet", *more, "-o", "out.parquet")
        yield (
            f"evaluate --budget {budget[:12]!r}",
            _nothing,
            ("evaluate", "s.parquet", "--budget", budget, "--clean-label", "label"),
        )
        yield (
            f"gate {budget[:12]!r}",
            _nothing,
            ("curate", "l.parquet", "--check", "--false-flag", budget, "--max-flagged", budget),
        )
        yield (
            f"retrain --epochs {budget[:12]!r}",
            _nothing,
            ("retrain", "m.parquet", "--model", "mlp:4", "--epochs", budget, "-n", "-o", "trained"),
        )
    for model in (
        "mlp:",
        "mlp:-1",
        "mlp:0",
        "mlp:1e9",
        "mlp:999999999999",
        "mlp:4,4,",
        "linear:1",
        "timm:",
        "hf:",
        "hf:.",
        "torchvision:",
        "python:",
        "python:os:system",
        "python:x",
        "",
        "\0",
        "../x",
        "mlp:" + "4," * 5000 + "4",
    ):
        yield (
            f"--model {model[:20]!r}",
            _nothing,
            ("retrain", "m.parquet", "--model", model, "--epochs", "1", "-n", "-o", "trained"),
        )
    values: tuple[Any, ...] = (
        {"decisions": None},
        {"decisions": [None]},
        {"decisions": [{"id": 3}]},
        {"decisions": [{"id": "r000", "row_key": "x"}]},
        [],
        [None],
        [{"data": None}],
        [{"annotations": [None]}],
        7,
        None,
        {"decisions": [{"id": "r000", "row_key": "0" * 32, "decision": "relabel", "label": 10**30}]},
    )
    for value in values:
        yield (
            f"decisions {str(value)[:40]}",
            (lambda place, v=value: (place / "d.json").write_text(json.dumps(v))),
            ("curate", "s.parquet", "--decisions", "d.json", "-o", "out.parquet"),
        )
        yield (
            f"baseline {str(value)[:40]}",
            (lambda place, v=value: (place / "b.jsonl").write_text(json.dumps(v))),
            ("curate", "l.parquet", "--check", "--baseline", "b.jsonl", "--false-flag", "20%", "--max-flagged", "40"),
        )


def _nothing(place: Path) -> None:
    """Only the command is bad."""


# ---- mutations of whole files ---------------------------------------------------------------------------------------


def mutations(count: int, seed: int = 0) -> Iterator[Case]:
    """Seeded mutations of good files: bytes changed, cut, doubled, filled with what parsers trip over."""
    rng = np.random.default_rng(seed)
    where: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("x.parquet", SCORE), ("w.safetensors", ("score", "m.parquet", "--model", "mlp:4", "--checkpoint", "w.safetensors", "--method", "loss", "--no-store", "-o", "out.parquet")),
        ("source.csv", ("manifest", "source.csv", *INGEST)), ("influence.toml", ("score", "m.parquet", "--checkpoint", "run", "--no-store", "-n")),
        ("s.parquet", ("curate", "s.parquet", "-o", "out.parquet")), ("d.json", ("curate", "s.parquet", "--decisions", "d.json", "-o", "out.parquet")),
        ("w.pt", ("score", "m.parquet", "--model", "mlp:4", "--checkpoint", "w.pt", "--method", "loss", "--no-store", "-o", "out.parquet")), ("r.jsonl", ("manifest", "r.jsonl", *INGEST)), ("r.npz", ("manifest", "r.npz", *INGEST)),
    )  # fmt: skip
    for k in range(count):
        name, arguments = where[k % len(where)]
        yield f"{name} mutated, seed {seed}, {k}", _mutated(name, int(rng.integers(2**31))), arguments


TRIPS = (
    b"\0",
    b"\xff" * 8,
    b"[" * 64,
    b'"',
    b"\n",
    b"NaN",
    b"-1",
    b"1e999",
    b"\x7f\xff\xff\xff",
    b"\x80",
    b",",
    b"null",
    b"{}",
    b"\xed\xa0\x80",
)


def _mutated(name: str, seed: int) -> Callable[[Path], None]:
    def put(place: Path) -> None:
        rng, data = np.random.default_rng(seed), bytearray(_good(place, name))
        for _ in range(int(rng.integers(1, 6))):
            at, what = int(rng.integers(0, max(len(data), 1))), int(rng.integers(5))
            if what == 0 and data:
                data[min(at, len(data) - 1)] = int(rng.integers(256))
            elif what == 1:
                data[at:at] = TRIPS[int(rng.integers(len(TRIPS)))]
            elif what == 2:
                del data[at : at + int(rng.integers(1, 30))]
            elif what == 3:
                data[at:at] = data[at : at + int(rng.integers(1, 200))]
            elif data:
                data[at : at + 8] = struct.pack(
                    "<Q",
                    int(rng.choice([0, 1, 2**31, 2**63 - 1, 2**64 - 1, len(data)], shuffle=False))
                    if False
                    else (0, 1, 2**31, 2**63, 2**64 - 1)[int(rng.integers(5))],
                )
        (place / name).write_bytes(data)

    return put


def _good(place: Path, name: str) -> bytes:
    if name == "x.parquet":
        return (place / "m.parquet").read_bytes()
    if name == "w.safetensors":
        return (place / "run" / "model.safetensors").read_bytes()
    if name == "influence.toml":
        return b'[score]\nmethod = ["ip", "loss"]\nseed = 3\n[method.ip-ensemble]\nmembers = 2\n'
    if name == "w.pt":
        import torch
        from safetensors.torch import load

        out = io.BytesIO()
        torch.save({"state_dict": load((place / "run" / "model.safetensors").read_bytes()), "epoch": 3}, out)
        return out.getvalue()
    if name == "r.jsonl":
        return "\n".join(
            json.dumps({"id": f"r{k}", "x": k / 3, "t": "a b", "label": k % 2}) for k in range(20)
        ).encode()
    if name == "r.npz":
        return _npz(np.arange(40.0).reshape(20, 2))
    return (place / name).read_bytes()


CORPUS: dict[str, Callable[[], Iterator[Case]]] = {
    "manifests": manifests, "images": images, "checkpoints": checkpoints, "sources": sources, "settings": settings,
    "commands": commands,
}  # fmt: skip


def bad_inputs(tally: Tally, kinds: tuple[str, ...], every: int = 1, mutated: int = 0, seed: int = 0) -> None:
    """Every case of these kinds, or one of so many, and so many mutations."""
    for kind in kinds:
        for k, case in enumerate(CORPUS[kind]()):
            if k % every == seed % every:
                try_case(tally, kind, case)
    for case in mutations(mutated, seed):
        try_case(tally, "mutations", case)


def try_case(tally: Tally, kind: str, case: Case) -> None:
    name, put, arguments = case
    with copy_of(_few_files()) as place:
        try:
            put(place)
        except (
            pa.ArrowException,
            ValueError,
            TypeError,
            OSError,
            KeyError,
        ):  # Arrow or Pillow does not write such a file
            tally.ended["not written"] += 1
            return
        ended = cli(*arguments, cwd=place, cpu=CPU_SECONDS)
        wrong = refused(ended)
        if (place / RUN_CODE).exists():
            wrong = "code was run"
        tally.count(kind, name, wrong, "signal" if ended.code is None else f"exit {ended.code}")


def _few_files() -> Path:
    """The scene without its store: what a case may change."""
    place = scene.scored().with_name("few")
    if not place.exists():
        shutil.copytree(scene.scored(), place, ignore=shutil.ignore_patterns("st", "arms"))
    return place
