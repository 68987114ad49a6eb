"""Editor: a metanet whose output is a change of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.models.base import CODERS, Saved, check_sizes, read_space
from metanet.models.encoder import Encoder, Options
from metanet.nn import Unembed
from metanet.symmetry import WeightSpace


class Editor(Saved, library_name="metanet", coders=CODERS):
    """Encoding → latent layers → a change of every weight: ``x + γ·scale·f(x)``.

    Equivariant, so that the edited network does not depend on how its neurons were ordered
    (editing of INRs as in NFN, arXiv 2302.14040, and DWS, arXiv 2301.12780).

    Args:
        space: a WeightSpace, its JSON or its text.
        channels: channels of the input batches, and of the output.
        kind, width, depth, encoding, aggregate, schedule, messages, activation, mixing,
            channel_dropout, checkpoint: see ``Metanet``.
        gamma: first size of the change, in deviations of each block (a learned number per block).
        residual: whether the change is added to the weights, or is the output itself.

    Raises:
        SymmetryError: for a value out of range, naming it.
    """

    coupled = True

    def __init__(self, space: WeightSpace | Mapping[str, Any] | str, channels: int = 1,
                 kind: str = "gmn", width: int = 16, depth: int = 2,
                 encoding: Sequence[str] = ("raw", "signlog"),
                 aggregate: Sequence[str] = ("mean",), schedule: str = "parallel",
                 messages: int = 2, activation: str = "gelu", mixing: str = "exact",
                 channel_dropout: float = 0.0, checkpoint: bool = False, gamma: float = 0.01,
                 residual: bool = True) -> None:
        super().__init__()
        check_sizes(channels=channels, width=width, depth=depth)
        if kind == "product":
            raise SymmetryError("kind='product' gives states of neurons and none of edges, so it "
                                "cannot edit weights; take 'gmn' or 'unf'")
        self.space = space = read_space(space)
        self.c_in = self.c_out = channels
        self.residual = residual
        self.encoder = Encoder(space, Options(
            kind, channels, width, depth, encoding, aggregate, schedule, messages, activation,
            mixing, channel_dropout, checkpoint))
        self.unembed = Unembed(space, width, channels)
        count = len(self.encoder.standardise.mean)
        self.gamma = nn.Parameter(torch.full((count,), float(gamma)))

    @torch.no_grad()
    def measure(self, batch: WeightBatch) -> None:
        """Store the scales of the inputs, before training."""
        self.encoder.standardise.measure(batch)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, channels]`` → the same shape."""
        encoder = self.encoder
        change: WeightBatch = self.unembed(encoder(encoder.start(encoder.encode(batch))))
        sizes = self.gamma[:, None] * encoder.standardise.scale
        blocks = {}
        for (name, value), size in zip(change.blocks.items(), sizes, strict=True):
            blocks[name] = value * size + (batch.blocks[name] if self.residual else 0)
        return batch.with_blocks(blocks)
