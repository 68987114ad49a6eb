"""Metanet: a network whose input is a WeightBatch and whose output does not depend on the order
of neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.models.base import CODERS, Saved, check_sizes, read_space
from metanet.models.encoder import Encoder, Options
from metanet.nn import AttentionPool, InvariantPool, Probes
from metanet.symmetry import WeightSpace


@dataclass(frozen=True)
class Prepared:
    """Encoded members, their standardised statistics ``[N, s]``, and (for probes) themselves."""

    encoded: WeightBatch
    statistics: Tensor
    plain: WeightBatch | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: slice | Tensor) -> Prepared:
        plain = None if self.plain is None else self.plain[index]
        return Prepared(self.encoded[index], self.statistics[index], plain)


class Metanet(Saved, library_name="metanet", coders=CODERS):
    """Encoding → latent layers → invariant pool → head.

    Args:
        space: a WeightSpace, its JSON or its text.
        outputs: numbers to predict.
        kind: layers of the encoder: ``gmn`` (linear in depth), ``unf`` (complete basis), or
            ``product`` (``nn.ProductWalk``: states of neurons from products of weights, the
            cheapest where the wiring counts).
        channels: channels of the input batches.
        width: channels of the latent layers.
        depth: number of latent layers, or of rounds of ``product``.
        encoding: features of ``metanet.nn.Encoding``.
        head: hidden width of the head.
        dropout: in the head.
        pool: how node and global states are pooled: of ``mean``, ``std``, ``max``, ``min``,
            ``sum`` (``InvariantPool``) and ``attention`` (``AttentionPool``).
        statistics: whether the head also gets mean, deviation and extremes of every block. They
            are strong and blind to the wiring: without them the net must read the weights.
        aggregate: of the GMN layers, as ``schedule``, ``messages`` and ``activation``; see
            ``metanet.nn.GMNLayer``.
        mixing: of the UNF layers; see ``metanet.nn.UNFLinear``.
        channel_dropout: behind every layer; within every visit of ``product``.
        checkpoint: keep only what goes into each layer, and compute the rest again in the
            backward pass: less memory, about a third more time.
        probes: number of learned inputs that are run through the members (0: none); their answers
            go to the head, those of neurons to the node states.
        probe_shape: of one such input.
        module: the code of the members, for probes. It is not stored: give it to
            ``from_pretrained`` again.

    ``forward`` gives predictions in the units of the targets: ``fit`` stores their mean and scale.

    Raises:
        SymmetryError: for a value out of range or an option that the kind does not have, naming it.
    """

    coupled = True

    def __init__(self, space: WeightSpace | Mapping[str, Any] | str, outputs: int = 1,
                 kind: str = "gmn", channels: int = 1, width: int = 16, depth: int = 2,
                 encoding: Sequence[str] = ("raw", "signlog"), head: int = 64,
                 dropout: float = 0.2, pool: Sequence[str] = ("mean", "std", "max"),
                 statistics: bool = True, aggregate: Sequence[str] = ("mean",),
                 schedule: str = "parallel", messages: int = 2, activation: str = "gelu",
                 mixing: str = "exact", channel_dropout: float = 0.0, checkpoint: bool = False,
                 probes: int = 0, probe_shape: Sequence[int] = (),
                 module: nn.Module | None = None) -> None:
        super().__init__()
        check_sizes(outputs=outputs, channels=channels, width=width, depth=depth, head=head,
                    probes=probes)
        if not 0 <= dropout < 1:
            raise SymmetryError(f"dropout={dropout!r} is not in [0, 1)")
        self.space = space = read_space(space)
        self.c_in, self.outputs = channels, outputs
        self.encoder = Encoder(space, Options(
            kind, channels, width, depth, encoding, aggregate, schedule, messages, activation,
            mixing, channel_dropout, checkpoint))
        pools = _pools(self.encoder, width, tuple(pool))
        self.pools, pooled = nn.ModuleList(pools), sum(one.c_out for one in pools)
        self.statistics = InvariantPool(space, self.encoder.encoding.c_out,
                                        ("mean", "std", "max", "min"), frozen="batch"
                                        ) if statistics else None
        features = self.statistics.c_out if self.statistics else 0
        self.probes = _probes(space, module, probes, probe_shape)
        self.listen = Listen(self.probes, self.encoder, width) if self.probes else None
        answers = self.probes.c_out if self.probes else 0
        for name, size in (("feature", features), ("answer", answers), ("target", outputs)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        inputs = pooled + features + answers
        self.head = nn.Sequential(
            nn.Linear(inputs, head), nn.LayerNorm(head), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(head, outputs))
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.answer_mean: Tensor
        self.answer_scale: Tensor
        self.target_mean: Tensor
        self.target_scale: Tensor

    @torch.no_grad()
    def measure(self, batch: WeightBatch, targets: Float[Tensor, "N outputs"]) -> None:
        """Store scales of inputs, statistics, answers and targets, before training."""
        self.encoder.standardise.measure(batch)
        rows = [(targets, self.target_mean, self.target_scale)]
        if self.statistics is not None:
            found = self.statistics(self.encoder.encode(batch.to(self.target_mean.dtype)))
            rows.append((found, self.feature_mean, self.feature_scale))
        if self.probes is not None and self.listen is not None:
            answers, neurons = self.probes.answers(batch.to(self.target_mean.dtype))
            rows.append((answers, self.answer_mean, self.answer_scale))
            self.listen.measure(neurons)
        for value, mean, scale in rows:
            deviation = value.double().std(0, correction=0)
            mean.copy_(value.double().mean(0))
            scale.copy_(torch.where(deviation > 1e-8, deviation, 1.0))

    def prepare(self, batch: WeightBatch) -> Prepared:
        """What needs no parameters, so that training computes it once."""
        # In the net's own precision: members may be stored in float64.
        batch = batch.to(self.target_mean.dtype)
        encoded = self.encoder.encode(batch)
        statistics = self.target_mean.new_zeros(len(batch), 0)
        if self.statistics is not None:
            statistics = (self.statistics(encoded) - self.feature_mean) / self.feature_scale
        # Far outliers (a diverged network) shall not drown the rest of the head's input.
        return Prepared(encoded, statistics.clamp(-6, 6), batch if self.probes else None)

    def standard(self, inputs: Prepared) -> Float[Tensor, "N outputs"]:
        """Predictions in units of the targets' standard deviation from their mean."""
        states = self.encoder.start(inputs.encoded)
        answers = inputs.statistics.new_zeros(len(inputs), 0)
        if self.probes is not None and self.listen is not None and inputs.plain is not None:
            answers, neurons = self.probes.answers(inputs.plain)
            answers = ((answers - self.answer_mean) / self.answer_scale).clamp(-6, 6)
            states = self.listen(states, neurons)
        states = self.encoder(states)
        pooled = [pool(states) for pool in self.pools]
        found: Tensor = self.head(torch.cat([*pooled, inputs.statistics, answers], -1))
        return found

    def forward(self, batch: WeightBatch) -> Float[Tensor, "N outputs"]:
        """``[N, *factors, channels]`` → predictions ``[N, outputs]``."""
        return self.standard(self.prepare(batch)) * self.target_scale + self.target_mean


