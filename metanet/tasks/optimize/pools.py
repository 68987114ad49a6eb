"""Pools: the neurons that each entry of a network touches, and sums over all that touches them.

Every entry has an end on the out side of its tensor and one on the in side. With a space the ends
are neurons of its groups, shared by all tensors that the group stands in; without one they are the
rows and columns of the tensor alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from metanet.symmetry import Block, WeightSpace
from metanet.symmetry.kinds import PERMUTING
from metanet.tasks.optimize.layout import Layout

OUT, IN = 0, 1


@dataclass(frozen=True, eq=False)
class _End:
    """One side of one block: sum over all digits but ``keep``, then add from ``offset`` on."""

    tensor: int
    side: int
    view: Callable[[Tensor, int], Tensor]
    shape: tuple[int, ...]
    keep: tuple[int, ...]
    offset: int

    @property
    def length(self) -> int:
        return prod(self.shape[i] for i in self.keep)

    def collect(self, value: Tensor, lead: int) -> Tensor:
        """``[*lead, *digits]`` → ``[*lead, neurons]``."""
        drop = [lead + i for i in range(len(self.shape)) if i not in self.keep]
        kept = sorted(self.keep)
        value = value.sum(drop) if drop else value
        order = [lead + kept.index(i) for i in self.keep]
        return value.permute(*range(lead), *order).flatten(lead)

    def number(self) -> Tensor:
        """Number of the neuron of every entry, broadcastable to the digits."""
        kept = sorted(self.keep)
        ids = torch.arange(self.offset, self.offset + self.length)
        ids = ids.view([self.shape[i] for i in self.keep])
        ids = ids.permute([self.keep.index(i) for i in kept])
        return ids.view([self.shape[i] if i in self.keep else 1 for i in range(len(self.shape))])


class Pools:
    """Neurons of a layout.

    Args:
        layout: of the parameters.
        space: None: rows and columns of each tensor on its own.

    Attributes:
        n: number of neurons; number 0 is nobody's, the end of an entry that has none.
        ids: ``[2, entries]`` int64: neuron on the out side and on the in side.
        counts: ``[2, n]``: entries that touch a neuron with their out side and their in side.
    """

    def __init__(self, layout: Layout, space: WeightSpace | None = None) -> None:
        self.layout = layout
        self._offsets: dict[tuple[object, ...], int] = {}
        self.n = 1
        self.ends = tuple(self._ends(space))
        ids = torch.zeros(2, layout.total, dtype=torch.int64)
        for end in self.ends:
            whole = layout.views(ids[end.side])[end.tensor]
            end.view(whole, 0).copy_(end.number().expand(end.shape))
        self.ids = ids
        self.counts = self.sums(torch.ones(1, layout.total))[0]

    def to(self, device: torch.device) -> Pools:
        """Move the tables to a device, in place."""
        self.ids, self.counts = self.ids.to(device), self.counts.to(device)
        return self

    def _ends(self, space: WeightSpace | None) -> Iterator[_End]:
        known = set() if space is None else {*space.tensors, *space.aliases}
        for i, (name, shape) in enumerate(zip(self.layout.names, self.layout.shapes,
                                              strict=True)):
            if space is not None and name in known:
                for block in space.blocks(name):
                    yield from self._of_block(i, name, block, space)
            else:
                yield from self._plain(i, shape)

    def _plain(self, tensor: int, shape: tuple[int, ...]) -> Iterator[_End]:
        for side, keep in ((OUT, (0,)), (IN, tuple(range(1, len(shape))))):
            if shape and keep:
                size = prod(shape[k] for k in keep)
                yield _End(tensor, side, _whole, shape, keep, self._place((tensor, side), size))

    def _of_block(self, tensor: int, name: str, block: Block, space: WeightSpace
                  ) -> Iterator[_End]:
        meta = space.tensor_meta(name)
        outs = set(meta.out_axes)
        axes = range(len(block.paths))
        inner = [a for a in meta.in_axes if a not in outs] or [a for a in axes if a not in outs]
        for side, chosen in ((OUT, sorted(outs)), (IN, inner)):
            places = [i for i, digit in enumerate(block.digits) if digit.axis in chosen]
            free = [i for i in places if _is_free(space, block.digits[i].label)]
            if free:
                best = max(free, key=lambda i: (len(block.digits[i].bases), block.digits[i].size))
                keep = (*block.digits[best].bases, best)
                key: tuple[object, ...] = ("group", block.digits[best].label)
            elif places:
                keep, key = tuple(places), (block.name, side)
            else:
                continue
            size = prod(block.shape[k] for k in keep)
            yield _End(tensor, side, block.view, block.shape, keep, self._place(key, size))

    def _place(self, key: tuple[object, ...], size: int) -> int:
        if key not in self._offsets:
            self._offsets[key] = self.n
            self.n += size
        return self._offsets[key]

    def sums(self, flat: Tensor, weights: Tensor | None = None) -> Tensor:
        """``[R, entries]`` → ``[R, 2, n]``: sums over what touches a neuron, per side.

        ``weights [R, T]`` weighs the tensors.
        """
        found = flat.new_zeros(len(flat), 2, self.n)
        views = self.layout.views(flat)
        for end in self.ends:
            part = end.collect(end.view(views[end.tensor], 1), 1)
            if weights is not None:
                part = part * weights[:, end.tensor, None]
            found[:, end.side, end.offset:end.offset + end.length] += part
        return found

    def means(self, flat: Tensor, weights: Tensor, empty: float) -> Tensor:
        """As ``sums``, divided by the counts; ``empty`` where nothing touches a neuron."""
        bare = self.counts == 0
        return (self.sums(flat, weights) + bare * empty) / self.counts.clamp(min=1)


    def tensors(self, table: Tensor) -> Tensor:
        """Mean over the entries of each tensor of the values of the neurons at both their ends:
        ``[R, c, n]`` → ``[R, 2c, T]``."""
        parts: list[list[Tensor]] = [[], []]
        for side in (OUT, IN):
            for i, size in enumerate(self.layout.sizes):
                ends = [e for e in self.ends if (e.tensor, e.side) == (i, side)]
                shares = [prod(e.shape) / max(size, 1) for e in ends]
                found = (1 - sum(shares)) * table[..., 0]
                for end, share in zip(ends, shares, strict=True):
                    at = slice(end.offset, end.offset + end.length)
                    found = found + share * table[..., at].mean(-1)
                parts[side].append(found)
        return torch.cat([torch.stack(part, -1) for part in parts], 1)


def _whole(tensor: Tensor, lead: int) -> Tensor:
    return tensor


def _is_free(space: WeightSpace, label: str | None) -> bool:
    return label is not None and space.group(label).kind in PERMUTING
