"""Numerics: values at the edges of floating point, degenerate data, and the same scores however they are computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.cases import Example, draw_features, examples, feature_table, named
from tests.hardening import scene
from tests.hardening.harness import Ended, Tally, cli, copy_of, refused

METHODS = ("ip", "ip-ensemble", "loss", "self-tracin", "ekfac", "exact", "datainf", "cg", "trak", "knn")
LAST = ("--params", "last")


def _score(*more: str, method: str = "ip", manifest: str = "x.parquet") -> tuple[str, ...]:
    return (
        "score",
        manifest,
        *scene.ABOUT[1:3],
        "--device",
        "cpu",
        "--no-store",
        "--method",
        method,
        *more,
        "-o",
        "x.out.parquet",
    )


def _scores(place: Path) -> np.ndarray:
    return np.array(pq.read_table(place / "x.out.parquet")["score"].to_pylist(), float)


def _fault(place: Path, ended: Ended) -> str | None:
    """What is wrong: a refusal not in our words, or a score that is neither a number nor null."""
    if (wrong := refused(ended)) is not None:
        return wrong
    if ended.code == 0 and (place / "x.out.parquet").exists() and np.isinf(_scores(place)).any():
        return "an infinite score"
    return None


def rows(change: Callable[[list[Example]], list[Example]], **columns: Any) -> pa.Table:
    """The manifest of the scene with its rows changed."""
    return feature_table(change(examples()), **columns)


def _scaled(factor: float) -> pa.Table:
    every = [Example(e.id, tuple(v * factor for v in e.features), e.label, e.split) for e in examples()]
    return feature_table(every)


def _one(value: float, at: int = 0) -> pa.Table:
    every = examples()
    every[at] = Example(every[at].id, (value,) * 5, every[at].label, every[at].split)
    return feature_table(every)


def _some(value: float, which: Callable[[int, Example], bool]) -> pa.Table:
    every = [Example(e.id, (value,) * 5, e.label, e.split) if which(k, e) else e for k, e in enumerate(examples())]
    return feature_table(every)


DATA: dict[str, Callable[[], pa.Table]] = {
    "a batch of 3e38": lambda: _some(3e38, lambda k, _: k < 9), "every train row of 3e38": lambda: _some(3e38, lambda _, e: e.split == "train"),
    "every target row of 3e38": lambda: _some(3e38, lambda _, e: e.split == "val"),
    "one train row of 1e30": lambda: _one(1e30), "one train row of 3e38": lambda: _one(3e38), "one target row of 1e30": lambda: _one(1e30, 41),
    "denormals": lambda: _scaled(1e-42), "all of 1e30": lambda: _scaled(1e30), "all zero": lambda: _scaled(0.0), "all of 1e-30": lambda: _scaled(1e-30),
    "a class of one row": lambda: rows(lambda r: [*[e for e in r if e.split != "train" or e.label != 2], next(e for e in r if e.label == 2)]),
    "a class without target rows": lambda: rows(lambda r: [e for e in r if e.split == "train" or e.label != 2]),
    "one target row": lambda: rows(lambda r: [*[e for e in r if e.split == "train"], r[41]]),
    "one train row": lambda: rows(lambda r: r[39:]), "two train rows": lambda: rows(lambda r: r[38:]), "copies": lambda: rows(lambda r: [Example(f"c{k}", r[0].features, r[0].label, e.split) for k, e in enumerate(r)]),
    "weights all 0": lambda: feature_table(examples(), weight=[0.0] * 64), "weights of 1e30": lambda: feature_table(examples(), weight=[1e30] * 64),
    "weights of 1e-300": lambda: feature_table(examples(), weight=[1e-300] * 64), "one weight of 0": lambda: feature_table(examples(), weight=[0.0, *[1.0] * 63]),
}  # fmt: skip


def edges(tally: Tally, methods: tuple[str, ...] = METHODS) -> None:
    """Every odd data set by every method: numbers, null, or an error in our words."""
    for name, table in DATA.items():
        for method in methods:
            with copy_of(scene.bare()) as place:
                pq.write_table(table(), place / "x.parquet")
                ended = cli(
                    *_score(*(LAST if method in ("ekfac", "exact", "datainf", "cg", "trak") else ()), method=method),
                    cwd=place,
                )
                tally.count("odd data", f"{name} by {method}", _fault(place, ended))
    for name, table in DATA.items():
        with copy_of(scene.bare()) as place:
            pq.write_table(table(), place / "x.parquet")
            for model in ("linear", "mlp:4"):
                train = (
                    "retrain",
                    "x.parquet",
                    "--model",
                    model,
                    "--epochs",
                    "2",
                    "--device",
                    "cpu",
                    "-o",
                    f"trained-{model[0]}",
                )
                tally.count("odd data trained on", f"{name}, {model}", refused(cli(*train, cwd=place)))


def members(tally: Tally) -> None:
    """A member whose weights are not finite, among others that are."""
    with copy_of(scene.bare()) as place:
        (place / "x.parquet").write_bytes((place / "m.parquet").read_bytes())
        for method, option in (
            ("ip-ensemble", "ip-ensemble.rate=0.999999"),
            ("gex", "gex.rate=1e30"),
            ("gex-ip", "gex-ip.rate=1e30"),
            ("source", "source.segments=1"),
        ):
            asked = _score(
                "--set", option, *(("--set", f"{method}.members=2") if "rate" in option else ()), method=method
            )
            tally.count("members that diverge", method, _fault(place, cli(*asked, cwd=place)))


def weights(tally: Tally) -> None:
    """Checkpoints of other precisions and with values that are none."""
    import torch
    from safetensors.torch import load, save

    def changed(change: Callable[[Any], Any]) -> Callable[[Path], None]:
        return lambda place: (
            (place / "w.safetensors").write_bytes(
                save({k: change(v) for k, v in load((place / "run" / "model.safetensors").read_bytes()).items()})
            )
            and None
        )

    def one(value: float) -> Callable[[Any], Any]:
        def put(t: Any) -> Any:
            t = t.clone()
            t.view(-1)[0] = value
            return t

        return put

    cases: dict[str, Callable[[Any], Any]] = {
        "one NaN a tensor": one(float("nan")), "one Inf a tensor": one(float("inf")), "one 3e38 a tensor": one(3e38),
        "fp16": lambda t: t.half(), "bf16": lambda t: t.bfloat16(), "fp64": lambda t: t.double(), "NaN": lambda t: t * float("nan"), "Inf": lambda t: t + float("inf"),
        "1e30": lambda t: t * 1e30, "denormal": lambda t: t * 1e-42, "zero": torch.zeros_like, "perfectly fitted": lambda t: t * 1e4,
    }  # fmt: skip
    for name, change in cases.items():
        for method in ("ip", "loss", "ekfac"):
            with copy_of(scene.bare()) as place:
                changed(change)(place)
                (place / "x.parquet").write_bytes((place / "m.parquet").read_bytes())
                asked = _score("--model", "mlp:4", *LAST, method=method)
                asked = tuple("w.safetensors" if a == "run" else a for a in asked)
                tally.count("checkpoints", f"{name} by {method}", _fault(place, cli(*asked, cwd=place)))


def many_classes(tally: Tally) -> None:
    """10,000 classes."""
    every = [Example(f"r{k}", draw_features(k), k * 9999 // 63, "train" if k < 50 else "val") for k in range(64)]
    with copy_of(scene.bare()) as place:
        pq.write_table(named(feature_table(every), 10_000), place / "x.parquet")
        train = ("retrain", "x.parquet", "--model", "linear", "--epochs", "1", "--device", "cpu", "-o", "run10")
        tally.count("10,000 classes", "retrain", refused(cli(*train, cwd=place)))
        for method in ("ip", "loss", "margin", "self-tracin"):
            asked = tuple("run10" if a == "run" else a for a in _score(method=method))
            tally.count("10,000 classes", method, _fault(place, cli(*asked, cwd=place, cpu=60)))


def one_bad_row(tally: Tally) -> None:
    """A row whose loss is not finite has no score, and leaves those of the others as they are without it."""
    for method in METHODS:
        if method == "knn":
            continue  # it looks for neighbours among all rows
        with copy_of(scene.bare()) as place:
            pq.write_table(_one(3e38), place / "x.parquet")
            pq.write_table(_one(3e38).slice(1), place / "few.parquet")
            more = LAST if method in ("ekfac", "exact", "datainf", "cg", "trak") else ()
            found = []
            for manifest in ("x.parquet", "few.parquet"):
                ended = cli(*_score(*more, method=method, manifest=manifest), cwd=place)
                found.append(_scores(place) if ended.code == 0 else None)
            wrong = None
            if found[0] is not None and found[1] is not None and not np.isfinite(found[0][0]):
                scale = np.nanmax(np.abs(found[1]))
                apart = np.nanmax(np.abs(found[0][1:] - found[1])) / scale
                wrong = f"others move by {apart:.2g}" if not apart <= 0.05 else None
            tally.count("one row not finite", method, wrong)


def same_however(tally: Tally) -> None:
    """The same scores in every batch size, number of threads and order of rows."""
    for method in ("ip", "ip-ensemble", "self-tracin", "ekfac", "exact", "datainf", "loss"):
        with copy_of(scene.bare()) as place:
            (place / "x.parquet").write_bytes((place / "m.parquet").read_bytes())
            table = pq.read_table(place / "m.parquet")
            order = np.random.default_rng(0).permutation(len(table))
            pq.write_table(table.take(order), place / "y.parquet")
            more = LAST if method in ("ekfac", "exact", "datainf") else ()
            assert cli(*_score(*more, method=method), cwd=place).code == 0
            wanted = dict(zip(pq.read_table(place / "x.out.parquet")["id"].to_pylist(), _scores(place), strict=True))
            for how in (
                ("--batch-size", "1"),
                ("--batch-size", "7"),
                ("--workers", "1"),
                ("--workers", "4"),
                ("rows",),
            ):
                asked = _score(
                    *more,
                    *(how if how != ("rows",) else ()),
                    method=method,
                    manifest="x.parquet" if how != ("rows",) else "y.parquet",
                )
                ended = cli(*asked, cwd=place)
                found = dict(zip(pq.read_table(place / "x.out.parquet")["id"].to_pylist(), _scores(place), strict=True))
                scale = max(map(abs, wanted.values()))
                apart = max(abs(found[i] - wanted[i]) for i in wanted) / scale
                wrong = None if ended.code == 0 and apart <= 1e-5 else f"{ended.how}, apart by {apart:.2g}"
                tally.count("the same however", f"{method} {' '.join(how)}", wrong)
