"""Encoder: from weights to states of the latent space, as both heads need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import (
    ChannelDropout,
    Embed,
    Encoding,
    GMNLayer,
    LayerNorm,
    Pointwise,
    ProductWalk,
    Residual,
    Stack,
    UNFLinear,
)
from metanet.nn.pointwise import n_blocks
from metanet.symmetry import WeightSpace

KINDS = ("gmn", "unf", "product")
_ONLY = {"aggregate": "gmn", "schedule": "gmn", "messages": "gmn", "activation": "gmn",
         "mixing": "unf"}  # options that one kind alone has


class Standardise(nn.Module):
    """Shift and scale each channel of each block by numbers measured once on a training batch."""

    coupled = False

    def __init__(self, space: WeightSpace, c: int) -> None:
        super().__init__()
        self.space, self.c_in, self.c_out = space, c, c
        self.register_buffer("mean", torch.zeros(n_blocks(space), c))
        self.register_buffer("scale", torch.ones(n_blocks(space), c))
        self.mean: Tensor
        self.scale: Tensor

    @torch.no_grad()
    def measure(self, batch: WeightBatch) -> None:
        """Take mean and deviation over members and entries; constant channels keep scale 1."""
        for row, value in enumerate(batch.blocks.values()):
            entries = value.reshape(-1, value.shape[-1]).double()
            deviation = entries.std(0, correction=0)
            self.mean[row] = entries.mean(0)
            self.scale[row] = torch.where(deviation > 1e-12, deviation, 1.0)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape."""
        rows = zip(batch.blocks.items(), self.mean, self.scale, strict=True)
        return batch.with_blocks({name: (value - mean) / scale
                                  for (name, value), mean, scale in rows})


@dataclass(frozen=True)
class Options:
    """What the layers of an encoder are; see ``Metanet``.

    Raises:
        SymmetryError: for a kind that is not known, or an option that it does not have.
    """

    kind: str = "gmn"
    channels: int = 1
    width: int = 16
    depth: int = 2
    encoding: Sequence[str] = ("raw", "signlog")
    aggregate: Sequence[str] = ("mean",)
    schedule: str = "parallel"
    messages: int = 2
    activation: str = "gelu"
    mixing: str = "exact"
    channel_dropout: float = 0.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SymmetryError(f"kind={self.kind!r} is not known; known are {', '.join(KINDS)}")
        for name, kind in _ONLY.items():
            value = getattr(self, name)
            given = tuple(value) if isinstance(value, list) else value
            if kind != self.kind and given != getattr(Options, name):  # the class has the defaults
                raise SymmetryError(f"{name}={value!r} is an option of kind {kind!r}; kind "
                                    f"{self.kind!r} has none such")


class Encoder(nn.Module):
    """Standardise → encode → embed → layers → norm.

    Args:
        space: of the members.
        options: see ``Metanet``.

    Attributes:
        home: the latent space, with node and global states.
        states: names of its states.
    """

    def __init__(self, space: WeightSpace, options: Options) -> None:
        super().__init__()
        self.standardise = Standardise(space, options.channels)
        self.encoding = Encoding(space, options.channels, tuple(options.encoding))
        self.embed = _start(space, self.encoding.c_out, options)
        self.home, self.states = self.embed.space_out, self.embed.states
        layers: list[nn.Module] = []
        for _ in range(0 if options.kind == "product" else options.depth):
            layers.append(_layer(self.home, options))
            if options.channel_dropout:
                layers.append(ChannelDropout(self.home, options.width, options.channel_dropout))
        self.layers = Stack(*layers, checkpoint=options.checkpoint) if layers else nn.Identity()
        self.norm = LayerNorm(self.home, options.width)

    def encode(self, batch: WeightBatch) -> WeightBatch:
        """What needs no parameters: ``[N, *factors, channels]`` → ``[N, *factors, c]``."""
        encoded: WeightBatch = self.encoding(self.standardise(batch))
        return encoded

    def start(self, encoded: WeightBatch) -> WeightBatch:
        """Into the latent space."""
        started: WeightBatch = self.embed(encoded)
        return started

    def forward(self, states: WeightBatch) -> WeightBatch:
        """States after ``start`` → states after all layers, ``[N, *slots, width]``."""
        found: WeightBatch = self.norm(self.layers(states))
        return found


def _start(space: WeightSpace, c: int, options: Options) -> Embed | ProductWalk:
    """Into the latent space; products end with its states, so that no layers stand behind them."""
    if options.kind != "product":
        return Embed(space, c, options.width)
    return ProductWalk(space, c, options.width, rounds=max(1, options.depth),
                       dropout=options.channel_dropout)


def _layer(home: WeightSpace, options: Options) -> nn.Module:
    width = options.width
    if options.kind == "gmn":
        return GMNLayer(home, width, frozen="batch", activation=options.activation,
                        messages=options.messages, aggregate=tuple(options.aggregate),
                        schedule=options.schedule)
    return Residual(LayerNorm(home, width),
                    UNFLinear(home, width, width, frozen="batch", mixing=options.mixing),
                    Pointwise(home, width))
