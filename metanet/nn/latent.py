"""The latent space of a space: fixed digits folded away, node and global states added.

Inner layers work there: a 3x3 kernel is one edge with c channels instead of nine with c each.
``Embed`` and ``Unembed`` lead in and out.
"""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.grid import Grid, grids, positions
from metanet.nn.unf import check_input, short
from metanet.symmetry import Axis, Fixed, Occ, Prod, TensorSpec, WeightSpace
from metanet.symmetry.axis import axis_size

GLOBAL = "@"
_PE = 8


def node_name(label: str) -> str:
    """Name of the latent tensor that holds the states of a group's neurons."""
    return f"@{label}"


@lru_cache(maxsize=64)
def latent(space: WeightSpace, frozen: str = "auto", nodes: bool = True) -> WeightSpace:
    """One tensor per block, without folded digits; with ``nodes`` also states.

    Group labels stay, so an element's tables act on both. Node states are tensors ``@label`` with
    axes ``(*over, label)``; ``@`` is the global state. Use layers with ``frozen="batch"`` on it:
    what is fixed there was too large to fold.

    Raises:
        SymmetryError: if a tensor of the space has the name of a state.
    """
    sizes = {group.label: group.size for group in space.normal_groups}
    tensors: dict[str, TensorSpec] = {}
    for name, grid in grids(space, frozen).items():
        tensors[name] = _spec(_axes(grid), sizes)
    for name, spec in node_space(space).tensors.items() if nodes else ():
        if name in tensors:
            raise SymmetryError(f"the space has a tensor {name!r}, which is the name of a latent "
                                f"state; rename it, or take latent(…, nodes=False)")
        tensors[name] = spec
    kept = {slot.label for grid in grids(space, frozen).values() for slot in grid.slots}
    groups = [g for g in space.normal_groups if nodes or g.label in kept]
    found = WeightSpace(groups, tensors)
    _check_same(space, found, frozen)
    return found


@lru_cache(maxsize=64)
def node_space(space: WeightSpace) -> WeightSpace:
    """The states alone: ``@label`` of every group, with axes ``(*over, label)``, and ``@``."""
    sizes = {group.label: group.size for group in space.normal_groups}
    tensors: dict[str, TensorSpec] = {}
    for group in space.normal_groups:
        axes = tuple(Occ(label, space.group(label).over) for label in (*group.over, group.label))
        tensors[node_name(group.label)] = _spec(axes, sizes)
    return WeightSpace(space.normal_groups, {**tensors, GLOBAL: TensorSpec((), ())})


def _spec(axes: tuple[Axis, ...], sizes: dict[str, int]) -> TensorSpec:
    return TensorSpec(tuple(axis_size(axis, sizes) for axis in axes), axes)


def _axes(grid: Grid) -> tuple[Axis, ...]:
    """The block's own axes (so that bases are found where they were) without folded digits."""
    digits = grid.block.digits
    axes: list[Axis] = []
    for axis in range(len(grid.block.paths)):
        parts: list[Axis] = []
        for i in grid.kept:
            if digits[i].axis == axis:
                label = digits[i].label
                private = grid.slots[grid.kept.index(i)].private
                parts.append(Fixed(digits[i].size) if private or label is None
                             else _occurrence(grid, i))
        axes.append(Prod(tuple(parts)) if len(parts) > 1 else parts[0] if parts else Fixed(1))
    return tuple(axes)


def _occurrence(grid: Grid, place: int) -> Occ:
    digits = grid.block.digits
    digit = digits[place]
    bases = tuple(str(digits[b].label) for b in digit.bases)
    near = all(digits[b].axis == digit.axis and b < place for b in digit.bases)
    at = None if near else digits[digit.bases[0]].axis
    return Occ(str(digit.label), bases, at, digit.exponent)


def _check_same(space: WeightSpace, found: WeightSpace, frozen: str) -> None:
    for name, grid in grids(space, frozen).items():
        (block,) = found.blocks(name)
        want = [(slot.size, slot.bases) for slot in grid.slots]
        if [(digit.size, digit.bases) for digit in block.digits] != want:
            raise SymmetryError(f"block {name!r} cannot be written without its fixed digits; "
                                f"put its factors on axes of their own")


