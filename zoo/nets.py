"""The classifiers that recipes train, as plain modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from metanet.errors import ZooError

_ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "tanh": lambda x: x.tanh(), "gelu": F.gelu, "silu": F.silu,
    "leaky_relu": F.leaky_relu}


@dataclass(frozen=True)
class Shape:
    """What decides the tensors of a network, and so its space.

    Attributes:
        arch: as in a recipe.
        side: of the square images.
        width, depth: of hidden layers, where the architecture leaves them open.
        activation: of hidden layers.
    """

    arch: str
    side: int
    width: int
    depth: int
    activation: str


class SmallCNN(nn.Module):
    """Three 3x3 convolutions of stride 2, global average pooling, one Linear layer.

    The network of the Small CNN Zoo (Unterthiner et al. 2020): 4,970 parameters at width 16.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, shape.width, 3, 2)
        self.conv2 = nn.Conv2d(shape.width, shape.width, 3, 2)
        self.conv3 = nn.Conv2d(shape.width, shape.width, 3, 2)
        self.fc = nn.Linear(shape.width, 10)
        self.act, self.dropout = _ACTS[shape.activation], dropout

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 10"]:
        """Logits."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.act(conv(x))
        out: Tensor = self.fc(_drop(self, x.mean((2, 3))))
        return out


class MLP(nn.Module):
    """Linear layers on the pixels: ``fc1`` … and a last one of 10 classes."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [shape.side**2, *[shape.width] * shape.depth, 10]
        self.names = [f"fc{i}" for i in range(1, len(widths))]
        for name, a, b in zip(self.names, widths, widths[1:], strict=False):
            self.add_module(name, nn.Linear(a, b))
        self.act, self.dropout = _ACTS[shape.activation], dropout

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 10"]:
        """Logits."""
        x = x.flatten(1)
        for name in self.names[:-1]:
            x = _drop(self, self.act(self.get_submodule(name)(x)))
        out: Tensor = self.get_submodule(self.names[-1])(x)
        return out


class WildNet(nn.Module):
    """Two 5x5 convolutions with 2x2 max pooling, then Linear layers: the wild MNIST families."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        a, b, hidden = (10, 20, [50]) if shape.arch == "mnist-cnn21k" else (8, 16, [128, 64])
        self.conv1, self.conv2 = nn.Conv2d(1, a, 5), nn.Conv2d(a, b, 5)
        widths = [16 * b, *hidden, 10]
        self.names = [f"fc{i}" for i in range(1, len(widths))]
        for name, i, o in zip(self.names, widths, widths[1:], strict=False):
            self.add_module(name, nn.Linear(i, o))
        self.act, self.dropout = _ACTS[shape.activation], dropout

    def forward(self, x: Float[Tensor, "n 1 28 28"]) -> Float[Tensor, "n 10"]:
        """Logits."""
        x = F.max_pool2d(self.act(self.conv1(x)), 2)
        x = F.max_pool2d(self.act(self.conv2(x)), 2).flatten(1)
        for name in self.names[:-1]:
            x = self.act(self.get_submodule(name)(x))
            x = _drop(self, x)
        out: Tensor = self.get_submodule(self.names[-1])(x)
        return out


def _drop(module: SmallCNN | MLP | WildNet, x: Tensor) -> Tensor:
    return F.dropout(x, module.dropout, module.training) if module.dropout else x


OWN_WIDTH = {"small-cnn": 16, "mlp": 32, "mnist-cnn21k": 0, "mnist-lenet45k": 0}
_LEAST = {"small-cnn": 15, "mlp": 1, "mnist-cnn21k": 28, "mnist-lenet45k": 28}


def build(shape: Shape, dropout: float = 0.0) -> nn.Module:
    """A network with torch's own initialisation.

    Raises:
        ZooError: for images that are too small for it.
    """
    if shape.side < _LEAST[shape.arch]:
        raise ZooError(f"{shape.arch} needs images of at least {_LEAST[shape.arch]} pixels a side, "
                       f"not {shape.side}; set data.side in the recipe")
    kinds = {"small-cnn": SmallCNN, "mlp": MLP}
    return kinds.get(shape.arch, WildNet)(shape, dropout)


class Coordinates(nn.Module):
    """A coordinate network as a module, keys ``seq.i.weight`` and ``seq.i.bias``."""

    def __init__(self, sizes: tuple[int, ...], activation: str = "sine", w0: float = 30.0,
                 shift: float = 0.5) -> None:
        super().__init__()
        self.seq = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.sine, self.w0, self.shift = activation == "sine", w0, shift

    def forward(self, x: Float[Tensor, "p 2"]) -> Float[Tensor, "p c"]:
        """Values at coordinates."""
        *hidden, last = self.seq
        for layer in hidden:
            x = (self.w0 * layer(x)).sin() if self.sine else layer(x).relu()
        out: Tensor = last(x) + self.shift
        return out
