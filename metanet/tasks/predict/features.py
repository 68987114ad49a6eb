"""Features of weights for the reference rows: numbers, no networks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from metanet.graph import WeightBatch

_QUANTILES = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)


def _tensors(batch: WeightBatch) -> dict[str, Float[Tensor, "N k"]]:
    """Entries of every tensor, flat; blocks of a direct sum together."""
    found: dict[str, list[Tensor]] = {}
    for name in batch.space.tensors:
        for block in batch.space.blocks(name):
            found.setdefault(name, []).append(batch.blocks[block.name].flatten(1).double())
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def squared_norm(batch: WeightBatch) -> Float[Tensor, "N 1"]:
    """Logarithm of the sum of squares of all weights."""
    total = torch.stack([x.square().sum(1) for x in _tensors(batch).values()]).sum(0)
    return total.clamp_min(1e-30).log().unsqueeze(1)


def statistics(batch: WeightBatch) -> Float[Tensor, "N s"]:
    """Seven statistics of each tensor: mean, deviation and five quartiles (arXiv 2002.11448)."""
    columns = []
    for flat in _tensors(batch).values():
        quartiles = torch.quantile(flat, _QUANTILES, dim=1).T
        columns += [flat.mean(1, keepdim=True), flat.std(1, keepdim=True, correction=0), quartiles]
    return torch.cat(columns, 1)


def width_free(batch: WeightBatch) -> Float[Tensor, "N s"]:
    """Statistics of each tensor that a wider network of the same kind would share.

    Entries are scaled by the square root of the fan-in, so that sums of many small weights and
    of few large ones look alike; then deviation, and shape: kurtosis, skewness, mean and the
    shares within quantiles of a normal, and the deviation of the norms of neurons.
    """
    columns = []
    for name, flat in _tensors(batch).items():
        shape, meta = batch.space.tensors[name].shape, batch.space.tensor_meta(name)
        fan = 1
        for axis, size in enumerate(shape):
            fan *= size if axis not in meta.out_axes else 1
        scaled = flat * fan ** 0.5
        spread = scaled.std(1, correction=0).clamp_min(1e-12)
        z = (scaled - scaled.mean(1, keepdim=True)) / spread.unsqueeze(1)
        inner = torch.quantile(z, torch.tensor([0.1, 0.5, 0.9], dtype=z.dtype), dim=1)
        columns += [spread.log(), scaled.mean(1), z.pow(3).mean(1), z.pow(4).mean(1).log1p(),
                    *inner]
        rows = scaled.reshape(len(flat), -1, fan) if len(meta.out_axes) == 1 and 0 in meta.out_axes\
            else scaled.unsqueeze(1)
        norms = rows.square().mean(2).clamp_min(1e-24).log()
        columns += [norms.mean(1), norms.std(1, correction=0)]
    return torch.stack(columns, 1)


def spectra(batch: WeightBatch) -> Float[Tensor, "N s"]:
    """Of every tensor as a matrix (first axis by the rest): how much of its square sum the first
    three singular values hold. Entries in another order change it, statistics do not.
    """
    columns = []
    for name, flat in _tensors(batch).items():
        shape = batch.space.tensors[name].shape
        if len(shape) < 2 or min(shape[0], flat.shape[1] // shape[0]) < 4:
            continue
        squares = torch.linalg.svdvals(flat.reshape(len(flat), shape[0], -1)).square()
        shares = squares[:, :3] / squares.sum(1, keepdim=True).clamp_min(1e-30)
        columns.append(shares.clamp_min(1e-12).log())
    return torch.cat(columns, 1) if columns else torch.zeros(len(batch), 0, dtype=torch.float64)
