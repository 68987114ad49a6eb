"""keep_freed_memory: what the process does with memory that it freed."""

from __future__ import annotations

import subprocess
import sys

CHILD = """
import resource, sys, torch
from metanet.nn import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    blocks = [torch.ones(1 << 22) for _ in range(4)]
    assert float(blocks[-1][-1]) == 1
for _ in range(2):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again() -> None:
    """Page faults of eight times four blocks of 16 MB."""
    faults = {}
    for how in ("leave", "keep"):
        done = subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, text=True,
                              check=True)
        faults[how] = int(done.stdout)
    assert 4 * faults["keep"] < faults["leave"], faults
