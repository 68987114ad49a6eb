"""What may stand for weights: a state dict, a Checkpoint, a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from torch import Tensor

from metanet.errors import SymmetryError


class HasStateDict(Protocol):
    """A Checkpoint or a module."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Name → tensor."""


Weights: TypeAlias = "Mapping[str, Tensor] | HasStateDict"


def tensors_of(weights: Weights) -> dict[str, Tensor]:
    """Name → tensor; modules give up their gradients.

    Raises:
        SymmetryError: for anything that has no ``state_dict``.
    """
    if isinstance(weights, Mapping):
        found = weights
    else:
        read = getattr(weights, "state_dict", None)
        if not callable(read):
            raise SymmetryError(f"weights must be a mapping of tensors or have a state_dict(), "
                                f"not {type(weights).__name__}")
        found = read()
    return {name: tensor.detach() for name, tensor in found.items()}
