"""Options that can be nothing are refused as a method is made, by every method alike.

python -m pytest tests/methods/test_checks.py
"""

from __future__ import annotations

import pytest

from influence_cli.errors import UsageError
from influence_cli.methods import make_methods
from influence_cli.settings import GradSpec


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("bif.seed=-1", "seed=-1 is below 0"),
        ("bif.draws=3", "draws=3 is below 4"),
        ("bif.step=0", "step=0.0 is not positive"),
        ("bif.damping=-1", "damping=-1.0 is negative"),
        ("bif.norm=x", "norm 'x' is unknown"),
        ("bif.only=5", "only=5 is above the number of chains, 4"),
        ("gex.seed=-1", "seed=-1 is below 0"),
        ("gex.members=1", "members=1 is below 2"),
        ("gex.rate=0", "rate=0.0 is not positive"),
        ("gex.l2=-1", "l2=-1.0 is negative"),
        ("gex.centre=x", "centre 'x' is unknown"),
        ("knn.k=0", "k=0 is not positive"),
        ("knn.weights=x", "weights 'x' is unknown"),
        ("outlier.metric=x", "metric 'x' is unknown"),
    ],
)
def test_a_bad_value_is_named_with_what_it_may_be(given: str, what: str) -> None:
    name, _, value = given.partition("=")
    method, _, key = name.partition(".")
    with pytest.raises(UsageError, match=what):
        make_methods(GradSpec(methods=(method,), options={method: {key: value}}))
