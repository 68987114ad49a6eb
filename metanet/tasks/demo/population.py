"""A population of small CNNs, trained many at a time, each with hyper-parameters of its own.

All members share one architecture, hence one WeightSpace. Their weights are rows of one matrix
``[member, parameter]``; a layer of all members is one grouped convolution, so two cores train
hundreds of nets in well under a minute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from metanet.tasks.demo.data import Digits, Images
from metanet.tasks.demo.workers import workers

HYPER_PARAMETERS = ("log lr", "log weight decay", "log init scale", "log images", "adam",
                    "log steps")
# Each run is saved at these shares of its steps. There is no schedule, so an earlier checkpoint is
# what a shorter run of the same member would have given.
SNAPSHOTS = (0.125, 0.25, 0.5, 1.0)
_BATCH = 32
_CHUNK = 64


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, global average pooling, one linear layer: 2,002 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.conv3 = nn.Conv2d(8, 16, 3)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Float[Tensor, "n 1 8 8"]) -> Float[Tensor, "n 10"]:
        """Logits."""
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu(conv(x))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


LAYOUT: dict[str, tuple[int, ...]] = {
    name: tuple(p.shape) for name, p in SmallCNN().named_parameters()
}
N_PARAMETERS = sum(map(prod, LAYOUT.values()))


@dataclass(frozen=True)
class Recipe:
    """How the members are trained; one entry per member."""

    lr: Float[Tensor, " m"]
    weight_decay: Float[Tensor, " m"]
    init_scale: Float[Tensor, " m"]
    images: Int[Tensor, " m"]
    steps: Int[Tensor, " m"]
    adam: Bool[Tensor, " m"]

    def __len__(self) -> int:
        return len(self.lr)

    def rows(self, index: Tensor) -> Recipe:
        """The recipe of some members."""
        return Recipe(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def features(self) -> NDArray[np.float64]:
        """``[s, m, 6]`` for each checkpoint, in the order of ``HYPER_PARAMETERS``."""
        numbers = (self.lr, self.weight_decay, self.init_scale, self.images)
        columns = torch.stack([*(x.double().log() for x in numbers), self.adam.double()], 1)
        shared = columns.expand(len(SNAPSHOTS), -1, -1)
        return torch.cat([shared, self.saved_at().double().log().unsqueeze(2)], 2).numpy()

    def saved_at(self) -> Int[Tensor, "s m"]:
        """Steps after which each run is saved; the last is its end."""
        shares = torch.tensor(SNAPSHOTS).unsqueeze(1)
        return (self.steps * shares).long().clamp(min=1)


@dataclass(frozen=True)
class Population:
    """Runs and their checkpoints: ``weights[s, m, p]``, parameters in the order of ``LAYOUT``.

    The last checkpoint, ``weights[-1]``, is the member itself.
    """

    weights: Float[Tensor, "s m p"]
    recipe: Recipe
    test_correct: Bool[Tensor, "s m n_test"]
    labelled_correct: Bool[Tensor, "m n_labelled"]

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Accuracy on the test images, ``[s, m]``."""
        return self.test_correct.double().mean(2).numpy()

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all weights are finite, ``[s, m]``; where not, the run has diverged."""
        return self.weights.isfinite().all(2).numpy()


def state_dict(row: Float[Tensor, " p"]) -> dict[str, Tensor]:
    """One row of weights as a module would save it."""
    return {name: value[0] for name, value in views(row.unsqueeze(0)).items()}


def views(theta: Float[Tensor, "k p"]) -> dict[str, Tensor]:
    """Each parameter of all members, ``[k, *shape]``."""
    parts = theta.split([prod(shape) for shape in LAYOUT.values()], dim=1)
    return {name: part.reshape(len(theta), *shape)
            for (name, shape), part in zip(LAYOUT.items(), parts, strict=True)}


def draw_recipe(members: int, steps: tuple[int, int], seed: int) -> Recipe:
    """Random hyper-parameters: log-uniform ranges, wide enough that some nets fail.

    Args:
        members: how many.
        steps: fewest and most steps of 32 images.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)

    def log_uniform(low: float, high: float) -> Tensor:
        return low * (high / low) ** torch.rand(members, generator=generator)

    adam = torch.rand(members, generator=generator) < 0.5
    lr = torch.where(adam, log_uniform(1e-3, 6e-2), log_uniform(1e-2, 0.6))
    return Recipe(lr, log_uniform(1e-3, 1.0), log_uniform(0.4, 2.0),
                  log_uniform(40, 900).long(), log_uniform(*steps).long(), adam)


