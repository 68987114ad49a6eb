"""Colour refinement of the neurons of a checkpoint, by exact, order-free hashes.

A *vertex* is one neuron of one group: its base indices, its own index and, for signed groups, a
sign. Reading a neuron with sign ``s`` means reading ``s`` times its weights, so every signed neuron
is two vertices that always know of each other; this carries signs through the layers without a
special case. A round gives each vertex the sum, modulo 2^64, of the hashes of all entries that it
touches; an entry's hash is made of the bits of its value and the colours of its other digits.
Integer sums do not depend on order, so colours are a function of the orbit; a collision of hashes
can only leave two vertices together that could have been told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt64
from torch import Tensor

from metanet.symmetry.element import table_shape
from metanet.symmetry.layout import Block

if TYPE_CHECKING:
    from metanet.symmetry.space import WeightSpace

Hash: TypeAlias = UInt64[np.ndarray, "..."]
Colours: TypeAlias = "dict[str, Int64[np.ndarray, '*over n signs']]"

_A, _B = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_STEP = 0x9E3779B97F4A7C15
_SIGNS = (1, -1)


def mix(x: Hash) -> Hash:
    """The finaliser of splitmix64: a bijection of the 64-bit integers that looks random."""
    x = x ^ (x >> np.uint64(30))
    x *= _A
    x ^= x >> np.uint64(27)
    x *= _B
    x ^= x >> np.uint64(31)
    return x


def salt(*numbers: int) -> Hash:
    """A hash, of shape [1], of a few small integers."""
    found = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        found = mix(found + np.array([(number + 1) * _STEP % 2**64], dtype=np.uint64))
    return found


def plain(tensor: Tensor) -> Tensor:
    """The tensor on the CPU with one spelling of zero and of NaN: equal values have equal bits."""
    tensor = tensor.detach().cpu()
    if tensor.is_complex():
        return torch.view_as_complex(plain(torch.view_as_real(tensor.resolve_conj())).contiguous())
    if not tensor.is_floating_point():
        return tensor
    wide = tensor.to(torch.float64) + 0.0
    return torch.where(wide.isnan(), torch.nan, wide).to(tensor.dtype)


def keys(view: Tensor, sign: int) -> Hash:
    """A hash of each value times ``sign``; exact, as every float is exact in float64."""
    if view.is_complex():
        real = torch.view_as_real(view)
        both: Hash = mix(keys(real[..., 0], sign) + salt(1)) + keys(real[..., 1], sign)
        return both
    if view.is_floating_point():
        wide: Float64[Tensor, "..."] = view.to(torch.float64) * sign + 0.0
        bits = torch.where(wide.isnan(), torch.nan, wide).numpy()
    else:
        bits = (view.to(torch.int64) * sign).numpy()
    found: Hash = mix(bits.view(np.uint64) + salt(0))
    return found


@dataclass(frozen=True)
class _Slot:
    """A digit that stands for vertices: its place, group, base axes, and whether signs act."""

    position: int
    label: str
    bases: tuple[int, ...]
    signed: bool

    @property
    def axes(self) -> tuple[int, ...]:
        return (*self.bases, self.position)


class _Entries:
    """The entries of one block, hashed with everything that never changes."""

    def __init__(self, space: WeightSpace, block: Block, view: Tensor, number: int) -> None:
        self.number = number
        self.shape = block.shape
        moving = {group.label for group in space.groups}
        self.slots = [
            _Slot(p, d.label, d.bases,
                  space.group(d.label).kind == "signed" and bool(d.exponent % 2))
            for p, d in enumerate(block.digits) if d.label in moving and d.label is not None
        ]
        self.signed = [i for i, slot in enumerate(self.slots) if slot.signed]
        frozen = [p for p in range(len(self.shape)) if p not in {s.position for s in self.slots}]
        still = salt(number) + np.zeros(self.shape, dtype=np.uint64)
        for p in frozen:
            still = still + self._along(mix(np.arange(self.shape[p], dtype=np.uint64)
                                            + salt(number, p)), (p,))
        self.same = {
            (i, j): self._equal(self.slots[i], self.slots[j])
            for i, j in combinations(range(len(self.slots)), 2)
            if self.slots[i].label == self.slots[j].label
        }
        signs = _SIGNS if self.signed else _SIGNS[:1]
        self.still = {sign: still + keys(view, sign) for sign in signs}

    def _along(self, values: Hash, axes: tuple[int, ...]) -> Hash:
        """Values ``[*sizes of axes]`` laid along these axes of the block, for broadcasting."""
        shape = [size if p in axes else 1 for p, size in enumerate(self.shape)]
        return values.transpose(np.argsort(axes)).reshape(shape)

    def _equal(self, one: _Slot, other: _Slot) -> Hash:
        """1 where two digits of one group are the same neuron (all their bases too), else 0."""
        same = np.ones((1,) * len(self.shape), dtype=np.uint64)
        for p, q in zip(one.axes, other.axes, strict=True):
            if p != q:
                grid = np.arange(self.shape[p])
                equal = self._along(grid, (p,)) == self._along(grid, (q,))
                same = same * equal.astype(np.uint64)
        return same

    def sums(self, colours: Mapping[str, Hash]) -> Iterator[tuple[str, Hash]]:
        """For each slot, its label and the hash ``[*over, n, signs]`` of what its vertices touch.

        Args:
            colours: hashed colours per group, ``[*over, n, signs]``.
        """
        totals = [np.zeros((*(self.shape[a] for a in s.axes), 2 if s.signed else 1), np.uint64)
                  for s in self.slots]
        for choice in product((0, 1), repeat=len(self.signed)):
            picked = dict(zip(self.signed, choice, strict=True))
            entries = self._hash(colours, picked)
            for i, (slot, total) in enumerate(zip(self.slots, totals, strict=True)):
                others = tuple(p for p in range(len(self.shape)) if p not in slot.axes)
                kept = entries.sum(axis=others, dtype=np.uint64)
                order = np.argsort(np.argsort(slot.axes))
                total[..., picked.get(i, 0)] += kept.transpose(order)
        for slot, total in zip(self.slots, totals, strict=True):
            yield slot.label, mix(total + salt(self.number, slot.position, 7))

    def _hash(self, colours: Mapping[str, Hash], picked: Mapping[int, int]) -> Hash:
        sign = -1 if sum(picked.values()) % 2 else 1
        entries = self.still[sign]
        for i, slot in enumerate(self.slots):
            own = colours[slot.label]
            if slot.signed:
                own = own[..., picked[i]]
            else:  # also a signed group where signs do not act: both signs, in no order
                own = own.sum(axis=-1, dtype=np.uint64)
            entries = entries + self._along(mix(own + salt(i, 3)), slot.axes)
        for (i, j), same in self.same.items():
            agree = not (i in picked and j in picked) or picked[i] == picked[j]
            entries = entries + same * salt(i, j, 5 if agree else 6)
        return mix(np.broadcast_to(entries, self.shape).copy())


class Refiner:
    """Colours of the vertices of one checkpoint.

    Args:
        space: groups of kinds S, signed and fixed only.
        tensors: owner → tensor, as ``plain`` returns it.
    """

    def __init__(self, space: WeightSpace, tensors: Mapping[str, Tensor]) -> None:
        self.space = space
        blocks = [block for name in space.tensors for block in space.blocks(name)]
        with np.errstate(over="ignore"):
            self.entries = [
                _Entries(space, block, block.view(tensors[block.tensor]), number)
                for number, block in enumerate(blocks) if _moves(space, block)
            ]

    def start(self) -> Colours:
        """One colour for all vertices of a group."""
        return {
            group.label: np.zeros((*table_shape(self.space, group),
                                   2 if group.kind == "signed" else 1), dtype=np.int64)
            for group in self.space.groups
        }

    def refine(self, colours: Colours) -> tuple[Colours, int]:
        """Refine until no round splits a colour.

        Returns:
            Colours 0, 1, … per group, and a number that is equal for equal refinements.
        """
        trace = np.zeros(1, dtype=np.uint64)
        count = count_colours(colours)
        with np.errstate(over="ignore"):
            while True:
                colours, trace = self._round(colours, trace)
                before, count = count, count_colours(colours)
                if count == before or is_discrete(colours):
                    return colours, int(trace[0])

    def _round(self, colours: Colours, trace: Hash) -> tuple[Colours, Hash]:
        hashed = {
            label: mix(own.astype(np.uint64) + salt(number, 11))
            for number, (label, own) in enumerate(colours.items())
        }
        found = {label: np.zeros(own.shape, dtype=np.uint64) for label, own in colours.items()}
        for entries in self.entries:
            for label, sums in entries.sums(hashed):
                found[label] += sums
        refined = {}
        for label, own in colours.items():
            new = mix(found[label] + mix(hashed[label]))
            if new.shape[-1] == 2:  # a sign knows what its opposite looks like
                new = mix(mix(new) + new[..., ::-1])
            refined[label] = relabel(own, new)
            trace = mix(trace + mix(new + hashed[label]).sum(dtype=np.uint64))
        return refined, trace


def _moves(space: WeightSpace, block: Block) -> bool:
    return any(label is not None and space.group(label).kind != "fixed" for label in block.labels)


def relabel(old: np.ndarray, new: np.ndarray) -> Int64[np.ndarray, "*over n signs"]:
    """Ranks 0, 1, … of the pairs (old, new), ties alike."""
    one, other = old.reshape(-1), new.reshape(-1)
    order = np.lexsort((other, one))
    one, other = one[order], other[order]
    step = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    ranks = np.zeros(one.size, dtype=np.int64)
    ranks[order[1:]] = np.cumsum(step)
    return ranks.reshape(old.shape)


def count_colours(colours: Colours) -> int:
    """Number of different colours over all groups."""
    return sum(int(own.max()) + 1 if own.size else 0 for own in colours.values())


def is_discrete(colours: Colours) -> bool:
    """Whether every vertex has a colour of its own."""
    return count_colours(colours) == sum(own.size for own in colours.values())
