"""Tensors to the blocks of the factored view and back, exactly (SPACE.md, "Factored view")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metanet.errors import SpaceMismatch
from metanet.symmetry import WeightSpace

_SMALL = (torch.bool, torch.uint8, torch.int8, torch.int16)


def split(space: WeightSpace, name: str, tensor: Tensor, lead: int = 0) -> dict[str, Tensor]:
    """Blocks of ``tensor [*lead, *shape, *rest]`` as views ``[*lead, *factors, *rest]``."""
    return {block.name: block.view(tensor, lead) for block in space.blocks(name)}


def join(space: WeightSpace, name: str, blocks: Mapping[str, Tensor], lead: int = 0) -> Tensor:
    """Inverse of ``split``: a fresh contiguous tensor ``[*lead, *shape, *rest]``."""
    layout = space.blocks(name)
    first = blocks[layout[0].name]
    rest = first.shape[lead + len(layout[0].digits):]
    shape = (*first.shape[:lead], *space.tensors[space.owner(name)].shape, *rest)
    if len(layout) == 1:
        return first.reshape(shape).contiguous()
    out = first.new_empty(shape)
    for block in layout:
        block.view(out, lead).copy_(blocks[block.name])
    return out


def compute_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """float64 where one tensor needs it (float64, wide integers), else float32.

    Raises:
        SpaceMismatch: for complex tensors.
    """
    wide = False
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise SpaceMismatch(f"{name}: dtype {tensor.dtype}; a batch holds real numbers only. "
                                f"Give torch.view_as_real of it, with a space of its own")
        narrow = tensor.is_floating_point() or tensor.dtype in _SMALL
        wide = wide or tensor.dtype == torch.float64 or not narrow
    return torch.float64 if wide else torch.float32


def cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in the compute dtype; integers must survive the way there and back."""
    moved = tensor.to(dtype)
    if not tensor.is_floating_point() and not torch.equal(moved.to(tensor.dtype), tensor):
        raise SpaceMismatch(f"{name}: {tensor.dtype} values do not fit into {dtype}; "
                            f"leave this tensor out of the space, it then passes through")
    return moved
