"""How a tensor falls into blocks, and each block into digits: the factored view.

One block per element of the Cartesian product of the axes' summands (depth first, left to right);
in a block every factor is an axis of its own. Views only: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from metanet.errors import SymmetryError
from metanet.symmetry.axis import Axis, Fixed, Occ, Prod, Sum, axis_size

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Digit:
    """One factor of a block. ``bases`` are positions of the digits that it is fibred over."""

    size: int
    axis: int
    label: str | None = None
    exponent: int = 1
    bases: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Level:
    """Split an axis into ``sizes``; then, if there is a tail, keep ``length`` from ``offset``."""

    sizes: tuple[int, ...]
    tail: tuple[int, int, int] | None  # total, offset, length


@dataclass(frozen=True, slots=True)
class _Leaf:
    digits: tuple[Fixed | Occ, ...]
    path: tuple[_Level, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a tensor's factored view.

    ``name`` is the tensor's name, with ``#i.j`` (one number per axis) if there are several blocks.
    """

    name: str
    tensor: str
    digits: tuple[Digit, ...]
    paths: tuple[tuple[_Level, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the digits."""
        return tuple(digit.size for digit in self.digits)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """Group of each digit; None where it is private and fixed."""
        return tuple(digit.label for digit in self.digits)

    def view(self, tensor: Tensor, lead: int = 0) -> Tensor:
        """This block of ``tensor`` as ``[*lead axes, *digits, *rest]``, sharing its memory."""
        for axis in reversed(range(len(self.paths))):
            tensor = _descend(tensor, lead + axis, self.paths[axis])
        return tensor


def _descend(tensor: Tensor, position: int, path: tuple[_Level, ...]) -> Tensor:
    for level in path:
        if level.tail is None:
            if not level.sizes:
                return tensor.select(position, 0)
            return tensor if len(level.sizes) == 1 else _split(tensor, position, level.sizes)
        total, offset, length = level.tail
        if level.sizes:
            tensor = _split(tensor, position, (*level.sizes, total))
            position += len(level.sizes)
        tensor = tensor.narrow(position, offset, length)
    return tensor


def _split(tensor: Tensor, position: int, sizes: tuple[int, ...]) -> Tensor:
    return tensor.view(*tensor.shape[:position], *sizes, *tensor.shape[position + 1 :])


def blocks(name: str, axes: Sequence[Axis], sizes: Mapping[str, int]) -> tuple[Block, ...]:
    """All blocks of a tensor whose axes are in normal form."""
    leaves = [list(_leaves(axis, sizes)) for axis in axes]
    several = any(len(options) > 1 for options in leaves)
    found = []
    for choice in product(*(range(len(options)) for options in leaves)):
        picked = [options[i] for options, i in zip(leaves, choice, strict=True)]
        label = f"{name}#{'.'.join(map(str, choice))}" if several else name
        digits = resolve([leaf.digits for leaf in picked], sizes, name)
        found.append(Block(label, name, digits, tuple(leaf.path for leaf in picked)))
    return tuple(found)


def _leaves(axis: Axis, sizes: Mapping[str, int]) -> Iterator[_Leaf]:
    parts = axis.parts if isinstance(axis, Prod) else (axis,)
    head = [p for p in parts if isinstance(p, (Fixed, Occ)) and p != Fixed(1)]
    split = tuple(axis_size(part, sizes) for part in head)
    tail = parts[-1]
    if not isinstance(tail, Sum):
        yield _Leaf(tuple(head), (_Level(split, None),))
        return
    total, offset = axis_size(tail, sizes), 0
    for part in tail.parts:
        length = axis_size(part, sizes)
        for leaf in _leaves(part, sizes):
            level = _Level(split, (total, offset, length))
            yield _Leaf((*head, *leaf.digits), (level, *leaf.path))
        offset += length


def resolve(
    axes: Sequence[Sequence[Fixed | Occ]], sizes: Mapping[str, int], tensor: str
) -> tuple[Digit, ...]:
    """Digits of a block, each with the positions of its bases."""
    flat: list[tuple[int, Fixed | Occ]] = [(a, d) for a, ds in enumerate(axes) for d in ds]
    labels = [digit.label if isinstance(digit, Occ) else None for _, digit in flat]
    owners = [axis for axis, _ in flat]
    digits = []
    for position, (axis, digit) in enumerate(flat):
        if isinstance(digit, Fixed):
            digits.append(Digit(digit.size, axis))
            continue
        bases = tuple(_base(b, digit, position, owners, labels, tensor) for b in digit.bases)
        digits.append(Digit(sizes[digit.label], axis, digit.label, digit.exponent, bases))
    _check_nested(digits, tensor)
    return tuple(digits)


def _base(
    base: str, occ: Occ, position: int, owners: list[int], labels: list[str | None], tensor: str
) -> int:
    """Position of the base digit by the nearest-digit rule."""
    own = owners[position]
    here = [i for i, label in enumerate(labels) if label == base and i != position]
    if occ.at is not None and occ.at != own:
        named = [i for i in here if owners[i] == occ.at]
        if len(named) == 1:
            return named[0]
        if named:
            raise SymmetryError(
                f"{tensor}: axis {occ.at} holds {base!r} {len(named)} times, so the base of "
                f"{occ.label!r} (axis {own}) is ambiguous; give the copies labels of their own"
            )
    major = [i for i in here if owners[i] == own and i < position]
    if major:
        return major[-1]
    others = [i for i in here if (owners[i] == own) == (occ.at == own)]
    if len(others) == 1:
        return others[0]
    raise SymmetryError(
        f"{tensor}: the base {base!r} of {occ.label!r} on axis {own} "
        + (f"stands {len(others)} times; write {occ.label}/{base}@AXIS" if others else "is absent")
    )


def _check_nested(digits: list[Digit], tensor: str) -> None:
    """The bases of a base must be the same digits that the member is fibred over."""
    for digit in digits:
        for base in digit.bases:
            stray = set(digits[base].bases) - set(digit.bases)
            if stray:
                raise SymmetryError(
                    f"{tensor}: {digit.label!r} is fibred over {digits[base].label!r}, whose own "
                    f"base is another digit; nested fibres must share their bases"
                )


def normal_pointers(axes: Sequence[Axis], sizes: Mapping[str, int], name: str) -> list[Axis]:
    """Rewrite each ``@AXIS`` to the first spelling (none, 0, 1, …) that means the same."""
    axes = list(axes)
    if not any(occ.at is not None for axis in axes for occ in _occurrences(axis)):
        return axes
    want = [block.digits for block in blocks(name, axes, sizes)]
    for a, axis in enumerate(axes):
        for index in range(len(list(_occurrences(axis)))):
            for at in (None, *range(len(axes))):
                trial = [*axes[:a], _with_pointer(axes[a], index, at), *axes[a + 1 :]]
                try:
                    same = [block.digits for block in blocks(name, trial, sizes)] == want
                except SymmetryError:
                    same = False
                if same:
                    axes = trial
                    break
    return axes


def _occurrences(axis: Axis) -> Iterator[Occ]:
    if isinstance(axis, Occ):
        if axis.bases:
            yield axis
    elif isinstance(axis, (Prod, Sum)):
        for part in axis.parts:
            yield from _occurrences(part)


def _with_pointer(axis: Axis, index: int, at: int | None) -> Axis:
    """``axis`` with the pointer of its ``index``-th fibred occurrence set to ``at``."""
    counter = iter(range(1 << 30))

    def rebuild(node: Axis) -> Axis:
        if isinstance(node, Occ):
            return replace(node, at=at) if node.bases and next(counter) == index else node
        if isinstance(node, Fixed):
            return node
        return type(node)(tuple(rebuild(part) for part in node.parts))

    return rebuild(axis)
