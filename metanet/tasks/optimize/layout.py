"""Where tensors lie in one flat buffer, and statistics per tensor of such a buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

_DENSE = 1 << 23  # entries of a dense matrix of means, at most


@dataclass(frozen=True)
class Layout:
    """Tensors one behind the other.

    Attributes:
        names: of the tensors, in order.
        shapes: of the tensors.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """Layout of named tensors."""
        return cls(tuple(tensors), tuple(tuple(value.shape) for value in tensors.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each tensor."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each tensor begins."""
        at, found = 0, []
        for size in self.sizes:
            found.append(at)
            at += size
        return tuple(found)

    @cached_property
    def total(self) -> int:
        """Entries of all tensors."""
        return sum(self.sizes)

    @cached_property
    def widths(self) -> tuple[float, ...]:
        """Entries that one output of each tensor reads: all axes but the first; of a vector 0."""
        return tuple(size / shape[0] if len(shape) > 1 and size else 0.0
                     for size, shape in zip(self.sizes, self.shapes, strict=True))

    @property
    def width(self) -> int:
        """The largest of ``widths``."""
        return int(max(self.widths, default=0.0))

    @cached_property
    def owner(self) -> Tensor:
        """Number of the tensor that each entry belongs to, ``[n]`` int64."""
        return torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))

    @cached_property
    def _means(self) -> Tensor | None:
        if self.total * len(self.sizes) > _DENSE:
            return None
        table = torch.zeros(self.total, len(self.sizes))
        for i, (start, size) in enumerate(zip(self.starts, self.sizes, strict=True)):
            table[start:start + size, i] = 1 / max(size, 1)
        return table

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views ``[*lead, *shape]`` of the tensors in ``flat [*lead, n]``."""
        lead = flat.shape[:-1]
        return [flat[..., start:start + size].view((*lead, *shape)) for start, size, shape in zip(
            self.starts, self.sizes, self.shapes, strict=True)]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Name → view of its tensor."""
        return dict(zip(self.names, self.views(flat), strict=True))

    def pack(self, tensors: Sequence[Tensor], lead: int = 0) -> Tensor:
        """Inverse of ``views``: a fresh ``[*lead, n]``."""
        return torch.cat([value.flatten(lead) for value in tensors], -1)

    def mean(self, flat: Tensor) -> Tensor:
        """Mean over each tensor: ``[*lead, n]`` → ``[*lead, T]``."""
        if self._means is not None:
            return flat @ self._means.to(flat)
        return torch.stack([part.mean(-1) for part in flat.split(self.sizes, -1)], -1)

    def spread(self, values: Tensor) -> Tensor:
        """Each tensor's value for all its entries: ``[*lead, T]`` → ``[*lead, n]``."""
        return values.index_select(-1, self.owner.to(values.device))
