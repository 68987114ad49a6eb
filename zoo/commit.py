"""Adding members: shards are written first, then one transaction names them and their rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.zoo import shard as shards
from metanet.zoo.index import MAX_ROWS
from metanet.zoo.layout import Layout
from metanet.zoo.members import Entry, Member, Value, check_entry, kind_of, values

from metanet.checkpoint.names import natural_sorted, printable
from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.shard import Written
    from metanet.zoo.store import Zoo
    from torch import Tensor

    from metanet.symmetry import WeightSpace

Batch = tuple["Written", Sequence[Entry]]


def add(zoo: Zoo, members: Sequence[Member]) -> int:
    """See :meth:`Zoo.add`."""
    check(zoo, members)
    groups: dict[str, list[Member]] = {}
    layouts: dict[str, Layout] = {}
    spaces: dict[str, WeightSpace] = {}
    for member in members:
        weights, layout = _layout(member)
        layouts[layout.key] = layout
        groups.setdefault(layout.key, []).append(weights)
        if member.space is not None:
            spaces[member.space.digest] = member.space
    batches: list[Batch] = []
    try:
        for key in sorted(groups):
            group, layout = groups[key], layouts[key]
            tensors = shards.stack([member.weights for member in group], layout)
            batches.append((shards.write(zoo.path, layout, tensors), group))
        return commit(zoo, batches, spaces)
    finally:
        _discard(batches)


def add_stacked(zoo: Zoo, tensors: Mapping[str, Tensor], entries: Sequence[Entry],
                space: WeightSpace | None) -> int:
    """See :meth:`Zoo.add_stacked`."""
    check(zoo, entries)
    layout = Layout.of(tensors, space.digest if space is not None else None, lead=1)
    for name, tensor in tensors.items():
        if tensor.dim() == 0 or tensor.shape[0] != len(entries):
            raise ZooError(f"tensor {printable(name, 80)!r} of shape {tuple(tensor.shape)} does "
                           f"not hold {len(entries)} members along its first axis")
    _check_space(layout, space, entries[0].id if entries else "")
    if not entries:
        return 0
    batches = [(shards.write(zoo.path, layout, {n: t.detach() for n, t in tensors.items()}),
                entries)]
    try:
        return commit(zoo, batches, {} if space is None else {space.digest: space})
    finally:
        _discard(batches)


def _layout(member: Member) -> tuple[Member, Layout]:
    layout = Layout.of(member.weights, None if member.space is None else member.space.digest)
    _check_space(layout, member.space, member.id)
    return member, layout


def _check_space(layout: Layout, space: WeightSpace | None, who: str) -> None:
    """A member must fit the space that it is said to have."""
    if space is None:
        return
    shapes = {name: shape for name, shape, _ in layout.tensors}
    shapes |= {alias: shapes[owner] for alias, owner in layout.aliases}
    for name in natural_sorted(space.tensors):
        names = (name, *(a for a, o in space.aliases.items() if o == name))
        found = next((shapes[n] for n in names if n in shapes), None)
        if found != space.tensors[name].shape:
            raise ZooError(f"member {who!r}: tensor {printable(name, 80)!r} has shape {found}, its "
                           f"space says {space.tensors[name].shape}")


def check(zoo: Zoo, entries: Sequence[Entry]) -> None:
    """Raise ZooError, before anything is written, for entries that cannot be added."""
    seen: set[str] = set()
    for entry in entries:
        check_entry(entry)
        if entry.id in seen:
            raise ZooError(f"id {entry.id!r} occurs twice among the members to add")
        seen.add(entry.id)
    if len(entries) > MAX_ROWS:
        raise ZooError(f"{len(entries)} members at once; a shard holds at most {MAX_ROWS}. "
                       "Add them in chunks")
    absent = set(zoo.missing(seen))
    if len(absent) < len(seen):
        raise ZooError(f"member {sorted(seen - absent)[0]!r} is in the zoo already; give it "
                       "another id, or skip it (Zoo.missing tells which are new)")


def commit(zoo: Zoo, batches: Sequence[Batch], spaces: Mapping[str, WeightSpace]) -> int:
    """Name the shards and insert their rows, in one transaction; returns the number of members."""
    rows = [[values(entry) for entry in entries] for _, entries in batches]
    kinds = _kinds([row for part in rows for row in part])
    with zoo.index.transaction() as db, _placing() as placed:
        check(zoo, [entry for _, entries in batches for entry in entries])
        columns = zoo.index.register(db, kinds)
        names = {name: columns[name].sql for name in kinds}
        first = db.execute("SELECT coalesce(max(shard), -1) + 1 FROM shards").fetchone()[0]
        for shard, ((written, entries), found) in enumerate(zip(batches, rows, strict=True), first):
            placed.append(shards.place(zoo.path, written, shard))
            _insert_shard(db, shard, written, spaces)
            _insert_rows(db, shard, written, entries, found, names)
        _check_splits(zoo, batches)
    return sum(len(entries) for _, entries in batches)


@contextmanager
def _placing() -> Iterator[list[Path]]:
    """Takes placed shards away again on failure, while the other writers still wait.

    A process that is killed here leaves them; the next add replaces them.
    """
    placed: list[Path] = []
    try:
        yield placed
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        raise


def _check_splits(zoo: Zoo, batches: Sequence[Batch]) -> None:
    if any(entry.split is not None for _, entries in batches for entry in entries):
        from metanet.zoo.splits import refuse_leaks

        refuse_leaks(zoo)


def _kinds(rows: Sequence[Mapping[str, Value]]) -> dict[str, str]:
    """The one kind of every column."""
    rank = ["bool", "int", "float", "str"]
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            kind = kind_of(value)
            old = kinds.get(name)
            if kind is None or kind == old:
                continue
            if old is not None and "str" in (kind, old):
                raise ZooError(f"column {printable(name, 80)!r} holds both {old} and {kind}; give "
                               "every member the same kind of value")
            kinds[name] = kind if old is None else max(kind, old, key=rank.index)
    return kinds


def _insert_shard(db: sqlite3.Connection, shard: int, written: Written,
                  spaces: Mapping[str, WeightSpace]) -> None:
    layout = written.layout
    space = spaces.get(layout.space or "")
    definition = None if space is None else json.dumps(space.to_json(), sort_keys=True)
    db.execute("INSERT OR IGNORE INTO layouts VALUES (?, ?, ?, ?)",
               (layout.key, layout.signature, layout.space, definition))
    db.execute("INSERT INTO shards VALUES (?, ?, ?, ?, ?)",
               (shard, layout.key, len(written.hashes), written.nbytes, written.sha256))


def _insert_rows(db: sqlite3.Connection, shard: int, written: Written, entries: Sequence[Entry],
                 found: Sequence[Mapping[str, Value]], names: Mapping[str, str]) -> None:
    own = sorted(names)
    listed = ", ".join(["place, id, space, layout, shard, row, hash, parent, step, split",
                        *(f'"{names[name]}"' for name in own)])
    marks = ", ".join("?" * (10 + len(own)))
    layout = written.layout
    rows: list[tuple[Any, ...]] = []
    for row, (entry, value) in enumerate(zip(entries, found, strict=True)):
        rows.append((shard * MAX_ROWS + row, entry.id, layout.space, layout.key, shard, row,
                     written.hashes[row], entry.parent, entry.step, entry.split,
                     *(value.get(name) for name in own)))
    db.executemany(f"INSERT INTO members ({listed}) VALUES ({marks})", rows)  # noqa: S608


def _discard(batches: Sequence[Batch]) -> None:
    for written, _ in batches:
        written.path.unlink(missing_ok=True)
