"""keep_freed_memory: what the C library does with memory that the process freed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CHILD = """
import ctypes, json, sys
from metanet.nn import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                 "fordblks", "keepcost")]
libc.mallinfo.restype = Info
before = libc.mallinfo()
block = libc.malloc(1 << 28)
held = libc.mallinfo()
libc.free(block)
after = libc.mallinfo()
print(json.dumps({"mapped": held.hblkhd - before.hblkhd,
                  "kept": after.arena + after.hblkhd - before.arena - before.hblkhd}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library of Linux")
def test_freed_memory_stays_with_the_process() -> None:
    """A block of 256 MB: mapped and given back if left alone; else of the heap, and stays."""
    found = {}
    for how in ("leave", "keep"):
        done = subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, text=True,
                              check=True)
        found[how] = json.loads(done.stdout)
    block, little = 1 << 28, 1 << 24
    assert found["leave"]["mapped"] >= block and found["leave"]["kept"] < little, found
    assert found["keep"]["mapped"] == 0 and found["keep"]["kept"] >= block - little, found
