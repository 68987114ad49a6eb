"""Splits without leaks: whole runs, images, families or bands go to one part, or it is refused.

Equal weights, lineage, runs, views of one image and near-duplicates always stay together, whatever
the split is by; ``by`` only says which larger units are kept whole as well.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from metanet.zoo.index import resolve
from metanet.zoo.links import REASONS, Links, joined, lineage, links
from metanet.zoo.members import MAX_ID

from metanet.checkpoint.names import printable
from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.store import Zoo

PARTS = {"train": 0.7, "val": 0.15, "test": 0.15}
# by → column that says which members are one unit; None: the links alone say it.
_BY = {"run": None, "lineage": None, "member": None, "image": "config.image",
       "data": "config.data", "architecture": "layout", "repo": "config.repo", "column": None,
       "band": None}


@dataclass(frozen=True)
class SplitLeak:
    """Members that belong together but stand on different sides.

    Attributes:
        kind: why they belong together (hash, lineage, run, image, near_duplicates, …).
        shared: what they share.
        parts: the parts they stand in.
        members: some of their ids.
    """

    kind: str
    shared: str
    parts: tuple[str, ...]
    members: tuple[str, ...]

    def __str__(self) -> str:
        reason = REASONS.get(self.kind, f"same {self.kind}")
        names = ", ".join(repr(name) for name in self.members[:4])
        return (f"{self.kind} {printable(self.shared, 24)!r} stands in {' and '.join(self.parts)}: "
                f"{names} ({reason})")


@dataclass(frozen=True)
class SplitReport:
    """A stored split.

    Attributes:
        by: what it was made by.
        counts: members in each part; ``unassigned`` ones stand in none.
        units: independent units that were dealt out.
        column, seed, parts, test: how it was made.
    """

    by: str
    counts: Mapping[str, int]
    units: int
    unassigned: int = 0
    column: str | None = None
    seed: int | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    test: tuple[Any, ...] | None = None


def find_leaks(known: Links) -> list[SplitLeak]:
    """Every group that stands on both sides of the stored split."""
    parts = sorted({part for part in known.split if part is not None})
    code = np.array([parts.index(p) if p is not None else -1 for p in known.split])
    out = []
    for kind, group in known.groups.items():
        has = code >= 0
        n = int(group.max(initial=-1)) + 1
        low, high = np.full(n, len(parts)), np.full(n, -1)
        np.minimum.at(low, group[has], code[has])
        np.maximum.at(high, group[has], code[has])
        for number in np.flatnonzero(high > low).tolist():
            places = np.flatnonzero((group == number) & has)
            sides = tuple(sorted({parts[code[i]] for i in places}))
            first = {code[i]: i for i in reversed(places)}  # one of every side
            names = tuple(known.ids[i] for i in sorted(first.values()))
            out.append(SplitLeak(kind, known.shown[kind].get(number, ""), sides, names))
    return out


def refuse_leaks(zoo: Zoo) -> None:
    """Raise ZooError, with the reason, if the split in the index leaks."""
    found = find_leaks(links(zoo))
    if found:
        rest = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        raise ZooError(f"{zoo.path}: this split leaks: {found[0]}{rest}. Keep what belongs "
                       "together in one part, or let `metanet zoo split` deal it out")


def set_split(zoo: Zoo, parts: Mapping[str, str | None], report: SplitReport | None = None
              ) -> SplitReport:
    """Store a split: id → part or None; members that are not named keep their part.

    Raises:
        ZooError: for an unknown id, or if it would leak; the index then stays as it was.
    """
    for name, part in parts.items():
        if part is not None and not (isinstance(part, str) and 0 < len(part) <= MAX_ID
                                     and part.isprintable()):
            raise ZooError(f"part {printable(part, 80)!r} of member {printable(name, 80)!r} is not "
                           "a printable text; write train, val or test")
    with zoo.index.transaction() as db:
        absent = zoo.missing(parts)
        if absent:
            raise ZooError(f"no member {printable(absent[0], 80)!r} in {zoo.path}, so it has no "
                           "part")
        db.executemany("UPDATE members SET split = ? WHERE id = ?",
                       [(part, name) for name, part in parts.items()])
        refuse_leaks(zoo)
        report = report or _own_report(zoo)
        db.execute("INSERT OR REPLACE INTO facts VALUES ('split', ?)", (_text(report),))
    return report


def _own_report(zoo: Zoo) -> SplitReport:
    rows = zoo.index.rows("SELECT split, count(*) FROM members GROUP BY split ORDER BY split")
    counts = {str(part): int(str(n)) for part, n in rows if part is not None}
    return SplitReport("own", counts, len(zoo), len(zoo) - sum(counts.values()))


def _text(report: SplitReport) -> str:
    from dataclasses import asdict

    return json.dumps(asdict(report), sort_keys=True)


def stored(zoo: Zoo) -> dict[str, Any] | None:
    """How the stored split was made, or None."""
    found = zoo.index.rows("SELECT value FROM facts WHERE key = 'split'")
    return json.loads(str(found[0][0])) if found else None


def split(zoo: Zoo, by: str, parts: Mapping[str, float] | None = None, *, seed: int = 0,
          column: str | None = None, test: Sequence[Any] | None = None) -> SplitReport:
    """Deal the members out into parts as :func:`deal` does, and store the split in the zoo."""
    dealt, report = deal(zoo, by, parts, seed=seed, column=column, test=test)
    return set_split(zoo, dealt, report)


def deal(zoo: Zoo, by: str, parts: Mapping[str, float] | None = None, *, seed: int = 0,
         column: str | None = None, test: Sequence[Any] | None = None
         ) -> tuple[dict[str, str | None], SplitReport]:
    """Deal the members out into parts and keep together what belongs together; nothing is stored.

    Args:
        zoo: the zoo.
        by: ``run`` or ``member`` (the links alone), ``lineage`` (also siblings whose parent is
            not in the zoo), ``image``, ``data``, ``architecture``, ``repo``, ``column`` (values of
            ``column`` are the units) or ``band`` (members whose ``column`` lies in
            ``test = (low, high)`` are the test part).
        parts: part → share of the members.
        seed: of the dealing.
        column: the column of ``column`` and ``band``; for the others, instead of the usual one.
        test: for ``band`` the range, bounds included; for the others the values that make up the
            test part. Units that are linked to both sides are left out (part None).

    Returns:
        Id → part or None, and how it was made.

    Raises:
        ZooError: if the units are too few for the parts, or a column or value is not there.
    """
    if by not in _BY:
        raise ZooError(f"cannot split by {printable(by, 40)!r}; known are {', '.join(_BY)}")
    shares = _shares(parts)
    known = links(zoo)
    if not known.ids:
        raise ZooError(f"{zoo.path}: holds no member to split")
    name = _column(zoo, by, column)
    values = None if name is None else _values(zoo, name)
    units = known.units()
    if by == "lineage":
        parents = [row[0] for row in zoo.index.rows("SELECT parent FROM members ORDER BY place")]
        units = joined([units, lineage(known.ids, parents, siblings=True)], len(units))
    held = None
    if test is not None or by == "band":
        held = _held(by, name, values, test)
    elif values is not None:
        units = joined([units, np.unique(values, return_inverse=True)[1].astype(np.int64)],
                       len(units))
    dealt = _deal(known, units, shares, seed, held)
    counts = Counter(part for part in dealt if part is not None)
    _not_empty(shares, counts, by, len(set(units.tolist())))
    report = SplitReport(by, dict(sorted(counts.items())), len(set(units.tolist())),
                         len(dealt) - counts.total(), name, seed, shares,
                         None if test is None else tuple(test))
    return dict(zip(known.ids, dealt, strict=True)), report


def _shares(parts: Mapping[str, float] | None) -> dict[str, float]:
    shares = dict(PARTS if parts is None else parts)
    if not shares or any(not s > 0 for s in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise ZooError(f"the shares {shares} are not positive numbers that add up to 1 at most")
    return shares


def _column(zoo: Zoo, by: str, column: str | None) -> str | None:
    if column is not None:
        return resolve(zoo.columns, column).name
    if by in ("column", "band"):
        raise ZooError(f"a split by {by} needs a column, such as config.lr")
    name = _BY[by]
    if name is not None and name not in zoo.columns:
        raise ZooError(f"a split by {by} needs the column {name}, which this zoo does not have; "
                       "name another column, or split by run")
    return name


def _values(zoo: Zoo, name: str) -> np.ndarray[Any, Any]:
    found = zoo.query()[name]
    gone = [v is None or v != v for v in found.tolist()]
    if any(gone):
        raise ZooError(f"{sum(gone)} of {len(gone)} members have no {name}, so they cannot be "
                       "split by it; take another column")
    return found if found.dtype != object else found.astype(str)


def _held(by: str, name: str | None, values: np.ndarray[Any, Any] | None,
          test: Sequence[Any] | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which members the test part is asked to hold."""
    if values is None or test is None:
        raise ZooError("a band needs a range: test=(low, high)" if by == "band" else
                       f"a split by {by} has no column whose values could be held out; name one")
    if by == "band":
        if len(test) != 2 or values.dtype.kind != "f":
            raise ZooError(f"a band needs a column of numbers and test=(low, high), not {name} and "
                           f"{tuple(test)!r}")
        held = (values >= float(test[0])) & (values <= float(test[1]))
    else:
        kind = float if values.dtype.kind == "f" else str
        try:
            wanted = [kind(value) for value in test]
        except ValueError:
            raise ZooError(f"{name} holds numbers, not {tuple(test)!r}") from None
        held = np.isin(values, wanted)
    if not held.any() or held.all():
        raise ZooError(f"{int(held.sum())} of {len(held)} members have {name} in {tuple(test)!r}; "
                       "neither the test part nor the rest may be empty")
    return held


