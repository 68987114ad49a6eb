"""Two cores are used best by two workers of one thread each: no barrier after every small step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

_MOST = 8


def workers() -> ThreadPoolExecutor:
    """A pool with one thread per core, each running torch's operations by itself."""
    return ThreadPoolExecutor(min(_MOST, os.cpu_count() or 1), initializer=torch.set_num_threads,
                              initargs=(1,))


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread per operation in the calling thread; restored at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
