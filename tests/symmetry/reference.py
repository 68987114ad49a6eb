"""Slow, obvious references: what an axis means, and what an element does, index by index."""

from __future__ import annotations

from itertools import product

import numpy as np

from metanet.symmetry import Axis, Fixed, Occ, Prod, Sum, WeightSpace
from metanet.symmetry.axis import axis_size
from metanet.symmetry.element import GroupElement

Word = tuple[tuple[Occ, int], ...]


def denotation(axis: Axis, sizes: dict[str, int]) -> list[Word]:
    """For each index of the axis, the labelled digits it consists of, major to minor."""
    if isinstance(axis, Fixed):
        return [()] * axis.size
    if isinstance(axis, Occ):
        return [((axis, i),) for i in range(sizes[axis.label])]
    if isinstance(axis, Sum):
        return [word for part in axis.parts for word in denotation(part, sizes)]
    words: list[Word] = [()]
    for part in axis.parts:
        words = [head + tail for head in words for tail in denotation(part, sizes)]
    return words


def apply_slowly(
    element: GroupElement, name: str, array: np.ndarray
) -> np.ndarray:
    """The action on one tensor from declared trees, entry by entry.

    An output entry reads from the input entry whose digits are the tables' values; the row of a
    fibred table is chosen by the output's base digits.
    """
    space = element.space
    sizes = {g.label: g.size for g in (*space.normal_groups, *space.fixed)}
    for group in declared(space):
        sizes.setdefault(group.label, group.size)
    trees = space.tensors[name].axes
    cells = [places(axis, sizes) for axis in trees]
    out = np.empty_like(array)
    for index in product(*(range(n) for n in array.shape)):
        digits = [d for axis, i in enumerate(index) for d in cells[axis][i]]
        owner = [axis for axis, i in enumerate(index) for _ in cells[axis][i]]
        source_digits, factor = [], 1.0
        for position, (occ, value, path) in enumerate(digits):
            if occ is None or occ.label not in element.tables:
                source_digits.append((path, value))
                continue
            group = space.group(occ.label)
            row = tuple(base_value(b, occ, position, digits, owner) for b in group.over)
            source_digits.append((path, int(element.tables[occ.label][(*row, value)])))
            if occ.label in element.values:
                factor *= element.values[occ.label][(*row, value)] ** occ.exponent
        source, start = [], 0
        for axis, i in enumerate(index):
            count = len(cells[axis][i])
            want = source_digits[start : start + count]
            source.append(find(cells[axis], want))
            start += count
        out[index] = factor * array[tuple(source)]
    return out


def declared(space: WeightSpace):
    return space._declared.values()


def places(axis: Axis, sizes: dict[str, int], path: tuple = ()) -> list[list]:
    """For each index, its digits as (occ or None, value, path in the tree)."""
    if isinstance(axis, Fixed):
        return [[(None, i, path)] for i in range(axis.size)]
    if isinstance(axis, Occ):
        return [[(axis, i, path)] for i in range(sizes[axis.label])]
    parts = [places(part, sizes, (*path, n)) for n, part in enumerate(axis.parts)]
    if isinstance(axis, Sum):
        return [cell for part in parts for cell in part]
    cells: list[list] = [[]]
    for part in parts:
        cells = [head + tail for head in cells for tail in part]
    return cells


def find(cells: list[list], want: list[tuple]) -> int:
    for index, cell in enumerate(cells):
        if [(path, value) for _, value, path in cell] == want:
            return index
    raise AssertionError("no such cell")


def base_value(base: str, occ: Occ, position: int, digits: list, owner: list[int]) -> int:
    own = owner[position]
    same = [p for p in range(position) if owner[p] == own and label(digits[p]) == base]
    if occ.at is not None and occ.at != own:
        named = [p for p in range(len(digits)) if owner[p] == occ.at and label(digits[p]) == base]
        if len(named) == 1:
            return digits[named[0]][1]
    if same:
        return digits[same[-1]][1]
    if occ.at == own:
        others = [p for p in range(len(digits)) if owner[p] == own and label(digits[p]) == base]
    else:
        others = [p for p in range(len(digits)) if owner[p] != own and label(digits[p]) == base]
    (only,) = others
    return digits[only][1]


def label(digit) -> str | None:
    return digit[0].label if digit[0] is not None else None


def size_of(axis: Axis, sizes: dict[str, int]) -> int:
    return axis_size(axis, sizes)


__all__ = ["Prod", "apply_slowly", "denotation", "size_of"]
