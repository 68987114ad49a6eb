"""The normal form of a whole space: trees, pointers, bases, the order and names of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from metanet.symmetry.axis import Axis, Fixed, Occ, map_leaves, occurrences
from metanet.symmetry.group import Group
from metanet.symmetry.kinds import normal_exponent
from metanet.symmetry.layout import blocks, normal_pointers
from metanet.symmetry.normal import normal_axis


def normal_tensors(
    groups: Mapping[str, Group],
    trees: Mapping[str, Sequence[Axis]],
    sizes: Mapping[str, int],
) -> tuple[dict[str, Group], dict[str, tuple[Axis, ...]]]:
    """Groups by first occurrence, with bases in their order, and the axes in normal form."""
    kept = {label: g for label, g in groups.items() if not (g.kind == "S" and g.size == 1)}
    over = {
        label: () if g.kind == "fixed" else tuple(b for b in g.over if b in kept and sizes[b] > 1)
        for label, g in kept.items()
    }
    bases = {base for labels in over.values() for base in labels}
    live = {
        label: replace(g, over=over[label])
        for label, g in kept.items()
        if g.kind != "fixed" or label in bases
    }

    def leaf(node: Occ | Fixed) -> Axis:
        if isinstance(node, Fixed):
            return node
        if node.label not in live:
            return Fixed(sizes[node.label])
        group = live[node.label]
        exponent = normal_exponent(group.kind, node.exponent)
        at = node.at if group.over else None
        return Occ(node.label, group.over, at, 1 if exponent is None else exponent)

    axes = {
        name: tuple(map(normal_axis, _pointed(name, [map_leaves(t, leaf) for t in tree], sizes)))
        for name, tree in trees.items()
    }
    order = _order(live, axes)
    ordered = {
        label: replace(live[label], over=_bases(live[label], live, order)) for label in order
    }
    return ordered, {
        name: tuple(map_leaves(tree, lambda node: _reordered(node, ordered)) for tree in axes[name])
        for name in axes
    }


def _pointed(name: str, trees: list[Axis], sizes: Mapping[str, int]) -> list[Axis]:
    normal = [normal_axis(tree) for tree in trees]
    # Resolving every base here makes an ambiguous one an error of the constructor.
    blocks(name, normal, sizes)
    return normal_pointers(normal, sizes, name)


def _order(groups: Mapping[str, Group], axes: Mapping[str, Sequence[Axis]]) -> list[str]:
    seen: dict[str, None] = {}
    for trees in axes.values():
        for tree in trees:
            seen.update(dict.fromkeys(occ.label for occ in occurrences(tree)))
    return [label for label in seen if label in groups]


def _bases(group: Group, groups: Mapping[str, Group], order: Sequence[str]) -> tuple[str, ...]:
    """Bases before what is fibred over them, else by first occurrence."""
    return tuple(sorted(group.over, key=lambda b: (len(groups[b].over), order.index(b))))


def _reordered(node: Occ | Fixed, groups: Mapping[str, Group]) -> Axis:
    return replace(node, bases=groups[node.label].over) if isinstance(node, Occ) else node


def relabelled(
    groups: Mapping[str, Group],
    axes: Mapping[str, Sequence[Axis]],
    aliases: Mapping[str, str],
) -> tuple[Any, ...]:
    """The normal form as nested tuples in which groups are numbers: what ``==`` compares."""
    number = {label: index for index, label in enumerate(groups)}

    def code(axis: Axis) -> tuple[Any, ...]:
        if isinstance(axis, Fixed):
            return ("!", axis.size)
        if isinstance(axis, Occ):
            return ("g", number[axis.label], axis.at, axis.exponent)
        return (type(axis).__name__, *map(code, axis.parts))

    return (
        tuple((g.kind, g.size, tuple(number[b] for b in g.over)) for g in groups.values()),
        tuple((name, *map(code, trees)) for name, trees in axes.items()),
        tuple(sorted(aliases.items())),
    )
