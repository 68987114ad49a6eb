"""What a row of layers is made of: weights, vectors, and who can read whom."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from metanet.checkpoint import Checkpoint
from metanet.checkpoint.info import is_floating
from metanet.checkpoint.names import natural_key, printable
from metanet.symmetry.sketch import Place

_NUMBERED = re.compile(r"([A-Za-z_]*?)_?([0-9]{1,6})")
_PER_CHANNEL = frozenset({"weight", "bias", "running_mean", "running_var"})


@dataclass(frozen=True)
class Layer:
    """A weight of shape (out, in, *kernel) and its bias, if any."""

    prefix: str
    shape: tuple[int, ...]
    bias: bool

    @cached_property
    def place(self) -> tuple[str, str, int | None]:
        """(path of the parent, word, number); the number is None where there is none."""
        return place_of(self.prefix.removesuffix(".linear"))

    @property
    def conv(self) -> bool:
        """Whether it has a kernel."""
        return len(self.shape) > 2

    @property
    def weight(self) -> str:
        """Name of the weight."""
        return f"{self.prefix}.weight"

    @property
    def outs(self) -> tuple[Place, ...]:
        """Axes that its neurons stand on."""
        return ((self.weight, 0), *([(f"{self.prefix}.bias", 0)] if self.bias else []))


def place_of(prefix: str) -> tuple[str, str, int | None]:
    """Path of the parent, word and number of a name such as ``net.fc_2``."""
    parent, _, last = prefix.rpartition(".")
    found = _NUMBERED.fullmatch(last)
    return (parent, found[1].lower(), int(found[2])) if found else (parent, last, None)


def ratio(before: Layer, after: Layer) -> int:
    """Inputs that ``after`` has for each neuron of ``before``; 0 where it cannot read them."""
    if len(before.shape) == len(after.shape):
        return int(before.shape[0] == after.shape[1])
    if before.conv and not after.conv and after.shape[1] % before.shape[0] == 0:
        return after.shape[1] // before.shape[0]
    return 0


class Refused(Exception):
    """Why this is no sequence of layers."""


@dataclass(frozen=True)
class Parts:
    """Layers of a file, its vectors by prefix (leaf → size), and what is neither."""

    layers: tuple[Layer, ...]
    vectors: dict[str, dict[str, int]]
    odd: tuple[str, ...]


def parts_of(checkpoint: Checkpoint) -> Parts:
    """Sort the tensors of a file."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    layers: dict[str, Layer] = {}
    for name, shape in shapes.items():
        prefix, dot, leaf = name.rpartition(".")
        floating = is_floating(checkpoint.dtype(name))
        if dot and leaf == "weight" and 2 <= len(shape) <= 5 and floating and 0 not in shape:
            layers[prefix] = Layer(prefix, shape, shapes.get(f"{prefix}.bias") == shape[:1])
    vectors: dict[str, dict[str, int]] = {}
    odd = []
    for name, shape in shapes.items():
        prefix, dot, leaf = name.rpartition(".")
        floating = is_floating(checkpoint.dtype(name))
        if prefix in layers:
            if leaf != "weight" and not (leaf == "bias" and layers[prefix].bias):
                odd.append(name)
        elif dot and len(shape) == 1 and leaf in _PER_CHANNEL and floating:
            vectors.setdefault(prefix, {})[leaf] = shape[0]
        elif leaf != "num_batches_tracked":
            odd.append(name)
    return Parts(tuple(sorted(layers.values(), key=lambda la: natural_key(la.prefix))), vectors,
                 tuple(odd))


def shown(layer: Layer) -> str:
    """Prefix and shape, safe to print."""
    return f"{printable(layer.prefix, 80)!r} {list(layer.shape)}"
