"""Confident learning against cleanlab: the counts, and the joint of labels and truths.

Its joint sums to 1 where ours sums to the number of rows.  It rounds the counts behind the joint to whole rows, with
the same sum over each label, so that an entry is within one row of ours.

    pip install 'influence-cli[test,peers]' && python -m pytest -m peers
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from influence_cli.maths.confident import joint_of, likely_classes
from tests.maths.test_confident import drawn

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def peer() -> Any:
    return pytest.importorskip("cleanlab.count", reason="cleanlab is not installed", exc_type=ImportError)


@pytest.mark.parametrize(("seed", "classes"), [(0, 2), (1, 3), (2, 10)])
def test_counts_and_joint_equal_theirs(peer: Any, seed: int, classes: int) -> None:
    p, labels, _ = drawn(seed, 600, classes)
    joint = joint_of(p, labels)
    likely = likely_classes(p, joint.thresholds)
    ours = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(ours, (labels[likely >= 0], likely[likely >= 0]), 1)
    assert np.array_equal(ours, peer.compute_confident_joint(labels, p, calibrate=False))
    theirs = peer.estimate_joint(labels, p) * len(p)
    np.testing.assert_allclose(joint.counts.sum(axis=1), theirs.sum(axis=1), rtol=1e-12)
    assert np.abs(joint.counts - theirs).max() < 1.0
