"""Gains kept between visits of a group: only what has moved since is multiplied again.

Late sweeps of matching move few neurons. The Gram matrix of a group is a sum over the digits that
it is contracted with, so where a neighbour's table changed in ``k`` places only these ``k`` slices
are multiplied: ``n² k`` instead of ``n² m``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metanet.symmetry.gains import Gains, collect, family, moved_view
from metanet.symmetry.group import Group
from metanet.symmetry.kinds import ROTATING
from metanet.symmetry.layout import Block
from metanet.symmetry.space import WeightSpace

Tables = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Change:
    """One place of the group whose block moved along digit ``along``, at ``rows`` only."""

    block: Block
    position: int
    along: int
    rows: np.ndarray


class Memory:
    """What earlier visits of one run found.

    Args:
        space: of both checkpoints.
        pair: tensors of ``a`` and of ``b`` that count.
    """

    def __init__(
        self, space: WeightSpace, pair: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    ) -> None:
        self.space, self.pair = space, pair
        self.room = sum(t.numel() for t in pair[0].values())  # as much as one model
        self.kept: dict[str, tuple[Tables, Gains]] = {}
        self.places: dict[str, list[tuple[Block, int]]] = {
            g.label: [(block, p) for n in g.tensors if n in pair[0] for block in space.blocks(n)
                      for p, label in enumerate(block.labels) if label == g.label]
            for g in space.groups}
        self._lone = {g.label: self._is_lone(g) for g in space.groups}

    def _is_lone(self, group: Group) -> bool:
        """No signs or turns, no fibres, one place per block: its gain is linear and plain."""
        signed = {g.label for g in self.space.groups
                  if g.kind == "signed" or g.kind in ROTATING}
        return not group.over and len(family(self.space, group)) == 1 and all(
            block.labels.count(group.label) == 1 and signed.isdisjoint(block.labels)
            for block, _ in self.places[group.label])

    def lone(self, group: Group) -> bool:
        """Whether the gains of a group are the objective itself, up to a constant."""
        return self._lone[group.label]

    def collect(self, group: Group, tables: Tables, values: Tables) -> Gains:
        """As :func:`metanet.symmetry.gains.collect`; not to be changed where the group is lone."""
        if not self.lone(group):
            return collect(self.space, group, self.pair, tables, values)
        if group.label not in self.kept:
            gains = collect(self.space, group, self.pair, tables, values)
            if group.size**2 > self.room:
                return gains
            self.room -= group.size**2
        else:
            before, gains = self.kept[group.label]
            changes = self._changes(group, before, tables)
            if changes is None:
                gains = collect(self.space, group, self.pair, tables, values)
            for change in changes or ():
                self._add(gains, change, before, tables, values)
        self.kept[group.label] = dict(tables), gains
        return gains

    def _changes(self, group: Group, before: Tables, tables: Tables) -> list[_Change] | None:
        """What moved since; None where multiplying anew is cheaper, or needed."""
        found = []
        for block, position in self.places[group.label]:
            moved = {p: np.flatnonzero(before[str(label)] != tables[str(label)])
                     for p, label in enumerate(block.labels)
                     if p != position and label in tables
                     and not np.array_equal(before[str(label)], tables[str(label)])}
            if not moved:
                continue
            along, rows = next(iter(moved.items()))
            fibred = block.digits[along].bases or any(along in d.bases for d in block.digits)
            if len(moved) > 1 or fibred or 3 * len(rows) > block.digits[along].size:
                return None
            found.append(_Change(block, position, along, rows))
        return found

    def _add(self, gains: Gains, change: _Change, before: Tables, tables: Tables,
             values: Tables) -> None:
        """Add what the changed slices gain now, and take away what they gained before."""
        block, along, label = change.block, change.along, str(change.block.labels[change.along])
        left, right = (block.view(side[block.tensor]) for side in self.pair)
        new, old = (right.index_select(along, torch.from_numpy(t[label][change.rows]))
                    for t in (tables, before))
        digits = list(block.digits)
        digits[along] = replace(digits[along], size=len(change.rows), label=None)
        thin = replace(block, digits=tuple(digits))
        moved = moved_view(thin, new - old, tables, values, free=[change.position])
        left = left.index_select(along, torch.from_numpy(change.rows))
        n = gains.group.size
        one, other = (v.movedim(change.position, 0).reshape(n, -1) for v in (left, moved))
        gains.plain += (one @ other.T).numpy()
