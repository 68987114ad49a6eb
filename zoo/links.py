"""What belongs together: members that must stand on one side of every split, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

if TYPE_CHECKING:
    from metanet.zoo.store import Zoo

REASONS = {
    "hash": "equal weights",
    "lineage": "one was trained on from the other",
    "run": "checkpoints of one training run",
    "image": "views of one image",
    "near_duplicates": "images that are nearly the same",
}


@dataclass(frozen=True, eq=False)
class Links:
    """Every member's group, for each reason to belong together.

    Attributes:
        ids: members in the order of the zoo.
        groups: reason → ``[n]`` group number of every member.
        split: part of every member, or None.
        shown: reason → group number → what the members share, for messages.
    """

    ids: Sequence[str]
    groups: Mapping[str, Int64[np.ndarray, " n"]]
    split: Sequence[str | None]
    shown: Mapping[str, Mapping[int, str]]

    def units(self) -> Int64[np.ndarray, " n"]:
        """Group number of every member when all reasons are taken together."""
        return joined(self.groups.values(), len(self.ids))


def links(zoo: Zoo) -> Links:
    """Read the links of a zoo from its index: weights, lineage and the columns of its card."""
    columns = zoo.columns
    wanted = {reason: columns[name] for reason, name in zoo.card.groups.items() if name in columns}
    data = columns.get("config.data")
    listed = ", ".join((
        "id", "CASE WHEN step = 0 THEN NULL ELSE hash END", "parent", "split",
        *(f'"{column.sql}"' for column in wanted.values()),
        "NULL" if data is None else f'"{data.sql}"'))
    rows: list[tuple[Any, ...]] = zoo.index.rows(
        f"SELECT {listed} FROM members ORDER BY place")  # noqa: S608 - our own columns
    ids = [row[0] for row in rows]
    groups, shown = {}, {}
    # Equal initialisations are no duplicates: a recipe may start every run from the same one.
    groups["hash"], shown["hash"] = _numbered([row[1] for row in rows])
    groups["lineage"] = lineage(ids, [row[2] for row in rows])
    shown["lineage"] = {int(g): ids[i] for i, g in reversed(list(enumerate(groups["lineage"])))}
    for place, reason in enumerate(wanted, 4):
        # Image 7 of one data set is not image 7 of another.
        keys = [None if row[place] is None else (row[-1], row[place]) for row in rows]
        groups[reason], shown[reason] = _numbered(keys)
    return Links(ids, groups, [row[3] for row in rows], shown)


def _numbered(keys: Sequence[Any]) -> tuple[Int64[np.ndarray, " n"], dict[int, str]]:
    """Equal keys get one number; None belongs to nobody."""
    numbers: dict[Any, int] = {}
    out = np.empty(len(keys), np.int64)
    for i, key in enumerate(keys):
        out[i] = numbers.setdefault(("", i) if key is None else key, len(numbers))
    shown = {n: "/".join(str(part) for part in key if part is not None)
             if isinstance(key, tuple) else str(key) for key, n in numbers.items()}
    return out, shown


def lineage(ids: Sequence[str], parents: Sequence[str | None], siblings: bool = False
            ) -> Int64[np.ndarray, " n"]:
    """Number of every member's family: whoever descends from whom.

    ``siblings``: children of one parent that is not in the zoo are a family too.
    """
    numbers = {name: i for i, name in enumerate(ids)}
    pairs = []
    for name, parent in zip(ids, parents, strict=True):
        if parent is not None and (siblings or parent in numbers):
            pairs.append((numbers[name], numbers.setdefault(parent, len(numbers))))
    return _components(pairs, len(numbers))[:len(ids)]


def joined(groups: Iterable[Int64[np.ndarray, " n"]], n: int) -> Int64[np.ndarray, " n"]:
    """Finest grouping in which members that share any group are together."""
    pairs: list[tuple[int, int]] = []
    for group in groups:
        order = np.argsort(group, kind="stable")
        same = group[order][1:] == group[order][:-1]
        pairs += zip(order[1:][same].tolist(), order[:-1][same].tolist(), strict=True)
    return _components(pairs, n)


def _components(pairs: Sequence[tuple[int, int]], n: int) -> Int64[np.ndarray, " n"]:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return components(table[:, 0], table[:, 1], n)


def components(
    i: Int64[np.ndarray, " m"], j: Int64[np.ndarray, " m"], n: int
) -> Int64[np.ndarray, " n"]:
    """Number of the connected component of each of ``n`` nodes, by edges from ``i`` to ``j``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not n:
        return np.empty(0, np.int64)
    edges = i.astype(np.int32), j.astype(np.int32)  # older scipys take no wider index
    graph = coo_array((np.ones(len(i), np.int8), edges), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)
