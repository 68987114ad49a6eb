"""Merging two zoos: shard by shard, each in its own transaction, so a killed merge goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from metanet.zoo.batch import read_places, untied
from metanet.zoo.index import MAX_ROWS
from metanet.zoo.members import Entry
from metanet.zoo.selection import Selection

from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.store import Zoo


def merge(zoo: Zoo, other: Zoo) -> int:
    """See :meth:`Zoo.merge`. Parts of the other zoo's split are not taken over."""
    if zoo.path.resolve() == other.path.resolve():
        raise ZooError(f"{zoo.path}: cannot be merged into itself")
    known = dict(zoo.index.rows("SELECT id, hash FROM members"))
    for name, hashed in other.index.rows("SELECT id, hash FROM members"):
        if known.get(name, hashed) != hashed:
            raise ZooError(f"member {name!r} has other weights in {other.path} than in {zoo.path}; "
                           "give the members of one of them other ids")
    spaces, sizes = other.spaces, other._sizes()
    added = 0
    for number, key in other.index.rows("SELECT shard, layout FROM shards ORDER BY shard"):
        layout = other.layouts[str(key)]
        rows = np.arange(sizes[int(str(number))]) + int(str(number)) * MAX_ROWS
        found = list(Selection(other, rows).rows())
        new = [i for i, row in enumerate(found) if row["id"] not in known]
        if not new:
            continue
        tensors = read_places(other.path, layout, sizes, rows[np.array(new)])
        entries = [entry_of(found[i]) for i in new]
        added += zoo.add_stacked(untied(layout, tensors), entries, spaces.get(layout.space or ""))
    return added


def entry_of(row: dict[str, Any], keep: Sequence[str] = ("parent", "step")) -> Entry:
    """The entry of an index row, without its part."""
    config = {n.removeprefix("config."): v for n, v in row.items() if n.startswith("config.")}
    metrics = {n.removeprefix("metrics."): v for n, v in row.items() if n.startswith("metrics.")}
    return Entry(row["id"], {k: v for k, v in config.items() if v is not None},
                 {k: v for k, v in metrics.items() if v is not None},
                 **{name: row[name] for name in keep})
