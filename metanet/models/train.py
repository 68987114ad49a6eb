"""fit: train a Metanet on a batch of weights and numbers to predict from them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from metanet.errors import SpaceMismatch
from metanet.graph import WeightBatch
from metanet.models.metanet import Metanet, Prepared

_WARM = 0.05  # share of the training with a rising learning rate


@dataclass(frozen=True)
class Fit:
    """What a training did; losses are mean squared errors in units of the targets' variance."""

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]  # empty without a validation set
    best_epoch: int
    seconds: float


@dataclass(frozen=True)
class _Plan:
    epochs: int
    lr: float
    batch_size: int
    time_budget: float | None
    start: float

    def progress(self, epoch: float) -> float:
        """Share of the training that is over, by epochs or by time, whichever is further."""
        spent = (time.monotonic() - self.start) / self.time_budget if self.time_budget else 0.0
        return min(max(epoch / self.epochs, spent), 1.0)

    def rate(self, epoch: float) -> float:
        """Linear warm-up, then a cosine to zero."""
        done = self.progress(epoch)
        return self.lr * min(done / _WARM, 1.0) * (1 + cos(pi * done)) / 2 if epoch else \
            self.lr * _WARM


def fit(model: Metanet, batch: WeightBatch, targets: Tensor, val_batch: WeightBatch | None = None,
        val_targets: Tensor | None = None, *, epochs: int = 100, lr: float = 1e-3, seed: int = 0,
        time_budget: float | None = None, batch_size: int = 32, weight_decay: float = 1e-2,
        patience: int | None = None) -> Fit:
    """Train in place with AdamW and a cosine schedule; keep the best epoch on validation.

    Args:
        batch: N members of the model's space.
        targets: ``[N]`` or ``[N, outputs]``; standardised inside.
        val_batch: members to choose the epoch by; without them the last epoch is kept.
        time_budget: seconds after which training ends; the schedule then follows the clock, and
            the result depends on the machine's speed. Without it the result depends on ``seed``
            alone (the global random state is neither used nor changed).
        patience: stop after so many epochs without a better validation loss.

    Returns:
        Losses per epoch, the epoch kept (from 0), and the seconds it took.

    Raises:
        SpaceMismatch: if members and targets do not fit, or a target is not finite.
    """
    plan = _Plan(epochs, lr, batch_size, time_budget, time.monotonic())
    wanted = _checked(model, batch, targets)
    model.measure(batch, wanted)
    train = _set(model, batch, wanted)
    held = None
    if val_batch is not None and val_targets is not None:
        held = _set(model, val_batch, _checked(model, val_batch, val_targets))
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    train_loss: list[float] = []
    val_loss: list[float] = []
    best, best_epoch = copy.deepcopy(model.state_dict()), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            train_loss.append(_epoch(model, train, optimiser, plan, epoch))
            if held is not None:
                val_loss.append(_loss(model, held))
            if not val_loss or val_loss[-1] <= min(val_loss):
                best_epoch = epoch
                if val_loss:
                    best = copy.deepcopy(model.state_dict())
            tired = patience is not None and epoch - best_epoch >= patience
            if tired or plan.progress(epoch + 1) >= 1:
                break
    if val_loss:
        model.load_state_dict(best)
    model.eval()
    return Fit(tuple(train_loss), tuple(val_loss), best_epoch, time.monotonic() - plan.start)


@dataclass(frozen=True)
class _Set:
    inputs: Prepared
    wanted: Tensor  # [N, outputs], standardised


def _epoch(model: Metanet, train: _Set, optimiser: torch.optim.Optimizer, plan: _Plan,
           epoch: int) -> float:
    model.train()
    total, seen, n = 0.0, 0, len(train.wanted)
    for start, rows in _shuffled(n, plan.batch_size):
        for group in optimiser.param_groups:
            group["lr"] = plan.rate(epoch + start / n)
        error = (model.standard(train.inputs[rows]) - train.wanted[rows]).square().mean()
        optimiser.zero_grad()
        error.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        total, seen = total + error.item() * len(rows), seen + len(rows)
        if plan.progress(0) >= 1:
            break
    return total / seen


def _shuffled(n: int, size: int) -> Iterator[tuple[int, Tensor]]:
    order = torch.randperm(n)
    for start in range(0, n, size):
        yield start, order[start:start + size]


@torch.no_grad()
def _loss(model: Metanet, held: _Set, size: int = 256) -> float:
    model.eval()
    found = [model.standard(held.inputs[start:start + size])
             for start in range(0, len(held.wanted), size)]
    return float((torch.cat(found) - held.wanted).square().mean())


def _checked(model: Metanet, batch: WeightBatch, targets: Tensor) -> Tensor:
    """Targets as ``[N, outputs]``, in the precision of the net, on the device of the batch."""
    wanted = torch.as_tensor(targets).to(batch.device, model.target_mean.dtype)
    wanted = wanted[:, None] if wanted.ndim == 1 else wanted
    if tuple(wanted.shape) != (len(batch), model.outputs):
        raise SpaceMismatch(f"targets have shape {tuple(wanted.shape)}, expected "
                            f"{(len(batch), model.outputs)}")
    if not torch.isfinite(wanted).all():
        raise SpaceMismatch("a target is not finite; drop its member")
    return wanted


@torch.no_grad()
def _set(model: Metanet, batch: WeightBatch, wanted: Tensor) -> _Set:
    return _Set(model.prepare(batch), (wanted - model.target_mean) / model.target_scale)
