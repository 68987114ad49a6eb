"""How a layer sees a block: permutable slots, folded fixed digits, and private (large) ones.

SPACE.md, "Layers on a space": with ``frozen="auto"`` the fixed digits of a block that are no bases
are folded into channels, smallest first, as long as the product of their sizes is at most 64; the
larger ones are batch axes: slots of a private label, with a positional encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from metanet.errors import SymmetryError
from metanet.symmetry import Block, WeightSpace
from metanet.symmetry.kinds import contains_permutations

FOLD_LIMIT = 64
FROZEN = ("auto", "fold", "batch")


@dataclass(frozen=True, slots=True)
class Slot:
    """An axis that a layer shares weights along; ``bases`` are positions of other slots.

    ``private`` marks a large fixed digit: a label of its own, and positions that may be encoded.
    """

    label: str
    size: int
    bases: tuple[int, ...] = ()
    private: bool = False


@dataclass(frozen=True)
class Grid:
    """A block as a layer sees it: ``[N, *factors, c]`` ↔ ``[N, *slots, width·c]``."""

    block: Block
    slots: tuple[Slot, ...]
    kept: tuple[int, ...]    # digit of each slot
    folded: tuple[int, ...]  # digits folded into channels

    width: int = field(init=False, compare=False)                # product of the folded sizes
    sizes: tuple[int, ...] = field(init=False, compare=False)    # of the slots
    _widths: tuple[int, ...] = field(init=False, compare=False, repr=False)
    _order: tuple[int, ...] = field(init=False, compare=False, repr=False)
    _back: tuple[int, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Worked out once: layers need them at every call, and compilers trace what is left.
        widths = tuple(self.block.digits[i].size for i in self.folded)
        last = 1 + len(self.kept) + len(self.folded)
        order = (0, *(1 + i for i in (*self.kept, *self.folded)), last)
        back = tuple(sorted(range(len(order)), key=order.__getitem__))
        for name, value in (("width", prod(widths)), ("_widths", widths), ("_order", order),
                            ("sizes", tuple(slot.size for slot in self.slots)), ("_back", back)):
            object.__setattr__(self, name, value)

    def fold(self, value: Float[Tensor, "N *factors c"]) -> Float[Tensor, "N *slots wc"]:
        """Move the folded digits beside the channels (major) and merge them."""
        if not self.folded:
            return value
        n, c = value.shape[0], value.shape[-1]
        return value.permute(self._order).reshape(n, *self.sizes, self.width * c)

    def unfold(self, value: Float[Tensor, "N *slots wc"]) -> Float[Tensor, "N *factors c"]:
        """Inverse of ``fold``."""
        if not self.folded:
            return value
        c = value.shape[-1] // self.width
        return value.reshape(*value.shape[:-1], *self._widths, c).permute(self._back)


def grids(space: WeightSpace, frozen: str = "auto") -> dict[str, Grid]:
    """The grid of every block, in the order of the space.

    Args:
        frozen: ``auto`` as SPACE.md; ``fold`` folds every fixed digit; ``batch`` folds none.
    """
    if frozen not in FROZEN:
        raise SymmetryError(f"frozen={frozen!r} is not known; known are {', '.join(FROZEN)}")
    return {block.name: _grid(space, block, frozen)
            for name in space.tensors for block in space.blocks(name)}


def is_complete(space: WeightSpace, frozen: str = "auto") -> bool:
    """Whether a basis on these grids spans all maps that commute with the space's permutations.

    Not so with large fixed digits as batch axes, nor with bases that cannot be permuted.
    """
    for grid in grids(space, frozen).values():
        for slot in grid.slots:
            if slot.private or not contains_permutations(space.group(slot.label).kind):
                return False
    return True


def _grid(space: WeightSpace, block: Block, frozen: str) -> Grid:
    over = {base for group in space.normal_groups for base in group.over}
    fixed = [i for i, digit in enumerate(block.digits)
             if digit.label is None or (digit.label not in over and not
                                        contains_permutations(space.group(digit.label).kind))]
    folded = _to_fold([block.digits[i].size for i in fixed], frozen)
    gone = tuple(i for i, fold in zip(fixed, folded, strict=True) if fold)
    kept = tuple(i for i in range(len(block.digits)) if i not in gone)
    slots = []
    for i in kept:
        digit = block.digits[i]
        if i in fixed:
            slots.append(Slot(f"{block.name}:{i}", digit.size, private=True))
        else:
            bases = tuple(kept.index(b) for b in digit.bases)
            slots.append(Slot(str(digit.label), digit.size, bases))
    return Grid(block, tuple(slots), kept, gone)


def _to_fold(sizes: Sequence[int], frozen: str) -> list[bool]:
    """Which fixed digits are folded; equal sizes (the two axes of a kernel) go together."""
    if frozen != "auto":
        return [frozen == "fold"] * len(sizes)
    limit, product = 0, 1
    for size in sorted(set(sizes)):
        product *= size ** sizes.count(size)
        if product <= FOLD_LIMIT:
            limit = size
    return [size <= limit for size in sizes]


def positions(n: int, width: int = 8, *, like: Tensor | None = None) -> Float[Tensor, "n width"]:
    """Sines and cosines of the position as a fraction of the axis, frequencies 1/2 … 2^(w/2−2)."""
    at = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    waves = 2.0 ** torch.arange(width // 2, dtype=torch.float64) * torch.pi / 2
    angles = at[:, None] * waves
    table = torch.cat([angles.sin(), angles.cos()], -1)
    return table if like is None else table.to(like)
