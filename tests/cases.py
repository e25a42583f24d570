"""Small data, small models and ways to run the command line, shared by the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from influence_cli.cli.app import build_app as _build_app
from influence_cli.cli.settings import requests
from influence_cli.data.tables import _spooled
from influence_cli.events import SILENT, Listener, Progress
from influence_cli.model.train.recipe import Recipe
from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.retrain.request import CanaryRequest, RetrainRequest
from influence_cli.stages.retrain.retrain import retrain
from influence_cli.store.maintenance import examine
from tests.opened import Opened, opened

THOROUGH = os.environ.get("THOROUGH", "0") not in ("", "0")  # THOROUGH=1 bash tests/run.sh
QUICK = Recipe(epochs=12, lr=0.1, batch_size=32, warmup=0.0)


def so_many(every: Any, some: Any) -> Any:
    """How much a test tries that takes seconds for each example: ``some`` of ``every``, or all where THOROUGH=1."""
    return every if THOROUGH else some


# ---- what a listener was told -------------------------------------------------------------------------------------


class _Counter(Progress):
    def __init__(self, heard: Heard, what: str) -> None:
        self.heard, self.what = heard, what

    def advance(self, rows: int) -> None:
        if self.what.startswith(self.heard.stop_in):
            self.heard.advances += 1
            if self.heard.advances == self.heard.stop_at and self.heard.stop is not None:
                self.heard.stop()


class Heard(Listener):
    """Keeps what a stage says; calls ``stop`` at the ``stop_at``-th advance of spans that begin with ``stop_in``."""

    def __init__(
        self, stop: Callable[[], None] | None = None, stop_at: int = 1, stop_in: str = "training rows"
    ) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.spans: list[tuple[str, int]] = []
        self.advances = 0
        self.stop, self.stop_at, self.stop_in = stop, stop_at, stop_in

    def note(self, text: str) -> None:
        self.notes.append(text)

    def detail(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Progress]:
        self.spans.append((what, total))
        yield _Counter(self, what)


# ---- manifests ----------------------------------------------------------------------------------------------------


def png(pixels: NDArray[Any]) -> bytes:
    """A PNG of grey pixels u8 [h, w] or colour pixels u8 [h, w, 3]."""
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, format="PNG")
    return out.getvalue()


def named(table: pa.Table, classes: int) -> pa.Table:
    """The table with the names of its classes as schema metadata."""
    names = json.dumps([f"class {c}" for c in range(classes)])
    return table.replace_schema_metadata({"classes": names, "made-by": "tests"})


@functools.cache
def _digits() -> tuple[NDArray[Any], NDArray[Any]]:
    """scikit-learn's digits, which it reads from text every time; nothing writes into them."""
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


@functools.cache  # a table stays as it is, and hundreds of pictures take longer than most tests
def digits_table(train: int = 200, val: int = 60, test: int = 60, flipped: float = 0.15) -> pa.Table:
    """Hand-written digits as 8x8 PNGs; a share of the train labels is wrong and ``clean_label`` knows which."""
    pixels, clean = _digits()
    n = train + val + test
    pixels, clean = pixels[:n].reshape(n, 8, 8) * 15, clean[:n].astype(np.int64)
    rng = np.random.default_rng(7)
    labels = clean.copy()
    wrong = rng.choice(train, round(flipped * train), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    table = pa.table(
        {
            "id": [f"d{k:04d}" for k in range(n)],
            "image": pa.array([png(p) for p in pixels], pa.binary()),
            "label": labels,
            "split": ["train"] * train + ["val"] * val + ["test"] * test,
            "clean_label": clean,
        }
    )
    return named(table, 10)


@dataclass(frozen=True)
class Example:
    """One row of a feature manifest."""

    id: str
    features: tuple[float, ...]
    label: int
    split: str = "train"

    def relabelled(self, classes: int = 3) -> Example:
        """The same row with the next label."""
        return dataclasses.replace(self, label=(self.label + 1) % classes)


def draw_features(seed: int) -> tuple[float, ...]:
    """Five features of one row, from its own seed."""
    return tuple(float(np.float32(v)) for v in np.random.default_rng(seed).normal(size=5))


def examples(train: int = 40, val: int = 12, test: int = 12) -> list[Example]:
    """Rows with five features and three classes; the label is a noisy function of the features."""
    rows = []
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    for k, split in enumerate(splits):
        x = draw_features(k)
        label = int(np.argmax(np.array(x[:3]) + 0.3 * np.array(x[2:])))
        rows.append(Example(f"r{k:03d}", x, label, split))
    return rows


def feature_table(rows: Sequence[Example], **columns: Any) -> pa.Table:
    """A feature manifest of ``rows``, with more columns where given."""
    table = pa.table(
        {
            "id": pa.array([r.id for r in rows], pa.string()),
            "features": pa.array([list(r.features) for r in rows], pa.list_(pa.float32())),
            "label": pa.array([r.label for r in rows], pa.int64()),
            "split": pa.array([r.split for r in rows], pa.string()),
            **columns,
        }
    )
    return named(table, 3)


def write(table: pa.Table, path: Path) -> Path:
    """Write a table and return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with a column replaced or appended; schema metadata stay."""
    array = values if isinstance(values, pa.Array) else pa.array(values)
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, array)
    return table.append_column(name, array)


# ---- models and jobs ----------------------------------------------------------------------------------------------


def train_run(manifest: Path, folder: Path, model: str = "mlp:16", seed: int = 0, **request: Any) -> Path:
    """A run folder of ``retrain``, trained for a moment."""
    asked = RetrainRequest(Inputs(str(manifest), model=model), str(folder), seed=seed, device="cpu", **request)
    retrain(asked, QUICK)
    return folder


