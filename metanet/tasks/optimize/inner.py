"""Inner tasks: small networks and data to learn them from, for training and measuring optimizers.

A task is a module, a draw of batches and a loss. Replicas of one task are trained together by
``torch.func.vmap``. Data is drawn by ``metanet.zoo.data``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet.errors import MetanetError

Batch: TypeAlias = "tuple[Tensor, Tensor]"
DATA = ("digits", "mnist", "cifar10", "tiny-shakespeare")


class Recurrent(nn.Module):
    """A plain recurrent network over the rows of an image (Elman); the last state is read."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.read, self.carry = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.head, self.hidden = nn.Linear(hidden, outputs), hidden

    def forward(self, x: Tensor) -> Tensor:
        """``[b, 1, rows, columns]`` → ``[b, classes]``."""
        state = torch.tanh(self.read(x[:, 0, 0]))
        for row in x[:, 0].unbind(1)[1:]:
            state = torch.tanh(self.read(row) + self.carry(state))
        return torch.as_tensor(self.head(state))


class Block(nn.Module):
    """A transformer block, norms first, with attention written out."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, t, width]`` → the same."""
        y = self.before(x)
        b, t, width = y.shape
        shape = (b, t, self.heads, width // self.heads)
        q, k, v = (f(y).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        score = q @ k.transpose(2, 3) / (width // self.heads) ** 0.5
        if self.causal:
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
            score = score.masked_fill(~mask, -1e9)
        mixed = (score.softmax(-1) @ v).transpose(1, 2).reshape(b, t, width)
        x = x + self.out(mixed)
        return torch.as_tensor(x + self.down(F.gelu(self.up(self.after(x)))))


class Characters(nn.Module):
    """A causal transformer over characters."""

    def __init__(self, classes: int, width: int, heads: int, depth: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, width)
        self.places = nn.Parameter(torch.randn(length, width) / 10)
        self.blocks = nn.Sequential(*(Block(width, heads, True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, t]`` → ``[b, classes, t]``."""
        value = F.embedding(x, self.embed.weight) + self.places
        return torch.as_tensor(self.head(self.norm(self.blocks(value)))).transpose(1, 2)


class Patches(nn.Module):
    """A small vision transformer."""

    def __init__(self, channels: int, side: int, patch: int, width: int, heads: int,
                 depth: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.places = nn.Parameter(torch.randn((side // patch) ** 2, width) / 10)
        self.blocks = nn.Sequential(*(Block(width, heads, False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, channels, side, side]`` → ``[b, 10]``."""
        b, c, side, _ = x.shape
        n = side // self.patch
        x = x.view(b, c, n, self.patch, n, self.patch).permute(0, 2, 4, 1, 3, 5)
        value = self.embed(x.reshape(b, n * n, -1)) + self.places
        return torch.as_tensor(self.head(self.norm(self.blocks(value)).mean(1)))


class Siren(nn.Module):
    """A sine network from coordinates to grey values (arXiv 2006.09661)."""

    def __init__(self, width: int, depth: int, omega: float = 30.0) -> None:
        super().__init__()
        sizes = [2, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head, self.omega = nn.Linear(width, 1), omega
        for i, layer in enumerate([*self.layers, self.head]):
            weight: Any = layer.weight
            n = weight.shape[1]
            bound = 1 / n if i == 0 else (6 / n) ** 0.5 / omega
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """``[b, 2]`` → ``[b]``."""
        for layer in self.layers:
            x = torch.sin(self.omega * layer(x))
        return torch.as_tensor(self.head(x)).squeeze(-1)


def mlp(inputs: int, widths: tuple[int, ...], outputs: int, activation: str = "relu",
        norm: bool = False) -> nn.Sequential:
    """A multilayer perceptron on flattened inputs."""
    acts: Mapping[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh,
                                                   "gelu": nn.GELU}
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = [inputs, *widths]
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), *([nn.LayerNorm(b)] if norm else []), acts[activation]()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def cnn(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Convolutions of stride 2, a mean over places, a linear head."""
    layers: list[nn.Module] = []
    for a, b in zip((channels, *widths), widths, strict=False):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(widths[-1], 10))


@dataclass(frozen=True)
class Task:
    """One inner task.

    Attributes:
        name: of the task.
        data: of which data set.
        side: pixels along an edge of the images; of text, the length of a piece.
        make: builds the module, at a random start drawn from torch's global generator.
        goal: ``class``, ``next`` (character) or ``image`` (fit of one image's pixels).
        batch: examples per step.
    """

    name: str
    data: str
    side: int
    make: Callable[[], nn.Module]
    goal: str = "class"
    batch: int = 64

    def loss(self, found: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy, or mean squared error of pixels."""
        return F.mse_loss(found, y) if self.goal == "image" else F.cross_entropy(found, y)


@lru_cache(maxsize=16)
def images(name: str, side: int, source: str | None, part: str = "train"
           ) -> tuple[Tensor, Tensor]:
    """Images ``[n, c, side, side]`` of mean 0 and deviation 1, and their classes.

    Averaged down to ``side``.
    """
    from metanet.zoo import data

    found = data.load(name, source, part=part)
    x = torch.from_numpy(np.ascontiguousarray(found.x)).float()
    x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x[:, None]
    if x.shape[-1] != side:
        x = torch.cat([F.adaptive_avg_pool2d(part_, side) for part_ in x.split(4096)])
    return (x - x.mean()) / x.std(), torch.from_numpy(np.ascontiguousarray(found.y))


@lru_cache(maxsize=2)
def text(name: str, source: str | None, part: str = "train") -> tuple[Tensor, int]:
    """Characters as numbers, and how many there are."""
    from metanet.zoo import data

    found = data.load(name, source, part="train")
    known = np.unique(found.x)
    chosen = found if part == "train" else data.load(name, source, part=part)
    return torch.from_numpy(np.searchsorted(known, chosen.x).clip(max=len(known) - 1)), len(known)


class Sampler:
    """Batches of a task, drawn with replacement.

    Args:
        task: which.
        generator: of the draws.
        source: of the data, as in ``metanet.zoo.data.load``.

    Attributes:
        image: number of the image that a fit is to; draw another with ``choose``.
    """

    def __init__(self, task: Task, generator: torch.Generator, source: str | None = None) -> None:
        self.task, self.generator = task, generator
        if task.goal == "next":
            self.x, _ = text(task.data, source)
            self.y = self.x
        else:
            self.x, self.y = images(task.data, task.side, source)
        self.image = 0
        at = torch.linspace(-1, 1, task.side)
        self.places = torch.stack(torch.meshgrid(at, at, indexing="ij"), -1).view(-1, 2)

    def choose(self) -> None:
        """Another image to fit."""
        self.image = int(torch.randint(len(self.x), (1,), generator=self.generator))

    def draw(self) -> Batch:
        """One batch; of an image, all pixels where they are few."""
        size = self.task.batch
        if self.task.goal == "next":
            span = torch.arange(self.task.side + 1)
            piece = self.x[self._pick(len(self.x) - self.task.side - 1, size)[:, None] + span]
            return piece[:, :-1], piece[:, 1:]
        if self.task.goal == "image":
            y = self.x[self.image].mean(0).flatten()
            if len(y) <= 4 * size:
                return self.places, y
            pick = self._pick(len(y), size)
            return self.places[pick], y[pick]
        pick = self._pick(len(self.x), size)
        return self.x[pick], self.y[pick]

    def _pick(self, n: int, size: int) -> Tensor:
        return torch.randint(n, (size,), generator=self.generator)


def check_data(names: tuple[str, ...], source: str | None) -> None:
    """Whether all data sets can be loaded, before hours are spent.

    Raises:
        MetanetError: naming the first one that is not there, and how to get it.
    """
    for name in dict.fromkeys(names):
        if name not in DATA:
            raise MetanetError(f"no data set {name!r} for inner tasks; there are "
                               f"{', '.join(DATA)}")
        if name == "tiny-shakespeare":
            text(name, source)
        else:
            from metanet.zoo import data

            data.load(name, source, n=1)
