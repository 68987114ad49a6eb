"""An axis is a tree of occurrences, private fixed sizes, products and direct sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Fixed:
    """A private fixed size, ``784!``: nobody else's, and without freedom."""

    size: int


@dataclass(frozen=True, slots=True)
class Occ:
    """One place where a group stands.

    ``bases`` are the labels that the group is fibred over; ``at`` names the axis that holds them
    where the nearest-digit rule would not find them; ``exponent`` says how an element
    acts here (1 as it is, -1 contragredient, 0 inert).
    """

    label: str
    bases: tuple[str, ...] = ()
    at: int | None = None
    exponent: int = 1


@dataclass(frozen=True, slots=True)
class Prod:
    """Digits from major to minor (mixed radix)."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """A direct sum: the parts lie one behind the other."""

    parts: tuple[Axis, ...]


Axis: TypeAlias = Fixed | Occ | Prod | Sum


def axis_size(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Length of an axis when the groups have these sizes."""
    if isinstance(axis, Fixed):
        return axis.size
    if isinstance(axis, Occ):
        return sizes[axis.label]
    parts = (axis_size(part, sizes) for part in axis.parts)
    return prod(parts) if isinstance(axis, Prod) else sum(parts)


def occurrences(axis: Axis) -> Iterator[Occ]:
    """All occurrences, depth first and left to right."""
    if isinstance(axis, Occ):
        yield axis
    elif isinstance(axis, (Prod, Sum)):
        for part in axis.parts:
            yield from occurrences(part)


def map_leaves(axis: Axis, function: Callable[[Occ | Fixed], Axis]) -> Axis:
    """The same tree with each leaf replaced by ``function(leaf)``."""
    if isinstance(axis, (Occ, Fixed)):
        return function(axis)
    return type(axis)(tuple(map_leaves(part, function) for part in axis.parts))


def tidy(axis: Axis) -> Axis:
    """The same tree without products in products, sums in sums, and lists of one."""
    if isinstance(axis, (Occ, Fixed)):
        return axis
    parts: list[Axis] = []
    for part in map(tidy, axis.parts):
        if isinstance(part, (Prod, Sum)) and type(part) is type(axis):
            parts += part.parts
        else:
            parts.append(part)
    return parts[0] if len(parts) == 1 else type(axis)(tuple(parts))