def _deal(known: Links, units: Int64[np.ndarray, " n"], shares: Mapping[str, float], seed: int,
          held: np.ndarray[Any, np.dtype[np.bool_]] | None) -> list[str | None]:
    """Part of every member: units in a random order, each to the part that lacks most."""
    order = np.argsort(units, kind="stable")
    bounds = np.flatnonzero(np.diff(units[order])) + 1
    members = {min(known.ids[i] for i in unit): unit for unit in np.split(order, bounds)}
    out: list[str | None] = [None] * len(units)
    rest = []
    for name in sorted(members, key=lambda n: hashlib.sha256(f"{seed}/{n}".encode()).digest()):
        unit = members[name]
        if held is None or not held[unit].any():
            rest.append(unit)
        elif held[unit].all():
            for i in unit:
                out[i] = "test"
    free = {p: s for p, s in shares.items() if held is None or p != "test"} or {"train": 1.0}
    n = sum(map(len, rest))
    total = sum(shares.values()) if held is None else sum(free.values())
    lack = {part: share * n / max(total, 1.0 if held is None else 0.0)
            for part, share in free.items()}
    for unit in rest:
        part = max(lack, key=lack.__getitem__)
        if lack[part] <= 0:
            continue  # the shares add up to less than 1
        lack[part] -= len(unit)
        for i in unit:
            out[i] = part
    return out


def _not_empty(shares: Mapping[str, float], counts: Mapping[str, int], by: str, units: int) -> None:
    empty = [part for part in shares if not counts.get(part)]
    if empty:
        raise ZooError(f"part {empty[0]!r} would be empty: split by {by} there are {units} "
                       f"independent units for {len(shares)} parts. Take fewer parts, other shares "
                       "or smaller units")
