"""Many at once on one store: writers with overlapping rows, beside gc, verify, ls and readers; processes and threads."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from influence_cli.cli.main import run
from influence_cli.store import Store
from influence_cli.store.maintenance import collect, examine, list_entries
from tests.cases import examples, feature_table, write
from tests.hardening import scene
from tests.hardening.crash import _same, small_shards
from tests.hardening.harness import Tally, cli, copy_of

WRITERS = 8
OTHERS = ("gc", "verify", "ls", "gc")


def _manifest(place: Path, k: int) -> str:
    """A manifest with half of the train rows, in an order of its own, and all target rows."""
    rng, rows = np.random.default_rng(k), examples()
    chosen = rng.permutation(40)[:20]
    return write(feature_table([rows[int(i)] for i in chosen] + rows[40:]), place / f"w{k}.parquet").name


def _score(manifest: str, k: int) -> tuple[str, ...]:
    methods = (("ip", "loss"), ("ip-ensemble", "loss"), ("self-tracin", "ip"), ("tracin", "loss"))[k % 4]
    named = [word for m in methods for word in ("--method", m)]
    some = ("--set", "ip-ensemble.members=2") if "ip-ensemble" in methods else ()
    return ("score", manifest, *scene.ABOUT[1:3], "--batch-size", str(3 + k % 5), "--device", "cpu", *named, *some)


def _columns(path: Path) -> dict[str, Any]:
    table = pq.read_table(path)
    return {n: c.to_pylist() for n, c in zip(table.column_names, table.columns, strict=True)}


def processes(tally: Tally, rounds: int) -> None:
    """Writers and those who look after the store as processes, all beside each other, in so many rounds."""
    small_shards()
    with copy_of(scene.bare()) as place:
        asked = [_score(_manifest(place, k), k) for k in range(WRITERS)]
        wanted = []
        for k, arguments in enumerate(asked):
            alone = cli(*arguments, "--store", f"alone{k}", "-o", f"alone{k}.parquet", cwd=place)
            assert alone.code == 0, alone.err
            wanted.append(_columns(place / f"alone{k}.parquet"))
        for n in range(rounds):
            store = f"st{n % 3}"  # a new one, and one that others have filled
            pids = {}
            for k, arguments in enumerate(asked):
                pids[_start(place, [*arguments, "--store", store, "-o", f"x{k}.parquet"], f"writer {k}")] = (
                    f"writer {k}"
                )
            for i, other in enumerate(OTHERS):
                pids[_start(place, ["cache", other, "--store", store], f"{other} {i}", again=6)] = f"{other} {i}"
            while pids:
                pid, status = os.wait()
                name = pids.pop(pid, None)
                if name is None:
                    continue
                said = (place / f"{name}.err").read_text()
                wrong = None if status == 0 and "damaged" not in said else f"status {status}: {said[-300:]}"
                if wrong is None and name.startswith("writer"):
                    k = int(name.split()[1])
                    wrong = None if _same(_columns(place / f"x{k}.parquet"), wanted[k]) else "another score"
                tally.count(
                    "writers as processes" if name.startswith("writer") else "gc, verify and ls beside", name, wrong
                )
            for k, arguments in enumerate(asked):
                plan = cli(*arguments, "--store", store, "-n", "--json", cwd=place)
                lost = '"rows_to_compute": 0' not in plan.out.decode()
                tally.count("rows kept", f"writer {k}", f"{plan.how} {plan.out[:200]!r}" if lost else None)
            damaged = examine(place / store).damaged
            tally.count("verify afterwards", store, "; ".join(damaged) or None)


def _start(place: Path, arguments: list[str], name: str, again: int = 1) -> int:
    """The pid of a fork that runs a command, ``again`` times, with its errors in a file."""
    pid = os.fork()
    if pid:
        return pid
    code = 97
    try:
        os.chdir(place)
        err = os.open(f"{name}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(err, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = max(run(list(arguments)) for _ in range(again))
    finally:
        os._exit(code)


def threads(tally: Tally, seconds: float, root: Path) -> None:
    """Writers, readers and those who look after the store as threads of one process, for so long."""
    end, wrong = time.monotonic() + seconds, list[str]()
    counts = {name: 0 for name in ("write", "read", "look after")}

    def key(i: int) -> bytes:
        return i.to_bytes(16, "big")

    def writer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while time.monotonic() < end:
            some = rng.choice(2000, 40, replace=False)
            keys = np.frombuffer(b"".join(key(int(i)) for i in some), np.uint8).reshape(-1, 16)
            folder = Store(root).folder("outputs", "a" * 32)
            missing = folder.missing(keys)
            if missing.any():
                folder.write(keys[missing], {"logits": np.repeat(some[missing][:, None], 3, 1).astype(np.float32)})
            if (folder.read(keys)["logits"][:, 0] != some).any():
                wrong.append("another value")
            Store(root).directions.write(f"{seed:032x}", {"x": np.full(3, seed, np.float32)}, {"phi": 1.0, "fit": "f"})
            Store(root).write_timing("ip", 1.0)
            counts["write"] += 1

    def reader() -> None:
        while time.monotonic() < end:
            keys, values = Store(root).folder("outputs", "a" * 32).load_all()
            named = [int.from_bytes(k.tobytes(), "big") for k in keys]
            if len(keys) and (values["logits"][:, 0] != np.array(named)).any():
                wrong.append("another value")
            counts["read"] += 1

    def keeper(which: int) -> None:
        while time.monotonic() < end:
            (collect(root, None), wrong.extend(examine(root).damaged), list_entries(root))[which]
            counts["look after"] += 1

    def told(work: Any, *given: Any) -> None:
        try:
            work(*given)
        except BaseException as error:
            wrong.append(f"{type(error).__name__}: {error}")

    works = [threading.Thread(target=told, args=(writer, k)) for k in range(WRITERS)]
    works += [
        threading.Thread(target=told, args=(reader,)),
        *(threading.Thread(target=told, args=(keeper, k)) for k in range(3)),
    ]
    for work in works:
        work.start()
    for work in works:
        work.join()
    for name, n in counts.items():
        tally.tried[f"threads: {name}"] += n
    for sentence in wrong:
        tally.count("threads", "one process", sentence)
