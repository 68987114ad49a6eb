"""How an element moves tensors: a gather on the factored view, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.symmetry.kinds import PERMUTING, ROTATING
from metanet.symmetry.layout import Block, Digit

if TYPE_CHECKING:
    from metanet.symmetry.element import GroupElement
    from metanet.symmetry.space import WeightSpace

# Same-sized integers stand for float dtypes whose bits are only moved (fp8 has no index_select).
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def apply(
    element: GroupElement, state_dict: Mapping[str, Tensor], *, untie: bool = False
) -> dict[str, Tensor]:
    """See ``GroupElement.apply``."""
    space = element.space
    check(space, state_dict, untie=untie)
    out: dict[str, Tensor] = {}
    done: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name not in space.tensors and name not in space.aliases:
            out[name] = tensor
            continue
        owner = space.owner(name)
        if owner in done and not untie:
            out[name] = done[owner]
        else:
            out[name] = done[owner] = act(element, owner, tensor)
    return out


def act(element: GroupElement, name: str, tensor: Tensor, lead: int = 0) -> Tensor:
    """One tensor of the space, acted on; ``lead`` batch axes stand before its own."""
    blocks = element.space.blocks(name)
    out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    values = _values(element, blocks)
    turns = any(element.space.group(label).kind in ROTATING for label in values)
    source, target = (tensor, out) if values else (_bits(tensor), _bits(out))
    for block in blocks:
        moved = gather(block.view(source, lead), block, element.tables, lead)
        moved = moved.double() if turns else moved
        block.view(target, lead).copy_(weighed(moved, block.digits, values, lead))
    return out


def gather(
    view: Tensor, block: Block, tables: Mapping[str, np.ndarray], lead: int = 0
) -> Tensor:
    """Gather each digit of a block by its table; bases first, so that outputs choose the row.

    A table may be longer or shorter than its digit (``select``, ``widen``).
    """
    order = sorted(range(len(block.digits)), key=lambda i: len(block.digits[i].bases))
    for position in order:
        digit = block.digits[position]
        table = tables.get(digit.label) if digit.label is not None else None
        if table is None:
            continue
        index = torch.from_numpy(np.ascontiguousarray(table)).to(view.device)
        if digit.bases:
            view = _gather_fibred(view, [lead + b for b in digit.bases], lead + position, index)
        else:
            view = view.index_select(lead + position, index)
    return view


def _gather_fibred(view: Tensor, bases: Sequence[int], position: int, index: Tensor) -> Tensor:
    """``out[b, i] = view[b, index[b, i]]`` with the base axes anywhere."""
    front = list(range(len(bases) + 1))
    moved = view.movedim([*bases, position], front)
    n = moved.shape[len(bases)]
    rows = index.reshape(-1, index.shape[-1])
    flat = (torch.arange(len(rows), device=rows.device)[:, None] * n + rows).reshape(-1)
    rest = moved.shape[len(bases) + 1 :]
    picked = moved.reshape(-1, *rest).index_select(0, flat)
    return picked.reshape(*index.shape, *rest).movedim(front, [*bases, position])


def _values(element: GroupElement, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Values of the groups that act on these blocks by more than moving."""
    found: dict[str, Tensor] = {}
    for digit in (digit for block in blocks for digit in block.digits if digit.label is not None):
        kind = element.space.group(str(digit.label)).kind
        if kind not in PERMUTING and kind not in ROTATING and kind != "fixed":
            raise SymmetryError(f"the action of kind {kind!r} is not defined yet "
                                f"(group {digit.label!r})")
        if digit.label in element.values and digit.exponent:
            found[digit.label] = torch.from_numpy(element.values[digit.label])
    return found


def weighed(
    view: Tensor, digits: Sequence[Digit], values: Mapping[str, Tensor], lead: int = 0
) -> Tensor:
    """Scale and turn a gathered view by the values of the groups of its digits.

    Values ``[*over, n]`` multiply, to the power of the digit's exponent; ``[*over, n, n]`` turn.
    """
    for position, digit in enumerate(digits):
        value = values.get(digit.label) if digit.label is not None else None
        if value is None or not digit.exponent:
            continue
        bases = [lead + b for b in digit.bases]
        if value.ndim == len(bases) + 2:
            view = turned(view, value, bases, lead + position)
        else:
            factor = value if digit.exponent == 1 else value ** digit.exponent
            view = view * spread(factor, [*bases, lead + position], view).to(view)
    return view


def turned(view: Tensor, matrices: Tensor, bases: Sequence[int], position: int) -> Tensor:
    """``out[b, i] = sum over j of matrices[b, i, j] view[b, j]`` with the axes anywhere."""
    front = list(range(len(bases) + 1))
    moved = view.movedim([*bases, position], front)
    n = matrices.shape[-1]
    rows = moved.reshape(matrices.shape[:-2].numel(), n, -1)
    found = matrices.reshape(-1, n, n).to(view) @ rows
    return found.reshape(moved.shape).movedim(front, [*bases, position])


def spread(values: Tensor, places: Sequence[int], view: Tensor) -> Tensor:
    """``values [*over, n]`` laid along the axes ``places`` of a view, for broadcasting."""
    shape = [size if axis in places else 1 for axis, size in enumerate(view.shape)]
    return values.permute(tuple(int(i) for i in np.argsort(places))).reshape(shape)


def _bits(tensor: Tensor) -> Tensor:
    """The tensor's bits, as integers of the same size where there are such."""
    if tensor.dtype in (torch.bool, *_BITS.values()) or tensor.element_size() not in _BITS:
        return tensor
    return tensor.view(_BITS[tensor.element_size()])


def passed_through(space: WeightSpace, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the tensors that the space does not know and an element leaves alone."""
    return tuple(name for name in state_dict
                 if name not in space.tensors and name not in space.aliases)


def check(space: WeightSpace, state_dict: Mapping[str, Tensor], *, untie: bool = False) -> None:
    """Whether tensors fit a space.

    Raises:
        SpaceMismatch: naming the first tensor that is unknown, missing, misshapen, or tied by the
            space and untied in the tensors.
    """
    for name in passed_through(space, state_dict):
        if state_dict[name].is_floating_point() or state_dict[name].is_complex():
            raise SpaceMismatch(f"tensor {name!r} is not in the space; drop it, or give the space "
                                f"of the whole checkpoint")
    copies: dict[str, list[str]] = {}
    for name, tensor in state_dict.items():
        if name not in space.tensors and name not in space.aliases:
            continue
        owner = space.owner(name)
        if tuple(tensor.shape) != space.tensors[owner].shape:
            raise SpaceMismatch(f"{name}: shape {tuple(tensor.shape)}, "
                                f"the space says {space.tensors[owner].shape}")
        copies.setdefault(owner, []).append(name)
    for owner in space.tensors:
        if owner not in copies:
            raise SpaceMismatch(f"tensor {owner!r} of the space is missing")
        first, *others = copies[owner]
        for name in others if not untie else ():
            if not _equal(state_dict[first], state_dict[name]):
                raise SpaceMismatch(f"{name!r} is tied to {first!r} in the space but holds other "
                                    f"values; pass untie=True to treat them as two copies")


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and a.dtype == b.dtype:
        return True
    return a.dtype == b.dtype and torch.equal(_bits(a.contiguous()), _bits(b.contiguous()))
