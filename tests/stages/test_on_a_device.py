"""Scores on another device than the processor, pretended: no tensor is left behind, and none is read too early."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import pretended
from tests.cases import run_process

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process that has such a device found."""
    if not pretended.AVAILABLE:
        pytest.skip("this torch cannot pretend a device")
    here = str(tmp_path_factory.mktemp("device"))
    ran = run_process([sys.executable, "-m", "tests.stages.on_pretended", here], ROOT)
    assert ran.code == 0, ran.err
    return json.loads(ran.out.splitlines()[-1])


def test_the_device_refuses_what_a_real_one_refuses(found: dict[str, Any]) -> None:
    assert found["refusals"] == {
        "both places": "RuntimeError",
        "numpy": "TypeError",
        "generator": "RuntimeError",
        "early": [True],  # nothing is in the host's memory before it is waited for
        "later": [2.0, 2.0, 2.0],
        "overwritten": [7.0, 7.0, 7.0],  # pinned memory that is written again too early
    }


def test_scores_are_those_of_the_processor(found: dict[str, Any]) -> None:
    assert len(found["apart"]) == 13
    assert {name: off for name, off in found["apart"].items() if not off <= 1e-5} == {}


def test_a_training_there_ends_where_one_on_the_processor_does(found: dict[str, Any]) -> None:
    trained = found["trained"]
    assert trained["images-there"] == pytest.approx(trained["images"], rel=1e-4)
