"""Networks that read weights, all behind one door: a batch and its context in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import SpaceMismatch
from metanet.graph import WeightBatch
from metanet.models import Metanet
from metanet.nn import ChannelLinear, DWSLinear, InvariantPool, Probes
from metanet.nn.encoding import signlog
from metanet.symmetry import WeightSpace


class Reader(nn.Module):
    """Transformations of the weights, then a network.

    Args:
        net: takes ``(batch, context)`` and gives ``[N, outputs]``; ``measure(batch, context)``
            stores the scales of its inputs.
        augment: applied in training only.
        pre: applied always.
    """

    def __init__(self, net: nn.Module, pre: Sequence[nn.Module] = (),
                 augment: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.net = net
        self.pre, self.augment = nn.ModuleList(pre), nn.ModuleList(augment)

    def ready(self, batch: WeightBatch) -> WeightBatch:
        """What the network itself sees."""
        for step in [*(self.augment if self.training else ()), *self.pre]:
            batch = step(batch)
        return batch

    @torch.no_grad()
    def measure(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> None:
        """Store the scales of the inputs, before training."""
        training = self.training
        self.eval()
        measured: Any = self.net
        measured.measure(self.ready(batch), context)
        self.train(training)

    def forward(self, batch: WeightBatch, context: Float[Tensor, "N a"]
                ) -> Float[Tensor, "N outputs"]:
        """Outputs in learned units (logits of classes, or standardised numbers)."""
        found: Tensor = self.net(self.ready(batch), context)
        return found


def with_context(batch: WeightBatch, context: Float[Tensor, "N a"]) -> WeightBatch:
    """The context as further channels of every entry."""
    if not context.shape[1]:
        return batch
    blocks = {}
    for name, x in batch.blocks.items():
        extra = context.to(x).reshape(len(x), *[1] * (x.ndim - 2), -1)
        blocks[name] = torch.cat([x, extra.expand(*x.shape[:-1], -1)], -1)
    return batch.with_blocks(blocks)


class MetanetReader(nn.Module):
    """``metanet.models.Metanet`` on weights and context.

    Args:
        space: of the members.
        outputs: numbers to give.
        channels: of the batches. context: numbers of the context.
        options: of ``Metanet``.
    """

    def __init__(self, space: WeightSpace, outputs: int, channels: int = 1, context: int = 0,
                 **options: Any) -> None:
        super().__init__()
        self.model = Metanet(space, outputs, channels=channels + context, **options)

    def measure(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> None:
        """Store the scales of the inputs."""
        zeros = torch.zeros(len(batch), self.model.outputs)
        self.model.measure(with_context(batch, context), zeros)

    def forward(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> Tensor:
        """``[N, outputs]``."""
        return self.model.standard(self.model.prepare(with_context(batch, context)))


class _Scaled(nn.Module):
    """Numbers ``[N, d]``, standardised by what was measured; far outliers are cut."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.mean: Tensor
        self.scale: Tensor

    @torch.no_grad()
    def measure(self, value: Float[Tensor, "N d"]) -> None:
        deviation = value.double().std(0, correction=0)
        self.mean.copy_(value.double().mean(0))
        self.scale.copy_(torch.where(deviation > 1e-8, deviation, 1.0))

    def forward(self, value: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        return ((value - self.mean) / self.scale).clamp(-6, 6)


def _mlp(inputs: int, hidden: int, outputs: int, dropout: float, layers: int = 1) -> nn.Sequential:
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Linear(inputs if i == 0 else hidden, hidden), nn.LayerNorm(hidden), nn.GELU(),
                  nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(hidden if layers else inputs, outputs))


