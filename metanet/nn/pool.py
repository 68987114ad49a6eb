"""InvariantPool: what a batch tells however its neurons are ordered."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.grid import grids
from metanet.nn.unf import check_input, short
from metanet.symmetry import WeightSpace

STATS = ("mean", "std", "max", "min", "sum")
PER = ("block", "role", "layer")
_EPS = 1e-12


class InvariantPool(nn.Module):
    """Statistics of every block over its slots, one for each channel and folded fixed index.

    Args:
        space: of the input.
        c: channels in.
        stats: of ``mean``, ``std``, ``max``, ``min``, ``sum``.
        per: ``block``; or the mean over the blocks (folded indices too) of one ``role``, so that
            the width of the output does not grow with depth, or of one ``layer`` (equal depth in
            the space's meta).
        frozen: see ``metanet.nn.grid``.
        blocks: only these; by default all.

    Attributes:
        c_out: width of the output.
    """

    coupled = False

    def __init__(self, space: WeightSpace, c: int, stats: tuple[str, ...] = ("mean", "std", "max"),
                 per: str = "block", frozen: str = "auto",
                 blocks: Collection[str] | None = None) -> None:
        super().__init__()
        if per not in PER or not set(stats) <= set(STATS) or not stats:
            raise SymmetryError(f"InvariantPool(stats={stats!r}, per={per!r}): stats are of "
                                f"{', '.join(STATS)}; per is one of {', '.join(PER)}")
        self.space, self.c_in, self.stats, self.per = space, c, stats, per
        every = grids(space, frozen if per == "block" else "batch")
        self.grids = {k: v for k, v in every.items() if blocks is None or k in blocks}
        if not self.grids or not set(blocks or ()) <= set(every):
            raise SymmetryError(f"InvariantPool(blocks={blocks!r}): the space has no such block")
        self.parts: dict[str, list[str]] = {}
        for name, grid in self.grids.items():
            meta = space.tensor_meta(grid.block.tensor)
            part = meta.role if per == "role" else str(meta.depth)
            self.parts.setdefault(part, []).append(name)
        widths = [grid.width for grid in self.grids.values()]
        self.c_out = c * len(stats) * (sum(widths) if per == "block" else len(self.parts))

    def forward(self, batch: WeightBatch) -> Float[Tensor, "N c_out"]:
        """``[N, *factors, c]`` → ``[N, c_out]``, block after block."""
        check_input(self.space, self.c_in, batch)
        pooled = {name: self._pool(grid.fold(batch.blocks[name]))
                  for name, grid in self.grids.items()}
        if self.per == "block":
            return torch.cat(list(pooled.values()), -1)
        return torch.cat([torch.stack([pooled[name] for name in names]).mean(0)
                          for names in self.parts.values()], -1)

    def _pool(self, value: Tensor) -> Tensor:
        entries = value.reshape(len(value), -1, value.shape[-1])
        found = {"mean": entries.mean(1)} if {"mean", "std"} & set(self.stats) else {}
        if "std" in self.stats:
            spread = (entries - found["mean"].unsqueeze(1)).square().mean(1)
            found["std"] = (spread + _EPS).sqrt()
        if "max" in self.stats:
            found["max"] = entries.amax(1)
        if "min" in self.stats:
            found["min"] = entries.amin(1)
        if "sum" in self.stats:
            found["sum"] = entries.sum(1)
        return torch.cat([found[stat] for stat in self.stats], -1)

    def __repr__(self) -> str:
        return (f"InvariantPool({short(self.space)} -> {self.c_out} invariants, "
                f"{'+'.join(self.stats)} per {self.per})")
