"""Freed memory stays with the process: a block that comes back costs no page faults."""

import resource
import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from study.training.devices import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
x = torch.ones(2 * 2**20)
for _ in range(10):  # two blocks at a time, as below: the heap grows to its full size here
    x.add(1.0).mul(2.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    x.add(1.0).mul(2.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip("not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own")
def test_blocks_that_come_back_cost_no_page_faults() -> None:
    pages = 20 * 2 * 8 * 2**20 // resource.getpagesize()
    assert faults("kept") < pages / 20
