"""Compile layers and compare with eager: ``python tests/compile_run.py BACKEND LAYER…``.

A process of its own, since the shape checks that pytest puts around every layer are not something
a compiler can trace. Prints one JSON object: layer → largest relative error.
"""

from __future__ import annotations

import json
import sys

import torch
from hand_spaces import SPACES
from layer_list import LAYERS
from torch import Tensor

from metanet.graph import WeightBatch
from metanet.nn.checks import random_batch, randomised


def step(layer: torch.nn.Module, batch: WeightBatch) -> list[Tensor]:
    """Outputs, and gradients of inputs and parameters."""
    leaf = batch.map(lambda block: block.detach().clone().requires_grad_())
    out = layer(leaf)
    found = list(out.blocks.values()) if isinstance(out, WeightBatch) else [out]
    total = torch.stack([value.square().sum() for value in found]).sum()
    wanted = [*leaf.blocks.values(), *layer.parameters()]
    return [*found, *torch.autograd.grad(total, wanted, allow_unused=True,
                                         materialize_grads=True)]


def main() -> None:
    torch.set_num_threads(1)
    errors = {}
    for name in sys.argv[2:]:
        layer = randomised(LAYERS[name](SPACES["mlp"]), 1)
        batch = random_batch(layer.space, layer.c_in)
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend=sys.argv[1], fullgraph=True)
        pairs = zip(step(layer, batch), step(compiled, batch), strict=True)
        errors[name] = max(float(((a - b).norm() / (1 + a.norm())).detach()) for a, b in pairs)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
