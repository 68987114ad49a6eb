"""Encoding: what a number is, where it stands, how deep, and behind which nonlinearity.

Everything here commutes with the permutations of the space: features of values act entry by entry
or rank entries within a block, features of places depend on fixed digits and on the block alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log1p, pi, prod

import torch
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.grid import positions
from metanet.nn.unf import check_input, short
from metanet.symmetry import Block, WeightSpace
from metanet.symmetry.kinds import contains_permutations

_SMALL = 1e-3
_WAVES = 4
_PE = 8
ACTIVATION_NAMES = ("relu", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu", "tanh",
                    "sigmoid", "sin", "softmax", "softplus", "hardswish", "gru", "lstm")
"""Nonlinearities with a channel of their own; all others share one more."""


@dataclass(frozen=True)
class ValueFeature:
    """Channels of each number: ``apply(value [N, *factors, c], fan_in)`` → ``[…, width·c]``."""

    width: int
    apply: Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class PlaceFeature:
    """Channels of a place: ``make(space, block)`` → tables that broadcast, ``[*sizes or 1, w]``."""

    make: Callable[[WeightSpace, Block], list[Tensor]]


def signlog(value: Tensor, fan_in: float = 1.0) -> Tensor:
    """sign(x)·log(1 + |x|/1e-3), scaled to 1 at x = 1."""
    return value.sign() * (value.abs() / _SMALL).log1p() / log1p(1 / _SMALL)


def fourier(value: Tensor, fan_in: float = 1.0) -> Tensor:
    """Sines and cosines of 1, 2, 4 and 8 times x·π/2."""
    angles = [value * (2.0 ** wave * pi / 2) for wave in range(_WAVES)]
    return torch.cat([*(a.sin() for a in angles), *(a.cos() for a in angles)], -1)


def standard(value: Tensor, fan_in: float = 1.0) -> Tensor:
    """(x − mean)/deviation over the block of each member: its scale is forgotten."""
    entries = value.reshape(len(value), -1, value.shape[-1])
    mean = entries.mean(1, keepdim=True)
    scale = (entries.var(1, keepdim=True, correction=0) + 1e-12).rsqrt()
    return ((entries - mean) * scale).reshape(value.shape)


def quantile(value: Tensor, fan_in: float = 1.0) -> Tensor:
    """Rank within the block of each member, in (−1, 1), equal numbers alike; has no gradient."""
    entries = value.detach().reshape(len(value), -1, value.shape[-1])
    entries = entries.transpose(1, 2).contiguous()
    ordered = entries.sort(-1).values
    below = torch.searchsorted(ordered, entries)
    upto = torch.searchsorted(ordered, entries, right=True)
    rank = (below + upto).to(value.dtype) / entries.shape[-1] - 1
    return rank.transpose(1, 2).reshape(value.shape)


def _depth(space: WeightSpace, block: Block) -> list[Tensor]:
    deepest = max((space.tensor_meta(name).depth or 0 for name in space.tensors), default=0) or 1
    return [_row(block, [(space.tensor_meta(block.tensor).depth or 0) / deepest])]


def _role(space: WeightSpace, block: Block) -> list[Tensor]:
    roles = sorted({space.tensor_meta(name).role for name in space.tensors})
    own = space.tensor_meta(block.tensor).role
    return [_row(block, [float(own == role) for role in roles])]


def _activation(space: WeightSpace, block: Block) -> list[Tensor]:
    """One-hot nonlinearity of the neurons that the block feeds, then of those that feed it."""
    found = []
    for out in (True, False):
        names = {meta.activation for digit in _ends(space, block, out)
                 if (meta := space.meta.groups.get(str(digit))) and meta.activation}
        hot = [float(name in names) for name in ACTIVATION_NAMES]
        found += [*hot, float(bool(names - set(ACTIVATION_NAMES)))]
    return [_row(block, found)]


def _ends(space: WeightSpace, block: Block, out: bool) -> list[str | None]:
    meta = space.tensor_meta(block.tensor)
    return [digit.label for digit in block.digits
            if (digit.axis in meta.out_axes or digit.axis not in meta.in_axes) == out]


def _neuron(space: WeightSpace, block: Block) -> list[Tensor]:
    """Flag and position of fixed outputs, then of fixed inputs; zero where neurons are free."""
    found: list[Tensor] = []
    meta = space.tensor_meta(block.tensor)
    for axes in (meta.out_axes, meta.in_axes):
        fixed = [i for i in _fixed(space, block) if block.digits[i].axis in axes]
        found.append(_row(block, [float(bool(fixed))]))
        found += _places(space, block, fixed[:1], 1)
    return found


def _tap(space: WeightSpace, block: Block) -> list[Tensor]:
    """Positions on up to three axes that are neither in nor out, as those of a kernel are."""
    meta = space.tensor_meta(block.tensor)
    ends = (*meta.out_axes, *meta.in_axes)
    fixed = [i for i in _fixed(space, block) if block.digits[i].axis not in ends]
    return _places(space, block, fixed[:3], 3)


def _position(space: WeightSpace, block: Block) -> list[Tensor]:
    """Positions on every fixed digit, in the order of the digits."""
    most = max((len(_fixed(space, b)) for name in space.tensors for b in space.blocks(name)),
               default=0)
    return _places(space, block, _fixed(space, block), most)


def _places(space: WeightSpace, block: Block, digits: Sequence[int], width: int) -> list[Tensor]:
    found = []
    for digit in digits:
        shape = [1] * len(block.shape)
        shape[digit] = block.shape[digit]
        found.append(positions(block.shape[digit], _PE).reshape(*shape, _PE))
    missing = (width - len(digits)) * _PE
    return [*found, _row(block, [0.0] * missing)]


def _row(block: Block, numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).reshape(*(1,) * len(block.shape), -1)


def _fixed(space: WeightSpace, block: Block) -> list[int]:
    """Digits without permutations: private sizes and fixed bases."""
    return [i for i, label in enumerate(block.labels)
            if label is None or not contains_permutations(space.group(label).kind)]


ENCODINGS: dict[str, ValueFeature | PlaceFeature] = {
    "raw": ValueFeature(1, lambda value, fan_in: value),
    "signlog": ValueFeature(1, signlog),
    "fourier": ValueFeature(2 * _WAVES, fourier),
    "fan_in": ValueFeature(1, lambda value, fan_in: value * fan_in ** 0.5),
    "standard": ValueFeature(1, standard),
    "quantile": ValueFeature(1, quantile),
    "depth": PlaceFeature(_depth),
    "role": PlaceFeature(_role),
    "activation": PlaceFeature(_activation),
    "neuron": PlaceFeature(_neuron),
    "tap": PlaceFeature(_tap),
    "position": PlaceFeature(_position),
}
"""What ``Encoding`` knows, by name; a feature added here is covered by the contract test."""


class Encoding(nn.Module):
    """Channels that describe each number; it has no parameters.

    Args:
        space: of the input.
        c_in: channels in.
        features: of the values: ``raw``: the number; ``signlog``: sign(x)·log(1 + |x|/1e-3),
            scaled to 1 at x = 1; ``fourier``: sines and cosines of 1, 2, 4 and 8 times x·π/2;
            ``fan_in``: x·√(fan-in of its tensor), of one scale at every width; ``standard``:
            standardised within its block; ``quantile``: its rank within the block.
            Of the places: ``depth`` of the tensor as a fraction (0 where the space's meta has
            none); ``role``: one-hot over the roles of the space; ``activation``: one-hot, of the
            neurons fed and of those that feed; ``neuron``: flag and position of a fixed output
            and of a fixed input; ``tap``: position on kernel axes; ``position``: positions on
            all fixed digits.

    Attributes:
        c_out: channels out, in the order of ``features``.

    Raises:
        SymmetryError: for a feature that is not known, or none.
    """

    coupled = False

    def __init__(self, space: WeightSpace, c_in: int,
                 features: Sequence[str] = ("raw", "signlog")) -> None:
        super().__init__()
        for name in features:
            if name not in ENCODINGS:
                raise SymmetryError(f"features={name!r} is not known; known are "
                                    f"{', '.join(ENCODINGS)}")
        if not features:
            raise SymmetryError("features is empty; take at least ('raw',)")
        self.space, self.c_in, self.features = space, c_in, tuple(features)
        layout = [block for name in space.tensors for block in space.blocks(name)]
        self._fan_in = {block.name: fan_in(space, block.tensor) for block in layout}
        self._tables: dict[str, dict[str, list[Tensor]]] = {b.name: {} for b in layout}
        self.c_out = 0
        for name in self.features:
            kind = ENCODINGS[name]
            if isinstance(kind, ValueFeature):
                self.c_out += kind.width * c_in
                continue
            for block in layout:
                self._tables[block.name][name] = kind.make(space, block)
            self.c_out += sum(t.shape[-1] for t in self._tables[layout[0].name][name])

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c_in]`` → ``[N, *factors, c_out]``."""
        check_input(self.space, self.c_in, batch)
        return batch.with_blocks({name: torch.cat(self._channels(name, value), -1)
                                  for name, value in batch.blocks.items()})

    def _channels(self, name: str, value: Tensor) -> list[Tensor]:
        found = []
        for feature in self.features:
            kind = ENCODINGS[feature]
            if isinstance(kind, ValueFeature):
                found.append(kind.apply(value, self._fan_in[name]))
            else:
                found += [table.to(value).expand(*value.shape[:-1], -1)
                          for table in self._tables[name][feature]]
        return found

    def __repr__(self) -> str:
        return (f"Encoding({short(self.space)}, {'+'.join(self.features)}, {self.c_in} -> "
                f"{self.c_out})")


def fan_in(space: WeightSpace, tensor: str) -> float:
    """How many numbers meet in one output of a tensor: 1 for vectors and scalars."""
    shape = space.tensors[tensor].shape
    if len(shape) < 2:
        return 1.0
    outs = space.tensor_meta(tensor).out_axes
    return float(prod(size for axis, size in enumerate(shape) if axis not in outs))
