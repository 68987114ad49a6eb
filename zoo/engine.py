"""Engines: who calls a function on many items. Results come in the order of the items.

``local`` starts single-threaded processes on this machine, ``ray`` (extra ``ray``) uses a cluster.
A worker that dies is replaced, and what it was doing is done again.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from typing import Any, Protocol, TypeVar

from metanet.checkpoint.names import no_such
from metanet.errors import ZooError

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 8  # items per worker that may be under way or waiting for their turn
_DEATHS = 3  # of workers, without a result in between, before giving up
NAMES = ("local", "ray")


class Engine(Protocol):
    """Calls functions elsewhere."""

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """``function`` of every item, in order; both must survive being pickled."""


def engine(name: str = "local", workers: int = 2) -> Engine:
    """An engine by its name.

    Raises:
        ZooError: for an unknown engine, or if Ray is not installed.
    """
    if workers < 1:
        raise ZooError(f"{workers} workers: at least one is needed")
    if name == "local":
        return Local(workers)
    if name != "ray":
        raise ZooError(no_such("engine", name, NAMES))
    from metanet.zoo.engine_ray import RayEngine

    found: Engine = RayEngine(workers)
    return found


@dataclass(frozen=True)
class Local:
    """Processes on this machine, one thread each; with one worker, this process.

    Scripts that use more than one worker need ``if __name__ == "__main__":`` around what they do,
    as with everything that starts processes.
    """

    workers: int

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """See :class:`Engine`."""
        if self.workers == 1:
            for item in items:
                with one_thread():
                    result = function(item)
                yield result
            return
        yield from self._processes(function, items)

    def _processes(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        turn, deaths = 0, 0
        done: dict[int, R] = {}
        while turn < len(items):
            pool = _pool(self.workers)
            try:
                for number, result in _stream(pool, function, items, done, turn,
                                              self.workers * _AHEAD):
                    done[number], deaths = result, 0
                    while turn in done:
                        yield done.pop(turn)
                        turn += 1
            except BrokenProcessPool:
                deaths += 1
                if deaths >= _DEATHS:
                    raise ZooError(
                        f"the workers died {deaths} times at item {turn}. They may have run out "
                        "of memory (try fewer --workers); a script needs `if __name__ == "
                        "\"__main__\":` around what it does") from None
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _stream(pool: ProcessPoolExecutor, function: Callable[[T], R], items: Sequence[T],
            done: dict[int, R], turn: int, window: int) -> Iterator[tuple[int, R]]:
    """(number, result) as they come; at most ``window`` items beyond the turn are begun."""
    open_: dict[Future[R], int] = {}
    queue = iter([i for i in range(turn, len(items)) if i not in done])
    waiting: int | None = next(queue, None)
    low = turn
    while open_ or waiting is not None:
        while waiting is not None and waiting < low + window:
            open_[pool.submit(function, items[waiting])] = waiting
            waiting = next(queue, None)
        finished, _ = wait(open_, return_when=FIRST_COMPLETED)
        for future in sorted(finished, key=lambda f: open_[f]):
            result = future.result()
            yield open_.pop(future), result
        low = min([*open_.values(), waiting if waiting is not None else len(items)])


def _pool(workers: int) -> ProcessPoolExecutor:
    """New processes; never copies of this one, which may hang if it has used torch's threads.

    Where the system can, they are copies of a small server that has imported torch already.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["metanet.zoo.make"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start)


def _start() -> None:
    """In a worker: one thread, and an end when the parent ends, even if it was killed."""
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: Any) -> None:
    wait_for([sentinel])
    os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch while the body runs: equal bytes whatever the machine does else."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
