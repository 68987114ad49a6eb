"""Normal: weights without the freedom of signs, scales and phases, so that a reader is blind to it.

Positive scales: each neuron's incoming weights get norm 1 and what reads it takes the factor.
Signs: each neuron's bias becomes positive. Phases (sine neurons, sin(w0·z)): a bias is brought into
[−π/2w0, π/2w0] and the sign that this costs is moved on (ScaleGMN's pre-pass, arXiv 2406.10685).
The order of neurons is left to the layers.
"""

from __future__ import annotations

from math import pi

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metanet.graph import WeightBatch
from metanet.nn.order import levels
from metanet.symmetry import Block, WeightSpace
from metanet.symmetry.kinds import SCALING

Place = tuple[str, int, int]
"""Block, axis of the stacked block, exponent."""


class Normal(nn.Module):
    """Maps every member to one of its orbit under the signed and positive groups of a space.

    Args:
        space: with kinds, as ``infer(…, kinds=["signed", "positive"])`` gives it; its blocks must
            be those of the batches.
        w0: of sine neurons, where phases are to be removed; None leaves them.
    """

    def __init__(self, space: WeightSpace, w0: float | None = None) -> None:
        super().__init__()
        self.space, self.w0 = space, w0
        kinds = {group.label: group.kind for group in space.normal_groups}
        self.steps: list[tuple[str, str, list[Place], list[Place]]] = []
        for label in [label for level in levels(space) for label in level]:
            sine = w0 is not None and getattr(space.meta.groups.get(label), "activation",
                                              None) == "sin"
            if kinds[label] in SCALING or sine:
                incoming, outgoing = places(space, label)
                self.steps.append((label, "phase" if sine else kinds[label], incoming, outgoing))

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape; channel 0 decides."""
        blocks = dict(batch.blocks)
        for _, kind, incoming, outgoing in self.steps:
            if kind == "positive":
                size = sum((_along(blocks[b].square(), axis) for b, axis, _ in incoming),
                           start=torch.zeros(()))
                size = torch.where(size > 0, size, 1.0).sqrt()
                _scale(blocks, incoming, 1 / size)
                _scale(blocks, outgoing, 1 / size)
                continue
            if kind == "phase" and self.w0 is not None:
                self._shift(blocks, incoming, outgoing, self.w0)
            flip = _sign(blocks, incoming)
            _scale(blocks, [*incoming, *outgoing], flip)
        return batch.with_blocks(blocks)

    @staticmethod
    def _shift(blocks: dict[str, Tensor], incoming: list[Place], outgoing: list[Place], w0: float
               ) -> None:
        for name, axis, _ in incoming:
            bias = blocks[name]
            if bias.ndim == 3 and axis == 1:  # [N, neurons, c]
                turns = (bias[..., :1] * w0 / pi).round()
                blocks[name] = bias - turns * (pi / w0)
                _scale(blocks, outgoing, 1 - 2 * turns[..., 0].remainder(2))
                return


def places(space: WeightSpace, label: str) -> tuple[list[Place], list[Place]]:
    """Where a group stands: on axes of neurons that are fed, and of neurons that feed others."""
    incoming: list[Place] = []
    outgoing: list[Place] = []
    for name in space.tensors:
        meta = space.tensor_meta(name)
        for block in space.blocks(name):
            for i, digit in enumerate(block.digits):
                if digit.label == label:
                    into = _feeds(block, i, meta.out_axes)
                    (incoming if into else outgoing).append((block.name, i + 1, digit.exponent))
    return incoming, outgoing


def _feeds(block: Block, place: int, out_axes: tuple[int, ...]) -> bool:
    return block.digits[place].axis in out_axes


def _along(value: Tensor, axis: int) -> Float[Tensor, "N n"]:
    """Sum of channel 0 over all axes but the first and one."""
    kept = value[..., 0]
    gone = [i for i in range(1, kept.ndim) if i != axis]
    return kept.sum(gone) if gone else kept


def _sign(blocks: dict[str, Tensor], incoming: list[Place]) -> Float[Tensor, "N n"]:
    """±1 per neuron: the sign of its bias, or of the sum of its weights where it has none."""
    biases = [_along(blocks[b], axis) for b, axis, _ in incoming if blocks[b].ndim == 3]
    sums = torch.stack([_along(blocks[b], axis) for b, axis, _ in incoming]).sum(0)
    odd = torch.where(biases[0] != 0, biases[0], sums) if biases else sums
    return torch.where(odd < 0, -1.0, 1.0)


def _scale(blocks: dict[str, Tensor], places: list[Place], factor: Float[Tensor, "N n"]) -> None:
    """Multiply neurons by ``factor ** exponent``."""
    for name, axis, exponent in places:
        value = blocks[name]
        shape = [len(value)] + [1] * (value.ndim - 1)
        shape[axis] = value.shape[axis]
        blocks[name] = value * (factor if exponent == 1 else factor ** exponent).reshape(shape)


class Waves(nn.Module):
    """Adds sine and cosine of w0·x as channels: what a phase is, to a sine neuron."""

    def __init__(self, w0: float) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, 1]`` → ``[N, *factors, 3]``."""
        return batch.with_blocks({
            name: torch.cat([x, (self.w0 * x).sin(), (self.w0 * x).cos()], -1)
            for name, x in batch.blocks.items()})