class Embed(nn.Module):
    """Into the latent space: one matrix per block, one learned start per state (as the encoders
    of graph metanetworks, arXiv 2312.04501, and neural graphs, arXiv 2403.12143).

    Blocks ``[N, *factors, c_in]`` → ``[N, *slots, c_out]``, states ``[N, *over, n, c_out]``.

    Args:
        space: of the input.
        c_in: channels in (times the folded fixed indices of each block).
        c_out: channels of the latent batch.
        nodes: whether the latent space has node and global states.
    """

    coupled = False

    def __init__(self, space: WeightSpace, c_in: int, c_out: int, nodes: bool = True) -> None:
        super().__init__()
        self.space, self.c_in, self.c_out = space, c_in, c_out
        self.space_out = latent(space, nodes=nodes)
        self.grids = grids(space)
        self.weights = nn.ParameterList(
            torch.randn(grid.width * c_in, c_out) / sqrt(grid.width * c_in)
            for grid in self.grids.values())
        self.states = tuple(name for name in self.space_out.tensors if name not in self.grids)
        n = len(self.grids) + len(self.states)
        self.bias = nn.Parameter(torch.randn(n, c_out) / 4)
        places = [(name, i) for name, grid in self.grids.items()
                  for i, slot in enumerate(grid.slots) if slot.private]
        self.places = tuple(places)
        self.positional = nn.Parameter(torch.randn(len(places), _PE, c_out) / sqrt(_PE))

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c_in]`` → ``[N, *slots, c_out]``."""
        check_input(self.space, self.c_in, batch)
        blocks = {}
        for (name, grid), weight, bias in zip(self.grids.items(), self.weights, self.bias,
                                              strict=False):
            blocks[name] = grid.fold(batch.blocks[name]) @ weight + bias
        for (name, slot), table in zip(self.places, self.positional, strict=True):
            value = blocks[name]
            along = positions(value.shape[1 + slot], _PE, like=table) @ table
            shape = [1] * value.ndim
            shape[1 + slot], shape[-1] = along.shape
            blocks[name] = value + along.reshape(shape)
        for name, start in zip(self.states, self.bias[len(self.grids):], strict=True):
            nodes = self.space_out.blocks(name)[0].shape
            blocks[name] = start.expand(len(batch), *nodes, -1)
        return _relabelled(batch, self.space_out, blocks)

    def __repr__(self) -> str:
        return f"Embed({short(self.space)} -> latent, {self.c_in} -> {self.c_out})"


class Unembed(nn.Module):
    """Out of the latent space of ``space``: one matrix per block; states are dropped."""

    coupled = False

    def __init__(self, space: WeightSpace, c_in: int, c_out: int, nodes: bool = True) -> None:
        super().__init__()
        self.space_out, self.c_in, self.c_out = space, c_in, c_out
        self.space = latent(space, nodes=nodes)
        self.grids = grids(space)
        self.weights = nn.ParameterList(
            torch.randn(c_in, grid.width * c_out) / sqrt(c_in) for grid in self.grids.values())
        self.bias = nn.ParameterList(
            torch.zeros(grid.width * c_out) for grid in self.grids.values())

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *slots, c_in]`` → ``[N, *factors, c_out]``."""
        check_input(self.space, self.c_in, batch)
        blocks = {}
        for (name, grid), weight, bias in zip(self.grids.items(), self.weights, self.bias,
                                              strict=True):
            blocks[name] = grid.unfold(batch.blocks[name] @ weight + bias)
        return _relabelled(batch, self.space_out, blocks)

    def __repr__(self) -> str:
        return f"Unembed(latent -> {short(self.space_out)}, {self.c_in} -> {self.c_out})"


def _relabelled(batch: WeightBatch, space: WeightSpace, blocks: dict[str, Tensor]) -> WeightBatch:
    """A batch of another space; member names stay, what unstack needs does not."""
    layout = [block.name for name in space.tensors for block in space.blocks(name)]
    return WeightBatch(space, {name: blocks[name] for name in layout}, batch.names)
