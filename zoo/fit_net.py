"""Training one classifier: a lean loop, one network per process.

On CPU one single-threaded process per core trains more convolutional networks a second than any
way of batching them. Parameters and gradients are each one flat vector, so an optimizer is a few
vector operations instead of a few per tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

_MOMENTUM = 0.9


@dataclass(frozen=True)
class Plan:
    """How one network is trained.

    Attributes:
        optimizer, lr, weight_decay, batch, steps: of the optimizer.
        points: steps after which the weights are kept, in order; 0 is the start.
    """

    optimizer: str
    lr: float
    weight_decay: float
    batch: int
    steps: int
    points: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Weights after ``step`` steps, and the loss of the batch before it (NaN at the start)."""

    step: int
    weights: Mapping[str, Tensor]
    loss: float = field(default=math.nan)


@dataclass(frozen=True, eq=False)
class Trained:
    """Snapshots of a run, and the step at which its loss was no longer finite, or None.

    The weights of a run that diverged are the last ones whose loss was finite.
    """

    snapshots: Sequence[Snapshot]
    diverged: int | None


class Flat:
    """All parameters of a module as views of one vector, and their gradients as another."""

    def __init__(self, module: nn.Module) -> None:
        named = list(module.named_parameters())
        total = sum(p.numel() for _, p in named)
        self.theta, self.gradient = torch.empty(total), torch.zeros(total)
        self.places: list[tuple[str, int, torch.Size]] = []
        at = 0
        for name, parameter in named:
            end = at + parameter.numel()
            self.theta[at:end] = parameter.detach().flatten()
            parameter.data = self.theta[at:end].view(parameter.shape)
            parameter.grad = self.gradient[at:end].view(parameter.shape)
            self.places.append((name, at, parameter.shape))
            at = end

    def weights(self, theta: Tensor) -> dict[str, Tensor]:
        """A state dict of a copy of ``theta``."""
        copy = theta.clone()
        return {name: copy[at:at + shape.numel()].view(shape) for name, at, shape in self.places}


class Optimizer:
    """SGD with momentum, Adam with decoupled decay, or RMSprop, on one flat vector."""

    def __init__(self, plan: Plan, flat: Flat) -> None:
        self.plan, self.flat, self.t = plan, flat, 0
        self.mean, self.square = torch.zeros_like(flat.theta), torch.zeros_like(flat.theta)

    def step(self) -> None:
        """One update from the gradient, which is used up and set to 0."""
        plan, theta, g = self.plan, self.flat.theta, self.flat.gradient
        self.t += 1
        if plan.optimizer == "adam":
            theta.mul_(1 - plan.lr * plan.weight_decay)
            self.mean.lerp_(g, 0.1)
            self.square.mul_(0.999).addcmul_(g, g, value=0.001)
            scale = self.square.sqrt().mul_(1 / math.sqrt(1 - 0.999**self.t)).add_(1e-8)
            theta.addcdiv_(self.mean, scale, value=-plan.lr / (1 - 0.9**self.t))
        else:
            g.add_(theta, alpha=plan.weight_decay)
            if plan.optimizer == "sgd":
                theta.sub_(self.mean.mul_(_MOMENTUM).add_(g), alpha=plan.lr)
            else:
                self.square.mul_(0.99).addcmul_(g, g, value=0.01)
                theta.addcdiv_(g, self.square.sqrt().add_(1e-8), value=-plan.lr)
        g.zero_()


@dataclass(frozen=True, eq=False)
class Images:
    """Images that a network sees: ``(x - shift) / scale``, and their classes.

    Attributes:
        x, y: images ``[n, 1, h, w]`` and classes ``[n]``.
        rows: which of them, ``[k]``; y holds their classes only, in that order.
        shift, scale: of the pixels.
    """

    x: Float[Tensor, "n 1 h w"]
    y: Int64[Tensor, " k"]
    rows: Int64[Tensor, " k"]
    shift: float = 0.0
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, pick: Int64[Tensor, " b"]) -> tuple[Tensor, Tensor]:
        """Normalised images and classes."""
        return self.x[self.rows[pick]].sub_(self.shift).div_(self.scale), self.y[pick]