class Coordinates(nn.Module):
    """In training, the picture of every coordinate network is turned, moved and resized.

    sin(W·(A·x + t) + b) is the network with W·A and W·t + b: an exact change of the first layer.

    Args:
        space: of coordinate networks.
        turn: largest angle in radians. move: largest shift, in units of [−1, 1]. size: largest
            logarithm of the factor.
        conventions: also draw the order of coordinates and the range and offset of the values.
        noise: of every entry, relative to the deviation of its tensor.
    """

    def __init__(self, space: WeightSpace, turn: float = 0.2, move: float = 0.1, size: float = 0.1,
                 conventions: bool = False, noise: float = 0.0) -> None:
        super().__init__()
        self.first = _by_depth(space, first=True)
        self.last = _by_depth(space, first=False)
        self.turn, self.move, self.size = turn, move, size
        self.conventions, self.noise = conventions, noise

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """The batch itself outside training."""
        if not self.training:
            return batch
        n, blocks = len(batch), dict(batch.blocks)
        weight, bias = self.first
        like = blocks[weight]
        u = torch.rand(5, n, dtype=like.dtype, device=like.device) * 2 - 1
        angle, scale = self.turn * u[0], (self.size * u[1]).exp()
        matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1)
        matrix = matrix.reshape(n, 2, 2) * scale[:, None, None]
        shift = self.move * u[2:4].T
        if self.conventions:
            swap = (u[4] > 0)[:, None, None]
            matrix = torch.where(swap, matrix.flip(2), matrix)
        blocks[bias] = blocks[bias] + torch.einsum("nhdc,nd->nhc", like, shift)
        blocks[weight] = torch.einsum("nhdc,nde->nhec", like, matrix)
        if self.conventions:
            self._values(blocks)
        if self.noise:
            for name, x in blocks.items():
                spread = x.std(correction=0)
                blocks[name] = x + self.noise * spread * torch.randn_like(x)
        return batch.with_blocks(blocks)

    def _values(self, blocks: dict[str, Tensor]) -> None:
        """Values in [0, 1] or [−1, 1], with or without the 0.5 that some add outside the file."""
        weight, bias = self.last
        n = len(blocks[weight])
        pick = torch.randint(4, (n,), device=blocks[weight].device)
        table = torch.tensor([(1, 0), (1, 0.5), (2, 0), (2, -0.5)], dtype=blocks[weight].dtype,
                             device=blocks[weight].device)[pick]
        blocks[weight] = blocks[weight] * _front(table[:, 0], blocks[weight])
        blocks[bias] = blocks[bias] * _front(table[:, 0], blocks[bias]) \
            + _front(table[:, 1], blocks[bias])


def _front(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))


def _by_depth(space: WeightSpace, first: bool) -> tuple[str, str]:
    """Blocks of weight and bias of the first or the last layer."""
    depths = {name: space.tensor_meta(name).depth or 0 for name in space.tensors}
    wanted = min(depths.values()) if first else max(depths.values())
    names = [name for name, depth in depths.items() if depth == wanted]
    weight = next(n for n in names if len(space.tensors[n].shape) == 2)
    bias = next(n for n in names if len(space.tensors[n].shape) == 1)
    return space.blocks(weight)[0].name, space.blocks(bias)[0].name