def score_with_canaries(here: Path, train: int, val: int, *asked: str) -> Path:
    """A folder with digits m, a run of theirs of which a tenth are canaries, and a table s of scores as asked for."""
    write(digits_table(train=train, val=val, test=40), here / "m.parquet")
    train_run(here / "m.parquet", here / "run", canaries=CanaryRequest(0.1, None, None))
    ran = call_cli("score", "m.parquet", "--checkpoint", "run", *asked, "-o", "s.parquet", cwd=here)
    assert ran.code == 0, ran.err
    return here


def job_of(
    manifest: Path,
    run: Path,
    store: Path | None,
    *,
    listener: Listener | None = None,
    spec: GradSpec | None = None,
    batch_size: int | None = None,
    shard_rows: int = 1024,
    workers: int = 1,
    **inputs: Any,
) -> Opened:
    """A job on the processor; ``store`` None is a temporary one."""
    asked = Inputs(str(manifest), checkpoint=str(run), **inputs)
    runtime = Runtime(str(store) if store else None, "cpu", batch_size, workers, shard_rows)
    return opened(asked, spec or GradSpec(("ip",)), runtime, listener or Heard())


def column(table: pa.Table, name: str = "score") -> NDArray[np.float64]:
    """A float column, nulls as NaN."""
    return table.column(name).cast(pa.float64()).fill_null(float("nan")).to_numpy()


def same_scores(a: pa.Table, b: pa.Table, rounding: float = 1e-6) -> bool:
    """Whether two score tables give the same rows the same scores, to ``rounding`` of the largest."""
    if a.column("id").to_pylist() != b.column("id").to_pylist():
        return False
    left, right = column(a), column(b)
    return bool(np.all(np.abs(left - right) <= rounding * np.abs(right).max()))


# ---- the command line ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a run of the command line gave back."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.out.decode()

    @property
    def json(self) -> Any:
        """Standard output as one JSON value."""
        return json.loads(self.out)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def table(self) -> pa.Table:
        """Standard output as Parquet."""
        return pq.read_table(pa.BufferReader(self.out))


def environment(changes: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what changes the tool's settings or colours, with ``changes``."""
    ours = ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "TERM", "COLUMNS", "PYTHONUNBUFFERED")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("INFLUENCE_") and k not in ours}
    return {**kept, "OMP_NUM_THREADS": "1", **(changes or {})}


def run_cli(*arguments: Any, cwd: Path, env: dict[str, str] | None = None, stdin: bytes = b"") -> Ran:
    """Run ``python -m influence_cli`` in a process of its own."""
    command = [sys.executable, "-m", "influence_cli", *map(str, arguments)]
    return run_process(command, cwd, env, stdin)


def run_program(program: Path, *arguments: Any, cwd: Path, stdin: bytes = b"") -> Ran:
    """Run a program, such as the fixture ``influence``, which starts at once."""
    return run_process([str(program), *map(str, arguments)], cwd, None, stdin)


def run_python(code: str, *arguments: Any, cwd: Path, env: dict[str, str] | None = None) -> Ran:
    """Run a Python program given as text in a process of its own."""
    return run_process([sys.executable, "-c", code, *map(str, arguments)], cwd, env)


def run_without_torch(*arguments: Any, cwd: Path) -> Ran:
    """Run the command line in a process of its own, which must have imported neither torch nor pandas at its end."""
    code = (
        "import sys; from influence_cli.cli.main import run; code = run(sys.argv[1:]); "
        "sys.stderr.write(str(sorted({'torch', 'pandas'} & set(sys.modules)))); sys.exit(code)"
    )
    ran = run_python(code, *arguments, cwd=cwd)
    assert (ran.code, ran.err.splitlines()[-1]) == (0, "[]"), ran.err
    return ran


def run_process(command: list[str], cwd: Path, env: dict[str, str] | None = None, stdin: bytes = b"") -> Ran:
    """Run a command and keep what it writes."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(env), input=stdin, capture_output=True, timeout=120, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode())


@functools.cache
def _application(called: str | None, options: tuple[type, ...]) -> Callable[..., Any]:
    """What Typer makes of a command and its options, which takes it longer than many commands take."""
    import typer.main

    return typer.main.get_command(_build_app(called))


def application_of(called: str | None = None) -> Callable[..., Any]:
    """What ``build_app`` gives for a command, made once a process."""
    return _application(called, requests.REQUESTS)


def call_cli(*arguments: Any, cwd: Path, env: dict[str, str] | None = None) -> Ran:
    """Run the command line in this process: the same exit code and streams, without the start-up."""
    from influence_cli.cli.main import run

    _spooled.cache_clear()
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True), io.StringIO()
    with (
        contextlib.chdir(cwd),
        mock.patch("influence_cli.cli.app.build_app", application_of),
        mock.patch.dict(os.environ, environment(env), clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run([str(a) for a in arguments])
    out.flush()
    return Ran(code, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]


# ---- a store --------------------------------------------------------------------------------------------------------


def verify(root: Path, listener: Listener = SILENT) -> tuple[int, list[str]]:
    """Look at every file of a store: (files with tensors, names of the damaged)."""
    found = examine(root, listener)
    return found.files, found.damaged


def at_once(*works: Callable[[], Any]) -> None:
    """Run every one in a process of its own, side by side; all of them come to their end (forked: torch is loaded)."""
    import multiprocessing

    import torch

    def alone(work: Callable[[], Any]) -> None:
        torch.set_num_threads(1)  # a forked process has no other threads
        work()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=alone, args=(work,)) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * len(works)
