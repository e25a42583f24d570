"""Freed memory is kept for the next batch."""

import os
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from influence_cli.engines.freed_memory import keep_freed_memory
kept = keep_freed_memory()
def work():
    a = [torch.zeros(500_000) for _ in range(40)]
for _ in range(5): work()
first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""


def _faults(**more: str) -> tuple[str, int]:
    found = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, env=os.environ | more
    )
    kept, faults = found.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is told")
def test_pages_of_the_batch_before_are_used_again_unless_the_user_has_set_the_allocator():
    kept, faults = _faults()
    if kept == "False":
        pytest.skip("another C library than glibc")
    left, many = _faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert (kept, left) == ("True", "False")
    assert faults < many / 10
