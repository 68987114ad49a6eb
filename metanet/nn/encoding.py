"""Encoding: what a number is, where it stands, and how deep."""

from __future__ import annotations

from math import log1p, pi

import torch
from torch import Tensor, nn

from metanet.errors import SymmetryError
from metanet.graph import WeightBatch
from metanet.nn.grid import positions
from metanet.nn.unf import check_input, short
from metanet.symmetry import Block, WeightSpace
from metanet.symmetry.kinds import contains_permutations

VALUES = ("raw", "signlog", "fourier")
_SMALL = 1e-3
_WAVES = 4
_PE = 8


class Encoding(nn.Module):
    """Channels that describe each number; it has no parameters.

    Args:
        space: of the input.
        c_in: channels in.
        values: ``raw``: the number; ``signlog``: also sign(x)·log(1 + |x|/1e-3), scaled to 1 at
            x = 1; ``fourier``: also sines and cosines of 1, 2, 4 and 8 times x·π/2.
        depth: also the depth of the tensor as a fraction (0 where the space's meta has none).
        role: also the role of the tensor, one-hot over the roles of the space.
        position: also where the number stands on each fixed digit of its block.

    Attributes:
        c_out: channels out.
    """

    coupled = False

    def __init__(self, space: WeightSpace, c_in: int, values: str = "signlog",
                 depth: bool = False, role: bool = False, position: bool = False) -> None:
        super().__init__()
        if values not in VALUES:
            raise SymmetryError(f"values={values!r} is not known; known are {', '.join(VALUES)}")
        self.space, self.c_in, self.values = space, c_in, values
        layout = [block for name in space.tensors for block in space.blocks(name)]
        self._constants = _constants(space, layout, depth, role)
        self._fixed = {block.name: _fixed(space, block) for block in layout} if position else {}
        self._n_fixed = max((len(places) for places in self._fixed.values()), default=0)
        per_value = {"raw": 1, "signlog": 2, "fourier": 1 + 2 * _WAVES}[values]
        n_constants = len(next(iter(self._constants.values())))
        self.c_out = c_in * per_value + n_constants + self._n_fixed * _PE

    def forward(self, batch: WeightBatch) -> WeightBatch:
        """``[N, *factors, c_in]`` → ``[N, *factors, c_out]``."""
        check_input(self.space, self.c_in, batch)
        return batch.with_blocks({name: torch.cat(self._channels(name, value), -1)
                                  for name, value in batch.blocks.items()})

    def _channels(self, name: str, value: Tensor) -> list[Tensor]:
        found = [value, *encode_values(value, self.values)]
        constants = value.new_tensor(self._constants[name])
        found.append(constants.expand(*value.shape[:-1], -1))
        places = self._fixed.get(name, ())
        for place in places:
            table = positions(value.shape[1 + place], _PE, like=value)
            shape = [1] * value.ndim
            shape[1 + place], shape[-1] = table.shape
            found.append(table.reshape(shape).expand(*value.shape[:-1], -1))
        missing = (self._n_fixed - len(places)) * _PE
        found.append(value.new_zeros(()).expand(*value.shape[:-1], missing))
        return found

    def __repr__(self) -> str:
        return f"Encoding({short(self.space)}, {self.values}, {self.c_in} -> {self.c_out})"


def encode_values(value: Tensor, values: str) -> list[Tensor]:
    """Channels beside the number itself; see ``Encoding``."""
    if values == "signlog":
        return [value.sign() * (value.abs() / _SMALL).log1p() / log1p(1 / _SMALL)]
    if values == "fourier":
        angles = [value * (2.0 ** wave * pi / 2) for wave in range(_WAVES)]
        return [*(a.sin() for a in angles), *(a.cos() for a in angles)]
    return []


def _constants(space: WeightSpace, layout: list[Block], depth: bool, role: bool
               ) -> dict[str, list[float]]:
    metas = {block.name: space.tensor_meta(block.tensor) for block in layout}
    deepest = max((meta.depth or 0 for meta in metas.values()), default=0) or 1
    roles = sorted({meta.role for meta in metas.values()})
    found = {}
    for name, meta in metas.items():
        row = [(meta.depth or 0) / deepest] if depth else []
        found[name] = row + [float(meta.role == other) for other in roles if role]
    return found


def _fixed(space: WeightSpace, block: Block) -> tuple[int, ...]:
    """Digits without permutations: private sizes and fixed bases."""
    return tuple(i for i, label in enumerate(block.labels)
                 if label is None or not contains_permutations(space.group(label).kind))