class Listen(nn.Module):
    """Adds the answers of neurons to their states in the latent space."""

    def __init__(self, probes: Probes, encoder: Encoder, width: int) -> None:
        super().__init__()
        places = []
        space = probes.space_out
        found = [] if space is None else [b for n in space.tensors for b in space.blocks(n)]
        for block in found:
            state = f"@{block.labels[-1]}"
            if state in encoder.states and encoder.home.blocks(state)[0].labels == block.labels:
                places.append((block.name, state))
        self.places = tuple(places)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(probes.n, width) / (4 * probes.n ** 0.5)) for _ in places)
        self.register_buffer("scale", torch.ones(len(places)))
        self.scale: Tensor

    @torch.no_grad()
    def measure(self, neurons: WeightBatch | None) -> None:
        """Store the size of the answers of each module."""
        if neurons is None:
            return
        for i, (block, _) in enumerate(self.places):
            self.scale[i] = neurons.blocks[block].double().square().mean().sqrt().clamp_min(1e-8)

    def forward(self, states: WeightBatch, neurons: WeightBatch | None) -> WeightBatch:
        """States ``[N, *slots, width]`` and answers ``[N, *neurons, n]`` → states."""
        blocks = dict(states.blocks)
        for (block, state), weight, scale in zip(self.places, self.weights, self.scale,
                                                 strict=True):
            if neurons is not None:
                heard = (neurons.blocks[block] / scale).clamp(-6, 6)
                blocks[state] = blocks[state] + heard @ weight
        return states.with_blocks(blocks)


def _pools(encoder: Encoder, width: int, names: tuple[str, ...]
           ) -> list[InvariantPool | AttentionPool]:
    """Pools of node and global states, which have seen all blocks: the head stays small."""
    stats = tuple(name for name in names if name != "attention")
    pools: list[InvariantPool | AttentionPool] = []
    if stats or not names:
        pools.append(InvariantPool(encoder.home, width, stats, frozen="batch",
                                   blocks=encoder.states))
    if "attention" in names:
        pools.append(AttentionPool(encoder.home, width, frozen="batch", blocks=encoder.states))
    return pools


def _probes(space: WeightSpace, module: nn.Module | None, n: int, shape: Sequence[int]
            ) -> Probes | None:
    if not n:
        return None
    if module is None:
        raise SymmetryError(f"probes={n} run the members themselves, so their code is needed: "
                            f"pass module=, to from_pretrained too")
    return Probes(space, module, n, tuple(shape))
