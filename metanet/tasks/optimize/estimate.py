"""Meta-gradients: persistent evolution strategies, evolution strategies, back-propagation.

PES (arXiv 2112.13835): a perturbation is drawn for every truncation, and the losses of a truncation
are credited to all perturbations since the episode began, which makes truncations unbiased.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from metanet.tasks.optimize.worker import Unroll, Worker


class Evolution:
    """Antithetic evolution strategies on one worker.

    Args:
        worker: with replicas in pairs.
        sigma: deviation of the perturbations.
        persistent: PES; otherwise every truncation stands for itself.
        weights: how many there are.
    """

    def __init__(self, worker: Worker, sigma: float, persistent: bool, weights: int) -> None:
        self.worker, self.sigma, self.persistent = worker, sigma, persistent
        self.sums = torch.zeros(worker.own, weights)

    @torch.no_grad()
    def gradient(self, theta: Float[Tensor, " m"], steps: int) -> tuple[Tensor, Unroll]:
        """An estimate of the meta-gradient ``[m]``, and what the truncation gave."""
        worker = self.worker
        for j in worker.fresh_episodes():
            if j < worker.own:
                self.sums[j] = 0
        noise = self.sigma * torch.randn(self.sums.shape, generator=worker.generator)
        found = worker.unroll(torch.cat([theta + noise, theta - noise]), steps)
        self.sums = self.sums + noise if self.persistent else noise
        up, down = found.meta.chunk(2)
        gradient = ((up - down)[:, None] * self.sums).mean(0) / (2 * self.sigma ** 2)
        return gradient, found

    def tensors(self) -> dict[str, Tensor]:
        """All that it goes on from."""
        return {**self.worker.tensors(), "sums": self.sums}

    def restore(self, found: dict[str, Tensor]) -> None:
        """Inverse of ``tensors``."""
        self.worker.restore(found)
        self.sums = found["sums"].clone()


class Backward:
    """Back-propagation through a truncation."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def gradient(self, theta: Float[Tensor, " m"], steps: int) -> tuple[Tensor, Unroll]:
        """The gradient ``[m]`` of the mean meta-loss of a truncation, and what it gave."""
        self.worker.fresh_episodes()
        leaf = theta.detach().clone().requires_grad_()
        found = self.worker.unroll(leaf[None], steps)
        (gradient,) = torch.autograd.grad(found.meta.mean(), leaf)
        return gradient.nan_to_num(0.0, 0.0, 0.0), Unroll(found.meta.detach(), found.last)

    def tensors(self) -> dict[str, Tensor]:
        """All that it goes on from."""
        return self.worker.tensors()

    def restore(self, found: dict[str, Tensor]) -> None:
        """Inverse of ``tensors``."""
        self.worker.restore(found)
