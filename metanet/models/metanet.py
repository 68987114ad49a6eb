"""Metanet: a network whose input is a WeightBatch and whose output does not depend on the order
of neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from metanet.errors import CheckpointError, SymmetryError
from metanet.graph import WeightBatch
from metanet.nn import (
    Embed,
    Encoding,
    GMNLayer,
    InvariantPool,
    LayerNorm,
    Pointwise,
    Residual,
    UNFLinear,
)
from metanet.nn.pointwise import n_blocks
from metanet.symmetry import WeightSpace

KINDS = ("gmn", "unf")
_LIMITS = {"outputs": 65536, "channels": 64, "width": 4096, "depth": 64, "head": 65536}


class Standardise(nn.Module):
    """Shift and scale each channel of each block by numbers measured once on a training batch."""

    coupled = False

    def __init__(self, space: WeightSpace, c: int) -> None:
        super().__init__()
        self.space, self.c_in, self.c_out = space, c, c
        self.register_buffer("mean", torch.zeros(n_blocks(space), c))
        self.register_buffer("scale", torch.ones(n_blocks(space), c))
        self.mean: Tensor
        self.scale: Tensor

    @torch.no_grad()
    def measure(self, batch: WeightBatch) -> None:
        """Take mean and deviation over members and entries; constant channels keep scale 1."""
        for row, value in enumerate(batch.blocks.values()):
            entries = value.reshape(-1, value.shape[-1]).double()
            deviation = entries.std(0, correction=0)
            self.mean[row] = entries.mean(0)
            self.scale[row] = torch.where(deviation > 1e-12, deviation, 1.0)

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c]`` → the same shape."""
        rows = zip(batch.blocks.items(), self.mean, self.scale, strict=True)
        return batch.with_blocks({name: (value - mean) / scale
                                  for (name, value), mean, scale in rows})


@dataclass(frozen=True)
class Prepared:
    """Encoded members and their standardised statistics ``[N, s]``."""

    encoded: WeightBatch
    statistics: Tensor

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: slice | Tensor) -> Prepared:
        return Prepared(self.encoded[index], self.statistics[index])