def train_population(
    recipe: Recipe, data: Digits, seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Population:
    """Train every member of a recipe.

    Args:
        recipe: hyper-parameters.
        data: where nets learn (``train``) and are scored (``test``, ``labelled``).
        seed: of inits, subsets and batches; each member gets its own draws.
        progress: called with (members done, members).
    """
    weights = torch.empty(len(SNAPSHOTS), len(recipe), N_PARAMETERS)
    # Members of one chunk finish close together, and the longest chunks start first.
    chunks = recipe.steps.argsort(descending=True, stable=True).split(_CHUNK)

    def train(number: int) -> int:
        generator = torch.Generator().manual_seed(seed * 100_003 + number)
        weights[:, chunks[number]] = _train_chunk(recipe.rows(chunks[number]), data.train,
                                                  generator)
        return len(chunks[number])

    done = 0
    with workers() as pool:
        for trained in pool.map(train, range(len(chunks))):
            done += trained
            if progress:
                progress(done, len(recipe))
    on_test = correct(weights.flatten(0, 1), data.test).unflatten(0, weights.shape[:2])
    return Population(weights, recipe, on_test, correct(weights[-1], data.labelled))


def correct(weights: Float[Tensor, "m p"], images: Images) -> Bool[Tensor, "m n"]:
    """Which images each net classifies correctly (a net that has diverged: none)."""
    hits = []
    with torch.no_grad():
        for chunk in weights.split(_CHUNK):
            x = images.x.expand(-1, len(chunk), -1, -1)
            logits = forward(chunk, x)
            hits.append((logits.argmax(2) == images.y) & logits.isfinite().all(2))
    return torch.cat(hits)


def forward(theta: Float[Tensor, "k p"], x: Float[Tensor, "n k 8 8"]) -> Float[Tensor, "k n 10"]:
    """Logits of k nets, each on its own n images."""
    w, k = views(theta), len(theta)
    for name in ("conv1", "conv2", "conv3"):
        x = F.relu(F.conv2d(x, w[f"{name}.weight"].flatten(0, 1), w[f"{name}.bias"].flatten(),
                            groups=k))
    pooled = x.mean((2, 3)).unflatten(1, (k, -1)).transpose(0, 1)
    return torch.baddbmm(w["head.bias"].unsqueeze(1), pooled,
                         w["head.weight"].transpose(1, 2))


def _init(recipe: Recipe, generator: torch.Generator) -> Float[Tensor, "k p"]:
    """He's normal init times the member's scale; biases zero."""
    columns = []
    for name, shape in LAYOUT.items():
        value = torch.randn(len(recipe), prod(shape), generator=generator)
        std = (2 / prod(shape[1:])) ** 0.5 if name.endswith("weight") else 0.0
        columns.append(value * std * recipe.init_scale.unsqueeze(1))
    return torch.cat(columns, 1)


def _train_chunk(recipe: Recipe, images: Images, generator: torch.Generator
                 ) -> Float[Tensor, "s k p"]:
    k = len(recipe)
    theta = _init(recipe, generator).requires_grad_()
    subset = torch.rand(k, len(images), generator=generator).argsort(1)
    optimizer = _Optimizer(recipe, theta)
    saved, saved_at = torch.empty(len(SNAPSHOTS), k, N_PARAMETERS), recipe.saved_at()
    for step in range(1, int(recipe.steps.max()) + 1):
        pick = torch.rand(k, _BATCH, generator=generator) * recipe.images.unsqueeze(1)
        index = subset.gather(1, pick.long())
        logits = forward(theta, images.x[index.T].squeeze(2))
        loss = F.cross_entropy(logits.flatten(0, 1), images.y[index].flatten(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss / _BATCH, theta)
        optimizer.step(gradient)
        here = saved_at == step
        saved[here] = theta.detach().expand_as(saved)[here]
    return saved


class _Optimizer:
    """SGD with momentum or AdamW, chosen per member; weight decay is decoupled in both."""

    def __init__(self, recipe: Recipe, theta: Float[Tensor, "k p"]) -> None:
        self.theta, self.adam = theta, recipe.adam.unsqueeze(1)
        self.lr = recipe.lr.unsqueeze(1)
        self.keep = 1 - self.lr * recipe.weight_decay.unsqueeze(1)
        self.momentum, self.square, self.t = torch.zeros_like(theta), torch.zeros_like(theta), 0

    @torch.no_grad()
    def step(self, gradient: Float[Tensor, "k p"]) -> None:
        """One update of all members."""
        self.t += 1
        self.momentum.mul_(0.9).add_(gradient)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        mean = self.momentum * (0.1 / (1 - 0.9**self.t))
        scale = (self.square / (1 - 0.999**self.t)).sqrt_().add_(1e-8)
        move = torch.where(self.adam, mean / scale, self.momentum)
        self.theta.mul_(self.keep).sub_(self.lr * move)
