"""What all timing processes share: CPU seconds, peak memory, one JSON row on the last line."""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable

REPEATS = 9
SPAN = 4.0  # seconds


def cpu_seconds(work: Callable[[], object], repeats: int = REPEATS, warm: int = 2) -> float:
    """Median CPU seconds (user and system) of one call, over ``repeats`` or four seconds' worth."""
    for _ in range(warm):
        work()
    found: list[float] = []
    while len(found) < repeats or sum(found) < SPAN:
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def peak_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(n: int, forward: Callable[[], object], step: Callable[[], object],
           base_mb: float, **more: float | str) -> None:
    """Time a forward pass and a training step on ``n`` nets, and print the row."""
    seconds = cpu_seconds(forward)
    both = cpu_seconds(step)
    print(json.dumps({"fwd": n / seconds, "fb": n / both, "mb": peak_mb() - base_mb, **more}))
