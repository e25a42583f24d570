"""Shares as people type them."""

from __future__ import annotations

import pytest

from influence_cli.errors import UsageError
from influence_cli.settings import parse_share


@pytest.mark.parametrize(
    ("text", "fix"), [("90", "write 90%"), ("0%", "write 5%"), ("150%", "write 5%"), ("150", "write 5%")]
)
def test_a_share_outside_names_what_was_meant(text: str, fix: str):
    with pytest.raises(UsageError) as error:
        parse_share(text, "--target-recall")
    assert error.value.fix == fix
