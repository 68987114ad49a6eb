"""What a space must fulfil before anything else is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, axis_size, occurrences
from metanet.symmetry.group import Group
from metanet.symmetry.kinds import KINDS, PERMUTING, normal_exponent
from metanet.symmetry.text import is_label, print_axes


def check_groups(groups: Iterable[Group]) -> dict[str, Group]:
    """Groups by label: known kinds, sizes of at least 1, bases closed and without a cycle."""
    table: dict[str, Group] = {}
    for group in groups:
        if not is_label(group.label):
            raise SymmetryError(f"{group.label!r} is no label ([A-Za-z_][A-Za-z0-9_]*)")
        if group.label in table:
            raise SymmetryError(f"group {group.label!r} is declared twice")
        if group.kind not in KINDS:
            raise SymmetryError(f"group {group.label!r}: unknown kind {group.kind!r}; "
                                f"known are {', '.join(KINDS)}")
        if not isinstance(group.size, int) or group.size < 1:
            raise SymmetryError(f"group {group.label!r}: size {group.size!r} is not positive")
        table[group.label] = group
    for group in table.values():
        _check_bases(group, table)
    return table


def _check_bases(group: Group, table: Mapping[str, Group]) -> None:
    if len(set(group.over)) != len(group.over) or group.label in group.over:
        raise SymmetryError(f"group {group.label!r} is fibred over {group.over}: a cycle or repeat")
    for base in group.over:
        if base not in table:
            raise SymmetryError(f"group {group.label!r} is fibred over unknown {base!r}")
        kind = table[base].kind
        if kind not in PERMUTING and kind != "fixed":
            raise SymmetryError(f"group {group.label!r}: a base of kind {kind!r} has no indices "
                                f"to be fibred over ({base!r})")
        missing = set(table[base].over) - set(group.over)
        if missing:
            raise SymmetryError(f"group {group.label!r} is fibred over {base!r} but not over that "
                                f"group's own base {sorted(missing)[0]!r}; write all of them")


def check_tensors(
    groups: Mapping[str, Group],
    tensors: Mapping[str, tuple[Sequence[int], Sequence[Axis]]],
) -> None:
    """Axes fit shapes, occurrences fit their groups, every group occurs."""
    sizes = {label: group.size for label, group in groups.items()}
    unused = set(groups)
    for name, (shape, axes) in tensors.items():
        for axis in axes:
            for occ in occurrences(axis):
                _check_occurrence(groups, name, occ.label, occ.bases, occ.at, occ.exponent,
                                  len(axes))
                unused.discard(occ.label)
        lengths = tuple(axis_size(axis, sizes) for axis in axes)
        if lengths != tuple(shape):
            raise SymmetryError(f"{name}: axes {print_axes(axes)} have lengths {lengths}, "
                                f"the shape is {tuple(shape)}")
    if unused:
        raise SymmetryError(f"group {sorted(unused)[0]!r} occurs in no tensor")


def _check_occurrence(
    groups: Mapping[str, Group], name: str, label: str, bases: tuple[str, ...], at: int | None,
    exponent: int, rank: int,
) -> None:
    if label not in groups:
        raise SymmetryError(f"{name}: group {label!r} is not declared")
    group = groups[label]
    if set(bases) != set(group.over) or len(bases) != len(group.over):
        raise SymmetryError(f"{name}: {label!r} stands over {bases or 'nothing'}, "
                            f"but its group is fibred over {group.over or 'nothing'}")
    if at is not None and not 0 <= at < rank:
        raise SymmetryError(f"{name}: {label!r}@{at} points beyond the {rank} axes")
    if normal_exponent(group.kind, exponent) is None:
        raise SymmetryError(f"{name}: exponent {exponent} of {label!r} has no meaning for kind "
                            f"{group.kind!r}; it is -1, 0 or 1")
