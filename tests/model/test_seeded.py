"""Draws from a seed are torch's, and no device that is not there is told of it."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from influence_cli.model import seeded


@pytest.mark.parametrize("devices", [False, True])
def test_draws_are_those_of_torchs_own_seed(devices: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = torch.rand(5)
        told = torch.manual_seed
        with (
            mock.patch.object(seeded, "_has_devices", return_value=devices),
            mock.patch("torch.manual_seed", side_effect=told) as whole,
        ):
            seeded.seed_draws(7)
        assert torch.equal(torch.rand(5), expected)
    assert whole.call_count == devices
