"""Ray as an engine: tasks on a cluster, done again when a worker or node dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from metanet.errors import ZooError

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 8
_RETRIES = 3


@dataclass(frozen=True)
class RayEngine:
    """Tasks of one CPU each on the running Ray cluster, or on one started here.

    Files named in the work must be at the same path on every node.

    Raises:
        ZooError: if Ray is not installed.
    """

    workers: int

    def __post_init__(self) -> None:
        _ray()

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """See :class:`metanet.zoo.engine.Engine`."""
        ray = _ray()
        if not ray.is_initialized():
            _connect(ray, self.workers)
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_call)
        window = self.workers * _AHEAD
        begun: list[Any] = [task.remote(function, item) for item in items[:window]]
        for turn in range(len(items)):
            try:
                result = ray.get(begun[0])
            except ray.exceptions.WorkerCrashedError as error:
                raise ZooError(f"the worker died {_RETRIES + 1} times at item {turn} "
                               f"({error})") from None
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            del begun[0]
            if turn + window < len(items):
                begun.append(task.remote(function, items[turn + window]))
            yield result


def _call(function: Callable[[T], R], item: T) -> R:
    from metanet.zoo.engine import one_thread

    with one_thread():
        return function(item)


def _connect(ray: Any, workers: int) -> None:
    """To the cluster that ``ray start`` or RAY_ADDRESS names; to a new one where there is none."""
    try:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    except ValueError:  # there is one, whose size is not ours to say
        ray.init(log_to_driver=False)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ZooError("the engine ray needs Ray, which is not installed; run: pip install "
                       "'metanet-toolkit[ray]', or use --engine local") from None
    return ray
