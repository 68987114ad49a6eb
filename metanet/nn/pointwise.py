"""Layers that treat every entry of a batch alike: nonlinearity, norms, linear, residual."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet.graph import WeightBatch
from metanet.nn.unf import check_input, short
from metanet.symmetry import WeightSpace


class Pointwise(nn.Module):
    """A function of each number (GELU by default)."""

    coupled = False

    def __init__(self, space: WeightSpace, c: int,
                 function: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.space, self.c_in, self.c_out, self.function = space, c, c, function

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape."""
        return batch.map(self.function)

    def __repr__(self) -> str:
        return f"Pointwise({getattr(self.function, '__name__', self.function)})"


class ChannelLinear(nn.Module):
    """A matrix on the channels, one per block or (``shared``) one for all."""

    coupled = False

    def __init__(self, space: WeightSpace, c_in: int, c_out: int, shared: bool = False) -> None:
        super().__init__()
        self.space, self.c_in, self.c_out = space, c_in, c_out
        n = 1 if shared else n_blocks(space)
        self.weight = nn.Parameter(torch.randn(n, c_in, c_out) / sqrt(c_in))
        self.bias = nn.Parameter(torch.zeros(n, c_out))

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c_in]`` → ``[N, *factors, c_out]``."""
        check_input(self.space, self.c_in, batch)
        last = len(self.weight) - 1
        return batch.with_blocks({
            name: value @ self.weight[min(i, last)] + self.bias[min(i, last)]
            for i, (name, value) in enumerate(batch.blocks.items())})

    def __repr__(self) -> str:
        return f"ChannelLinear({short(self.space)}, {self.c_in} -> {self.c_out})"


class LayerNorm(nn.Module):
    """Normalise the channels of each entry (arXiv 1607.06450); scale and shift per block."""

    coupled = False

    def __init__(self, space: WeightSpace, c: int) -> None:
        super().__init__()
        self.space, self.c_in, self.c_out = space, c, c
        self.weight = nn.Parameter(torch.ones(n_blocks(space), c))
        self.bias = nn.Parameter(torch.zeros(n_blocks(space), c))

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape."""
        check_input(self.space, self.c_in, batch)
        rows = zip(batch.blocks.items(), self.weight, self.bias, strict=True)
        return batch.with_blocks({name: F.layer_norm(value, (self.c_in,), weight, bias)
                                  for (name, value), weight, bias in rows})

    def __repr__(self) -> str:
        return f"LayerNorm({short(self.space)}, {self.c_in})"


class BlockNorm(nn.Module):
    """Normalise each channel of each block of each member by its mean and deviation over entries
    (instance normalisation, arXiv 1607.08022).

    A block of one entry becomes zero before the shift.
    """

    coupled = False

    def __init__(self, space: WeightSpace, c: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.space, self.c_in, self.c_out, self.eps = space, c, c, eps
        self.weight = nn.Parameter(torch.ones(n_blocks(space), c))
        self.bias = nn.Parameter(torch.zeros(n_blocks(space), c))

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape."""
        check_input(self.space, self.c_in, batch)
        blocks = {}
        rows = zip(batch.blocks.items(), self.weight, self.bias, strict=True)
        for (name, value), weight, bias in rows:
            entries = value.reshape(len(value), -1, value.shape[-1])
            mean = entries.mean(1, keepdim=True)
            scale = (entries.var(1, keepdim=True, correction=0) + self.eps).rsqrt()
            blocks[name] = ((entries - mean) * scale * weight + bias).reshape(value.shape)
        return batch.with_blocks(blocks)

    def __repr__(self) -> str:
        return f"BlockNorm({short(self.space)}, {self.c_in})"


class Residual(nn.Module):
    """``x + inner(x)`` (arXiv 1512.03385); ``inner`` keeps space and channels."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)
        first = inner[0]
        self.space, self.c_in, self.c_out = first.space, first.c_in, first.c_in
        self.coupled = any(getattr(layer, "coupled", True) for layer in inner)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape."""
        return batch.map(torch.add, self.inner(batch))


def n_blocks(space: WeightSpace) -> int:
    """Number of blocks of a space."""
    return sum(len(space.blocks(name)) for name in space.tensors)
