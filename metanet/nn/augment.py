"""Augmentation in training: other members of the orbit, and noise of the size of the weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.unf import check_input, short
from metanet.symmetry import GroupElement, WeightSpace
from metanet.symmetry.element import table_shape
from metanet.symmetry.kinds import PERMUTING


class Orbit(nn.Module):
    """In training, each member is moved by a random element of the space's group.

    The function of the network stays. What commutes with permutations has nothing to learn from
    ``permute``; ``scale`` shows it the signs and scales of signed and positive groups, to which
    most layers are blind (arXiv 2402.04081 augments so).

    Args:
        space: of input and output.
        c: channels; all move as the weights do.
        permute: whether neurons are permuted.
        scale: deviation of the log of random scales of positive groups; signs of signed groups
            are fair coins. 0: neither.
        share: members that share an element (the time is that of ``N / share`` elements).

    Randomness is torch's global one.
    """

    coupled = False

    def __init__(self, space: WeightSpace, c: int, permute: bool = True, scale: float = 0.5,
                 share: int = 1) -> None:
        super().__init__()
        if share < 1 or scale < 0:
            raise SymmetryError(f"Orbit(share={share!r}, scale={scale!r}): share must be at "
                                f"least 1 and scale at least 0")
        self.space, self.c_in, self.c_out = space, c, c
        self.permute, self.scale, self.share = permute, scale, share

    def element(self, seed: int) -> GroupElement:
        """The element of a seed."""
        rng = np.random.default_rng(seed)
        tables, values = {}, {}
        for group in self.space.groups:
            shape = table_shape(self.space, group)
            if self.permute and group.kind in PERMUTING:
                still = np.broadcast_to(np.arange(group.size), shape)
                tables[group.label] = rng.permuted(still, axis=-1)
            if self.scale and group.kind == "signed":
                values[group.label] = rng.choice([-1.0, 1.0], size=shape)
            elif self.scale and group.kind == "positive":
                values[group.label] = np.exp(self.scale * rng.standard_normal(shape))
        return GroupElement(self.space, tables, values)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape; the input itself outside training."""
        check_input(self.space, self.c_in, batch)
        if not self.training:
            return batch
        n = len(batch)
        seeds = torch.randint(2 ** 31, (-(-n // self.share),)).tolist()
        parts = [batch[i * self.share:min((i + 1) * self.share, n)].apply(self.element(seed))
                 for i, seed in enumerate(seeds)]
        return WeightBatch.cat(parts)

    def __repr__(self) -> str:
        return f"Orbit({short(self.space)}, permute={self.permute}, scale={self.scale})"


class Noise(nn.Module):
    """In training, normal noise is added: ``size`` times the deviation of each block and channel.

    Args:
        space: of input and output.
        c: channels.
        size: of the noise, as a share of the block's own deviation over its entries.
        drop: share of the entries that are set to zero after that.
    """

    coupled = False

    def __init__(self, space: WeightSpace, c: int, size: float = 0.05, drop: float = 0.0) -> None:
        super().__init__()
        if size < 0 or not 0 <= drop < 1:
            raise SymmetryError(f"Noise(size={size!r}, drop={drop!r}): size must be at least 0, "
                                f"drop in [0, 1)")
        self.space, self.c_in, self.c_out, self.size, self.drop = space, c, c, size, drop

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape; the input itself outside training."""
        check_input(self.space, self.c_in, batch)
        if not self.training:
            return batch
        blocks = {}
        for name, value in batch.blocks.items():
            dims = tuple(range(1, value.ndim - 1))
            spread = value.std(dims, correction=0, keepdim=True) if dims else value.abs()
            noisy = value + self.size * spread * torch.randn_like(value)
            keep = torch.rand_like(value[..., :1]) >= self.drop
            blocks[name] = noisy * keep
        return batch.with_blocks(blocks)

    def __repr__(self) -> str:
        return f"Noise({short(self.space)}, size={self.size}, drop={self.drop})"