class FlatMLP(nn.Module):
    """A multilayer perceptron on all weights in a row: blind to the symmetry."""

    def __init__(self, space: WeightSpace, outputs: int, channels: int = 1, context: int = 0,
                 hidden: int = 128, dropout: float = 0.2) -> None:
        super().__init__()
        size = sum(_numel(block.shape) for name in space.tensors for block in space.blocks(name))
        self.scaled = _Scaled(size * channels + context)
        self.net = _mlp(size * channels + context, hidden, outputs, dropout, layers=2)

    @staticmethod
    def _flat(batch: WeightBatch, context: Tensor) -> Tensor:
        return torch.cat([*(x.flatten(1) for x in batch.blocks.values()), context.to(
            batch.dtype)], 1)

    def measure(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> None:
        """Store the scales of the inputs."""
        self.scaled.measure(self._flat(batch, context))

    def forward(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> Tensor:
        """``[N, outputs]``."""
        found: Tensor = self.net(self.scaled(self._flat(batch, context)))
        return found


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


class DeepSets(nn.Module):
    """Each tensor as a set of numbers (arXiv 1703.06114): blind to all wiring."""

    def __init__(self, space: WeightSpace, outputs: int, channels: int = 1, context: int = 0,
                 width: int = 32, hidden: int = 256, dropout: float = 0.2) -> None:
        super().__init__()
        self.names = tuple(block.name for n in space.tensors for block in space.blocks(n))
        rows = len(self.names)
        self.register_buffer("mean", torch.zeros(rows, channels))
        self.register_buffer("scale", torch.ones(rows, channels))
        self.mean: Tensor
        self.scale: Tensor
        self.own = nn.Parameter(torch.randn(rows, width) / 2)
        self.see = nn.Linear(2 * channels, width)
        self.more = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.head = _mlp(2 * width * rows + context, hidden, outputs, dropout)

    @torch.no_grad()
    def measure(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> None:
        """Store the scales of the inputs."""
        for i, name in enumerate(self.names):
            flat = batch.blocks[name].reshape(-1, batch.channels).double()
            self.mean[i] = flat.mean(0)
            deviation = flat.std(0, correction=0)
            self.scale[i] = torch.where(deviation > 1e-12, deviation, 1.0)

    def forward(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> Tensor:
        """``[N, outputs]``."""
        pooled = []
        for i, name in enumerate(self.names):
            x = batch.blocks[name]
            x = (x.reshape(len(x), -1, x.shape[-1]) - self.mean[i]) / self.scale[i]
            h = self.more(self.see(torch.cat([x, signlog(x)], -1)) + self.own[i])
            pooled += [h.mean(1), h.amax(1)]
        found: Tensor = self.head(torch.cat([*pooled, context.to(batch.dtype)], 1))
        return found


class DWSNet(nn.Module):
    """Deep weight space network (arXiv 2301.12780): its linear layers, ReLU, invariant pool."""

    def __init__(self, space: WeightSpace, outputs: int, channels: int = 1, context: int = 0,
                 width: int = 16, depth: int = 3, hidden: int = 64, dropout: float = 0.2) -> None:
        super().__init__()
        self.sets = DeepSets(space, 1, channels, 0, width=4, hidden=4)  # holds the input scales
        self.start = ChannelLinear(space, channels + context, width)
        self.layers = nn.ModuleList(DWSLinear(space, width, width) for _ in range(depth))
        self.pool = InvariantPool(space, width, ("mean", "max"))
        self.head = _mlp(self.pool.c_out, hidden, outputs, dropout)
        for unused in (self.sets.see, self.sets.more, self.sets.head):
            unused.requires_grad_(False)
        self.sets.own.requires_grad_(False)

    def measure(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> None:
        """Store the scales of the inputs."""
        self.sets.measure(batch, context)

    def forward(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> Tensor:
        """``[N, outputs]``."""
        scaled = batch.with_blocks({
            name: (batch.blocks[name] - self.sets.mean[i]) / self.sets.scale[i]
            for i, name in enumerate(self.sets.names)})
        states = self.start(with_context(scaled, context))
        for layer in self.layers:
            new = layer(states)
            states = new.with_blocks({k: states.blocks[k] + x.relu() for k, x in
                                      new.blocks.items()})
        found: Tensor = self.head(self.pool(states))
        return found


class ProbeNet(nn.Module):
    """What members answer to learned inputs (ProbeGen, arXiv 2410.10811), then an MLP.

    Args:
        space: of the members.
        outputs: numbers to give.
        modules: their code; one per column of the context, or a single one.
        shape: of one input.
        probes: how many inputs.
        generator: width of the deep linear generator; 0 for none.
    """

    def __init__(self, space: WeightSpace, outputs: int, modules: Sequence[nn.Module],
                 shape: Sequence[int], probes: int = 64, generator: int = 0, hidden: int = 256,
                 context: int = 0, dropout: float = 0.2) -> None:
        super().__init__()
        if len(modules) not in (1, context):
            raise SpaceMismatch(f"{len(modules)} modules for {context} columns of context; give "
                                "one for each, or a single one")
        self.probes = nn.ModuleList(Probes(space, module, probes, shape, generator=generator,
                                           chunk=256) for module in modules)
        first = self.probes[0]
        if tuple(shape) == (2,):  # coordinates: begin on a grid
            side = max(1, round(probes ** 0.5))
            axis = torch.linspace(-0.9, 0.9, side)
            grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
            first.parts[0].data[:len(grid)] = grid[:probes]  # type: ignore[index]
        for other in list(self.probes)[1:]:
            other.parts = first.parts
        size = int(first.c_out)  # type: ignore[arg-type]
        self.scaled = _Scaled(size)
        side = round(size ** 0.5)
        on_grid = tuple(shape) == (2,) and side >= 4 and side * side == size and not context
        self.head: nn.Module = GridHead(side, hidden, outputs, dropout) if on_grid else _mlp(
            size + context, hidden, outputs, dropout, layers=2)

    def answers(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> Tensor:
        """``[N, answers]``."""
        plain = batch.with_blocks({k: x[..., :1] for k, x in batch.blocks.items()})
        if len(self.probes) == 1:
            found: Tensor = self.probes[0](plain)
            return found
        kinds = context.argmax(1)
        out = plain.blocks[next(iter(plain.blocks))].new_zeros(len(plain), self.scaled.mean.numel())
        for i, probe in enumerate(self.probes):
            rows = torch.nonzero(kinds == i)[:, 0]
            if len(rows):
                out = out.index_copy(0, rows, probe(plain[rows]))
        return out

    @torch.no_grad()
    def measure(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> None:
        """Store the scales of the answers."""
        self.scaled.measure(self.answers(batch, context))

    def forward(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> Tensor:
        """``[N, outputs]``."""
        heard = self.answers(batch, context)
        if not isinstance(self.head, GridHead):
            heard = torch.cat([self.scaled(heard), context.to(heard)], 1)
        found: Tensor = self.head(heard)
        return found


class GridHead(nn.Module):
    """Convolutions over the answers of coordinate networks to probes that began on a grid.

    Least and greatest answer of each member become 0 and 1, so that the range of the values that a
    network was fitted to is forgotten.
    """

    def __init__(self, side: int, hidden: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.side = side
        small = (side + 1) // 2
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 64, 3, padding=1), nn.GELU(),
            nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(64 * small * small, hidden // 2), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(hidden // 2, outputs))

    def forward(self, answers: Float[Tensor, "N p"]) -> Tensor:
        """``[N, outputs]``."""
        low = answers.amin(1, keepdim=True)
        unit = (answers - low) / (answers.amax(1, keepdim=True) - low).clamp_min(1e-6)
        found: Tensor = self.net(unit.reshape(-1, 1, self.side, self.side) - 0.5)
        return found


class Both(nn.Module):
    """The flagship of track Q: a reader of weights and probes, joined before the head.

    Args:
        reader: gives ``[N, width]``.
        probes: gives ``[N, width]``.
        width: of both.
        outputs: numbers to give.
    """

    def __init__(self, reader: nn.Module, probes: ProbeNet, width: int, outputs: int) -> None:
        super().__init__()
        self.reader, self.probes = reader, probes
        self.head = nn.Sequential(nn.GELU(), nn.Linear(2 * width, outputs))

    def measure(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> None:
        """Store the scales of the inputs of both."""
        reader: Any = self.reader
        reader.measure(batch, context)
        self.probes.measure(batch, context)

    def forward(self, batch: WeightBatch, context: Float[Tensor, "N a"]) -> Tensor:
        """``[N, outputs]``."""
        found: Tensor = self.head(torch.cat([self.reader(batch, context),
                                             self.probes(batch, context)], 1))
        return found
