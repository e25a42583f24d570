"""Errors of the functions for Python speak of arguments."""

from __future__ import annotations

import pytest

import influence_cli
from influence_cli.arguments import as_arguments
from influence_cli.errors import InfluenceError
from tests.model.test_scikit import people


def test_errors_speak_of_arguments() -> None:
    with pytest.raises(InfluenceError) as caught:
        influence_cli.score(people(), label="bought", method="ip", store=None)
    assert "checkpoint=PATH" in str(caught.value)
    switches = frozenset({"skip_bad", "relative"})
    for text, want in (
        ("repair it, or pass --skip-bad", "repair it, or pass skip_bad=True"),
        ("pass --label COLUMN", "pass label=COLUMN"),
        ("pass --input-size 64", "pass input_size=64"),
        ("pass --method ip-ensemble --relative", "pass method='ip-ensemble' relative=True"),
        ("--budget 5% takes too many", "budget='5%' takes too many"),
        ("write --set ip-ensemble.members=10", "write options={'ip-ensemble': {'members': 10}}"),
        ("run `influence score --store X` first", "run `influence score --store X` first"),
        (
            "influence retrain --init CHECKPOINT --num-classes ...",
            "influence retrain --init CHECKPOINT --num-classes ...",
        ),
        ("use -o FILE", "use output=FILE"),
        ("--store is empty", "store is empty"),
    ):
        assert as_arguments(text, switches) == want
