"""The net of parts 2 and 3: a wide MLP, trained on digits until it stops getting better."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metanet.tasks.demo.data import Images

WIDTHS = (64, 256, 256, 256, 10)
_BATCH = 50

Weights: TypeAlias = dict[str, Tensor]


class MLP(nn.Module):
    """Images ``[n, 1, 8, 8]`` to logits ``[n, 10]`` through three ReLU layers of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(WIDTHS))

    def forward(self, x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 10"]:
        """Logits."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


def train_mlp(images: Images, seed: int, epochs: int) -> MLP:
    """AdamW, learning rate 1e-3, weight decay 1, batches of 50: nothing special.

    Args:
        images: to train on.
        seed: of the init and of the batches.
        epochs: passes over the images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLP()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(_BATCH):
            loss = F.cross_entropy(model(images.x[batch]), images.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def accuracy(state_dict: Weights, images: Images) -> float:
    """Share of the images that an MLP with these weights classifies correctly."""
    return float((outputs(state_dict, images.x).argmax(1) == images.y).double().mean())


def outputs(state_dict: Weights, x: Tensor) -> Float[Tensor, "n 10"]:
    """Logits of an MLP with these weights, in their dtype."""
    dtype = next(iter(state_dict.values())).dtype
    with torch.no_grad():
        out: Tensor = torch.func.functional_call(MLP(), state_dict, (x.to(dtype),))
    return out


def double(model: nn.Module) -> Weights:
    """The state dict in float64."""
    return {name: value.detach().double() for name, value in model.state_dict().items()}


def flat(state_dict: Weights) -> Float[Tensor, " p"]:
    """All numbers in one vector."""
    return torch.cat([value.flatten() for value in state_dict.values()])


def cosine(a: Weights, b: Weights) -> float:
    """Cosine of the angle between two networks as vectors."""
    return float(F.cosine_similarity(flat(a), flat(b), dim=0))
