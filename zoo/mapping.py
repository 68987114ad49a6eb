"""A function over the members of a zoo, on an engine."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from metanet.zoo.batch import ZooBatch
from metanet.zoo.engine import Engine
from metanet.zoo.engine import engine as engine_by_name
from metanet.zoo.selection import Selection
from metanet.zoo.store import Zoo

from metanet.checkpoint.names import printable
from metanet.errors import ZooError

# What a function may give back for a batch of n members: n values, or n values per name.
Answer = Mapping[str, Sequence[Any]] | Sequence[Any]


@dataclass(frozen=True)
class _Task:
    function: Callable[[ZooBatch], Answer] | str
    path: str
    places: tuple[int, ...]
    columns: tuple[str, ...]


def map_members(function: Callable[[ZooBatch], Answer] | str, zoo: Zoo,
                where: str | Selection | None = None, *, size: int = 64,
                columns: Sequence[str] = (), engine: str | Engine = "local", workers: int = 2
                ) -> Iterator[tuple[str, Any]]:
    """Call a function on batches of members, elsewhere; yields (id, value) in the zoo's order.

    Args:
        function: takes a ZooBatch of n members of one layout and gives n values, or a map of names
            to n values each. As text, ``module:name`` or ``file.py:name``, which runs that code.
        zoo: the zoo.
        where: which members; all by default.
        size: members per batch, at most.
        columns: columns of the index that the batches carry.
        engine, workers: as in ``build``.

    Raises:
        ZooError: for a function that cannot be found, or that gives another number of values.
    """
    if isinstance(function, str):
        named(function)  # a wrong name is said here, not in a worker
    found = where if isinstance(where, Selection) else zoo.query(where)
    crew = engine_by_name(engine, workers) if isinstance(engine, str) else engine
    tasks = [_Task(function, str(zoo.path), tuple(found.places[at:at + size].tolist()),
                   tuple(columns)) for at in range(0, len(found), size)]
    for answers in crew.map(_answer, tasks):
        yield from answers


def _answer(task: _Task) -> list[tuple[str, Any]]:
    function = named(task.function) if isinstance(task.function, str) else task.function
    zoo = Zoo.open(task.path)
    places: Int64[np.ndarray, " k"] = np.array(task.places, np.int64)
    chosen = Selection(zoo, places)
    values: dict[str, Any] = {}
    for batch in zoo.batches(chosen, max(len(places), 1), columns=task.columns):
        values.update(zip(batch.ids, _rows(function(batch), len(batch)), strict=True))
    return [(name, values[name]) for name in chosen.ids]


def _rows(answer: Answer, n: int) -> list[Any]:
    """One value per member."""
    if isinstance(answer, Mapping):
        parts = {name: _rows(value, n) for name, value in answer.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(n)]
    found = answer.tolist() if hasattr(answer, "tolist") else list(answer)
    if not isinstance(found, list) or len(found) != n:
        size = len(found) if isinstance(found, list) else "one value"
        raise ZooError(f"the function gave {size} for {n} members; it must give one per member")
    return found


def named(text: str) -> Callable[[ZooBatch], Answer]:
    """The function of ``module:name`` or ``file.py:name``.

    Raises:
        ZooError: if there is none.
    """
    where, _, name = text.rpartition(":")
    if not where or not name.isidentifier():
        raise ZooError(f"{printable(text, 80)!r} names no function; write module:name or "
                       "file.py:name")
    try:
        module = _file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except ImportError as error:
        raise ZooError(f"{printable(where, 80)!r} cannot be imported ({error})") from None
    found = getattr(module, name, None)
    if not callable(found):
        raise ZooError(f"{printable(where, 80)} has no function {name!r}")
    function: Callable[[ZooBatch], Answer] = found
    return function


def _file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"_mapped_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ZooError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
