"""Where matching starts: at random, near another element, or grown from the axes that are fixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from metanet.symmetry.assign import assign
from metanet.symmetry.element import GroupElement
from metanet.symmetry.gains import anchored, collect, family
from metanet.symmetry.group import Group
from metanet.symmetry.space import WeightSpace


def random_start(space: WeightSpace, rng: np.random.Generator) -> GroupElement:
    """Random permutations, signs and rotations; no scales."""
    found = space.random(int(rng.integers(2**31)))
    return GroupElement(space, found.tables, unscaled(found))


def kicked_start(element: GroupElement, rng: np.random.Generator) -> GroupElement:
    """An element with about a fifth of its groups drawn anew, and at least one.

    Restarts that keep most of what was found are cheaper than random ones and end higher (iterated
    local search: Lourenço, Martin and Stützle 2003).
    """
    space = element.space
    if not space.groups:
        return element
    drawn = random_start(space, rng)
    labels = [group.label for group in space.groups]
    redrawn = {label for label in labels if rng.random() < 0.2} or {str(rng.choice(labels))}

    def chosen(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {label: (new if label in redrawn else old)[label] for label in old}

    return GroupElement(space, chosen(element.tables, drawn.tables),
                        chosen(unscaled(element), drawn.values))


def unscaled(element: GroupElement) -> dict[str, np.ndarray]:
    """Values of an element but its scales."""
    return {label: value for label, value in element.values.items()
            if element.space.group(label).kind != "positive"}


def grown_start(
    space: WeightSpace, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> GroupElement:
    """Groups matched one after the other, each by tensors whose other groups are matched already.

    Inputs, outputs and biases come first. A start at the identity lets groups that are not matched
    yet drown a weak but clean signal (few inputs); this one does not hear them.
    """
    start = GroupElement(space)
    tables, values = start.tables, start.values
    settled = {group.label for group in space.normal_groups if group.kind == "fixed"}
    waiting = {group.label: group for group in space.groups}
    while waiting:
        ready = [g for g in waiting.values() if settled.issuperset(g.over)]
        best = max(ready, key=lambda g: _share(space, g, a, settled))
        gains = collect(space, best, (a, b), tables, values, settled)
        tables, values = assign(gains, tables, values)
        for member in family(space, best):
            settled.add(member.label)
            waiting.pop(member.label, None)
    return GroupElement(space, tables, values)


def _share(
    space: WeightSpace, group: Group, a: Mapping[str, Tensor], settled: set[str]
) -> float:
    """Share of the squared weights of a family that stands in blocks which are settled."""
    labels = {member.label for member in family(space, group)}
    heard = total = 0.0
    for name in dict.fromkeys(n for m in family(space, group) for n in m.tensors if n in a):
        for block in space.blocks(name):
            if not labels.isdisjoint(block.labels):
                size = float(block.view(a[name]).square().sum())
                total += size
                chain = next(p for p, label in enumerate(block.labels) if label in labels)
                own = {p for p, d in enumerate(block.digits)
                       if d.label in labels and (p == chain or chain in d.bases)}
                heard += size if anchored(block, own, settled) else 0.0
    return heard / total if total else 0.0
