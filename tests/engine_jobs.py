"""Functions that the tests of engines call in other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def square(x: int) -> int:
    return x * x


def die_once(job: tuple[int, str]) -> int:
    """Kills its process the first time that it is called for item 3."""
    number, folder = job
    mark = Path(folder) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail(number: int) -> int:
    if number == 2:
        raise ValueError("item two")
    return number


def tell_and_sleep(folder: str) -> None:
    Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(120)


def threads(_: int) -> int:
    import torch

    return torch.get_num_threads()


def norms(batch):  # type: ignore[no-untyped-def]
    """Per member: the sum of its squared weights, and its label."""
    total = sum(t.flatten(1).square().sum(1) for t in batch.tensors.values())
    return {"norm": total, "label": batch.columns["config.label"]}
