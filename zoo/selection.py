"""What a query finds: places in the zoo, whose columns and weights are read when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from metanet.zoo.index import Column, resolve

from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.batch import ZooBatch
    from metanet.zoo.store import Zoo

_CHUNK = 100_000
_DTYPES = {"bool": np.float64, "int": np.float64, "float": np.float64}


@dataclass(frozen=True, eq=False)
class Selection:
    """Members that fulfil a condition, in the order of the zoo.

    Attributes:
        zoo: the zoo.
        places: where they stand, ``[k]``.
        where: the condition.
    """

    zoo: Zoo
    places: Int64[np.ndarray, " k"] = field(repr=False)
    where: str | None = None

    def __len__(self) -> int:
        return len(self.places)

    @property
    def ids(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(row[0] for row in self._fetch(["id"]))

    def __getitem__(self, column: str) -> np.ndarray[Any, Any]:
        """One column as an array ``[k]``: float64 with NaN for what is missing, or objects."""
        found = resolve(self.zoo.columns, column)
        return as_array(found, [row[0] for row in self._fetch([found.name])])

    def arrays(self, columns: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Several columns at once, under the names that were asked for."""
        found = [resolve(self.zoo.columns, name) for name in columns]
        rows = self._fetch([column.name for column in found])
        return {name: as_array(column, [row[i] for row in rows])
                for i, (name, column) in enumerate(zip(columns, found, strict=True))}

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """One map per member, dotted column name → value; what is missing is None."""
        known = self.zoo.columns
        chosen = ([resolve(known, name) for name in columns] if columns is not None
                  else list(known.values()))
        for row in self._fetch([column.name for column in chosen]):
            yield {column.name: _value(column, value)
                   for column, value in zip(chosen, row, strict=True)}

    def batches(self, size: int = 256, **options: Any) -> Iterator[ZooBatch]:
        """See :meth:`Zoo.batches`."""
        return self.zoo.batches(self, size, **options)

    def to_pandas(self) -> Any:
        """A DataFrame with one row per member; needs the extra ``data``."""
        from metanet.zoo.frames import to_pandas

        return to_pandas(self)

    def _fetch(self, names: Sequence[str]) -> list[tuple[Any, ...]]:
        """Values in the order of the places."""
        known = self.zoo.columns
        listed = ", ".join(f'"{known[name].sql}"' for name in names)
        places = self.places
        if len(places) == len(self.zoo) and bool(np.all(places[:-1] < places[1:])):
            return self.zoo.index.rows(
                f"SELECT {listed} FROM members ORDER BY place")  # noqa: S608 - our own columns
        out: list[tuple[Any, ...]] = []
        for start in range(0, len(places), _CHUNK):
            out += self._some(listed, places[start:start + _CHUNK])
        return out

    def _some(self, listed: str, places: Int64[np.ndarray, " k"]) -> list[tuple[Any, ...]]:
        wanted = "[" + ",".join(map(str, places.tolist())) + "]"
        rows = self.zoo.index.rows(
            f"SELECT place, {listed} FROM members WHERE place IN "  # noqa: S608 - our own columns
            "(SELECT value FROM json_each(?)) ORDER BY place", wanted)
        if len(rows) != len(set(places.tolist())):
            raise ZooError(f"{self.zoo.path}: members have gone since the query; query again")
        if bool(np.all(places[:-1] < places[1:])):
            return [row[1:] for row in rows]
        by_place = {row[0]: row[1:] for row in rows}
        return [by_place[place] for place in places.tolist()]


def _value(column: Column, value: Any) -> Any:
    if value is None:
        return None
    return bool(value) if column.kind == "bool" else float(value) if column.kind == "float" \
        else value


def as_array(column: Column, values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Values of one column as float64 (NaN for None), or as objects where they are text."""
    if column.kind in _DTYPES:
        return np.array([np.nan if v is None else v for v in values], np.float64)
    return np.array(values, object)
