"""The optimizers that learned ones are measured against, each with its usual step size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from metanet.errors import MetanetError

GRID = tuple(10 ** (k / 2) for k in range(-3, 4))
"""Factors on the usual step size that tuning tries."""


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss, with fresh gradients, where there is a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Lion(Optimizer):
    """Sign of an interpolated momentum (arXiv 2302.06675)."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-4,
                 betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            held = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
            first, second = group["betas"]
            steps = torch._foreach_lerp(held, grads, 1 - first)
            torch._foreach_sign_(steps)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, steps, alpha=-group["lr"])
            torch._foreach_lerp_(held, grads, 1 - second)
        return loss


class Muon(Optimizer):
    """Orthogonalised momentum for matrices (Jordan et al. 2024), AdamW for all else.

    Convolutions are matrices of one row per channel. Parameters of one axis, embeddings and the
    last layer go to AdamW, at ``aux`` times the step size.
    """

    def __init__(self, module: nn.Module, lr: float = 0.02, aux: float = 0.05,
                 momentum: float = 0.95) -> None:
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        embeds = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
        heads = {id(named[i][1]) for i in range(len(named)) if named[i][1].ndim > 1}
        last = [p for _, p in named if p.ndim > 1][-1:]
        whole = [p for _, p in named if id(p) in heads and id(p) not in embeds
                 and all(p is not q for q in last)]
        rest = [p for _, p in named if all(p is not q for q in whole)]
        super().__init__([{"params": whole, "matrix": True}, {"params": rest, "matrix": False}],
                         {"lr": lr, "aux": aux, "momentum": momentum, "betas": (0.9, 0.95)})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step."""
        loss = _evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    (self._matrix if group["matrix"] else self._plain)(p, p.grad, group)
        return loss

    def _matrix(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        held = self.state[p].setdefault("momentum", torch.zeros_like(p))
        held.lerp_(grad, 1 - group["momentum"])
        step = orthogonal(grad.lerp(held, group["momentum"]).flatten(1))
        size = max(1.0, step.shape[0] / step.shape[1]) ** 0.5
        p.add_(step.view_as(p), alpha=-group["lr"] * size)

    def _plain(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(t=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["t"] += 1
        a, b = group["betas"]
        mean = state["mean"].lerp_(grad, 1 - a) / (1 - a ** state["t"])
        square = state["square"].lerp_(grad * grad, 1 - b) / (1 - b ** state["t"])
        p.add_(mean / (square.sqrt() + 1e-8), alpha=-group["lr"] * group["aux"])


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Nearly the nearest orthogonal matrix, by five Newton–Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    turned = x.shape[0] > x.shape[1]
    x = x.T if turned else x
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    found: Tensor = x.T if turned else x
    return found


@dataclass(frozen=True)
class Rival:
    """An optimizer: its usual step size, and how it is made."""

    name: str
    lr: float
    make: Callable[[nn.Module, float], Optimizer]


RIVALS: dict[str, Rival] = {rival.name: rival for rival in (
    Rival("sgdm", 0.1, lambda m, lr: SGD(m.parameters(), lr=lr, momentum=0.9)),
    Rival("adamw", 1e-3, lambda m, lr: AdamW(m.parameters(), lr=lr)),
    Rival("lion", 1e-4, lambda m, lr: Lion(m.parameters(), lr=lr)),
    Rival("muon", 0.02, lambda m, lr: Muon(m, lr=lr)),
)}


def rival(name: str) -> Rival:
    """A rival by its name."""
    if name not in RIVALS:
        raise MetanetError(f"no optimizer {name!r} in the benchmark; there are "
                           f"{', '.join(RIVALS)}")
    return RIVALS[name]
