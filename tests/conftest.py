"""Fixtures of every test file: two small manifests, runs trained on them, a filled store and a score table.

``digits`` has images and ``tabular`` features; ``digits_run``, ``calibrated_run`` and ``tabular_run`` are run folders.
They are made once a process, of which ``tests/run.sh`` starts one a core.  Tests only read them.
"""

# ruff: noqa: E402  # some things are said before anything is imported

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

gc.disable()  # until everything is imported: of what imports make hardly anything is garbage
os.environ["OMP_NUM_THREADS"] = "1"  # before torch and NumPy come: tensors are small, and processes share the cores

from influence_cli.memory import give_back_freed_memory

give_back_freed_memory()  # this process is as a command's from its start, as it would be after the first test of one

import pytest
from hypothesis import HealthCheck, settings

from influence_cli.data.outside import allowing_outside
from influence_cli.model.lean_imports import import_timm
from tests.cases import call_cli, digits_table, examples, feature_table, train_run, write
from tests.forking import forking_program

import_timm()  # and without torch's compiler, which takes longer to import than the rest together
os.fsync = lambda fd: None  # nothing is asked of what a test wrote when the machine has crashed
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores Ctrl-C in what it starts with &
    signal.signal(signal.SIGINT, signal.default_int_handler)
# how long drawing and trying examples takes is the machine's: under load it is no fault
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage looks at it again, nor at every 700 objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


@pytest.fixture
def outside() -> Iterator[None]:
    """Rows may name files outside of their manifest's folder, as with ``--allow-outside``."""
    with allowing_outside(True):
        yield


@pytest.fixture(scope="session")
def influence() -> Iterator[Path]:
    """The program ``influence``, for tests of what calls it: it starts at once, as a fork of this process."""
    with forking_program() as program:
        yield program


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that lives as long as the session; tests only read from it."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def digits(shared: Path) -> Path:
    """Image manifest: 200 train rows (30 labelled wrong), 60 val and 60 test rows."""
    return write(digits_table(), shared / "digits.parquet")


@pytest.fixture(scope="session")
def digits_run(shared: Path, digits: Path) -> Path:
    """Run folder of a small MLP trained on ``digits``."""
    return train_run(digits, shared / "digits-run")


@pytest.fixture(scope="session")
def calibrated_run(shared: Path, digits: Path) -> Path:
    """Run folder of a small MLP trained on ``digits`` less a quarter of its train rows, kept for the gate."""
    return train_run(digits, shared / "calibrated-run", calibration=0.25)


@pytest.fixture(scope="session")
def tabular(shared: Path) -> Path:
    """Feature manifest: 40 train, 12 val and 12 test rows, 5 features, 3 classes."""
    return write(feature_table(examples()), shared / "tabular.parquet")


@pytest.fixture(scope="session")
def tabular_run(shared: Path, tabular: Path) -> Path:
    """Run folder of a very small MLP trained on ``tabular``, whose features are as they are."""
    return train_run(tabular, shared / "tabular-run", "mlp:4", raw_features=True)


@pytest.fixture(scope="session")
def filled_store(shared: Path, digits: Path, digits_run: Path) -> Path:
    """A store that holds all of an ``ip`` run on ``digits``: to copy, or to read warm."""
    store = shared / "filled-store"
    ran = call_cli(
        "grads", "--method", "ip", digits, "--checkpoint", digits_run, "--store", store, "-o", "g.parquet", cwd=shared
    )
    assert ran.code == 0, ran.err
    return store


@pytest.fixture(scope="session")
def scored(shared: Path, digits: Path, digits_run: Path, filled_store: Path) -> Path:
    """Score table of ``digits`` by ip."""
    out = shared / "scored.parquet"
    ran = call_cli(
        "score", "--method", "ip", digits, "--checkpoint", digits_run, "--store", filled_store, "-o", out, cwd=shared
    )
    assert ran.code == 0, ran.err
    return out