def train(module: nn.Module, plan: Plan, seen: Images, rng: torch.Generator) -> Trained:
    """Train a classifier.

    Args:
        module: at its start; it is used up. Dropout draws from torch's global generator.
        plan: how.
        seen: what it may see.
        rng: of the order of the images.
    """
    flat = Flat(module)
    optimizer, batches = Optimizer(plan, flat), _batches(len(seen), plan.batch, rng)
    kept: list[Snapshot] = []
    last, value = flat.theta.clone(), math.nan
    module.train()
    for step in range(plan.steps + 1):
        if step in plan.points:
            kept.append(Snapshot(step, flat.weights(flat.theta), value))
        if step == plan.steps:
            fine = bool(flat.theta.isfinite().all())
            return Trained(kept, None) if fine else _diverged(plan, kept, flat, last, step)
        x, y = seen.batch(next(batches))
        loss = F.cross_entropy(module(x), y)
        value = loss.item()
        if not math.isfinite(value):
            return _diverged(plan, kept, flat, last, step)
        last.copy_(flat.theta)
        loss.backward()
        optimizer.step()
    return Trained(kept, None)


def _diverged(plan: Plan, kept: Sequence[Snapshot], flat: Flat, last: Tensor, step: int) -> Trained:
    before = [snapshot for snapshot in kept if snapshot.step < step]
    rest = [Snapshot(p, flat.weights(last)) for p in plan.points if p >= step]
    return Trained([*before, *rest], step)


def _batches(n: int, size: int, rng: torch.Generator) -> Iterator[Int64[Tensor, " b"]]:
    """Batches without end: the images in a new order in every epoch."""
    size = min(size, n)
    while True:
        order = torch.randperm(n, generator=rng)
        for start in range(0, n - size + 1, size):
            yield order[start:start + size]


@torch.no_grad()
def measure(module: nn.Module, weights: Mapping[str, Tensor], seen: Images) -> tuple[float, float]:
    """Accuracy and mean cross entropy of weights; (NaN, NaN) where a logit is not finite."""
    module.eval()
    parts = [torch.func.functional_call(module, dict(weights), (seen.batch(pick)[0],))
             for pick in torch.arange(len(seen)).split(512)]
    logits = torch.cat(parts)
    if not bool(logits.isfinite().all()):
        return math.nan, math.nan
    return (float((logits.argmax(1) == seen.y).double().mean()),
            float(F.cross_entropy(logits, seen.y)))


def initialise(module: nn.Module, scheme: str, scale: float, rng: torch.Generator) -> None:
    """Overwrite all parameters: weights by ``scheme`` times ``scale``, biases 0.

    ``default`` is what torch does (±1/√inputs, biases too), from ``rng``.
    """
    for _, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.dim() > 1:
                _weight(parameter, scheme, rng)
                fan_in = parameter[0].numel()
                parameter.mul_(scale)
            elif scheme == "default":
                parameter.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=rng)
            else:
                parameter.zero_()


def _weight(parameter: Tensor, scheme: str, rng: torch.Generator) -> None:
    init = nn.init
    if scheme == "default":
        bound = 1 / math.sqrt(parameter[0].numel())
        parameter.uniform_(-bound, bound, generator=rng)
    elif scheme == "kaiming":
        init.kaiming_normal_(parameter, nonlinearity="relu", generator=rng)
    elif scheme == "xavier":
        init.xavier_uniform_(parameter, generator=rng)
    elif scheme == "orthogonal":
        init.orthogonal_(parameter, generator=rng)
    else:
        parameter.normal_(0, 0.1, generator=rng)
