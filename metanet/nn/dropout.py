"""Dropout that a group cannot see: whole channels of a block, or whole blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.unf import check_input, short
from metanet.symmetry import WeightSpace


class ChannelDropout(nn.Module):
    """In training, channels of a block are zeroed for all entries of a member alike.

    So the layer is equivariant in training too, for the mask that was drawn (NFN,
    arXiv 2302.14040, drops channels in this way).

    Args:
        space: of input and output.
        c: channels.
        p: share of the channels that is dropped; the others are scaled by 1/(1 − p).

    Raises:
        SymmetryError: if ``p`` is not in [0, 1).
    """

    coupled = False

    def __init__(self, space: WeightSpace, c: int, p: float = 0.1) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise SymmetryError(f"p={p!r} is not in [0, 1)")
        self.space, self.c_in, self.c_out, self.p = space, c, c, p

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape."""
        check_input(self.space, self.c_in, batch)
        if not self.training or not self.p:
            return batch
        blocks = {}
        for name, value in batch.blocks.items():
            ones = value.new_ones(value.shape[0], *(1,) * (value.ndim - 2), value.shape[-1])
            blocks[name] = value * F.dropout(ones, self.p)
        return batch.with_blocks(blocks)

    def __repr__(self) -> str:
        return f"ChannelDropout({short(self.space)}, p={self.p})"
