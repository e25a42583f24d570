"""Rows a batch by measurement, and rows that several passes need: decoded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from influence_cli.data.manifest import Manifest
from influence_cli.engines.batch_size import Pace
from influence_cli.model import decoded
from influence_cli.model.decoded import DecodedByKey
from influence_cli.model.examples import FEW
from influence_cli.stages.run import session
from tests.opened import score
from tests.oracle import Problem, column, make_problem, relative_error


def run(pace: Pace, seconds: Callable[[int], float], batches: int, kind: str = "work") -> list[int]:
    """The sizes of so many batches of a device that takes ``seconds(rows)`` for one."""
    sizes = []
    for _ in range(batches):
        sizes.append(pace.rows)
        pace.took(kind, pace.rows, seconds(pace.rows))
    return sizes


def test_batches_grow_while_a_row_gets_cheaper() -> None:
    """A device with a fixed cost of a batch, until its units are full at 1,000 rows."""
    sizes = run(Pace(64, 4096), lambda n: 1.0 + max(0, n - 1000) / 500, 40)
    assert sorted(set(sizes)) == [64, 128, 256, 512, 1024, 2048]
    assert sizes[-1] == 1024  # back from 2048, which took longer for a row


def test_nothing_is_tried_where_it_does_not_pay() -> None:
    """A processor whose rows cost the same at any size tries one larger size and goes back."""
    sizes = run(Pace(256, 4096), lambda n: 0.001 * n, 20)
    assert set(sizes) == {256, 512}
    assert sizes[-1] == 256
    assert set(run(Pace(256, 256), lambda n: 1.0 / n, 20)) == {256}


def test_the_first_batch_of_a_size_sets_things_up() -> None:
    """It may take any time: it is not what the size costs."""
    pace, seen = Pace(64, 4096), set[int]()

    def seconds(n: int) -> float:
        first = n not in seen
        seen.add(n)
        return 100.0 if first else 1.0

    assert run(pace, seconds, 40)[-1] == 4096


def test_other_work_and_a_last_short_batch_say_nothing() -> None:
    """Batches along more directions, or of fewer rows than asked, are no measurement."""
    pace = Pace(64, 4096)
    for _ in range(10):
        pace.took("one", 64, 1.0)
        pace.took("two", 64, 9.0)
    assert pace.rows == 64
    for _ in range(10):
        pace.took("two", 10, 9.0)
    assert pace.rows == 64


def test_memory_that_ran_out_ends_it() -> None:
    """What did not fit is not tried again."""
    pace = Pace(64, 4096)
    run(pace, lambda _: 1.0, 7)
    assert pace.rows > 128
    pace.stop_at(128)
    assert set(run(pace, lambda _: 1.0, 20)) == {128}


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A small MLP."""
    return make_problem(tmp_path_factory.mktemp("pace"), "mlp:16,8", (6,), train=90, val=20)


def test_scores_do_not_depend_on_sizes_that_change_on_the_way(
    problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row comes once, whatever the size of the batch it comes in."""
    expected = column(score(problem.job(store="plain")))

    class Growing(Pace):
        """Another size after every batch."""

        def took(self, kind: Any, rows: int, seconds: float) -> None:
            self.rows = self.rows % 11 + 3

    monkeypatch.setattr("influence_cli.engines.batch_size.Pace", lambda rows, most: Growing(5, most))
    found = score(problem.job(store="growing"))
    assert found.num_rows == 90
    assert relative_error(column(found), expected) < 1e-5
    assert problem.job().batch_size(problem.spec) == session.LARGEST_BATCH


def test_members_share_what_was_decoded(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three members: every training and target row is decoded once, and scores are those without the memory."""
    asked = {"methods": ("ip-ensemble",), "options": {"ip-ensemble": {"members": 3}}}
    calls: list[int] = []
    real = Manifest.decoded

    def counting(manifest: Any, row: int, payload: Any, spec: Any) -> NDArray[Any]:
        calls.append(row)
        return real(manifest, row, payload, spec)

    monkeypatch.setattr(Manifest, "decoded", counting)
    job = problem.job(store="once", **asked)
    found = column(score(job))
    assert len(calls) == len(set(calls)) == 110
    assert job.decoded is None  # nothing is kept for longer than it is needed
    monkeypatch.setattr(decoded, "DecodedByKey", lambda spec: DecodedByKey(spec, 0))
    calls.clear()
    assert np.array_equal(column(score(problem.job(store="thrice", **asked))), found)
    assert len(calls) == 330 + FEW  # and those on which the engine is checked


def test_memory_for_decoded_rows_has_a_bound(tmp_path: Path, problem: Problem) -> None:
    """Rows are held while there is room, and the same row twice takes it once."""
    spec, held = problem.spec, DecodedByKey(problem.spec, 100)
    row = np.zeros(40, dtype=np.uint8)
    for k in (0, 0, 1, 2):
        held.put(bytes([k]), spec, row + k)
    assert [held.get(bytes([k]), spec) is not None for k in range(3)] == [True, True, False]
    assert held.room == 20
