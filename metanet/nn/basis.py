"""The linear equivariant basis of a space, factored as reduce → match → expand.

A basis term between two blocks is a partition of their slots: two slots may stand in one class
only if they have one label and, where the group is fibred, bases in one class. Restricting the
partition to the input gives a *pattern* to reduce by (diagonals, then means), the classes that
reach the output are the *signature*, and restricting it to the output gives the pattern to expand
by. Everything of one signature shares one matrix. (UNF, arXiv 2402.05232, for groups without
fibres; the count is then Π_g Bell(slots of g).)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations, permutations
from typing import TypeAlias

from metanet.errors import SymmetryError
from metanet.nn.grid import Grid, Slot, grids
from metanet.symmetry import WeightSpace

MAX_SLOTS = 6
DIAGONAL_SLOTS = 4

Signature: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""Surviving classes in canonical order: label, and places of the bases in this order."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A partition of the slots of a block; classes are numbered by their first slot."""

    classes: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    bases: tuple[tuple[int, ...], ...]

    @property
    def discrete(self) -> bool:
        """Whether no two slots are identified."""
        return all(len(members) == 1 for members in self.classes)

    def closed_sets(self) -> Iterator[tuple[int, ...]]:
        """Sets of classes that hold the bases of their members, smallest first."""
        every = range(len(self.classes))
        for size in range(len(self.classes) + 1):
            for chosen in combinations(every, size):
                if all(set(self.bases[i]) <= set(chosen) for i in chosen):
                    yield chosen

    def nodes(self) -> Iterator[tuple[int, ...]]:
        """The empty set, and each class with its bases."""
        yield ()
        for i, bases in enumerate(self.bases):
            yield tuple(sorted({*bases, i}))


@dataclass(frozen=True, slots=True)
class Piece:
    """A block seen through a pattern; ``order`` lists the surviving classes, canonically."""

    block: str
    pattern: Pattern
    order: tuple[int, ...]

    @property
    def survivors(self) -> frozenset[int]:
        """Surviving classes as a set."""
        return frozenset(self.order)


@dataclass(frozen=True)
class Bucket:
    """All that shares a signature: every pair (feature, term) is one basis term."""

    signature: Signature
    features: tuple[Piece, ...]  # reductions of inputs, one for each way to match them
    terms: tuple[Piece, ...]     # expansions into outputs


@dataclass(frozen=True)
class Basis:
    """Grids of a space and its buckets."""

    grids: dict[str, Grid]
    buckets: tuple[Bucket, ...]

    @cached_property
    def n_terms(self) -> int:
        """Basis terms, per pair of folded fixed indices."""
        return sum(len(b.features) * len(b.terms) for b in self.buckets)

    @cached_property
    def by_signature(self) -> dict[Signature, Bucket]:
        """Signature → bucket."""
        return {bucket.signature: bucket for bucket in self.buckets}


@lru_cache(maxsize=64)
def basis(space: WeightSpace, frozen: str = "auto") -> Basis:
    """The complete basis of a space; computed once per space.

    Raises:
        SymmetryError: if a block has more than six slots.
    """
    seen = grids(space, frozen)
    for name, grid in seen.items():
        if len(grid.slots) > MAX_SLOTS:
            raise SymmetryError(f"block {name!r} has {len(grid.slots)} permutable digits; the "
                                f"complete basis is offered for at most {MAX_SLOTS}. GMNLayer "
                                f"takes any number")
    return _collected(seen, {
        name: [(pattern, chosen) for pattern in patterns(grid.slots)
               for chosen in pattern.closed_sets()]
        for name, grid in seen.items()})


