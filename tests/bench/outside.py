"""DWSLinear beside the published layer: ``python -m tests.bench.outside --peers DIR``.

The linear map of a DWSNets layer (set layers, mean reduction) is read off its values on all unit
vectors. It must lie in the span of our basis; with the weights that express it, ours must give the
same outputs; and random layers of theirs must span as many dimensions as ours has.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet.graph import WeightBatch
from metanet.nn import DWSLinear
from metanet.symmetry import WeightSpace
from tests.bench.layers import DWS, space_text


def pack(batch: WeightBatch, layout: list[int]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Our blocks as their weights ``[N, in, out, c]`` and biases ``[N, out, c]``."""
    n, blocks, depth = len(batch), batch.blocks, len(layout) - 1
    # Blocks have no digit for an axis of one number.
    return (tuple(blocks[f"w{i}"].reshape(n, layout[i + 1], layout[i], 1).transpose(1, 2)
                  for i in range(depth)),
            tuple(blocks[f"b{i}"].reshape(n, layout[i + 1], 1) for i in range(depth)))


def unpack(like: WeightBatch, found: Any) -> Tensor:
    """Their output as one vector per member, in our order."""
    weights, biases = found
    blocks = {f"w{i}": w.transpose(1, 2) for i, w in enumerate(weights)}
    blocks |= {f"b{i}": b for i, b in enumerate(biases)}
    return torch.cat([blocks[name].reshape(len(like), -1) for name in like.blocks], -1)


def flat(batch: WeightBatch) -> Tensor:
    """One vector per member."""
    return torch.cat([value.reshape(len(batch), -1) for value in batch.blocks.values()], -1)


def unit_vectors(space: WeightSpace) -> WeightBatch:
    """All unit vectors of the space, and the zero vector last."""
    layout = [b for name in space.tensors for b in space.blocks(name)]
    n = space.n_parameters
    parts = torch.cat([torch.eye(n), torch.zeros(1, n)]).double().split(
        [torch.Size(b.shape).numel() for b in layout], -1)
    return WeightBatch(space, {b.name: part.reshape(n + 1, *b.shape, 1)
                               for b, part in zip(layout, parts, strict=True)})


@torch.no_grad()
def basis_maps(layer: DWSLinear, inputs: WeightBatch) -> Tensor:
    """The map of every single weight (biases last), ``[weights, (n + 1) n]``."""
    rows = []
    parameters = [*layer.weights, layer.bias]
    for parameter in layer.parameters():
        parameter.zero_()
    for parameter in parameters:
        for index in range(parameter.numel()):
            parameter.view(-1)[index] = 1
            rows.append(flat(layer(inputs)).reshape(-1))
            parameter.view(-1)[index] = 0
    return torch.stack(rows)


@torch.no_grad()
def compare(layout: list[int], draws: int) -> tuple[int, int, float]:
    """Dimensions of their span and ours (biases included), and the largest difference."""
    from nn.layers import DWSLayer

    space = WeightSpace.parse(space_text(layout, False))
    ours, inputs = DWSLinear(space, 1, 1).double(), unit_vectors(space)
    basis = basis_maps(ours, inputs)
    shapes = tuple(pairwise(layout))
    theirs, worst = [], 0.0
    for seed in range(draws):
        torch.manual_seed(seed)
        layer = DWSLayer(weight_shapes=shapes, bias_shapes=tuple((b,) for _, b in shapes),
                         in_features=1, out_features=1, reduction="mean", set_layer="ds",
                         bias=True).double()
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
        theirs.append(unpack(inputs, layer(pack(inputs, layout))).reshape(-1))
        weights = torch.linalg.lstsq(basis.T, theirs[-1], driver="gelsd").solution
        torch.nn.utils.vector_to_parameters(weights, [*ours.weights, ours.bias])
        batch = WeightBatch(space, {n: torch.randn(7, *b.shape[1:], dtype=torch.float64)
                                    for n, b in inputs.blocks.items()})
        got, want = flat(ours(batch)), unpack(batch, layer(pack(batch, layout)))
        worst = max(worst, float((got - want).abs().max() / want.abs().max()))
    rank = int(torch.linalg.matrix_rank(torch.stack(theirs)))
    return rank, int(torch.linalg.matrix_rank(basis)), worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    sys.path.insert(0, str(parser.parse_args().peers / DWS))
    torch.set_num_threads(1)
    for layout in ([2, 4, 5, 1], [3, 4, 4, 2], [2, 3, 4, 3, 2]):
        rank, dimension, error = compare(layout, 240 if len(layout) > 4 else 150)
        print(f"{layout}: their layers span {rank} dimensions, ours {dimension}; outputs with "
              f"copied weights differ by {error:.1e}")


if __name__ == "__main__":
    main()
