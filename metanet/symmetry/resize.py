"""Smaller and larger spaces of the same architecture, with their maps of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from metanet.errors import SymmetryError
from metanet.symmetry.action import check, gather, spread
from metanet.symmetry.axis import axis_size
from metanet.symmetry.element import Table, table_shape
from metanet.symmetry.group import Group
from metanet.symmetry.kinds import PERMUTING
from metanet.symmetry.layout import Block, blocks
from metanet.symmetry.space import TensorSpec, WeightSpace

if TYPE_CHECKING:
    from torch import Tensor

_Weight = Callable[["Tensor", Block, Block], "Tensor"]


@dataclass(frozen=True)
class Resized:
    """A resized space and the map of tensors onto it."""

    source: WeightSpace
    space: WeightSpace
    tables: Mapping[str, Table]
    weight: _Weight | None = None

    def apply(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of the source space → tensors of the resized one; others pass through."""
        check(self.source, state_dict)
        return {name: self._resize(name, tensor) for name, tensor in state_dict.items()}

    def _resize(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.source.tensors and name not in self.source.aliases:
            return tensor
        owner = self.source.owner(name)
        out = tensor.new_empty(self.space.tensors[owner].shape)
        sizes = {group.label: group.size for group in self.source.normal_groups}
        sizes.update({label: table.shape[-1] for label, table in self.tables.items()})
        # The source's own trees at the new sizes: the blocks correspond one to one.
        resized = blocks(owner, self.source.normal_axes(owner), sizes)
        for old, new in zip(self.source.blocks(owner), resized, strict=True):
            moved = gather(old.view(tensor), old, self.tables)
            new.view(out).copy_(self.weight(moved, old, new) if self.weight else moved)
        return out


def select(space: WeightSpace, label: str, index: Sequence[int] | np.ndarray) -> Resized:
    """Keep some of a group's neurons (structured pruning, partial matching).

    Args:
        label: a group of kind S, signed or positive.
        index: the kept neurons, ``[m]`` or ``[*sizes of over, m]``, distinct in each row.

    The function is preserved exactly where the dropped neurons fed nothing.
    """
    group, table = _table(space, label, index)
    if any(len(set(row)) != len(row) for row in table.reshape(-1, table.shape[-1]).tolist()):
        raise SymmetryError(f"select({label!r}): an index stands twice; widen() makes copies")
    return _resized(space, group, table, None)


def widen(space: WeightSpace, label: str, mapping: Sequence[int] | np.ndarray) -> Resized:
    """Copy neurons: neuron ``i`` of the larger group copies ``mapping[i]`` (Net2Net).

    What reads the group (its in-axes by the space's meta, by default axis 1) is divided by the
    number of copies, so that the function stays the same wherever the copies are only summed.

    Args:
        mapping: ``[m]`` or ``[*sizes of over, m]``, every old neuron at least once.
    """
    group, table = _table(space, label, mapping)
    counts = np.stack([np.bincount(row, minlength=group.size)
                       for row in table.reshape(-1, table.shape[-1])])
    if not counts.all():
        raise SymmetryError(f"widen({label!r}): neuron {int(np.argmin(counts.min(0)))} has no copy")
    share = 1.0 / np.take_along_axis(counts, table.reshape(len(counts), -1), axis=-1)
    shares = torch.from_numpy(share.reshape(table.shape))

    def weight(view: Tensor, old: Block, new: Block) -> Tensor:
        readers = space.tensor_meta(old.tensor).in_axes
        for position, digit in enumerate(new.digits):
            if digit.label == label and digit.axis in readers:
                view = view * spread(shares, [*digit.bases, position], view).to(view)
        return view

    return _resized(space, group, table, weight)


def _table(space: WeightSpace, label: str, index: Sequence[int] | np.ndarray
           ) -> tuple[Group, Table]:
    group = space.group(label)
    if group.kind not in PERMUTING:
        raise SymmetryError(f"group {label!r} of kind {group.kind} has no neurons to choose from")
    table = np.asarray(index)
    if table.ndim == 0 or table.size == 0 or table.dtype.kind not in "iu":
        raise SymmetryError(f"the index of {label!r} must hold at least one integer")
    if table.min() < 0 or table.max() >= group.size:
        raise SymmetryError(f"the index of {label!r} leaves 0 … {group.size - 1}")
    over = table_shape(space, group)[:-1]
    if table.ndim > 1 and table.shape[:-1] != over:
        raise SymmetryError(f"the index of {label!r} has shape {table.shape}, not {(*over, 'm')}")
    return group, np.broadcast_to(table, (*over, table.shape[-1])).astype(np.int64)


def _resized(space: WeightSpace, group: Group, table: Table, weight: _Weight | None) -> Resized:
    groups = [replace(g, size=table.shape[-1]) if g.label == group.label else g
              for g in space.normal_groups]
    sizes = {g.label: g.size for g in groups}
    tensors = {}
    for name, spec in space.tensors.items():
        axes = space.normal_axes(name)
        tensors[name] = TensorSpec(tuple(axis_size(a, sizes) for a in axes), axes, spec.dtype)
    small = WeightSpace(groups, tensors, space.aliases, status="declared", meta=space.meta)
    return Resized(space, small, {group.label: table}, weight)
