"""Solve the sizes of groups from the shapes of tensors, for texts without group lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, axis_size, occurrences
from metanet.symmetry.group import Group
from metanet.symmetry.text import print_axes


def solve_groups(
    groups: Mapping[str, Group],
    tensors: Mapping[str, Sequence[Axis]],
    shapes: Mapping[str, Sequence[int]],
) -> dict[str, Group]:
    """Groups with all sizes known; what is not declared is an ``S`` of the size that fits.

    Each axis is an equation; one with a single unknown is solved (a size polynomial grows with
    it, so by bisection), until none is left.

    Raises:
        SymmetryError: if a tensor has no shape, sizes stay unknown, or an axis does not fit.
    """
    over = _declared_bases(groups, tensors)
    sizes = {label: group.size for label, group in groups.items()}
    equations = _equations(tensors, shapes)
    progress = True
    while progress:
        progress = False
        for where, axis, length in equations:
            unknown = {occ.label for occ in occurrences(axis)} - sizes.keys()
            if len(unknown) == 1:
                label = unknown.pop()
                sizes[label] = _solve(axis, label, sizes, length, where)
                progress = True
    missing = sorted(over.keys() - sizes.keys())
    if missing:
        raise SymmetryError(
            f"the sizes of {', '.join(missing)} do not follow from the shapes; "
            f"add a line such as 'group {missing[0]} = S(N)'"
        )
    for where, axis, length in equations:
        if axis_size(axis, sizes) != length:
            raise SymmetryError(
                f"{where}: {print_axes([axis])} has size {axis_size(axis, sizes)}, "
                f"the checkpoint {length}"
            )
    return {
        label: groups.get(label) or Group(label, sizes[label], "S", bases)
        for label, bases in over.items()
    }


def _declared_bases(
    groups: Mapping[str, Group], tensors: Mapping[str, Sequence[Axis]]
) -> dict[str, tuple[str, ...]]:
    over = {label: group.over for label, group in groups.items()}
    for axes in tensors.values():
        for occ in (occ for axis in axes for occ in occurrences(axis)):
            over.setdefault(occ.label, occ.bases)
    return over


def _equations(
    tensors: Mapping[str, Sequence[Axis]], shapes: Mapping[str, Sequence[int]]
) -> list[tuple[str, Axis, int]]:
    equations = []
    for name, axes in tensors.items():
        if name not in shapes:
            raise SymmetryError(f"tensor {name!r} of the text is not in the checkpoint")
        shape = shapes[name]
        if len(shape) != len(axes):
            raise SymmetryError(
                f"{name}: the text has {len(axes)} axes ({print_axes(axes)}), "
                f"the checkpoint {len(shape)} {tuple(shape)}"
            )
        equations += [(f"{name} axis {i}", axes[i], shape[i]) for i in range(len(axes))]
    return equations


def _solve(axis: Axis, label: str, sizes: Mapping[str, int], length: int, where: str) -> int:
    low, high = 1, max(length, 1)
    while low < high:
        middle = (low + high) // 2
        if axis_size(axis, {**sizes, label: middle}) < length:
            low = middle + 1
        else:
            high = middle
    if axis_size(axis, {**sizes, label: low}) != length:
        raise SymmetryError(f"{where}: no size of {label!r} makes {print_axes([axis])} = {length}")
    return low
