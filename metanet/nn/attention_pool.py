"""AttentionPool: invariants as averages whose weights are learned."""

from __future__ import annotations

from collections.abc import Collection
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.grid import grids
from metanet.nn.unf import check_input, short
from metanet.symmetry import WeightSpace


class AttentionPool(nn.Module):
    """Each block is averaged by learned queries: ``Σ_i softmax_i(q·k_i) v_i``.

    Pooling by multi-head attention (set transformer, arXiv 1810.00825, with one seed per head), on
    the entries of a block; blocks have keys and values of their own.

    Args:
        space: of the input.
        c: channels in.
        heads: queries per block; each gives ``c`` channels.
        frozen: see ``metanet.nn.grid``.
        blocks: only these; by default all.

    Attributes:
        c_out: width of the output.

    Raises:
        SymmetryError: if the space has not all of ``blocks``.
    """

    coupled = False

    def __init__(self, space: WeightSpace, c: int, heads: int = 2, frozen: str = "auto",
                 blocks: Collection[str] | None = None) -> None:
        super().__init__()
        every = grids(space, frozen)
        if not set(blocks or ()) <= set(every):
            raise SymmetryError(f"AttentionPool(blocks={blocks!r}): the space has no such block")
        self.grids = {k: v for k, v in every.items() if blocks is None or k in blocks}
        self.space, self.c_in, self.heads = space, c, heads
        self.queries, self.values = nn.ParameterList(), nn.ParameterList()
        for grid in self.grids.values():
            width = grid.width * c
            # No preference at first: a mean.
            self.queries.append(nn.Parameter(torch.zeros(width, heads)))
            self.values.append(nn.Parameter(torch.randn(width, heads * c) / sqrt(width)))
        self.c_out = len(self.grids) * heads * c

    def forward(self, batch: WeightBatch) -> Float[Tensor, "N c_out"]:
        """``[N, *factors, c]`` → ``[N, c_out]``, block after block."""
        check_input(self.space, self.c_in, batch)
        found = []
        for (name, grid), query, weight in zip(self.grids.items(), self.queries, self.values,
                                               strict=True):
            folded = grid.fold(batch.blocks[name])
            entries = folded.reshape(len(folded), -1, folded.shape[-1])
            shares = (entries @ query).softmax(1)
            # First the averages of the entries, then the values: heads times fewer products.
            means = torch.einsum("neh,new->nhw", shares, entries)
            value = weight.reshape(weight.shape[0], self.heads, self.c_in)
            found.append(torch.einsum("nhw,whc->nhc", means, value).flatten(1))
        return torch.cat(found, -1)

    def __repr__(self) -> str:
        return f"AttentionPool({short(self.space)} -> {self.c_out} invariants, {self.heads} heads)"
