"""Stack: layers one behind the other, with gradient checkpointing."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from metanet.errors import SymmetryError


class Stack(nn.Sequential):
    """Layers applied in turn.

    Args:
        layers: the first takes a WeightBatch; only the last may give a tensor (pools, heads).
        checkpoint: keep what goes into each layer and recompute the rest in the backward pass
            (sublinear memory, arXiv 1604.06174): the same numbers for less memory and about one
            more forward pass of time. Only the training step changes.

    Attributes:
        space: of the first layer, as are ``c_in``; ``coupled`` if any layer is.

    Raises:
        SymmetryError: without a layer, or if the first one names no space.
    """

    def __init__(self, *layers: nn.Module, checkpoint: bool = False) -> None:
        super().__init__(*layers)
        if not layers or not hasattr(layers[0], "space"):
            raise SymmetryError("a stack needs a first layer that has a space; got "
                                f"{type(layers[0]).__name__ if layers else 'none'}")
        self.space, self.c_in = layers[0].space, layers[0].c_in
        self.coupled = any(getattr(layer, "coupled", False) for layer in layers)
        self.checkpoint = checkpoint

    def forward(self, batch: Any) -> Any:
        """``[N, *factors, c_in]`` → what the last layer gives."""
        for layer in self:
            batch = recompute(layer, batch, use_reentrant=False) if self.checkpoint else \
                layer(batch)
        return batch

    def extra_repr(self) -> str:
        """Shown in front of the layers."""
        return f"checkpoint={self.checkpoint}"