@lru_cache(maxsize=64)
def node_basis(space: WeightSpace, frozen: str = "auto") -> Basis:
    """The part of the basis between blocks and single nodes (or the global state).

    Diagonals count in blocks of up to four slots. Its size is linear in the number of blocks.
    """
    seen = grids(space, frozen)
    views = {}
    for name, grid in seen.items():
        small = len(grid.slots) <= DIAGONAL_SLOTS
        every = patterns(grid.slots) if small else [discrete(grid.slots)]
        views[name] = [(pattern, chosen) for pattern in every for chosen in pattern.nodes()]
    return _collected(seen, views)


def discrete(slots: Sequence[Slot]) -> Pattern:
    """The pattern that identifies no slots."""
    return _pattern(slots, {i: i for i in range(len(slots))})


def _collected(seen: dict[str, Grid],
               views: dict[str, list[tuple[Pattern, tuple[int, ...]]]]) -> Basis:
    features: dict[Signature, list[Piece]] = {}
    terms: dict[Signature, list[Piece]] = {}
    for name, found in views.items():
        for pattern, chosen in found:
            signature, orders = matchings(pattern, chosen)
            pieces = [Piece(name, pattern, order) for order in orders]
            features.setdefault(signature, []).extend(pieces)
            terms.setdefault(signature, []).append(pieces[0])
    order = sorted(features, key=lambda s: (len(s), s))
    return Basis(seen, tuple(Bucket(s, tuple(features[s]), tuple(terms[s])) for s in order))


def patterns(slots: Sequence[Slot]) -> tuple[Pattern, ...]:
    """All valid partitions of slots; the discrete one comes first."""
    order = sorted(range(len(slots)), key=lambda i: len(slots[i].bases))
    found = [_pattern(slots, home) for home in _assign(slots, order, {}, 0)]
    return tuple(sorted(found, key=lambda p: -len(p.classes)))


def _assign(slots: Sequence[Slot], order: Sequence[int], home: dict[int, int], used: int
            ) -> Iterator[dict[int, int]]:
    """Class of every slot: join a class of the same label and base classes, or open a new one."""
    if len(home) == len(order):
        yield dict(home)
        return
    slot = order[len(home)]
    key = (slots[slot].label, tuple(home[b] for b in slots[slot].bases))
    fits = {home[i] for i in home
            if (slots[i].label, tuple(home[b] for b in slots[i].bases)) == key}
    for choice in (*sorted(fits), used):
        yield from _assign(slots, order, {**home, slot: choice}, max(used, choice + 1))


def _pattern(slots: Sequence[Slot], home: dict[int, int]) -> Pattern:
    names = list(dict.fromkeys(home[i] for i in range(len(slots))))
    classes = tuple(tuple(i for i in range(len(slots)) if home[i] == name) for name in names)
    labels = tuple(slots[members[0]].label for members in classes)
    bases = tuple(tuple(names.index(home[b]) for b in slots[members[0]].bases)
                  for members in classes)
    return Pattern(classes, labels, bases)


def matchings(pattern: Pattern, chosen: Sequence[int]
              ) -> tuple[Signature, list[tuple[int, ...]]]:
    """Canonical signature of surviving classes, and all orders of them that spell it."""
    by_label = sorted(chosen, key=lambda i: pattern.labels[i])
    labels = [pattern.labels[i] for i in by_label]
    best: Signature | None = None
    orders: list[tuple[int, ...]] = []
    for order in permutations(by_label):
        if [pattern.labels[i] for i in order] != labels:
            continue
        spelled = tuple((pattern.labels[i], tuple(order.index(b) for b in pattern.bases[i]))
                        for i in order)
        if best is None or spelled < best:
            best, orders = spelled, [order]
        elif spelled == best:
            orders.append(order)
    return best or (), orders


def node_signature(space: WeightSpace, label: str) -> Signature:
    """The signature of a group's neurons: one class of its label and one of each base."""
    labels = (*space.group(label).over, label)
    bases = tuple(tuple(labels.index(b) for b in space.group(name).over) for name in labels)
    places = range(len(labels))
    return matchings(Pattern(tuple((i,) for i in places), labels, bases), places)[0]
