"""Batches: members of one layout, contiguous, with the columns that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from metanet.zoo import shard as shards
from metanet.zoo.index import MAX_ROWS
from metanet.zoo.layout import Layout
from torch import Tensor

from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.zoo.selection import Selection

    from metanet.graph import WeightBatch
    from metanet.symmetry import WeightSpace

Places = Int64[np.ndarray, " k"]


@dataclass(frozen=True, eq=False)
class ZooBatch:
    """Some members of one layout.

    Attributes:
        tensors: name → ``[n, …]``; memory-mapped where the members stand side by side.
        selection: where they stand in the zoo.
        columns: the columns that were asked for, name → array ``[n]``.
        layout: names, shapes, dtypes, ties.
        space: their space, or None where the zoo does not know it.
    """

    tensors: Mapping[str, Shaped[Tensor, "n ..."]]
    selection: Selection
    layout: Layout
    space: WeightSpace | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.selection)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Their ids, read from the index when first asked for."""
        return self.selection.ids

    @property
    def weights(self) -> WeightBatch:
        """The members as a WeightBatch with one channel.

        Raises:
            ZooError: if the zoo does not know their space.
        """
        if self.space is None:
            raise ZooError("the space of these members is not known, so they make no WeightBatch; "
                           "use .tensors, or name the architecture when ingesting (--arch)")
        return weight_batch(self.space, self.tensors, self.ids)

    def state_dicts(self) -> Iterator[dict[str, Tensor]]:
        """The members one by one, ties restored."""
        for row in range(len(self)):
            yield untied(self.layout, {name: t[row] for name, t in self.tensors.items()})


def untied(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which the aliases are there again, each the same tensor as its owner."""
    return {**tensors, **{alias: tensors[owner] for alias, owner in layout.aliases}}


def weight_batch(space: WeightSpace, tensors: Mapping[str, Shaped[Tensor, "n ..."]],
                 names: Sequence[str]) -> WeightBatch:
    """Stacked tensors as a WeightBatch, without a loop over members.

    Tensors that the space does not know (counters) are left out.
    """
    from metanet.graph import WeightBatch
    from metanet.graph.pack import cast, compute_dtype, split

    known = {space.owner(n): t for n, t in tensors.items()
             if n in space.tensors or n in space.aliases}
    missing = [n for n in space.tensors if n not in known]
    if missing:
        raise ZooError(f"tensor {missing[0]!r} of the space is not among the stacked tensors")
    dtype = compute_dtype(known)
    blocks = {}
    for owner in space.tensors:
        for name, block in split(space, owner, cast(owner, known[owner], dtype), 1).items():
            blocks[name] = block.contiguous().unsqueeze(-1)
    return WeightBatch(space, blocks, names)


def read_places(folder: Path, layout: Layout, sizes: Mapping[int, int], places: Places
                ) -> dict[str, Shaped[Tensor, "k ..."]]:
    """Members at these places, in this order; one gather per shard and parameter.

    Args:
        folder: the zoo's.
        layout: the one layout of all of them.
        sizes: shard → members in it.
        places: shard * MAX_ROWS + row.
    """
    order = np.argsort(places, kind="stable")
    ranked = places[order]
    numbers, starts = np.unique(ranked // MAX_ROWS, return_index=True)
    runs = list(zip(numbers.tolist(), np.split(ranked % MAX_ROWS, starts[1:]), strict=True))
    in_order = bool(np.all(order[:-1] < order[1:]))
    # A view must not reach into the mapping that others copy from.
    copied = len(runs) > 1 or not in_order or not shards.consecutive(runs[0][1])
    parts = []
    for number, rows in runs:
        path = shards.path_of(folder, number)
        stored = shards.read(path, layout, sizes[number], shared=copied)
        parts.append(shards.take(stored, rows))
    joined = parts[0] if len(parts) == 1 else {
        name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if in_order:
        return joined
    back = torch.from_numpy(np.argsort(order, kind="stable"))
    return {name: tensor.index_select(0, back) for name, tensor in joined.items()}