class Metanet(nn.Module, PyTorchModelHubMixin, library_name="metanet",
              coders={WeightSpace: (WeightSpace.to_json, WeightSpace.from_json)}):
    """Encoding → latent layers → invariant pool → head.

    Args:
        space: a WeightSpace, its JSON or its text.
        outputs: numbers to predict.
        kind: layers of the encoder, ``gmn`` (linear in depth) or ``unf`` (complete basis).
        channels: channels of the input batches.
        width: channels of the latent layers.
        depth: number of latent layers.
        encoding: features of ``metanet.nn.Encoding``.
        head: hidden width of the head.
        dropout: in the head.

    ``forward`` gives predictions in the units of the targets: ``fit`` stores their mean and scale.

    Raises:
        SymmetryError: for a value out of range, naming it.
    """

    coupled = True

    def __init__(self, space: WeightSpace | Mapping[str, Any] | str, outputs: int = 1,
                 kind: str = "gmn", channels: int = 1, width: int = 16, depth: int = 2,
                 encoding: Sequence[str] = ("raw", "signlog"), head: int = 64,
                 dropout: float = 0.2) -> None:
        super().__init__()
        _check(kind, dropout, outputs=outputs, channels=channels, width=width, depth=depth,
               head=head)
        self.space = space = _space(space)
        self.c_in, self.outputs = channels, outputs
        self.standardise = Standardise(space, channels)
        self.encoding = Encoding(space, channels, encoding)
        self.embed = Embed(space, self.encoding.c_out, width)
        home = self.embed.space_out
        self.layers = nn.Sequential(*(_layer(kind, home, width) for _ in range(depth)))
        self.norm = LayerNorm(home, width)
        # Node and global states have seen all blocks; pooling these only keeps the head small.
        self.pool = InvariantPool(home, width, frozen="batch", blocks=self.embed.states)
        self.statistics = InvariantPool(space, self.encoding.c_out,
                                        ("mean", "std", "max", "min"), frozen="batch")
        self.register_buffer("feature_mean", torch.zeros(self.statistics.c_out))
        self.register_buffer("feature_scale", torch.ones(self.statistics.c_out))
        self.register_buffer("target_mean", torch.zeros(outputs))
        self.register_buffer("target_scale", torch.ones(outputs))
        self.head = nn.Sequential(
            nn.Linear(self.pool.c_out + self.statistics.c_out, head), nn.LayerNorm(head),
            nn.GELU(), nn.Dropout(dropout), nn.Linear(head, outputs))
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.target_mean: Tensor
        self.target_scale: Tensor

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Metanet:
        """Build from plain data: the arguments of the class by name.

        Raises:
            SymmetryError: for an unknown argument or a value out of range.
        """
        known = set(cls._hub_mixin_init_parameters) - {"self"}
        unknown = sorted(set(config) - known)
        if unknown or "space" not in config:
            raise SymmetryError(f"config: {unknown[0]!r} is not known" if unknown
                                else "config: 'space' is missing")
        return cls(**config)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> Metanet:
        """Load what ``save_pretrained`` wrote, from a folder or the Hub (config.json and
        safetensors; no code is run).

        Raises:
            CheckpointError: if there is no such net, or its files do not belong together.
            SymmetryError: for a configuration out of range.
        """
        source = pretrained_model_name_or_path
        try:
            net: Metanet = super().from_pretrained(source, **options)
        except (OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{source}: cannot be loaded as a Metanet: {error}. "
                                  f"Name a folder that save_pretrained wrote") from error
        return net.eval()

    @property
    def config(self) -> dict[str, Any]:
        """Plain data that ``from_config`` builds an equal architecture from."""
        known: Any = self._hub_mixin_config or {}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}
        return {**plain, "space": self.space.to_json()}

    @torch.no_grad()
    def measure(self, batch: WeightBatch, targets: Float[Tensor, "N outputs"]) -> None:
        """Store scales of inputs, statistics and targets, before training."""
        self.standardise.measure(batch)
        found = self.statistics(self.encoding(self.standardise(batch))).double()
        for value, mean, scale in ((found, self.feature_mean, self.feature_scale),
                                   (targets.double(), self.target_mean, self.target_scale)):
            deviation = value.std(0, correction=0)
            mean.copy_(value.mean(0))
            scale.copy_(torch.where(deviation > 1e-8, deviation, 1.0))

    def prepare(self, batch: WeightBatch) -> Prepared:
        """What needs no parameters, so that training computes it once."""
        # In the net's own precision: members may be stored in float64.
        encoded = self.encoding(self.standardise(batch.to(self.feature_mean.dtype)))
        statistics = (self.statistics(encoded) - self.feature_mean) / self.feature_scale
        # Far outliers (a diverged network) shall not drown the rest of the head's input.
        return Prepared(encoded, statistics.clamp(-6, 6))

    def standard(self, inputs: Prepared) -> Float[Tensor, "N outputs"]:
        """Predictions in units of the targets' standard deviation from their mean."""
        states = self.norm(self.layers(self.embed(inputs.encoded)))
        found: Tensor = self.head(torch.cat([self.pool(states), inputs.statistics], -1))
        return found

    def forward(self, batch: WeightBatch) -> Float[Tensor, "N outputs"]:
        """``[N, *factors, channels]`` → predictions ``[N, outputs]``."""
        return self.standard(self.prepare(batch)) * self.target_scale + self.target_mean


def _layer(kind: str, home: WeightSpace, width: int) -> nn.Module:
    if kind == "gmn":
        return GMNLayer(home, width, frozen="batch")
    return Residual(LayerNorm(home, width), UNFLinear(home, width, width, frozen="batch"),
                    Pointwise(home, width))


def _space(space: WeightSpace | Mapping[str, Any] | str) -> WeightSpace:
    if isinstance(space, WeightSpace):
        return space
    return WeightSpace.parse(space) if isinstance(space, str) else WeightSpace.from_json(space)


def _check(kind: str, dropout: float, **sizes: int) -> None:
    if kind not in KINDS:
        raise SymmetryError(f"kind={kind!r} is not known; known are {', '.join(KINDS)}")
    if not 0 <= dropout < 1:
        raise SymmetryError(f"dropout={dropout!r} is not in [0, 1)")
    for name, value in sizes.items():
        least = 0 if name == "depth" else 1
        if not isinstance(value, int) or not least <= value <= _LIMITS[name]:
            raise SymmetryError(f"{name}={value!r} is not an integer in "
                                f"{least} … {_LIMITS[name]}")
