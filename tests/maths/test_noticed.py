"""Slips in formulas that no test had noticed (``python -m tests.hardening.mutants``)."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from influence_cli.data.kinds.image_pixels import in_8_bits
from influence_cli.data.kinds.protocol import BadPayload
from influence_cli.maths.canary_cut import _wilson
from influence_cli.maths.draws import effective_draws


@pytest.mark.parametrize(("share", "trials"), [(0.2, 10), (0.0, 5), (1.0, 7), (0.5, 400)])
def test_the_ends_of_wilsons_interval_are_where_the_share_is_1_96_standard_errors_away(
    share: float, trials: int
) -> None:
    for side in (-1, 1):
        end = float(_wilson(np.array(share), trials, side))
        assert (share - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / trials, abs=1e-12)


def test_chains_that_do_not_move_count_in_full() -> None:
    assert effective_draws(np.ones((3, 8))) == 24.0


def test_16_bits_become_the_nearest_8_and_fractions_are_refused() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = np.asarray(in_8_bits(Image.fromarray(deep)))
    assert found.tolist() == np.rint(deep.astype(float) * 255 / 65535).astype(int).tolist()
    assert np.asarray(in_8_bits(Image.fromarray(np.array([[0.0, 255.0]], np.float32)))).tolist() == [[0, 255]]
    with pytest.raises(BadPayload, match=r"floating-point numbers from 0 to 0\.5, of no"):
        in_8_bits(Image.fromarray(np.array([[0.0, 0.5]], np.float32)))
    assert np.asarray(in_8_bits(Image.fromarray(np.array([[0, 1]], np.int32)))).tolist() == [[0, 1]]
