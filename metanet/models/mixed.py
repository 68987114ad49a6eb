"""MixedMetanet: one predictor for networks of any architecture."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import SpaceMismatch, SymmetryError
from metanet.graph import WeightBatch
from metanet.models.base import Saved, check_sizes
from metanet.nn import Encoding, MixedGMNLayer
from metanet.nn.latent import GLOBAL, node_name
from metanet.nn.mixed import ROLES, role_of, typed
from metanet.symmetry import TensorMeta, WeightSpace

# Their widths follow the roles or the digits of a space.
_OF_A_SPACE = ("role", "position")


class MixedMetanet(Saved, library_name="metanet"):
    """Encoding → message passing with weights by role → invariant pool → head.

    No weight belongs to an architecture, a width or a depth, so a predictor that was trained on
    some networks runs on others (graph metanetworks, arXiv 2312.04501). Blocks of equal spaces are
    stacked and stay dense; members of several spaces come as several batches.

    Args:
        outputs: numbers to predict.
        width: channels of the layers.
        depth: number of layers.
        encoding: features of ``metanet.nn.Encoding``, but ``role`` and ``position``, whose widths
            depend on the space. ``fan_in`` and ``quantile`` are of one size at every width.
        channels: channels of the input batches.
        head: hidden width of the head.
        dropout: in the head.
        activation: of messages; see ``metanet.nn.MixedGMNLayer``.

    Raises:
        SymmetryError: for a value out of range, naming it.
    """

    coupled = True

    def __init__(self, outputs: int = 1, width: int = 16, depth: int = 2,
                 encoding: Sequence[str] = ("fan_in", "signlog", "quantile", "depth",
                                            "activation", "neuron", "tap"),
                 channels: int = 1, head: int = 64, dropout: float = 0.2,
                 activation: str = "gelu") -> None:
        super().__init__()
        check_sizes(outputs=outputs, width=width, depth=depth, channels=channels, head=head)
        if not 0 <= dropout < 1:
            raise SymmetryError(f"dropout={dropout!r} is not in [0, 1)")
        refused = [name for name in encoding if name in _OF_A_SPACE]
        if refused:
            raise SymmetryError(f"encoding={refused[0]!r} has another width in every space")
        self.c_in, self.outputs, self.encoding = channels, outputs, tuple(encoding)
        c = Encoding(_ANY, channels, self.encoding).c_out
        self.embed = nn.Parameter(torch.randn(len(ROLES), c, width) / sqrt(c))
        self.start = nn.Parameter(torch.randn(2, width) / 4)
        self.layers = nn.ModuleList(MixedGMNLayer(width, activation=activation)
                                    for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(4 * width, head), nn.LayerNorm(head), nn.GELU(),
                                  nn.Dropout(dropout), nn.Linear(head, outputs))

    def states(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, channels]`` → the states before the first layer, of a typed space."""
        if batch.channels != self.c_in:
            raise SpaceMismatch(f"the batch has {batch.channels} channels, the net takes "
                                f"{self.c_in}")
        space, home = batch.space, typed(batch.space)
        encoded = _encoding(space, _metas(space), self.c_in, self.encoding)(
            batch.to(self.embed.dtype))
        blocks = {}
        for name in home.tensors:
            for block in home.blocks(name):
                if name.startswith(GLOBAL):
                    start = self.start[0 if name == GLOBAL else 1]
                    blocks[name] = start.expand(len(batch), *block.shape, -1)
                else:
                    blocks[block.name] = encoded.blocks[name] @ self.embed[role_of(home, name)]
        return WeightBatch(home, blocks, batch.names)

    def forward(self, batches: WeightBatch | Sequence[WeightBatch]) -> Float[Tensor, "N outputs"]:
        """Batches of any spaces → predictions, member after member of batch after batch."""
        many = [batches] if isinstance(batches, WeightBatch) else list(batches)
        found: Tensor = self.head(torch.cat([self._pooled(self._run(batch)) for batch in many]))
        return found

    def _run(self, batch: WeightBatch) -> WeightBatch:
        states = self.states(batch)
        for layer in self.layers:
            states = layer(states)
        return states

    def _pooled(self, states: WeightBatch) -> Tensor:
        """Global state, and mean, deviation and maximum of neurons, averaged over node sets."""
        found = []
        for group in states.space.normal_groups:
            value = states.blocks[node_name(group.label)]
            nodes = self.norm(value).reshape(len(states), -1, value.shape[-1])
            spread = (nodes.var(1, correction=0) + 1e-6).sqrt()
            found.append(torch.cat([nodes.mean(1), spread, nodes.amax(1)], -1))
        root = self.norm(states.blocks[GLOBAL])
        if not found:
            return torch.cat([root, root.new_zeros(len(root), 3 * root.shape[-1])], -1)
        return torch.cat([root, torch.stack(found).mean(0)], -1)


_ANY = WeightSpace.parse("space v1\ngroup a = S(2)\nw: a")


def _metas(space: WeightSpace) -> tuple[tuple[str, TensorMeta], ...]:
    """What the encoding knows beside the space: equal spaces may have other roles."""
    groups = tuple((label, TensorMeta(str(meta.activation), depth=meta.depth))
                   for label, meta in space.meta.groups.items())
    return (*((name, space.tensor_meta(name)) for name in space.tensors), *groups)


@lru_cache(maxsize=256)
def _encoding(space: WeightSpace, metas: tuple[tuple[str, TensorMeta], ...], channels: int,
              features: tuple[str, ...]) -> Encoding:
    return Encoding(space, channels, features)
