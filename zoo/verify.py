"""Checking a zoo: its index, every byte of its shards, its split, and the gate against leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from metanet.zoo import shard as shards
from metanet.zoo.layout import Layout
from metanet.zoo.leaks import GateReport, gate
from metanet.zoo.links import links
from metanet.zoo.splits import SplitLeak, find_leaks

from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.store import Zoo


@dataclass(frozen=True)
class ZooVerification:
    """What was found.

    Attributes:
        members: members in the index.
        missing: shards that are named and not there.
        corrupt: what is damaged, in words.
        split_leaks: members that belong together on both sides of the split.
        gate: the classifiers' checks; None if they were not run.
        orphans: files that no row names: what a killed writer left. Harmless; ``clean`` removes.
        deep: whether every byte was hashed.
    """

    members: int
    missing: tuple[str, ...] = ()
    corrupt: tuple[str, ...] = ()
    split_leaks: tuple[SplitLeak, ...] = ()
    gate: GateReport | None = None
    orphans: tuple[str, ...] = ()
    deep: bool = True
    complete: bool = field(default=False)

    @property
    def leaks(self) -> tuple[str, ...]:
        """Every leak in words."""
        found = self.gate.leaks if self.gate is not None else ()
        return (*map(str, self.split_leaks), *map(str, found))

    @property
    def ok(self) -> bool:
        """Nothing missing, nothing corrupt, nothing leaks."""
        return not (self.missing or self.corrupt or self.leaks)


def verify(zoo: Zoo, deep: bool = True, *, leaks: bool = True,
           labels: Sequence[str] | None = None, seed: int = 0) -> ZooVerification:
    """Check a zoo.

    Args:
        zoo: the zoo.
        deep: hash every shard and every member; else only sizes and headers are compared.
        leaks: run the leak gate's classifiers (the split is always checked).
        labels: columns that hold a class; by default what the card says.
        seed: of the leak gate.
    """
    corrupt = _index(zoo)
    missing: list[str] = []
    layouts = {} if corrupt else zoo.layouts
    for number, key, members, nbytes, sha256 in zoo.index.rows(
            "SELECT shard, layout, members, bytes, sha256 FROM shards ORDER BY shard"):
        path = shards.path_of(zoo.path, int(str(number)))
        if not path.is_file():
            missing.append(f"{shards.FOLDER}/{path.name}")
        elif str(key) in layouts:
            corrupt += _shard(zoo, path, layouts[str(key)], int(str(number)), int(str(members)),
                              (int(str(nbytes)), str(sha256)), deep)
    whole = not (missing or corrupt)
    return ZooVerification(
        len(zoo), tuple(missing), tuple(corrupt), tuple(find_leaks(links(zoo))),
        gate(zoo, labels, seed) if leaks and whole else None,
        tuple(f"{shards.FOLDER}/{p.name}" for p in orphans(zoo)), deep, zoo.complete)


def _index(zoo: Zoo) -> list[str]:
    """Is the index sound, and do its tables agree?"""
    found = [str(row[0]) for row in zoo.index.rows("PRAGMA integrity_check(20)")]
    bad = [] if found == ["ok"] else [f"index: {line}" for line in found]
    try:
        zoo.layouts, zoo.spaces  # noqa: B018 - reading them checks their digests
    except ZooError as error:
        bad.append(str(error))
    odd = zoo.index.rows(
        "SELECT m.id FROM members m LEFT JOIN shards s ON s.shard = m.shard "
        "LEFT JOIN layouts l ON l.layout = m.layout WHERE s.shard IS NULL OR s.layout <> m.layout "
        "OR m.row >= s.members OR m.row < 0 OR m.place <> m.shard * 1048576 + m.row "
        "OR l.layout IS NULL OR l.space IS NOT m.space LIMIT 20")
    bad += [f"member {row[0]!r}: its row does not agree with its shard" for row in odd]
    few = zoo.index.rows(
        "SELECT s.shard FROM shards s WHERE s.members <> "
        "(SELECT count(*) FROM members m WHERE m.shard = s.shard) LIMIT 20")
    return bad + [f"shard {row[0]}: the index holds rows of some of its members only"
                  for row in few]


def _shard(zoo: Zoo, path: Path, layout: Layout, number: int, members: int,
           wanted: tuple[int, str], deep: bool) -> list[str]:
    name = f"{shards.FOLDER}/{path.name}"
    if path.stat().st_size != wanted[0]:
        return [f"{name}: {path.stat().st_size} bytes, the index says {wanted[0]}"]
    try:
        shards.header(path, layout, members)
        if not deep:
            return []
        if shards.file_hash(path) != wanted[1]:
            return [f"{name}: its bytes are not those that were written (sha256 differs)"]
        hashes = shards.content_hashes(layout, shards.read(path, layout, members))
    except ZooError as error:
        return [str(error)]
    rows = zoo.index.rows("SELECT id, hash FROM members WHERE shard = ? ORDER BY row", number)
    return [f"{name}: member {who!r} does not have its content hash"
            for (who, stored), found in zip(rows, hashes, strict=False) if stored != found]


def orphans(zoo: Zoo) -> list[Path]:
    """Files among the shards that no row names; what a live writer is writing is not one."""
    folder = zoo.path / shards.FOLDER
    if not folder.is_dir():
        return []
    named = {shards.name_of(int(str(row[0]))) for row in
             zoo.index.rows("SELECT shard FROM shards")}
    return sorted(path for path in folder.iterdir() if path.name not in named
                  and (not shards.is_temporary(path) or shards.abandoned(path)))


def clean(zoo: Zoo) -> list[Path]:
    """Remove orphans, while no writer can be placing a shard; returns what was removed."""
    with zoo.index.transaction():
        found = orphans(zoo)
        for path in found:
            path.unlink(missing_ok=True)
    return found
