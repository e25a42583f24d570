"""Damage: flipped bits, cut ends, zeroed blocks and exchanged files, over every kind of file that is read back.

A command that reads a damaged file gives what it gave before, since it does not need the file or has computed its
content again, or it refuses, naming the file; it never gives another number.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.hardening import scene
from tests.hardening.crash import _same
from tests.hardening.harness import Ended, Tally, cli, copy_of, refused

HOW = ("bit flipped", "byte changed", "cut off", "zeroed", "longer", "exchanged")
NAMED_OF_RUN = ("model.safetensors", "run.json", "checkpoints", "epochs", "arms", "metrics.json")
ALIKE = ("st", "run")  # folders whose files know their own names: another's file in their place is damage


@dataclass(frozen=True)
class Reader:
    """A command that reads files back, and what it gives."""

    arguments: tuple[str, ...]
    result: Callable[[Path, Ended], Any]


def _table(name: str) -> Callable[[Path, Ended], Any]:
    def read(place: Path, ended: Ended) -> Any:
        table = pq.read_table(place / name)
        return {n: c.to_pylist() for n, c in zip(table.column_names, table.columns, strict=True)}

    return read


def _verdict(place: Path, ended: Ended) -> Any:
    said = json.loads(ended.out)
    return {"flagged": sorted(row["id"] for row in said["rows"])}


LAST = ("--method", "ekfac", "--params", "last")
READERS = {
    "scores": Reader(("score", *scene.ABOUT, *scene.METHODS, "-o", "x.parquet"), _table("x.parquet")),
    "curvature": Reader(
        ("score", "few.parquet", *scene.ABOUT[1:], *LAST, "--rows", "full", "--per-target", "-o", "p.parquet"),
        _table("p.parquet"),
    ),
    "samplers": Reader(("score", *scene.ABOUT, *scene.BIF, "-o", "x.parquet"), _table("x.parquet")),
    "trajectory": Reader(
        ("score", *scene.ABOUT, "--method", "tracin", "--method", "aum", "--method", "self-tracin", "-o", "x.parquet"),
        _table("x.parquet"),
    ),
    "curated": Reader(("curate", "s.parquet", "--budget", "10%", "-o", "x.parquet"), _table("x.parquet")),
    "undone": Reader(
        ("curate", "e.parquet", "--undo", "--manifest", "c.parquet", "-o", "x.parquet"), _table("x.parquet")
    ),
    "rescored": Reader(
        ("score", "c.parquet", *scene.ABOUT[1:], "--method", "loss", "-o", "x.parquet"), _table("x.parquet")
    ),
    "gate": Reader(
        ("curate", "l.parquet", "--check", "--baseline", "b.jsonl", "--false-flag", "20%", "--format", "json"), _verdict
    ),
    "decided": Reader(("curate", "s.parquet", "--decisions", "d.json", "-o", "x.parquet"), _table("x.parquet")),
}
OF_KIND = {  # of a kind's folder in the store: what reads it
    "factors": "curvature", "gradients": "curvature", "top_rows": "curvature", "chains": "samplers", "traces": "samplers",
    "row_values": "trajectory",
}  # fmt: skip
OF_FILE = {
    "s.parquet": ("curated", "decided"), "e.parquet": ("undone",), "c.parquet": ("undone", "rescored"),
    "l.parquet": ("gate",), "b.jsonl": ("gate",), "d.json": ("decided",),
}  # fmt: skip


def readers_of(path: Path) -> tuple[str, ...]:
    """Which commands read a file of the scene back."""
    if path.parts[0] == "st":
        own = OF_KIND.get(path.parts[1] if len(path.parts) > 1 else "", "scores")
        return (
            ("curvature", "scores")
            if own == "scores" and path.parts[1] in ("outputs", "tangents", "directions")
            else (own,)
        )
    if path.parts[0] == "run":
        return ("trajectory",) if path.parts[1] in ("checkpoints", "epochs") else ("scores", "trajectory")
    return OF_FILE[path.name]


def full() -> Path:
    """The scene with a store that every reader has filled."""
    place = scene.scored().with_name("full")
    if not place.exists():
        shutil.copytree(scene.scored(), place)
        for name in ("curvature", "samplers", "trajectory"):
            scene.done(*READERS[name].arguments, cwd=place)
        for name in ("x.parquet", "p.parquet"):
            (place / name).unlink()
    return place


def files_read_back(place: Path) -> list[Path]:
    """Every file of the scene that some command reads back, by its kind in turn."""
    found = [p.relative_to(place) for p in sorted(place.rglob("*")) if p.is_file()]
    return [
        p
        for p in found
        if (p.parts[0] == "st" and p.name not in ("spec.json", "CACHEDIR.TAG", "influence-store"))
        or (p.parts[0] == "run" and "arms" not in p.parts)
        or p.name in OF_FILE
    ]


def kind_of(path: Path) -> str:
    """What sort of file it is, for the table."""
    if path.parts[0] == "st":
        return f"store: {path.parts[1] if len(path.parts) > 2 else path.name}"
    if path.parts[0] == "run":
        return f"run folder: {path.parts[1]}"
    return {"s": "score table", "l": "score table", "e": "table of edits", "c": "curated manifest"}.get(
        path.stem, {"b": "baseline", "d": "decisions"}.get(path.stem, path.name)
    )


def damage(path: Path, how: str, others: list[Path], rng: np.random.Generator) -> bool:
    """Damage a file in one way; False where that leaves it as it was."""
    raw = path.read_bytes()
    data = bytearray(raw)
    at = int(rng.integers(0, max(len(data), 1)))
    if how == "bit flipped" and data:
        data[at] ^= 1 << int(rng.integers(8))
    elif how == "byte changed" and data:
        data[at] = int(rng.integers(256))
    elif how == "cut off":
        data = data[:at]
    elif how == "zeroed":
        end = min(len(data), at + int(rng.integers(1, 200)))
        data[at:end] = bytes(end - at)
    elif how == "longer":
        data += bytes(rng.integers(0, 256, int(rng.integers(1, 50)), dtype=np.uint8))
    elif how == "exchanged" and others:
        data = bytearray(others[int(rng.integers(len(others)))].read_bytes())
    path.write_bytes(data)
    return bytes(data) != raw


def _wrong(name: str, file: Path, place: Path, ended: Ended, wanted: Any) -> tuple[str | None, str]:
    """What a reader did that it must not (None: nothing), and in a word what it did."""
    if (wrong := refused(ended)) is not None:
        return wrong, "fault"
    if ended.code == 2:
        return (None, "refused") if file.name in ended.err else (f"does not name {file.name}: {ended.how}", "fault")
    found = READERS[name].result(place, ended)
    if _same(found, wanted):
        return None, "named, and made again" if "damaged" in ended.err else "the same numbers"
    if name == "gate" and file.name == "b.jsonl" and set(found["flagged"]) >= set(wanted["flagged"]):
        return None, "stricter"  # whole lines are cut off, so that fewer rows are accepted
    return "another result", "fault"


def damages(tally: Tally, count: int, seed: int = 0) -> None:
    """So many damages, every kind of file and every way in turn."""
    rng, template = np.random.default_rng(seed), full()
    wanted = {}
    for name, reader in READERS.items():
        with copy_of(template) as place:
            ended = cli(*reader.arguments, cwd=place)
            assert ended.code in (0, 1), (name, ended)
            wanted[name] = reader.result(place, ended)
    by_kind: dict[str, list[Path]] = {}
    for file in files_read_back(template):
        by_kind.setdefault(kind_of(file), []).append(file)
    kinds, done = sorted(by_kind), 0
    while done < count:
        kind, how = kinds[done % len(kinds)], HOW[(done // len(kinds)) % len(HOW)]
        file = by_kind[kind][int(rng.integers(len(by_kind[kind])))]
        names = readers_of(file)
        name = names[int(rng.integers(len(names)))]
        others = [template / p for p in by_kind[kind] if p != file] if file.parts[0] in ALIKE else []
        done += 1
        with copy_of(template) as place:
            if not damage(place / file, how if how != "exchanged" or others else "byte changed", others, rng):
                data = bytearray((place / file).read_bytes())
                data[-1] ^= 1
                (place / file).write_bytes(data)
            reader = READERS[name]
            ended = cli(*reader.arguments, cwd=place)
            wrong, did = _wrong(name, file, place, ended, wanted[name])
            tally.count(kind, f"{file} {how}, read by {name}", wrong, did)
            if wrong is None and kind.startswith("store"):
                checked = cli("cache", "verify", "--store", "st", cwd=place)
                again = cli(*reader.arguments, cwd=place)
                if (
                    checked.code not in (0, 2)
                    or again.code != 0
                    or not _same(reader.result(place, again), wanted[name])
                ):
                    tally.count(kind, f"{file} {how}, then verify", f"{checked.how}; {again.how}")
